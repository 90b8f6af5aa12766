"""JSON, CSV, Markdown and JUnit: content, agreement with the analysis, hostile text."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from rwkvbatch.comparison import compare
from rwkvbatch.comparison.analysis import COLUMNS, Analysis
from rwkvbatch.comparison.report.formats import as_csv, as_json, as_markdown, escaped, harmless
from rwkvbatch.comparison.report.html import as_html
from rwkvbatch.comparison.report.junit import as_junit
from rwkvbatch.comparison.report.junit import safe as xml_safe
from rwkvbatch.comparison.report.terminal import print_analysis
from rwkvbatch.comparison.wording import ranking_sentence
from rwkvbatch.prompt.escaping import printable
from tests.comparison.hostile import hostile_run
from tests.comparison.make_run import make_run

ANY_TEXT = st.one_of(
    st.text(st.characters(), max_size=80),
    st.text(st.sampled_from("=+-@\t\r\n\x1b\x00\u202e\ufeff\ud800\ufffe|*_`<>[]()!&;#~\\$:/ab1. "), max_size=40),
)


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    path = make_run(tmp_path_factory.mktemp("runs") / "a", cells=("t=1", "t=2"))
    return compare([str(path)], fail_if=["tokens < 9999", "score < 1e-9"])


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    return compare([str(hostile_run(tmp_path_factory.mktemp("hostile") / "a"))], fail_if=["tokens < 9999"])


def test_json_has_the_comparisons_gates_and_changes(analysis: Analysis) -> None:
    content = json.loads(as_json(analysis))
    assert [item["metric"] for item in content["comparisons"]] == [c.metric.name for c in analysis.comparisons]
    assert [gate["failed"] for gate in content["gates"]] == [True, False]
    assert len(content["changes"][0]["conversations"]) == 12


def test_json_and_markdown_have_the_ranking(tmp_path: Path) -> None:
    result = compare([str(make_run(tmp_path / "a", cells=("t=1", "t=2", "t=3")))])
    (ranking,) = result.rankings
    (best,) = json.loads(as_json(result))["best"]
    assert (best["metric"], best["best"], best["num_values"]) == ("score", ranking.best.variant.label, 48)
    assert [(item["variant"], item["beaten_by"], item["could_be_best"]) for item in best["candidates"]] == [
        (item.variant.label, item.beaten_by, item.could_be_best) for item in ranking.candidates
    ]
    assert f"- {escaped(ranking_sentence(ranking))}" in as_markdown(result)


def test_hostile_names_of_ranked_variants_are_escaped(tmp_path: Path) -> None:
    runs = [str(hostile_run(tmp_path / name, seed)) for seed, name in enumerate("ab")]
    result = compare(runs)
    assert len(result.rankings[0].candidates) == 4
    for text in (as_markdown(result), as_json(result)):
        assert printable(text) == text
    assert "<svg onload" not in as_html(result)
    assert re.search(r"(?<!\\)<", as_markdown(result)) is None


def test_json_of_two_variants_has_no_best(analysis: Analysis) -> None:
    assert json.loads(as_json(analysis))["best"] == []


def test_json_has_null_and_no_nan(analysis: Analysis) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    json.loads(as_json(analysis), parse_constant=refuse)


def test_json_of_a_hostile_run_has_no_control_characters(hostile: Analysis) -> None:
    text = as_json(hostile)
    assert printable(text) == text
    assert json.loads(text)["changes"][0]["conversations"][0]["conversation"].startswith("=HYPERLINK(1)</script>")


def test_csv_has_a_line_per_comparison_with_full_precision(analysis: Analysis) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(analysis))))
    assert list(rows[0]) == list(COLUMNS)
    assert [float(row["difference"]) for row in rows] == [c.difference for c in analysis.comparisons]


def test_csv_of_a_single_run_has_the_intervals_of_its_means(tmp_path: Path) -> None:
    single = compare([str(make_run(tmp_path / "a", conversations=12))])
    means = {mean.metric.name: mean for mean in single.means(single.variants[0])}
    assert re.match(r"\*\*score: 0\.\d+ .*; to compare, give a second run", as_markdown(single))
    rows = list(csv.DictReader(io.StringIO(as_csv(single))))
    assert list(rows[0]) == list(COLUMNS)
    assert {row["metric"] for row in rows} == means.keys()
    for row in rows:
        mean = means[row["metric"]]
        expected = [f"{end}" if math.isfinite(end) else "" for end in (mean.low, mean.high)]
        assert [row["low"], row["high"]] == [row["low_alone"], row["high_alone"]] == expected
        assert (row["baseline"], row["p"], row["difference"]) == ("", "", "")
    assert float(next(row for row in rows if row["metric"] == "score")["low"]) > 0


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "\r=1", "＝1"])
def test_text_that_a_spreadsheet_would_evaluate_gets_an_apostrophe(text: str) -> None:
    assert harmless(text) == f"'{printable(text, keep_newlines=False)}"


@given(value=ANY_TEXT)
@example(value="\ufeff=1+1")
@example(value="\u200b\t @x")
@example(value="::")
def test_any_text_in_csv_is_one_line_and_no_formula(value: str) -> None:
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerow([harmless(value), "end"])
    (row,) = csv.reader(io.StringIO(written.getvalue(), newline=""))
    assert row[1:] == ["end"]
    assert row[0].removeprefix("'") == printable(value, keep_newlines=False, log=True).removeprefix("'")
    assert "".join(c for c in row[0] if c.isprintable()).strip()[:1] not in set("=+-@＝＋－＠")
    assert printable(row[0], keep_newlines=False) == row[0]


@given(value=ANY_TEXT)
@example(value="::")
def test_markdown_renders_any_text_as_plain_text(value: str) -> None:
    from markdown_it import MarkdownIt

    shown = escaped(f"a {value} z")
    table = MarkdownIt().enable("table").parse(f"| head | b |\n|---|---|\n| {shown} | c |\n")
    cells = [token for token in table if token.type == "inline"][2:]
    assert len(cells) == 2
    assert {token.type for token in cells[0].children or ()} <= {"text", "text_special"}
    expected = printable(f"a {value} z", keep_newlines=False, log=True)
    assert "".join(token.content for token in cells[0].children or ()) == expected


@given(value=ANY_TEXT)
def test_xml_keeps_any_printable_text(value: str) -> None:
    element = ET.Element("a", b=xml_safe(value))
    element.text = xml_safe(value)
    read = ET.fromstring(ET.tostring(element, encoding="unicode"))
    assert read.get("b") == (read.text or "") == xml_safe(value)


@pytest.mark.parametrize("value", ["temp=0.7", "a", "", None, -1.5, 3])
def test_other_values_are_unchanged(value: object) -> None:
    assert harmless(value) == value


def test_no_csv_cell_of_a_hostile_run_is_a_formula(hostile: Analysis) -> None:
    for row in csv.reader(io.StringIO(as_csv(hostile))):
        for cell in row:
            if not _is_number(cell):
                assert cell[:1] not in ("=", "+", "-", "@"), cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def test_markdown_has_the_numbers_of_turns_and_conversations(analysis: Analysis) -> None:
    first = analysis.comparisons[0]
    assert f"\n\n{first.num_conversations} conversations, 2 repetitions, {first.num_values} pairs" in as_markdown(
        analysis
    )
    assert "One test, level 95 %.\n\n| variant" in as_markdown(analysis)


@pytest.mark.parametrize(
    ("cells", "conversations", "said"),
    [
        (("t=1", "t=2", "t=3"), 12, r"One test, level 95 %\. 1 comparison of equal pairs needs no test\."),
        (("t=1", "t=2", "t=3"), 1, r"Too few conversations for a test\."),
        (("t=1", "t=2", "t=3", "t=4"), 12, r"Family of 2 tests, .*%\. 1 comparison of equal pairs needs no test\."),
    ],
)
def test_comparisons_of_equal_pairs_are_not_counted_as_tests(
    cells: tuple[str, ...], conversations: int, said: str, tmp_path: Path
) -> None:
    def let_all_pass(row: dict[str, Any], _: object) -> None:
        if row["cell"] in ("t=1", "t=2"):
            row["checks"][0] |= {"passed": True, "score": 1.0}
        elif row["turn"] == 0:
            row["checks"][0] |= {"passed": False, "score": 0.0}

    run = make_run(tmp_path / "a", cells=cells, conversations=conversations, change=let_all_pass)
    result = compare([str(run)])
    assert re.search(said, as_markdown(result))
    assert re.search(said, as_html(result))


def test_every_format_names_the_families(tmp_path: Path) -> None:
    result = compare([str(make_run(tmp_path / "a", cells=("t=1", "t=2", "t=3")))], by="turn", metrics=["nll", "score"])
    content = json.loads(as_json(result))
    names = [family["name"] for family in content["families"]]
    assert names == ["score", "score by turn", "nll", "nll by turn"]
    assert [(family["exploratory"], family["size"]) for family in content["families"]] == [
        (False, 2), (True, 4), (True, 2), (True, 4),
    ]  # fmt: skip
    assert content["primary"] == "score"
    assert all(0 < family["level_each"] <= family["level"] == 0.05 for family in content["families"])
    rows = list(csv.DictReader(io.StringIO(as_csv(result))))
    assert list(dict.fromkeys(row["family"] for row in rows)) == names
    assert as_markdown(result).count("Exploratory family of 4 tests") == 2


def test_every_line_of_a_markdown_table_has_the_same_number_of_cells(tmp_path: Path) -> None:
    hostile = compare([str(hostile_run(tmp_path / "a"))], all_metrics=True)
    lines = [line for line in as_markdown(hostile).splitlines() if line.startswith("|")]
    counts = {line.replace("\\|", "").count("|") for line in lines}
    assert len(lines) > 5
    assert len(counts) == 1


def test_markdown_of_hostile_names_has_no_markup_and_no_control_characters(hostile: Analysis) -> None:
    text = as_markdown(hostile)
    assert "<script" not in text.replace("\\<", "")
    assert not set(text) & set("\x1b\x07\x00\u202e\u2028")


def test_junit_of_a_hostile_run_is_valid_xml(hostile: Analysis) -> None:
    assert ET.fromstring(as_junit(hostile).encode()).tag == "testsuites"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    return compare([str(make_run(tmp_path_factory.mktemp("alone") / "a"))])


def test_a_single_run_has_its_means_in_every_plain_format(alone: Analysis) -> None:
    score = alone.table["score"].mean()
    assert f"| score | all | {score:.3f} | \\[0." in as_markdown(alone)
    lines = {line["metric"]: line for line in csv.DictReader(io.StringIO(as_csv(alone)))}
    assert float(lines["score"]["variant_mean"]) == pytest.approx(score)
    assert lines["score"]["baseline"] == lines["score"]["difference"] == ""
    means = {item["metric"]: item for item in json.loads(as_json(alone))["means"]}
    assert means["score"]["mean"] == pytest.approx(score)
    assert means["score"]["low"] < score < means["score"]["high"]


@pytest.mark.parametrize("write", [as_markdown, as_csv, as_json, as_junit, as_html])
def test_every_format_can_write_an_infinite_perplexity(tmp_path: Path, write: Callable[[Analysis], str]) -> None:
    def change(row: dict[str, Any], rng: object) -> None:
        del rng
        row["reference"]["nll"] = 2000.0 + row["repeat"]

    single = compare([str(make_run(tmp_path / "a", cells=("t=1",), change=change))])
    several = compare([str(make_run(tmp_path / "b", cells=("t=1", "t=2", "t=3"), change=change))])
    assert write(single)
    assert write(several)


def test_the_means_of_a_single_run_are_those_of_the_requested_metrics(tmp_path: Path) -> None:
    analysis = compare([str(make_run(tmp_path / "a"))], metrics=["nll"])
    assert [item["metric"] for item in json.loads(as_json(analysis))["means"]] == ["nll"]
    assert "score" not in as_csv(analysis)
    assert "logprob" not in as_markdown(analysis)


def test_groups_of_too_few_conversations_are_not_counted_as_tests(tmp_path: Path) -> None:
    """Tags of 5, 6 and 9 of 20 conversations; no outcome of 5 conversations is significant."""

    def tag(row: dict[str, Any], _: object) -> None:
        number = int(row["conversation"].removeprefix("talk-"))
        row["tags"] = ["five"] if number < 5 else ["six"] if number < 11 else ["nine"]

    path = make_run(tmp_path / "a", cells=("t=1", "t=2"), conversations=20, change=tag)
    analysis = compare([str(path)], by="tag")
    assert [family.size for family in analysis.families] == [1, 2]
    text = as_markdown(analysis)
    assert "Exploratory family of 2 tests" in text
    assert text.count("1 comparison of too few conversations has none.") == 1


def test_means_of_a_single_run_have_the_counts_of_values_and_conversations(tmp_path: Path) -> None:
    """5 conversations of 2 repetitions of 2 turns; one conversation has no reference replies."""

    def change(row: dict[str, Any], _: object) -> None:
        if row["conversation"] == "talk-1":
            row["reference"] = None

    path = str(make_run(tmp_path / "a", conversations=5, change=change))
    analysis, by_turn = compare([path]), compare([path], by="turn")
    assert {
        (mean.metric.name, mean.num_values, mean.num_conversations) for mean in analysis.means(analysis.variants[0])
    } >= {("score", 20, 5), ("nll", 16, 4), ("pass_at_2", 5, 5)}
    nll = next(line for line in as_markdown(analysis).splitlines() if line.startswith("| nll |"))
    assert nll.endswith("| 16 | 4 |")
    turns = [line for line in as_markdown(by_turn).splitlines() if line.startswith("| nll | turn")]
    assert [line.endswith("| 8 | 4 |") for line in turns] == [True, True]
    (record,) = [record for record in csv.DictReader(io.StringIO(as_csv(analysis))) if record["metric"] == "nll"]
    assert (record["num_values"], record["num_conversations"]) == ("16", "4")
    page = as_html(by_turn)
    assert [page.count(f"<td>{group}</td>") > 2 for group in ("all", "turn 0", "turn 1")] == [True] * 3
    assert "<td>all</td>" not in as_html(analysis)


def test_groups_of_too_few_conversations_are_named_in_one_line(tmp_path: Path) -> None:
    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        number = int(row["conversation"].removeprefix("talk-"))
        row["tags"] = ["many", "few" if number < 3 else "rare" if number < 5 else "other"]
        score = float(rng.random() < 0.5)
        row["checks"][0].update(passed=score == 1, score=score)

    paths = [str(make_run(tmp_path / name, seed=seed, change=change)) for seed, name in enumerate("ab")]
    analysis = compare(paths, by="tag")
    sentence = "2 groups of too little data (2 to 3 conversations each): few, rare"
    terminal = io.StringIO()
    print_analysis(analysis, Console(file=terminal, width=100))
    assert sentence in terminal.getvalue().splitlines()
    assert "b, many" in terminal.getvalue()
    assert "b, few" not in terminal.getvalue()
    markdown = as_markdown(analysis).replace("\\", "")
    assert sentence in markdown
    assert "| b, few |" not in markdown
    assert f"<p>{sentence}</p>" in as_html(analysis)
    groups = {record["group"] for record in json.loads(as_json(analysis))["comparisons"]}
    assert groups == {None, "few", "rare", "many", "other"}
    assert ",few," in as_csv(analysis)


def test_one_group_of_too_few_conversations_stays_in_the_table(tmp_path: Path) -> None:
    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        del rng
        row["tags"] = ["few" if int(row["conversation"].removeprefix("talk-")) < 3 else "many"]

    paths = [str(make_run(tmp_path / name, seed=seed, change=change)) for seed, name in enumerate("ab")]
    markdown = as_markdown(compare(paths, by="tag"))
    assert "| b, few |" in markdown
    assert "too little data (" not in markdown


def test_reports_for_readers_begin_with_the_outcome_of_the_gates(analysis: Analysis, tmp_path: Path) -> None:
    markdown, page = as_markdown(analysis), as_html(analysis)
    assert markdown.startswith("**❌ 1 of 2 gates failed**\n\n- ❌ FAILED: fail-if tokens \\< 9999: t=2 has ")
    assert "\n\n**score: " in markdown
    verdict = page.partition('id="verdict">')[2]
    assert verdict.lstrip().startswith('<p class="gates-outcome worse">1 of 2 gates failed</p>')
    passed = compare([str(make_run(tmp_path / "a", cells=("t=1", "t=2")))], fail_if=["score < 1e-9"])
    assert as_markdown(passed).startswith("**✅ the gate passed**\n\n- ✅ passed: fail-if score \\< 1e-9: t=2 has ")
