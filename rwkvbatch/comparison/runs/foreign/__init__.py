"""Readers of other programs' results, which become rows and are compared like those of a run."""

from __future__ import annotations

from pathlib import Path

from rwkvbatch.comparison.runs.foreign.lm_eval import begins_as_lm_eval, find_samples, read_lm_eval
from rwkvbatch.comparison.runs.foreign.logs import read_json_log
from rwkvbatch.comparison.runs.foreign.rows import ForeignRun
from rwkvbatch.comparison.runs.foreign.tables import csv_records, parquet_records, read_table
from rwkvbatch.errors import RunDirectoryError

__all__ = ["ForeignRun", "read_foreign"]


def read_foreign(path: Path) -> ForeignRun | None:
    """The results of another program at `path`; None if they are in no known format.

    Raises:
        RunDirectoryError: a file cannot be read, or has an unsupported form, or a folder has several models.
        RunDamagedError: a record does not follow its format.
        MissingExtraError: a Parquet file cannot be read because `pyarrow` is not installed.
        UsageError: no number in the file can be compared.
    """
    if path.is_dir():
        samples = find_samples(path)
        return read_lm_eval(path, samples) if samples else None
    if not path.is_file():
        return None
    match path.suffix.lower():
        case ".csv":
            return read_table(path, csv_records(path))
        case ".parquet":
            return read_table(path, parquet_records(path))
        case ".json":
            return read_json_log(path)
        case ".jsonl":
            return read_lm_eval(path, [path]) if begins_as_lm_eval(path) else None
        case ".eval":
            hint = f"convert it: inspect log convert --to json --output-dir logs-json {path}"
            raise RunDirectoryError(
                "is an Inspect log in the .eval format, which is not supported", path=path, hint=hint
            )
        case _:
            return None
