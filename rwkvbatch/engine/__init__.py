"""Requests, the scheduler, the prefix tree and sampling: many replies at once over one model."""

from __future__ import annotations
