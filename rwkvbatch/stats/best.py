"""Which of several means could be the largest, each judged against every other (Hsu 1981, 1984).

The question is not "which differ from the one that came out best": that one was chosen by the same numbers, so
tests against it alone start from a choice that luck helped to make. Instead each mean has its own hypothesis, "no
other true mean is larger", and is held against all others, whichever came out best. `docs/statistics.md` has the
derivation.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rwkvbatch.stats.clustered import clustered_mean


def best_p_values(values: ArrayLike, clusters: ArrayLike) -> NDArray[np.float64]:
    """For each candidate, the p-value of "no other candidate has a larger true mean".

    The smallest of the one-sided clustered paired tests against the k - 1 others, times k - 1 (Bonferroni). Not yet
    corrected for how many candidates are asked about: that is `holm`'s work.

    Args:
        values: `[n, k]` finite numbers, a row a matched observation, a column a candidate; larger is better.
        clusters: `[n]` labels; equal ones belong together.

    Returns:
        `[k]` p-values; NaN with fewer than two clusters.

    Raises:
        ValueError: fewer than two candidates, no observation, or not one label for each.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 2 or numbers.shape[1] < 2:
        raise ValueError(f"two candidates or more, as columns: got shape {numbers.shape}")
    codes = np.unique(np.asarray(clusters), return_inverse=True)[1]
    num_candidates = numbers.shape[1]
    smallest = np.ones(num_candidates)
    for one, other in combinations(range(num_candidates), 2):
        estimate = clustered_mean(numbers[:, other] - numbers[:, one], codes)
        half = estimate.p_value() / 2
        other_larger, one_larger = (half, 1 - half) if estimate.mean > 0 else (1 - half, half)
        # np.minimum keeps NaN, which stands for "nothing is known".
        smallest[one] = np.minimum(smallest[one], other_larger)
        smallest[other] = np.minimum(smallest[other], one_larger)
    return np.minimum(1.0, smallest * (num_candidates - 1))
