"""The HTML report as text: structure, policy, figures, data, hostile text."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rwkvbatch.comparison import compare
from rwkvbatch.comparison.dialogues.failures import failures_by_check, failures_by_tag
from rwkvbatch.comparison.dialogues.selection import turn_record
from rwkvbatch.comparison.numbers import interval
from rwkvbatch.comparison.report.charts import sweep_figures, turn_figures
from rwkvbatch.comparison.report.html import as_html
from rwkvbatch.comparison.report.page_data import PageData, page_data
from rwkvbatch.comparison.wording import conclusion, left_out
from rwkvbatch.results.folder import Folder
from rwkvbatch.results.script_copy import script_sha256, write_script
from rwkvbatch.script.reader import read_scripts
from tests.comparison.hostile import hostile_run
from tests.comparison.make_run import make_run


class Elements(HTMLParser):
    """Tags with their attributes, and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is not None:
            self.raw.append((self.cdata_elem, data))


@pytest.fixture(scope="module")
def grid_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    cells = [f"temp={t},frequency={f}" for t in (0.3, 1.0) for f in (0.0, 0.5)]
    settings = {c: {"temperature": t, "frequency_penalty": f} for c, (t, f) in zip(cells, _pairs(), strict=True)}
    path = make_run(tmp_path_factory.mktemp("runs") / "grid", cells=cells, settings=settings)
    return as_html(compare([str(path)], fail_if=["tokens < 9999"]))


def test_the_same_runs_make_the_same_bytes(tmp_path: Path) -> None:
    paths = [str(make_run(tmp_path / name, seed=seed)) for seed, name in enumerate("ab")]
    analysis = compare(paths)
    assert as_html(analysis) == as_html(analysis)


def test_long_labels_can_break_after_commas(grid_page: str) -> None:
    assert "temp=0.3,<wbr>frequency=0.0</th>" in grid_page


@pytest.mark.usefixtures("undrawn")
def test_the_verdict_has_minus_signs(tmp_path: Path) -> None:
    paths = [str(make_run(tmp_path / name, seed=seed)) for seed, name in enumerate("ab")]
    (headline,) = re.findall(r'id="verdict">\s*<p>(.*?)</p>', as_html(compare(paths)))
    assert "-" not in headline
    assert "\u2212" in headline


def _pairs() -> list[tuple[float, float]]:
    return [(t, f) for t in (0.3, 1.0) for f in (0.0, 0.5)]


@pytest.mark.usefixtures("undrawn")
def test_the_page_lists_every_cell_as_best_indistinguishable_or_worse(tmp_path: Path) -> None:
    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        row["checks"][0]["score"] = float(row["cell"] != "t=2")

    path = make_run(tmp_path / "a", cells=("t=1", "t=2", "t=3"), change=change)
    text = as_html(compare([str(path)]))
    (best,) = re.findall(r'<dl class="best" data-metric="score">(.*?)</dl>', text, re.DOTALL)
    words = re.sub(r"<[^>]+>", " ", best).split()
    assert " ".join(words) == (
        "best by score t=1 1.000 not distinguishable t=3 1.000 worse t=2 0.000 over 48 turns of 12 conversations"
    )
    assert "selected on these data" in text


def policy(text: str) -> str:
    return next(a["content"] or "" for tag, a in Elements(text).tags if tag == "meta" and "http-equiv" in a)


def test_the_policy_allows_only_the_script_and_style_of_the_page(grid_page: str) -> None:
    found = Elements(grid_page)
    allowed = policy(grid_page)
    assert allowed.startswith("default-src 'none';")
    assert "unsafe" not in allowed
    scripts = [text for tag, text in found.raw if tag == "script"]
    styles = [text for tag, text in found.raw if tag == "style"]
    assert len(styles) == 1
    for text in (scripts[-1], styles[0]):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in allowed


def test_nothing_is_loaded_from_elsewhere(grid_page: str) -> None:
    for tag, attributes in Elements(grid_page).tags:
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            target = attributes.get(name) or ""
            assert target.startswith(("#", "data:,")) or not target, (tag, target)


def test_no_element_has_inline_styles_or_handlers(grid_page: str) -> None:
    for tag, attributes in Elements(grid_page).tags:
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag


def test_ids_are_unique(grid_page: str) -> None:
    ids = [a["id"] for _, a in Elements(grid_page).tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_figures_use_the_colours_of_the_page(grid_page: str) -> None:
    drawings = re.findall(r"<svg .*?</svg>", grid_page, re.DOTALL)
    assert len(drawings) > 5
    for drawing in drawings:
        assert "var(--" in drawing
        assert not re.search(r"#[0-9a-fA-F]{3}", drawing), "a colour does not follow the page's theme"


@pytest.mark.usefixtures("undrawn")
def test_two_settings_give_a_heat_map_and_one_gives_lines(grid_page: str, tmp_path: Path) -> None:
    assert (
        "over temperature and frequency_penalty" in grid_page or "over frequency_penalty and temperature" in grid_page
    )
    cells = ("temp=0.3", "temp=0.7", "temp=1.0")
    settings = {cell: {"temperature": float(cell[5:])} for cell in cells}
    page = as_html(compare([str(make_run(tmp_path / "line", cells=cells, settings=settings))]))
    assert 'aria-label="score over temperature"' in page


def test_intervals_by_turn_are_within_the_bounds_of_their_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rwkvbatch.comparison.report.charts._TURN_METRICS", ())  # the primary metric alone

    def only_the_first_fails(row: dict[str, Any], _rng: np.random.Generator) -> None:
        passed = row["conversation"] != "talk-0"
        row["checks"] = [{"kind": "contains", "expected": "boat", "passed": passed, "score": float(passed)}]

    run = make_run(tmp_path / "a", conversations=3, change=only_the_first_fails)
    (svg,) = (figure.svg for figure in turn_figures(compare([str(run)])) if figure.name == "score")
    labels = [float(text.replace("\u2212", "-")) for text in re.findall(r">\s*([-\u2212]?\d\.\d+)\s*<", svg)]
    assert labels
    assert min(labels) >= 0
    assert max(labels) <= 1


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("cells", [("a", "b"), ("t=1,p=1", "t=1,p=2", "t=2,p=1", "t=2,p=2")])
def test_the_first_chart_is_of_the_primary_metric_even_when_all_means_are_equal(
    tmp_path: Path, cells: tuple[str, ...]
) -> None:
    def equal(row: dict[str, Any], _rng: np.random.Generator) -> None:
        row["checks"] = [{"kind": "contains", "expected": "boat", "passed": True, "score": 1.0}]

    figures = sweep_figures(compare([str(make_run(tmp_path / "a", cells=cells, change=equal))]))
    assert [figure.exploratory for figure in figures][:2] == [False, True]
    assert figures[0].name == "score"


@pytest.mark.usefixtures("undrawn")
def test_a_metric_of_a_single_turn_has_no_chart_by_turn(tmp_path: Path) -> None:
    def only_first(row: dict[str, Any], _rng: np.random.Generator) -> None:
        row["checks"] = row["checks"] if row["turn"] == 0 else []

    figures = turn_figures(compare([str(make_run(tmp_path / "a", turns=2, change=only_first))]))
    assert {"score", "tokens"} & {figure.name for figure in figures} == {"tokens"}


@pytest.mark.usefixtures("undrawn")
def test_charts_by_turn_show_the_baseline_and_the_most_different_of_many_variants(tmp_path: Path) -> None:
    def change(row: dict[str, Any], _rng: np.random.Generator) -> None:
        row["checks"][0]["score"] = 0.1 if row["cell"] in ("temp=9", "temp=11") else 0.5 + 0.01 * (row["turn"] == 1)

    cells = [f"temp={n}" for n in range(12)]
    analysis = compare([str(make_run(tmp_path / "a", conversations=8, cells=cells, change=change))])
    figures = turn_figures(analysis)
    assert figures[0].name == "score"
    assert all("differ most in score: 8 of 12." in figure.caption for figure in figures)
    shown = set(re.findall(r"(temp=\d+), turn 0", figures[0].svg))
    assert {"temp=0", "temp=9", "temp=11"} <= shown
    assert len(shown) == 8
    few = compare([str(make_run(tmp_path / "b", conversations=2, cells=cells[:8]))])
    assert not any("most" in figure.caption for figure in turn_figures(few))


def verdict_panel(page: str) -> str:
    return page[page.index('id="verdict"') : page.index("<noscript>")]


@pytest.mark.usefixtures("undrawn")
def test_the_page_starts_with_the_verdicts_and_the_rows_left_out(tmp_path: Path) -> None:
    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        row["checks"][0]["score"] = {"t=1": 0.5, "t=2": 0.5, "t=3": 0.1}[row["cell"]] + rng.normal(0, 0.02)
        if row["cell"] == "t=2" and row["conversation"] == "talk-0":
            row.update(finish_reason="error", error="out of memory")

    analysis = compare([str(make_run(tmp_path / "a", cells=("t=1", "t=2", "t=3"), change=change))])
    page = as_html(analysis)
    panel = html.unescape(verdict_panel(page))
    assert conclusion(analysis.comparisons) in panel
    assert left_out(analysis.dropped, analysis.primary) in panel
    assert "4 turns with an error" in panel
    rows = re.findall(r'<tr data-verdict="([^"]*)">\s*<td class="label" title="[^"]*">([^<]*)<', panel)
    assert rows == [(line.verdict, line.pair.variant.label) for line in analysis.comparisons]
    assert rows[1] == ("worse", "t=3")
    for line in analysis.comparisons:
        assert interval(line).replace("-", "\u2212") in panel
    assert page.index('id="verdict"') < page.index('id="sweep"') < page.index('id="table"')


@pytest.mark.usefixtures("undrawn")
def test_figures_start_with_the_primary_metric_and_mark_others_as_exploratory(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=("t=1", "t=2", "t=3"))
    page = as_html(compare([str(path)], primary="nll"))
    options = re.findall(r"<option value=\"(\w+)\">([^<]*)</option>", page[page.index("sweep-figure-metric") :])
    assert options[0][0] == "nll"
    assert "exploratory" not in options[0][1]
    assert ("score", "score ↑ (exploratory)") in options


def test_secondary_metrics_are_collapsed_and_not_coloured(tmp_path: Path) -> None:
    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        row["checks"][0]["score"] = 0.5
        row["reference"]["nll"] = (1.0 if row["cell"] == "t=2" else 2.0) + rng.normal(0, 0.01)

    analysis = compare([str(make_run(tmp_path / "a", cells=("t=1", "t=2"), change=change))])
    assert any(line.verdict == "better" for line in analysis.secondary), "a secondary metric must be better"
    page = as_html(analysis)
    assert re.search(r"<details>\s*<summary>Other metrics \(exploratory\)", page)
    assert 'data-verdict="better"' in page
    for tag, attributes in Elements(page).tags:
        assert not {"better", "worse"} & set((attributes.get("class") or "").split()), tag
    svgs = re.findall(r"<svg .*?</svg>", page, re.DOTALL)
    assert not any("--good" in svg or "--bad" in svg for svg in svgs)


@pytest.mark.usefixtures("undrawn")
def test_failures_are_counted_by_tag_and_by_kind_of_check(tmp_path: Path) -> None:
    def change(row: dict[str, Any], _rng: np.random.Generator) -> None:
        number = int(row["conversation"].removeprefix("talk-"))
        row["tags"] = ["short", "poem"] if number % 2 else ["short"]
        failed = number == 1 and row["cell"] == "t=2"
        row["checks"] = [
            {"kind": "contains", "expected": "boat", "passed": True, "score": 1.0},
            {"kind": "regex", "expected": "x", "passed": not failed, "score": float(not failed)},
        ]
        if number == 0 and row["cell"] == "t=2":
            row.update(finish_reason="error", error="out of memory", checks=[])

    path = make_run(tmp_path / "a", cells=("t=1", "t=2"), conversations=4, repeats=1, turns=2, change=change)
    analysis = compare([str(path)])
    tags = {each.name: each.counts for each in failures_by_tag(analysis.table, analysis.variants)}
    assert tags == {"short": ((0, 8), (4, 8)), "poem": ((0, 4), (2, 4))}
    kinds = {each.name: each.counts for each in failures_by_check(analysis.table, analysis.variants)}
    assert kinds == {"regex": ((0, 8), (4, 8)), "contains": ((0, 8), (2, 8))}
    page = as_html(analysis)
    table = analysis.table.copy()
    table["passed"] = float("nan")  # turns without checks: those that ended in an error count alone
    assert {each.name: each.counts for each in failures_by_tag(table, analysis.variants)} == {"short": ((0, 0), (2, 2))}
    assert '25 % <span class="unit">2/8</span>' in page[page.index('id="failures"') :]


@pytest.mark.usefixtures("undrawn")
def test_system_messages_are_read_from_the_copy_of_the_script_while_its_hash_matches(tmp_path: Path) -> None:
    script = tmp_path / "script.jsonl"
    user = {"role": "user", "content": "?"}
    systems = [{"role": "system", "content": f"Be <b>{n}</b>."} for n in range(2)]
    lines = [{"id": f"talk-{n}", "messages": [system, user]} for n, system in enumerate(systems)]
    script.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    conversations = read_scripts([str(script)]).conversations
    path = make_run(
        tmp_path / "a", conversations=2, cells=("t=1", "t=2"),
        identity_changes={"script": {"sha256": script_sha256(conversations), "conversations": 2}},
    )  # fmt: skip
    write_script(Folder(path), conversations)
    found = page_data(compare([str(path)]))
    assert found.content["systems"] == {"talk-0": "Be <b>0</b>.", "talk-1": "Be <b>1</b>."}
    assert not found.unknown_systems
    write_script(Folder(path), conversations[:1])
    changed = compare([str(path)])
    assert page_data(changed).content["systems"] == {}
    assert "System messages are unknown: the run's copy of the script is missing or damaged." in as_html(changed)


def test_long_names_do_not_make_a_figure_wider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwkvbatch.comparison.report.charts._TURN_METRICS", ())  # the primary metric alone
    widths: list[float] = []
    for number, name in enumerate(("t", "temp=0.3,top_p=0.5,frequency=0.3,pres")):
        cells = [f"{name}{n}" for n in range(8)]
        analysis = compare([str(make_run(tmp_path / str(number), conversations=2, cells=cells))])
        view_box = re.search(r'viewBox="[-\d.]+ [-\d.]+ ([\d.]+) ', turn_figures(analysis)[0].svg)
        assert view_box
        widths.append(float(view_box[1]))
    assert widths[1] == pytest.approx(widths[0], rel=0.05)


def test_the_page_without_its_data_is_below_2_megabytes(grid_page: str) -> None:
    data = next(text for tag, text in Elements(grid_page).raw if tag == "script")
    assert len(grid_page) - len(data) < 2_000_000


def test_hostile_text_adds_no_element(tmp_path: Path) -> None:
    page = as_html(compare([str(hostile_run(tmp_path / "a"))], fail_if=["tokens < 9999"]))
    found = Elements(page)
    assert [tag for tag, _ in found.tags].count("script") == 2
    assert not any(tag == "img" for tag, _ in found.tags)
    assert not any(attributes.get("onload") for _, attributes in found.tags)
    assert "49" not in re.findall(r"\{\{.*?\}\}", page)
    assert re.findall("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", page) == []


@pytest.mark.usefixtures("undrawn")
def test_the_data_of_the_page_have_the_replies_unchanged(tmp_path: Path) -> None:
    analysis = compare([str(hostile_run(tmp_path / "a"))])
    data = json.loads(next(text for tag, text in Elements(as_html(analysis)).raw if tag == "script"))
    replies = {
        row["reply"] for talk in data["conversations"].values() for rows in talk["rows"].values() for row in rows
    }
    assert replies == set(analysis.table["reply"])


def test_the_data_of_the_page_have_the_records_of_all_turns(tmp_path: Path) -> None:
    def change(row: dict[str, Any], _: np.random.Generator) -> None:
        if row["conversation"] == "talk-1" and row["turn"] == 1:
            row.update(error="out of memory", finish_reason="error", checks=[], reference=None, reply="", reply_ids=[])

    analysis = compare([str(make_run(tmp_path / "a", cells=("t=1", "t=2"), conversations=3, change=change))])
    content = page_data(analysis).content
    names = [metric["name"] for metric in content["metrics"]]
    for variant, cell in enumerate(("t=1", "t=2")):
        rows_of_cell = analysis.table.loc[analysis.table["cell"] == cell]
        shown = {name: iter(talk["rows"][str(variant)]) for name, talk in content["conversations"].items()}
        for row in rows_of_cell.to_dict("records"):
            record, found = turn_record(row), next(shown[row["conversation"]])
            numbers = [None if name not in record["metrics"] else round(record["metrics"][name], 6) for name in names]
            assert found["numbers"] == numbers
            assert {key: found[key] for key in ("turn", "reply", "finish_reason", "error")} == {
                key: record[key] for key in ("turn", "reply", "finish_reason", "error")
            }
            assert [check[0] for check in found["checks"]] == [check["kind"] for check in record["checks"]]
        assert all(next(rest, None) is None for rest in shown.values())


def test_a_score_near_1_is_not_1_in_the_data_of_the_page(tmp_path: Path) -> None:
    def change(row: dict[str, Any], _: np.random.Generator) -> None:
        row["checks"][0].update(passed=False, score=1 - 1e-9)

    content = page_data(compare([str(make_run(tmp_path / "run", conversations=1, repeats=1, turns=1, change=change))]))
    metrics = {metric["name"]: n for n, metric in enumerate(content.content["metrics"])}
    (row,) = content.content["conversations"]["talk-0"]["rows"]["0"]
    assert row["numbers"][metrics["score"]] == 1 - 1e-9
    assert content.content["metrics"][metrics["score"]]["is_share"]
    assert not content.content["metrics"][metrics["nll"]]["is_share"]


def test_a_large_run_keeps_the_most_changed_conversations_and_counts_those_left_out(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=("t=1", "t=2"), conversations=10, repeats=1, turns=2)
    found = page_data(compare([str(path)]), max_turns=12)
    assert len(found.content["conversations"]) == 3
    assert found.left_out == 7


@pytest.mark.usefixtures("undrawn")
def test_the_page_of_a_single_run_has_its_means(tmp_path: Path) -> None:
    page = as_html(compare([str(make_run(tmp_path / "alone"))]))
    assert "<h2>Means</h2>" in page
    assert re.search(r"<p>score: 0\.\d+ \[0\.\d+, [01]\.\d+\]; to compare, give a second run", page)
    for words in ("most changed come first", "Tests flip", "paired by"):
        assert words not in page


@pytest.mark.usefixtures("undrawn")
def test_captions_say_when_charts_have_turns_that_are_not_in_the_tables(tmp_path: Path) -> None:
    a, b, c = (
        str(make_run(tmp_path / name, conversations=3, repeats=n, seed=ord(name)))
        for name, n in (("a", 2), ("b", 2), ("c", 3))
    )
    words = "Of all turns of a variant; means in tables are of those that have a counterpart."
    for paths, is_mentioned in (((a, b), False), ((a, c), True)):
        analysis = compare(paths)
        captions = [figure.caption for figure in (*sweep_figures(analysis)[:1], *turn_figures(analysis)[:1])]
        assert [words in caption for caption in captions] == [is_mentioned, is_mentioned]


@pytest.mark.parametrize(("histories", "is_mentioned"), [(("own", "gold"), True), (("own", "own"), False)])
def test_drift_is_mentioned_when_both_histories_are_compared(
    histories: tuple[str, str], is_mentioned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rwkvbatch.comparison.report.html.sweep_figures", lambda _: [])
    monkeypatch.setattr("rwkvbatch.comparison.report.charts._TURN_METRICS", ())
    settings = {f"cell {n}": {"history": history} for n, history in enumerate(histories)}
    page = as_html(compare([str(make_run(tmp_path / "a", cells=list(settings), settings=settings, conversations=3))]))
    assert ("gap between own and gold history is drift" in page) == is_mentioned


@pytest.mark.usefixtures("undrawn")
def test_settings_that_differ_between_runs_are_marked(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=9)
    page = as_html(compare([str(a), str(b)]))
    marked: list[Any] = re.findall(r'<tr class="other"><td class="mono">(.*?)</td>', page)
    assert marked == ["seed"]


@given(
    text=st.one_of(
        st.text(st.characters(), max_size=60), st.text(st.sampled_from("</script>!-&\u2028\u2029\\\"'\x00\ud800"))
    )
)
@example(text="</script><script>alert(1)</script>")
@example(text="<!--<script>")
def test_any_text_in_the_data_stays_within_its_element(text: str) -> None:
    script = PageData({text: [text]}, 0).as_script()
    page = Elements(f'<script type="application/json">{script}</script><p>end</p>')
    assert [tag for tag, _ in page.tags] == ["script", "p"]
    assert json.loads("".join(data for _, data in page.raw)) == json.loads(json.dumps({text: [text]}))


@pytest.mark.usefixtures("undrawn")
def test_bars_of_one_metric_have_one_scale(tmp_path: Path) -> None:
    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        row["checks"][0]["score"] = {"t=1": 0.9, "t=2": 0.8, "t=3": 0.1}[row["cell"]] + rng.normal(0, 0.02)

    path = make_run(tmp_path / "a", cells=("t=1", "t=2", "t=3"), change=change)
    page = as_html(compare([str(path)], metrics=["score"]))
    means = [float(x) for x in re.findall(r'<line x1="([\d.]+)" x2="\1" y1="2"', page)]
    assert len(means) == 2
    assert (50 - means[1]) / (50 - means[0]) == pytest.approx(8, rel=0.2)


@pytest.mark.usefixtures("undrawn")
def test_negative_numbers_have_a_minus_sign(tmp_path: Path) -> None:
    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        row["checks"][0]["score"] = 0.5 - 0.2 * (row["cell"] == "t=2") + rng.normal(0, 0.01)

    path = make_run(tmp_path / "a", cells=("t=1", "t=2"), change=change)
    page = as_html(compare([str(path)], metrics=["score"]))
    assert re.search(r'class="num worse" data-value="-0\.\d+">\u22120\.', page)


@pytest.mark.usefixtures("undrawn")
def test_a_long_setting_ends_with_an_ellipsis(tmp_path: Path) -> None:
    texts = {number: "x" * number for number in (400, 401)}
    for number, text in texts.items():
        path = make_run(tmp_path / str(number), conversations=2, settings={"base": {"system": text}})
        page = as_html(compare([str(path)]))
        assert (f">{'x' * 399}…<" in re.sub(r"\s+", "", page)) == (number > 400)


def test_tags_beyond_the_first_thirty_are_in_a_part_that_opens(tmp_path: Path) -> None:
    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        del rng
        row["tags"] = [f"{row['conversation']}-tag"]
        row["checks"][0].update(passed=False, score=0.0)

    page = as_html(compare(str(make_run(tmp_path / "a", conversations=35, repeats=1, turns=1, change=change))))
    shown, opened = page.split("<summary>5 more with a smaller share</summary>")
    opened = opened.split("</details>")[0]
    assert opened.count("-tag</td>") == 5
    assert shown.count("-tag</td>") == 30
