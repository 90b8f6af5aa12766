"""The first entries of the RWKV World vocabulary, which is all the demo model has."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from rwkvbatch.prompt.tokenizer import world_tokenizer

VOCAB_SIZE = 512
END_OF_TEXT = 0


@lru_cache(maxsize=200_000)
def encode(segment: str) -> tuple[int, ...]:
    """Token ids of one segment of a prompt or of one reply."""
    return tuple(world_tokenizer(VOCAB_SIZE).encode(segment))


def decode(ids: Sequence[int]) -> str:
    """Text of token ids; bytes that are no UTF-8 become U+FFFD."""
    return world_tokenizer(VOCAB_SIZE).decode(ids)
