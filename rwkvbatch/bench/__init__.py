"""Benchmarks of this program on this machine, against the machine's limits and the `rwkv` package; `model verify`."""

from __future__ import annotations
