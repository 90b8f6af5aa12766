"""Shares of failures in the summary of a run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rwkvbatch.results import equal_replies
from rwkvbatch.results.equal_replies import EqualReplies, EqualRepliesCounter
from rwkvbatch.results.row import SCORED, CheckResult, Logprob, Row, RowTiming, TokenCounts
from rwkvbatch.results.summary import FailureShare, percentage, summarize, worst


def row(tags: tuple[str, ...], *outcomes: tuple[str, bool], error: str | None = None) -> Row:
    checks = tuple(CheckResult(kind, "x", passed, float(passed)) for kind, passed in outcomes)
    return Row(
        "a", "cell", 0, 0, 1, tags, "?", "!", (1,), "stop" if error is None else "error", None, TokenCounts(1, 1),
        Logprob(-1.0, -1.0), None, checks, error, RowTiming(0, 0, 0, 0, 0, 0),
    )  # fmt: skip


def test_failures_are_counted_by_tag_and_by_kind_of_check() -> None:
    rows = [
        row(("memory", "short"), ("contains", True), ("regex", False)),
        row(("memory",), ("contains", True)),
        row(("memory",)),
        row(("short",), error="out of memory"),
    ]
    found = summarize(rows, ["cell"], 4)
    assert found.failed_tags == {"memory": FailureShare(1, 2), "short": FailureShare(2, 2)}
    assert found.failed_checks == {"contains": FailureShare(0, 2), "regex": FailureShare(1, 1)}
    assert found.as_dict()["failed_tags"]["short"] == {"failed": 2, "of": 2}


def test_the_order_of_rows_does_not_change_the_summary() -> None:
    rows = [row(("b",), ("regex", False)), row(("a",), ("contains", True))]
    assert summarize(rows, ["cell"], 2).as_dict() == summarize(rows[::-1], ["cell"], 2).as_dict()


@pytest.mark.parametrize("number", [1, 3])
def test_worst_returns_the_largest_shares(number: int) -> None:
    shares = {"a": FailureShare(1, 10), "b": FailureShare(1, 2), "c": FailureShare(0, 9), "d": FailureShare(5, 10)}
    shares |= {"e": FailureShare(1, 20)}
    assert [name for name, _ in worst(shares, number)] == ["d", "b", "a"][:number]


def reply(cell: str, conversation: str, turn: int, repeat: int, text: str, finish_reason: str = "stop") -> Row:
    return replace(
        row(()), cell=cell, conversation=conversation, turn=turn, repeat=repeat, reply=text, finish_reason=finish_reason
    )


def test_equal_replies_are_counted_among_repetitions_and_with_the_first_cell() -> None:
    rows = [
        *(reply("a", "x", 0, repeat, "yes") for repeat in range(3)),
        *(reply("a", "x", 1, repeat, text) for repeat, text in enumerate(["1", "1", "2"])),
        reply("a", "y", 0, 0, "alone"),
        *(reply("b", "x", 0, repeat, text) for repeat, text in enumerate(["yes", "no", "yes"])),
        reply("b", "x", 1, 0, "2"),
        reply("b", "y", 0, 0, "an error", "error"),
        reply("b", "y", 1, 0, "not in the first cell"),
        reply("b", "z", 0, 0, "a choice", SCORED),
        reply("b", "z", 0, 1, "a choice", SCORED),
    ]
    first, second = (cell.equal_replies for cell in summarize(rows[::-1], ["a", "b"], len(rows)).cells)
    assert (first.repeats, first.first_cell) == (EqualReplies(1, 2), EqualReplies(0, 0))
    assert (second.repeats, second.first_cell) == (EqualReplies(0, 1), EqualReplies(2, 4))


def test_of_many_replies_those_of_some_conversations_are_compared_whatever_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(equal_replies, "MAX_REPLIES", 100)
    rows = [reply(cell, f"c{n}", 0, repeat, str(n)) for n in range(400) for cell in "ab" for repeat in range(2)]
    counts = []
    for ordered in (rows, rows[::-1], rows[1::2] + rows[::2]):
        counter = EqualRepliesCounter("ab")
        for each in ordered:
            counter.add(each)
        counts.append(counter.result())
    assert counts[0] == counts[1] == counts[2]
    repeats, first_cell = counts[0]["b"].repeats, counts[0]["b"].first_cell
    assert repeats.equal == repeats.compared
    assert first_cell.equal == first_cell.compared == 2 * repeats.compared
    assert 10 <= repeats.compared <= 25  # four replies each


@pytest.mark.parametrize(
    ("equal", "compared", "nearly_all"), [(9, 10, True), (8, 10, False), (9, 9, False), (18, 20, True), (17, 20, False)]
)
def test_nine_in_ten_of_at_least_ten_are_nearly_all(equal: int, compared: int, nearly_all: bool) -> None:
    assert EqualReplies(equal, compared).nearly_all is nearly_all


def test_the_mean_log_probability_is_of_the_tokens_of_the_same_rows() -> None:
    good = replace(row(()), tokens=TokenCounts(1, 10), logprob=Logprob(mean=-0.5, sum=-5.0))
    failed = replace(row((), error="out of memory"), tokens=TokenCounts(1, 30), logprob=Logprob(mean=-2.0, sum=-60.0))
    (found,) = summarize([good, failed], ["cell"], 2).cells
    assert (found.logprob_mean, found.reply_tokens) == (-0.5, 40)
    (found,) = summarize([failed], ["cell"], 1).cells
    assert found.logprob_mean is None


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 9, "0%"), (9, 9, "100%"), (1, 2, "50%"), (249, 250, "99.6%"), (1, 250, "0.4%"), (99_999, 10**5, "99.999%")],
)
def test_a_percentage_is_0_or_100_only_where_the_share_is(part: int, whole: int, text: str) -> None:
    assert percentage(part, whole) == text
