"""The first entries of the RWKV World vocabulary, and the text segments that a conversation is encoded in."""

from __future__ import annotations

import ast
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

VOCAB_SIZE = 512
END_OF_TEXT = 0


@lru_cache(maxsize=1)
def _entries() -> dict[bytes, int]:
    spec = find_spec("rwkv")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the rwkv package, which carries the World vocabulary, is not installed")
    table: dict[bytes, int] = {}
    with (Path(spec.origin).parent / "rwkv_vocab_v20230424.txt").open(encoding="utf-8") as lines:
        for line in lines:
            token_id = int(line[: line.index(" ")])
            if token_id >= VOCAB_SIZE:
                break
            literal = ast.literal_eval(line[line.index(" ") : line.rindex(" ")].strip())
            table[literal.encode("utf-8") if isinstance(literal, str) else literal] = token_id
    return table


@lru_cache(maxsize=1)
def _bytes_of() -> list[bytes]:
    by_id = [b""] * VOCAB_SIZE
    for text, token_id in _entries().items():
        by_id[token_id] = text
    return by_id


@lru_cache(maxsize=200_000)
def encode(segment: str) -> tuple[int, ...]:
    """Token ids of one segment, by greedy longest match (no entry below 512 is longer than two bytes)."""
    table, data, ids, at = _entries(), segment.encode("utf-8"), [], 0
    while at < len(data):
        pair = table.get(data[at : at + 2]) if at + 1 < len(data) else None
        if pair is not None:
            ids.append(pair)
            at += 2
        else:
            ids.append(table[data[at : at + 1]])
            at += 1
    return tuple(ids)


def decode(ids: list[int] | tuple[int, ...]) -> str:
    """Text of token ids; bytes that are no UTF-8 become U+FFFD."""
    by_id = _bytes_of()
    return b"".join(by_id[i] for i in ids).decode("utf-8", errors="replace")
