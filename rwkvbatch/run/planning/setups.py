"""The models that a plan's cells need, and which cells need which."""

from __future__ import annotations

from dataclasses import dataclass

from rwkvbatch.run.planning.plan import Plan


@dataclass(frozen=True)
class Setup:
    """A model as some cells want it, and the numbers of those cells."""

    model: str | None
    strategy: str
    backend: str
    cells: tuple[int, ...]


def setups_of(plan: Plan) -> tuple[Setup, ...]:
    """The different models of the plan's cells, in the cells' order."""
    groups: dict[tuple[str | None, str, str], list[int]] = {}
    for number, settings in enumerate(plan.cell_settings):
        groups.setdefault((settings.model, settings.strategy, settings.backend), []).append(number)
    return tuple(Setup(*key, tuple(cells)) for key, cells in groups.items())
