"""Run directories and results files as tables: one row a turn, the metrics as columns."""

# pandas ships no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import gc
import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

from rwkvbatch.compare.manifest import RunFacts
from rwkvbatch.compare.metrics import TURN_METRICS
from rwkvbatch.errors import RunDamagedError, RunDirectoryError

if TYPE_CHECKING:
    import pandas as pd

MAX_MANIFEST_BYTES = 64 * 2**20
_CRC_KEY = b',"crc":"'
_CRC_TAIL_BYTES = len(_CRC_KEY) + 8 + len(b'"}')
_CONTENT = (
    "conversation", "cell", "repeat", "turn", "seed", "finish", "error", "prompt", "reply", "tags", "reference",
    "checks",
)  # fmt: skip
_INTEGERS = ("repeat", "turn", "seed")
_READERS = [metric.of for metric in TURN_METRICS if metric.of is not None]


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
        RunDirectoryError, RunDamagedError: as `load`.
    """
    cells_of: dict[str, list[str]] = {}
    whole: set[str] = set()
    for source in sources:
        path, separator, cell = source.partition("::")
        cells_of.setdefault(path, [])
        if separator:
            cells_of[path].append(cell)
        else:
            whole.add(path)
    names = _short_names(list(cells_of))
    runs: list[RunData] = []
    for path, cells in cells_of.items():
        run = _load_run(path, names[path])
        runs.append(run if path in whole else _only_cells(run, cells))
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
    rows = _read_results(results, notes)
    if not len(rows):
        raise RunDirectoryError("it holds no finished turn", path=results, hint="let the run go on")
    return RunData(name, source, manifest, rows, tuple(notes))


def _only_cells(run: RunData, cells: Sequence[str]) -> RunData:
    for cell in cells:
        if cell not in run.cells:
            raise RunDirectoryError(
                f"it has no cell {cell!r}", path=run.source, hint=f"its cells: {', '.join(run.cells)}"
            )
    return replace(run, rows=run.rows.loc[run.rows["cell"].isin(list(cells))].reset_index(drop=True))


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


def _read_results(path: Path, notes: list[str]) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    contents: list[tuple[Any, ...]] = []
    numbers: list[list[float | None]] = []
    shared: dict[str, str] = {}
    try:
        with path.open("rb") as file, _no_collection():
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    notes.append(f"{path}: the last line is cut short (a run that was stopped?); left out")
                    break
                if line.isspace():
                    continue
                try:
                    row = _checked(line)
                    contents.append(_content(row, shared))
                    numbers.append([of(row) for of in _READERS])
                except (
                    ValueError,
                    KeyError,
                    TypeError,
                    AttributeError,
                    OverflowError,
                    RecursionError,
                ) as error:
                    raise RunDamagedError(
                        f"is no row of a run ({type(error).__name__}: {error})",
                        path=path,
                        line=number,
                        hint="`rwkvbatch run` into the same directory says what can be saved",
                    ) from None
    except OSError as error:
        raise RunDirectoryError(f"cannot be read: {error.strerror}", path=path) from None
    columns: dict[str, Any] = {
        name: pd.Series(values, dtype="int64" if name in _INTEGERS else "object")
        for name, values in zip(_CONTENT, zip(*contents, strict=True), strict=False)
    }
    metrics = np.array(numbers, dtype=np.float64).reshape(len(numbers), len(_READERS))
    columns.update({metric.name: metrics[:, place] for place, metric in enumerate(TURN_METRICS)})
    frame = pd.DataFrame(columns)
    if not len(frame):
        return frame
    key = ["conversation", "cell", "repeat", "turn"]
    twice = frame.duplicated(key, keep="last")
    if twice.any():
        notes.append(f"{path}: {int(twice.sum())} turns are there more than once; the last one counts")
        frame = frame.loc[~twice].reset_index(drop=True)
    return frame


@contextmanager
def _no_collection() -> Generator[None]:
    """Rows hold no cycles: looking for some in a growing heap, again and again, costs a fifth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _content(row: dict[str, Any], shared: dict[str, str]) -> tuple[Any, ...]:
    """The columns of `_CONTENT`. Scripts' texts come again in every cell and repeat: `shared` has one copy of each."""
    prompt, reference = row["prompt"], row["reference"]
    text = None if reference is None else reference["text"]
    return (
        row["conversation"],
        row["cell"],
        row["repeat"],
        row["turn"],
        row["seed"],
        row["finish"],
        row["error"],
        shared.setdefault(prompt, prompt),
        row["reply"],
        tuple(row["tags"]),
        None if text is None else shared.setdefault(text, text),
        row["checks"],
    )


def _checked(line: bytes) -> dict[str, Any]:
    body = line.rstrip()
    tail = body[-_CRC_TAIL_BYTES:]
    if tail.startswith(_CRC_KEY):
        content = body[:-_CRC_TAIL_BYTES] + b"}"
        if tail[len(_CRC_KEY) : -2] != b"%08x" % crc32(content):
            raise ValueError("its checksum does not match")
        body = content
    row = _parsed(body)
    if not isinstance(row, dict):
        raise TypeError("not a JSON object")
    return row


def _parsed(body: bytes) -> Any:
    """JSON, fast; what orjson refuses (half a surrogate pair, say) is left to the standard library."""
    import orjson

    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return json.loads(body)


def _short_names(paths: Sequence[str]) -> dict[str, str]:
    """The directory's (or file's) name where that tells the runs apart, else the whole path."""
    short = {path: _short_name(Path(path)) for path in paths}
    names = list(short.values())
    return {path: name if names.count(name) == 1 else path for path, name in short.items()}


def _short_name(path: Path) -> str:
    if path.name == "results.jsonl":
        path = path.parent
    return path.name or path.resolve().name
