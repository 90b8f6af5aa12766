"""Reads the results of other programs as rows, so that they are compared as ours are.

What each file holds was looked up in these sources:

- lm-evaluation-harness, `--log_samples`: `samples_TASK_DATE.jsonl`, one object a document and filter, with `doc_id`,
  `doc_hash`, `filter`, and each name in `metrics` as a key of its own (`lm_eval/evaluator.py`).
- Inspect logs in JSON: `eval.model`, and `samples` with `id`, `epoch`, `scores` by scorer and `error`
  (`inspect_ai/log/_log.py`); `C`, `P`, `I` and `N` stand for 1, 0.5, 0 and 0 (`value_to_float`).
- promptfoo's results in JSON: `results.results`, one object a test, prompt and provider, with `score`, `success`,
  `failureReason` (2 is an error) and `vars` (`src/types/index.ts`).
- tables (CSV, Parquet) with the columns `id` and `score`, and `variant`, `repeat`, `turn`, `tags` where there are any.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from rwkvbatch.errors import MissingExtraError, RunDamagedError, RunDirectoryError, UsageError
from rwkvbatch.files import open_file
from rwkvbatch.results.row import SCORED, CheckResult, Logprob, Row, RowTiming, TokenCounts

MAX_BYTES = 2**31
_MAX_FIELD = 2**24
_MAX_ID = 120
MAX_REPEAT = 2**31 - 1
"""Of repeats and turns."""
_BASE = "base"

# JSON values, and pyarrow, have no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false


@dataclass
class ForeignRun:
    """The rows of another program's file.

    Attributes:
        program: that wrote it, for notes.
        rows: one a sample, repeat and variant. notes: remarks for readers of a comparison.
        is_metric: cells are metrics of the same replies, of which the first is compared unless another is named.
    """

    program: str
    rows: list[Row] = field(default_factory=list[Row])
    notes: list[str] = field(default_factory=list[str])
    is_metric: bool = False


class _BadRecordError(Exception):
    """A record that is not of its format; the text says what is wrong."""


def read_foreign(path: Path) -> ForeignRun | None:
    """The results of another program at `path`; None for what is not known as such.

    Raises:
        RunDirectoryError: a file cannot be read. RunDamagedError: a record is not what its format says.
        MissingExtraError: a Parquet file, and `pyarrow` is not installed.
        UsageError: no number in the file can be compared.
    """
    if path.is_dir():
        samples = sorted(path.glob("samples_*.jsonl")) or sorted(path.glob("*/samples_*.jsonl"))
        return _lm_eval(path, samples) if samples else None
    if not path.is_file():
        return None
    match path.suffix.lower():
        case ".csv":
            return _table(path, _csv_records(path))
        case ".parquet":
            return _table(path, _parquet_records(path))
        case ".json":
            return _json_file(path)
        case ".jsonl":
            return _lm_eval(path, [path]) if _begins_as_lm_eval(path) else None
        case _:
            return None


def _row(
    name: str,
    cell: str,
    repeat: int,
    scores: Sequence[tuple[str, float]],
    *,
    turn: int = 0,
    tags: tuple[str, ...] = (),
    prompt: str = "",
    reply: str = "",
    error: str | None = None,
    passed: bool | None = None,
) -> Row:
    """A row with the scores as checks; without a pass of its own a check passes with a score of 1."""
    checks = tuple(CheckResult(kind, None, value >= 1 if passed is None else passed, value) for kind, value in scores)
    return Row(
        conversation=name,
        cell=cell,
        repeat=repeat,
        turn=turn,
        seed=0,
        tags=tags,
        prompt=prompt,
        reply=reply,
        reply_ids=(),
        finish_reason=SCORED if error is None else "error",
        stopped_by=None,
        tokens=TokenCounts(0, 0),
        logprob=Logprob(None, 0.0),
        reference=None,
        checks=checks,
        error=error,
        timing=RowTiming(0.0, 0.0, 0.0, 0.0, 0.0, 0),
    )


def _score(value: object, where: str) -> float:
    if isinstance(value, bool):
        return float(value)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise _BadRecordError(f"{where} must be a number in [0, 1], got {_short(value)}")
    if not 0 <= value <= 1:
        raise _BadRecordError(f"{where} must be in [0, 1], got {value:g}; divide it by the highest score there is")
    return float(value)


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:59] + "…"


def _named(text: str) -> str:
    """`text` as an id, cut to a length that can be shown, with a hash where it is cut."""
    text = " ".join(text.split())
    if len(text) <= _MAX_ID:
        return text
    return f"{text[: _MAX_ID - 10]}…{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def _damaged(path: Path, problem: object, *, line: int | None = None) -> RunDamagedError:
    return RunDamagedError(str(problem), path=path, line=line, hint="docs/compare.md says what is read of such a file")


def _unique(run: ForeignRun, path: Path) -> ForeignRun:
    """Refuse a file without rows, and two rows of one place; says how many rows have no score."""
    if not run.rows:
        raise RunDirectoryError("it holds no result", path=path)
    [(key, count)] = Counter(row.key for row in run.rows).most_common(1)
    if count > 1:
        raise _damaged(path, f"{count} results have the same place: {key.in_words()}; number them by `repeat`")
    if errors := sum(row.error is not None for row in run.rows):
        run.notes.append(f"{path}: {errors:,} results ended in an error and have no score")
    if unscored := sum(row.error is None and not row.checks for row in run.rows):
        run.notes.append(f"{path}: {unscored:,} results have no score")
    return run


# lm-evaluation-harness


def _begins_as_lm_eval(path: Path) -> bool:
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
        raise _damaged(path, f"is not a line of JSON: {error}", line=number) from None


_TASK = re.compile(r"samples_(.+?)(?:_\d{4}-\d{2}-\d{2}T[\d.:-]+)?\.jsonl")


def _lm_eval(path: Path, files: Sequence[Path]) -> ForeignRun:
    """A cell a metric, `METRIC` or `METRIC,FILTER` where there are several filters, as in lm-eval's tables."""
    run = ForeignRun("lm-evaluation-harness", is_metric=True)
    beyond: Counter[str] = Counter()
    for file in files:
        found = _TASK.fullmatch(file.name)
        task = found[1] if found else file.stem
        records = list(_json_lines(file))
        filters = {str(record.get("filter", "none")) for record in records}
        for line, record in enumerate(records, start=1):
            if "doc_id" not in record:
                raise _damaged(file, "has no key `doc_id`", line=line)
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
                    prompt = "" if target is None else f"target: {_short(target)}"
                    score = [(metric, float(value))]
                    run.rows.append(_row(name, cell, 0, score, tags=(task,), prompt=prompt, reply=reply))
                else:
                    beyond[metric] += 1
    for metric, count in beyond.items():
        run.notes.append(f"{path}: {metric} is left out: {count:,} of its values are no number in [0, 1]")
    if not run.rows:
        hint = "such as acc or exact_match; run lm-eval with --log_samples"
        raise UsageError(f"{path}: no metric in it has values in [0, 1]", hint=hint)
    return _unique(run, path)


def _number_keys(record: Mapping[str, Any]) -> list[str]:
    """The metrics of a record of an earlier version, which does not list them."""
    return [key for key, value in record.items() if key != "doc_id" and isinstance(value, bool | int | float)]


def _reply_of(record: Mapping[str, Any]) -> str:
    replies = record.get("filtered_resps")
    first = replies[0] if isinstance(replies, list) and replies else ""
    return first if isinstance(first, str) else ""


# Inspect and promptfoo


def _json_file(path: Path) -> ForeignRun | None:
    try:
        with open_file(path, MAX_BYTES) as file:
            content: Any = json.load(file)
    except OSError as error:
        raise RunDirectoryError(f"cannot be read: {error.strerror or error}", path=path) from None
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"is not JSON: {error}") from None
    reader: Callable[[Path, Any], ForeignRun] | None = None
    match content:
        case {"eval": {}, "samples": list()}:
            reader = _inspect
        case {"eval": {}, "status": _}:
            hint = "log samples (`--log-samples`), and convert a log of the form .eval: inspect log convert --to json"
            raise RunDirectoryError("is an Inspect log without samples", path=path, hint=hint)
        case {"results": {"results": list()}}:
            reader = _promptfoo
        case _:
            return None
    try:
        return _unique(reader(path, content), path)
    except _BadRecordError as error:
        raise _damaged(path, error) from None


_LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
_WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}


def _inspect(path: Path, content: Mapping[str, Any]) -> ForeignRun:
    """A conversation a sample, a repeat an epoch, a check a scorer (or a key of its value)."""
    run = ForeignRun("Inspect")
    cell = str(content["eval"].get("model") or _BASE)
    task = str(content["eval"].get("task") or "")
    for number, sample in enumerate(content["samples"]):
        where = f"samples[{number}]"
        if not isinstance(sample, dict) or "id" not in sample:
            raise _BadRecordError(f"{where} has no `id`")
        epoch = sample.get("epoch", 1)
        if isinstance(epoch, bool) or not isinstance(epoch, int) or not 1 <= epoch <= MAX_REPEAT:
            raise _BadRecordError(f"{where}.epoch must be a number from 1 to {MAX_REPEAT:,}, got {_short(epoch)}")
        scores: list[tuple[str, float]] = []
        scored = sample.get("scores") or {}
        if not isinstance(scored, dict):
            raise _BadRecordError(f"{where}.scores must be an object, got {_short(scored)}")
        for scorer, score in cast("dict[str, Any]", scored).items():
            value = score.get("value") if isinstance(score, dict) else None
            parts = value.items() if isinstance(value, dict) else [("", value)]
            for key, part in parts:
                if part is not None and not (isinstance(part, float) and math.isnan(part)):
                    kind = f"{scorer}.{key}" if key else scorer
                    scores.append((kind, _inspect_value(part, f"{where}.scores.{kind}")))
        error = sample.get("error")
        text = None if error is None else str(error.get("message") if isinstance(error, dict) else error)
        output = sample.get("output")
        reply = output.get("completion") if isinstance(output, dict) else None
        given = sample.get("input")
        run.rows.append(
            _row(
                _named(str(sample["id"])),
                cell,
                epoch - 1,
                [] if text is not None else scores,
                tags=(task,) if task else (),
                prompt=given if isinstance(given, str) else "",
                reply=reply if isinstance(reply, str) else "",
                error=text,
            )
        )
    if content.get("status") not in (None, "success"):
        run.notes.append(f"{path} is not finished: its status is {content['status']!r}")
    return run


def _inspect_value(value: object, where: str) -> float:
    if isinstance(value, str):
        known = _LETTERS.get(value, _WORDS.get(value.lower()))
        if known is not None:
            return known
        try:
            value = float(value)
        except ValueError:
            raise _BadRecordError(f"{where} must be a number in [0, 1], C, P, I or N; got {_short(value)}") from None
    return _score(value, where)


def _promptfoo(path: Path, content: Mapping[str, Any]) -> ForeignRun:
    """A conversation a test, a cell a provider (and prompt, where there are several), a repeat each time it was run."""
    run = ForeignRun("promptfoo")
    records: list[Any] = content["results"]["results"]
    for number, record in enumerate(records):
        if not isinstance(record, dict) or "score" not in record:
            raise _BadRecordError(f"results.results[{number}] has no `score`")
    several = len({str(record.get("promptIdx", 0)) for record in records}) > 1
    repeats: Counter[tuple[str, str]] = Counter()
    for number, record in enumerate(records):
        provider = record.get("provider")
        named = provider.get("label") or provider.get("id") if isinstance(provider, dict) else provider
        cell = str(named or _BASE) + (f",prompt={record.get('promptIdx', 0)}" if several else "")
        name = _promptfoo_id(record)
        repeat = repeats[cell, name]
        repeats[cell, name] += 1
        error = record.get("error") if record.get("failureReason") == 2 else None
        response = record.get("response")
        reply = response.get("output") if isinstance(response, dict) else None
        score = _score(record["score"], f"results.results[{number}].score")
        success = record.get("success")
        run.rows.append(
            _row(
                name,
                cell,
                repeat,
                [] if error is not None else [("score", score)],
                reply=reply if isinstance(reply, str) else "",
                error=None if error is None else str(error),
                passed=success if isinstance(success, bool) else None,
            )
        )
    return run


def _promptfoo_id(record: Mapping[str, Any]) -> str:
    """A test's description and variables: its number depends on the others, and counts repeats too."""
    case = record.get("testCase")
    case = cast("dict[str, Any]", case) if isinstance(case, dict) else {}
    given = record.get("vars") or case.get("vars") or {}
    text = json.dumps(given, sort_keys=True, ensure_ascii=False) if given else ""
    description = str(case.get("description") or record.get("description") or "")
    return _named(" ".join(filter(None, (description, text))) or f"test {record.get('testIdx', 0)}")


# Tables


def _csv_records(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(_MAX_FIELD)
    line = 1
    try:
        with open_file(path, MAX_BYTES) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
            reader = csv.DictReader(text, strict=True)
            for record in reader:
                line = reader.line_num
                if None in record or None in record.values():
                    raise csv.Error(f"it has other columns than the first line: {', '.join(reader.fieldnames or ())}")
                yield {**record, "": line}
    except OSError as error:
        raise RunDirectoryError(f"cannot be read: {error.strerror or error}", path=path) from None
    except (csv.Error, ValueError) as error:
        raise _damaged(path, f"is not a line of CSV: {error}", line=line) from None


def _parquet_records(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtraError(f"{path}: reading Parquet files needs pyarrow", extra="parquet") from None
    try:
        with open_file(path, MAX_BYTES) as file:
            number = 0
            for batch in pq.ParquetFile(file).iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    yield {**record, "": number}
    except (OSError, pa.ArrowException) as error:
        problem = getattr(error, "strerror", None) or " ".join(str(error).split())  # of several lines
        raise RunDirectoryError(f"cannot be read: {problem}", path=path) from None


def _table(path: Path, records: Iterable[dict[str, Any]]) -> ForeignRun:
    """A conversation an `id`, a cell a `variant`; an empty score is a missing one."""
    run = ForeignRun("a table")
    for record in records:
        line = int(record[""])
        try:
            for column in ("id", "score"):
                if column not in record:
                    columns = ", ".join(name for name in record if name) or "none"
                    raise _BadRecordError(f"it must have the columns id and score, and has {columns}")
            name = _text(record["id"])
            if not name:
                raise _BadRecordError("id is empty")
            value = record["score"]
            scores = [] if value is None or value == "" else [("score", _score(_number(value, "score"), "score"))]
            tags = record.get("tags")
            listed = cast("list[Any]", tags) if isinstance(tags, list) else re.split(r"[;,]", _text(tags))
            run.rows.append(
                _row(
                    _named(name),
                    _text(record.get("variant")) or _BASE,
                    _whole(record.get("repeat"), "repeat"),
                    scores,
                    turn=_whole(record.get("turn"), "turn"),
                    tags=tuple(filter(None, (_text(tag).strip() for tag in listed))),
                )
            )
        except _BadRecordError as error:
            raise _damaged(path, error, line=line) from None
    return _unique(run, path)


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _number(value: object, where: str) -> object:
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return {"true": 1.0, "false": 0.0}[value.lower()] if value.lower() in ("true", "false") else value


def _whole(value: object, where: str) -> int:
    if value is None or value == "":
        return 0
    number = _number(value, where)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= MAX_REPEAT:
        return number
    raise _BadRecordError(f"{where} must be a whole number from 0 to {MAX_REPEAT:,}, got {_short(value)}")
