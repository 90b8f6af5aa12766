"""Intervals of means of clusters: discrete ones, and skewed ones with Hall's transformation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, multinomial, skew, t

from rwkvbatch.stats.clustered import clustered_mean
from rwkvbatch.stats.family import Difference, compare_family
from rwkvbatch.stats.sample_size import detectable_errors
from rwkvbatch.stats.skewness import SkewedMean
from rwkvbatch.stats.spread import Spread, unlimited_interval, with_lacked_skewness

SKEWED = np.array([-0.9, -0.7, -0.65, -0.6, -0.5, -0.4, -0.35, -0.2, 0.1, 2.4])


def spread(values: np.ndarray, widest: float = math.inf) -> Spread:
    return Spread.of(values, np.ones_like(values), widest)


def one(values: np.ndarray, widest: float = math.inf) -> Difference:
    column = values[:, None]
    return compare_family(column, np.ones_like(column), widest=widest).differences[0]


def test_the_p_value_is_that_of_halls_formula() -> None:
    values = SKEWED[:-1] + 0.12
    found, n = spread(values), values.size
    shown = float(skew(values, bias=False))
    gamma = shown * shown**2 / (shown**2 + 0.25) * (1 + 140 / n**2)
    assert 0.02 < abs(gamma) / math.sqrt(n) < 0.96 / t.ppf(0.975, n - 1)
    statistic = values.mean() / (values.std(ddof=1) / math.sqrt(n))
    transformed = (
        statistic + gamma * statistic**2 / (3 * math.sqrt(n)) + gamma**2 * statistic**3 / (27 * n)
        + gamma / (6 * math.sqrt(n))
    )  # fmt: skip
    assert 0.05 < found.skewed.p_value == pytest.approx(2 * t.cdf(transformed, n - 1))


@pytest.mark.parametrize("level", [0.05, 0.02, 0.004, 1e-6])
@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("lacked", [(1.7, 1.7), (0.8, 2.5)])
def test_small_levels_allow_for_more_skewness_than_the_sample_has_at_both_ends(
    level: float, side: int, lacked: tuple[float, float]
) -> None:
    values = np.array([-1.3, -0.9, -0.4, -0.3, 0.1, 0.2, 0.3, 0.4, 0.8, 1.6])
    found, n = replace(spread(values), lacked=lacked), values.size
    seen = side * float(skew(values, bias=False))
    s = max(0.0, seen + (1 - level / 0.05) * lacked[side > 0] / math.sqrt(n))
    quantile = t.ppf(1 - level / 2, n - 1)
    limit = 0.985 - (0.985 - 0.96) * level / 0.05
    a = min(limit / quantile, s**3 / (s**2 + 0.25) * (1 + 140 / n**2) / math.sqrt(n))
    assert (a > 0) == (s > 0)
    errors = 3 / a * (1 - np.cbrt(1 - a * (quantile + a / 6))) if a else 0.0
    end = found.mean + side * errors * found.standard_error
    assert found.skewed.interval(level)[side > 0] == pytest.approx(end)
    if a and level < 0.05:
        assert replace(spread(values - end), lacked=lacked).skewed.p_value == pytest.approx(level)


def test_what_samples_lack_is_the_skewness_of_the_family_less_that_of_normal_samples() -> None:
    rng = np.random.default_rng(1)
    normal, exponential = rng.normal(size=(20, 400)), rng.exponential(size=(20, 400))
    for values, expected in ((normal, (0.0, 0.0)), (exponential, (0.0, 0.65)), (-exponential, (0.65, 0.0))):
        family = with_lacked_skewness([spread(column) for column in values.T])
        skewness = np.maximum(0, skew(exponential, bias=False))
        root = math.sqrt(float((skewness**2).mean()) - 6 / 20) * (1 + 140 / 400)
        assert {each.lacked for each in family} == {family[0].lacked}
        assert family[0].lacked == pytest.approx([share * root**1.5 for share in expected], rel=0.01)


def test_a_sample_alone_lacks_a_moderate_skewness() -> None:
    skewed, discrete = spread(SKEWED), spread(STEPS, widest=1.0)
    assert with_lacked_skewness([skewed, discrete])[0].lacked == skewed.lacked == (1.7, 1.7)
    assert with_lacked_skewness([skewed, skewed])[0].lacked[1] > 1.7


def test_where_some_conversations_are_equal_less_unseen_skewness_is_allowed_for() -> None:
    """The degrees of freedom of those that differ allow for it too; both would make intervals a third wider."""
    levels = [SkewedMean(0.0, 1.0, 13, 0.3, varying).coefficient(0.01, 1) for varying in (12, 9, 6)]
    shown = [0.3 + 1.7 * (1 - 0.2**share) / math.sqrt(13) for share in (1, 3 / 4, 1 / 2)]
    assert levels == pytest.approx([s**3 / (s**2 + 0.25) * (1 + 140 / 169) / math.sqrt(13) for s in shown])


@pytest.mark.parametrize("clusters", [3, 6, 8, 12, 40, 400])
@pytest.mark.parametrize("skewness", [-1.5, -0.2, 0.0, 0.4, 1.5])
@pytest.mark.parametrize("lacked", [(0.0, 0.0), (1.7, 6.0)])
def test_ends_of_smaller_levels_are_farther_out(clusters: int, skewness: float, lacked: tuple[float, float]) -> None:
    """Else a p-value, which is found between two levels, would not say at which levels the interval excludes 0."""
    for varying in {1, clusters // 2, max(1, clusters - 2), clusters - 1}:
        found = SkewedMean(0.0, 1.0, clusters, skewness, varying, lacked)
        ends = np.array([found.interval(level) for level in np.geomspace(0.5, 1e-13, 400)])
        tolerance = 1e-9 * np.maximum(1, np.abs(ends[1:]))
        assert (np.diff(ends[:, 0]) <= tolerance[:, 0]).all()
        assert (np.diff(ends[:, 1]) >= -tolerance[:, 1]).all()


@pytest.mark.parametrize("level", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_end_of_the_long_tail_is_the_mean_that_has_just_this_p_value(level: float, sign: int) -> None:
    low, high = spread(sign * SKEWED).skewed.interval(level)
    end = high if sign > 0 else low
    assert (low if sign > 0 else high) == pytest.approx(sign * SKEWED.mean())
    assert spread(sign * SKEWED - end).skewed.p_value == pytest.approx(level)


def test_only_the_end_of_the_long_tail_moves_out() -> None:
    skewed = one(SKEWED, widest=3.0)
    flips = np.sort(np.array([SKEWED[np.array(list(f"{code:010b}")) == "1"].mean() for code in range(1, 1024)]))
    skipped = math.floor(0.05 * 1024 / 2) - 1
    assert skewed.low == pytest.approx(flips[skipped])
    assert skewed.high > flips[-1 - skipped] + 0.1
    assert one(STEPS, widest=1.0).p < one(STEPS).p


def test_an_extreme_conversation_on_the_side_of_the_mean_does_not_hide_a_difference() -> None:
    values = np.array([0.1, 0.11, 0.12, 0.13, 0.14, 40.0])
    assert spread(values).skewed.p_value < 1e-3
    assert one(values).p == pytest.approx(2 / 64)


STEPS = np.array([-1.0, -1.0, -0.5, -0.5, -0.5, 0.0, 0.5, -0.5, 0.0, 1.0])


def test_discrete_means_keep_the_exact_test() -> None:
    found = spread(STEPS, widest=1.0)
    assert (found.discrete, found.skewness, found.skewed.p_value) == (True, 0.0, 0.0)
    assert spread(STEPS).skewness > 0


@pytest.mark.parametrize(
    ("values", "discrete"),
    [
        ([0.11, -0.12, 0.13, 0.14, -0.15, 0.16], True),  # five that differ, and a tie
        ([0.0, 0.0, 0.0, 0.11, -0.2, 0.3, 0.4, -0.5, 0.6], False),
        ([0.0, 0.0, 0.0, 0.1, -0.2, 0.3, 0.4, -0.5, 0.6], True),  # averages of 10 outcomes
        ([0.0, 0.0, 0.0, 0.1, -0.2, 0.3, 0.4, -0.55, 0.6], True),  # of 20
        ([0.0, 0.0, 0.0, 0.1, -0.2, 0.3, 0.4, -0.55, 2 / 3], False),  # of 60
        ([0.0, 0.0, 0.0, 0.1, -0.2, 0.3, 0.4, -0.5, 0.5], True),
        ([0.0, 0.0, 0.0, 0.0, 0.1, -0.2, 0.3, 0.4, -0.5], True),
    ],
)
def test_means_that_repeat_or_are_few_are_discrete(values: list[float], discrete: bool) -> None:
    if values[0]:
        values[1] = -values[0]
    assert spread(np.array(values), widest=1.0).discrete == discrete
    assert not spread(np.array(values)).discrete


@pytest.mark.parametrize("scale", [1e-2, 1e-5, 1e-8, 1e-12])
def test_tiny_differences_are_no_averages_of_outcomes(scale: float) -> None:
    """The interval is in proportion to the differences, however small they are beside the limits of the metric."""
    draws = np.random.default_rng(0).exponential(size=30)
    found, expected = one(draws * scale, widest=1.0), one(draws)
    assert (found.low, found.high) == pytest.approx((expected.low * scale, expected.high * scale), rel=1e-6)
    assert 0.3 < expected.low < draws.mean() < expected.high < 2.5


@pytest.mark.parametrize(
    ("least", "discrete"),
    [
        (0.05, True),  # one of 20 outcomes
        (0.0, True),
        (0.1 + 0.2 - 0.3, True),  # 0 but for rounding
        (1e-9, False),
        (0.02, False),
    ],
)
def test_an_average_is_0_or_has_at_least_one_outcome(least: float, discrete: bool) -> None:
    values = np.array([0.1, -0.2, 0.3, 0.4, -0.5, 0.6, least])
    assert spread(values, widest=1.0).discrete == discrete
    assert Spread.of(values * 2, np.full(7, 2.0), 1.0).discrete == discrete


@pytest.mark.parametrize("of", ["normal", "exponential"])
def test_intervals_of_small_differences_of_a_metric_with_limits_hold_the_mean_and_are_short(of: str) -> None:
    """As discrete means they would be 0.3 wide, and hold 0.955 of normal means and 0.902 of exponential ones."""
    rng = np.random.default_rng(3)
    draws = rng.normal(0.0, 0.05, (12, 400)) if of == "normal" else rng.exponential(0.05, (12, 400)) - 0.05
    found = [
        each for block in np.array_split(draws, 4, axis=1)
        for each in compare_family(block, np.ones_like(block), widest=1.0).differences
    ]  # fmt: skip
    assert np.mean([each.low_alone <= 0 <= each.high_alone for each in found]) == pytest.approx(0.95, abs=0.02)
    assert np.mean([each.high_alone - each.low_alone for each in found]) < 0.12


def test_equal_clusters_have_no_skewness() -> None:
    found = spread(np.full(9, 0.3))
    assert (found.skewness, found.ties, found.skewed.interval(0.05)) == (0.0, True, (found.mean, found.mean))


def test_more_skewness_than_the_transformation_bears_counts_as_the_most_that_it_does() -> None:
    far, farther = (spread(np.append(np.zeros(11) + np.arange(11) / 100, tail)) for tail in (50.0, 5000.0))
    degrees = 11
    a = 0.96 / t.ppf(0.975, degrees)  # less than 0.9 + 0.75 / 12
    for found in (far, farther):
        end = found.mean + 3 / a * (math.cbrt(a * (t.ppf(0.975, degrees) + a / 6) - 1) + 1) * found.standard_error
        assert found.skewed.interval(0.05) == (found.mean, pytest.approx(end))


def coverage_of_skewed_means(conversations: int) -> tuple[float, float]:
    """Shares of 800 lognormal samples whose intervals, of differences and of a mean by itself, hold the mean."""
    rng = np.random.default_rng(conversations)
    held = np.zeros(2)
    for _ in range(800):
        values = rng.lognormal(0.0, 1.0, conversations) - math.exp(0.5)
        low, high = unlimited_interval(values, np.arange(conversations))
        found = one(values)
        held += [found.low <= 0 <= found.high, low <= 0 <= high]
    return float(held[0] / 800), float(held[1] / 800)


def test_intervals_hold_means_of_strongly_skewed_numbers() -> None:
    """Without the correction, 0.85 of the samples; the standard error of a share is 0.008."""
    assert all(0.94 <= share <= 0.96 for share in coverage_of_skewed_means(12))


@pytest.mark.parametrize(("conversations", "samples"), [(6, 900), (8, 900), (12, 240)])
def test_a_detectable_difference_of_numbers_without_limits_is_found_in_about_80_of_100_samples(
    conversations: int, samples: int
) -> None:
    """By t alone the difference would be smaller, and found in 0.55, 0.60 and 0.69; standard errors up to 0.026."""
    truth = detectable_errors(conversations, discrete=False) / math.sqrt(conversations)
    values = np.random.default_rng(1).normal(truth, 1.0, (conversations, samples))
    found = compare_family(values, np.ones_like(values)).differences
    assert np.mean([each.p <= 0.05 for each in found]) == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize(("conversations", "variants"), [(8, 5), (12, 2), (20, 8)])
def test_a_detectable_difference_of_several_variants_is_found_in_about_80_of_100_samples(
    conversations: int, variants: int
) -> None:
    """As for one variant it would be found in 0.53, 0.74 and 0.68."""
    level = 1 - 0.95 ** (1 / variants)
    truth = detectable_errors(conversations, level=level, discrete=False) / math.sqrt(conversations)
    values = np.random.default_rng(1).normal(truth, 1.0, (conversations, variants * 120))
    families = [compare_family(block, np.ones_like(block)) for block in np.split(values, 120, axis=1)]
    found = np.mean([each.significant for family in families for each in family.differences])
    assert 0.76 <= found <= 0.85


MOSTLY_EQUAL = np.array([0.0] * 9 + [0.7, -0.2, 1.6])


@pytest.mark.parametrize("usual", [0.0, 0.5])
@pytest.mark.parametrize("level", [0.05, 0.00625])
def test_where_most_conversations_are_equal_the_others_are_the_degrees_of_freedom(usual: float, level: float) -> None:
    values = MOSTLY_EQUAL + usual
    found, error = spread(values), values.std(ddof=1) / math.sqrt(12)
    assert (found.varying, found.degrees) == (3, 3)
    assert found.skewed.degrees(level) == (11 if level == 0.05 else 3)
    low, high = found.t_interval(level)
    assert high == pytest.approx(values.mean() + t.ppf(1 - level / 2, 3) * error)
    whole = compare_family(values[:, None], np.ones((12, 1)), level=level).differences[0]
    assert whole.low <= max(low, found.smallest_step)
    assert whole.high == pytest.approx(max(high, found.skewed.interval(level)[1]))


def test_the_degrees_of_freedom_are_those_of_all_conversations_where_no_two_are_equal() -> None:
    found = spread(SKEWED)
    assert (found.varying, found.degrees, found.skewed.degrees(0.001)) == (10, 9, 9)
    assert spread(np.append(SKEWED, SKEWED[0])).varying == 9


def test_the_correction_for_skewness_has_five_degrees_of_freedom_for_each_that_differs() -> None:
    found = spread(np.array([0.5, 0.6, 0.55, -1.0] + [0.0] * 36))
    a, statistic = -found.skewed.coefficient(0.05, -1), found.mean / found.standard_error
    assert a < 0 < statistic
    assert [found.skewed.degrees(level) for level in (0.001, 0.02, 0.05, 0.2)] == [4, 8, 20, 39]
    assert found.skewed.p_value == pytest.approx(2 * t.cdf(-(((1 + a * statistic / 3) ** 3 - 1) / a + a / 6), 20))
    end = found.mean - 3 / a * (np.cbrt(1 + a * (t.ppf(0.975, 20) - a / 6)) - 1) * found.standard_error
    assert found.skewed.interval(0.05)[0] == pytest.approx(end)


@pytest.mark.parametrize("sign", [1, -1])
def test_equal_differences_of_a_metric_without_limits_do_not_show_how_others_differ(sign: int) -> None:
    values = np.full(8, 0.5) * sign
    found = one(values)
    near, far = sorted((found.low, found.high), key=abs)
    assert (found.p, near, far) == (2 / 2**8, pytest.approx(sign * 0.5 / 8), sign * math.inf)
    assert 0.5 <= max(abs(one(values, widest=1.0).low), abs(one(values, widest=1.0).high)) <= 1


def test_intervals_of_numbers_of_which_a_tenth_differ_hold_the_mean() -> None:
    """With the degrees of freedom of all conversations they hold it in 0.90 of the samples."""
    rng = np.random.default_rng(2)
    held: list[bool] = []
    for _ in range(1500):
        values = np.where(rng.random(12) < 0.1, rng.normal(1, 1, 12), 0.0)
        if values.any():
            found = one(values)
            held.append(found.low <= 0.1 <= found.high)
    assert 0.955 <= np.mean(held) <= 0.985


def test_a_single_mean_has_the_degrees_of_freedom_of_the_conversations_that_differ() -> None:
    """As the lengths of replies of which most end at one limit."""
    values = 256 - 100 * MOSTLY_EQUAL
    half = t.ppf(0.975, 3) * values.std(ddof=1) / math.sqrt(12)
    low, high = unlimited_interval(values, np.arange(12))
    assert high == pytest.approx(values.mean() + half)
    assert low <= values.mean() - half + 1e-9


def test_the_detectable_difference_is_in_the_standard_errors_of_the_sample() -> None:
    expected = detectable_errors(SKEWED.size, discrete=False) * spread(SKEWED).standard_error
    assert one(SKEWED).detectable == pytest.approx(expected)
    assert math.isnan(one(SKEWED[:5]).detectable)


def test_a_difference_is_not_detectable_because_few_conversations_differ_a_little() -> None:
    """Three of 100 that differ by 0.2 cannot be significant; a difference as small as theirs would not be found."""
    found = one(np.array([0.2, -0.2, 0.2] + [0.0] * 97), widest=1.0)
    assert (found.decidable, found.significant) == (True, False)
    assert found.detectable > 0.025


def test_the_interval_of_a_single_mean_is_that_of_t_where_nothing_is_skewed() -> None:
    values, labels = np.array([-2.0, -1.0, -0.5, 0.5, 1.0, 2.0]), np.arange(6)
    assert unlimited_interval(values, labels) == pytest.approx(clustered_mean(values, labels).interval())


def test_the_interval_of_a_single_mean_reaches_out_at_the_long_tail_only() -> None:
    low, high = unlimited_interval(SKEWED, np.arange(SKEWED.size))
    plain = clustered_mean(SKEWED, np.arange(SKEWED.size)).interval()
    assert low == plain[0]
    assert high == pytest.approx(spread(SKEWED).skewed.interval(0.05)[1])
    assert high > plain[1] + 0.5


def test_a_single_mean_weighs_its_values() -> None:
    values, labels, weights = np.array([0.1, 0.4, 3.0, 0.2]), np.array([0, 1, 2, 2]), np.array([1.0, 2.0, 1.0, 3.0])
    repeated = np.repeat(np.arange(4), weights.astype(int))
    assert unlimited_interval(values, labels, weights) == pytest.approx(
        unlimited_interval(values[repeated], labels[repeated])
    )


def enumerated_coverage(conversations: int, gain: float) -> float:
    """Of yes/no outcomes with gains and no losses, by the binomial distribution; equal pairs have the gates' bound."""
    held = 0.0
    for gains in range(conversations + 1):
        found = one(np.array([1.0] * gains + [0.0] * (conversations - gains)), widest=1.0)
        high = 1 - 0.025 ** (1 / conversations) if found.identical else found.high
        held += float(binom.pmf(gains, conversations, gain)) * (found.low <= gain <= high)
    return held


@pytest.mark.parametrize(("conversations", "gain"), [(12, 0.3), (20, 0.19)])
def test_a_sample_without_losses_does_not_rule_them_out(conversations: int, gain: float) -> None:
    assert enumerated_coverage(conversations, gain) >= 0.95


@pytest.mark.parametrize(("gains", "losses"), [(3, 1), (4, 1), (5, 2)])
def test_discrete_means_have_the_interval_of_their_spread(gains: int, losses: int) -> None:
    """Ends of sign flips would be farther out: 1 for four gains and a loss of eight conversations."""
    values = np.array([1.0] * gains + [-1.0] * losses + [0.0] * (8 - gains - losses))
    low, high = spread(values, widest=1.0).tie_interval(0.05)
    found = one(values, widest=1.0)
    assert (found.low_alone, found.high_alone) == (min(low, 0.0), min(high, 1.0))
    assert high < 1


def test_intervals_of_yes_no_outcomes_hold_the_truth_over_all_shares() -> None:
    """Of eight conversations, enumerated: as an exact test allows, 0.981 on average; with ends of flips 0.986."""
    outcomes = [(gains, losses) for gains in range(9) for losses in range(9 - gains)]
    ends: list[tuple[float, float]] = []
    for gains, losses in outcomes:
        found = one(np.array([1.0] * gains + [-1.0] * losses + [0.0] * (8 - gains - losses)), widest=1.0)
        bound = 1 - 0.025 ** (1 / 8)
        ends.append((-bound, bound) if found.identical else (found.low, found.high))
    held: list[float] = []
    for gain in np.arange(0, 1.01, 0.05):
        for loss in np.arange(0, 1.01 - gain, 0.05):
            chances = multinomial.pmf(
                [(g, k, 8 - g - k) for g, k in outcomes], 8, [gain, loss, max(0, 1 - gain - loss)]
            )
            covered = [low - 1e-9 <= gain - loss <= high + 1e-9 for low, high in ends]
            held.append(float(chances[covered].sum()))
    assert min(held) > 0.93
    assert np.mean(held) == pytest.approx(0.981, abs=0.002)


def test_an_end_is_half_way_to_newcombes_where_that_is_farther_out() -> None:
    found = spread(np.array([1.0] * 2 + [0.0] * 18), widest=1.0)
    assert found.gains is not None
    assert found.losses is not None
    assert (found.gains.size, found.losses.size) == (pytest.approx(19), 20)
    newcombe = proportion_interval(found.gains.mean * 19, 19)[1]
    adjusted = found.adjusted_mean + t.ppf(0.975, 21) * found.adjusted_error
    assert newcombe > adjusted + 0.05
    assert found.tie_interval(0.05)[1] == pytest.approx((adjusted + newcombe) / 2)


@pytest.mark.parametrize("level", [0.05, 0.0125])
def test_small_gains_do_not_rule_out_conversations_that_fail_altogether(level: float) -> None:
    """A share of total losses that a sample lacks with a probability of twice the level."""
    values = np.array([0.2, 0.4, 0.2, 0.0, 0.2, 0.2, 0.4, 0.0])
    share = 1 - (2 * level) ** (1 / values.size)
    low, high = spread(values, widest=1.0).tie_interval(level)
    assert low == pytest.approx((1 - share) * values.mean() - share)
    assert high == pytest.approx((1 - share) * values.mean() + share)
    assert spread(-values, widest=1.0).tie_interval(level) == pytest.approx((-high, -low))


def test_averages_of_repetitions_have_shorter_intervals_than_yes_no_outcomes() -> None:
    """The enlarged sample has half a conversation of the usual size of the differences on either side, and one at 0."""
    values = np.array([0.25, -0.25, 0.5, 0.0, 0.25, -0.5, 0.25, 0.0, 0.5, 0.25] * 6)
    found, usual = spread(values, widest=1.0), math.sqrt((5 * 0.25**2 + 3 * 0.5**2) / 8)
    enlarged = np.append(values, [0.0, usual, -usual])
    center = values.sum() / 62
    variance = (((enlarged - center) ** 2) @ [*[1.0] * 61, 0.5, 0.5]) / 61 / 62
    assert (found.adjusted_mean, found.adjusted_error) == (pytest.approx(center), pytest.approx(math.sqrt(variance)))
    low, high = found.tie_interval(0.05)
    assert high - low < 1.05 * 2 * t.ppf(0.975, 59) * found.standard_error


def test_a_significant_interval_begins_at_the_least_that_a_conversation_can_change() -> None:
    """Where the interval of the spread reaches 0. The smallest mean of a subset, here 0.2, may be too far."""
    values = np.array([0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.4, 0.0])
    found = one(values, widest=1.0)
    assert found.p == pytest.approx(2 / 2**7)
    assert (found.low_alone, found.low) == (pytest.approx(0.2 / 8), pytest.approx(0.2 / 8))
    assert one(-values, widest=1.0).high == pytest.approx(-0.2 / 8)


def proportion_interval(successes: float, size: float) -> tuple[float, float]:
    """Wilson's, as the roots of (share - p)^2 = z^2 p (1 - p) / size."""
    z2, share = 3.841458820694124, successes / size
    low, high = np.sort(np.roots([1 + z2 / size, -2 * share - z2 / size, share**2]))
    return float(low), float(high)


def test_clusters_that_cannot_agree_by_chance_have_the_interval_of_the_flips_alone() -> None:
    values = np.array([-0.5, -0.31, -0.1, -0.02, 0.04, 0.13, 0.29, 0.47])
    assert one(values).high == one(values, widest=1.0).high
    assert one(np.append(values, 0.47)).high >= spread(np.append(values, 0.47)).tie_interval(0.05)[1]
