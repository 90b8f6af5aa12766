"""Conversations, their turns and checks as frozen values."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any, Protocol, cast

from rwkvbatch.errors import RwkvBatchError
from rwkvbatch.script.choices import Choice, ChoiceScores
from rwkvbatch.script.lines import SourceLine
from rwkvbatch.setting_names import PENALTY_ALIASES


@dataclass(frozen=True)
class Ruling:
    """What a judge says about a reply by one rubric.

    Attributes:
        passed: None where it gave no verdict. detail: why not, or how the votes fell. judge: its name and digest.
    """

    passed: bool | None
    detail: str
    judge: str | None = None


@dataclass(frozen=True)
class ReplyFacts:
    """The facts about a reply that checks judge.

    Attributes:
        text: the reply as shown, stripped, with its thinking part.
        finish_reason: why it ended (`stop`, `eos`, `length`, `time`); `scored` where no reply was generated.
        num_tokens: tokens in the reply.
        reference: the script's reply to the same turn, if it has one.
        choices: the likelihoods of the turn's choices, if it has any.
        rulings: what a judge says, by the rubric (`checks.judged.Rubric`); those that it was not asked yet are missing.
    """

    text: str
    finish_reason: str
    num_tokens: int
    reference: str | None = None
    choices: ChoiceScores | None = None
    rulings: Mapping[Any, Ruling] = field(default_factory=dict[Any, Ruling], compare=False)

    @property
    def finish(self) -> str:
        """Deprecated: the former name of `finish_reason`, for plug-ins that still read it."""
        warnings.warn("`facts.finish` is deprecated: use `facts.finish_reason`", DeprecationWarning, stacklevel=2)
        return self.finish_reason


@dataclass(frozen=True)
class Verdict:
    """The result of a check.

    Attributes:
        score: in [0, 1].
        detail: what was found if it did not pass.
        undecided: the check could not judge, such as after its deadline. It has failed, and `not` does not turn that
            into a pass.
        missing: there is no verdict: a judge gave none, or was not asked yet; `detail` says why. The check has neither
            passed nor failed, and `passed` and `score` say nothing.
    """

    passed: bool
    score: float
    detail: str | None = None
    undecided: bool = False
    missing: bool = False


class Rule(Protocol):
    """Judges replies by one kind of check."""

    def judge(self, facts: ReplyFacts) -> Verdict: ...


@dataclass(frozen=True)
class Check:
    """One expectation about a reply.

    Attributes:
        kind: its name in `expect`.
        expected: its value in the script.
        rule: judges the reply.
        weight: its share in a row's score.
        options: further keys of its entry, such as `ignore_case`.
        needs_reference: whether it compares with the turn's reference reply.
        choices: names or indexes of choices that the turn must have, of the checks that it combines too.
        rubrics: what a judge is asked (`checks.judged.Rubric`), of the checks that it combines too.
    """

    kind: str
    expected: Any
    rule: Rule = field(repr=False, compare=False)
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    needs_reference: bool = False
    choices: tuple[str | int, ...] = ()
    rubrics: tuple[Any, ...] = field(default=(), repr=False)

    def judge(self, facts: ReplyFacts) -> Verdict:
        """The verdict on a reply.

        Raises:
            RowError: a plug-in's check failed to give a verdict.
        """
        try:
            return self.rule.judge(facts)
        except RwkvBatchError:
            raise
        except Exception as error:
            detail = f"could not judge: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            return Verdict(False, 0.0, detail, undecided=True)

    def as_dict(self) -> dict[str, Any]:
        """The complete entry of `expect`."""
        return {self.kind: self.expected, **self.options, "weight": self.weight}


@dataclass(frozen=True)
class Probe:
    """Marks a turn that is asked on a fork of the dialogue and leaves no trace in its history.

    Attributes:
        after: the number of the turn after which it is asked.
        number: its number among the probes of that turn, from 0 up.
        since: the number of the turn that says what it asks about; -1 for the system message.
    """

    after: int
    number: int
    since: int = 0

    @property
    def distance(self) -> int:
        """Turns since the fact was said: 0 right after the reply to the turn that says it."""
        return self.after - self.since


@dataclass(frozen=True)
class Turn:
    """A user message, its reference reply if the script has one, and the checks of the model's reply.

    Attributes:
        params: replace the conversation's for this reply only.
        choices: texts whose likelihood as the reply is compared.
        generate: whether the model writes a reply; otherwise its choices or its text are scored.
        plain: `user` and `reference` are a prompt, which may be empty, and its continuation: a text that is scored
            without a chat template.
        probe: where it is asked, if it is a probe.
    """

    user: str
    reference: str | None = None
    checks: tuple[Check, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    choices: tuple[Choice, ...] = ()
    generate: bool = True
    plain: bool = False
    probe: Probe | None = None

    @property
    def likelihood_record(self) -> dict[str, Any]:
        """What a digest holds of the fields that turns of ordinary conversations leave at their defaults."""
        return {
            **({"choices": [vars(choice) for choice in self.choices]} if self.choices else {}),
            **({} if self.generate else {"generate": False}),
            **({"plain": True} if self.plain else {}),
            **({} if self.probe is None else {"probe": vars(self.probe)}),
        }


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
        turns: at least one; those of the dialogue, then the probes, which are numbered after them so that a probe
            changes the number of no other turn.
        tags: for `--only` and for grouping.
        params: validated settings that replace the run's: fields of `config.Sampling` and `Stopping`, and `seed`.
        source: file and line.
        tools: functions that replies may call, each with `name` and, if given, `description` and `parameters` (a JSON
            Schema); the system message lists them (`tools.with_tools`).
    """

    id: str
    system: str | None
    turns: tuple[Turn, ...]
    tags: tuple[str, ...]
    params: Mapping[str, Any]
    source: SourceLine = field(compare=False)
    tools: tuple[Mapping[str, Any], ...] = ()

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The numbers of `turns` in the order in which they are replayed: each probe right after its turn."""

        def place(number: int) -> tuple[int, int, int]:
            probe = self.turns[number].probe
            return (number, 0, 0) if probe is None else (probe.after, 1, number)

        return tuple(sorted(range(len(self.turns)), key=place))

    @cached_property
    def sha256(self) -> str:
        """Hex digest of everything but `source`: the same for the same conversation in any form or file."""
        record = {
            "id": self.id,
            "system": self.system,
            "turns": [
                {
                    "user": turn.user,
                    "reference": turn.reference,
                    "checks": [check.as_dict() for check in turn.checks],
                    **({"params": _digested(turn.params)} if turn.params else {}),
                    **turn.likelihood_record,
                }
                for turn in self.turns
            ],
            "tags": self.tags,
            "params": _digested(self.params),
            **self._shown_tools,
        }
        text = json.dumps(record, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    @property
    def _shown_tools(self) -> dict[str, Any]:
        """The tools in digests, with the order of their keys, in which the prompt lists them."""
        return {"tools": [json.dumps(tool) for tool in self.tools]} if self.tools else {}

    @cached_property
    def row_contents(self) -> tuple[dict[str, Any], ...]:
        """What the rows of each turn depend on besides the turns before it, as JSON values; params are not among it.

        Neither are checks, which judge replies and do not change them. What a later version adds to a turn stands
        there only where it differs from its default, so that the digests of other rows stay as they were.
        """
        return tuple(
            {"user": turn.user, "reference": turn.reference, **_further(turn, _OF_TURNS), **_choosing(turn)}
            for turn in self.turns
        )

    @cached_property
    def row_context(self) -> dict[str, Any]:
        """What the rows of all turns depend on, as JSON values; params are not among it."""
        return {"id": self.id, "system": self.system, **self._shown_tools, **_further(self, _OF_CONVERSATIONS)}

    def judging(self, turn: int) -> dict[str, Any]:
        """What the verdicts and tags of a turn's row depend on besides the row, as JSON values."""
        return {"checks": [check.as_dict() for check in self.turns[turn].checks], "tags": self.tags}


_OF_TURNS = frozenset({"user", "reference", "checks", "params"})
_OF_CONVERSATIONS = frozenset({"id", "system", "turns", "tags", "params", "source", "tools"})


def _further(record: Turn | Conversation, without: AbstractSet[str]) -> dict[str, Any]:
    """The fields of `record` that are not `without` and differ from their defaults."""
    found: dict[str, Any] = {}
    for item in fields(record):
        value = getattr(record, item.name)
        default = item.default if item.default_factory is MISSING else item.default_factory()
        if item.name not in without and value != default:
            found[item.name] = _plain(value)
    return found


def _choosing(turn: Turn) -> dict[str, Any]:
    """How the first check of choices compares them, where the dialogue goes on with the choice that it finds."""
    if not turn.choices or turn.generate:
        return {}
    found = [str(check.options.get("normalize", "none")) for check in turn.checks if check.kind == "choice"]
    return {"normalize": found[0] if found else "none"}


def _plain(value: Any) -> Any:
    """`value` as JSON values."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("Iterable[Any]", value)]
    return value
