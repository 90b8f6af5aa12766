"""Whether a reply passes an `expect` entry: the kinds of check that the corpus uses."""

from __future__ import annotations

import re
from typing import Any

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def passes(reply: str, expect: dict[str, Any]) -> bool:
    """Whether the stripped reply meets every kind in `expect`.

    Raises:
        ValueError: for a kind that the corpus never writes.
    """
    return all(_passes_kind(reply.strip(), kind, value) for kind, value in expect.items())


def _passes_kind(reply: str, kind: str, value: Any) -> bool:
    if kind == "equals":
        return reply == value
    if kind == "contains":
        return str(value) in reply
    if kind == "one_of":
        return reply in value
    if kind == "number":
        found = _NUMBER.findall(reply)
        return bool(found) and float(found[-1]) == float(value)
    raise ValueError(f"unknown kind of check {kind!r}; the corpus writes equals, contains, one_of, number")
