"""Shares of failures in the summary of a run."""

from __future__ import annotations

import pytest

from rwkvbatch.results.row import CheckResult, Logprob, Row, RowTiming, TokenCounts
from rwkvbatch.results.summary import FailureShare, summarize, worst


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
