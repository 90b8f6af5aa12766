"""Run directories and results files as tables: one row a turn, the metrics as columns."""

# pandas ships no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvbatch.compare.manifest import RunFacts
from rwkvbatch.compare.results import read_results
from rwkvbatch.errors import RunDamagedError, RunDirectoryError, UsageError
from rwkvbatch.run.directory.status import why_unfinished

if TYPE_CHECKING:
    import pandas as pd

MAX_MANIFEST_BYTES = 64 * 2**20


@dataclass(frozen=True)
class RunData:
    """One run, read.

    Attributes:
        name: short, and unlike that of any other run that was loaded with it.
        source: as it was given.
        manifest: what was run; empty where a results file stands alone.
        rows: one row a turn; the columns are `conversation, cell, repeat, turn, seed, finish, error, prompt,
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
    results = given / "results.jsonl" if given.is_dir() else given
    if not results.is_file():
        problem = "there is no results.jsonl in it" if given.is_dir() else "there is no such run"
        raise RunDirectoryError(problem, path=source, hint="`rwkvbatch run SCRIPT --out DIR` makes one")
    manifest_path = results.with_name("manifest.json")
    notes: list[str] = []
    manifest: Mapping[str, Any] = {}
    if manifest_path.is_file():
        manifest = _read_manifest(manifest_path)
    else:
        notes.append(f"{source} has no manifest.json: whether it ran the same script cannot be checked")
    if "shard" in manifest:
        notes.append(f"{source} is only a part of a run; `rwkvbatch merge` puts the parts together")
    rows = read_results(results, notes)
    if manifest and (reason := why_unfinished(results.parent, len(rows))) is not None:
        notes.append(f"{source} is not finished: {reason}")
    if not len(rows):
        raise RunDirectoryError("it holds no finished turn", path=results, hint="let the run go on")
    return RunData(name, source, manifest, rows, tuple(notes))


def _check_cells(run: RunData, cells: Sequence[str]) -> None:
    for cell in cells:
        if cell not in run.cells:
            raise RunDirectoryError(
                f"it has no cell {cell!r}", path=run.source, hint=f"its cells: {', '.join(run.cells)}"
            )


def _read_manifest(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise RunDirectoryError(f"a manifest has at most {MAX_MANIFEST_BYTES} bytes", path=path)
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise RunDirectoryError(f"cannot be read: {error.strerror}", path=path) from None
    except (ValueError, RecursionError) as error:
        raise RunDamagedError(f"is not JSON: {error}", path=path) from None
    if not isinstance(values, dict):
        raise RunDamagedError("is not a JSON object", path=path)
    return values


def _short_names(paths: Sequence[str]) -> dict[str, str]:
    """The directory's (or file's) name where that tells the runs apart, else the whole path."""
    short = {path: _short_name(Path(path)) for path in paths}
    names = list(short.values())
    return {path: name if names.count(name) == 1 else path for path, name in short.items()}


def _short_name(path: Path) -> str:
    if path.name == "results.jsonl":
        path = path.parent
    return path.name or path.resolve().name
