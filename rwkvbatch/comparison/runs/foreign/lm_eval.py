"""Reader of samples of lm-evaluation-harness (`--log_samples`).

`samples_TASK_DATE.jsonl` has one object per document and filter, with `doc_id`, `doc_hash`, `filter`, and one key for
each name in `metrics` (`lm_eval/evaluator.py`). Each model has a folder, to which every evaluation adds files with its
date (`lm_eval/loggers/evaluation_tracker.py`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rwkvbatch.comparison.runs.foreign.rows import MAX_BYTES, ForeignRun, checked, damaged, is_missing, make_row
from rwkvbatch.errors import RunDirectoryError, UsageError, parsing_problem, shown_json
from rwkvbatch.files import open_file

# JSON values have no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false


def begins_as_lm_eval(path: Path) -> bool:
    """Whether the first line of a file is a sample of lm-evaluation-harness."""
    try:
        first = next(_json_lines(path), {})
    except RunDirectoryError:  # the reader of runs reports damaged and unreadable files
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
    """The files of samples in a model's folder, or in the only model's folder in `folder`; empty if there are none.

    Raises:
        RunDirectoryError: `folder` contains the folders of several models.
    """
    if files := sorted(folder.glob("samples_*.jsonl")):
        return files
    files = sorted(folder.glob("*/samples_*.jsonl"))
    models = sorted({file.parent for file in files})
    if len(models) > 1:
        hint = f"compare two of them: rwkvbatch compare {models[0]} {models[1]}"
        raise RunDirectoryError(f"contains the results of {len(models)} models of lm-eval", path=folder, hint=hint)
    return files


def read_lm_eval(path: Path, files: Sequence[Path]) -> ForeignRun:
    """The run in `files`, with one cell per metric.

    As in lm-eval's tables, a cell is called `METRIC`, or `METRIC,FILTER` if there are several filters. If a task was
    evaluated several times, the newest evaluation is read. A value that is null or NaN becomes a row without a verdict.
    A metric that has another value which is no number in [0, 1] is left out of the task.
    """
    run = ForeignRun("lm-evaluation-harness", is_metric=True)
    num_left_out: Counter[str] = Counter()
    has_hashes = True
    for task, file in _newest(path, files, run.notes).items():
        records = list(_json_lines(file))
        filters = {str(record.get("filter", "none")) for record in records}
        number_keys = {key for record in records for key in _number_keys(record)}
        names = dict.fromkeys(key for record in records for key in record if key in number_keys)
        num_refused = Counter(
            metric for record in records for metric in _metrics(record, names) if not _is_score(record.get(metric))
        )
        num_left_out.update(num_refused)
        for line, record in enumerate(records, start=1):
            if "doc_id" not in record:
                raise damaged(file, "has no key `doc_id`", line=line)
            # The hash prevents a pairing of different documents with the same number.
            hash_suffix = f"#{str(record['doc_hash'])[:8]}" if record.get("doc_hash") else ""
            name = f"{task}/{record['doc_id']}{hash_suffix}"
            # The context of the first request, with its few-shot examples and chat template (`lm_eval/evaluator.py`).
            if isinstance(prompt_hash := record.get("prompt_hash"), str):
                run.prompt_hashes[name] = prompt_hash
            else:
                has_hashes = False
            for metric in _metrics(record, names):
                if metric in num_refused:
                    continue
                value: Any = record.get(metric)
                cell = metric if len(filters) == 1 else f"{metric},{record.get('filter', 'none')}"
                reply, target = _reply_of(record), record.get("target")
                prompt = "" if target is None else f"target: {shown_json(target)}"
                score = [(metric, None if is_missing(value) else float(value))]
                run.rows.append(make_row(name, cell, 0, score, tags=(task,), prompt=prompt, reply=reply))
    if not has_hashes:
        run.prompt_hashes.clear()
    for metric, count in num_left_out.items():
        run.notes.append(f"{path}: {metric} is left out: {count:,} of its values are not in [0, 1]")
    if all(check.score is None for row in run.rows for check in row.checks):
        hint = "such as acc or exact_match; run lm-eval with --log_samples"
        raise UsageError(f"{path}: no metric in it has values in [0, 1]", hint=hint)
    return checked(run, path)


def _newest(path: Path, files: Sequence[Path], notes: list[str]) -> dict[str, Path]:
    """The newest file of each task; dates have equal lengths, so they sort as text."""
    dated_files: dict[str, list[tuple[str, Path]]] = {}
    for file in files:
        match = _NAME.fullmatch(file.name)
        task, date = (match[1], match[2] or "") if match else (file.stem, "")
        dated_files.setdefault(task, []).append((date, file))
    for task, dated in dated_files.items():
        if len(dated) > 1:
            notes.append(f"{path}: {task} was evaluated {len(dated)} times; the last one, of {max(dated)[0]}, is read")
    return {task: max(dated)[1] for task, dated in dated_files.items()}


def _number_keys(record: Mapping[str, Any]) -> list[str]:
    """The keys of a record that can be metrics, because they have numbers."""
    known = ("doc_id", "target")
    return [key for key, value in record.items() if key not in known and isinstance(value, bool | int | float)]


def _metrics(record: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """The metrics of a record; earlier versions do not list them: the keys that have numbers in any of the records."""
    listed = record.get("metrics")
    return [str(key) for key in listed] if isinstance(listed, list) else [name for name in names if name in record]


def _is_score(value: object) -> bool:
    """Whether a value is a number in [0, 1] or missing."""
    return is_missing(value) or (isinstance(value, bool | int | float) and 0 <= value <= 1)


def _reply_of(record: Mapping[str, Any]) -> str:
    replies = record.get("filtered_resps")
    first = replies[0] if isinstance(replies, list) and replies else ""
    return first if isinstance(first, str) else ""
