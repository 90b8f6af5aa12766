"""Reader of tables (CSV, Parquet) with columns `id` and `score`, and optionally `variant`, `repeat`, `turn`, `tags`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from rwkvbatch.comparison.runs.foreign.rows import (
    BASE,
    MAX_BYTES,
    MAX_REPEAT,
    BadRecordError,
    ForeignRun,
    as_id,
    checked,
    damaged,
    make_row,
    read_score,
)
from rwkvbatch.errors import MissingExtraError, RunDirectoryError, counted, shown_json
from rwkvbatch.files import open_file
from rwkvbatch.script.tables import CsvError, csv_rows

_REQUIRED = ("id", "score")
_OPTIONAL = ("variant", "repeat", "turn", "tags")
_MAX_NAMES = 200

# JSON values, and pyarrow, have no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false


def csv_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a CSV file; the key "" has the line number."""
    columns: list[str] | None = None
    try:
        for line, values in csv_rows(path):
            if columns is None:
                columns = values
                _check_columns(columns, path, line=line)
            elif len(values) != len(columns):
                problem = f"has {counted(len(values), 'value')} for {counted(len(columns), 'column')}"
                raise damaged(path, f"{problem}: {_listed(columns)}", line=line)
            else:
                yield {**dict(zip(columns, values, strict=True)), "": line}
    except OSError as error:
        raise RunDirectoryError(f"cannot be read: {error.strerror or error}", path=path) from None
    except CsvError as error:
        raise damaged(path, error, line=error.line) from None


def parquet_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a Parquet file; the key "" has the row number."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtraError(f"{path}: reading Parquet files needs pyarrow", extra="parquet") from None
    try:
        with open_file(path, MAX_BYTES) as file:
            number = 0
            table = pq.ParquetFile(file)
            _check_columns(table.schema_arrow.names, path)
            for batch in table.iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    yield {**record, "": number}
    except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: for example names that are not UTF-8
        problem = getattr(error, "strerror", None) or " ".join(str(error).split())  # the text has several lines
        raise RunDirectoryError(f"cannot be read: {problem}", path=path) from None


def read_table(path: Path, records: Iterable[dict[str, Any]]) -> ForeignRun:
    """A run with one conversation per `id` and one cell per `variant`; an empty score counts as missing."""
    run = ForeignRun("a table")
    for record in records:
        line = int(record[""])
        try:
            name = _text(record["id"])
            if not name:
                raise BadRecordError("id is empty")
            value = record["score"]
            scores = [] if value is None or value == "" else [("score", read_score(_number(value), "score"))]
            tags = record.get("tags")
            tag_list = cast("list[Any]", tags) if isinstance(tags, list) else re.split(r"[;,]", _text(tags))
            run.rows.append(
                make_row(
                    as_id(name),
                    _text(record.get("variant")) or BASE,
                    _whole(record.get("repeat"), "repeat"),
                    scores,
                    turn=_whole(record.get("turn"), "turn"),
                    tags=tuple(filter(None, (_text(tag).strip() for tag in tag_list))),
                )
            )
        except BadRecordError as error:
            raise damaged(path, error, line=line) from None
    return checked(run, path)


def _check_columns(columns: Sequence[str], path: Path, *, line: int | None = None) -> None:
    """Raise `RunDamagedError` if a required column is missing or a column that is read is there twice."""
    for name in _REQUIRED:
        if name not in columns:
            commas = "; columns are separated by commas" if line is not None and len(columns) == 1 else ""
            problem = f"must have the columns {' and '.join(_REQUIRED)}, and has {_listed(columns)}{commas}"
            raise damaged(path, problem, line=line)
    for name in (*_REQUIRED, *_OPTIONAL):
        if columns.count(name) > 1:
            raise damaged(path, f"has the column {name} {columns.count(name)} times", line=line)


def _listed(names: Sequence[str]) -> str:
    """Names of columns on one line of at most `_MAX_NAMES` characters."""
    text = " ".join(", ".join(names).split()) or "none"
    return text if len(text) <= _MAX_NAMES else text[:_MAX_NAMES] + "…"


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _number(value: object) -> object:
    """The number that a text stands for (`true` is 1, `false` is 0); other values unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return {"true": 1.0, "false": 0.0}.get(value.lower(), value)


def _whole(value: object, where: str) -> int:
    if value is None or value == "":
        return 0
    number = _number(value)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= MAX_REPEAT:
        return number
    raise BadRecordError(f"{where} must be a whole number from 0 to {MAX_REPEAT:,}, got {shown_json(value)}")
