"""Word diffs of replies, and the order of changed conversations."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvbatch.comparison import compare
from rwkvbatch.comparison.dialogues.changes import most_changed, most_changed_turn, turn_changes, word_diff
from rwkvbatch.comparison.metrics.declarations import metric_named
from rwkvbatch.comparison.numbers import check_name, turn_value
from tests.comparison.make_run import make_row, write_run


def pieces(before: str, after: str) -> list[tuple[str, str]]:
    return [(piece.kind, piece.text) for piece in word_diff(before, after)]


def test_a_changed_word_is_gone_and_new_between_unchanged_text() -> None:
    assert pieces("the old boat", "the new boat") == [
        ("same", "the "), ("gone", "old"), ("new", "new"), ("same", " boat"),
    ]  # fmt: skip


def test_neighbouring_changed_words_are_one_piece() -> None:
    assert pieces("a b c d", "a x y d") == [("same", "a "), ("gone", "b c"), ("new", "x y"), ("same", " d")]


def test_equal_texts_have_no_change() -> None:
    assert pieces("same text", "same text") == [("same", "same text")]
    assert pieces("", "") == []


def test_huge_texts_are_replaced_whole() -> None:
    before, after = "a " * 5000, "b " * 5000
    assert pieces(before, after) == [("gone", before), ("new", after)]


@given(st.text("ab \n.", max_size=30), st.text("ab \n.", max_size=30))
def test_the_pieces_join_to_both_texts(before: str, after: str) -> None:
    pieces = word_diff(before, after)
    assert "".join(piece.text for piece in pieces if piece.kind != "new") == before
    assert "".join(piece.text for piece in pieces if piece.kind != "gone") == after


def test_conversations_are_ordered_by_score_then_by_replies_that_differ(tmp_path: Path) -> None:
    def check(score: float) -> list[dict[str, object]]:
        return [{"kind": "k", "expected": 1, "passed": score == 1, "score": score, "weight": 1.0, "detail": None}]

    fixed = {"reference": None}
    write_run(
        tmp_path / "a",
        [make_row(c, reply="old", checks=check(1.0), **fixed) for c in ("same", "worse", "text")],
        manifest={},
    )
    write_run(
        tmp_path / "b",
        [
            make_row("same", reply="old", checks=check(1.0), **fixed),
            make_row("worse", reply="old bad", checks=check(0.0), **fixed),
            make_row("text", reply="other", checks=check(1.0), **fixed),
        ],
        manifest={},
    )
    (matched,) = compare([str(tmp_path / "a"), str(tmp_path / "b")]).matched
    assert [change.conversation for change in most_changed(matched)] == ["worse", "text", "same"]
    turn = most_changed_turn(turn_changes(matched, "worse"))
    assert turn is not None
    assert [(piece.kind, piece.text) for piece in turn.pieces] == [("same", "old"), ("new", " bad")]
    assert most_changed_turn(turn_changes(matched, "same")) is None


@pytest.mark.parametrize(
    ("score", "in_check", "in_turn"),
    [
        (0.5, "judge 0.5", "0.50"),
        (0.996, "judge 0.996", "0.996"),
        (0.9996, "judge 0.9996", "0.9996"),
        (1 - 1e-15, "judge 0.999999999999999", "0.999999999999999"),
        (0.0004, "judge 0.0004", "0.0004"),
        (1e-12, "judge 1e-12", "1e-12"),
        (1.0, "judge", "1.00"),
        (0.0, "judge", "0.00"),
    ],
)
def test_a_score_is_shown_as_0_or_1_only_if_it_is(score: float, in_check: str, in_turn: str) -> None:
    assert check_name({"kind": "judge", "expected": None, "score": score}) == in_check
    assert turn_value(metric_named("score"), score) == in_turn


def test_values_that_are_no_shares_are_rounded() -> None:
    assert turn_value(metric_named("nll"), 0.9996) == "1.00"
    assert turn_value(metric_named("tokens"), 3.0) == "3"
