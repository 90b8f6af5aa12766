"""Records of a script: conversations, their turns and checks, and the results of checks."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Protocol, cast

from rwkvbatch.errors import RwkvBatchError, UsageError, error_text
from rwkvbatch.hashes import json_sha256
from rwkvbatch.script.choices import Choice, ChoiceScores
from rwkvbatch.script.lines import SourceLine


@dataclass(frozen=True)
class JudgeVerdict:
    """A judge's verdict on a reply by one rubric.

    Attributes:
        passed: None if the judge gave no verdict.
        detail: the votes, or the reason why there is no verdict.
        judge: the judge's name and digest.
    """

    passed: bool | None
    detail: str
    judge: str | None = None


@dataclass(frozen=True)
class ReplyFacts:
    """The facts about a reply that checks use.

    Attributes:
        text: the reply as shown, stripped, with its thinking part.
        finish_reason: why the reply ended (`stop`, `eos`, `length`, `time`); `scored` if no reply was generated.
        num_tokens: number of tokens in the reply.
        reference: the script's reply to the same turn, if it has one.
        choices: the likelihoods of the turn's choices, if it has any.
        judge_verdicts: a judge's verdicts by rubric (`checks.judged.Rubric`), of those about which it was asked.
    """

    text: str
    finish_reason: str
    num_tokens: int
    reference: str | None = None
    choices: ChoiceScores | None = None
    judge_verdicts: Mapping[Any, JudgeVerdict] = field(default_factory=dict[Any, JudgeVerdict], compare=False)


@dataclass(frozen=True)
class Verdict:
    """The result of a check.

    Attributes:
        score: in [0, 1].
        detail: what was found if the check did not pass.
        undecided: the check could not decide, for example within its time limit. It has failed, and `not` does not turn
            that into a pass.
        missing: there is no verdict, because a judge gave none or was not asked yet; `detail` has the reason. The check
            has neither passed nor failed, and `passed` and `score` have no meaning.
    """

    passed: bool
    score: float
    detail: str | None = None
    undecided: bool = False
    missing: bool = False


class Rule(Protocol):
    """Judges replies by one kind of check. It may also have `needs_reference`, `choices` and `rubrics`, see `Check`."""

    def judge(self, facts: ReplyFacts) -> Verdict: ...


@dataclass(frozen=True)
class Check:
    """One expectation about a reply.

    Attributes:
        kind: the check's name in `expect`.
        expected: the check's value in the script.
        rule: judges the reply.
        weight: weight in the row's score.
        options: further keys of the entry, such as `ignore_case`.
    """

    kind: str
    expected: Any
    rule: Rule = field(repr=False, compare=False)
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def needs_reference(self) -> bool:
        """Whether the check compares with the turn's reference reply."""
        return getattr(self.rule, "needs_reference", False)

    @property
    def choices(self) -> tuple[str | int, ...]:
        """Names or indexes of choices that the turn must have."""
        return getattr(self.rule, "choices", ())

    @property
    def rubrics(self) -> tuple[Any, ...]:
        """Rubrics about which a judge is asked (`checks.judged.Rubric`)."""
        return getattr(self.rule, "rubrics", ())

    def judge(self, facts: ReplyFacts) -> Verdict:
        """The verdict on a reply.

        Raises:
            RowError: a plug-in's check raised an exception, or its score is not in [0, 1].
        """
        try:
            return self.rule.judge(facts)
        except RwkvBatchError:
            raise
        except Exception as error:
            detail = f"could not judge: {type(error).__name__}: {error_text(error)}"
            return Verdict(False, 0.0, detail, undecided=True)

    def as_dict(self) -> dict[str, Any]:
        """The complete entry of `expect`."""
        return {self.kind: self.expected, **self.options, "weight": self.weight}


@dataclass(frozen=True)
class Probe:
    """Marks a turn that is asked on a fork of the dialogue. Later turns do not see it.

    Attributes:
        after: index of the turn after which the probe is asked.
        number: number among the probes of that turn, from 0.
        since: index of the turn that states the fact that the probe asks about; -1 for the system message.
    """

    after: int
    number: int
    since: int = 0

    @property
    def distance(self) -> int:
        """Number of turns since the fact was stated: 0 right after the reply to the turn that states it."""
        return self.after - self.since


@dataclass(frozen=True)
class Turn:
    """A user message, its reference reply if the script has one, and the checks of the model's reply.

    Attributes:
        params: settings of this reply, which replace the conversation's.
        choices: texts whose likelihoods as the reply are compared.
        generate: whether the model generates a reply; otherwise only the choices or the text are scored.
        plain: whether `user` and `reference` are a prompt, which may be empty, and its continuation, which is scored;
            both, and the reply if one is generated, are read without a chat template.
        probe: the position of a probe; None for a turn of the dialogue.
        continuation: the text that is scored after the prompt and each choice of a plain turn; None if the
            choices themselves are scored.
        choice_prefix: the text between a plain prompt and each choice, which is scored with the choice and not counted
            in its bytes and characters; None for no text, and one space before a choice that is not counted.
    """

    user: str
    reference: str | None = None
    checks: tuple[Check, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    choices: tuple[Choice, ...] = ()
    generate: bool = True
    plain: bool = False
    probe: Probe | None = None
    continuation: str | None = None
    choice_prefix: str | None = None

    @property
    def shown_prompt(self) -> str:
        """The message or prompt for readers. Before a `continuation`, `_` stands for the choice."""
        return self.user if self.continuation is None else f"{self.user}_{self.continuation}"


@dataclass(frozen=True)
class Conversation:
    """One line of a script.

    Attributes:
        id: unique in a run; 1 to 200 printable characters.
        system: the system message, if any.
        turns: at least one: the turns of the dialogue, then the probes, so that a probe does not change the index of
            another turn.
        tags: for `--only` and for grouping.
        params: validated settings that replace the run's: fields of `config.Sampling` and `Stopping`, and `seed`.
        source: file and line.
        tools: functions that replies may call, each with `name` and, if given, `description` and `parameters` (a JSON
            Schema); the system message lists them (`tools.with_tools`).
        greeting: an assistant message before the first user message, which the model reads as given.
    """

    id: str
    system: str | None
    turns: tuple[Turn, ...]
    tags: tuple[str, ...]
    params: Mapping[str, Any]
    source: SourceLine = field(compare=False)
    tools: tuple[Mapping[str, Any], ...] = ()
    greeting: str | None = None

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The indices of `turns` in the order of the replay: each probe right after its turn."""

        def sort_key(index: int) -> tuple[int, int, int]:
            probe = self.turns[index].probe
            return (index, 0, 0) if probe is None else (probe.after, 1, index)

        return tuple(sorted(range(len(self.turns)), key=sort_key))

    @cached_property
    def sha256(self) -> str:
        """Hex digest of everything except `source`: equal for the same conversation in any form or file."""
        record = {
            **self.row_context,
            "turns": [
                {**contents, "checks": [check.as_dict() for check in turn.checks], "params": dict(turn.params)}
                for turn, contents in zip(self.turns, self.row_contents, strict=True)
            ],
            "tags": self.tags,
            "params": dict(self.params),
        }
        return json_sha256(record)

    @cached_property
    def row_contents(self) -> tuple[dict[str, Any], ...]:
        """`[turns]` the content of each turn on which its row depends, as JSON values; without params and checks.

        Checks do not change replies.
        """
        return tuple({**_content(turn, {"checks", "params"}), **_choice_rule(turn)} for turn in self.turns)

    @cached_property
    def row_context(self) -> dict[str, Any]:
        """The content of the conversation on which all its rows depend, as JSON values; without params."""
        content = _content(self, {"turns", "tags", "params", "source", "tools"})
        # Tools as text, because the prompt lists their keys in this order.
        return {**content, **({"tools": [json.dumps(tool) for tool in self.tools]} if self.tools else {})}

    def judging(self, turn: int) -> dict[str, Any]:
        """The checks of a turn and the conversation's tags, as JSON values."""
        return {"checks": [check.as_dict() for check in self.turns[turn].checks], "tags": self.tags}


def _content(record: Turn | Conversation, without: AbstractSet[str]) -> dict[str, Any]:
    """The fields of `record` that differ from their defaults, so that a field with a default can be added later."""
    content: dict[str, Any] = {}
    for item in fields(record):
        value = getattr(record, item.name)
        default = item.default if item.default_factory is MISSING else item.default_factory()
        if item.name not in without and value != default:
            content[item.name] = _as_json(value)
    return content


def _choice_rule(turn: Turn) -> dict[str, Any]:
    """How choices are compared in a turn after which the dialogue continues with the best one; empty for other turns.

    The first check of choices decides.
    """
    if not turn.choices or turn.generate:
        return {}
    rules = [str(check.options.get("normalize", "none")) for check in turn.checks if check.kind == "choice"]
    return {"normalize": rules[0] if rules else "none"}


def _as_json(value: Any) -> Any:
    """`value` as JSON values."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _as_json(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in cast("Iterable[Any]", value)]
    return value


def selected_ids(patterns: Iterable[str], tags_of: Mapping[str, Iterable[str]]) -> set[str]:
    """The ids of the conversations that `--only` selects: those with an id or tag that a pattern names or matches.

    Args:
        patterns: ids or tags, or patterns with `*` and `?`; one that is an id or a tag is not a pattern.
        tags_of: the tags of each id.

    Raises:
        UsageError: no conversation has an id or tag that a pattern matches.
    """
    names = {name for conversation, tags in tags_of.items() for name in (conversation, *tags)}
    selected: set[str] = set()
    for pattern in patterns:
        matches = {pattern} & names or {name for name in names if fnmatchcase(name, pattern)}
        if not matches:
            close = difflib.get_close_matches(pattern, names, n=3)
            hint = f"close ones: {', '.join(close)}" if close else None
            raise UsageError(f"--only {pattern}: no conversation has this id or tag", hint=hint)
        selected |= matches
    return {conversation for conversation, tags in tags_of.items() if selected & {conversation, *tags}}
