"""Failed turns by tag, and failed checks by kind, of each variant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rwkvbatch.comparison.matching import rows_of
from rwkvbatch.comparison.pairing import Variant

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

_JUDGED: Final = ["conversation", "turn", "question", "checks", "finish_reason"]


@dataclass(frozen=True)
class FailureCount:
    """How often one tag or kind of check failed: for each variant, the failures and the number of which they are."""

    name: str
    counts: tuple[tuple[int, int], ...]

    @property
    def worst_share(self) -> float:
        """The largest share of failures of a variant."""
        return max((failed / of for failed, of in self.counts if of), default=0.0)


def failures_by_tag(table: pd.DataFrame, variants: Sequence[Variant]) -> list[FailureCount]:
    """Turns of which a check failed, by tag, the largest share first; tags without a failure are left out.

    Args:
        table: see `comparable_rows`; turns that ended in an error count as failed there.
    """
    found: list[dict[str, tuple[int, int]]] = []
    for variant in variants:
        rows = rows_of(table, variant, ["tags", "passed"])
        passed = rows["passed"].to_numpy(dtype=np.float64)
        judged = ~np.isnan(passed)
        pairs = zip(rows["tags"].to_numpy()[judged], (passed[judged] < 1.0).tolist(), strict=True)
        found.append(_counted(Counter((tag, failed) for tags, failed in pairs for tag in tags)))
    return _by_name(found)


def failures_by_check(table: pd.DataFrame, variants: Sequence[Variant]) -> list[FailureCount]:
    """Failed checks by kind, the largest share first; kinds without a failure are left out.

    A turn that ended in an error counts with all checks of the same turn elsewhere, as failed.
    """
    kinds: dict[tuple[Any, ...], list[str]] = {}
    if bool((table["finish_reason"] == "error").any()):
        for *key, checks, _ in zip(*(table[name] for name in _JUDGED), strict=True):
            if len(checks):
                kinds.setdefault(tuple(key), [check["kind"] for check in checks])
    found: list[dict[str, tuple[int, int]]] = []
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
        found.append(_counted(counts))
    return _by_name(found)


def _counted(counts: Counter[tuple[str, bool]]) -> dict[str, tuple[int, int]]:
    """By name, the failures and all, of numbers by name and whether it failed."""
    names = dict.fromkeys(name for name, _ in counts)
    return {name: (counts[name, True], counts[name, True] + counts[name, False]) for name in names}


def _by_name(found: Sequence[dict[str, tuple[int, int]]]) -> list[FailureCount]:
    names = dict.fromkeys(name for own in found for name in own)
    counts = [FailureCount(name, tuple(own.get(name, (0, 0)) for own in found)) for name in names]
    return sorted((each for each in counts if each.worst_share > 0), key=lambda each: (-each.worst_share, each.name))
