"""Run directories and results files as tables: one row a turn, the metrics as columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rwkvbatch.comparison.table import read_results
from rwkvbatch.errors import RunDirectoryError, UsageError
from rwkvbatch.results.manifest import read_manifest, shard_text
from rwkvbatch.results.status import why_unfinished
from rwkvbatch.results.store import RESULTS_NAME

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class RunFacts:
    """What was run, as far as the manifest says; None or empty where it does not.

    Attributes:
        script_sha256: hash of the conversations. seed: the run seed. version: the program's. created: a date.
        command: the command line. scripts: paths. cells: each cell's settings by its name, in the plan's
        order. models: one record a checkpoint. identity: all that the replies depend on, as it stands in the
        manifest. part: such as `2/8`, of a part of a run (`--shard`).
    """

    script_sha256: str | None = None
    seed: int | None = None
    repeats: int | None = None
    version: str | None = None
    created: str | None = None
    command: str | None = None
    scripts: tuple[str, ...] = ()
    cells: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    models: tuple[Mapping[str, Any], ...] = ()
    identity: Mapping[str, Any] = field(default_factory=dict[str, Any])
    part: str | None = None

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> RunFacts:
        """Read the content of a `manifest.json`; an empty one gives empty facts."""
        identity, about = _record(manifest.get("identity")), _record(manifest.get("about"))
        script = _record(identity.get("script"))
        return cls(
            script_sha256=_text(script.get("sha256")),
            seed=_integer(identity.get("seed")),
            repeats=_integer(identity.get("repeats")),
            version=_text(about.get("rwkvbatch")),
            created=_text(about.get("created")),
            command=_text(about.get("command")),
            scripts=tuple(str(path) for path in _entries(about.get("scripts"))),
            cells={name: _record(values) for name, values in _record(identity.get("cells")).items()},
            models=tuple(_record(model) for model in _entries(about.get("models"))),
            identity=identity,
            part=shard_text(manifest.get("shard")),
        )

    def setting(self, cell: str, key: str) -> Any:
        """One setting of one cell; None where the manifest does not say."""
        return self.cells.get(cell, {}).get(key)


def varied_settings(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The settings that differ between cells, with each one's values in the order in which they come up."""
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


# pandas ships no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false


@dataclass(frozen=True)
class RunData:
    """One run, read.

    Attributes:
        name: short, and unlike that of any other run that was loaded with it.
        source: as it was given.
        manifest: what was run; empty where a results file stands alone.
        rows: one row a turn; the columns are `conversation, cell, repeat, turn, seed, finish_reason, error, prompt,
        reply,
            tags, reference, checks` and one a metric (NaN where a turn has no such number).
        notes: what a reader of a comparison must know about the file.
    """

    name: str
    source: str
    manifest: Mapping[str, Any]
    rows: pd.DataFrame
    notes: tuple[str, ...] = ()

    @property
    def facts(self) -> RunFacts:
        """What the manifest says."""
        return RunFacts.of(self.manifest)

    @property
    def conversations(self) -> list[str]:
        """Their ids, in the order of their first rows."""
        return [str(name) for name in dict.fromkeys(self.rows["conversation"])]

    @property
    def cells(self) -> list[str]:
        """The cells that have rows, in the order of their first ones."""
        return [str(cell) for cell in dict.fromkeys(self.rows["cell"])]


def load(paths: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """All turns of the runs at `paths` (run directories, results files, or `PATH::CELL`) as one table.

    The column `run` says which run a row is of; the others are those of `RunData.rows`.

    Raises:
        UsageError: a run is given twice.
        RunDirectoryError: there is no run at a path, or it cannot be read.
        RunDamagedError: a row does not match its checksum, or is no row.
    """
    import pandas as pd

    given = [paths] if isinstance(paths, str | Path) else list(paths)
    runs = load_runs([str(path) for path in given])
    return pd.concat([run.rows.assign(run=run.name) for run in runs], ignore_index=True)


def load_runs(sources: Sequence[str]) -> list[RunData]:
    """The runs at `sources`, in order, with names that tell them apart. `PATH::CELL` keeps one cell of a run.

    Raises:
        UsageError: one is given twice.
        RunDirectoryError, RunDamagedError: as `load`.
    """
    cells_of: dict[str, list[str]] = {}
    whole: set[str] = set()
    seen: set[tuple[Path, str]] = set()
    for source in sources:
        path, separator, cell = source.partition("::")
        if (Path(path), cell) in seen:
            raise UsageError(f"{source} is given twice", hint="name each run or cell once")
        seen.add((Path(path), cell))
        cells_of.setdefault(path, [])
        if separator:
            cells_of[path].append(cell)
        else:
            whole.add(path)
    names = _short_names(list(cells_of))
    runs: list[RunData] = []
    for path, cells in cells_of.items():
        run = _load_run(path, names[path])
        _check_cells(run, cells)
        if path not in whole:
            run = replace(run, rows=run.rows.loc[run.rows["cell"].isin(cells)].reset_index(drop=True))
        runs.append(run)
    return runs


def _load_run(source: str, name: str) -> RunData:
    given = Path(source)
    results = given / RESULTS_NAME if given.is_dir() else given
    if not results.is_file():
        problem = "there is no results.jsonl in it" if given.is_dir() else "there is no such run"
        raise RunDirectoryError(problem, path=source, hint="`rwkvbatch run SCRIPT --out DIR` makes one")
    notes: list[str] = []
    manifest = read_manifest(results.parent)
    if manifest is None:
        notes.append(f"{source} has no manifest.json: whether it ran the same script cannot be checked")
    elif "shard" in manifest:
        notes.append(f"{source} is only a part of a run; `rwkvbatch merge` puts the parts together")
    rows = read_results(results, notes, needs_checksum=manifest is not None)
    if manifest is not None and (reason := why_unfinished(results.parent, len(rows))) is not None:
        notes.append(f"{source} is not finished: {reason}")
    if not len(rows):
        raise RunDirectoryError("it holds no finished turn", path=results, hint="let the run go on")
    return RunData(name, source, manifest or {}, rows, tuple(notes))


def _check_cells(run: RunData, cells: Sequence[str]) -> None:
    for cell in cells:
        if cell not in run.cells:
            raise RunDirectoryError(
                f"it has no cell {cell!r}", path=run.source, hint=f"its cells: {', '.join(run.cells)}"
            )


def _short_names(paths: Sequence[str]) -> dict[str, str]:
    """The directory's (or file's) name where that tells the runs apart, else the whole path."""
    short = {path: _short_name(Path(path)) for path in paths}
    names = list(short.values())
    return {path: name if names.count(name) == 1 else path for path, name in short.items()}


def _short_name(path: Path) -> str:
    if path.name == "results.jsonl":
        path = path.parent
    return path.name or path.resolve().name
