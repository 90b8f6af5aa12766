"""Checks of replies (`expect` in scripts): the table of kinds, parsing, combinations and plug-ins.

An entry is an object with one or more kinds and their options: `{"contains": "Ada", "ignore_case": true}`. All entries
are parsed before anything is generated. Checks judge the stripped reply without its thinking part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

from rwkvbatch import signals
from rwkvbatch.deadline import deadline
from rwkvbatch.errors import MissingExtraError, RowError, RwkvBatchError, UsageError, in_words
from rwkvbatch.hashes import json_sha256
from rwkvbatch.script.checks import (
    answers,
    functions,
    instructions,
    json_schema,
    judged,
    letters,
    numbers,
    text,
    tool_calls,
)
from rwkvbatch.script.lines import (
    SourceLine,
    is_array,
    is_number,
    is_object,
    refuse,
    refuse_unknown_keys,
    shown,
    type_name,
)
from rwkvbatch.script.records import Check, ReplyFacts, Rule, Verdict
from rwkvbatch.signals import ENDS_PROCESS, forbid_process_exit

__all__ = ["ENTRY_POINTS", "Check", "ReplyFacts", "Rule", "Verdict", "check_kinds", "judge_all", "parse_checks"]

ENTRY_POINTS = "rwkvbatch.checks"
"""The entry point group of plug-ins. The name of an entry point is the kind, its object a `RuleKind`."""

PLUGIN_DEADLINE_S = 60.0
"""Time limit of a plug-in's check for one reply; a plug-in's `RuleKind` may set another one as `deadline_s`."""

MAX_NESTING = 8
MAX_WEIGHT = 1e6
_BUILT_IN: Mapping[str, text.RuleKind] = {
    "equals": text.Equals,
    "contains": text.Contains,
    "not_contains": text.NotContains,
    "regex": text.Matches,
    "starts_with": text.StartsWith,
    "one_of": text.OneOf,
    "number": numbers.Number,
    "json": json_schema.JsonRule,
    "max_tokens": text.MaxTokens,
    "min_tokens": text.MinTokens,
    "finish": text.Finished,
    "finish_reason": text.Finished,
    "similarity": text.Similarity,
    "choice": answers.Chosen,
    "letter": letters.Letter,
    "boxed": answers.Boxed,
    "math": answers.Mathematics,
    "ifeval": instructions.Instructions,
    "tool_call": tool_calls.ToolCall,
    "judge": judged.Rubric,
}


def check_kinds() -> tuple[str, ...]:
    """The names of all kinds of checks: built-in ones, combinations, those of plug-ins, and given functions."""
    return (*_BUILT_IN, *_COMBINERS, *sorted(_plugins()), *sorted(functions.given_kinds()))


def kinds_of_functions(given: functions.Functions | None) -> Mapping[str, functions.FunctionKind]:
    """The kinds that functions, or a file of functions, make for `using_functions`; raises as `read_functions`."""
    options = frozenset[str]().union(*(kind.options for kind in _BUILT_IN.values()))
    return functions.read_functions(given, {*_BUILT_IN, *_COMBINERS, *_plugins(), *options, "weight"})


def parse_checks(raw: Any, source: SourceLine, where: str = "expect") -> tuple[Check, ...]:
    """The checks of an `expect`: one entry, or an array of entries.

    Args:
        where: the key in the line for errors, such as `messages[1].expect`.

    Raises:
        ScriptError: a kind or option is unknown, or a value is wrong.
        MissingExtraError: a kind needs an optional dependency that is not installed.
    """
    return _parse(raw, source, where, 0, may_lack=False)


def judge_all(checks: Sequence[Check], facts: ReplyFacts) -> Verdict:
    """The verdict of all checks together: it passes if all pass; the score is the weighted mean, 1 without checks.

    It is missing if the verdict of a judge is missing.
    """
    verdicts = [check.judge(facts) for check in checks]
    if missing := _missing(checks, verdicts):
        return missing
    total = sum(check.weight for check in checks)
    weighted = sum(check.weight * verdict.score for check, verdict in zip(checks, verdicts, strict=True))
    failed = _failures(checks, verdicts)
    undecided = any(verdict.undecided for verdict in verdicts)
    return Verdict(failed is None, min(1.0, weighted / total) if total else 1.0, failed, undecided)


def _judge_any(checks: Sequence[Check], facts: ReplyFacts) -> Verdict:
    verdicts = [check.judge(facts) for check in checks]
    known = [verdict for verdict in verdicts if not verdict.missing]
    passed = any(verdict.passed for verdict in known)
    score = max((verdict.score for verdict in known), default=0.0)
    # A missing verdict cannot change a pass with the highest score.
    if not (passed and score == 1) and (missing := _missing(checks, verdicts)):
        return missing
    undecided = not passed and any(verdict.undecided for verdict in verdicts)
    return Verdict(passed, score, None if passed else _failures(checks, verdicts), undecided)


def _judge_not(checks: Sequence[Check], facts: ReplyFacts) -> Verdict:
    inner = judge_all(checks, facts)
    if inner.missing:
        return inner
    if inner.undecided:
        return Verdict(False, 0.0, inner.detail, undecided=True)
    return Verdict(not inner.passed, 1.0 - inner.score, "passed, and should not have" if inner.passed else None)


def _missing(checks: Sequence[Check], verdicts: Sequence[Verdict]) -> Verdict | None:
    """The missing verdict of a combination, with all reasons; None if no verdict of its checks is missing."""
    pairs = zip(checks, verdicts, strict=True)
    reasons = [f"{check.kind}: {verdict.detail}" for check, verdict in pairs if verdict.missing]
    return Verdict(False, 0.0, "; ".join(dict.fromkeys(reasons)), missing=True) if reasons else None


def _failures(checks: Sequence[Check], verdicts: Sequence[Verdict]) -> str | None:
    """The details of the checks that did not pass; None if all passed."""
    pairs = zip(checks, verdicts, strict=True)
    return "; ".join(f"{check.kind}: {v.detail or 'failed'}" for check, v in pairs if not v.passed) or None


_COMBINERS = {"all": judge_all, "any": _judge_any, "not": _judge_not}


@dataclass(frozen=True)
class Combination:
    """The rule of a check that combines other checks."""

    kind: str
    checks: tuple[Check, ...]

    @property
    def needs_reference(self) -> bool:
        return any(check.needs_reference for check in self.checks)

    @property
    def choices(self) -> tuple[str | int, ...]:
        return tuple(choice for check in self.checks for choice in check.choices)

    @property
    def rubrics(self) -> tuple[Any, ...]:
        return tuple(rubric for check in self.checks for rubric in check.rubrics)

    def judge(self, facts: ReplyFacts) -> Verdict:
        return _COMBINERS[self.kind](self.checks, facts)


@dataclass(frozen=True)
class _Guarded:
    """A rule of foreign code with a time limit, after which the check has failed. Its exceptions become `RowError`."""

    kind: str
    rule: Rule
    needs_reference: bool = False
    deadline_s: float = PLUGIN_DEADLINE_S
    hint: str = "the check is a plug-in: report this to its author"

    def judge(self, facts: ReplyFacts) -> Verdict:
        try:
            with forbid_process_exit(), deadline(self.deadline_s):
                verdict = self.rule.judge(facts)
                passed, score, detail = bool(verdict.passed), float(verdict.score), verdict.detail
                detail = None if detail is None else str(detail)
        except (RwkvBatchError, *ENDS_PROCESS):
            raise
        except TimeoutError as error:
            return Verdict(False, 0.0, f"gave up: {error}", undecided=True)
        except BaseException as error:  # also `SystemExit`: a plug-in must not end the run
            raise RowError(f"the check {self.kind!r} failed with {in_words(error)}", hint=self.hint) from error
        if not 0 <= score <= 1:
            raise RowError(f"the check {self.kind!r} gave a score outside [0, 1]: {score}")
        undecided = bool(getattr(verdict, "undecided", False))
        return Verdict(passed and not undecided, score, detail, undecided)


def _parse(raw: Any, source: SourceLine, where: str, depth: int, *, may_lack: bool) -> tuple[Check, ...]:
    """The checks of an `expect`.

    Args:
        may_lack: whether its entries may be functions that are not given.
    """
    if depth > MAX_NESTING:
        refuse(source, f"{where}: checks are nested deeper than {MAX_NESTING} levels")
    if is_array(raw):
        entries = [
            _parse_entry(entry, source, f"{where}[{index}]", depth, may_lack=may_lack)
            for index, entry in enumerate(raw)
        ]
        return tuple(chain.from_iterable(entries))
    return tuple(_parse_entry(raw, source, where, depth, may_lack=may_lack))


def _parse_entry(raw: Any, source: SourceLine, where: str, depth: int, *, may_lack: bool) -> list[Check]:
    if not is_object(raw):
        hint = 'write an object such as {"contains": "Ada"}'
        refuse(source, f"{where}: a check must be an object, got {type_name(raw)}", hint)
    weight = raw.get("weight", 1.0)
    if not is_number(weight) or not 0 < weight <= MAX_WEIGHT:
        refuse(source, f"{where}.weight: must be a number above 0 and at most {MAX_WEIGHT:g}, got {shown(weight)}")
    may_lack |= functions.CODE in raw and functions.reads_copy()
    code = {key: raw[key] for key in raw if key == functions.CODE}
    parsed: list[Check] = []
    for kind, rule_kind in _kinds_of(raw, source, where, may_lack=may_lack).items():
        if rule_kind is not None:
            rule, options = _rule(kind, rule_kind, raw, source, where)
        elif kind in _COMBINERS:
            checks = _parse(raw[kind], source, f"{where}.{kind}", depth + 1, may_lack=may_lack)
            if not checks:
                refuse(source, f"{where}.{kind}: must contain at least one check")
            codes = [check.options[functions.CODE] for check in checks if functions.CODE in check.options]
            own_code = {functions.CODE: json_sha256(codes)} if codes else {}
            rule, options = Combination(kind, checks), code if may_lack else own_code
        else:
            rule, options = functions.AbsentRule(kind), code
        parsed.append(Check(kind, raw[kind], rule, float(weight), options))
    return parsed


def _kinds_of(
    raw: Mapping[str, Any], source: SourceLine, where: str, *, may_lack: bool
) -> dict[str, text.RuleKind | None]:
    """The kinds of an entry by name; None for combinations, and for functions that are not given.

    Refuses unknown keys, and an entry without a kind.
    """
    given = functions.given_kinds()
    kinds = [key for key in raw if key in _BUILT_IN or key in _COMBINERS or key in _plugins() or key in given]
    other_keys = [key for key in raw if key not in ("weight", functions.CODE)]
    if functions.CODE in raw and not may_lack and other_keys and not (kinds and given):
        problem = f"{where}: the check {shown(other_keys[0])} is or has a function, which is not given"
        refuse(source, problem, functions.HOW_TO_GIVE)
    rule_kinds = {
        kind: _BUILT_IN.get(kind) or given.get(kind) or _load_plugin(kind) for kind in kinds if kind not in _COMBINERS
    }
    option_names = frozenset[str]().union(*(rule_kind.options for rule_kind in rule_kinds.values()))
    known = option_names | set(kinds) | {"weight"} | ({functions.CODE} if given or may_lack else set[str]())
    if may_lack:
        kinds = [key for key in other_keys if key in kinds or key not in known]  # others are functions
        known |= set(kinds)
    refuse_unknown_keys(raw, known if kinds else {*check_kinds(), "weight"}, source, where)
    if not kinds:
        refuse(source, f"{where}: names no kind of check", f"allowed: {', '.join(check_kinds())}")
    return {kind: rule_kinds.get(kind) for kind in kinds}


def _rule(
    kind: str, rule_kind: text.RuleKind, raw: Mapping[str, Any], source: SourceLine, where: str
) -> tuple[Rule, dict[str, Any]]:
    """The rule of an entry and the options that it has; raises as `_parse_rule`."""
    options = {key: raw[key] for key in raw if key in rule_kind.options}
    rule = _parse_rule(kind, rule_kind, raw[kind], options, source, where)
    if kind in _BUILT_IN:
        return rule, options
    needs_reference = bool(getattr(rule, "needs_reference", False))
    if isinstance(rule_kind, functions.FunctionKind):
        hint = "fix the function that is given as this check"
        return _Guarded(kind, rule, needs_reference, hint=hint), {functions.CODE: rule_kind.code}
    deadline_s = float(getattr(rule_kind, "deadline_s", PLUGIN_DEADLINE_S))
    return _Guarded(kind, rule, needs_reference, deadline_s), options


def _parse_rule(
    kind: str, rule_kind: text.RuleKind, expected: Any, options: Mapping[str, Any], source: SourceLine, where: str
) -> Rule:
    """The rule of an entry; errors of its parser become `ScriptError` or `MissingExtraError`."""
    try:
        with forbid_process_exit():
            return rule_kind.parse(expected, options)
    except text.WrongValueError as error:
        refuse(source, f"{where}.{error.key or kind}: {error.message}, got {shown(error.got)}", error.hint)
    except MissingExtraError as error:
        raise MissingExtraError(f"{source}: {where}.{kind}: {error.message}", hint=error.hint) from None
    except RwkvBatchError:
        raise
    except ENDS_PROCESS:
        raise
    except BaseException as error:
        refuse(source, f"{where}.{kind}: the plug-in cannot read this: {in_words(error)}")


@lru_cache(maxsize=1)
def _plugins() -> Mapping[str, Any]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


@lru_cache(maxsize=64)
def _load_plugin(kind: str) -> text.RuleKind:
    point = _plugins()[kind]
    if signals.before_foreign_code is not None:
        signals.before_foreign_code()
    try:
        with forbid_process_exit():
            rule_kind: Any = point.load()
        if not callable(rule_kind.parse) or not all(isinstance(option, str) for option in rule_kind.options):
            raise TypeError("`parse` must be callable and `options` a set of names")
    except ENDS_PROCESS:
        raise
    except BaseException as error:
        raise UsageError(
            f"the check {kind!r} is a plug-in that cannot be loaded ({point.value}): {in_words(error)}",
            hint="reinstall or remove the package that contains it",
        ) from error
    return rule_kind
