"""The engine: requests, scheduler, prefix cache and sampling, for many replies at once over one model."""

from __future__ import annotations
