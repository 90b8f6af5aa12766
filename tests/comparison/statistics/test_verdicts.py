"""Verdicts: intervals, p-values, verdicts and rankings agree in random designs; wording of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from rwkvbatch.comparison import compare
from rwkvbatch.comparison.metrics.declarations import Metric, metric_named
from rwkvbatch.comparison.numbers import difference, interval, number, shown_mean
from rwkvbatch.comparison.pairing.matching import Dropped, MatchedRows
from rwkvbatch.comparison.pairing.pairs import Pair
from rwkvbatch.comparison.runs.data import Variant
from rwkvbatch.comparison.statistics.differences import Comparison, compare_metric
from rwkvbatch.comparison.statistics.means import VariantMean
from rwkvbatch.comparison.statistics.ranking import Ranking, rank_values
from rwkvbatch.comparison.values.all_variants import VariantValues
from rwkvbatch.comparison.wording import correction, directions, left_out, power, sample_size_text, verdict
from rwkvbatch.stats.family import compare_family
from tests.comparison.make_run import make_run


@dataclass(frozen=True)
class Design:
    """Random numbers of `rows` `[n, variants]`, NaN where a variant lacks a row; the first one is the baseline."""

    metric: Metric
    rows: NDArray[np.float64]
    conversations: NDArray[np.int64]
    margin: float | None


def designs(count: int, seed: int) -> Iterator[Design]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        clusters = int(rng.integers(1, 9)) if rng.random() < 0.99 else int(rng.integers(9, 30))
        variants, rows_each = int(rng.integers(2, 7)), int(rng.integers(1, 4))
        conversations = np.repeat(np.arange(clusters), rows_each)
        shape = (conversations.size, variants)
        effect = rng.choice([0.0, 0.0, 0.5, 1.0], size=variants) * rng.choice([-1, 1], size=variants)
        kind = rng.integers(5)
        if kind == 0:
            metric, rows = metric_named("score"), (rng.random(shape) < 0.5 + 0.45 * effect).astype(float)
        elif kind == 1:
            metric, rows = metric_named("nll"), np.abs(2 + effect + 0.3 * rng.standard_t(1.5, size=shape))
        elif kind == 2:
            metric, rows = metric_named("tokens"), np.round(20 + 9 * effect + rng.normal(size=shape))
        elif kind == 3:
            changed = rng.random(shape) < 0.3
            metric, rows = metric_named("nll"), 2 + np.where(changed, effect + 0.3 * rng.normal(size=shape), 0.0)
        else:
            base = rng.integers(0, 3, size=(conversations.size, 1)) / 2
            metric, rows = metric_named("score"), np.clip(base + 0.5 * effect * (rng.random(shape) < 0.4), 0, 1)
        if rng.random() < 0.3:
            rows[rng.random(shape) < 0.2] = np.nan
        yield Design(metric, rows, conversations, [None, 0.05, 0.6][int(rng.integers(3))])


def variants_of(design: Design) -> list[Variant]:
    return [Variant("run", f"v{number}", f"v{number}") for number in range(design.rows.shape[1])]


def matched_rows(design: Design, *, as_table: bool = False) -> list[MatchedRows]:
    variants = variants_of(design)
    name = design.metric.column
    baseline, *others = (pd.Series(values) for values in design.rows.T)
    conversations = pd.Series(design.conversations)
    return [
        MatchedRows(Pair(variants[0], variant), rows, 0, 0, 0)  # pyright: ignore[reportArgumentType]
        for variant, values in zip(variants[1:], others, strict=True)
        for columns in ({f"{name}_a": baseline, f"{name}_b": values, "conversation_code": conversations},)
        for rows in (pd.DataFrame(columns) if as_table else columns,)
    ]


def analysed(design: Design, *, as_table: bool = False) -> tuple[list[Comparison], Ranking | None]:
    """The lines and the ranking of a design.

    Args:
        as_table: give the matched rows as a table. Without it they are columns only, because tables take a third of the
            time of an analysis; `test_columns_and_tables_have_the_same_lines` compares both.
    """
    variants = variants_of(design)
    lines, family = compare_metric(design.metric, matched_rows(design, as_table=as_table), margin=design.margin)
    assert family.size <= len(lines)
    if not design.metric.ranked or len(variants) < 3 or np.isnan(design.rows).all(axis=0).any():
        return lines, None
    zeros = np.zeros(design.conversations.size, dtype=np.int64)
    values = VariantValues(design.metric, design.rows, design.conversations, zeros, int(design.conversations.max()) + 1)
    return lines, rank_values(variants, values, lines)[0]


def check_line(line: Comparison) -> None:
    if not line.num_values:
        assert line.verdict == "too little data"
        return
    assert line.significant == (line.p_adjusted <= line.level)
    assert line.p <= line.p_adjusted
    assert line.low <= line.low_alone <= line.difference <= line.high_alone <= line.high
    assert -line.metric.widest <= line.low
    assert line.high <= line.metric.widest
    up = line.low > 0
    expected = {"better": up == (line.metric.better == "higher"), "worse": up != (line.metric.better == "higher")}
    match line.verdict:
        case "better" | "worse":
            assert line.significant
            assert expected[line.verdict]
            assert (line.difference > 0) == up
            ends = interval(line).strip("[]").split(", ")
            assert all(float(end) > 0 for end in ends) or all(float(end) < 0 for end in ends)
        case "differs":
            assert line.significant
            assert line.metric.better == "none"
        case "equivalent":
            assert line.margin is not None
            assert max(-line.low, line.high) <= line.margin
        case "unclear":
            assert line.p <= line.level < line.p_adjusted
        case "no difference found":
            assert line.p > line.level
        case "identical":
            assert line.wins == line.losses == 0
        case "too little data":
            assert not line.significant
        case "untested":
            raise AssertionError


def check_ranking(ranking: Ranking, lines: list[Comparison]) -> None:
    could_be_best = {candidate.variant: candidate.could_be_best for candidate in ranking.candidates}
    assert ranking.best.could_be_best
    sign = 1 if ranking.metric.better == "higher" else -1
    for other in ranking.indistinguishable:
        assert sign * other.mean <= sign * ranking.best.mean
    for line in lines:
        if line.verdict == "better":
            assert not could_be_best[line.pair.baseline]
        if line.verdict == "worse":
            assert not could_be_best[line.pair.variant]
    beaten_by = {candidate.variant: candidate.beaten_by for candidate in ranking.candidates}
    verdicts = {line.pair.variant: line.verdict for line in lines}
    for variant, rival in beaten_by.items():
        if rival == "v0":
            assert verdicts[variant] == "worse"
        if variant.label == "v0" and rival is not None:
            assert any(line.pair.variant.label == rival and line.verdict == "better" for line in lines)


def check_designs(count: int, seed: int) -> None:
    num_rankings = 0
    for design in designs(count, seed):
        lines, ranking = analysed(design)
        for line in lines:
            check_line(line)
        if ranking is not None:
            num_rankings += 1
            check_ranking(ranking, lines)
    assert num_rankings > count / 4


def test_intervals_verdicts_and_rankings_agree_in_500_random_designs() -> None:
    check_designs(500, seed=1)


@pytest.mark.slow
def test_intervals_verdicts_and_rankings_agree_in_9500_more_random_designs() -> None:
    check_designs(9500, seed=2)


def test_columns_and_tables_have_the_same_lines() -> None:
    for design in designs(50, seed=3):
        (lines, _), (lines_of_columns, _) = analysed(design, as_table=True), analysed(design)
        assert repr(lines) == repr(lines_of_columns)  # NaN is not equal to NaN


def line(**changes: object) -> Comparison:
    """A comparison that is significantly better in score, with `changes`."""
    base = Comparison(
        pair=Pair(Variant("a", "x", "a"), Variant("b", "x", "b")), metric=metric_named("score"), group=None,
        family="score", baseline_mean=0.5, variant_mean=0.6, difference=0.1, standard_error=0.02, low=0.02, high=0.18,
        low_alone=0.05, high_alone=0.15, p=0.001, p_adjusted=0.01, p_rank=0.01, wins=9, ties=1, losses=2,
        detectable=0.1, num_values=12, num_conversations=12, decidable=True, identical=False,
    )  # fmt: skip
    return replace(base, **changes)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "better"),
        ({"metric": metric_named("nll")}, "worse"),
        ({"metric": metric_named("tokens")}, "differs"),
        ({"metric": metric_named("first_token_s")}, "untested"),
        ({"decidable": False}, "too little data"),
        ({"identical": True}, "identical"),
        ({"low": -0.01}, "unclear"),
        ({"low": -0.01, "low_alone": -0.005}, "no difference found"),
        ({"low": -0.01, "low_alone": -0.005, "margin": 0.18}, "equivalent"),
        ({"low": -0.01, "low_alone": -0.005, "margin": 0.17}, "no difference found"),
        ({"low": -0.01, "margin": 0.5}, "equivalent"),
        ({"margin": 0.5}, "better"),
    ],
)
def test_the_verdict_follows_from_the_interval(changes: dict[str, object], verdict: str) -> None:
    assert line(**changes).verdict == verdict


def test_an_end_of_an_interval_that_excludes_zero_is_not_shown_as_zero() -> None:
    assert interval(line(low=0.00004)) == "[+4e-05, +0.180]"
    assert interval(line(low=-0.00004)) == "[0.000, +0.180]"
    assert interval(line(low=-math.inf, high=math.inf)) == "—"


def test_a_difference_that_excludes_zero_is_not_shown_as_zero() -> None:
    assert difference(line(difference=2e-10, low=1e-10, high=3e-10)) == "+2e-10"
    assert difference(line(difference=2e-10, low=-1e-10, high=3e-10)) == "0.000"


def test_huge_numbers_are_shown_with_an_exponent() -> None:
    assert (number(5e98, 3), number(-5e98, 3), number(1e8, 1)) == ("5e+98", "-5e+98", "100000000.0")


def test_a_perplexity_that_overflowed_is_larger_than_every_number_and_an_end_without_limit_infinite() -> None:
    assert number(math.inf, 3) == ">1e308"
    assert difference(line(difference=math.inf, low=math.nan, high=math.nan)) == ">1e308"
    assert interval(line(difference=2.0, low=1.0, high=math.inf)) == "[+1.000, +inf]"
    assert interval(line(low=1e12, high=2.5e98)) == "[+1e+12, +2.5e+98]"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "better"),
        ({"margin": 0.18}, "better, within 0.18"),
        ({"margin": 0.17}, "better"),
        ({"low": -0.01, "margin": 0.18}, "equivalent within 0.18"),
        ({"identical": True, "low": 0.0, "high": 0.0, "margin": 0.18}, "identical"),
        ({"decidable": False, "low": -1.0, "high": 1.0, "margin": 1.0}, "too little data"),
    ],
)
def test_a_verdict_names_the_margin_that_contains_the_interval(changes: dict[str, object], words: str) -> None:
    assert verdict(line(**changes)) == words


@pytest.mark.parametrize(("metric", "outcome"), [("score", "failed"), ("pass_at_2", "failed"), ("nll", "left out")])
def test_turns_with_errors_fail_in_metrics_of_checks_and_are_left_out_of_others(metric: str, outcome: str) -> None:
    dropped = [Dropped("a", errors=2, unreached=1)]
    assert left_out(dropped, metric_named(metric)) == (
        f"Not as planned: 2 turns with an error in a ({outcome}); 1 turn not reached in a ({outcome})."
    )


def test_counts_of_variants_have_no_conversations_and_directions() -> None:
    counts = line(metric=metric_named("errors"), num_conversations=1, num_values=1)
    assert (sample_size_text([counts], (2, 2)), directions(counts)) == ("", "—")


def test_a_disagreeing_signed_rank_test_counts_for_metrics_with_heavy_tails_only() -> None:
    assert not line(p_rank=0.5).rank_disagrees
    assert line(p_rank=0.5, metric=metric_named("nll")).rank_disagrees
    assert not line(p_rank=0.01, metric=metric_named("nll")).rank_disagrees


def test_signed_rank_tests_and_verdicts_beside_large_differences_are_at_one_level() -> None:
    """Differences that Hall's transformation does not reject are tested at the level of intervals."""
    rng = np.random.default_rng(8)
    nll, conversations = metric_named("nll"), np.arange(12)
    between = 0
    for _ in range(60):
        values = rng.normal(0.0, 1.0, (12, 6)) * (np.arange(6) > 0) + np.array([0.0, 0.9, 3.0, 3.0, 3.0, 3.0])
        design = Design(nll, values, conversations, None)
        lines, family = compare_metric(nll, matched_rows(design))
        assert "each interval at" in correction(family, lines)
        for found in lines:
            assert found.significant == (found.p <= found.level_each)
            if not found.significant and family.level_interval < found.p_rank <= family.level_each:
                between += 1
                assert not found.rank_disagrees
    assert between


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("score", 1.0, "1.000"),
        ("score", 1 - 1e-15, "1.000"),
        ("score", 0.9996, "0.9996"),
        ("score", 0.99996, "0.99996"),
        ("score", 0.9994, "0.999"),
        ("score", 0.0004, "0.0004"),
        ("score", 0.00004, "0.00004"),
        ("score", 0.0, "0.000"),
        ("score", math.nan, "—"),
        ("nll", 0.0004, "0.000"),
        ("nll", 0.9996, "1.000"),
    ],
)
def test_a_mean_near_a_limit_is_not_shown_as_the_limit(metric: str, value: float, text: str) -> None:
    assert shown_mean(metric_named(metric), value) == text


def test_ends_of_the_interval_of_a_mean_reach_its_limits_but_do_not_leave_them_out() -> None:
    score = metric_named("score")
    assert interval(VariantMean(score, 0.9997, 0.9996, 0.9999, 40, 20)) == "[0.9996, 1.000]"
    assert interval(VariantMean(score, 0.0003, 0.0001, 0.0004, 40, 20)) == "[0.000, 0.0004]"


def test_equal_pairs_say_from_which_number_of_conversations_a_margin_holds() -> None:
    def equal(conversations: int) -> float:
        """The upper end of the interval of this number of equal pairs."""
        return compare_family(np.zeros((conversations, 1)), np.ones((conversations, 1)), widest=1.0).differences[0].high

    def text(margin: float | None, **changes: object) -> str:
        high = equal(40)
        values = {"identical": True, "num_conversations": 40, "low": -high, "high": high, "margin": margin}
        return power([line(**(values | changes))])

    assert equal(183) <= 0.02 < equal(182)
    assert text(0.02) == "equal pairs show equivalence within 0.02 from 183 conversations on"
    assert equal(40) < 0.09
    assert text(0.09) == text(None) == text(0.02, metric=metric_named("nll")) == ""
    assert text(0.02, identical=False) == "detectable: 0.100"


@pytest.mark.parametrize(("top_p", "is_hinted"), [(0.3, True), (1.0, False)])
def test_equal_scores_are_identical_only_with_equal_replies(tmp_path: Path, top_p: float, is_hinted: bool) -> None:
    settings = {name: {"temperature": number, "top_p": top_p} for number, name in enumerate(("cold", "hot", "wild"))}

    def change(row: dict[str, Any], _: np.random.Generator) -> None:
        row["checks"][0].update(passed=True, score=1.0)
        row["reply"] = "No." if row["cell"] == "wild" and row["conversation"] in ("talk-1", "talk-2") else "Yes."

    path = make_run(tmp_path / "a", cells=list(settings), settings=settings, turns=1, repeats=1, change=change)
    analysis = compare(str(path))
    assert [line.verdict for line in analysis.comparisons] == ["identical", "equal values"]
    assert power(analysis.comparisons) == "equal values, but other replies in 2 of 12 turns of wild"
    assert {record["verdict"] for record in analysis.records()} == {"identical", "equal values"}
    hints = [note for note in analysis.notes if "--top-p 1 keeps all" in note]
    assert [hint.split(" are those")[0] for hint in hints] == (["the replies of hot"] if is_hinted else [])
