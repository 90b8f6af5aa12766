"""Pairs of variants and baselines."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkvbatch.comparison.loading import RunData, load_runs
from rwkvbatch.comparison.paired import pair_up, variants_of
from rwkvbatch.errors import UsageError
from tests.comparison.make_run import make_run


def runs(tmp_path: Path, **cells: tuple[str, ...]) -> list[RunData]:
    return load_runs([str(make_run(tmp_path / name, cells=own, conversations=1)) for name, own in cells.items()])


def paired(loaded: list[RunData], asked: str | None = None) -> list[tuple[str, str]]:
    pairs, _ = pair_up(loaded, variants_of(loaded), asked)
    return [(pair.baseline.label, pair.variant.label) for pair in pairs]


def test_two_runs_are_named_by_themselves_and_the_first_is_the_baseline(tmp_path: Path) -> None:
    assert paired(runs(tmp_path, a=("base",), b=("base",))) == [("a", "b")]


def test_the_cells_of_one_run_are_compared_with_its_first(tmp_path: Path) -> None:
    loaded = runs(tmp_path, a=("t=1", "t=2", "t=3"))
    assert paired(loaded) == [("t=1", "t=2"), ("t=1", "t=3")]


def test_a_cell_can_be_the_baseline(tmp_path: Path) -> None:
    loaded = runs(tmp_path, a=("t=1", "t=2", "t=3"))
    assert paired(loaded, "t=2") == [("t=2", "t=1"), ("t=2", "t=3")]


def test_a_run_can_be_the_baseline_by_its_path(tmp_path: Path) -> None:
    loaded = runs(tmp_path, a=("base",), b=("base",))
    assert paired(loaded, f"{tmp_path}/b/") == [("b", "a")]


def test_two_sweeps_are_compared_cell_by_cell(tmp_path: Path) -> None:
    loaded = runs(tmp_path, a=("t=1", "t=2"), b=("t=1", "t=2", "t=9"))
    pairs, notes = pair_up(loaded, variants_of(loaded), None)
    assert [(p.baseline.label, p.variant.label) for p in pairs] == [("a::t=1", "b::t=1"), ("a::t=2", "b::t=2")]
    assert "b::t=9" in notes[0]


def test_a_cell_as_baseline_of_two_sweeps_holds_within_each(tmp_path: Path) -> None:
    loaded = runs(tmp_path, a=("t=1", "t=2"), b=("t=1", "t=2"))
    assert paired(loaded, "t=2") == [("a::t=2", "a::t=1"), ("b::t=2", "b::t=1")]


def test_two_cells_of_one_run_can_be_picked_out(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=("t=1", "t=2", "t=3"), conversations=1)
    loaded = load_runs([f"{path}::t=3", f"{path}::t=1"])
    assert paired(loaded, f"{path}::t=3") == [("t=3", "t=1")]


def test_an_unknown_baseline_lists_what_there_is(tmp_path: Path) -> None:
    loaded = runs(tmp_path, a=("t=1", "t=2"))
    with pytest.raises(UsageError, match="'t=7'") as caught:
        paired(loaded, "t=7")
    assert "t=1, t=2" in (caught.value.hint or "")
