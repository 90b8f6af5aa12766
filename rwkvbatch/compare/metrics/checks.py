"""What the script's checks said: their weighted mean score, and whether all of them passed."""

from __future__ import annotations

from typing import Any

from rwkvbatch.compare.metrics.base import Metric, RawRow


def _score(row: RawRow) -> float | None:
    checks: list[dict[str, Any]] = row["checks"]
    if not checks:
        return None
    weight = sum(check.get("weight", 1.0) for check in checks)
    if weight <= 0:
        return None
    return sum(check["score"] * check.get("weight", 1.0) for check in checks) / weight


def _passed(row: RawRow) -> float | None:
    checks: list[dict[str, Any]] = row["checks"]
    return float(all(check["passed"] for check in checks)) if checks else None


METRICS = (
    Metric("score", "score", "higher", of=_score, highest=1.0),
    Metric("passed", "all checks passed", "higher", of=_passed, highest=1.0),
)
