"""Conversation scripts: records, file formats, lint, checks on replies."""

from __future__ import annotations
