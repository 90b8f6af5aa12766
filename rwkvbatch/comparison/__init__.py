"""Comparison of finished runs: tables, paired statistics, rankings, gates and reports.

    >>> from rwkvbatch.comparison import load       # a pandas table, one row per turn
    >>> from rwkvbatch.comparison import compare    # the whole comparison

Both are imported on first use, because they import pandas.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rwkvbatch.comparison.analysis import Analysis as Analysis
    from rwkvbatch.comparison.comparing import compare as compare
    from rwkvbatch.comparison.runs.loading import load as load

_HOMES = {
    "Analysis": "rwkvbatch.comparison.analysis",
    "compare": "rwkvbatch.comparison.comparing",
    "load": "rwkvbatch.comparison.runs.loading",
}

__all__ = ["Analysis", "compare", "load"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
