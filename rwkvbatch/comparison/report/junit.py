"""Output of a comparison as JUnit XML, for the test pages of CI services.

The elements and attributes are those of the schema of the Jenkins xUnit plugin (`junit-10.xsd`), which Jenkins, GitLab,
Azure Pipelines and the GitHub actions for test reports read. GitLab shows only the text of a failure and other services
only its `message`, so both say what failed.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from rwkvbatch.comparison.analysis import Analysis
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


@dataclass(frozen=True)
class _Case:
    """A test case.

    Attributes:
        kind: None if the case passed.
        text: body of the failure, or output of a passed case.
    """

    classname: str
    name: str
    kind: Literal["failure", "error", "skipped"] | None = None
    type: str = ""
    message: str = ""
    text: str = ""


def as_junit(analysis: Analysis, *, conversations: bool = False) -> str:
    """An element `testsuites` with a suite `gates`, and a suite per pair with a case per metric, which always passes.

    The output of such a case has the number of pairs and the rows that are not as planned.

    Args:
        conversations: add a suite per variant that is not a baseline, with a case per conversation. The case is an
            error if a turn ended in an error, a failure if a check failed, and skipped if turns that the baseline has
            are missing or a turn has no verdict.
    """
    suites = {"gates": [_gate_case(gate.condition, gate.label, gate.line, gate.failed) for gate in analysis.gates]}
    for title, lines in by_heading(analysis.comparisons).items():
        suites[title] = [_Case(title, line.metric.name, text=_with_counts(analysis, line)) for line in lines]
    if conversations:
        baselines = {pair.baseline for pair in analysis.pairs}
        for variant in analysis.variants:
            if variant not in baselines:
                suites[f"conversations of {variant.label}"] = _conversation_cases(analysis, variant)
    restriction = "" if analysis.restriction is None else f", {analysis.restriction.sentence}"
    root = ET.Element("testsuites", name=_on_one_line(f"rwkvbatch compare{restriction}"))
    totals = [_add_suite(root, name, cases) for name, cases in suites.items()]
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


def _gate_case(text: str, label: str, line: str, failed: bool) -> _Case:
    if not failed:
        return _Case(label, text, text=line)
    return _Case(label, text, "failure", "gate", line, line)


def _conversation_cases(analysis: Analysis, variant: Variant) -> list[_Case]:
    turns = _turns_by_conversation(analysis, variant)
    expected: dict[str, set[tuple[int, int]]] = {}
    for pair in analysis.pairs:
        if pair.variant == variant:
            for conversation, of_baseline in _turns_by_conversation(analysis, pair.baseline).items():
                expected.setdefault(conversation, set()).update(map(_place, of_baseline))
    cases: list[_Case] = []
    for conversation in {**turns, **expected}:
        own = turns.get(conversation, [])
        missing = expected.get(conversation, set()) - set(map(_place, own))
        cases.append(_conversation_case(variant.label, conversation, own, len(missing)))
    return cases


def _turns_by_conversation(analysis: Analysis, variant: Variant) -> dict[str, list[Mapping[str, Any]]]:
    rows = rows_of(analysis.table, variant)
    turns: dict[str, list[Mapping[str, Any]]] = {}
    for values in zip(*(rows[name] for name in _COLUMNS), strict=True):
        record: dict[str, Any] = dict(zip(_COLUMNS, values, strict=True))
        turns.setdefault(record["conversation"], []).append(record)
    return turns


def _place(turn: Mapping[str, Any]) -> tuple[int, int]:
    return turn["turn"], turn["repeat"]


def _conversation_case(label: str, conversation: str, turns: Sequence[Mapping[str, Any]], missing: int) -> _Case:
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
    message = f"{len(failed)} of {len(turns)} turns failed: {failed[0][1]}"
    lines = [
        f"turn {turn['turn']}, repeat {turn['repeat']}: {problem}\n"
        f"  user: {_short(turn['prompt'])}\n  reply: {_short(turn['reply'])}"
        for turn, problem in failed[:_MAX_TURNS]
    ]
    if len(failed) > _MAX_TURNS:
        lines.append(f"... and {counted(len(failed) - _MAX_TURNS, 'more turn')}")
    if any(turn["finish_reason"] == "error" for turn, _ in failed):
        return _Case(label, conversation, "error", "turn", message, "\n".join(lines))
    return _Case(label, conversation, "failure", "check", message, "\n".join(lines))


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


def _add_suite(root: ET.Element, name: str, cases: Iterable[_Case]) -> tuple[int, int, int]:
    """Add a suite, and return its numbers of tests, failures and errors."""
    suite = ET.SubElement(root, "testsuite", name=_on_one_line(name))
    counts = {None: 0, "failure": 0, "error": 0, "skipped": 0}
    for case in cases:
        counts[case.kind] += 1
        element = ET.SubElement(suite, "testcase", classname=_on_one_line(case.classname), name=_on_one_line(case.name))
        if case.kind is not None:
            problem = ET.SubElement(element, case.kind, type=case.type, message=_on_one_line(case.message))
            problem.text = safe(case.text)
        elif case.text:
            ET.SubElement(element, "system-out").text = safe(case.text)
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
