"""Sign-flip comparisons: exact error rates, and consistency of intervals, p-values and verdicts."""

from __future__ import annotations

import itertools
import math
from math import comb

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import t, wilcoxon

from rwkvbatch.stats.family import Difference, Family, _Variants, compare_family
from rwkvbatch.stats.signflip import (
    EXACT_CLUSTERS,
    LargestSums,
    SignFlips,
    _share_of_largest,
    _standardized,
    better_column,
)


def one(differences: list[float], **options: float) -> Difference:
    column = np.array(differences, dtype=float)[:, None]
    return compare_family(column, np.ones_like(column), **options).differences[0]


def one_of(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> Difference:
    return compare_family(sums, counts, widest=1.0).differences[0]


def test_p_is_the_share_of_all_sign_patterns_as_far_from_zero() -> None:
    values = [0.3, -0.1, 0.7, 0.2, 0.45, -0.3, 0.6]
    far = [
        abs(sum(sign * value for sign, value in zip(signs, values, strict=True))) >= abs(sum(values)) - 1e-12
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    assert one(values, widest=1.0).p == pytest.approx(sum(far) / len(far))


@pytest.mark.parametrize("discordant", range(2, 31))
def test_false_alarms_on_yes_no_outcomes_are_at_most_the_level(discordant: int) -> None:
    """Enumerated: of the conversations that differ at all, each is better or worse with probability one half."""
    alarms = 0.0
    for better in range(discordant // 2 + 1):
        chance = comb(discordant, better) / 2**discordant * (1 if 2 * better == discordant else 2)
        alarms += chance * one([1.0] * better + [-1.0] * (discordant - better), widest=1.0).significant
    assert alarms <= 0.05


@pytest.mark.parametrize("ties", [1, 7, 20])
def test_conversations_without_a_difference_do_not_change_p(ties: int) -> None:
    outcome = [1.0] * 7 + [-1.0] * 2
    assert one(outcome + [0.0] * ties, widest=1.0).p == pytest.approx(one(outcome, widest=1.0).p)


@pytest.mark.parametrize("clusters", [5, 8, 14, 20])
def test_one_more_conversation_for_the_better_is_never_less_significant(clusters: int) -> None:
    for worse in range(3):
        ps = [
            one([1.0] * n + [-1.0] * worse + [0.0] * (clusters - n - worse), widest=1.0).p
            for n in range(worse, clusters - worse)
        ]
        assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(ps))


@pytest.mark.parametrize(("clusters", "steps"), [(6, 3), (8, 2), (10, 1)])
def test_an_improvement_by_one_step_is_never_less_significant(clusters: int, steps: int) -> None:
    """Enumerated: all samples of conversations whose differences are multiples of 1 / `steps`."""
    values = range(-steps, steps + 1)
    p = {
        sample: one([value / steps for value in sample], widest=1.0).p
        for sample in itertools.combinations_with_replacement(values, clusters)
        if sum(sample) >= 0
    }
    for sample, p_before in p.items():
        for place in range(clusters):
            improved = tuple(sorted((*sample[:place], sample[place] + 1, *sample[place + 1 :])))
            assert improved not in p or p[improved] <= p_before


@settings(max_examples=80)
@given(
    st.sampled_from([(repeats, outcomes) for repeats in range(1, 21) for outcomes in range(1, 20 // repeats + 1)]),
    st.integers(6, EXACT_CLUSTERS) | st.integers(14, 17),
    st.data(),
)
def test_an_improvement_of_averages_of_few_is_never_less_significant(
    form: tuple[int, int], clusters: int, data: st.DataObject
) -> None:
    """Also in a family of which all patterns are enumerated, and where conversations lack repetitions."""
    repeats, outcomes = form
    counts = np.array([[float(data.draw(st.integers(1, repeats)))] for _ in range(clusters)])
    sums = np.array([[data.draw(st.integers(-outcomes, outcomes)) * count / outcomes] for count in counts[:, 0]])
    place = data.draw(st.integers(0, clusters - 1))
    improved = sums.copy()
    steps = round((counts[place, 0] - sums[place, 0]) * outcomes)
    improved[place] += data.draw(st.integers(0, steps)) / outcomes
    assume(sums.sum() > 0)
    other = np.random.default_rng(clusters).choice([-1.0, 0.0, 1.0], sums.shape) * counts
    for beside in (np.empty((clusters, 0)), other):
        before, after = (
            compare_family(
                np.hstack([own, beside]), np.hstack([counts, counts[:, : beside.shape[1]]]), widest=1.0
            ).differences[0]
            for own in (sums, improved)
        )
        assert after.p <= before.p
        assert after.p_adjusted <= before.p_adjusted or clusters > EXACT_CLUSTERS
    if clusters < 10:
        flips = np.array(list(itertools.product((1, -1), repeat=clusters))) @ sums[:, 0]
        assert one_of(sums, counts).p == np.mean(np.abs(flips) >= sums.sum() - 1e-9)


def test_drawn_patterns_can_correct_an_improvement_more() -> None:
    """As docs/statistics.md says: p is exact, but which of the drawn patterns have a smaller one changes."""
    steps = np.array([0, 1, 5, 3, 6, -3, 8, 0, 8, 3, 8, -2, 7, 0, 2, 5])
    beside = np.resize([1.0, -1.0], steps.size)
    before, after = (
        compare_family(np.column_stack([own / 8, beside]), np.ones((steps.size, 2)), widest=1.0).differences[0]
        for own in (steps, steps + np.eye(steps.size, dtype=int)[1])
    )
    assert (before.p, after.p) == (176 / 2**15, 168 / 2**15)
    assert after.p < before.p < before.p_adjusted < after.p_adjusted < 2 * after.p


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([0.4, 0.1, 0.8, 0.9, 0.4, 1.0], [0.5, 0.1, 0.8, 0.9, 0.4, 1.0]),
        ([-0.05, 0.8, 0.8, 0.9, 0.5, 0.4, -0.2, 0.7], [-0.05, 1.0, 0.8, 0.9, 0.5, 0.4, -0.2, 0.7]),
    ],
)
def test_a_last_pair_of_equal_sizes_can_improve(before: list[float], after: list[float]) -> None:
    """Averages of 10 or 20 outcomes that all have different sizes are discrete like others."""
    flips = np.array(list(itertools.product((1, -1), repeat=len(after)))) @ np.array(after)
    assert one(after, widest=1.0).p == np.mean(np.abs(flips) >= sum(after) - 1e-9)
    assert one(after, widest=1.0).p <= one(before, widest=1.0).p


@pytest.mark.parametrize("smallest", [7, 11, 19])
def test_averages_have_an_exact_tail_whatever_the_smallest(smallest: int) -> None:
    """16 conversations whose differences are multiples of 1 / 20: a convolution counts all patterns."""
    steps = np.array([*range(smallest, 21), *[20] * 16])[:16] * np.resize([1, 1, 1, -1], 16)
    shares = np.ones(1)
    for step in np.abs(steps):
        shares = np.convolve(shares, np.bincount([0, 2 * step], minlength=2 * step + 1) / 2)
    sums = np.arange(shares.size) - (shares.size - 1) // 2
    p = shares[np.abs(sums) >= abs(steps.sum())].sum()
    assert one((steps / 20).tolist(), widest=1.0).p == pytest.approx(p, rel=1e-9)


def test_an_improvement_of_other_numbers_can_be_less_significant() -> None:
    """As docs/statistics.md says: the t statistic falls, and the sample has a longer tail on the side of 0."""
    assert one([9.0, 1.0, 2.0, 8.0, 1.0, 6.0]).p == 2 / 2**6
    assert one([9.0, 1.0, 7.0, 8.0, 1.0, 6.0]).p == pytest.approx(0.0787, abs=0.0001)


@pytest.mark.parametrize("outcome", [[0.0] * 5, [1.0, 1.0, 1.0, 0.0, 0.0]])
def test_where_nothing_can_be_decided_the_interval_is_the_whole_range(outcome: list[float]) -> None:
    found = one(outcome, widest=1.0)
    assert (found.low, found.high, found.low_alone, found.high_alone) == (-1.0, 1.0, -1.0, 1.0)
    assert math.isnan(found.detectable)


def test_five_conversations_cannot_decide_and_six_can() -> None:
    five, six = one([1.0] * 5, widest=1.0), one([1.0] * 6, widest=1.0)
    assert (five.p, five.decidable, five.significant) == (0.0625, False, False)
    assert (six.p, six.decidable, six.significant) == (0.03125, True, True)
    assert (five.low, five.high) == (-1.0, 1.0)
    assert 0 < six.low < 0.5
    assert six.high == 1.0


@pytest.mark.parametrize(("clusters", "decidable"), [(6, False), (7, True)])
def test_where_a_family_leaves_nothing_to_find_nothing_is_decidable_or_detectable(
    clusters: int, decidable: bool
) -> None:
    """With two variants, 6 conversations that are all worse have an adjusted p-value of 2 * 2 / 2^6."""
    values = np.random.default_rng(0).normal(size=(clusters, 2))
    values[:, 0] = 1 + np.abs(values[:, 0])
    found = compare_family(values, np.ones_like(values)).differences[0]
    assert (found.decidable, found.significant) == (decidable, decidable)
    assert math.isnan(found.detectable) != decidable
    assert math.isfinite(found.high) == decidable
    assert found.low_alone > 0


def test_pairs_that_are_all_equal_are_identical_and_do_not_count() -> None:
    rng = np.random.default_rng(1)
    real = rng.normal(0.4, 1, size=(40, 1))
    nothing = np.zeros((40, 6))
    alone = compare_family(real, np.ones_like(real))
    among = compare_family(np.hstack([real, nothing]), np.ones((40, 7)))
    assert among.differences[0] == alone.differences[0]
    assert all(d.identical and d.p == 1 and not d.significant for d in among.differences[1:])
    assert all((d.low, d.high) == (-math.inf, math.inf) for d in among.differences[1:])


@pytest.mark.parametrize("variants", [1, 3])
def test_equal_pairs_leave_what_a_sample_may_lack_at_either_end(variants: int) -> None:
    """Clopper and Pearson: 1 - (0.05 / variants / 2) ** (1 / 20) of other conversations may differ by the range."""
    for found in compare_family(np.zeros((20, variants)), np.ones((20, variants)), widest=2.0).differences:
        assert found.high == pytest.approx(2 * (1 - (0.025 / variants) ** (1 / 20)))
        assert found.high_alone == pytest.approx(2 * (1 - 0.025 ** (1 / 20)))
        assert (found.low, found.low_alone, found.significant) == (-found.high, -found.high_alone, False)


@settings(max_examples=150)
@given(
    clusters=st.integers(1, 26),
    variants=st.integers(1, 6),
    kind=st.sampled_from(["yes/no", "heavy", "shifted", "mostly equal"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_interval_p_and_family_agree(clusters: int, variants: int, kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 4, size=(clusters, variants)).astype(float)
    if kind == "yes/no":
        sums = rng.binomial(counts.astype(int), 0.6) - rng.binomial(counts.astype(int), 0.4)
    elif kind == "heavy":
        sums = rng.standard_t(1.5, size=counts.shape) * counts
    else:
        sums = rng.normal(0.4, 1, size=counts.shape) * counts
        if kind == "mostly equal":
            sums *= rng.random(counts.shape) < 0.3
    widest = 1.0 if kind == "yes/no" else math.inf
    family = compare_family(sums, counts, widest=widest)
    for found in family.differences:
        if not found.pairs:
            assert math.isnan(found.mean)
            continue
        assert found.significant == (found.p_adjusted <= family.level)
        assert found.p <= found.p_adjusted
        assert found.low <= found.low_alone <= found.mean <= found.high_alone <= found.high
        assert -widest <= found.low
        assert found.high <= widest
        assert not found.significant or found.p <= family.level
        assert found.significant == (found.p <= found.level_each)


def test_a_family_of_correlated_variants_is_corrected_less_than_by_their_number() -> None:
    rng = np.random.default_rng(2)
    shared = rng.normal(size=(60, 1))
    family = compare_family(shared + 0.05 * rng.normal(size=(60, 10)), np.ones((60, 10)))
    independent = compare_family(rng.normal(size=(60, 10)), np.ones((60, 10)))
    assert family.level_each > 3 * independent.level_each
    assert 0.004 < independent.level_each < 0.007


def test_ranks_give_the_signed_rank_test() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(0.4, 1, size=12)
    assert one(list(values)).p_rank == pytest.approx(float(wilcoxon(values, method="exact").pvalue), abs=1e-9)


def test_the_result_does_not_depend_on_the_unit() -> None:
    rng = np.random.default_rng(4)
    values = list(rng.normal(0.3, 1, size=20))
    small, large = one(values), one([value * 1e6 for value in values])
    assert (small.p, small.significant) == (large.p, large.significant)
    assert large.low == pytest.approx(small.low * 1e6)


@pytest.mark.parametrize(("sums", "counts"), [([[1.0]], [[1.0], [1.0]]), ([[math.nan]], [[1.0]]), ([[1.0]], [[-1.0]])])
def test_arrays_that_do_not_fit_are_refused(sums: list[list[float]], counts: list[list[float]]) -> None:
    with pytest.raises(ValueError, match=r"shape|finite|negative"):
        compare_family(sums, counts)


def test_drawn_patterns_and_exact_tails_come_to_one_conclusion() -> None:
    """Two variants with six conversations each that differ, among 14: the exact p is below the drawn ones."""
    sums = np.zeros((14, 2))
    sums[:6, 0] = sums[6:12, 1] = 1.0
    for found in compare_family(sums, np.ones_like(sums), widest=1.0).differences:
        assert found.significant == (found.p_adjusted <= 0.05)


def test_a_family_larger_than_a_block_is_what_it_is_in_one() -> None:
    rng = np.random.default_rng(5)
    sums = rng.normal(0.3, 1, size=(8, 150))
    whole = compare_family(sums, np.ones_like(sums))
    turned = compare_family(sums[:, ::-1], np.ones_like(sums))
    assert whole.level_each == turned.level_each
    assert repr(whole.differences) == repr(turned.differences[::-1])  # NaN is not equal to NaN


@pytest.mark.parametrize("equal", ["none", "some", "nearly", "constant"])
def test_the_order_of_skewed_variants_does_not_matter(equal: str) -> None:
    rng = np.random.default_rng(5)
    counts = np.where(np.arange(12)[:, None] < np.arange(41) % 4 + 9, 1.0, 0.0)
    sums = (rng.gamma(4.0, size=(12, 41)) - 3.0) * counts
    if equal == "constant":
        sums[:, 1::3] = 2.0 * counts[:, 1::3]
    elif equal != "none":
        counts[:, ::4] = counts[:, :1]
        sums[:, ::4] = sums[:, :1]
        if equal == "nearly":
            sums[:, ::4] *= 1 + 1e-13 * rng.normal(size=sums[:, ::4].shape)
    whole = np.array(compare_family(sums, counts).differences)
    for _ in range(4):
        order = rng.permutation(41)
        turned = compare_family(sums[:, order], counts[:, order])
        assert repr(list(turned.differences)) == repr(whole[order].tolist())  # NaN is not equal to NaN


@pytest.mark.parametrize("clusters", [8, 10, 20])
def test_p_before_the_correction_is_that_of_a_comparison_alone(clusters: int) -> None:
    rng = np.random.default_rng(clusters + 100)
    own = rng.normal(0.8, 1.0, (clusters, 1))
    for others in (rng.normal(size=(clusters, 3)), 4 - rng.lognormal(sigma=2.0, size=(clusters, 4))):
        beside = compare_family(np.hstack([own, others]), np.ones((clusters, 1 + others.shape[1]))).differences[0]
        alone = compare_family(own, np.ones_like(own)).differences[0]
        assert beside.p == pytest.approx(alone.p, rel=1e-9)
        assert (beside.low_alone, beside.high_alone) == pytest.approx((alone.low_alone, alone.high_alone), rel=1e-9)


@pytest.mark.parametrize("clusters", [8, 10, 20])
def test_another_variant_makes_no_corrected_p_value_smaller(clusters: int) -> None:
    """A symmetric one shows that the family is less skewed than one sample alone may be."""
    rng = np.random.default_rng(clusters)
    for _ in range(60):
        values = rng.normal(0.8, 1.0, (clusters, 2))
        alone = one(values[:, 0].tolist())
        beside = compare_family(values, np.ones_like(values)).differences[0]
        assert beside.p_adjusted >= alone.p_adjusted
        assert beside.significant == (beside.low > 0 or beside.high < 0)


@pytest.mark.parametrize("few", [1, 3, 5])
def test_variants_of_too_few_conversations_do_not_count_in_the_correction(few: int) -> None:
    """Five conversations are never significant, so that their intervals have no ends and hold every difference."""
    rng = np.random.default_rng(few)
    own = rng.normal(0.8, 1.0, (14, 2))
    sums, counts = rng.normal(size=(14, 22)), np.zeros((14, 22))
    sums[:, :2], counts[:, :2], counts[:few] = own, 1.0, 1.0
    sums[:, 21] = 0.0
    beside, alone = compare_family(sums * counts, counts), compare_family(own, np.ones_like(own))
    assert beside.differences[:2] == alone.differences
    assert (beside.level_each, beside.level_interval) == (alone.level_each, alone.level_interval)
    for found in beside.differences[2:21]:
        assert (found.low, found.high, found.decidable) == (-math.inf, math.inf, False)
        assert found.p_adjusted >= found.p > 0.05


def largest_mean_p(sums: np.ndarray) -> tuple[float, int]:
    """The p-value and the column of `better_column`, without its shortcuts."""
    standardized, index = _standardized(sums)
    if not index.size:
        return 1.0, 0
    return _share_of_largest(standardized), int(index[standardized.sum(axis=0).argmax()])


def test_one_sided_p_of_the_largest_mean_is_exact_for_one_column() -> None:
    values = np.array([0.3, -0.1, 0.7, 0.2, 0.45, -0.25, 0.6])[:, None]
    signs = np.array(list(itertools.product((1, -1), repeat=7)))
    expected = float((signs @ values >= values.sum() - 1e-9).mean())
    assert largest_mean_p(values) == (pytest.approx(expected), 0)
    assert largest_mean_p(np.hstack([-values, values, 0 * values]))[1] == 1
    assert largest_mean_p(-values)[0] > 0.5
    assert largest_mean_p(np.zeros((4, 2))) == (1.0, 0)


def test_the_better_column_is_the_one_that_the_largest_mean_names() -> None:
    rng = np.random.default_rng(9)
    decided = {True: 0, False: 0}
    for number in range(300):
        shape = (int(rng.integers(2, 20)), int(rng.integers(1, 12)))
        sums = rng.normal(rng.choice([0.0, 0.5, 1.5]), 1.0, shape) * (rng.random(shape) < 0.8)
        p, best = largest_mean_p(sums)
        found = better_column(sums, 0.025)
        assert found == (best if p <= 0.025 else None), number
        decided[found is None] += 1
    assert min(decided.values()) > 60


def test_the_bound_of_a_better_column_is_not_below_its_p_value() -> None:
    """Equal differences have the largest sums that there are: with 9 of them p is 2^-9, and the bound exp(-9 / 2)."""
    for conversations in range(1, 14):
        sums = np.ones((conversations, 1))
        assert (better_column(sums, 0.025) is None) == (largest_mean_p(sums)[0] > 0.025)


@pytest.mark.parametrize("sums", [np.zeros((3, 0)), np.array([[np.nan]])])
def test_sums_of_no_column_or_no_number_are_refused(sums: np.ndarray) -> None:
    with pytest.raises(ValueError, match="sums must be"):
        better_column(sums, 0.025)


def test_variants_that_seldom_differ_are_not_too_little_data() -> None:
    """Three of 38 conversations differ: nothing is significant, and the interval is that of 38 conversations."""
    sums = np.zeros((38, 2))
    sums[[0, 1, 2], 0] = sums[[3, 4, 5], 1] = -1.0
    family = compare_family(sums, np.ones_like(sums), widest=1.0)
    for found in family.differences:
        assert found.decidable
        assert not found.significant
        assert -0.3 < found.low < found.mean < 0 <= found.high < 0.1
    assert family.level_each >= 0.025


@pytest.mark.parametrize("clusters", [9, 40, 700])
def test_sums_of_flips_do_not_depend_on_how_the_patterns_are_cut(
    clusters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rwkvbatch.stats.signflip.DRAWN_PATTERNS", 1998)
    values = np.random.default_rng(clusters).normal(size=(clusters, 3))
    flips = SignFlips(clusters)
    half = flips.flipped.astype(float) @ values
    for product in (0, 2**15, 2**19):
        monkeypatch.setattr("rwkvbatch.stats.signflip._SMALL_PRODUCT", product)
        sums = flips.subset_sums(values)
        assert sums[: len(half)] == pytest.approx(half, abs=1e-11)
        assert sums[len(half) :] == pytest.approx(values.sum(axis=0) - half, abs=1e-11)


def test_simultaneous_intervals_of_yes_no_outcomes_hold_all_true_differences_together() -> None:
    """p-values of few conversations that differ take few values: tests need hardly any correction, intervals do."""
    rng = np.random.default_rng(1)
    held = []
    for _ in range(200):
        passes = rng.random((12, 1)) < 0.5
        chances = rng.random((12, 8))
        differences = np.where(passes, -1.0 * (chances < 0.1), 1.0 * (chances < 0.6))
        family = compare_family(differences, np.ones_like(differences), widest=1.0)
        assert 0.05 / 8 <= family.level_interval <= family.level_each
        held.append(all(found.low <= 0.25 <= found.high or found.identical for found in family.differences))
    assert np.mean(held) >= 0.95


def test_simultaneous_intervals_of_mostly_equal_numbers_hold_all_true_differences_together() -> None:
    """With the degrees of freedom of all conversations they hold them in 0.72 of the samples."""
    rng = np.random.default_rng(1)
    held: list[bool] = []
    for _ in range(400):
        differences = np.where(rng.random((12, 8)) < 0.3, rng.normal(1, 1, (12, 8)), 0.0)
        family = compare_family(differences, np.ones_like(differences))
        held.append(all(found.low <= 0.3 <= found.high for found in family.differences))
    assert 0.93 <= np.mean(held) <= 0.98


@pytest.mark.parametrize("difference", [0.0, 3.0])
def test_simultaneous_intervals_of_strongly_skewed_numbers_hold_all_true_differences_together(
    difference: float,
) -> None:
    """With the correction that single intervals need they hold them in 0.84 of the samples."""
    rng = np.random.default_rng(3)
    held: list[bool] = []
    for _ in range(400):
        values = rng.lognormal(0.0, 1.0, (12, 8)) - math.exp(0.5) + difference
        family = compare_family(values, np.ones_like(values))
        held.append(all(found.low <= difference <= found.high for found in family.differences))
    assert 0.91 <= np.mean(held) <= 0.97


def test_a_skewed_variant_is_significant_where_the_level_of_intervals_says_so() -> None:
    """Of 8 conversations flips have few p-values, which correct those of other tests too little."""
    values = np.random.default_rng(3).exponential(1.0, (8, 5))
    variants = _Variants.of(values, np.ones_like(values), math.inf, 0.05)
    p = np.array([spread.skewed.p_value for spread in variants.spreads])
    family = compare_family(values, np.ones_like(values))
    assert family.level_interval < 0.0125 < family.level_each
    between = (p > family.level_interval) & (p <= family.level_each)
    assert between.any()
    assert [found.significant for found in np.array(family.differences)[between]] == [False] * between.sum()


def _far_from_others(truth: float, rng: np.random.Generator) -> Family:
    """13 conversations and 5 variants, of which 4 differ by 3 standard deviations and the first one by `truth`."""
    values = rng.normal(0.0, 1.0, (13, 5)) + np.array([truth, 3.0, 3.0, 3.0, 3.0])
    return compare_family(values, np.ones_like(values))


def test_a_detectable_difference_beside_large_ones_is_found_4_times_in_5() -> None:
    """Flips of the others need little correction: it would be found in 65 % of samples at their level."""
    rng = np.random.default_rng(12)
    equal = [_far_from_others(0.0, rng).differences[0] for _ in range(60)]
    truth = float(np.median([found.detectable / found.standard_error for found in equal])) / math.sqrt(13)
    found = [_far_from_others(truth, rng).differences[0].significant for _ in range(300)]
    assert 0.78 <= np.mean(found) <= 0.97


def test_p_is_at_most_the_stated_level_exactly_where_a_difference_beside_large_ones_is_significant() -> None:
    rng = np.random.default_rng(8)
    between = 0
    for _ in range(60):
        family = _far_from_others(0.9, rng)
        assert family.level_interval < family.level_each
        for found in family.differences:
            assert found.significant == (found.p <= found.level_each)
            between += family.level_interval < found.p <= family.level_each
    assert between >= 5


def test_adjusted_p_values_are_at_most_the_level_where_p_is_at_most_that_of_each() -> None:
    values = np.random.default_rng(4).normal(size=(30, 6))
    largest = LargestSums.of(values)
    for level in (0.01, 0.05, 0.2):
        each = largest.level_each(level)
        p = np.array([each * (1 - 1e-9), each * (1 + 1e-3), 0.0, 1e-12, 1.0, 0.5])
        adjusted = largest.adjusted(p)
        assert adjusted[0] <= level < adjusted[1]
        assert (adjusted >= p).all()
        assert adjusted[2:5].tolist() == [0.0, pytest.approx(6e-12, abs=6e-12), 1.0]
    assert LargestSums.of(values[:, :1]).adjusted(np.array([0.03])) == [0.03]


def test_the_level_of_intervals_is_that_of_correlated_normal_sums() -> None:
    rng = np.random.default_rng(4)
    shared, own = rng.normal(size=(400, 1)), rng.normal(size=(400, 4))
    for values, level in (
        (own, 1 - 0.95 ** (1 / 4)),  # independent: Sidak's level
        (np.hstack([shared, -shared, 2 * shared]), 0.05),
        (np.hstack([shared, shared, own[:, :1]]), 1 - 0.95 ** (1 / 2)),
    ):
        assert LargestSums.of(values).level_each(0.05) == pytest.approx(level, rel=0.06)
    assert LargestSums.of(own[:, :1]).level_each(0.05) == 0.05


def test_intervals_of_large_differences_are_corrected_as_those_of_small_ones() -> None:
    """Flips of differences far from 0 are alike for all variants; deviations from the means are independent."""
    deviations = np.random.default_rng(6).normal(size=(40, 5))
    families = [compare_family(deviations + shift, np.ones_like(deviations)) for shift in (0.0, 3.0)]
    assert families[1].level_each > 1.5 * families[0].level_each
    for family in families:
        assert family.level_interval == pytest.approx(1 - 0.95 ** (1 / 5), rel=0.06)
    lengths = [[found.high - found.low for found in family.differences] for family in families]
    assert lengths[1] == pytest.approx(lengths[0], rel=0.03)


def test_few_conversations_have_t_intervals_at_levels_that_no_flip_reaches() -> None:
    values = np.random.default_rng(7).normal(3.0, 1.0, (7, 8))
    family = compare_family(values, np.ones_like(values))
    assert family.level_interval < 2 ** (1 - 7) <= family.level_each
    for found, column in zip(family.differences, values.T, strict=True):
        half = t.ppf(1 - family.level_interval / 2, 6) * column.std(ddof=1) / math.sqrt(7)
        assert found.low <= column.mean() - half + 1e-9
        assert found.high >= column.mean() + half - 1e-9
        assert -math.inf < found.low < found.high < math.inf


def test_a_variant_that_differs_everywhere_by_the_same_amount_counts_as_independent() -> None:
    own = np.random.default_rng(4).normal(size=(400, 2))
    same = np.zeros((400, 1))
    assert LargestSums.of(np.hstack([own, same])).level_each(0.05) == pytest.approx(1 - 0.95 ** (1 / 3), rel=0.06)
