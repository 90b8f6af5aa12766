"""pass@k and all-k-pass by conversation, over its repeats.

A conversation passes in a repeat when all its checks on all its turns pass there. See
`rwkvbatch.stats.repeats` for the estimators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rwkvbatch.compare.metrics.base import Metric
from rwkvbatch.stats.repeats import all_k_pass, pass_at_k


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
