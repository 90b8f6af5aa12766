"""All readers by name."""

from __future__ import annotations

from tests.hostile import texts, weights

READERS = {**weights.READERS, **texts.READERS}
