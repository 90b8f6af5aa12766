"""The report: one HTML file that opens without a network and runs nothing but its own script."""

from __future__ import annotations
