"""The bundled model's weights; what they are and how they were made is told in `docs/demo-model.md`."""

from __future__ import annotations
