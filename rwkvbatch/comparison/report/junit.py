"""Output of a comparison as JUnit XML, for the test pages of CI services.

The elements and attributes are those of the schema of the Jenkins xUnit plugin (`junit-10.xsd`), which Jenkins, GitLab,
Azure Pipelines and the GitHub actions for test reports read. GitLab shows only the text of a failure and other services
only its `message`, so both say what failed.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from rwkvbatch.comparison.analysis import Analysis
from rwkvbatch.comparison.dialogues.changes import changed_turns
from rwkvbatch.comparison.gates.results import GateResult
from rwkvbatch.comparison.numbers import check_name
from rwkvbatch.comparison.runs.data import Variant
from rwkvbatch.comparison.statistics.differences import Comparison
from rwkvbatch.comparison.values.columns import rows_of
from rwkvbatch.comparison.wording import by_heading, left_out, summary
from rwkvbatch.errors import counted
from rwkvbatch.prompt.escaping import printable

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

_MAX_TURNS: Final = 20
_MAX_CHARACTERS: Final = 500
_COLUMNS: Final[tuple[str, ...]] = (
    "conversation", "turn", "repeat", "prompt", "reply", "error", "finish_reason", "checks",
)  # fmt: skip


_Against = Literal["regression", "fails in baseline", ""]


@dataclass(frozen=True)
class _Case:
    """A test case.

    Attributes:
        kind: None if the case passed.
        text: body of the failure, or output of a passed case.
        against: how a failure stands to the baseline; empty if the case passed or that is unknown.
    """

    classname: str
    name: str
    kind: Literal["failure", "error", "skipped"] | None = None
    type: str = ""
    message: str = ""
    text: str = ""
    against: _Against = ""


def as_junit(analysis: Analysis, *, conversations: bool = False, num_changes: int = 0) -> str:
    """An element `testsuites` with a suite `gates`, and a suite per pair with a case per metric, which always passes.

    The output of such a case has the number of pairs and the rows that are not as planned.

    Args:
        conversations: add a suite per variant that is not a baseline, with a case per conversation. The case is an
            error if a turn ended in an error, a failure if a check failed, and skipped if turns that the baseline has
            are missing or a turn has no verdict. Failures and errors say whether the baseline passes there: regressions
            come first, then what fails in the baseline, too. Properties of the suite count both.
        num_changes: number of the most changed conversations in the output of each pair's suite.
    """
    details = {id(offenders.result): offenders.lines for offenders in analysis.offenders}
    suites = {"gates": [_gate_case(gate, details.get(id(gate), ())) for gate in analysis.gates]}
    for title, lines in by_heading(analysis.comparisons).items():
        suites[title] = [_Case(title, line.metric.name, text=_with_counts(analysis, line)) for line in lines]
    if conversations:
        baselines = {pair.baseline for pair in analysis.pairs}
        for variant in analysis.variants:
            if variant not in baselines:
                suites[f"conversations of {variant.label}"] = _conversation_cases(analysis, variant)
    restriction = "" if analysis.restriction is None else f", {analysis.restriction.sentence}"
    root = ET.Element("testsuites", name=_on_one_line(f"rwkvbatch compare{restriction}"))
    changes = _changes(analysis, num_changes) if num_changes else {}
    totals = [_add_suite(root, name, cases, changes.get(name, "")) for name, cases in suites.items()]
    for index, name in enumerate(("tests", "failures", "errors")):
        root.set(name, str(sum(counts[index] for counts in totals)))
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _with_counts(analysis: Analysis, line: Comparison) -> str:
    """The summary of a line, its numbers of pairs and conversations, and the rows of both sides that are lacking."""
    sides = {line.pair.baseline.label, line.pair.variant.label}
    parts = [summary(line)]
    if line.metric.level != "variant":
        parts[0] += f"; {counted(line.num_values, 'pair')} of {counted(line.num_conversations, 'conversation')}"
    parts.append(left_out([dropped for dropped in analysis.dropped if dropped.label in sides], line.metric))
    return "\n".join(filter(None, parts))


def _gate_case(gate: GateResult, details: Sequence[str]) -> _Case:
    if not gate.failed:
        return _Case(gate.label, gate.condition, text=gate.line)
    return _Case(gate.label, gate.condition, "failure", "gate", gate.line, "\n".join((gate.line, *details)))


def _changes(analysis: Analysis, number: int) -> dict[str, str]:
    """By the title of its suite, the most changed conversations of a pair."""
    texts: dict[str, str] = {}
    for matched in analysis.matched:
        baseline, variant = matched.pair.baseline.label, matched.pair.variant.label
        texts[f"{variant} against {baseline}"] = "\n".join(
            f"{change.conversation}, turn {turn.variant['turn']}, repeat {turn.repeat}: "
            f"{_short(turn.variant['prompt'])}\n"
            f"  {baseline}: {_short(turn.baseline['reply'])}\n  {variant}: {_short(turn.variant['reply'])}"
            for change, turn in changed_turns(matched, number)
        )
    return texts


def _conversation_cases(analysis: Analysis, variant: Variant) -> list[_Case]:
    turns = _turns_by_conversation(analysis, variant)
    baseline = next((pair.baseline for pair in analysis.pairs if pair.variant == variant), None)
    of_baseline = {} if baseline is None else _turns_by_conversation(analysis, baseline)
    cases = [
        _conversation_case(
            variant.label,
            conversation,
            turns.get(conversation, []),
            _Baseline(
                "" if baseline is None else baseline.label,
                {_place(turn): turn for turn in of_baseline.get(conversation, ())},
            ),
        )
        for conversation in {**turns, **of_baseline}
    ]
    return sorted(cases, key=lambda case: ("regression", "fails in baseline", "").index(case.against))


@dataclass(frozen=True)
class _Baseline:
    """The turns of a conversation in the baseline, by turn and repeat; without a baseline there are none."""

    label: str
    turns: Mapping[tuple[int, int], Mapping[str, Any]]

    def outcome(self, turn: Mapping[str, Any]) -> str:
        """How the baseline did in a turn that failed: `passed`, `fails, too`, or empty if that is unknown."""
        there = self.turns.get(_place(turn))
        if there is None or (not _problem(there) and any(check["passed"] is None for check in there["checks"])):
            return ""
        return "fails, too" if _problem(there) else "passed"


def _turns_by_conversation(analysis: Analysis, variant: Variant) -> dict[str, list[Mapping[str, Any]]]:
    rows = rows_of(analysis.table, variant)
    turns: dict[str, list[Mapping[str, Any]]] = {}
    for values in zip(*(rows[name] for name in _COLUMNS), strict=True):
        record: dict[str, Any] = dict(zip(_COLUMNS, values, strict=True))
        turns.setdefault(record["conversation"], []).append(record)
    return turns


def _place(turn: Mapping[str, Any]) -> tuple[int, int]:
    return turn["turn"], turn["repeat"]


def _conversation_case(label: str, conversation: str, turns: Sequence[Mapping[str, Any]], baseline: _Baseline) -> _Case:
    missing = len(baseline.turns.keys() - set(map(_place, turns)))
    failed = [(turn, problem) for turn in turns if (problem := _problem(turn))]
    unjudged = [turn for turn in turns if any(check["passed"] is None for check in turn["checks"])]
    if not failed and missing:
        message = f"{counted(missing, 'turn')} of the baseline {'is' if missing == 1 else 'are'} missing here"
        return _Case(label, conversation, "skipped", "missing", message, message)
    if not failed and unjudged:
        message = f"{len(unjudged)} of {len(turns)} turns have no verdict{_reason_without_verdict(unjudged[0])}"
        return _Case(label, conversation, "skipped", "judge", message, message)
    if not failed:
        return _Case(label, conversation)
    outcomes = [baseline.outcome(turn) for turn, _ in failed]
    # The turns that passed in the baseline first.
    failed = [item for _, item in sorted(zip(outcomes, failed, strict=True), key=lambda pair: pair[0] != "passed")]
    message = f"{len(failed)} of {len(turns)} turns failed: {failed[0][1]}"
    against: _Against = ""
    if regressed := outcomes.count("passed"):
        some = "" if regressed == len(failed) else f"{regressed} of {len(failed)} failed turns "
        against, message = "regression", f"regression: {some}passed in {baseline.label}; {message}"
    elif outcomes.count("fails, too") == len(failed):
        against, message = "fails in baseline", f"also fails in {baseline.label}; {message}"
    lines = [
        f"turn {turn['turn']}, repeat {turn['repeat']}: {problem}"
        + (f" ({baseline.label} {outcome})" if (outcome := baseline.outcome(turn)) else "")
        + f"\n  user: {_short(turn['prompt'])}\n  reply: {_short(turn['reply'])}"
        for turn, problem in failed[:_MAX_TURNS]
    ]
    if len(failed) > _MAX_TURNS:
        lines.append(f"... and {counted(len(failed) - _MAX_TURNS, 'more turn')}")
    if any(turn["finish_reason"] == "error" for turn, _ in failed):
        return _Case(label, conversation, "error", "turn", message, "\n".join((message, *lines)), against)
    return _Case(label, conversation, "failure", "check", message, "\n".join((message, *lines)), against)


def _problem(turn: Mapping[str, Any]) -> str:
    """What failed in a turn; empty if nothing did."""
    if turn["finish_reason"] == "error":
        return f"error: {_short(turn['error'] or '')}"
    failed = [check for check in turn["checks"] if check["passed"] is False]
    return "; ".join(
        f"{_short(check_name(check))} failed" + (f" ({_short(check['detail'])})" if check.get("detail") else "")
        for check in failed
    )


def _reason_without_verdict(turn: Mapping[str, Any]) -> str:
    """The reason for the turn's first missing verdict, as the end of a sentence; other programs' results have none."""
    detail = next(check.get("detail") for check in turn["checks"] if check["passed"] is None)
    return f": {_short(str(detail))}" if detail else ""


def _short(text: str) -> str:
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}… ({len(text):,} characters)"


def _add_suite(root: ET.Element, name: str, cases: Sequence[_Case], output: str) -> tuple[int, int, int]:
    """Add a suite, and return its numbers of tests, failures and errors."""
    suite = ET.SubElement(root, "testsuite", name=_on_one_line(name))
    if any(case.against for case in cases):
        properties = ET.SubElement(suite, "properties")
        for key, against in (("regressions", "regression"), ("failing_in_baseline_too", "fails in baseline")):
            number = sum(case.against == against for case in cases)
            ET.SubElement(properties, "property", name=key, value=str(number))
    counts = {None: 0, "failure": 0, "error": 0, "skipped": 0}
    for case in cases:
        counts[case.kind] += 1
        element = ET.SubElement(suite, "testcase", classname=_on_one_line(case.classname), name=_on_one_line(case.name))
        if case.kind is not None:
            problem = ET.SubElement(element, case.kind, type=case.type, message=_on_one_line(case.message))
            problem.text = safe(case.text)
        elif case.text:
            ET.SubElement(element, "system-out").text = safe(case.text)
    if output:
        ET.SubElement(suite, "system-out").text = safe(output)
    totals = (sum(counts.values()), counts["failure"], counts["error"])
    for attribute, count in zip(("tests", "failures", "errors"), totals, strict=True):
        suite.set(attribute, str(count))
    return totals


def safe(text: str, *, keep_newlines: bool = True) -> str:
    """`text` without characters that control a terminal or that XML 1.0 does not allow."""
    text = printable(text, keep_newlines=keep_newlines, log=True)
    return text.replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")


def _on_one_line(text: str) -> str:
    return safe(text, keep_newlines=False)
