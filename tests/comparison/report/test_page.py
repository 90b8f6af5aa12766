"""The report's text, before any browser sees it."""

from __future__ import annotations

import base64
import hashlib
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
from rwkvbatch.comparison.report.charts import turn_figures
from rwkvbatch.comparison.report.html import PageData, as_html, page_data
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
    settings = {c: {"temperature": t, "frequency": f} for c, (t, f) in zip(cells, _pairs(), strict=True)}
    path = make_run(tmp_path_factory.mktemp("runs") / "grid", cells=cells, settings=settings)
    return as_html(compare([str(path)], fail_if=["score < 2"]))


def _pairs() -> list[tuple[float, float]]:
    return [(t, f) for t in (0.3, 1.0) for f in (0.0, 0.5)]


def test_the_page_names_every_cell_under_its_standing(tmp_path: Path) -> None:
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


def test_the_policy_allows_nothing_but_the_pages_own_script_and_style(grid_page: str) -> None:
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


def test_no_id_is_there_twice(grid_page: str) -> None:
    ids = [a["id"] for _, a in Elements(grid_page).tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_figures_follow_the_pages_colours(grid_page: str) -> None:
    drawings = re.findall(r"<svg .*?</svg>", grid_page, re.DOTALL)
    assert len(drawings) > 5
    for drawing in drawings:
        assert "var(--" in drawing
        assert not re.search(r"#0[1-8]0", drawing), "a stand-in colour was left"


def test_two_settings_make_a_heat_map_and_one_makes_lines(grid_page: str, tmp_path: Path) -> None:
    assert (
        "over temperature and frequency_penalty" in grid_page or "over frequency_penalty and temperature" in grid_page
    )
    cells = ("temp=0.3", "temp=0.7", "temp=1.0")
    settings = {cell: {"temperature": float(cell[5:])} for cell in cells}
    page = as_html(compare([str(make_run(tmp_path / "line", cells=cells, settings=settings))]))
    assert 'aria-label="score over temperature"' in page


def test_intervals_by_turn_end_at_what_a_metric_can_be(tmp_path: Path) -> None:
    def only_the_first_fails(row: dict[str, Any], _rng: np.random.Generator) -> None:
        passed = row["conversation"] != "talk-0"
        row["checks"] = [{"kind": "contains", "expected": "boat", "passed": passed, "score": float(passed)}]

    run = make_run(tmp_path / "a", conversations=3, change=only_the_first_fails)
    (svg,) = (figure.svg for figure in turn_figures(compare([str(run)])) if figure.name == "score")
    labels = [float(text.replace("\u2212", "-")) for text in re.findall(r">\s*([-\u2212]?\d\.\d+)\s*<", svg)]
    assert labels
    assert min(labels) >= 0
    assert max(labels) <= 1


def test_the_caption_counts_variants_that_are_not_shown(tmp_path: Path) -> None:
    cells = [f"temp={n}" for n in range(9)]
    analysis = compare([str(make_run(tmp_path / "a", conversations=2, cells=cells))])
    assert all("The first 8 of 9 variants." in figure.caption for figure in turn_figures(analysis))
    few = compare([str(make_run(tmp_path / "b", conversations=2, cells=cells[:8]))])
    assert not any("first" in figure.caption for figure in turn_figures(few))


def test_long_names_do_not_make_a_figure_wider(tmp_path: Path) -> None:
    widths: list[float] = []
    for place, name in enumerate(("t", "temp=0.3,top_p=0.5,frequency=0.3,pres")):
        cells = [f"{name}{n}" for n in range(8)]
        analysis = compare([str(make_run(tmp_path / str(place), conversations=2, cells=cells))])
        view_box = re.search(r'viewBox="0 0 ([\d.]+) ', turn_figures(analysis)[0].svg)
        assert view_box
        widths.append(float(view_box[1]))
    assert widths[1] == pytest.approx(widths[0], rel=0.05)


def test_the_page_without_its_data_is_well_under_six_megabytes(grid_page: str) -> None:
    data = next(text for tag, text in Elements(grid_page).raw if tag == "script")
    assert len(grid_page) - len(data) < 2_000_000


def test_hostile_text_adds_no_element(tmp_path: Path) -> None:
    page = as_html(compare([str(hostile_run(tmp_path / "a"))], fail_if=["score < 2"]))
    found = Elements(page)
    assert [tag for tag, _ in found.tags].count("script") == 2
    assert not any(tag == "img" for tag, _ in found.tags)
    assert not any(attributes.get("onload") for _, attributes in found.tags)
    assert "49" not in re.findall(r"\{\{.*?\}\}", page)


def test_the_dialogues_survive_the_page_letter_by_letter(tmp_path: Path) -> None:
    analysis = compare([str(hostile_run(tmp_path / "a"))])
    data = json.loads(next(text for tag, text in Elements(as_html(analysis)).raw if tag == "script"))
    replies = {
        row["reply"] for talk in data["conversations"].values() for rows in talk["rows"].values() for row in rows
    }
    assert replies == set(analysis.table["reply"])


def test_a_large_run_keeps_the_most_changed_conversations_and_says_how_many_are_left_out(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=("t=1", "t=2"), conversations=10, repeats=1, turns=2)
    found = page_data(compare([str(path)]), max_turns=12)
    assert len(found.content["conversations"]) == 3
    assert found.left_out == 7


def test_one_run_alone_makes_a_page_with_its_means(tmp_path: Path) -> None:
    page = as_html(compare([str(make_run(tmp_path / "alone"))]))
    assert "<h2>Means</h2>" in page


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
def test_no_text_ends_the_element_of_the_data_and_all_of_it_arrives(text: str) -> None:
    script = PageData({text: [text]}, 0).as_script()
    page = Elements(f'<script type="application/json">{script}</script><p>end</p>')
    assert [tag for tag, _ in page.tags] == ["script", "p"]
    assert json.loads("".join(data for _, data in page.raw)) == json.loads(json.dumps({text: [text]}))


def test_bars_of_one_metric_share_a_scale(tmp_path: Path) -> None:
    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        row["checks"][0]["score"] = {"t=1": 0.9, "t=2": 0.8, "t=3": 0.1}[row["cell"]] + rng.normal(0, 0.02)

    path = make_run(tmp_path / "a", cells=("t=1", "t=2", "t=3"), change=change)
    page = as_html(compare([str(path)], metrics=["score"]))
    means = [float(x) for x in re.findall(r'<line x1="([\d.]+)" x2="\1" y1="2"', page)]
    assert len(means) == 2
    assert (50 - means[1]) / (50 - means[0]) == pytest.approx(8, rel=0.2)


def test_negative_numbers_have_a_minus_sign(tmp_path: Path) -> None:
    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        row["checks"][0]["score"] = 0.5 - 0.2 * (row["cell"] == "t=2") + rng.normal(0, 0.01)

    path = make_run(tmp_path / "a", cells=("t=1", "t=2"), change=change)
    page = as_html(compare([str(path)], metrics=["score"]))
    assert re.search(r'class="num worse" data-value="-0\.\d+">\u22120\.', page)
