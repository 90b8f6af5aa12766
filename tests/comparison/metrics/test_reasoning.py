"""Metrics of replies with thinking: truncation, lengths of both parts, majority votes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rwkvbatch.comparison.metrics.declarations import metric_named
from rwkvbatch.comparison.runs.table import tabulate
from rwkvbatch.comparison.values.conversations import conversation_values, majority_at_k, vote_of
from rwkvbatch.errors import UsageError
from rwkvbatch.results.row import CheckResult, TokenCounts
from rwkvbatch.results.row_codec import decode_row, encode_row
from tests.replay.fakes import make_row


def value(name: str, **changes: Any) -> float | None:
    metric = metric_named(name)
    assert metric.value is not None
    return metric.value(make_row("c", **changes).as_dict())


def test_truncated_and_think_closed() -> None:
    assert value("truncated", finish_reason="length") == 1.0
    assert value("truncated", finish_reason="stop") == 0.0
    assert value("truncated", finish_reason="scored") is None
    assert value("think_closed", reply="<think>hm</think> 4") == 1.0
    assert value("think_closed", reply="<think>hm") == 0.0
    assert value("think_closed", reply="4") is None


def test_think_tokens_and_answer_tokens_sum_to_the_reply() -> None:
    row = replace(make_row("c"), tokens=TokenCounts(5, 9, 6))
    assert decode_row(encode_row(row)).tokens == TokenCounts(5, 9, 6)
    found = {name: metric_named(name).value(row.as_dict()) for name in ("think_tokens", "answer_tokens")}  # type: ignore[misc]
    assert found == {"think_tokens": 6, "answer_tokens": 3}
    assert value("think_tokens") is None
    assert "thinking" not in make_row("c").as_dict()["tokens"]


@pytest.mark.parametrize(
    ("votes", "k", "expected"),
    [
        ([("a", False), ("4", True), ("4", True)], 3, 1.0),
        ([("a", False), ("a", False), ("4", True)], 3, 0.0),
        ([("a", False), ("4", True)], 2, 0.5),
        ([("a", False), ("b", False), ("4", True)], 3, 1 / 3),
        ([("a", False), ("4", True), ("4", True), ("a", False), ("a", False)], 1, 0.4),
        ([("4", True), ("four", True), ("a", False), ("a", False), ("4", True)], 2, 0.5),
    ],
)
def test_majority_at_k_is_the_expected_share_of_passing_majorities(
    votes: list[tuple[str, bool]], k: int, expected: float
) -> None:
    assert majority_at_k(votes, k) == pytest.approx(expected)


def test_majority_at_k_above_the_number_of_repeats_is_refused() -> None:
    with pytest.raises(ValueError, match="k must be in"):
        majority_at_k([("a", True)], 2)
    assert metric_named("majority@3").name == "majority_at_3"
    with pytest.raises(UsageError):
        metric_named("majority_3")


def test_the_vote_of_a_number_check_is_the_last_number_or_the_text() -> None:
    number = [{"kind": "number"}]
    assert vote_of("<think>7</think> It is 1,234 or 5.0.", number) == vote_of("5", number) == "5"
    assert vote_of("So 1/4.", number) != vote_of("So 3/4.", number) == vote_of("It is 0.75", number)
    assert vote_of("−5", number) == vote_of("= -5.00", number) != vote_of("5", number)
    assert vote_of("12 345", number) == "12 345"
    assert vote_of(" Paris. ", []) == vote_of("paris", [])
    assert vote_of("nothing", number) == "nothing"


@pytest.mark.parametrize(
    ("kind", "replies", "other"),
    [
        (
            "letter",
            ["The bird flies, so the answer is B.", "(B)", "<think>A</think> I say: **B**", "\\boxed{B}"],
            "Answer: C",
        ),
        ("boxed", ["so \\boxed{\\frac{1}{2}}", "\\boxed{ \\dfrac12 }", "\\boxed{0.5}"], "\\boxed{\\frac{3}{2}}"),
        ("math", ["\\boxed{x + 1}", "then \\boxed{x+1}"], "\\boxed{y+1}"),
        ("math", ["It is 7", "7.0"], "8"),
    ],
)
def test_the_vote_is_the_answer_that_the_check_reads(kind: str, replies: list[str], other: str) -> None:
    (vote,) = {vote_of(reply, [{"kind": "contains"}, {"kind": kind}]) for reply in replies}
    assert vote_of(other, [{"kind": kind}]) != vote


def test_the_vote_of_an_unclear_answer_is_its_text() -> None:
    assert vote_of("A or B", [{"kind": "letter"}]) == "a or b"
    assert vote_of("\\boxed{1,2}", [{"kind": "boxed"}]) == "1,2"


def test_majority_of_a_conversation_differs_from_pass_at_k() -> None:
    def row(repeat: int, reply: str, passed: bool) -> Any:
        check = CheckResult("number", 4, passed, float(passed))
        return replace(make_row("c", reply=reply), repeat=repeat, checks=(check,))

    rows = tabulate([row(0, "It is 4.", True), row(1, "5", False), row(2, "It is 5", False)])
    assert conversation_values(rows, metric_named("majority_at_3"))["c"] == 0.0
    assert conversation_values(rows, metric_named("pass_at_3"))["c"] == 1.0
