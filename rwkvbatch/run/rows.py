"""The row of `results.jsonl`: one turn of one conversation in one cell and repeat.

Only `timing` may differ between two runs of the same thing. `compare` needs nothing of a run but these rows and the
manifest, so nothing here imports the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self


@dataclass(frozen=True, order=True)
class RowKey:
    """What tells a row from every other of its run."""

    conversation: str
    cell: str
    repeat: int
    turn: int


@dataclass(frozen=True)
class TokenCounts:
    """`cached` of the `prompt` tokens (the whole history) did not have to be read again."""

    prompt: int
    cached: int
    reply: int


@dataclass(frozen=True)
class Logprob:
    """The reply's own log-probability under the model's distribution, in nats."""

    mean: float | None
    sum: float


@dataclass(frozen=True)
class Reference:
    """The script's reply and how likely the model found it: `nll` is the mean over its tokens, in nats.

    `matched` is the share of its tokens that were the likeliest ones.
    """

    text: str
    nll: float
    matched: float
    tokens: int


@dataclass(frozen=True)
class CheckResult:
    """One check's verdict: `score` in [0, 1], `passed`, its `weight`, and in `detail` what was found."""

    kind: str
    expected: Any
    passed: bool
    score: float
    weight: float = 1.0
    detail: str | None = None


@dataclass(frozen=True)
class RowTiming:
    """Seconds, and reply tokens per second."""

    queued_s: float
    prefill_s: float
    first_token_s: float
    total_s: float
    tokens_per_s: float


@dataclass(frozen=True)
class Row:
    """One turn. `prompt` is the user's text, `reply` the model's, stripped; `prompt_sha` tells what was read.

    `finish` is `stop`, `eos`, `length`, `time` or `error`; with `error` the text of the error is in `error`.
    """

    conversation: str
    cell: str
    repeat: int
    turn: int
    seed: int
    tags: tuple[str, ...]
    prompt: str
    reply: str
    reply_ids: tuple[int, ...]
    finish: str
    tokens: TokenCounts
    logprob: Logprob
    reference: Reference | None
    checks: tuple[CheckResult, ...]
    error: str | None
    timing: RowTiming

    @property
    def key(self) -> RowKey:
        return RowKey(self.conversation, self.cell, self.repeat, self.turn)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, in the order of the fields."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a row.

        Raises:
            KeyError, TypeError, ValueError: `values` is not a row's.
        """
        known = {field.name for field in fields(cls)}
        plain = {name: values[name] for name in known}
        reference = values["reference"]
        return cls(
            **{
                **plain,
                "tags": tuple(values["tags"]),
                "reply_ids": tuple(values["reply_ids"]),
                "tokens": TokenCounts(**values["tokens"]),
                "logprob": Logprob(**values["logprob"]),
                "reference": None if reference is None else Reference(**reference),
                "checks": tuple(CheckResult(**check) for check in values["checks"]),
                "timing": RowTiming(**values["timing"]),
            }
        )
