"""Which values are kept out of training.

The split is a pure function of a value's key, so nobody has to remember what was drawn: training draws only
keys outside the held-out eighth, data sets and evaluation only keys inside it.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from random import Random
from typing import Literal, TypeVar

Split = Literal["train", "held_out"]
Key = tuple[str | int, ...]
T = TypeVar("T")

_HELD_OUT_OF = 8


def is_held_out(key: Key) -> bool:
    """Whether training must never see `key`, e.g. `("sum", 12, 30)`."""
    digest = blake2b(repr(key).encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % _HELD_OUT_OF == 0


def draw(rng: Random, split: Split, make: Callable[[Random], T], key_of: Callable[[T], Key]) -> tuple[T, Key]:
    """The first value of `make` whose key belongs to `split`, with that key.

    Raises:
        RuntimeError: 10,000 draws gave none, so the pool of values has nothing in this split.
    """
    key: Key = ()
    for _ in range(10_000):
        value = make(rng)
        key = key_of(value)
        if is_held_out(key) == (split == "held_out"):
            return value, key
    raise RuntimeError(f"no value in split {split!r}; the last key tried was {key!r}")
