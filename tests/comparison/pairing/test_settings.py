"""The line that names the settings in which compared runs differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkvbatch.comparison import compare
from rwkvbatch.comparison.analysis import Analysis
from rwkvbatch.comparison.pairing.settings import settings_sentence
from rwkvbatch.comparison.report.formats import as_json, as_markdown
from rwkvbatch.comparison.report.html import as_html
from tests.comparison.make_run import make_run
from tests.comparison.report.test_terminal import printed


def run_with(path: Path, cell: str = "base", cells: tuple[str, ...] = (), **settings: Any) -> str:
    names = cells or (cell,)
    return str(make_run(path, cells=names, conversations=8, turns=1, settings=dict.fromkeys(names, settings)))


def sentence(*runs: str) -> str:
    return settings_sentence(compare(runs).settings_differ)


def test_every_output_names_both_values_of_each_differing_setting(tmp_path: Path) -> None:
    a = run_with(tmp_path / "a", max_tokens=300, dtype="bf16", temperature=0.2)
    b = run_with(tmp_path / "b", max_tokens=3, dtype="int4", temperature=1.5, rounding_rules=1)
    analysis = compare([a, b])
    line = "settings differ: temperature 0.2/1.5, max_tokens 300/3, dtype bf16/int4"
    assert settings_sentence(analysis.settings_differ) == line
    assert line in printed(analysis, width=120)
    assert line.replace("_", "\\_") in as_markdown(analysis)
    assert line in as_html(analysis)
    assert line in repr(analysis)
    assert json.loads(as_json(analysis))["settings_differ"][1] == {
        "setting": "max_tokens",
        "baseline": "300",
        "variant": "3",
        "variants": ["b"],
    }


def test_equal_settings_and_cells_of_one_sweep_have_no_line(tmp_path: Path) -> None:
    equal = [run_with(tmp_path / name, max_tokens=3) for name in "ab"]
    assert sentence(*equal) == ""
    sweep = make_run(tmp_path / "s", cells=("t=0", "t=1"), settings={"t=0": {"temperature": 0.0}})
    analysis = compare(str(sweep))
    assert len(analysis.comparisons) == 1
    assert analysis.settings_differ == ()


def sweep(path: Path, max_tokens: int) -> str:
    cells = {f"temp={t}": {"temperature": t, "max_tokens": max_tokens} for t in (0.0, 1.0)}
    return str(make_run(path, cells=tuple(cells), conversations=8, turns=1, settings=cells))


def test_the_dimension_of_a_grid_is_left_out_and_what_else_differs_is_named_once(tmp_path: Path) -> None:
    assert sentence(sweep(tmp_path / "a", 300), sweep(tmp_path / "b", 3)) == "settings differ: max_tokens 300/3"
    plain = run_with(tmp_path / "c", temperature=0.5, max_tokens=300)
    assert sentence(plain, sweep(tmp_path / "d", 3)) == "settings differ: max_tokens 300/3"


def test_values_of_some_variants_are_followed_by_their_names(tmp_path: Path) -> None:
    runs = [run_with(tmp_path / name, max_tokens=value) for name, value in zip("abcd", (9, 3, 9, 2), strict=True)]
    assert sentence(*runs) == "settings differ: max_tokens 9/3 (b)/2 (d)"


def test_rules_of_the_program_are_named_like_settings(tmp_path: Path) -> None:
    a, b = (
        make_run(tmp_path / name, conversations=8, identity_changes={"judging_rules": rules})
        for name, rules in (("a", 3), ("b", 4))
    )
    assert sentence(str(a), str(b)) == "settings differ: judging_rules 3/4"


def test_a_setting_that_replaces_params_of_the_script_differs_from_its_default(tmp_path: Path) -> None:
    script = {"sha256": "cd" * 32, "conversations": 8, "params": ["temperature"]}
    a, b = (
        make_run(tmp_path / name, conversations=8, identity_changes={"script": script, "given_for_all": given})
        for name, given in (("a", []), ("b", ["temperature"]))
    )
    assert sentence(str(a), str(b)) == "settings differ: temperature params of the script/1.0"


@pytest.mark.parametrize("key", ["weights_sha256", "tokenizer_sha256"])
def test_other_weights_are_no_setting(tmp_path: Path, key: str) -> None:
    assert sentence(run_with(tmp_path / "a", **{key: "aa"}), run_with(tmp_path / "b", **{key: "bb"})) == ""


def test_an_unresolved_end_of_a_turn_and_a_value_that_one_side_lacks_are_left_out(tmp_path: Path) -> None:
    a = run_with(tmp_path / "a", turn_end="auto", min_p=0.0)
    assert sentence(a, run_with(tmp_path / "b", turn_end="next-role")) == ""


def test_no_request_body_is_an_empty_one(tmp_path: Path) -> None:
    a, b = run_with(tmp_path / "a", endpoint_body=None), run_with(tmp_path / "b", endpoint_body="")
    assert sentence(a, b) == ""
    c = run_with(tmp_path / "c", endpoint_body='{"x": 1}')
    assert sentence(a, c) == 'settings differ: endpoint_body none/{"x": 1}'


@pytest.mark.parametrize(("finish_reason", "named"), [("scored", False), ("stop", True)])
def test_settings_of_replies_are_named_where_there_are_replies(finish_reason: str, named: bool, tmp_path: Path) -> None:
    def change(row: dict[str, Any], _: np.random.Generator) -> None:
        row["finish_reason"] = finish_reason

    ends = ("blank-line", "next-role")
    runs = [
        str(make_run(tmp_path / end, settings={"base": {"turn_end": end, "temperature": number}}, change=change))
        for number, end in enumerate(ends)
    ]
    assert sentence(*runs) == ("settings differ: temperature 0/1, turn_end blank-line/next-role" if named else "")
    assert any("different ends of a turn" in note for note in compare(runs).notes) == named


def test_hostile_values_are_short_and_on_one_line(tmp_path: Path) -> None:
    a, b = run_with(tmp_path / "a", system="x\n" * 40), run_with(tmp_path / "b", system=None)
    text = sentence(a, b)
    assert "\n" not in text
    assert len(text) < 80
    analysis: Analysis = compare([a, b])
    assert "settings differ: system" in printed(analysis)


@pytest.mark.parametrize(
    ("names", "baseline"),
    [
        (("step-1000", "step-200", "step-3000"), "step-200"),
        (("step-200", "step-1000", "step-3000"), None),
        (("a-10", "b-2"), None),
        (("a", "b"), None),
        (("m2-step10", "m2-step9"), "m2-step9"),
    ],
)
def test_a_baseline_that_is_not_the_smallest_number_is_noted(
    tmp_path: Path, names: tuple[str, ...], baseline: str | None
) -> None:
    runs = [run_with(tmp_path / name) for name in names]
    notes = [note for note in compare(runs).notes if "has a smaller number" in note]
    assert len(notes) == (baseline is not None)
    assert all(f"--baseline {baseline}" in note and ("--over step" in note) == (len(names) > 2) for note in notes)
    assert not any("has a smaller number" in note for note in compare(runs, baseline=names[0]).notes)


@pytest.mark.parametrize(("planned", "left_out"), [(8, True), (7, False)])
def test_pass_at_k_of_an_unfinished_run_needs_most_of_its_conversations(
    tmp_path: Path, planned: int, left_out: bool
) -> None:
    script = {"sha256": "cd" * 32, "conversations": planned}
    path = make_run(tmp_path / "a", conversations=4, repeats=3, turns=1, identity_changes={"script": script})
    analysis = compare(str(path))
    names = {mean.metric.name for mean in analysis.means(analysis.variants[0])}
    assert ("pass_at_3" in names) != left_out
    assert any("4 of 8 conversations so far" in note for note in analysis.notes) == left_out
    asked = compare(str(path), ks=[3])
    assert "pass_at_3" in {mean.metric.name for mean in asked.means(asked.variants[0])}
