"""`compare --only`: which conversations are compared, and that every output says so."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from pandas.testing import assert_frame_equal

from rwkvbatch.cli.app import invoke
from rwkvbatch.cli.exits import ExitCode
from rwkvbatch.comparison import compare
from rwkvbatch.comparison.report.formats import as_csv, as_json, as_markdown
from rwkvbatch.comparison.report.html import as_html
from rwkvbatch.comparison.report.junit import as_junit
from rwkvbatch.errors import UsageError
from tests.comparison.make_run import make_run

SENTENCE = "only memory: 10 of 30 conversations"


def by_thirds(row: dict[str, Any], rng: np.random.Generator) -> None:
    number = int(row["conversation"].removeprefix("talk-"))
    row["tags"] = ["memory", "hard"] if number % 3 == 0 else ["sums"]
    score = float(rng.random() < (0.9 if number % 3 == 0 else 0.2))
    row["checks"][0].update(passed=score == 1, score=score)


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    return [
        str(make_run(tmp_path / name, conversations=30, seed=seed, turns=1, change=by_thirds))
        for name, seed in (("a", 1), ("b", 2))
    ]


def without_others(path: str) -> None:
    """Delete the rows of conversations without the tag `memory`."""
    file = Path(path) / "results.jsonl"
    lines = [line for line in file.read_bytes().splitlines(keepends=True) if b'"memory"' in line]
    file.write_bytes(b"".join(lines))


def test_a_restricted_comparison_is_that_of_runs_without_the_other_rows(runs: list[str]) -> None:
    gates = ["score < baseline - 0.02 significantly", "p95(tokens) > 1", "score[hard] < 0.5"]
    restricted = compare(runs, only=["memory"], fail_if=gates, all_metrics=True)
    for path in runs:
        without_others(path)
    expected = compare(runs, fail_if=gates, all_metrics=True)
    # Without the other rows a run is unfinished, and then has no pass@k and the like unless they are named.
    tables = [each.to_pandas() for each in (restricted, expected)]
    left_out = ~tables[0]["metric"].isin(tables[1]["metric"])
    assert all("_at_" in name or name.startswith("all_") for name in tables[0]["metric"][left_out])
    assert_frame_equal(tables[0][~left_out].reset_index(drop=True), tables[1])
    results = [[(gate.left, gate.right, gate.low) for gate in each.gates] for each in (restricted, expected)]
    np.testing.assert_array_equal(results[0], results[1])
    assert restricted.comparisons[0].num_conversations == 10


@pytest.mark.parametrize(
    ("patterns", "num_selected"),
    [(["memory"], 10), (["mem*"], 10), (["talk-1"], 1), (["talk-1*", "hard"], 18), (["sums", "memory"], 30)],
)
def test_conversations_are_selected_by_id_and_tag_and_patterns(
    runs: list[str], patterns: list[str], num_selected: int
) -> None:
    analysis = compare(runs, only=patterns)
    assert analysis.restriction is not None
    assert analysis.restriction.as_dict() == {
        "patterns": patterns,
        "num_selected": num_selected,
        "num_conversations": 30,
    }
    assert len(set(analysis.table["conversation"])) == num_selected


def test_an_unknown_id_or_tag_is_refused_with_similar_ones(runs: list[str]) -> None:
    with pytest.raises(UsageError, match="--only memry: no conversation has this id or tag") as caught:
        compare(runs, only=["memory", "memry"])
    assert caught.value.hint == "close ones: memory"


def test_a_run_without_any_of_the_conversations_is_refused(tmp_path: Path, runs: list[str]) -> None:
    other = str(make_run(tmp_path / "c", change=lambda row, _: row.update(conversation=f"new-{row['conversation']}")))
    with pytest.raises(UsageError, match="has no conversation of --only memory"):
        compare([*runs, other], only=["memory"])


def test_every_format_says_in_its_first_lines_what_is_compared(
    runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["compare", *runs, "--only", "memory", "--fail-if", "tokens < 9999"]) == ExitCode.FAILED
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == SENTENCE
    assert any(line.startswith("FAILED: fail-if tokens < 9999 (only memory): b has ") for line in lines)
    analysis = compare(runs, only=["memory"], fail_if=["tokens < 9999"])
    assert repr(analysis).splitlines()[1].strip() == SENTENCE
    assert as_markdown(analysis).startswith(f"**❌ the gate failed; {SENTENCE}**\n\n- ❌ FAILED: fail-if tokens")
    assert as_markdown(compare(runs, only=["memory"])).startswith(f"**{SENTENCE}**\n\n**score: ")
    assert f"<h1>b against a, {SENTENCE}</h1>" in as_html(analysis)
    suites = ElementTree.fromstring(as_junit(analysis))
    assert suites.get("name") == f"rwkvbatch compare, {SENTENCE}"
    assert suites[0][0].get("name") == "fail-if tokens < 9999 (only memory)"
    records = list(csv.DictReader(io.StringIO(as_csv(analysis))))
    assert {record["only"] for record in records} == {"memory"}
    assert json.loads(as_json(analysis))["only"] == {
        "patterns": ["memory"],
        "num_selected": 10,
        "num_conversations": 30,
    }
    whole = compare(runs)
    assert whole.restriction is None
    assert json.loads(as_json(whole))["only"] is None
    assert "only" not in as_csv(whole).splitlines()[0].split(",")


@pytest.mark.parametrize("name", ["r.md", "r.csv", "r.json", "r.html", "r.xml", "r.txt"])
def test_a_restricted_report_can_be_replaced_as_any_other(runs: list[str], tmp_path: Path, name: str) -> None:
    arguments = ["compare", *runs, "--only", "memory", "--out", str(tmp_path / name)]
    arguments += ["--format", "table"] if name == "r.txt" else []
    assert invoke(arguments) == ExitCode.DONE
    assert invoke([*arguments, "--replace"]) == ExitCode.DONE
