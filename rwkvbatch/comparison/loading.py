"""Loads run directories, results files and in-memory results as tables: one row per turn."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from rwkvbatch import __version__
from rwkvbatch.comparison.table import read_results, tabulate
from rwkvbatch.errors import RunDirectoryError, UsageError
from rwkvbatch.results.manifest import read_manifest, shard_text
from rwkvbatch.results.status import why_unfinished
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
            reply, tags, reference, checks` and one per metric (NaN where a turn has no number).
        notes: warnings for readers of a comparison.
    """

    name: str
    source: str
    facts: RunFacts
    manifest: Mapping[str, Any]
    rows: pd.DataFrame
    notes: tuple[str, ...] = ()

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
        run = _load_run(path, names[path])
        _check_cells(run, cells)
        if path not in whole:
            run = replace(run, rows=run.rows.loc[run.rows["cell"].isin(cells)].reset_index(drop=True))
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
    return RunData(name, name, RunFacts.of_plan(result.plan), {}, table, notes)


def _raced(name: str, where: str) -> str:
    return (
        f"{name} is a race: cells that scored worse were dropped early, so cells have different numbers of rows; "
        f"intervals and p-values here do not allow for that, {where} has the race's own result"
    )


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
    rows = read_results(results, notes, needs_checksum=manifest is not None)
    if manifest is not None and (reason := why_unfinished(results.parent, len(rows))) is not None:
        notes.append(f"{source} is not finished: {reason}")
    if not len(rows):
        raise RunDirectoryError(
            "it holds no finished turn", path=results, hint="continue the run with the same command"
        )
    return RunData(name, source, RunFacts.of(manifest or {}), manifest or {}, rows, tuple(notes))


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
    return {path: name if names.count(name) == 1 else path for path, name in short.items()}


def _short_name(path: Path) -> str:
    if path.name == "results.jsonl":
        path = path.parent
    return path.name or path.resolve().name
