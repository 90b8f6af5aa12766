"""The settings that `rwkvbatch.run` takes as keyword arguments, for editors and type checkers.

What they mean and may be is said in `RunSettings`, which also checks them; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

from rwkvbatch.config import HistoryMode, ThinkMode

_Order = Literal["top-p-first", "temperature-first"]


class RunKeywords(TypedDict, total=False):
    """Fields of `RunSettings`, and `preset`; a list of values makes a dimension of the grid."""

    preset: str | Sequence[str]
    temperature: float | Sequence[float]
    temp: float | Sequence[float]
    top_p: float | Sequence[float]
    top_k: int | Sequence[int]
    presence: float | Sequence[float]
    frequency: float | Sequence[float]
    decay: float | Sequence[float]
    order: _Order | Sequence[_Order]
    ban: Sequence[int]
    max_tokens: int | Sequence[int]
    max_seconds: float | Sequence[float] | None
    stop: Sequence[str]
    think: ThinkMode | Sequence[ThinkMode]
    history: HistoryMode | Sequence[HistoryMode]
    strategy: str | Sequence[str]
    backend: str | Sequence[str]
    state: str | Sequence[str] | None
    template: str | Sequence[str] | None
    prelude: str | Sequence[str] | None
    seed: int
    repeats: int
    max_repeats: int | None
    until_ci: float | None
    limit: int | None
    only: Sequence[str]
    shuffle_seed: int | None
    batch_size: int
    threads: int | None
    workers: int | None
    devices: Sequence[str]
    ray: str | None
    state_memory: int | str | None
    max_prompt_tokens: int | None
    max_failures: int | None
    max_line_bytes: int | str
    max_turns: int
    max_conversations: int
