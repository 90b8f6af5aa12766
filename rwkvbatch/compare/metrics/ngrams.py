"""Token n-grams as short strings: those are cheap to make and to hash, which matters for 100,000 replies."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence
from operator import add
from typing import Final

_ENCODING: Final = f"utf-32-{'le' if sys.byteorder == 'little' else 'be'}"


def as_characters(ids: Sequence[int]) -> str:
    """One character a token id.

    Raises:
        OverflowError, TypeError, UnicodeDecodeError: an id is no number below 0x110000.
    """
    return array("I", ids).tobytes().decode(_ENCODING, "surrogatepass")


def pairs(units: str, distance: int) -> Iterator[str]:
    """Each unit together with the one `distance` after it."""
    return map(add, units, units[distance:])


def ranks(grams: Iterator[str]) -> str:
    """`grams` as one character each: the same character for the same gram."""
    known: dict[str, str] = {}
    return "".join([known.setdefault(gram, chr(len(known))) for gram in grams])
