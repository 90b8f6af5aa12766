"""Conversations as the rest of the program sees them: plain frozen values that know where they stood.

`Check` is here, and not beside the kinds of check, so that a turn can hold checks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from rwkvbatch.config import PENALTY_ALIASES


@dataclass(frozen=True)
class SourceLine:
    """A place in a script: the file as it was named (`-` is standard input) and its 1-based line."""

    path: str
    line: int

    def __str__(self) -> str:
        return f"{'<stdin>' if self.path == '-' else self.path}:{self.line}"


@dataclass(frozen=True)
class ReplyFacts:
    """What checks may look at.

    Attributes:
        text: the reply as shown, stripped, with its thinking part.
        finish_reason: why it ended (`stop`, `eos`, `length`, `time`).
        num_tokens: tokens in the reply.
        reference: the script's reply to the same turn, if it has one.
    """

    text: str
    finish_reason: str
    num_tokens: int
    reference: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What a check found: `score` is in [0, 1], `detail` says what was there when it did not pass."""

    passed: bool
    score: float
    detail: str | None = None


class Rule(Protocol):
    """How one kind of check judges a reply."""

    def judge(self, facts: ReplyFacts) -> Verdict: ...


@dataclass(frozen=True)
class Check:
    """One expectation about a reply.

    Attributes:
        kind: its name in `expect`.
        expected: the value it was given, as in the script.
        rule: what judges the reply.
        weight: its share in a row's score.
        options: further keys of its entry, such as `ignore_case`.
        needs_reference: whether it compares with the turn's reference reply.
    """

    kind: str
    expected: Any
    rule: Rule = field(repr=False, compare=False)
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    needs_reference: bool = False

    def judge(self, facts: ReplyFacts) -> Verdict:
        """The verdict on a reply.

        Raises:
            RowError: a plug-in's check failed to give a verdict.
        """
        return self.rule.judge(facts)

    def as_dict(self) -> dict[str, Any]:
        """The entry of `expect` that it was made from, in full."""
        return {self.kind: self.expected, **self.options, "weight": self.weight}


@dataclass(frozen=True)
class Turn:
    """A user message, the reply it should get if the script has one, and what is expected of the model's.

    `params` take the place of the conversation's for this reply alone.
    """

    user: str
    reference: str | None = None
    checks: tuple[Check, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])


_DIGESTED_NAMES = {name: alias for alias, name in PENALTY_ALIASES.items()}


def _digested(params: Mapping[str, Any]) -> dict[str, Any]:
    """`params` as digests of conversations have them: by the names that the first version of the format used."""
    return {_DIGESTED_NAMES.get(name, name): value for name, value in params.items()}


@dataclass(frozen=True)
class Conversation:
    """One line of a script.

    Attributes:
        id: unique in a run; 1 to 200 printable characters.
        system: the system message, if any.
        turns: at least one.
        tags: for `--only` and for grouping.
        params: settings of this conversation that take the place of the run's: validated, by their names in
            `config.Sampling` and `config.Stopping`, and `seed`.
        source: where it stood.
    """

    id: str
    system: str | None
    turns: tuple[Turn, ...]
    tags: tuple[str, ...]
    params: Mapping[str, Any]
    source: SourceLine = field(compare=False)

    @cached_property
    def sha256(self) -> str:
        """Hex digest of everything but the place: the same for the same conversation in any form or file."""
        record = {
            "id": self.id,
            "system": self.system,
            "turns": [
                {
                    "user": turn.user,
                    "reference": turn.reference,
                    "checks": [check.as_dict() for check in turn.checks],
                    **({"params": _digested(turn.params)} if turn.params else {}),
                }
                for turn in self.turns
            ],
            "tags": self.tags,
            "params": _digested(self.params),
        }
        text = json.dumps(record, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode("ascii")).hexdigest()
