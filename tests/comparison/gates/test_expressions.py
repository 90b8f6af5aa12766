"""Gates: the expression language, its errors, significance, and reasons for failure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from rwkvbatch.comparison.gates.evaluation import judge
from rwkvbatch.comparison.gates.parsing import parse_gate
from rwkvbatch.comparison.gates.results import GateResult
from rwkvbatch.comparison.gates.scopes import Column, GateScope
from rwkvbatch.comparison.pairing.matching import Dropped
from rwkvbatch.errors import UsageError

NAN = float("nan")


def scope(variant: Mapping[str, list[float]], baseline: Mapping[str, list[float]] | None = None) -> GateScope:
    """A scope in which each number is of its own conversation."""

    def column(metric: str, of_baseline: bool, tag: str | None) -> Column:
        del tag
        side = (baseline or {}) if of_baseline else variant
        values = np.array(side.get(metric, [NAN] * len(next(iter(variant.values())))))
        return Column(values, np.arange(values.size), np.zeros(values.size, dtype=np.int64))

    return GateScope("new", None if baseline is None else "old", column, dropped=(Dropped("new"), Dropped("old")))


def outcome(
    text: str, variant: Mapping[str, list[float]], baseline: Mapping[str, list[float]] | None = None
) -> GateResult:
    (result,) = judge([parse_gate(text)], [scope(variant, baseline)])
    return result


@pytest.mark.parametrize(
    ("text", "failed"),
    [
        ("score < baseline - 0.02", True),
        ("score < baseline - 0.2", False),
        ("score < 0.8 * baseline", False),
        ("score >= baseline", False),
        ("baseline > score", True),
        ("score - baseline < -0.05", True),
        ("-score > -0.6", True),
        ("score < (baseline + 0.1) / 2", False),
        ("score + 1 * 2 > 2.5", True),
        ("p50(score) < median(baseline.score)", True),
        ("mean(score) < baseline", True),
        ("max(score) <= 99e-2", True),
        ("min(score) > min(baseline.score)", False),
    ],
)
def test_a_gate_fails_where_its_condition_holds(text: str, failed: bool) -> None:
    assert outcome(text, {"score": [0.2, 0.5, 0.95]}, {"score": [0.3, 0.6, 0.98]}).failed == failed


def test_percentiles_are_those_of_numpy() -> None:
    values = list(np.random.default_rng(0).gamma(2, size=50))
    result = outcome("p95(first_token_s) > 2 * baseline", {"first_token_s": values}, {"first_token_s": [1.0] * 50})
    assert result.left == pytest.approx(np.percentile(values, 95))
    assert result.right == 2.0


def test_perplexity_is_the_exponential_of_the_mean() -> None:
    assert outcome("perplexity > 1", {"perplexity": [1.0, 3.0]}).left == pytest.approx(np.exp(2.0))


def test_a_gate_on_a_single_run_compares_with_a_number() -> None:
    assert outcome("score < 0.8", {"score": [0.5, 0.9]}).failed


def test_a_significant_gate_does_not_fail_by_noise() -> None:
    rng = np.random.default_rng(1)
    baseline = list(rng.normal(0.5, 0.2, 12))
    noisy = [value - 0.01 + rng.normal(0, 0.3) for value in baseline]
    plain = outcome("score < baseline + 0.9", {"score": noisy}, {"score": baseline})
    assert plain.failed
    worse = [value - 0.3 + rng.normal(0, 0.02) for value in baseline]
    assert not outcome("score < baseline - 0.29 significantly", {"score": worse}, {"score": baseline}).failed
    assert outcome("score < baseline significantly", {"score": worse}, {"score": baseline}).failed


def test_the_line_of_a_significant_gate_has_the_interval_and_p() -> None:
    rng = np.random.default_rng(1)
    baseline = list(rng.normal(0.5, 0.1, 12))
    better, worse = ([value + step + rng.normal(0, 0.02) for value in baseline] for step in (0.3, -0.3))
    noisy = [value - 0.01 + (0.3 if number % 2 else -0.3) for number, value in enumerate(baseline)]
    gate = "score < baseline significantly"
    lines = [outcome(gate, {"score": side}, {"score": baseline}).line for side in (better, worse, noisy)]
    assert [line[:6] for line in lines] == ["passed", "FAILED", "passed"]
    assert ["not significant" in line for line in lines] == [False, False, True]
    assert all(", difference from it " in line and ", p = " in line for line in lines)


def test_a_significant_gate_tests_the_margin_and_not_the_difference() -> None:
    rng = np.random.default_rng(2)
    baseline = [2.0 + 0.1 * value for value in rng.normal(size=20)]
    variant = [1.04 * value + 0.002 * rng.normal() for value in baseline]
    sides = {"nll": variant}, {"nll": baseline}
    assert outcome("nll > baseline significantly", *sides).failed
    assert not outcome("nll > 1.05 * baseline significantly", *sides).failed


def test_significant_gates_are_corrected_for_the_number_of_variants() -> None:
    rng = np.random.default_rng(3)
    scopes = [scope({"nll": list(rng.normal(size=10))}, {"nll": list(rng.normal(size=10))}) for _ in range(5)]
    results = judge([parse_gate("nll > baseline significantly")], scopes)
    (alone,) = judge([parse_gate("nll > baseline significantly")], scopes[:1])
    assert results[0].p_adjusted > alone.p_adjusted
    assert results[0].high - results[0].low > alone.high - alone.low


@pytest.mark.parametrize(
    ("text", "problem", "column"),
    [
        ("scor < 1", "no metric is called 'scor'", 0),
        ("score < ", "expected a number", 7),
        ("score 1", "expected one of < <= > >=", 6),
        ("avg(score) < 1", "no statistic is called 'avg'", 0),
        ("score < baseline + nll", "write baseline.METRIC", 8),
        ("p95(baseline) < 2", "write p95", 4),
        ("1 < 2", "must name a metric", 0),
        ("score == 1", "unexpected character '='", 6),
        ("score < 1 && nll > 2", "unexpected character '&'", 10),
        ("(score < 1", "expected )", 7),
        ("score < 1 2", "expected the end", 10),
        ("__import__('os') < 1", "unexpected character", 11),
        ("", "expected a number", 0),
        ("score[memory < 1", "unexpected character '['", 5),
        ("score[] < 1", "unexpected character '['", 5),
        ('score["\\q"] < 1', "not a JSON string", 5),
        ("[memory] < 1", "expected a number", 0),
        ("score[a][b] < 1", "expected one of < <= > >=", 8),
        ("mean(score)[a] < 1", "expected one of < <= > >=", 11),
        ("errors[memory] > 3", "errors is counted over all turns and has no tag", 6),
        ("score[a] + score[b] < baseline", "needs exactly one metric in the gate, found score[a] and score[b]", 22),
        ("baseline[a] < 1", "found no metric", 0),
    ],
)
def test_an_invalid_expression_is_refused_with_a_caret_at_the_problem(text: str, problem: str, column: int) -> None:
    with pytest.raises(UsageError) as caught:
        parse_gate(text)
    message, shown, caret = caught.value.message.split("\n")
    assert problem in message
    assert shown.strip() == text.strip()
    assert caret.index("^") - 4 == column


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("score[a b] < 0.9", [("score", "mean", False, "a b")]),
        ('score[ "x ] \\" y" ] < 0.9', [("score", "mean", False, 'x ] " y')]),
        ("score[gap-2] < baseline - 0.02", [("score", "mean", False, "gap-2"), ("score", "mean", True, "gap-2")]),
        ("score < baseline[a]", [("score", "mean", False, None), ("score", "mean", True, "a")]),
        ("score[a] < baseline[b]", [("score", "mean", False, "a"), ("score", "mean", True, "b")]),
        ("p95(tokens[a]) < baseline", [("tokens", "p95", False, "a"), ("tokens", "p95", True, "a")]),
        ("nll[a] > max(baseline.nll[a])", [("nll", "mean", False, "a"), ("nll", "max", True, "a")]),
        (
            "score[a] - baseline[a] < score[b] - baseline[b]",
            [("score", "mean", of_baseline, tag) for tag in "ab" for of_baseline in (False, True)],
        ),
    ],
)
def test_a_metric_and_the_baseline_can_have_a_tag(text: str, values: list[tuple[str, str, bool, str | None]]) -> None:
    assert [(v.metric, v.statistic, v.of_baseline, v.tag) for v in parse_gate(text).values] == values


@pytest.mark.parametrize("text", ["score[a] < baseline[b]", "score[a] < score", "score < baseline[a]"])
def test_significance_is_defined_for_one_tag(text: str) -> None:
    with pytest.raises(UsageError, match="significance is defined only"):
        parse_gate(f"{text} significantly")
    assert parse_gate(text).form is None
    assert parse_gate("score[a] < baseline - 0.1 significantly").form is not None


def test_a_very_long_expression_is_refused() -> None:
    with pytest.raises(UsageError, match="at most 500 characters"):
        parse_gate("(" * 600 + "score" + ")" * 600 + " < 1")


@given(st.text(max_size=60))
def test_any_text_is_a_gate_or_a_usage_error(text: str) -> None:
    with suppress(UsageError):
        assert parse_gate(text).values


def test_a_gate_on_a_missing_baseline_is_refused() -> None:
    with pytest.raises(UsageError, match="only one variant"):
        outcome("score < baseline", {"score": [1.0]})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("score < 0.5", "new has no score"),
        ("nll / (nll - nll) > 1", "divides by zero"),
        ("nll > 1e308 * 10 - 1e308 * 10", "side overflows"),
    ],
)
def test_a_gate_without_a_number_fails_with_the_reason(text: str, reason: str) -> None:
    result = outcome(text, {"nll": [1.0, 2.0]})
    assert result.failed
    assert reason in result.reason
    assert result.line.startswith(f"FAILED: fail-if {text}: new could not be judged: ")


@pytest.mark.parametrize(
    "text",
    [
        "p95(nll) > baseline", "nll * nll > 1", "perplexity > 2", "first_token_s > 2 * baseline", "errors > 0",
        "nll / nll > 1", "nll / 0 > 1", "score - score > 0", "score + pass_at_2 > 1",
    ],
)  # fmt: skip
def test_significance_of_an_expression_without_a_test_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="significance is defined only"):
        parse_gate(f"{text} significantly")
    with pytest.raises(UsageError, match="significance is defined only"):
        parse_gate(text, significantly=True)


def test_the_line_of_a_gate_has_both_sides() -> None:
    assert outcome("score < 0.8", {"score": [0.5]}).line == "FAILED: fail-if score < 0.8: new has 0.5"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("(" * 499, id="open parentheses"),
        pytest.param("score < " + "(" * 240 + "1" + ")" * 240, id="balanced parentheses"),
        pytest.param("score < " + "-" * 490 + "1", id="signs"),
        pytest.param("score < " + "-(" * 100 + "1" + ")" * 100, id="both"),
    ],
)
def test_nesting_has_a_limit(text: str) -> None:
    with pytest.raises(UsageError, match="nested more than 50 deep"):
        parse_gate(text)


def test_nesting_up_to_the_limit_and_long_sums_are_judged() -> None:
    nested = "score < " + "(" * 50 + "1" + ")" * 50 + " + (" + "-" * 49 + "0)"
    assert outcome(nested, {"score": [0.5]}).failed
    assert outcome("nll < baseline" + "+1" * 240, {"nll": [0.5]}, {"nll": [0.0]}).right == 240


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("score > 90", "never holds: score is in [0, 1]"),
        ("score < 90", "always holds: score is in [0, 1]"),
        ("score < baseline - 2", "never holds: score is in [0, 1]"),
        ("2 * score[memory] + 1 > 3 significantly", "never holds: score is in [0, 1]"),
        ("pass_at_2 < 0", "never holds: pass_at_2 is in [0, 1]"),
        ("error_rate > 2", "never holds: error_rate is in [0, 1]"),
        ("errors < 0", "never holds: errors is at least 0"),
        ("perplexity < 0.5", "never holds: perplexity is at least 1"),
        ("score + tokens < 0", "never holds: score is in [0, 1], tokens is at least 0"),
        ("logprob > 1", "never holds: logprob is in [-inf, 0]"),
    ],
)
def test_a_condition_that_the_ranges_of_metrics_decide_is_refused(text: str, message: str) -> None:
    for option in ("--fail-if", "--fail-unless"):
        with pytest.raises(UsageError) as raised:
            parse_gate(text, option)
        assert message in str(raised.value)


@pytest.mark.parametrize(
    "text", ["score > 0", "score < 1", "score < baseline - 0.999", "nll > 1e9", "score / tokens > 9"]
)
def test_a_condition_that_some_values_meet_is_accepted(text: str) -> None:
    assert parse_gate(text).values


@pytest.mark.parametrize("number", ["1e999", "9" * 400, "٣", "1_000"])
def test_numbers_out_of_range_or_in_other_notations_are_refused(number: str) -> None:
    with pytest.raises(UsageError, match="--fail-if"):
        parse_gate(f"score < {number}")


def test_a_perplexity_beyond_all_numbers_is_infinite() -> None:
    assert outcome("perplexity > 10", {"perplexity": [800.0]}).failed


MANY = 40


@pytest.mark.parametrize(
    ("text", "failed"),
    [
        ("baseline.score > 0.3 significantly", True),
        ("baseline.score > 0.6 significantly", False),
        ("(score - baseline) / 2 > 0.1 significantly", True),
        ("(score - baseline) / 2 > 0.19 significantly", False),
        ("score - baseline.score + matched - baseline.matched > 0.1 significantly", True),
    ],
)
def test_any_linear_form_can_be_significant(text: str, failed: bool) -> None:
    variant = {"score": [0.9] * MANY, "matched": [0.5] * MANY}
    baseline = {"score": [0.5] * MANY, "matched": [0.5] * MANY}
    result = outcome(text, variant, baseline)
    assert (result.failed, result.reason) == (failed, "")


@pytest.mark.parametrize(
    "text", ["bits_per_byte - 0.5 * nll < 0", "-(0.5 * nll) + bits_per_byte < 0", "score < 0.1 * nll", "text_nll > nll"]
)
def test_significance_of_means_with_different_weights_is_refused(text: str) -> None:
    assert not parse_gate(text).significantly
    with pytest.raises(UsageError, match="average turns with different weights") as info:
        parse_gate(f"{text} significantly")
    assert info.value.hint == "remove `significantly`, or write a gate for each of them"


@pytest.mark.parametrize(
    ("text", "with_baseline"),
    [
        ("score - acc < 0.3", False),
        ("score - acc < 0.3", True),
        ("acc - score > -0.3", True),
        ("score - baseline.acc < 0.3", True),
    ],
)
def test_a_significant_gate_on_means_over_different_turns_cannot_be_judged(text: str, with_baseline: bool) -> None:
    """On the turns with both metrics alone, the difference is significantly on one side; the printed one is not."""
    num_both = 24
    score = [0.2] * num_both + [1.0] * 40
    acc = [0.5] * num_both + [NAN] * 40
    numbers = {"score": score, "acc": acc}
    result = outcome(f"{text} significantly", numbers, numbers if with_baseline else None)
    assert result.failed
    assert math.isnan(result.low)
    assert result.reason.startswith("cannot be judged: ")
    assert all(f"over {count}" in result.reason for count in (64, 24))
    both = {name: side[:num_both] for name, side in numbers.items()}
    assert not outcome(f"{text} significantly", both, both if with_baseline else None).reason


VALUES = st.sampled_from([0.0, 0.5, 1.0, *[0.25] * 9, None]) | st.floats(0, 1)


@given(
    st.lists(st.tuples(*[VALUES] * 4), min_size=2, max_size=20),
    st.sampled_from(["score", "baseline.score", "score - baseline.score", "score - acc", "score + baseline.acc",
                     "score - 0.5 * baseline.score", "score - acc - baseline.score", "nll - baseline.nll",
                     "nll - 2 * baseline.nll", "2 * nll"]),
    st.sampled_from(["<", "<=", ">", ">="]),
    st.floats(-2, 2),
    st.booleans(),
    st.lists(st.integers(1, 5), min_size=20, max_size=20),
)  # fmt: skip
def test_a_significant_gate_judges_the_number_that_it_prints(
    rows: list[tuple[float | None, ...]], left: str, comparator: str, right: float, several: bool, weights: list[int]
) -> None:
    numbers = np.array([[NAN if value is None else value for value in row] for row in rows])
    columns = {("score", False): 0, ("acc", False): 1, ("nll", False): 0}
    columns |= {("score", True): 2, ("acc", True): 3, ("nll", True): 2}

    def column(metric: str, of_baseline: bool, tag: str | None) -> Column:
        del tag
        conversations = np.arange(len(rows)) // (2 if several else 1)
        weight = np.array(weights[: len(rows)], dtype=float) if metric == "nll" else None
        return Column(numbers[:, columns[metric, of_baseline]], conversations, np.zeros_like(conversations), weight)

    pair = GateScope("new", "old", column, dropped=(Dropped("new"), Dropped("old")))
    try:
        gate = parse_gate(f"{left} {comparator} {right!r} significantly", "--fail-unless")
    except UsageError:
        reject()  # the ranges of the metrics decide it
    (result,) = judge([gate], [pair])
    if not math.isnan(result.low):
        assert result.low - 1e-9 <= result.left - result.right <= result.high + 1e-9
    assert result.holds or not result.shown
    assert result.holds or result.failed


@pytest.mark.parametrize("conversations", [6, 12, MANY])
@pytest.mark.parametrize("metric", ["score", "nll"])
def test_a_gate_on_a_baseline_equals_one_on_a_variant_with_the_same_values(metric: str, conversations: int) -> None:
    """By sign flips, six conversations that all score 0.5 would show a mean above 0.49."""
    rng = np.random.default_rng(conversations)
    for values in ([0.5] * conversations, list(rng.uniform(0.4, 0.8, conversations))):
        for limit in (0.1, 0.49, 0.55):
            baseline = outcome(
                f"baseline.{metric} > {limit} significantly", {metric: [1.0] * conversations}, {metric: values}
            )
            alone = outcome(f"{metric} > {limit} significantly", {metric: values})
            assert (baseline.failed, baseline.reason) == (alone.failed, alone.reason)
            assert (baseline.low, baseline.high) == pytest.approx((alone.low, alone.high), nan_ok=True)
    assert not outcome("baseline.score > 0.49 significantly", {"score": [1.0] * MANY}, {"score": [0.5] * MANY}).failed


@pytest.mark.parametrize("text", ["nll > 0.49", "nll < 9", "baseline.nll > 0.49", "baseline.nll < 9"])
@pytest.mark.parametrize("nll", [0.0, 0.5])
def test_equal_values_of_an_unbounded_metric_cannot_be_judged(text: str, nll: float) -> None:
    numbers = {"nll": [nll] * MANY}
    result = outcome(f"{text} significantly", numbers, numbers if "baseline" in text else None)
    assert result.failed
    assert "all conversations have the same value" in result.reason


@pytest.mark.parametrize(("conversations", "failed"), [(6, True), (MANY, True), (200, False)])
def test_a_share_of_the_baseline_needs_as_many_conversations_as_a_margin(conversations: int, failed: bool) -> None:
    """If all pass on both sides, of 40 conversations a share of 9 % may still fail; of 200 at most 1.8 %."""
    numbers = {"score": [1.0] * conversations}
    for condition in ("0.95 * baseline", "baseline - 0.05"):
        (result,) = judge(
            [parse_gate(f"score >= {condition} significantly", "--fail-unless")], [scope(numbers, numbers)]
        )
        assert result.failed == failed, result.line
        assert not failed or "equal there too" in result.note or conversations == 6


def test_equal_gains_of_few_conversations_are_significant_but_not_their_size() -> None:
    """Six gains of 0.2 show a gain, which may be smaller on average."""
    variant, baseline = {"score": [0.7] * 6}, {"score": [0.5] * 6}
    assert outcome("score > baseline significantly", variant, baseline).failed
    assert not outcome("score > baseline + 0.1 significantly", variant, baseline).failed


def test_the_number_of_conversations_needed_is_the_smallest_that_suffices() -> None:
    (result,) = judge([parse_gate("score > 0.4 significantly", "--fail-unless")], [scope({"score": [0.5] * 8})])
    needed = result.conversations_needed
    assert needed is not None
    assert "if all conversations are equal there too" in result.note
    enough, fewer = (
        outcome("score > 0.4 significantly", {"score": [0.5] * number}).failed for number in (needed, needed - 1)
    )
    assert (enough, fewer) == (True, False)


@pytest.mark.parametrize(
    ("text", "with_baseline", "reason"),
    [
        ("score < 0.5 significantly", False, "new has no score"),
        ("score < baseline significantly", True, "no pair of new and old has score"),
        ("preference < 0.5", False, "preference is of a variant and its baseline, and there is no baseline"),
    ],
)
def test_a_significant_gate_without_numbers_fails_with_the_reason(text: str, with_baseline: bool, reason: str) -> None:
    numbers = {"nll": [1.0] * MANY}
    result = outcome(text, numbers, numbers if with_baseline else None)
    assert (result.failed, result.reason) == (True, f"cannot be judged: {reason}")


@pytest.mark.parametrize(("limit", "failed"), [(1.4, True), (1.6, False)])
def test_an_unbounded_metric_can_be_significant_with_enough_conversations(limit: float, failed: bool) -> None:
    values = [1.5 + 0.001 * (number % 5) for number in range(MANY)]
    assert outcome(f"nll > {limit} significantly", {"nll": values}).failed == failed
    few = outcome("nll > 1.4 significantly", {"nll": values[:1]})
    assert (few.failed, few.reason) == (True, "cannot be judged: 1 conversation cannot show it, whatever the outcome")


def test_variants_with_a_baseline_are_judged_beside_one_without() -> None:
    numbers = {"score": [0.9] * MANY}
    alone, paired = judge(
        [parse_gate("score < baseline - 0.5 significantly")], [scope(numbers), scope(numbers, numbers)]
    )
    assert (alone.failed, alone.reason) == (True, "cannot be judged: there is no baseline")
    assert (paired.failed, paired.reason) == (False, "")
