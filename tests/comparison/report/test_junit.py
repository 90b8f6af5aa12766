"""JUnit XML: validity by its schema, texts of failures, a test case per conversation."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkvbatch.cli.app import invoke
from rwkvbatch.cli.exits import ExitCode
from rwkvbatch.comparison import compare
from rwkvbatch.comparison.analysis import Analysis
from rwkvbatch.comparison.report.junit import as_junit
from tests.comparison.hostile import hostile_run
from tests.comparison.make_run import make_run


@dataclass(frozen=True)
class Rule:
    """What the schema allows in an element."""

    required: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    children: frozenset[str] = frozenset()
    text: bool = False


def names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# From `junit-10.xsd` of the Jenkins xUnit plugin (jenkinsci/xunit-plugin, types/model/xsd).
SCHEMA = {
    "testsuites": Rule(optional=names("name time tests failures errors"), children=names("testsuite")),
    "testsuite": Rule(
        names("name tests failures errors"),
        names("group time skipped timestamp hostname id package file log url"),
        names("testsuite properties testcase system-out system-err"),
    ),
    "testcase": Rule(
        names("name"), names("time classname group"), names("skipped error failure system-out system-err")
    ),
    "failure": Rule(optional=names("type message"), text=True),
    "error": Rule(optional=names("type message"), text=True),
    "skipped": Rule(optional=names("type message"), text=True),
    "system-out": Rule(text=True),
    "properties": Rule(children=names("property")),
    "property": Rule(names("name value")),
}


def parse_valid(text: str) -> ET.Element:
    """The root element, after checking the document against the schema and its counts."""
    root = ET.fromstring(text.encode())
    assert root.tag == "testsuites"
    for element in root.iter():
        rule = SCHEMA[element.tag]
        assert rule.required <= set(element.keys()) <= rule.required | rule.optional, element.tag
        assert {child.tag for child in element} <= rule.children
        assert rule.text or not (element.text or "").strip()
    totals = [0, 0, 0]
    for suite in root:
        cases = suite.findall("testcase")
        counts = [len(cases), *(len(suite.findall(f"testcase/{kind}")) for kind in ("failure", "error"))]
        assert [suite.get(name) for name in ("tests", "failures", "errors")] == [str(count) for count in counts]
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
    assert [root.get(name) for name in ("tests", "failures", "errors")] == [str(total) for total in totals]
    return root


def change(row: dict[str, Any], _: np.random.Generator) -> None:
    failed = row["conversation"] == "talk-1" and row["turn"] == 1
    row["checks"][0] |= {
        "passed": not failed,
        "score": float(not failed),
        "detail": "found no boat" if failed else None,
    }
    row["reply"] = "line one\nline two " + "x" * 2000
    if row["conversation"] == "talk-2":
        row |= {"finish_reason": "error", "error": "out of memory", "checks": [], "reference": None}


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    path = make_run(tmp_path_factory.mktemp("runs") / "a", cells=("t=1", "t=2"), change=change, conversations=4)
    return compare([str(path)], fail_if=["tokens < 9999", "score < 1e-9"], allow_missing=True)


def test_without_cases_of_conversations_only_gates_fail(analysis: Analysis) -> None:
    root = parse_valid(as_junit(analysis))
    gates, *pairs = root.findall("testsuite")
    assert (gates.get("tests"), gates.get("failures")) == ("2", "1")
    assert root.get("failures") == "1"
    assert [case.get("name") for case in gates] == ["fail-if tokens < 9999", "fail-if score < 1e-9"]
    assert sum(len(pair) for pair in pairs) == len(analysis.comparisons)


def test_a_case_of_a_metric_counts_pairs_and_rows_that_are_not_as_planned(tmp_path: Path) -> None:
    """talk-2 ended in errors in one cell: 2 repetitions of 2 turns, whose checks count as failed."""

    def fail(row: dict[str, Any], _: np.random.Generator) -> None:
        if row["conversation"] == "talk-2" and row["cell"] == "t=2":
            row["checks"][0] |= {"passed": False, "score": 0.0}
            row |= {"finish_reason": "error", "error": "out of memory", "reference": None}

    path = make_run(tmp_path / "a", cells=("t=1", "t=2", "t=3"), change=fail, conversations=4)
    analysis = compare([str(path)], metrics=["score", "nll"])
    root = parse_valid(as_junit(analysis))
    texts = {
        (case.get("classname"), case.get("name")): (case.findtext("system-out") or "").split("\n")
        for case in root.findall("testsuite/testcase")
    }
    for metric, pairs, outcome in (
        ("score", "16 pairs of 4 conversations", "failed"),
        ("nll", "12 pairs of 3 conversations", "left out"),
    ):
        summary, dropped = texts["t=2 against t=1", metric]
        assert summary.endswith(f"; {pairs}")
        assert dropped == f"Not as planned: 4 turns with an error in t=2 ({outcome})."
        assert len(texts["t=3 against t=1", metric]) == 1


def test_the_message_of_a_failed_gate_is_in_its_text(analysis: Analysis) -> None:
    (failure,) = parse_valid(as_junit(analysis)).findall(".//failure")
    assert failure.get("message") == (failure.text or "").partition("\n")[0]
    assert (failure.text or "").startswith("FAILED: fail-if tokens < 9999: t=2 has ")


def test_with_junit_cases_each_conversation_of_a_variant_is_a_case(analysis: Analysis) -> None:
    root = parse_valid(as_junit(analysis, conversations=True))
    (suite,) = [suite for suite in root if suite.get("name") == "conversations of t=2"]
    cases = {str(case.get("name")): [child.tag for child in case] for case in suite.findall("testcase")}
    assert list(cases.items()) == [("talk-1", ["failure"]), ("talk-2", ["error"]), ("talk-0", []), ("talk-3", [])]
    failure = suite.findall(".//failure")[0]
    assert failure.get("message") == "also fails in t=1; 2 of 4 turns failed: contains 'boat' failed (found no boat)"
    text = failure.text or ""
    assert (
        "turn 1, repeat 0: contains 'boat' failed (found no boat) (t=1 fails, too)\n  user: Question 1 of talk-1?\n"
        in text
    )
    assert "  reply: line one\nline two xxx" in text
    assert "(2,018 characters)" in text
    assert len(text) < 2000
    assert "error: out of memory" in (suite.findall(".//error")[0].text or "")


def test_conversations_that_a_variant_lacks_or_that_have_no_verdict_are_skipped_and_do_not_pass(tmp_path: Path) -> None:
    tables = {"a": "c0,1\nc1,1\nc2,1\nc3,0\n", "b": "c0,1\nc2,\nc3,0\nc4,1\n"}
    for name, rows in tables.items():
        (tmp_path / f"{name}.csv").write_text("id,score\n" + rows)
    analysis = compare([str(tmp_path / f"{name}.csv") for name in tables])
    suite = parse_valid(as_junit(analysis, conversations=True))[-1]
    cases = {str(case.get("name")): [(child.tag, child.text) for child in case] for case in suite.findall("testcase")}
    assert cases["c0"] == cases["c4"] == []
    assert cases["c1"] == [("skipped", "1 turn of the baseline is missing here")]
    assert cases["c2"] == [("skipped", "1 of 1 turns have no verdict")]
    assert [tag for tag, _ in cases["c3"]] == ["failure"]


def test_a_conversation_of_which_a_repetition_is_missing_is_skipped(tmp_path: Path) -> None:
    def drop(row: dict[str, Any], _: np.random.Generator) -> None:
        row["checks"] = []

    runs = [
        str(make_run(tmp_path / f"r{repeats}", conversations=2, repeats=repeats, change=drop)) for repeats in (3, 1)
    ]
    suite = parse_valid(as_junit(compare(runs), conversations=True))[-1]
    assert [case[0].text for case in suite] == ["4 turns of the baseline are missing here"] * 2


def test_the_text_of_many_failures_is_shortened(tmp_path: Path) -> None:
    def fail(row: dict[str, Any], _: np.random.Generator) -> None:
        row["checks"][0] |= {"passed": False, "score": 0.0}

    analysis = compare([str(make_run(tmp_path / "a", conversations=1, repeats=30, change=fail))])
    (failure,) = parse_valid(as_junit(analysis, conversations=True)).findall(".//failure")
    assert (failure.text or "").endswith("... and 40 more turns")


def test_hostile_text_is_valid_by_the_schema(tmp_path: Path) -> None:
    text = as_junit(compare([str(hostile_run(tmp_path / "a"))], fail_if=["tokens < 9999"]), conversations=True)
    parse_valid(text)
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", text)


def test_cases_of_conversations_do_not_change_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(make_run(tmp_path / "a"))
    out = str(tmp_path / "gates.xml")
    assert invoke(["compare", path, "--out", out, "--junit-cases"]) == ExitCode.DONE
    assert "conversations of" in Path(out).read_text(encoding="utf-8")
    assert invoke(["compare", path, "--junit-cases"]) == ExitCode.USAGE
    assert "--junit-cases needs the format junit" in capsys.readouterr().err


def test_a_failed_check_of_another_program_has_no_expectation(tmp_path: Path) -> None:
    for name, score in (("a", 1), ("b", 0.25)):
        (tmp_path / f"{name}.csv").write_text(f"id,score\nx,{score}\n")
    text = as_junit(compare([tmp_path / "a.csv", tmp_path / "b.csv"]), conversations=True)
    assert "score 0.25 failed" in text
    assert "None" not in text


def test_cases_say_which_failures_are_regressions_and_have_them_first(tmp_path: Path) -> None:
    def failing(*places: tuple[int, int]) -> Any:
        def change(row: dict[str, Any], _: np.random.Generator) -> None:
            failed = (int(row["conversation"].removeprefix("talk-")), row["turn"]) in places
            row["checks"][0] |= {"passed": not failed, "score": float(not failed)}

        return change

    shape: dict[str, Any] = {"conversations": 4, "repeats": 1, "turns": 2}
    runs = [
        make_run(tmp_path / "main", change=failing((0, 0), (3, 0)), **shape),
        make_run(tmp_path / "branch", change=failing((0, 0), (1, 1), (3, 0), (3, 1)), **shape),
    ]
    suite = parse_valid(as_junit(compare(runs), conversations=True))[-1]
    messages = {str(case.get("name")): [child.get("message") for child in case] for case in suite.findall("testcase")}
    assert list(messages) == ["talk-1", "talk-3", "talk-0", "talk-2"]
    assert messages["talk-1"] == ["regression: passed in main; 1 of 2 turns failed: contains 'boat' failed"]
    assert messages["talk-3"] == [
        "regression: 1 of 2 failed turns passed in main; 2 of 2 turns failed: contains 'boat' failed"
    ]
    assert messages["talk-0"] == ["also fails in main; 1 of 2 turns failed: contains 'boat' failed"]
    assert messages["talk-2"] == []
    counts = {item.get("name"): item.get("value") for item in suite.findall("properties/property")}
    assert counts == {"regressions": "2", "failing_in_baseline_too": "1"}
    text = suite.findall("testcase")[1][0].text or ""
    assert text.index("turn 1, repeat 0: contains 'boat' failed (main passed)") < text.index("(main fails, too)")
    alone = parse_valid(as_junit(compare(runs[1:]), conversations=True))[-1]
    assert "baseline" not in ET.tostring(alone, encoding="unicode")


def test_changes_are_in_the_output_of_the_suite_of_each_pair(analysis: Analysis) -> None:
    assert parse_valid(as_junit(analysis)).findall("testsuite/system-out") == []
    path_of = {suite.get("name"): suite for suite in parse_valid(as_junit(analysis, num_changes=2))}
    (output,) = path_of["t=2 against t=1"].findall("system-out") or [None]
    assert output is None, "all replies of this run are equal"
