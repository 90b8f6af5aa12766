"""The interactive session: loop, slash commands, transcript."""

from __future__ import annotations
