"""pass@k and all-k-pass: what k of n repeats would have shown.

Both are unbiased estimates over all choices of k out of n repeats of which c passed: pass@k = 1 - C(n-c, k) /
C(n, k) (Chen et al. 2021, "Evaluating Large Language Models Trained on Code", section 2.1), all-k = C(c, k) /
C(n, k).
"""

from __future__ import annotations

from math import comb


def pass_at_k(num_repeats: int, num_passed: int, k: int) -> float:
    """The probability that at least one of `k` repeats passes.

    Raises:
        ValueError: not 1 <= k <= num_repeats, or not 0 <= num_passed <= num_repeats.
    """
    _check(num_repeats, num_passed, k)
    return 1.0 - comb(num_repeats - num_passed, k) / comb(num_repeats, k)


def all_k_pass(num_repeats: int, num_passed: int, k: int) -> float:
    """The probability that `k` repeats all pass.

    Raises:
        ValueError: as `pass_at_k`.
    """
    _check(num_repeats, num_passed, k)
    return comb(num_passed, k) / comb(num_repeats, k)


def _check(num_repeats: int, num_passed: int, k: int) -> None:
    if not 1 <= k <= num_repeats:
        raise ValueError(f"k must be in [1, {num_repeats}], the number of repeats; got {k}")
    if not 0 <= num_passed <= num_repeats:
        raise ValueError(f"passed repeats must be in [0, {num_repeats}]; got {num_passed}")
