"""The comparison as JUnit XML, for the test pages of CI services.

The elements and attributes are those of the schema of the Jenkins xUnit plugin (`junit-10.xsd`), which Jenkins, GitLab,
Azure Pipelines and the GitHub actions for test reports read. GitLab shows only the text of a failure, and others only
its `message`, so both say what failed.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from rwkvbatch.comparison.analysis import Analysis
from rwkvbatch.comparison.matching import rows_of
from rwkvbatch.comparison.pairing import Variant
from rwkvbatch.comparison.wording import by_heading, summary
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
    """A test case; without `kind` it passed. `text` is the body of the failure, or what a passed case printed."""

    classname: str
    name: str
    kind: Literal["failure", "error", "skipped"] | None = None
    type: str = ""
    message: str = ""
    text: str = ""


def as_junit(analysis: Analysis, *, conversations: bool = False) -> str:
    """`testsuites` with the suite `gates`, and a suite per pair with a case per metric, which always passes.

    Args:
        conversations: add a suite per variant (not for baselines) with a case per conversation, which fails where a
            check failed, is an error where a turn ended in one, and else is skipped where a judge gave no verdict.
    """
    suites = {"gates": [_of_gate(gate.gate.text, gate.label, gate.line, gate.failed) for gate in analysis.gates]}
    for title, lines in by_heading(analysis.comparisons).items():
        suites[title] = [_Case(title, line.metric.name, text=summary(line)) for line in lines]
    if conversations:
        baselines = {pair.baseline for pair in analysis.pairs}
        for variant in analysis.variants:
            if variant not in baselines:
                suites[f"conversations of {variant.label}"] = list(_of_conversations(analysis, variant))
    root = ET.Element("testsuites", name="rwkvbatch compare")
    totals = [_add_suite(root, name, cases) for name, cases in suites.items()]
    for place, name in enumerate(("tests", "failures", "errors")):
        root.set(name, str(sum(counts[place] for counts in totals)))
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _of_gate(text: str, label: str, line: str, failed: bool) -> _Case:
    if not failed:
        return _Case(label, text, text=line)
    return _Case(label, text, "failure", "gate", line, line)


def _of_conversations(analysis: Analysis, variant: Variant) -> Iterable[_Case]:
    rows = rows_of(analysis.table, variant)
    found: dict[str, list[Mapping[str, Any]]] = {}
    for values in zip(*(rows[name] for name in _COLUMNS), strict=True):
        record: dict[str, Any] = dict(zip(_COLUMNS, values, strict=True))
        found.setdefault(record["conversation"], []).append(record)
    for conversation, turns in found.items():
        failed = [(turn, problem) for turn in turns if (problem := _problem(turn))]
        unjudged = [turn for turn in turns if any(check["passed"] is None for check in turn["checks"])]
        if not failed and unjudged:
            message = f"{len(unjudged)} of {len(turns)} turns have no verdict of a judge: {_unjudged(unjudged[0])}"
            yield _Case(variant.label, conversation, "skipped", "judge", message, message)
            continue
        if not failed:
            yield _Case(variant.label, conversation)
            continue
        has_error = any(turn["finish_reason"] == "error" for turn, _ in failed)
        message = f"{len(failed)} of {len(turns)} turns failed: {failed[0][1]}"
        body = [
            f"turn {turn['turn']}, repeat {turn['repeat']}: {problem}\n"
            f"  user: {_short(turn['prompt'])}\n  reply: {_short(turn['reply'])}"
            for turn, problem in failed[:_MAX_TURNS]
        ]
        if len(failed) > _MAX_TURNS:
            body.append(f"... and {len(failed) - _MAX_TURNS} more turns")
        kind = "error" if has_error else "failure"
        yield _Case(variant.label, conversation, kind, "turn" if has_error else "check", message, "\n".join(body))


def _problem(turn: Mapping[str, Any]) -> str:
    """What failed in a turn; empty where nothing did."""
    if turn["finish_reason"] == "error":
        return f"error: {_short(turn['error'] or '')}"
    failed = [check for check in turn["checks"] if check["passed"] is False]
    return "; ".join(
        f"{check['kind']} {_short(repr(check['expected']))} failed"
        + (f" ({_short(check['detail'])})" if check.get("detail") else "")
        for check in failed
    )


def _unjudged(turn: Mapping[str, Any]) -> str:
    """Why a turn's first check without a verdict has none."""
    return next(_short(str(check.get("detail"))) for check in turn["checks"] if check["passed"] is None)


def _short(text: str) -> str:
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}… ({len(text):,} characters)"


def _add_suite(root: ET.Element, name: str, cases: Iterable[_Case]) -> tuple[int, int, int]:
    """Adds a suite; returns its numbers of tests, failures and errors."""
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
    tests = (sum(counts.values()), counts["failure"], counts["error"])
    for attribute, count in zip(("tests", "failures", "errors"), tests, strict=True):
        suite.set(attribute, str(count))
    return tests


def safe(text: str, *, keep_newlines: bool = True) -> str:
    """`text` without characters that a terminal acts upon or that XML 1.0 does not allow."""
    shown = printable(text, keep_newlines=keep_newlines, log=True)
    return shown.replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")


def _on_one_line(text: str) -> str:
    return safe(text, keep_newlines=False)
