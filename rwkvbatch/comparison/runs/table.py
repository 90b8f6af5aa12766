"""The table of a run's rows: one row per turn, with the metrics as columns."""

from __future__ import annotations

import gc
import math
from array import array
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.metrics.declarations import PARTS, TURN_METRICS, Part, parts_of
from rwkvbatch.comparison.metrics.ngrams import count_ngrams
from rwkvbatch.errors import RunDamagedError, RunDirectoryError
from rwkvbatch.files import open_file
from rwkvbatch.results.recovery import read_lines
from rwkvbatch.results.row import Row
from rwkvbatch.results.row_codec import decode_values

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false


PROBE_COLUMNS: Final = ("probe_turns", "probe_tokens")
"""Distances of probes from the message that they ask about; NaN in other rows."""
_CONTENT: Final = (
    "conversation", "cell", "repeat", "turn", "seed", "finish_reason", "error", "prompt", "reply", "tags", "reference",
    "checks", "unjudged", "judge", "choices", *PROBE_COLUMNS, "probe_after",
)  # fmt: skip
_TEXTS: Final = ("conversation", "cell", "finish_reason", "prompt", "reply")
_INTEGERS: Final = ("repeat", "turn", "seed")
_TYPES: Final[Mapping[str, Any]] = {
    **dict.fromkeys(_INTEGERS, "int64"),
    **dict.fromkeys((*PROBE_COLUMNS, "probe_after"), "float64"),
    "unjudged": "bool",
}
_NGRAM_METRICS: Final = [metric for metric in TURN_METRICS if metric.ngram_values is not None]
_WEIGHTED_METRICS: Final = [metric for metric in TURN_METRICS if metric.weight is not None and not metric.log_of]

_MAX_VALUE: Final = 1e100
_MANY_OBJECTS: Final = 100_000
"""Above this number of new objects, `gc.get_freeze_count` costs less (microseconds where no object is frozen, 1 ms for
100,000) than the collector's scan of the new objects (5 ms)."""

# Batches of n-gram counting: large enough for array operations, small enough for the processor's cache.
_BATCH_REPLIES: Final = 512
_BATCH_TOKENS: Final = 2**17


class _PartColumns:
    """Collects the metrics and weights of the rows that have a `part`."""

    def __init__(self, part: Part) -> None:
        metrics = [metric for metric in TURN_METRICS if metric.part == part]
        values = [(metric.name, metric.value) for metric in metrics if metric.value and not metric.ngram_values]
        weights = [
            (metric.weight_column, metric.weight) for metric in metrics if metric in _WEIGHTED_METRICS and metric.weight
        ]
        self._names = [str(name) for name, _ in (*values, *weights)]
        self._value_functions = [value_of for _, value_of in values]
        self._has_limit = [metric.log_of is None for metric in metrics if metric.value and not metric.ngram_values]
        self._weight_functions = [weight_of for _, weight_of in weights]
        self._row_indices = array("q")
        self._values: list[list[float | None]] = []

    def add(self, index: int, row: dict[str, Any]) -> None:
        """Add row `index` of the table; raises as `_Columns.add`."""
        values = [value_of(row) for value_of in self._value_functions]
        # The sum raises an error if a value is not a number. Sums of squares of larger numbers would overflow; of
        # exponentials there are none, because their means are those of the logarithms.
        if not abs(math.fsum(filter(None, compress(values, self._has_limit)))) < _MAX_VALUE:
            raise ValueError(f"it has a number beyond {_MAX_VALUE:g}")
        self._row_indices.append(index)
        self._values.append(values + [weight_of(row) for weight_of in self._weight_functions])

    def columns(self, num_rows: int) -> dict[str, NDArray[np.float64]]:
        """The columns `[num_rows]` by name; NaN in rows without a value."""
        values = np.full((num_rows, len(self._names)), np.nan)
        if self._row_indices:
            values[np.array(self._row_indices)] = self._values
        return {name: values[:, column] for column, name in enumerate(self._names)}


class _Columns:
    """Collects the content and the metrics of rows."""

    def __init__(self, *, choices: bool) -> None:
        self._with_choices = choices
        self.contents: list[tuple[Any, ...]] = []
        self._parts: dict[Part, _PartColumns] = {part: _PartColumns(part) for part in PARTS}
        self._ngram_batches: list[list[NDArray[np.float64]]] = []  # by batch, then by metric
        self._replies: list[array[int]] = []  # token ids of the batch that is not counted yet
        self._num_tokens = 0
        # Prompts and references occur in every cell and repeat; all rows share one copy of each.
        self._shared: dict[str, str] = {}

    def add(self, row: dict[str, Any]) -> None:
        """Add a row; raises ValueError, KeyError, TypeError, AttributeError or OverflowError if `row` is not a row."""
        content = _content(row, self._shared, with_choices=self._with_choices)
        parts = parts_of(row)
        reply = array("q", row["reply_ids"] if "finished" in parts else ())
        for part in parts:
            self._parts[part].add(len(self.contents), row)
        self.contents.append(content)
        self._replies.append(reply)
        self._num_tokens += len(reply)
        if len(self._replies) == _BATCH_REPLIES or self._num_tokens >= _BATCH_TOKENS:
            self._count_batch()

    def _count_batch(self) -> None:
        counts = count_ngrams(self._replies)
        batch = [metric.ngram_values(counts) for metric in _NGRAM_METRICS]  # pyright: ignore[reportOptionalCall]
        self._ngram_batches.append(batch)
        self._replies, self._num_tokens = [], 0

    def frame(self) -> pd.DataFrame:
        """The table: the columns of `_CONTENT`, `TURN_METRICS` and their weights, NaN in rows without a value."""
        import pandas as pd

        self._count_batch()
        num_rows = len(self.contents)
        metrics = {name: column for part in self._parts.values() for name, column in part.columns(num_rows).items()}
        for metric, batches in zip(_NGRAM_METRICS, zip(*self._ngram_batches, strict=True), strict=True):
            metrics[metric.name] = np.concatenate(batches)
        content: dict[str, Any] = {
            name: pd.Series(values, dtype=_TYPES.get(name, "object"))
            for name, values in zip(_CONTENT, zip(*self.contents, strict=True), strict=False)
        }
        weight_names = [str(metric.weight_column) for metric in _WEIGHTED_METRICS]
        names = [*(metric.name for metric in TURN_METRICS), *weight_names]
        return pd.DataFrame(content | {name: metrics[name] for name in names})


def tabulate(rows: Iterable[Row], *, choices: bool = False) -> pd.DataFrame:
    """The table of rows in memory, with the same columns as that of `read_results`."""
    columns = _Columns(choices=choices)
    for row in rows:
        columns.add(row.as_dict())
    return columns.frame()


NO_RESULTS: Final = "name a run directory, its results.jsonl, or a file of results that docs/compare.md lists"
"""The hint for files that belong to no run and contain no results."""


def read_results(path: Path, notes: list[str], *, needs_checksum: bool = True, choices: bool = False) -> pd.DataFrame:
    """The table of all turns in the file at `path`; appends notes on left-out lines to `notes`.

    Args:
        needs_checksum: refuse lines without a checksum, see `results.row_codec.decode_values`.
        choices: fill the column `choices`; without it, it has None in all rows. A choice takes 300 bytes.

    Raises:
        RunDirectoryError: the file cannot be read.
        RunDamagedError: a line does not match its checksum, or is not a row.
    """
    columns = _Columns(choices=choices)
    try:
        with open_file(path) as file, without_collection():
            for stored in read_lines(file):
                number, line = stored.number, stored.data
                if not stored.is_long and not line.endswith(b"\n"):
                    notes.append(f"{path}: the last line is incomplete (an interrupted run?) and is left out")
                    break
                if line.isspace():
                    continue
                try:
                    values = decode_values(line, needs_checksum=needs_checksum)
                    if needs_checksum:
                        Row.from_dict(values)  # checks the values
                    columns.add(values)
                except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
                    raise RunDamagedError(
                        f"is not a row of a run: {_reason(error)}",
                        path=path,
                        line=number,
                        hint="`rwkvbatch run` into the same directory reports which rows can be recovered"
                        if needs_checksum
                        else NO_RESULTS,
                    ) from None
    except OSError as error:
        raise RunDirectoryError(f"cannot be read: {error.strerror}", path=path) from None
    frame = columns.frame()
    if not len(frame):
        return frame
    key = ["conversation", "cell", "repeat", "turn"]
    superseded = frame.duplicated(key, keep="last")
    if superseded.any():
        notes.append(f"{path}: {int(superseded.sum())} turns occur more than once; the last one is used")
        frame = frame.loc[~superseded].reset_index(drop=True)
    return frame


def _reason(error: Exception) -> str:
    return f"it has no key {error.args[0]!r}" if isinstance(error, KeyError) else str(error) or type(error).__name__


@contextmanager
def without_collection() -> Generator[None]:
    """Pauses garbage collection: rows have no reference cycles, and scanning the growing heap takes 20 % of a load."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            # Counting the frozen objects takes a time proportional to their number.
            if gc.get_count()[0] > _MANY_OBJECTS and gc.get_freeze_count() == 0:
                # Freezing and unfreezing moves all objects to the oldest generation, which is rarely collected.
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def _content(row: dict[str, Any], shared: dict[str, str], *, with_choices: bool) -> tuple[Any, ...]:
    """The values of `_CONTENT` of a row; `shared` has one copy of each text of the script."""
    for name in _TEXTS:
        if not isinstance(row[name], str):
            raise TypeError(f"{name} is not a string")
    for name in _INTEGERS:
        if not (isinstance(row[name], int) and -(2**63) <= row[name] < 2**63):
            raise TypeError(f"{name} is not an integer")
    prompt, reference = row["prompt"], row["reference"]
    choices = row.get("choices") if with_choices else None
    reference_text = None if reference is None else reference["text"]
    unjudged, judge = False, None
    for check in row["checks"]:
        unjudged |= check["passed"] is None
        judge = judge or check.get("judge")
    return (
        row["conversation"],
        row["cell"],
        row["repeat"],
        row["turn"],
        row["seed"],
        row["finish_reason"],
        row["error"],
        shared.setdefault(prompt, prompt),
        row["reply"],
        tuple(row["tags"]),
        None if reference_text is None else shared.setdefault(reference_text, reference_text),
        row["checks"],
        unjudged,
        judge or None,
        None if choices is None else tuple(choices["scores"]),
        *_distances(row.get("probe")),
    )


def _distances(probe: Any) -> tuple[float, float, float]:
    """The values of `PROBE_COLUMNS`, and the turn after which the probe was asked; NaNs for None."""
    if probe is None:
        return math.nan, math.nan, math.nan
    tokens = math.nan if probe["tokens"] is None else float(probe["tokens"])
    return float(probe["turns"]), tokens, float(probe["after"])
