"""Conversation scripts: records, forms of lines, lint, checks of replies."""

from __future__ import annotations
