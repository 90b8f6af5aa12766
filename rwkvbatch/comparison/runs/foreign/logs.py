"""Readers of JSON logs of Inspect and of JSON results of promptfoo.

- Inspect: `eval.model`, and `samples` with `id`, `epoch`, `scores` by scorer and `error` (`inspect_ai/log/_log.py`);
  `C`, `P`, `I` and `N` stand for 1, 0.5, 0 and 0 (`value_to_float`).
- promptfoo: `results.results` with one object per test, prompt and provider, in the order of completion, with `score`,
  `success`, `failureReason` (2 is an error) and `vars` (`src/types/index.ts`). `promptIdx` is the number of a pair of
  provider and prompt, `promptId` identifies the prompt, and `testIdx` is the number of a test or of its repeat.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
    is_missing,
    make_row,
    read_score,
)
from rwkvbatch.errors import RunDirectoryError, parsing_problem, shown_json
from rwkvbatch.files import open_file

# JSON values have no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false


def read_json_log(path: Path) -> ForeignRun | None:
    """The run in a JSON file; None if it is neither of Inspect nor of promptfoo."""
    try:
        with open_file(path, MAX_BYTES) as file:
            content: Any = json.load(file)
    except OSError as error:
        raise RunDirectoryError(f"cannot be read: {error.strerror or error}", path=path) from None
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"is not JSON: {parsing_problem(error)}") from None
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
        return checked(reader(path, content), path)
    except BadRecordError as error:
        raise damaged(path, error) from None


_LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
_WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}


def _inspect(path: Path, content: Mapping[str, Any]) -> ForeignRun:
    """A run with one conversation per sample, one repeat per epoch, and one check per scorer or key of its value."""
    run = ForeignRun("Inspect")
    cell = str(content["eval"].get("model") or BASE)
    task = str(content["eval"].get("task") or "")
    keys_of = _inspect_keys(content["samples"])
    for number, sample in enumerate(content["samples"]):
        where = f"samples[{number}]"
        if not isinstance(sample, dict) or "id" not in sample:
            raise BadRecordError(f"{where} has no `id`")
        epoch = sample.get("epoch", 1)
        if isinstance(epoch, bool) or not isinstance(epoch, int) or not 1 <= epoch <= MAX_REPEAT:
            raise BadRecordError(f"{where}.epoch must be a number from 1 to {MAX_REPEAT:,}, got {shown_json(epoch)}")
        by_scorer = sample.get("scores") or {}
        if not isinstance(by_scorer, dict):
            raise BadRecordError(f"{where}.scores must be an object, got {shown_json(by_scorer)}")
        scores = _inspect_scores(cast("dict[str, Any]", by_scorer), keys_of, where)
        error = sample.get("error")
        error_text = None if error is None else str(error.get("message") if isinstance(error, dict) else error)
        output = sample.get("output")
        reply = output.get("completion") if isinstance(output, dict) else None
        prompt = sample.get("input")
        run.rows.append(
            make_row(
                as_id(str(sample["id"])),
                cell,
                epoch - 1,
                [] if error_text is not None else scores,
                tags=(task,) if task else (),
                prompt=prompt if isinstance(prompt, str) else "",
                reply=reply if isinstance(reply, str) else "",
                error=error_text,
            )
        )
    if content.get("status") not in (None, "success"):
        run.notes.append(f"{path} is not finished: its status is {content['status']!r}")
    return run


def _inspect_keys(samples: Sequence[Any]) -> dict[str, list[str]]:
    """The keys of the values of each scorer of a log; the only key of a value that is no object is empty."""
    keys_of: dict[str, dict[str, None]] = {}
    for sample in samples:
        by_scorer = sample.get("scores") if isinstance(sample, dict) else None
        for scorer, score in by_scorer.items() if isinstance(by_scorer, dict) else ():
            keys = keys_of.setdefault(scorer, {})
            value = score.get("value") if isinstance(score, dict) else None
            if not is_missing(value):
                keys.update(dict.fromkeys(value if isinstance(value, dict) else [""]))
    return {scorer: list(keys) or [""] for scorer, keys in keys_of.items()}


def _inspect_scores(
    by_scorer: Mapping[str, Any], keys_of: Mapping[str, Sequence[str]], where: str
) -> list[tuple[str, float | None]]:
    """The scores of a sample, None where a scorer of the log gave none."""
    scores: list[tuple[str, float | None]] = []
    for scorer, keys in keys_of.items():
        score = by_scorer.get(scorer)
        value = score.get("value") if isinstance(score, dict) else None
        items = value if isinstance(value, dict) else {"": value}
        for key in keys:
            kind, item = f"{scorer}.{key}" if key else scorer, items.get(key)
            scores.append((kind, None if is_missing(item) else _inspect_value(item, f"{where}.scores.{kind}")))
    return scores


def _inspect_value(value: object, where: str) -> float:
    """A score of Inspect as a number; raises `BadRecordError`."""
    if isinstance(value, str):
        score = _LETTERS.get(value, _WORDS.get(value.lower()))
        if score is not None:
            return score
        try:
            value = float(value)
        except ValueError:
            raise BadRecordError(f"{where} must be a number in [0, 1], C, P, I or N; got {shown_json(value)}") from None
    return read_score(value, where)


def _promptfoo(path: Path, content: Mapping[str, Any]) -> ForeignRun:
    """A run with one conversation per test, one cell per provider (and prompt, if there are several), and repeats."""
    run = ForeignRun("promptfoo")
    records: list[Any] = content["results"]["results"]
    for number, record in enumerate(records):
        if not isinstance(record, dict) or "score" not in record:
            raise BadRecordError(f"results.results[{number}] has no `score`")
    cells = _promptfoo_cells(records)
    repeats: Counter[tuple[str, str]] = Counter()
    # The records are in the order of completion; repeats are numbered in the order of their indices.
    for number, record in sorted(enumerate(records), key=lambda item: _promptfoo_indices(item[1])):
        cell = cells[_promptfoo_indices(record)[0], _promptfoo_provider(record)]
        name = _promptfoo_id(record)
        repeat = repeats[cell, name]
        repeats[cell, name] += 1
        error = record.get("error") if record.get("failureReason") == 2 else None
        response = record.get("response")
        reply = response.get("output") if isinstance(response, dict) else None
        score = read_score(record["score"], f"results.results[{number}].score")
        success = record.get("success")
        run.rows.append(
            make_row(
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


def _promptfoo_indices(record: Mapping[str, Any]) -> tuple[int, int]:
    """The number of a result's pair of provider and prompt, and of its test."""
    indices = record.get("promptIdx", 0), record.get("testIdx", 0)
    if not all(isinstance(index, int) for index in indices):
        raise BadRecordError(f"promptIdx and testIdx must be numbers, got {shown_json(indices)}")
    return indices


def _promptfoo_provider(record: Mapping[str, Any]) -> str:
    provider = record.get("provider")
    name = provider.get("label") or provider.get("id") if isinstance(provider, dict) else provider
    return str(name or BASE)


def _promptfoo_cells(records: Sequence[Mapping[str, Any]]) -> dict[tuple[int, str], str]:
    """The cell of each (`promptIdx`, provider); the second and later providers of the same name get a number."""
    prompt_of: dict[tuple[int, str], str] = {}
    for record in records:
        prompt = record.get("prompt")
        label = prompt.get("label") if isinstance(prompt, dict) else prompt
        pair = _promptfoo_indices(record)[0], _promptfoo_provider(record)
        prompt_of[pair] = str(record.get("promptId") or label or "")
    prompts = list(dict.fromkeys(prompt_of[pair] for pair in sorted(prompt_of)))
    counts: Counter[tuple[str, str]] = Counter()
    cells: dict[tuple[int, str], str] = {}
    for pair in sorted(prompt_of):
        provider, prompt = pair[1], prompt_of[pair]
        counts[provider, prompt] += 1
        number = f"#{counts[provider, prompt]}" if counts[provider, prompt] > 1 else ""
        cells[pair] = provider + number + (f",prompt={prompts.index(prompt)}" if len(prompts) > 1 else "")
    return cells


def _promptfoo_id(record: Mapping[str, Any]) -> str:
    """A test's description and variables; its number is not used, because it depends on other tests and on repeats."""
    case = record.get("testCase")
    case = cast("dict[str, Any]", case) if isinstance(case, dict) else {}
    variables = record.get("vars") or case.get("vars") or {}
    variables_text = json.dumps(variables, sort_keys=True, ensure_ascii=False) if variables else ""
    description = str(case.get("description") or record.get("description") or "")
    return as_id(" ".join(filter(None, (description, variables_text))) or f"test {record.get('testIdx', 0)}")
