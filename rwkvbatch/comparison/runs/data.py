"""A run as a table, what its manifest says about it, and its cells as variants of a comparison."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

from rwkvbatch import __version__
from rwkvbatch.results.manifest import shard_text
from rwkvbatch.results.row import SCORED
from rwkvbatch.results.script_copy import script_sha256

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false


@dataclass(frozen=True)
class RunFacts:
    """What was run, according to the manifest; fields that it lacks are None or empty.

    Attributes:
        script_sha256: hash of the conversations.
        seed: the run seed.
        version: version of rwkvbatch.
        created: a date.
        scripts: paths.
        cells: settings by the cell's name, in the plan's order.
        models: one record per checkpoint.
        identity: everything that the replies depend on.
        part: which part of a run this is (`--shard`), such as `2/8`.
        selection: the options that select conversations of the scripts, such as `--only memory --limit 20`.
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
    selection: str = ""

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> RunFacts:
        """The facts from the content of a `manifest.json`; empty facts from an empty one."""
        identity, about = as_record(manifest.get("identity")), as_record(manifest.get("about"))
        script = as_record(identity.get("script"))
        return cls(
            script_sha256=_as_text(script.get("sha256")),
            seed=as_integer(identity.get("seed")),
            version=_as_text(about.get("rwkvbatch")),
            created=_as_text(about.get("created")),
            scripts=tuple(str(path) for path in _as_list(about.get("scripts"))),
            cells={name: as_record(values) for name, values in as_record(identity.get("cells")).items()},
            models=tuple(as_record(model) for model in _as_list(about.get("models"))),
            identity=identity,
            part=shard_text(manifest.get("shard")),
            selection=_selection(_as_list(about.get("only")), as_integer(about.get("limit"))),
        )

    @classmethod
    def of_plan(cls, plan: Any) -> RunFacts:
        """The facts of a run in memory. They have no identity, because the weights are not hashed."""
        cells = zip(plan.cells, plan.cell_settings, strict=True)
        return cls(
            script_sha256=script_sha256(plan.conversations),
            seed=plan.settings.seed,
            version=__version__,
            cells={cell.name: settings.model_dump(mode="json") for cell, settings in cells},
        )


def varied_settings(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The settings that differ between cells, each with its values in order of appearance."""
    varied: dict[str, list[Any]] = {}
    keys = dict.fromkeys(name for settings in cells.values() for name in settings)
    for key in keys:
        values: list[Any] = []
        for settings in cells.values():
            value = settings.get(key)
            if value not in values:
                values.append(value)
        if len(values) > 1:
            varied[key] = values
    return varied


def as_record(value: object) -> dict[str, Any]:
    """`value` if it is an object of JSON; else an empty one."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _as_list(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _selection(only: Sequence[Any], limit: int | None) -> str:
    options = [f"--only {shlex.quote(str(pattern))}" for pattern in only]
    return " ".join(options if limit is None else [*options, f"--limit {limit}"])


def _as_text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def as_integer(value: object) -> int | None:
    """`value` if it is an integer; else None."""
    return value if isinstance(value, int) else None


@dataclass(frozen=True)
class Opening:
    """What a conversation has before the first user message.

    Attributes:
        system: the system message, if any.
        greeting: the assistant message with which it begins, if any.
        is_plain: whether its turns are plain prompts, which are read without a chat template.
    """

    system: str | None = None
    greeting: str | None = None
    is_plain: bool = False


@dataclass(frozen=True)
class RunData:
    """One run as a table.

    Attributes:
        name: a short name, unique among the runs loaded together.
        source: the path as given, or the name of a result in memory.
        facts: what was run; empty without a manifest.
        manifest: the content of `manifest.json`; empty without one.
        rows: one row per turn; the columns are `conversation, cell, repeat, turn, seed, finish_reason, error, prompt,
            reply, tags, reference, checks, unjudged, judge, choices, probe_turns, probe_tokens, probe_after`, one per
            metric, and one per weight (NaN if a turn has no value). `choices` is None without choices, and in all rows
            unless it was asked for.
        notes: warnings for readers of a comparison.
        unfinished: number of planned rows that do not exist (yet), by cell; empty if the run is finished, or if the
            number of planned rows is unknown. If the cells have different numbers of rows, only the total is known,
            and each cell has it.
        openings: what precedes the first user messages; None if it must be read from elsewhere (see `openings`).
        unfinished_at_least: whether more rows than those of `unfinished` may be missing.
        is_foreign: whether another program wrote the results.
        prompt_hashes: by conversation, another program's hash of its prompt; empty if there is none.
        race: the result of a race (`replay.planning.race.RaceResult`), empty if it has none yet; None for other runs.
    """

    name: str
    source: str
    facts: RunFacts
    manifest: Mapping[str, Any]
    rows: pd.DataFrame
    notes: tuple[str, ...] = ()
    unfinished: Mapping[str, int] = field(default_factory=dict[str, int])
    openings: Mapping[str, Opening] | None = None
    unfinished_at_least: bool = False
    is_foreign: bool = False
    prompt_hashes: Mapping[str, str] = field(default_factory=dict[str, str])
    race: Mapping[str, Any] | None = None

    @property
    def conversations(self) -> list[str]:
        """Conversation ids, in the order of their first rows."""
        return [str(name) for name in dict.fromkeys(self.rows["conversation"])]

    @cached_property
    def has_replies(self) -> bool:
        """Whether any row has a generated reply; texts and choices alone are scored."""
        return not set(self.rows["finish_reason"].unique()) <= {SCORED, "error"}

    @property
    def cells(self) -> list[str]:
        """The cells that have rows, in the order of their first rows."""
        return [str(cell) for cell in dict.fromkeys(self.rows["cell"])]


RacePlace = Literal["", "leader", "left", "dropped", "unknown"]


def _place_in(race: Mapping[str, Any] | None, cell: str) -> RacePlace:
    if race is None:
        return ""
    if not race or race.get("leader") is None:
        return "unknown"
    return "leader" if cell == race["leader"] else "left" if cell in race["left"] else "dropped"


@dataclass(frozen=True)
class Variant:
    """One cell of one run.

    Attributes:
        label: names it uniquely within the comparison.
        race: its place in the race of its run, which no test of the run's rows replaces; empty in other runs.
    """

    run: str
    cell: str
    label: str
    race: RacePlace = ""


def variants_of(runs: Sequence[RunData]) -> list[Variant]:
    """All cells of all runs that have rows, in the manifest's order, then in the order of their first rows.

    The label is the run if each run has one cell, the cell if there is one run, and `RUN::CELL` otherwise. A sweep of
    which only one cell is compared, or has rows, is labelled as a run with several cells.
    """
    one_cell_each = all(len(run.cells) == 1 and len(run.facts.cells) <= 1 for run in runs)
    variants: list[Variant] = []
    for run in runs:
        with_rows = run.cells
        for cell in dict.fromkeys((*(name for name in run.facts.cells if name in with_rows), *with_rows)):
            cell_label = cell if len(runs) == 1 else f"{run.name}::{cell}"
            label = run.name if one_cell_each else cell_label
            variants.append(Variant(run.name, cell, label, _place_in(run.race, cell)))
    return variants
