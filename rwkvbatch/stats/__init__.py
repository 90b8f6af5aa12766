"""Statistics that `run` (adaptive repeats) and `compare` share: arrays in, numbers out, no tables."""

from __future__ import annotations
