"""Loads run directories, results files and results in memory as tables with one row per turn."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from rwkvbatch.arguments import ITERABLE, PATH, check_argument, checks, either, instance_of
from rwkvbatch.comparison.runs.data import Opening, RunData, RunFacts, as_integer, as_record
from rwkvbatch.comparison.runs.foreign import read_foreign
from rwkvbatch.comparison.runs.table import NO_RESULTS, read_results, tabulate
from rwkvbatch.errors import RunDirectoryError, RwkvBatchError, UsageError, shown_value
from rwkvbatch.results.manifest import FORMER, read_manifest
from rwkvbatch.results.status import planned_rows, why_unfinished
from rwkvbatch.results.summary import read_part
from rwkvbatch.targets import RESULTS_NAME

if TYPE_CHECKING:
    import pandas as pd

    from rwkvbatch.results.row import Row

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false


@runtime_checkable
class ResultInMemory(Protocol):
    """The part of a result of `rwkvbatch.run` that `compare` uses; `directory` is None if the rows are in memory."""

    @property
    def directory(self) -> Path | None: ...
    @property
    def rows(self) -> Callable[[], Iterator[Row]]: ...
    @property
    def plan(self) -> Any: ...
    @property
    def summary(self) -> Any: ...


Source = str | os.PathLike[str] | ResultInMemory
"""A run directory or results file, `PATH::CELL` for one cell of it, or the result of `rwkvbatch.run`."""


Sources = Source | Iterable[Source] | Mapping[str, Source]
"""One run, several, or several by the names that a comparison gives them."""

SOURCE = either(PATH, instance_of(ResultInMemory, "a result of rwkvbatch.run"))
SOURCES = either(SOURCE, ITERABLE, instance_of(Mapping, "a mapping of names to runs"))


@checks(runs=SOURCES)
def load(runs: Sources) -> pd.DataFrame:
    """All turns of `runs` as one table with the columns of `RunData.rows` and `run`, the name of the run.

    Raises:
        UsageError: a run is given twice.
        RunDirectoryError: there is no run at a path, or it cannot be read.
        RunDamagedError: a line does not match its checksum, or is not a row.
    """
    return joined(load_runs(runs, choices=True))


def joined(runs: Sequence[RunData]) -> pd.DataFrame:
    """The rows of all runs, with a column `run`."""
    import pandas as pd

    return pd.concat([run.rows.assign(run=run.name) for run in runs], ignore_index=True)


def load_runs(sources: Sources, *, choices: bool = False) -> list[RunData]:
    """The runs of `sources`, in order. Several `PATH::CELL` of the same path are one run, without names of their own.

    Args:
        choices: fill the column `choices`.

    Raises:
        UsageError, RunDirectoryError, RunDamagedError: as `load`.
    """
    given_names: list[str] = []
    if isinstance(sources, Mapping):
        named = cast("Mapping[str, Source]", sources)
        _check_names(named)
        given_names, source_list = list(named), list(named.values())
    else:
        source_list = [sources] if isinstance(sources, str | os.PathLike | ResultInMemory) else list(sources)
    if not source_list:
        raise UsageError("no run is given", hint="name a run directory, or give the result of `rwkvbatch.run`")
    cells_by_path: dict[str, list[str]] = {}
    whole_runs: set[str] = set()  # paths that are given without a cell
    seen: set[object] = set()
    on_disk: set[str] = set()
    in_memory: dict[str, ResultInMemory] = {}
    for number, source in enumerate(source_list, start=1):
        check_argument(f"runs[{number - 1}]", source, SOURCE)
        if isinstance(source, ResultInMemory) and source.directory is None:
            path, separator, key = given_names[number - 1] if given_names else f"result-{number}", "", id(source)
            in_memory[path] = source
        else:
            location = source.directory if isinstance(source, ResultInMemory) else source
            path, separator, cell = os.fspath(location or "").partition("::")
            key = (Path(path), cell)
            on_disk.add(path)
            if separator:
                cells_by_path.setdefault(path, []).append(cell)
        if key in seen:
            raise UsageError(f"{source} is given twice", hint="name each run or cell once")
        seen.add(key)
        cells_by_path.setdefault(path, [])
        if not separator:
            whole_runs.add(path)
    for name in in_memory.keys() & on_disk:
        raise UsageError(f"{name} is the name of a result in memory", hint=f"write the path as ./{name}")
    paths = list(cells_by_path)
    names = dict(zip(paths, given_names, strict=True)) if given_names else _short_names(paths)
    runs: list[RunData] = []
    for path, cells in cells_by_path.items():
        if path in in_memory:
            runs.append(_in_memory(path, in_memory[path], choices=choices))
            continue
        run = _load_foreign(path, names[path], cells) or _load_run(path, names[path], choices=choices)
        _check_cells(run, cells)
        if path not in whole_runs:
            run = _only(run, cells)
        runs.append(run)
    return runs


def _check_names(sources: Mapping[str, Source]) -> None:
    for name, source in sources.items():
        if not isinstance(name, str) or not name or "::" in name:  # pyright: ignore[reportUnnecessaryIsInstance]
            problem = f"the name of a run must be a text that is not empty and has no `::`, got {shown_value(name)}"
            raise UsageError(problem, hint='such as {"step-100": RUN}')
        if isinstance(source, str | os.PathLike) and "::" in os.fspath(source):
            raise UsageError(f"{name}: {source} is one cell of a run, which keeps its own name", hint="give a list")


def _only(run: RunData, cells: Sequence[str]) -> RunData:
    """The rows of some cells, which come first in the order in which they are given."""
    import pandas as pd

    rows = pd.concat([run.rows.loc[run.rows["cell"] == cell] for cell in cells], ignore_index=True)
    in_order = {cell: run.facts.cells[cell] for cell in cells if cell in run.facts.cells}
    return replace(
        run,
        rows=rows,
        facts=replace(run.facts, cells={**in_order, **run.facts.cells}),
        unfinished={cell: count for cell, count in run.unfinished.items() if cell in cells},
    )


def _in_memory(name: str, result: ResultInMemory, *, choices: bool) -> RunData:
    table = tabulate(result.rows(), choices=choices)
    if not len(table):
        raise RunDirectoryError(f"{name} has no finished turns")
    done, planned = len(table), int(result.summary.planned)
    notes = (f"{name} is not finished: {done:,} of {planned:,} rows exist",) if done < planned else ()
    race = getattr(result, "race", None)
    facts = RunFacts.of_plan(result.plan)
    before = _openings_of(result.plan.conversations)
    unfinished = _unfinished(table, planned, list(facts.cells))
    race_record = None if race is None else race.as_dict()
    return RunData(name, name, facts, {}, table, notes, unfinished, before, race=race_record)


def _openings_of(conversations: Iterable[Any]) -> dict[str, Opening]:
    """What precedes the first user message, by conversation; conversations without such messages are left out."""
    found = {c.id: Opening(c.system, c.greeting, c.turns[0].plain) for c in conversations}
    return {name: opening for name, opening in found.items() if opening != Opening()}


def openings(run: RunData) -> Mapping[str, Opening] | None:
    """What precedes the first user messages, from the copy of the script; None if it is missing or damaged."""
    if run.openings is not None or not run.manifest:
        return run.openings
    from rwkvbatch.results.script_copy import read_script

    source = Path(run.source)
    with suppress(RwkvBatchError):  # damaged, or a check's extra is not installed here
        copy = read_script(source if source.is_dir() else source.parent, run.manifest)
        return None if copy is None else _openings_of(copy)
    return None


def system_messages(run: RunData) -> Mapping[str, str] | None:
    """By conversation, what precedes its first user message as one text, for reports; None as for `openings`."""
    if (found := openings(run)) is None:
        return None
    parts = {name: [one.system, f"Assistant: {one.greeting}" if one.greeting else None] for name, one in found.items()}
    return {name: "\n\n".join(filter(None, texts)) for name, texts in parts.items() if any(texts)}


def _unfinished(rows: pd.DataFrame, planned: int | None, cells: Sequence[str]) -> dict[str, int]:
    """The number of planned rows that are not in `rows`, by cell; empty if none is missing.

    Args:
        planned: number of rows of the whole run; None if unknown.
        cells: the plan's cells.
    """
    if planned is None or len(rows) >= planned:
        return {}
    done = {str(cell): int(count) for cell, count in rows["cell"].value_counts().items()}
    names = list(dict.fromkeys((*cells, *done)))
    planned_per_cell, remainder = divmod(planned, len(names))
    if remainder or max(done.values(), default=0) > planned_per_cell:
        return dict.fromkeys(names, planned - len(rows))
    missing = {name: planned_per_cell - done.get(name, 0) for name in names}
    return {name: count for name, count in missing.items() if count > 0}


def _rows_of_script(directory: Path, manifest: Mapping[str, Any], facts: RunFacts) -> int | None:
    """The number of planned rows by the run's copy of its script; None if it depends on more, or there is no copy.

    While rows are adapted (`FORMER`), the copy may be that of the former run, and the identity is that of the new one.
    """
    from rwkvbatch.results.script_copy import has_script, read_script

    identity = facts.identity
    repeats = as_integer(identity.get("repeats"))
    depends_on_rows = any(identity.get(name) is not None for name in ("race", "until_ci", "max_repeats"))
    if facts.part is not None or repeats is None or depends_on_rows or FORMER in manifest or not has_script(directory):
        return None
    with suppress(RwkvBatchError):  # damaged, or a check's extra is not installed here
        conversations = read_script(directory, manifest) or ()
        return sum(len(conversation.turns) for conversation in conversations) * repeats * len(facts.cells) or None
    return None


def _tasks_not_begun(rows: pd.DataFrame, facts: RunFacts) -> dict[str, int]:
    """The number of repeats of conversations without any row, by cell; empty for a part of a run.

    Used for directories in which `status.json`, `summary.json` and the copy of the script are missing, or may be those
    of a former run. Each such repeat stands for at least one planned row.
    """
    script, repeats = as_record(facts.identity.get("script")), as_integer(facts.identity.get("repeats"))
    conversations = as_integer(script.get("conversations"))
    if facts.part is not None or conversations is None or repeats is None:
        return {}
    begun = Counter(cell for cell, *_ in set(zip(rows["cell"], rows["conversation"], rows["repeat"], strict=True)))
    not_begun = {name: conversations * repeats - begun[name] for name in facts.cells}
    return {name: count for name, count in not_begun.items() if count > 0}


def _load_foreign(source: str, name: str, cells: Sequence[str]) -> RunData | None:
    """The results of another program; None if `source` is a run of this one.

    If the cells are metrics of the program, only the first is loaded unless `cells` names some.
    """
    path = Path(source)
    if (path / RESULTS_NAME).is_file() or (results := read_foreign(path)) is None:
        return None
    rows, notes = results.rows, results.notes
    metrics = list(dict.fromkeys(row.cell for row in rows))
    if results.is_metric and not cells:
        rows = [row for row in results.rows if row.cell == metrics[0]]
        left_out = {tag for row in results.rows for tag in row.tags} - {tag for row in rows for tag in row.tags}
        if left_out:
            notes.append(f"{source}: tasks without {metrics[0]} are left out: {', '.join(sorted(left_out))}")
        if others := ", ".join(metrics[1:]):
            notes.append(f"{source}: the score is {metrics[0]}; another one is named as {source}::METRIC: {others}")
    hashes = results.prompt_hashes
    if not hashes:
        unknown = "that both sides had the same prompts cannot be checked"
        notes = [f"{source} comes from {results.program}: {unknown}", *notes]
    return RunData(name, source, RunFacts(), {}, tabulate(rows), tuple(notes), is_foreign=True, prompt_hashes=hashes)


_MAX_NAMED_RUNS = 3


def _load_run(source: str, name: str, *, choices: bool) -> RunData:
    path = Path(source)
    results = path / RESULTS_NAME if path.is_dir() else path
    if not results.is_file():
        problem = "there is no results.jsonl in it" if path.is_dir() else "there is no such run"
        inner = sorted(str(found.parent) for found in path.glob(f"*/{RESULTS_NAME}"))[:_MAX_NAMED_RUNS]
        hint = (
            f"it contains runs, such as {', '.join(inner)}"
            if inner
            else "make one with `rwkvbatch run SCRIPT --out DIR`"
        )
        raise RunDirectoryError(problem, path=source, hint=hint)
    notes: list[str] = []
    manifest = read_manifest(results.parent)
    if manifest is None:
        notes.append(f"{source} has no manifest.json: that it replayed the same script cannot be checked")
    elif "shard" in manifest:
        notes.append(f"{source} is one part of a run; `rwkvbatch merge` combines the parts")
    if manifest is not None and FORMER in manifest:
        notes.append(f"{source}: a command was interrupted while it adapted the rows; run it again to finish")
    rows = read_results(results, notes, needs_checksum=manifest is not None, choices=choices)
    if manifest is not None and (reason := why_unfinished(results.parent, len(rows))) is not None:
        notes.append(f"{source} is not finished: {reason}")
    if not len(rows):
        hint = "continue the run with the same command" if manifest is not None else NO_RESULTS
        raise RunDirectoryError("it has no finished turns", path=results, hint=hint)
    facts = RunFacts.of(manifest or {})
    planned = (
        None if manifest is None else planned_rows(results.parent) or _rows_of_script(results.parent, manifest, facts)
    )
    unfinished = _unfinished(rows, planned, list(facts.cells))
    # While rows are adapted, `planned` may be that of the former run.
    is_exact = planned is not None and not (manifest is not None and FORMER in manifest)
    if manifest is not None and not is_exact:
        unfinished = unfinished or _tasks_not_begun(rows, facts)
    if unfinished and not any("is not finished" in note for note in notes):
        total = f"{planned:,} planned" if is_exact else "the planned"
        notes.append(f"{source} is not finished: {len(rows):,} of {total} rows exist")
    at_least = bool(unfinished) and not is_exact
    race = None if facts.identity.get("race") is None else _race_of(results.parent)
    return RunData(
        name, source, facts, manifest or {}, rows, tuple(notes), unfinished, unfinished_at_least=at_least, race=race
    )


def _race_of(directory: Path) -> dict[str, Any]:
    """The result of a race in `summary.json`; empty if there is none yet, or if it is damaged."""
    match race := read_part(directory, "race"):
        case {"leader": str(leader), "left": [*left], "level": float(), "cells": [*cells]}:
            scores = {str(as_record(cell).get("cell")): as_record(cell).get("score") for cell in cells}
            is_whole = all(isinstance(scores.get(str(name)), float) for name in (leader, *left)) and leader in left
            return race if is_whole else {}
        case _:
            return {}


def _check_cells(run: RunData, cells: Sequence[str]) -> None:
    for cell in cells:
        if cell not in run.cells:
            raise RunDirectoryError(
                f"it has no cell {cell!r}", path=run.source, hint=f"its cells: {', '.join(run.cells)}"
            )


def _short_names(paths: Sequence[str]) -> dict[str, str]:
    """The last component of each path if that is unique, else the whole path."""
    short = {path: _short_name(Path(path)) for path in paths}
    names = list(short.values())
    unique = {path: name if names.count(name) == 1 else path for path, name in short.items()}
    # Python represents bytes that are not UTF-8 as surrogates, which tables and reports cannot encode.
    return {path: name.encode("utf-8", "backslashreplace").decode() for path, name in unique.items()}


def _short_name(path: Path) -> str:
    if path.name == "results.jsonl":
        path = path.parent
    return path.name or path.resolve().name
