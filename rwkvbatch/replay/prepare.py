"""Makes the plan of a run from settings, grids and scripts. Loads no model."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from rwkvbatch.config import GRID_SETTINGS, HistoryMode, RunSettings, ThinkMode, full_name, option_name
from rwkvbatch.errors import UsageError
from rwkvbatch.replay.grid import Cell, GridFile, make_cells
from rwkvbatch.replay.layers import Layered, Origin, layer_settings, naming_origins, read_toml
from rwkvbatch.replay.plan import Plan, select
from rwkvbatch.replay.race import FIRST_LOOK, turns_of_draws
from rwkvbatch.replay.row_index import Shard
from rwkvbatch.script.reader import Script, read_scripts

SKIPPED_SHOWN = 5
CELLS_SHOWN = 8

_log = logging.getLogger(__name__)


PathLike = str | os.PathLike[str]
_Order = Literal["top-p-first", "temperature-first"]


class RunKeywords(TypedDict, total=False):
    """Fields of `RunSettings`, and `preset`; a list of values makes a dimension of the grid."""

    preset: str | Sequence[str]
    temperature: float | Sequence[float]
    temp: float | Sequence[float]
    top_p: float | Sequence[float]
    top_k: int | Sequence[int]
    presence_penalty: float | Sequence[float]
    frequency_penalty: float | Sequence[float]
    penalty_decay: float | Sequence[float]
    order: _Order | Sequence[_Order]
    banned_token_ids: Sequence[int]
    max_tokens: int | Sequence[int]
    max_seconds: float | Sequence[float] | None
    stop: Sequence[str]
    think: ThinkMode | Sequence[ThinkMode]
    history: HistoryMode | Sequence[HistoryMode]
    strategy: str | Sequence[str]
    backend: str | Sequence[str]
    state: str | Sequence[str] | None
    template: str | Sequence[str] | None
    prelude: str | Sequence[str] | None
    seed: int
    repeats: int | str
    max_repeats: int | None
    until_ci: float | None
    race: bool
    race_margin: float | None
    race_level: float
    race_rows: int | None
    limit: int | None
    only: Sequence[str]
    shuffle_seed: int | None
    batch_size: int
    threads: int | None
    workers: int | None
    devices: Sequence[str]
    ray: str | None
    state_memory: int | str | None
    max_prompt_tokens: int | None
    max_failures: int | None
    max_line_bytes: int | str
    max_turns: int
    max_conversations: int


@dataclass(frozen=True)
class Prepared:
    """A plan, and the script that it was made from."""

    plan: Plan
    script: Script


def prepare(
    scripts: PathLike | Sequence[PathLike],
    *,
    model: PathLike | Sequence[PathLike] | None = None,
    grid: PathLike | None = None,
    config: PathLike | None = None,
    environment: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    shard: str | None = None,
    **settings: Unpack[RunKeywords],
) -> Prepared:
    """The plan of a run; the arguments are those of `rwkvbatch.run`.

    Raises:
        UsageError: a setting, the grid or the selection is not allowed.
        ScriptError: a script cannot be read.
    """
    given: dict[str, Any] = {**settings}
    if model is not None:
        given["model"] = os.fspath(model) if isinstance(model, (str, os.PathLike)) else [os.fspath(m) for m in model]
    values, lists = split_lists(given)
    layered = layer_settings(values, environment=environment, config=None if config is None else Path(config))
    files = [] if config is None else [GridFile(os.fspath(config), layered.grid)]
    if grid is not None:
        files.append(GridFile(os.fspath(grid), read_toml(Path(grid), "--grid")))
    cells = make_cells(lists, *files)
    layered = replace(layered, origins=_origins(layered.origins, cells, files))
    with naming_origins(layered.origins):
        part = None if shard is None else Shard.parse(shard)
        _refuse_contradictions(layered, cells, part)
        script = read_scripts(script_names(scripts), limits=layered.settings.script_limits, skip_bad=skip_bad)
        _log_skipped(script)
        plan = Plan(select(script.conversations, layered.settings), cells, layered, part)
        if plan.settings.max_repeats is not None and not any(t.checks for c in plan.conversations for t in c.turns):
            raise UsageError("--until-ci compares the scores of checks, and the script has none")
        if plan.draws is not None:
            _check_race(plan)
        else:
            _warn_of_needless_repeats(plan)
        return Prepared(plan, script)


def script_names(scripts: PathLike | Sequence[PathLike]) -> tuple[str, ...]:
    """One script or several as paths."""
    paths = [scripts] if isinstance(scripts, (str, os.PathLike)) else scripts
    return tuple(os.fspath(path) for path in paths)


def _refuse_contradictions(layered: Layered, cells: Sequence[Cell], shard: Shard | None) -> None:
    settings = layered.settings
    varied = {key for cell in cells for key in cell.overrides}
    for key in sorted(varied & layered.named):
        raise UsageError(
            f"{option_name(key)} is given for all cells, and the grid gives it for some",
            hint="leave one of the two out",
        )
    if (settings.max_repeats is None) != (settings.until_ci is None):
        raise UsageError("--repeats LOW..HIGH and --until-ci belong together", hint="give both, or --repeats N")
    if settings.max_repeats is not None and settings.max_repeats < settings.repeats:
        raise UsageError(f"--repeats must rise, got {settings.repeats}..{settings.max_repeats}")
    if settings.max_repeats is not None and len(cells) < 2:
        raise UsageError(
            "--until-ci compares cells with the first one, and there is only one cell",
            hint="give several, such as --temp 0.3,0.7, or --repeats N alone",
        )
    _refuse_in_race(settings, cells, shard)
    if shard is not None and settings.until_ci is not None:
        raise UsageError(
            "--until-ci decides by the rows of all conversations, and --shard runs only some of them",
            hint="leave one of the two out",
        )


def _refuse_in_race(settings: RunSettings, cells: Sequence[Cell], shard: Shard | None) -> None:
    if not settings.race:
        for key in ("race_margin", "race_level", "race_rows"):
            if getattr(settings, key) != RunSettings.model_fields[key].default:
                raise UsageError(
                    f"{option_name(key)} belongs to --race, which is not given", hint="give both or neither"
                )
        return
    if settings.until_ci is not None:
        raise UsageError(
            "--race and --until-ci both decide how many repetitions a cell gets", hint="leave one of the two out"
        )
    if shard is not None:
        raise UsageError(
            "--race decides by the rows of all conversations, and --shard runs only some of them",
            hint="leave one of the two out; --workers and --ray spread a race over processes and machines",
        )
    if len(cells) < 2:
        raise UsageError(
            "--race drops cells that are worse than another one, and there is only one cell",
            hint="give several, such as --temp 0.3,0.7",
        )


def _check_race(plan: Plan) -> None:
    """Refuse a race without checks; log which conversations cannot be drawn."""
    unchecked = sum(1 for c in plan.conversations if not any(turn.checks for turn in c.turns))
    if unchecked == len(plan.conversations):
        raise UsageError("--race compares the scores of checks, and the script has none")
    if unchecked:
        _log.warning(
            "--race leaves out %d of %d conversations, which have no checks", unchecked, len(plan.conversations)
        )
    rows = plan.settings.race_rows
    least = len(plan.cells) * sum(turns_of_draws(plan)[:FIRST_LOOK])
    if rows is not None and rows < least:
        raise UsageError(
            f"--race-rows must be at least {least:,}, the rows of the first {FIRST_LOOK} draws in "
            f"{len(plan.cells)} cells, before which nothing is decided; got {rows:,}"
        )


def _warn_of_needless_repeats(plan: Plan) -> None:
    """Log where repeats cannot differ because replies are greedy."""
    if plan.repeats == 1 or not (greedy := plan.greedy_cells()):
        return
    settings = plan.settings
    asked = settings.repeats if settings.max_repeats is None else f"{settings.repeats}..{plan.repeats}"
    if len(greedy) == len(plan.cells):
        where = " in any cell" if len(greedy) > 1 else ""
        remedy = "leave it out"
    else:
        named = ", ".join(cell.name for cell in greedy[:CELLS_SHOWN])
        where = f" in the cell{'s' if len(greedy) > 1 else ''} {named}" + (
            f" and {len(greedy) - CELLS_SHOWN} more" if len(greedy) > CELLS_SHOWN else ""
        )
        remedy = "run such cells without it"
    _log.warning(
        "--repeats %s changes nothing%s: replies are greedy, so all repeats are the same; %s, "
        "or sample (--temp 1 --top-p 0.5, say)",
        asked,
        where,
        remedy,
    )


def _log_skipped(script: Script) -> None:
    """Log why each bad line was set aside; from the `SKIPPED_SHOWN`th on at level `info`."""
    for number, line in enumerate(script.skipped):
        level = logging.WARNING if number < SKIPPED_SHOWN else logging.INFO
        _log.log(level, "set aside: %s", line.error, extra={"path": line.source.path, "line": line.source.line})
    if len(script.skipped) > SKIPPED_SHOWN:
        _log.warning("set aside: %d lines more", len(script.skipped) - SKIPPED_SHOWN)


def split_lists(
    values: Mapping[str, Any], listed: Sequence[str] = GRID_SETTINGS
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Single values, and lists of values, by full names.

    Args:
        listed: settings of which `0.3,0.7` or a list are several values.

    Raises:
        UsageError: an empty item in a list.
    """
    single: dict[str, Any] = {}
    several: dict[str, list[Any]] = {}
    for key, value in values.items():
        full = full_name(key)
        parts: list[Any]
        if full not in listed:
            single[full] = value
            continue
        if isinstance(value, str) and "," in value:
            parts = [part.strip() for part in value.split(",")]
        elif isinstance(value, (list, tuple)):
            parts = list(value)  # pyright: ignore[reportUnknownArgumentType]
        else:
            parts = [value]
        if not parts or "" in parts:
            raise UsageError(f"{option_name(full)} has an empty item in {value!r}")
        if len(parts) == 1:
            single[full] = parts[0]
        else:
            several[full] = parts
    return single, several


def _origins(of_settings: Sequence[Origin], cells: Sequence[Cell], files: Sequence[GridFile]) -> tuple[Origin, ...]:
    """Origins of the settings, and of those that the grid gives to some cells."""
    varied = {option_name(key) for cell in cells for key in cell.overrides}
    return (
        *(replace(origin, is_only=origin.option not in varied) for origin in of_settings),
        *(origin for file in files for origin in file.origins(cells)),
    )
