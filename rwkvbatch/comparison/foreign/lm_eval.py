"""lm-evaluation-harness, `--log_samples`.

`samples_TASK_DATE.jsonl` has one object a document and filter, with `doc_id`, `doc_hash`, `filter`, and each name in
`metrics` as a key of its own (`lm_eval/evaluator.py`). They lie in a folder for each model, to which every evaluation
adds files with its date (`lm_eval/loggers/evaluation_tracker.py`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rwkvbatch.comparison.foreign.rows import MAX_BYTES, ForeignRun, checked, damaged, make_row, shown
from rwkvbatch.errors import RunDirectoryError, UsageError, parsing_problem
from rwkvbatch.files import open_file

# JSON values have no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false


def begins_as_lm_eval(path: Path) -> bool:
    try:
        first = next(_json_lines(path), {})
    except RunDirectoryError:  # damaged or unreadable: the reader of runs says so
        return False
    return "doc_id" in first and "conversation" not in first


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    number = 0
    try:
        with open_file(path, MAX_BYTES) as file:
            for line in file:
                number += 1
                if line.strip():
                    record = json.loads(line)
                    if not isinstance(record, dict):
                        raise ValueError("it is not an object")
                    yield record
    except OSError as error:
        raise RunDirectoryError(f"cannot be read: {error.strerror or error}", path=path) from None
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"is not a line of JSON: {parsing_problem(error)}", line=number) from None


_NAME = re.compile(r"samples_(.+?)(?:_(\d{4}-\d{2}-\d{2}T[\d.:-]+))?\.jsonl")


def find_samples(folder: Path) -> list[Path]:
    """The files of samples in a model's folder, or in the only such folder in `folder`; none where there are none.

    Raises:
        RunDirectoryError: the folders of several models.
    """
    if files := sorted(folder.glob("samples_*.jsonl")):
        return files
    files = sorted(folder.glob("*/samples_*.jsonl"))
    models = sorted({file.parent for file in files})
    if len(models) > 1:
        hint = f"compare two of them: rwkvbatch compare {models[0]} {models[1]}"
        raise RunDirectoryError(f"holds the results of {len(models)} models of lm-eval", path=folder, hint=hint)
    return files


def read_lm_eval(path: Path, files: Sequence[Path]) -> ForeignRun:
    """A cell a metric, `METRIC` or `METRIC,FILTER` where there are several filters, as in lm-eval's tables.

    Of several evaluations of a task in a folder, the newest is read.
    """
    run = ForeignRun("lm-evaluation-harness", is_metric=True)
    beyond: Counter[str] = Counter()
    for task, file in _newest(path, files, run.notes).items():
        records = list(_json_lines(file))
        filters = {str(record.get("filter", "none")) for record in records}
        for line, record in enumerate(records, start=1):
            if "doc_id" not in record:
                raise damaged(file, "has no key `doc_id`", line=line)
            # Equal numbers of different documents must not be paired.
            mark = f"#{str(record['doc_hash'])[:8]}" if record.get("doc_hash") else ""
            name = f"{task}/{record['doc_id']}{mark}"
            given = record.get("metrics")
            names = [str(key) for key in given] if isinstance(given, list) else _number_keys(record)
            for metric in names:
                value = record.get(metric)
                cell = metric if len(filters) == 1 else f"{metric},{record.get('filter', 'none')}"
                if isinstance(value, bool | int | float) and 0 <= value <= 1:
                    reply, target = _reply_of(record), record.get("target")
                    prompt = "" if target is None else f"target: {shown(target)}"
                    score = [(metric, float(value))]
                    run.rows.append(make_row(name, cell, 0, score, tags=(task,), prompt=prompt, reply=reply))
                else:
                    beyond[metric] += 1
    for metric, count in beyond.items():
        run.notes.append(f"{path}: {metric} is left out: {count:,} of its values are no number in [0, 1]")
    if not run.rows:
        hint = "such as acc or exact_match; run lm-eval with --log_samples"
        raise UsageError(f"{path}: no metric in it has values in [0, 1]", hint=hint)
    return checked(run, path)


def _newest(path: Path, files: Sequence[Path], notes: list[str]) -> dict[str, Path]:
    """The file of each task with the latest date; the dates of equal length sort as text."""
    by_task: dict[str, list[tuple[str, Path]]] = {}
    for file in files:
        found = _NAME.fullmatch(file.name)
        task, date = (found[1], found[2] or "") if found else (file.stem, "")
        by_task.setdefault(task, []).append((date, file))
    for task, dated in by_task.items():
        if len(dated) > 1:
            notes.append(f"{path}: {task} was evaluated {len(dated)} times; the last one, of {max(dated)[0]}, is read")
    return {task: max(dated)[1] for task, dated in by_task.items()}


def _number_keys(record: Mapping[str, Any]) -> list[str]:
    """The metrics of a record of an earlier version, which does not list them."""
    return [key for key, value in record.items() if key != "doc_id" and isinstance(value, bool | int | float)]


def _reply_of(record: Mapping[str, Any]) -> str:
    replies = record.get("filtered_resps")
    first = replies[0] if isinstance(replies, list) and replies else ""
    return first if isinstance(first, str) else ""
