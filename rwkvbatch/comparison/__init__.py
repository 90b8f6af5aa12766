"""Tables, paired statistics, gates and reports over finished runs.

    >>> from rwkvbatch.compare import load          # a pandas table, one row a turn
    >>> from rwkvbatch.compare import analyse       # the whole comparison, as records

Both are imported when they are first used: they bring in pandas.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rwkvbatch.comparison.analysis import analyse as analyse
    from rwkvbatch.comparison.loading import load as load

_HOMES = {"analyse": "rwkvbatch.comparison.analysis", "load": "rwkvbatch.comparison.loading"}

__all__ = ["analyse", "load"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'rwkvbatch.compare' has no attribute {name!r}")
    return getattr(import_module(home), name)
