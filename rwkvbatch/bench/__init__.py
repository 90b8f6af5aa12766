"""Measuring this program on this machine: how fast, how near the machine's limits, and against the `rwkv` package."""

from __future__ import annotations
