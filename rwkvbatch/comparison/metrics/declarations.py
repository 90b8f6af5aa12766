"""The metrics of turns, pairs, conversations and variants, in the order in which tables show them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import comb
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.metrics.ngrams import NgramCounts, shares
from rwkvbatch.errors import UsageError
from rwkvbatch.results.row import SCORED, weighted_score
from rwkvbatch.script.choices import find_choice, probability_among

RawRow = Mapping[str, Any]
"""One line of `results.jsonl` as parsed JSON; the keys are the fields of `rwkvbatch.results.row.Row`."""

Better = Literal["higher", "lower", "none"]
Level = Literal["turn", "pair", "conversation", "variant"]
Part = Literal["any", "finished", "text", "choices", "thinking"]
"""Parts of a row: a plain text that was scored, likelihoods of choices, or a thinking part. All rows have `any`, and
all but those that ended in an error have `finished`; an error row has no other part."""
PARTS: Final[tuple[Part, ...]] = get_args(Part)


def parts_of(row: RawRow) -> list[Part]:
    """The parts that a row has."""
    if row["finish_reason"] == "error":
        return ["any"]
    parts: list[Part] = ["any", "finished"]
    if (reference := row["reference"]) is not None and reference.get("bytes") is not None:
        parts.append("text")
    if row.get("choices") is not None:
        parts.append("choices")
    if row["reply"].startswith("<think") or row["tokens"].get("thinking") is not None:
        parts.append("thinking")
    return parts


@dataclass(frozen=True)
class Metric:
    """One number per turn, per pair of turns, per conversation or per variant (`level`).

    Attributes:
        name: the column's name, and the name in tables, options and gates.
        title: the name in charts; options accept it too.
        better: the better direction; `none` if neither is.
        unit: unit of the values; empty for shares and scores.
        digits: number of decimals shown.
        value: computes the value of one row, None if the row has none. Metrics of pairs, conversations and variants
            have no `value`.
        ngram_values: a batched equivalent of `value` for many replies, with NaN for None.
        part: the part that a row needs for a value; `value` is not called for rows without it. Rows that ended in an
            error have values only of the metrics in which an error counts.
        tested: whether differences get an interval and a p-value. False for timings, whose noise (the machine's load)
            is not independent between conversations, for restatements of another metric, and for counts of a whole
            variant.
        log_of: the metric of which this one is the exponential: the mean of perplexity is exp(mean of nll).
        heavy_tailed: whether a few extreme values can decide the mean; tables then show a disagreeing signed-rank test.
        lowest, highest: range of the values (of those of `log_of`, if set); no interval exceeds it.
        weight: computes the weight of one row in means; None if all rows have equal weight. A perplexity, for example,
            is a mean over all tokens of a variant, so a row counts with its number of tokens.
    """

    name: str
    title: str
    better: Better
    unit: str = ""
    digits: int = 3
    value: Callable[[RawRow], float | None] | None = None
    ngram_values: Callable[[NgramCounts], NDArray[np.float64]] | None = None
    level: Level = "turn"
    tested: bool = True
    log_of: str | None = None
    heavy_tailed: bool = False
    lowest: float = 0.0
    highest: float = math.inf
    weight: Callable[[RawRow], float | None] | None = None
    part: Part = "finished"

    @property
    def weight_column(self) -> str | None:
        """The column of the table of rows with the weights; None if all rows have equal weight."""
        return None if self.weight is None else f"{self.column}_weight"

    @property
    def column(self) -> str:
        """The column of the table of rows whose mean is taken."""
        return self.log_of or self.name

    @property
    def widest(self) -> float:
        """The largest possible difference of two means."""
        return self.highest - self.lowest

    @property
    def ranked(self) -> bool:
        """Whether variants can be ranked by the metric: it is tested, has a better direction, and is not of pairs."""
        return self.tested and self.better != "none" and self.level != "pair"

    def shown(self, mean: float) -> float:
        """A mean of `column` in the metric's own unit."""
        return exponential(mean) if self.log_of else mean


def exponential(value: float) -> float:
    """exp(value); infinite on overflow."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def longest_repeat(ids: Sequence[int]) -> int:
    """The length of the longest n-gram that occurs twice in `ids`; 0 when all tokens differ."""
    n = 0
    while _occurs_twice(ids, n + 1):  # an n-gram that occurs twice contains shorter ones that do
        n += 1
    return n


def _occurs_twice(ids: Sequence[int], n: int) -> bool:
    grams = [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
    return len(set(grams)) < len(grams)


def _score(row: RawRow) -> float | None:
    return weighted_score([(check["score"], check.get("weight", 1.0)) for check in row["checks"]])


def _passed(row: RawRow) -> float | None:
    """1 or 0; None without checks, and None if a judge gave no verdict: then only failures could be counted."""
    checks = row["checks"]
    if not checks or any(check["passed"] is None for check in checks):
        return None
    return float(all(check["passed"] for check in checks))


def _of_reply(value: Callable[[RawRow], float | None]) -> Callable[[RawRow], float | None]:
    """`value`, but None for rows in which texts were only scored."""
    return lambda row: None if row["finish_reason"] == SCORED else value(row)


def _of_reference(name: str) -> Callable[[RawRow], float | None]:
    return lambda row: None if row["reference"] is None else row["reference"][name]


def _plain_text(row: RawRow) -> Mapping[str, Any] | None:
    """The likelihood of a row's plain text (`text`, or `prompt` and `continuation`); None in other rows."""
    reference = row["reference"]
    return None if reference is None or reference.get("bytes") is None else reference


def _of_plain_text(value: Callable[[Mapping[str, Any]], float | None]) -> Callable[[RawRow], float | None]:
    """`value` of a row's plain text; None in other rows."""

    def row_value(row: RawRow) -> float | None:
        text = _plain_text(row)
        return None if text is None else value(text)

    return row_value


def _nll_weight(row: RawRow) -> float | None:
    """The number of tokens of a plain text; 1 for a reference reply of a dialogue; None without either."""
    text = _plain_text(row)
    if text is not None:
        return float(text["tokens"])
    return None if row["reference"] is None else 1.0


def _accuracy(row: RawRow) -> float | None:
    """Whether greedy decoding writes the whole continuation of a prompt; None for texts without a prompt."""
    text = _plain_text(row)
    return float(text["matched"] == 1) if text is not None and row["prompt"] else None


def _right_choice(row: RawRow) -> int | None:
    """The index of the right choice, which the row's first check `choice` names; None without choices or a check."""
    scores, checks = row.get("choices"), [check for check in row["checks"] if check["kind"] == "choice"]
    if scores is None or not checks:
        return None
    try:
        return find_choice([score["name"] for score in scores["scores"]], checks[0]["expected"])
    except KeyError:  # the check was judged again, against other choices
        return None


def _probability(row: RawRow) -> float | None:
    """The probability of the right choice among the choices."""
    right = _right_choice(row)
    return None if right is None else probability_among([score["logprob"] for score in row["choices"]["scores"]], right)


def _choice_accuracy(divisor: str | None) -> Callable[[RawRow], float | None]:
    """Whether the right choice has the highest log-probability, divided by a count of its text if `divisor` is given.

    Of equal choices the first one counts, as in lm-evaluation-harness.
    """

    def is_right(row: RawRow) -> float | None:
        right = _right_choice(row)
        if right is None:
            return None
        values = [score["logprob"] / (score[divisor] if divisor else 1) for score in row["choices"]["scores"]]
        return float(values.index(max(values)) == right)

    return is_right


def _finite_exponential(value: float | None) -> float | None:
    """exp(value); None without a value and on overflow."""
    result = math.inf if value is None else exponential(value)
    return result if result < math.inf else None


def _perplexity(row: RawRow) -> float | None:
    return _finite_exponential(None if row["reference"] is None else row["reference"]["nll"])


def _thinking_tokens(row: RawRow) -> float | None:
    tokens = row["tokens"].get("thinking")
    return None if tokens is None else float(tokens)


def _answer_tokens(row: RawRow) -> float | None:
    thinking = _thinking_tokens(row)
    return None if thinking is None else row["tokens"]["reply"] - thinking


def _share(count: Callable[[Sequence[int]], int], n: int = 1) -> Callable[[RawRow], float | None]:
    """`count` of the reply's tokens, divided by the number of n-grams in the reply; None without any n-gram."""

    def share(row: RawRow) -> float | None:
        ids: Sequence[int] = row["reply_ids"]
        return count(ids) / (len(ids) - n + 1) if len(ids) >= n else None

    return share


TURN_METRICS: Final[tuple[Metric, ...]] = (
    Metric("score", "score", "higher", value=_score, highest=1.0, part="any"),
    Metric("passed", "all checks passed", "higher", value=_passed, highest=1.0, part="any"),
    Metric(
        "nll", "reference nll", "lower", unit="nats/token", value=_of_reference("nll"), heavy_tailed=True,
        weight=_nll_weight,
    ),
    Metric(
        "perplexity", "reference perplexity", "lower", value=_perplexity, tested=False, log_of="nll", weight=_nll_weight
    ),
    Metric(
        "bits_per_byte", "bits per byte", "lower", unit="bits/byte", heavy_tailed=True,
        value=_of_plain_text(lambda text: -text["logprob"] / text["bytes"] / math.log(2)),
        weight=_of_plain_text(lambda text: float(text["bytes"])), part="text",
    ),
    Metric(
        "probability", "probability of the right choice", "higher", value=_probability, highest=1.0, part="choices"
    ),
    *(
        Metric(name, title, "higher", value=_choice_accuracy(divisor), highest=1.0, part="choices")
        for name, title, divisor in (
            ("acc", "right choice is the likeliest", None),
            ("acc_norm", "right choice is the likeliest per character", "characters"),
            ("acc_bytes", "right choice is the likeliest per byte", "bytes"),
        )
    ),
    Metric("accuracy", "continuation is greedy", "higher", value=_accuracy, highest=1.0, part="text"),
    Metric(
        "text_nll", "nll of a whole text", "lower", unit="nats/text", heavy_tailed=True,
        value=_of_plain_text(lambda text: -text["logprob"]), part="text",
    ),
    Metric(
        "text_perplexity", "perplexity of whole texts", "lower", tested=False, log_of="text_nll",
        value=_of_plain_text(lambda text: _finite_exponential(-text["logprob"])), part="text",
    ),
    Metric("matched", "reference tokens matched", "higher", value=_of_reference("matched"), highest=1.0),
    Metric(
        "stopped", "ended by itself", "higher",
        value=_of_reply(lambda row: float(row["finish_reason"] in ("stop", "eos"))), highest=1.0,
    ),
    Metric(
        "truncated", "ended by its length", "lower", highest=1.0,
        value=_of_reply(lambda row: float(row["finish_reason"] == "length")),
    ),
    Metric(
        "think_closed", "thinking has an end", "higher", highest=1.0, part="thinking",
        value=_of_reply(lambda row: float("</think>" in row["reply"]) if row["reply"].startswith("<think") else None),
    ),
    Metric(
        "think_tokens", "length of the thinking part", "none", unit="tokens", digits=1,
        value=_of_reply(_thinking_tokens), part="thinking",
    ),
    Metric(
        "answer_tokens", "length of the answer", "none", unit="tokens", digits=1,
        value=_of_reply(_answer_tokens), part="thinking",
    ),
    Metric(
        "error_rate", "ended in an error or not reached", "lower", highest=1.0, part="any",
        value=lambda row: float(row["finish_reason"] == "error"),
    ),
    Metric(
        "tokens", "reply length", "none", unit="tokens", digits=1,
        value=_of_reply(lambda row: float(row["tokens"]["reply"])),
    ),
    Metric(
        "logprob", "own log-probability", "none", unit="nats/token",
        value=_of_reply(lambda row: row["logprob"]["mean"]), lowest=-math.inf, highest=0.0,
    ),
    Metric(
        "distinct1", "distinct-1", "none", value=_share(lambda ids: len(set(ids))),
        ngram_values=lambda counts: shares(counts.distinct_1, counts.tokens), highest=1.0,
    ),
    Metric(
        "distinct2", "distinct-2", "none", value=_share(lambda ids: len(set(pairwise(ids))), n=2),
        ngram_values=lambda counts: shares(counts.distinct_2, counts.tokens - 1), highest=1.0,
    ),
    Metric(
        "loop", "longest repeat", "lower", value=_share(longest_repeat),
        ngram_values=lambda counts: shares(counts.longest_repeat, counts.tokens), highest=1.0,
    ),
    Metric(
        "first_token_s", "time to first token", "lower", unit="s",
        value=_of_reply(lambda row: row["timing"]["first_token_s"]), tested=False, heavy_tailed=True,
    ),
    Metric(
        "tokens_per_s", "speed", "higher", unit="tokens/s", digits=1,
        value=_of_reply(lambda row: row["timing"]["tokens_per_s"]), tested=False, heavy_tailed=True,
    ),
)  # fmt: skip
"""The metrics of single turns."""

PAIR_METRICS: Final = (Metric("preference", "preferred by the judge", "higher", level="pair", highest=1.0),)
"""The metrics of matched turns; a single variant has none of them."""

VARIANT_METRICS: Final[tuple[Metric, ...]] = tuple(
    Metric(name, title, "lower", digits=0, level="variant", tested=False)
    for name, title in (
        ("errors", "turns that ended in an error"),
        ("unreached", "turns after an error"),
        ("missing", "turns that the other side has"),
        ("unjudged", "turns without a verdict"),
        ("unfinished", "planned turns that have not run yet"),
    )
)
"""Counts of a whole variant: fields of `rwkvbatch.comparison.pairing.matching.Dropped`."""

KNOWN_NAMES: Final = ", ".join(
    (
        *(metric.name for metric in (*TURN_METRICS, *PAIR_METRICS, *VARIANT_METRICS)),
        *("pass_at_K", "all_K", "majority_at_K"),
    )
)
_BY_NAME: Final = {metric.name: metric for metric in (*TURN_METRICS, *PAIR_METRICS, *VARIANT_METRICS)}
ALIASES: Final = {
    **{metric.title: metric.name for metric in (*TURN_METRICS, *PAIR_METRICS) if metric.title != metric.name},
    "failed": "error_rate",
}
"""Accepted titles and other names of metrics, with their names."""
_REPEAT_METRIC: Final = re.compile(
    r"(?:(pass_at_|pass@|majority_at_|majority@)|all_|all )([1-9][0-9]{0,5})(?(1)|(?: pass)?)"
)


def metric_named(name: str, *, option: str = "--metric") -> Metric:
    """The metric with a name or title; an error names the option.

    Names with a number K are `pass_at_K` or `pass@K`, `majority_at_K` or `majority@K`, and `all_K` or `all K pass`.

    Raises:
        UsageError: no metric has that name.
    """
    metric = _BY_NAME.get(ALIASES.get(name, name))
    if metric is not None:
        return metric
    if match := _REPEAT_METRIC.fullmatch(name):
        prefix, k = match.groups()
        if prefix is None:
            return Metric(f"all_{k}", f"all {k} pass", "higher", level="conversation", highest=1.0)
        kind = prefix.partition("_")[0].rstrip("@")
        return Metric(f"{kind}_at_{k}", f"{kind}@{k}", "higher", level="conversation", highest=1.0)
    raise UsageError(f"{option} must be one of {KNOWN_NAMES}; got {name!r}")


def pass_value(metric: str, outcomes: Sequence[bool]) -> float:
    """`pass_at_K` or `all_K` of a conversation from its `outcomes`, one per repeat; NaN with fewer than K repeats."""
    kind, _, k = metric.rpartition("_")
    estimate = pass_at_k if kind == "pass_at" else all_k_pass
    return estimate(len(outcomes), sum(outcomes), int(k)) if len(outcomes) >= int(k) else math.nan


def is_majority(metric: Metric) -> bool:
    """Whether `metric` is a `majority_at_K`."""
    return metric.name.startswith("majority_at_")


def pass_at_k(num_repeats: int, num_passed: int, k: int) -> float:
    """The estimated probability that at least one of `k` repeats passes: 1 - C(n-c, k) / C(n, k).

    Here c of n repeats passed. The estimate is unbiased (Chen et al. 2021, section 2.1).

    Raises:
        ValueError: not 1 <= k <= num_repeats, or not 0 <= num_passed <= num_repeats.
    """
    _check_counts(num_repeats, num_passed, k)
    return 1.0 - comb(num_repeats - num_passed, k) / comb(num_repeats, k)


def all_k_pass(num_repeats: int, num_passed: int, k: int) -> float:
    """The estimated probability that `k` repeats all pass: C(c, k) / C(n, k).

    Raises:
        ValueError: as `pass_at_k`.
    """
    _check_counts(num_repeats, num_passed, k)
    return comb(num_passed, k) / comb(num_repeats, k)


def _check_counts(num_repeats: int, num_passed: int, k: int) -> None:
    if not 1 <= k <= num_repeats:
        raise ValueError(f"k must be in [1, {num_repeats}], the number of repeats; got {k}")
    if not 0 <= num_passed <= num_repeats:
        raise ValueError(f"passed repeats must be in [0, {num_repeats}]; got {num_passed}")
