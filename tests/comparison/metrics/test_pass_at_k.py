"""pass@k and all-k-pass, compared with counting every choice of k repeats."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from rwkvbatch.comparison import compare
from rwkvbatch.comparison.metrics.declarations import all_k_pass, pass_at_k
from tests.comparison.make_run import make_row, write_run


@pytest.mark.parametrize("passed", range(6))
@pytest.mark.parametrize("k", range(1, 6))
def test_both_equal_the_share_among_all_choices_of_k_repeats(passed: int, k: int) -> None:
    choices = list(combinations([True] * passed + [False] * (5 - passed), k))
    assert pass_at_k(5, passed, k) == pytest.approx(sum(map(any, choices)) / len(choices))
    assert all_k_pass(5, passed, k) == pytest.approx(sum(map(all, choices)) / len(choices))


def test_k_above_the_number_of_repeats_is_refused() -> None:
    with pytest.raises(ValueError, match=r"k must be in \[1, 3\]"):
        pass_at_k(3, 1, 4)


@pytest.mark.parametrize("passed", [-1, 4])
def test_an_impossible_number_of_passes_is_refused(passed: int) -> None:
    with pytest.raises(ValueError, match=rf"passed repeats must be in \[0, 3\]; got {passed}"):
        all_k_pass(3, passed, 1)


def test_a_note_says_of_how_many_conversations_a_k_is(tmp_path: Path) -> None:
    rows = [
        make_row(f"talk-{number}", cell=cell, repeat=repeat)
        for cell in ("t=1", "t=2")
        for number in range(4)
        for repeat in range(3 if number else 1)
    ]
    write_run(tmp_path / "a", rows, manifest={})
    for source in (tmp_path / "a", f"{tmp_path / 'a'}::t=1"):
        notes = [note for note in compare(source, ks=[1, 3]).notes if "pass_at" in note]
        assert notes == [
            "pass_at_3, all_3 and majority_at_3 are of 3 of 4 conversations: the others have fewer than 3 repetitions"
        ]


def test_the_note_on_a_k_is_of_a_pair_that_lacks_repetitions(tmp_path: Path) -> None:
    repeats_of = {"t=1": (3, 3, 3, 3), "t=2": (3, 3, 3), "t=3": (1, 3, 3, 3)}
    rows = [
        make_row(f"talk-{number}", cell=cell, repeat=repeat)
        for cell, of_cell in repeats_of.items()
        for number, repeats in enumerate(of_cell)
        for repeat in range(repeats)
    ]
    write_run(tmp_path / "a", rows, manifest={})
    (note,) = [note for note in compare(tmp_path / "a", ks=[1, 3]).notes if "pass_at" in note]
    assert note.startswith("pass_at_3, all_3 and majority_at_3 are of as few as 3 of 4 conversations:")
