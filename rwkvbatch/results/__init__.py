"""`results.jsonl`: rows, the lines that they become, and a store that never loses one."""

from __future__ import annotations
