"""The whole comparison: gates on runs, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkvbatch.comparison import compare
from rwkvbatch.errors import RunMismatchError, UsageError
from tests.comparison.make_run import make_row, make_run, write_run


def test_gates_on_a_run_alone_are_judged_on_all_its_rows(tmp_path: Path) -> None:
    path = str(make_run(tmp_path / "a", conversations=6, repeats=2))
    result = compare([path], fail_if=["score < 2", "pass_at_2 > 1", "all_2 <= 1"])
    assert [gate.failed for gate in result.gates] == [True, False, True]
    assert result.gates[0].left == pytest.approx(result.table["score"].mean())
    assert result.failed


def test_gates_on_pass_at_k_are_judged_by_conversation(tmp_path: Path) -> None:
    paths = [str(make_run(tmp_path / name, conversations=6, repeats=2)) for name in ("a", "b")]
    result = compare(paths, fail_if=["pass_at_2 < baseline - 0.5", "all_2 < baseline + 0.1"])
    assert [gate.failed for gate in result.gates] == [False, True]


@pytest.mark.parametrize("gate", ["score * nll > 1 significantly", "p95(score) > 1 significantly"])
def test_significance_is_refused_where_there_is_no_test_for_it(tmp_path: Path, gate: str) -> None:
    path = str(make_run(tmp_path / "a", cells=("t=1", "t=2")))
    with pytest.raises(UsageError, match="sums and multiples of means"):
        compare([path], fail_if=[gate])


def test_runs_without_a_common_turn_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, [make_row(f"only-in-{name}")], manifest={})
    with pytest.raises(RunMismatchError, match=r"b and a have no \(conversation, turn, repeat\) in common"):
        compare([str(tmp_path / "a"), str(tmp_path / "b")])


def test_matched_turns_with_different_prompts_are_counted_in_a_note(tmp_path: Path) -> None:
    for name in ("a", "b"):
        rows = [make_row("x"), make_row("y", prompt=f"Who is {name}?")]
        write_run(tmp_path / name, rows, manifest={})
    notes = compare([str(tmp_path / "a"), str(tmp_path / "b")]).notes
    assert "b against a: 1 matched turns have different prompts" in notes
