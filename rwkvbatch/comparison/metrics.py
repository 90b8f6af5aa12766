"""The metrics, one family a file, in the order in which tables show them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.ngrams import NgramCounts, shares
from rwkvbatch.results.row import weighted_score
from rwkvbatch.stats.precision import all_k_pass, pass_at_k

RawRow = Mapping[str, Any]
"""One line of `results.jsonl` as JSON gave it; the keys are the fields of `rwkvbatch.results.row.Row`."""

Better = Literal["higher", "lower", "none"]
Level = Literal["turn", "conversation"]


@dataclass(frozen=True)
class Metric:
    """One number that a turn (or, with `level` "conversation", a conversation's repeats) can be judged by.

    Attributes:
        name: column name, and the name in a gate's expression.
        title: what a table's reader sees.
        unit: of the number; empty for shares and scores.
        better: which way is better; `none` where that is a matter of taste.
        digits: decimals worth showing.
        of: the number of one row, or None where the row has none; metrics by conversation have none here.
        of_ngrams: the same numbers for many replies at once, NaN for None, where `of` would take long.
        level: what one number belongs to.
        tested: whether a difference gets a p-value and counts in the correction for many tests. Not so for
            timings, whose noise (the machine's load) is not drawn anew for each conversation, nor for what
            only restates another metric.
        exponential: the mean is shown as exp(mean).
        lowest, highest: what the number can be at all (the exponent's, where `exponential`). An interval of a mean
            ends there: the true mean cannot lie beyond.
    """

    name: str
    title: str
    better: Better
    unit: str = ""
    digits: int = 3
    of: Callable[[RawRow], float | None] | None = None
    of_ngrams: Callable[[NgramCounts], NDArray[np.float64]] | None = None
    level: Level = "turn"
    tested: bool = True
    exponential: bool = False
    lowest: float = 0.0
    highest: float = math.inf


def exponential(value: float) -> float:
    """exp(value); infinite where a float has no room for it."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def replied(row: RawRow) -> bool:
    """Whether the row has a reply that numbers can be taken of: its turn did not end in an error."""
    return row["finish_reason"] != "error"


def _score(row: RawRow) -> float | None:
    return weighted_score([(check["score"], check.get("weight", 1.0)) for check in row["checks"]])


def _passed(row: RawRow) -> float | None:
    checks: list[dict[str, Any]] = row["checks"]
    return float(all(check["passed"] for check in checks)) if checks else None


_CHECKS = (
    Metric("score", "score", "higher", of=_score, highest=1.0),
    Metric("passed", "all checks passed", "higher", of=_passed, highest=1.0),
)


def _stopped(row: RawRow) -> float | None:
    return float(row["finish_reason"] in ("stop", "eos")) if replied(row) else None


def _failed(row: RawRow) -> float:
    return float(not replied(row))


_FINISH = (
    Metric("stopped", "ended by itself", "higher", of=_stopped, highest=1.0),
    Metric("failed", "errors", "lower", of=_failed, highest=1.0),
)


def _tokens(row: RawRow) -> float | None:
    return float(row["tokens"]["reply"]) if replied(row) else None


_LENGTH = (Metric("tokens", "reply length", "none", unit="tokens", digits=1, of=_tokens),)


def _logprob(row: RawRow) -> float | None:
    return row["logprob"]["mean"] if replied(row) else None


_LIKELIHOOD = (
    Metric(
        "logprob",
        "own log-probability",
        "none",
        unit="nats/token",
        of=_logprob,
        lowest=-math.inf,
        highest=0.0,
    ),
)


def longest_repeat(ids: Sequence[int]) -> int:
    """The length of the longest run of tokens that occurs twice in `ids`; 0 when all tokens differ."""
    n = 0
    while _occurs_twice(ids, n + 1):  # if a longer one does, so does one of every smaller length
        n += 1
    return n


def _occurs_twice(ids: Sequence[int], n: int) -> bool:
    grams = [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
    return len(set(grams)) < len(grams)


def _loop(row: RawRow) -> float | None:
    ids: list[int] = row["reply_ids"]
    return longest_repeat(ids) / len(ids) if ids else None


def _all_loops(counts: NgramCounts) -> NDArray[np.float64]:
    return shares(counts.longest_repeat, counts.tokens)


_LOOPS = (Metric("loop", "longest repeat", "lower", of=_loop, of_ngrams=_all_loops, highest=1.0),)


def _nll(row: RawRow) -> float | None:
    return None if row["reference"] is None else row["reference"]["nll"]


def _matched(row: RawRow) -> float | None:
    return None if row["reference"] is None else row["reference"]["matched"]


_REFERENCE = (
    Metric("nll", "reference nll", "lower", unit="nats/token", of=_nll),
    Metric("perplexity", "reference perplexity", "lower", of=_nll, tested=False, exponential=True),
    Metric("matched", "reference tokens matched", "higher", of=_matched, highest=1.0),
)


def pass_metrics(k: int) -> tuple[Metric, Metric]:
    """The two metrics for one `k`; their names are `pass_at_K` and `all_K`."""
    return (
        Metric(f"pass_at_{k}", f"pass@{k}", "higher", level="conversation", highest=1.0),
        Metric(f"all_{k}", f"all {k} pass", "higher", level="conversation", highest=1.0),
    )


def pass_values(outcomes: Mapping[str, Sequence[bool]], k: int) -> tuple[dict[str, float], dict[str, float]]:
    """pass@k and all-k by conversation.

    Args:
        outcomes: for each conversation, whether it passed in each of its repeats; those with fewer than `k`
            repeats are left out.
    """
    enough = {name: passed for name, passed in outcomes.items() if len(passed) >= k}
    return (
        {name: pass_at_k(len(passed), sum(passed), k) for name, passed in enough.items()},
        {name: all_k_pass(len(passed), sum(passed), k) for name, passed in enough.items()},
    )


def _first_token_s(row: RawRow) -> float | None:
    return row["timing"]["first_token_s"] if replied(row) else None


def _tokens_per_s(row: RawRow) -> float | None:
    return row["timing"]["tokens_per_s"] if replied(row) else None


_TIMING = (
    Metric("first_token_s", "time to first token", "lower", unit="s", of=_first_token_s, tested=False),
    Metric("tokens_per_s", "speed", "higher", unit="tokens/s", digits=1, of=_tokens_per_s, tested=False),
)


def _distinct_1(row: RawRow) -> float | None:
    ids = row["reply_ids"]
    return len(set(ids)) / len(ids) if ids else None


def _distinct_2(row: RawRow) -> float | None:
    ids = row["reply_ids"]
    return len(set(pairwise(ids))) / (len(ids) - 1) if len(ids) > 1 else None


def _all_distinct_1(counts: NgramCounts) -> NDArray[np.float64]:
    return shares(counts.distinct_1, counts.tokens)


def _all_distinct_2(counts: NgramCounts) -> NDArray[np.float64]:
    return shares(counts.distinct_2, counts.tokens - 1)


_VARIETY = (
    Metric("distinct1", "distinct-1", "none", of=_distinct_1, of_ngrams=_all_distinct_1, highest=1.0),
    Metric("distinct2", "distinct-2", "none", of=_distinct_2, of_ngrams=_all_distinct_2, highest=1.0),
)


TURN_METRICS: Final[tuple[Metric, ...]] = (
    *_CHECKS,
    *_REFERENCE,
    *_FINISH,
    *_LENGTH,
    *_LIKELIHOOD,
    *_VARIETY,
    *_LOOPS,
    *_TIMING,
)
"""All metrics that every single turn has."""

__all__ = ["TURN_METRICS", "Metric", "RawRow", "pass_metrics", "pass_values"]
