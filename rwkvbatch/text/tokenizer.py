"""The World tokenizer: greedy longest match over UTF-8 bytes, the same ids as the `rwkv` package's on any text.

A model with a smaller vocabulary uses the entries whose ids it has. Ids 1 to 256 are the single bytes, so any text can
be written with a vocabulary of 257.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Protocol

from rwkvbatch.errors import InputError, UsageError
from rwkvbatch.text.decoding import decode_utf8
from rwkvbatch.text.vocabulary import load_entries, pack

MIN_VOCAB_SIZE = 257


class Tokenizer(Protocol):
    """What the engine and the template need of a tokenizer.

    Attributes:
        vocab_size: ids are below this; not every id has an entry.
        name: for people.
        sha256: hex digest that two tokenizers share only if they give the same ids and texts.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, tokens: Sequence[int]) -> str: ...
    def decode_bytes(self, tokens: Sequence[int]) -> bytes: ...
    def token_bytes(self, token: int) -> bytes: ...


class WorldTokenizer:
    """The World vocabulary's entries with ids below `vocab_size`; see `world_tokenizer`.

    Args:
        entries: the bytes of each id; none for ids without an entry. The 256 single bytes must be among them.
        vocab_size: of the model; may be larger than the table.
    """

    name = "rwkv-world"

    def __init__(self, entries: Sequence[bytes], vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._bytes_of = tuple(entries[:vocab_size])
        self._id_of = {entry: token for token, entry in enumerate(self._bytes_of) if entry}
        self._lengths = _lengths_by_pair(self._id_of)

    @property
    def sha256(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(pack(self._bytes_of)).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`.

        Raises:
            InputError: `text` holds a lone surrogate, which is no character and has no bytes.
        """
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"character {error.start + 1} of a text, U+{ord(text[error.start]):04X}, is half of a surrogate pair",
                hint="write the whole character, or remove it",
            ) from None
        id_of, lengths, ids, at = self._id_of, self._lengths, list[int](), 0
        while at < len(data):
            for length in lengths.get(data[at : at + 2], ()):
                token = id_of.get(data[at : at + length])
                if token is not None:
                    break
            else:
                length, token = 1, id_of[data[at : at + 1]]
            ids.append(token)
            at += length
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`; each run of bytes that are no UTF-8 becomes one U+FFFD."""
        return decode_utf8(self.decode_bytes(tokens))

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """Bytes of `tokens`; ids without an entry have none."""
        return b"".join(map(self.token_bytes, tokens))

    def token_bytes(self, token: int) -> bytes:
        """Bytes of one token; none for 0 (end of text) and other ids without an entry."""
        return self._bytes_of[token] if 0 <= token < len(self._bytes_of) else b""


@lru_cache(maxsize=8)
def world_tokenizer(vocab_size: int = 65536) -> WorldTokenizer:
    """The World tokenizer of a model with `vocab_size` token ids; the same object for the same size.

    Raises:
        UsageError: the size does not cover the 256 single bytes.
        InputError: the vocabulary is not installed or damaged.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise UsageError(
            f"the World vocabulary has at least {MIN_VOCAB_SIZE} ids (end of text, 256 bytes), got {vocab_size}",
            hint="use a model that was trained with the World vocabulary",
        )
    return WorldTokenizer(load_entries(), vocab_size)


def _lengths_by_pair(id_of: dict[bytes, int]) -> dict[bytes, tuple[int, ...]]:
    """For each pair of bytes, the lengths (longest first) of the entries that begin with it."""
    found: dict[bytes, set[int]] = {}
    for entry in id_of:
        if len(entry) > 1:
            found.setdefault(entry[:2], set()).add(len(entry))
    return {pair: tuple(sorted(lengths, reverse=True)) for pair, lengths in found.items()}
