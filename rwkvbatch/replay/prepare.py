"""From what the user gave to a plan: settings, grid, scripts. Loads no model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rwkvbatch.config import ALIASES
from rwkvbatch.errors import UsageError
from rwkvbatch.replay.grid import Cell, GridFile, make_cells
from rwkvbatch.replay.plan import Plan, select
from rwkvbatch.replay.row_index import Shard
from rwkvbatch.replay.settings import (
    Layered,
    Origin,
    layer_settings,
    option_name,
    read_toml,
    told_with_errors,
)
from rwkvbatch.script.reader import Script, read_scripts

SKIPPED_SHOWN = 5
CELLS_SHOWN = 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunArguments:
    """What a run is made of, as it was given.

    Attributes:
        scripts: files; `-` is standard input.
        values: settings by field name. lists: settings that take several values each, a dimension of the grid.
        grid: a TOML file with a grid. config: a TOML file with settings.
        environment: `os.environ`, or None to leave it out.
        skip_bad: set bad lines of a script aside instead of refusing the script.
        shard: run only this part, such as `2/8`.
    """

    scripts: tuple[str, ...]
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    lists: Mapping[str, Sequence[Any]] = field(default_factory=dict[str, Sequence[Any]])
    grid: Path | None = None
    config: Path | None = None
    environment: Mapping[str, str] | None = None
    skip_bad: bool = False
    shard: str | None = None


@dataclass(frozen=True)
class Prepared:
    """A plan, and the script that it was made of."""

    plan: Plan
    script: Script


def prepare(arguments: RunArguments) -> Prepared:
    """Read everything that was given and cross it into a plan.

    Raises:
        UsageError: a setting, the grid or the selection cannot be.
        ScriptError: a script cannot be read.
    """
    layered = layer_settings(arguments.values, environment=arguments.environment, config=arguments.config)
    files = _grid_files(layered.grid, arguments)
    cells = make_cells(arguments.lists, *files)
    layered = replace(layered, origins=_origins(layered.origins, cells, files))
    with told_with_errors(layered.origins):
        return _prepare(arguments, layered, cells)


def _prepare(arguments: RunArguments, layered: Layered, cells: Sequence[Cell]) -> Prepared:
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
    shard = None if arguments.shard is None else Shard.parse(arguments.shard)
    if shard is not None and settings.until_ci is not None:
        raise UsageError(
            "--until-ci decides by the rows of all conversations, and --shard runs only some of them",
            hint="leave one of the two out",
        )
    script = read_scripts(arguments.scripts, limits=settings.script_limits, skip_bad=arguments.skip_bad)
    _tell_skipped(script)
    plan = Plan(select(script.conversations, settings), cells, layered, shard)
    if settings.max_repeats is not None and not any(t.checks for c in plan.conversations for t in c.turns):
        raise UsageError("--until-ci compares the scores of checks, and the script has none")
    _tell_needless_repeats(plan)
    return Prepared(plan, script)


def _tell_needless_repeats(plan: Plan) -> None:
    """Say where repeats cannot differ: replies there are greedy."""
    if plan.repeats == 1 or not (greedy := plan.greedy_cells()):
        return
    settings = plan.settings
    asked = settings.repeats if settings.max_repeats is None else f"{settings.repeats}..{plan.repeats}"
    if len(greedy) == len(plan.cells):
        where = " in any cell" if len(greedy) > 1 else ""
        way_out = "leave it out"
    else:
        named = ", ".join(cell.name for cell in greedy[:CELLS_SHOWN])
        where = f" in the cell{'s' if len(greedy) > 1 else ''} {named}" + (
            f" and {len(greedy) - CELLS_SHOWN} more" if len(greedy) > CELLS_SHOWN else ""
        )
        way_out = "run such cells without it"
    _log.warning(
        "--repeats %s changes nothing%s: replies are greedy, so all repeats are the same; %s, "
        "or sample (--temp 1 --top-p 0.5, say)",
        asked,
        where,
        way_out,
    )


def _tell_skipped(script: Script) -> None:
    """Say why each bad line was set aside; of many, only the log file and `--verbose` hear of all."""
    for number, line in enumerate(script.skipped):
        level = logging.WARNING if number < SKIPPED_SHOWN else logging.INFO
        _log.log(level, "set aside: %s", line.error, extra={"path": line.source.path, "line": line.source.line})
    if len(script.skipped) > SKIPPED_SHOWN:
        _log.warning("set aside: %d lines more", len(script.skipped) - SKIPPED_SHOWN)


def split_lists(values: Mapping[str, Any], listed: Sequence[str]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Values of one kind and values that are lists: of the settings in `listed`, `0.3,0.7` or a list of several.

    Raises:
        UsageError: an empty place in a list.
    """
    single: dict[str, Any] = {}
    several: dict[str, list[Any]] = {}
    for key, value in values.items():
        full = ALIASES.get(key, key)
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
            raise UsageError(f"{option_name(full)} has an empty place in {value!r}")
        if len(parts) == 1:
            single[full] = parts[0]
        else:
            several[full] = parts
    return single, several


def _origins(of_settings: Sequence[Origin], cells: Sequence[Cell], files: Sequence[GridFile]) -> tuple[Origin, ...]:
    """Those of the settings, and of what the grid gives in their place in some cells."""
    varied = {option_name(key) for cell in cells for key in cell.overrides}
    return (
        *(replace(origin, is_only=origin.option not in varied) for origin in of_settings),
        *(origin for file in files for origin in file.origins(cells)),
    )


def _grid_files(of_config: Mapping[str, Any], arguments: RunArguments) -> list[GridFile]:
    files: list[GridFile] = []
    if arguments.config is not None:
        files.append(GridFile(str(arguments.config), of_config))
    if arguments.grid is not None:
        files.append(GridFile(str(arguments.grid), read_toml(arguments.grid, "--grid")))
    return files
