"""Failed turns by tag, and failed checks by kind, of each variant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rwkvbatch.comparison.runs.data import Variant
from rwkvbatch.comparison.values.columns import rows_of

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

_JUDGED: Final = ["conversation", "turn", "question", "checks", "finish_reason"]


@dataclass(frozen=True)
class FailureCount:
    """Failures of one tag or kind of check: `counts` has the number of failures and the total for each variant."""

    name: str
    counts: tuple[tuple[int, int], ...]

    @property
    def worst_share(self) -> float:
        """The largest share of failures of any variant."""
        return max((failed / total for failed, total in self.counts if total), default=0.0)


def failures_by_tag(table: pd.DataFrame, variants: Sequence[Variant]) -> list[FailureCount]:
    """Turns with a failed check or an error by tag, sorted by the worst share, without tags that never fail.

    Args:
        table: see `comparable_rows`. Turns that ended in an error or were not reached count as failed even without
            checks, as in `results.summary.Summary.failed_tags`.
    """
    totals: list[_Totals] = []
    for variant in variants:
        rows = rows_of(table, variant, ["tags", "passed", "finish_reason"])
        errors = (rows["finish_reason"] == "error").to_numpy(dtype=bool)
        passed = np.where(errors, 0.0, rows["passed"].to_numpy(dtype=np.float64))
        judged = ~np.isnan(passed)
        outcomes = zip(rows["tags"].to_numpy()[judged], (passed[judged] < 1.0).tolist(), strict=True)
        totals.append(_totals(Counter((tag, failed) for tags, failed in outcomes for tag in tags)))
    return _failure_counts(totals)


def failures_by_check(table: pd.DataFrame, variants: Sequence[Variant]) -> list[FailureCount]:
    """Failed checks by kind, sorted by the worst share, without kinds that never fail.

    In a turn that ended in an error, all checks that the turn has in any row count as failed.
    """
    kinds: dict[tuple[Any, ...], list[str]] = {}
    if bool((table["finish_reason"] == "error").any()):
        for *key, checks, _ in zip(*(table[name] for name in _JUDGED), strict=True):
            if len(checks):
                kinds.setdefault(tuple(key), [check["kind"] for check in checks])
    totals: list[_Totals] = []
    for variant in variants:
        rows = rows_of(table, variant, _JUDGED)
        errors = (rows["finish_reason"] == "error").to_numpy(dtype=bool)
        counts = Counter(
            (check["kind"], not check["passed"])
            for checks in rows["checks"].to_numpy()[~errors]
            for check in checks
            if check["passed"] is not None
        )
        for *key, _, _ in zip(*(rows.loc[errors, name] for name in _JUDGED), strict=True):
            counts.update((kind, True) for kind in kinds.get(tuple(key), ()))
        totals.append(_totals(counts))
    return _failure_counts(totals)


_Totals = Mapping[str, tuple[int, int]]
"""One variant's number of failures and total for each name."""


def _totals(counts: Counter[tuple[str, bool]]) -> _Totals:
    """The totals from counts of (name, whether it failed)."""
    names = dict.fromkeys(name for name, _ in counts)
    return {name: (counts[name, True], counts[name, True] + counts[name, False]) for name in names}


def _failure_counts(totals: Sequence[_Totals]) -> list[FailureCount]:
    names = dict.fromkeys(name for variant_totals in totals for name in variant_totals)
    counts = [
        FailureCount(name, tuple(variant_totals.get(name, (0, 0)) for variant_totals in totals)) for name in names
    ]
    return sorted(
        (count for count in counts if count.worst_share > 0), key=lambda count: (-count.worst_share, count.name)
    )
