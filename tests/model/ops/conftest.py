"""Selects Triton's interpreter before anything imports Triton; see `device.py`."""

from tests.model.ops import device

__all__ = ["device"]
