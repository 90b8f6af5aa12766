"""Loads run directories, results files and in-memory results as tables: one row per turn."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, cast, runtime_checkable

from rwkvbatch import __version__
from rwkvbatch.comparison.foreign import read_foreign
from rwkvbatch.comparison.table import NO_RESULTS, read_results, tabulate
from rwkvbatch.errors import RunDirectoryError, RwkvBatchError, UsageError
from rwkvbatch.results.manifest import FORMER, read_manifest, shard_text
from rwkvbatch.results.status import planned_rows, why_unfinished
from rwkvbatch.results.store import RESULTS_NAME

if TYPE_CHECKING:
    import pandas as pd

    from rwkvbatch.results.row import Row

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false


@runtime_checkable
class ResultInMemory(Protocol):
    """What `compare` uses of the result of `rwkvbatch.run`; `directory` is None where the rows are in memory."""

    @property
    def directory(self) -> Path | None: ...
    @property
    def rows(self) -> Callable[[], Iterator[Row]]: ...
    @property
    def plan(self) -> Any: ...
    @property
    def summary(self) -> Any: ...


@dataclass(frozen=True)
class RunFacts:
    """What was run, from the manifest; None or empty where it does not say.

    Attributes:
        script_sha256: hash of the conversations. seed: the run seed. version: of rwkvbatch. created: a date.
        scripts: paths. cells: settings by the cell's name, in the plan's order. models: one record per checkpoint.
        identity: all that the replies depend on. part: such as `2/8`, of a part of a run (`--shard`).
    """

    script_sha256: str | None = None
    seed: int | None = None
    version: str | None = None
    created: str | None = None
    scripts: tuple[str, ...] = ()
    cells: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    models: tuple[Mapping[str, Any], ...] = ()
    identity: Mapping[str, Any] = field(default_factory=dict[str, Any])
    part: str | None = None

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> RunFacts:
        """The facts in the content of a `manifest.json`; an empty one gives empty facts."""
        identity, about = _record(manifest.get("identity")), _record(manifest.get("about"))
        script = _record(identity.get("script"))
        return cls(
            script_sha256=_text(script.get("sha256")),
            seed=_integer(identity.get("seed")),
            version=_text(about.get("rwkvbatch")),
            created=_text(about.get("created")),
            scripts=tuple(str(path) for path in _entries(about.get("scripts"))),
            cells={name: _record(values) for name, values in _record(identity.get("cells")).items()},
            models=tuple(_record(model) for model in _entries(about.get("models"))),
            identity=identity,
            part=shard_text(manifest.get("shard")),
        )

    @classmethod
    def of_plan(cls, plan: Any) -> RunFacts:
        """The facts of a run in memory. Without hashes of the weights there is no identity."""
        hashes = "".join(conversation.sha256 for conversation in plan.conversations)
        cells = zip(plan.cells, plan.cell_settings, strict=True)
        return cls(
            script_sha256=sha256(hashes.encode()).hexdigest(),
            seed=plan.settings.seed,
            version=__version__,
            cells={cell.name: settings.model_dump(mode="json") for cell, settings in cells},
        )


def varied_settings(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The settings that differ between cells, each with its values in order of appearance."""
    varied: dict[str, list[Any]] = {}
    keys = dict.fromkeys(key for settings in cells.values() for key in settings)
    for key in keys:
        values: list[Any] = []
        for settings in cells.values():
            value = settings.get(key)
            if value not in values:
                values.append(value)
        if len(values) > 1:
            varied[key] = values
    return varied


def _record(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _entries(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) else None


@dataclass(frozen=True)
class RunData:
    """One run as a table.

    Attributes:
        name: short and unique among the runs loaded together.
        source: the path as given, or the name of a result in memory.
        facts: what was run; empty without a manifest.
        manifest: the content of `manifest.json`; empty where there is none.
        rows: one row per turn; the columns are `conversation, cell, repeat, turn, seed, finish_reason, error, prompt,
            reply, tags, reference, checks, unjudged, judge, probe_turns, probe_tokens, probe_after`, one per metric,
            and one per weight (NaN where a turn has no number).
        notes: warnings for readers of a comparison.
        unfinished: by cell, the number of planned rows that are not there (yet); empty for a finished run, or where
            nothing says how many were planned. Of runs whose cells have different numbers of rows only the total is
            known: each cell then has it.
        systems: the system messages by conversation; None where the run does not hold them (see `system_messages`).
    """

    name: str
    source: str
    facts: RunFacts
    manifest: Mapping[str, Any]
    rows: pd.DataFrame
    notes: tuple[str, ...] = ()
    unfinished: Mapping[str, int] = field(default_factory=dict[str, int])
    systems: Mapping[str, str] | None = None

    @property
    def conversations(self) -> list[str]:
        """Conversation ids, in the order of their first rows."""
        return [str(name) for name in dict.fromkeys(self.rows["conversation"])]

    @property
    def cells(self) -> list[str]:
        """The cells that have rows, in the order of their first rows."""
        return [str(cell) for cell in dict.fromkeys(self.rows["cell"])]


Source = str | os.PathLike[str] | ResultInMemory
"""A run directory or results file, `PATH::CELL` for one cell of it, or the result of `rwkvbatch.run`."""


def load(runs: Source | Iterable[Source]) -> pd.DataFrame:
    """All turns of `runs` as one table: the columns of `RunData.rows`, and `run` with the name of the run.

    Raises:
        UsageError: a run is given twice.
        RunDirectoryError: there is no run at a path, or it cannot be read.
        RunDamagedError: a line does not match its checksum, or is not a row.
    """
    return joined(load_runs(runs))


def joined(runs: Sequence[RunData]) -> pd.DataFrame:
    """The rows of all runs, with a column `run`."""
    import pandas as pd

    return pd.concat([run.rows.assign(run=run.name) for run in runs], ignore_index=True)


def load_runs(sources: Source | Iterable[Source]) -> list[RunData]:
    """The runs of `sources`, in order. Several `PATH::CELL` of one path make one run.

    Raises:
        UsageError, RunDirectoryError, RunDamagedError: as `load`.
    """
    given = [sources] if isinstance(sources, str | os.PathLike | ResultInMemory) else list(sources)
    if not given:
        raise UsageError("no run is given", hint="name a run directory, or give the result of `rwkvbatch.run`")
    cells_of: dict[str, list[str]] = {}
    whole: set[str] = set()
    seen: set[object] = set()
    on_disk: set[str] = set()
    in_memory: dict[str, ResultInMemory] = {}
    for number, source in enumerate(given, start=1):
        if isinstance(source, ResultInMemory) and source.directory is None:
            path, separator, key = f"result-{number}", "", id(source)
            in_memory[path] = source
        else:
            location = source.directory if isinstance(source, ResultInMemory) else source
            path, separator, cell = os.fspath(location or "").partition("::")
            key = (Path(path), cell)
            on_disk.add(path)
            if separator:
                cells_of.setdefault(path, []).append(cell)
        if key in seen:
            raise UsageError(f"{source} is given twice", hint="name each run or cell once")
        seen.add(key)
        cells_of.setdefault(path, [])
        if not separator:
            whole.add(path)
    for name in in_memory.keys() & on_disk:
        raise UsageError(f"{name} is the name of a result in memory", hint=f"write the path as ./{name}")
    names = _short_names(list(cells_of))
    runs: list[RunData] = []
    for path, cells in cells_of.items():
        if path in in_memory:
            runs.append(_in_memory(path, in_memory[path]))
            continue
        run = _load_foreign(path, names[path], cells) or _load_run(path, names[path])
        _check_cells(run, cells)
        if path not in whole:
            rows = run.rows.loc[run.rows["cell"].isin(cells)].reset_index(drop=True)
            unfinished = {cell: count for cell, count in run.unfinished.items() if cell in cells}
            run = replace(run, rows=rows, unfinished=unfinished)
        runs.append(run)
    return runs


def _in_memory(name: str, result: ResultInMemory) -> RunData:
    table = tabulate(result.rows())
    if not len(table):
        raise RunDirectoryError(f"{name} holds no finished turn")
    done, planned = len(table), int(result.summary.planned)
    notes = (f"{name} is not finished: {done:,} of {planned:,} rows are there",) if done < planned else ()
    if getattr(result, "race", None) is not None:
        notes += (_raced(name, "`result.race`"),)
    facts = RunFacts.of_plan(result.plan)
    systems = {each.id: each.system for each in result.plan.conversations if each.system}
    return RunData(name, name, facts, {}, table, notes, _unfinished(table, planned, list(facts.cells)), systems)


MAX_SCRIPT_BYTES: Final = 1 << 28
"""Scripts larger than this are not read again."""


def system_messages(run: RunData) -> Mapping[str, str] | None:
    """The system messages by conversation; None where the run does not have them.

    Rows do not hold them; the script's copy does. Of runs of earlier versions, which have none, the script is read
    again, whose hash must be that of the run.
    """
    if run.systems is not None:
        return run.systems
    from rwkvbatch.results.script_copy import read_script
    from rwkvbatch.script.reader import read_scripts

    source = Path(run.source)
    with suppress(RwkvBatchError):  # damaged, or a check's extra is not installed here
        copy = read_script(source if source.is_dir() else source.parent, run.manifest) if run.manifest else None
        if copy is not None:
            return {each.id: each.system for each in copy if each.system}
    paths = [Path(path) for path in run.facts.scripts]
    expected, number = run.facts.script_sha256, _record(run.facts.identity.get("script")).get("conversations")
    try:
        if not paths or sum(path.stat().st_size if path.is_file() else math.inf for path in paths) > MAX_SCRIPT_BYTES:
            return None
        found = read_scripts([str(path) for path in paths], skip_bad=True).conversations[:number]
    except (OSError, ValueError, TypeError, RwkvBatchError):
        return None
    if sha256("".join(each.sha256 for each in found).encode()).hexdigest() != expected:
        return None
    return {each.id: each.system for each in found if each.system}


def _unfinished(rows: pd.DataFrame, planned: int | None, cells: Sequence[str]) -> dict[str, int]:
    """By cell, the number of planned rows that are not in `rows`; empty where none is missing.

    Args:
        planned: rows of the whole run; None where unknown. cells: those of the plan.
    """
    if planned is None or len(rows) >= planned:
        return {}
    there = {str(cell): int(count) for cell, count in rows["cell"].value_counts().items()}
    names = list(dict.fromkeys((*cells, *there)))
    each, rest = divmod(planned, len(names))
    if rest or max(there.values(), default=0) > each:
        return dict.fromkeys(names, planned - len(rows))
    return {name: each - there.get(name, 0) for name in names if there.get(name, 0) < each}


def _tasks_not_begun(rows: pd.DataFrame, facts: RunFacts) -> dict[str, int]:
    """By cell, the number of conversations and repetitions in the manifest without any row; not of a part of a run.

    For directories without `status.json` and `summary.json`. Each stands for at least one planned row.
    """
    script, repeats = _record(facts.identity.get("script")), _integer(facts.identity.get("repeats"))
    conversations = _integer(script.get("conversations"))
    if facts.part is not None or conversations is None or repeats is None:
        return {}
    tasks = Counter(cell for cell, *_ in set(zip(rows["cell"], rows["conversation"], rows["repeat"], strict=True)))
    there = {name: conversations * repeats - tasks[name] for name in facts.cells}
    return {name: count for name, count in there.items() if count > 0}


def _raced(name: str, where: str) -> str:
    return (
        f"{name} is a race: how many rows a cell has depends on the scores; "
        f"intervals and p-values here do not allow for that, {where} has the race's own result"
    )


def _load_foreign(source: str, name: str, cells: Sequence[str]) -> RunData | None:
    """The results of another program, in which `cells` are chosen; None for a run of this one."""
    path = Path(source)
    if (path / RESULTS_NAME).is_file() or (found := read_foreign(path)) is None:
        return None
    rows, notes = found.rows, found.notes
    names = list(dict.fromkeys(row.cell for row in rows))
    if found.is_metric and not cells:
        rows = [row for row in found.rows if row.cell == names[0]]
        without = {tag for row in found.rows for tag in row.tags} - {tag for row in rows for tag in row.tags}
        if without:
            notes.append(f"{source}: tasks without {names[0]} are left out: {', '.join(sorted(without))}")
        if others := ", ".join(names[1:]):
            notes.append(f"{source}: the score is {names[0]}; another one is named as {source}::METRIC: {others}")
    notes = [f"{source} is of {found.program}: that both sides had the same prompts cannot be checked", *notes]
    return RunData(name, source, RunFacts(), {}, tabulate(rows), tuple(notes))


def _load_run(source: str, name: str) -> RunData:
    given = Path(source)
    results = given / RESULTS_NAME if given.is_dir() else given
    if not results.is_file():
        problem = "there is no results.jsonl in it" if given.is_dir() else "there is no such run"
        raise RunDirectoryError(problem, path=source, hint="make one with `rwkvbatch run SCRIPT --out DIR`")
    notes: list[str] = []
    manifest = read_manifest(results.parent)
    if manifest is None:
        notes.append(f"{source} has no manifest.json: that it replayed the same script cannot be checked")
    elif "shard" in manifest:
        notes.append(f"{source} is one part of a run; `rwkvbatch merge` combines the parts")
    if manifest is not None and manifest["identity"].get("race") is not None:
        notes.append(_raced(source, f"`rwkvbatch show {source}`"))
    if manifest is not None and FORMER in manifest:
        notes.append(f"{source}: a command was interrupted while it adapted the rows; run it again to finish")
    rows = read_results(results, notes, needs_checksum=manifest is not None)
    if manifest is not None and (reason := why_unfinished(results.parent, len(rows))) is not None:
        notes.append(f"{source} is not finished: {reason}")
    if not len(rows):
        hint = "continue the run with the same command" if manifest is not None else NO_RESULTS
        raise RunDirectoryError("it holds no finished turn", path=results, hint=hint)
    facts = RunFacts.of(manifest or {})
    planned = None if manifest is None else planned_rows(results.parent)
    unfinished = _unfinished(rows, planned, list(facts.cells))
    if manifest is not None and planned is None:
        unfinished = _tasks_not_begun(rows, facts)
    if unfinished and not any("is not finished" in note for note in notes):
        of = "the planned" if planned is None else f"{planned:,} planned"
        notes.append(f"{source} is not finished: {len(rows):,} of {of} rows are there")
    return RunData(name, source, facts, manifest or {}, rows, tuple(notes), unfinished)


def _check_cells(run: RunData, cells: Sequence[str]) -> None:
    for cell in cells:
        if cell not in run.cells:
            raise RunDirectoryError(
                f"it has no cell {cell!r}", path=run.source, hint=f"its cells: {', '.join(run.cells)}"
            )


def _short_names(paths: Sequence[str]) -> dict[str, str]:
    """The last component of each path where that is unique, else the whole path."""
    short = {path: _short_name(Path(path)) for path in paths}
    names = list(short.values())
    shown = {path: name if names.count(name) == 1 else path for path, name in short.items()}
    # Of a name that is not UTF-8, Python has bytes as surrogates, which tables and reports cannot hold.
    return {path: name.encode("utf-8", "backslashreplace").decode() for path, name in shown.items()}


def _short_name(path: Path) -> str:
    if path.name == "results.jsonl":
        path = path.parent
    return path.name or path.resolve().name
