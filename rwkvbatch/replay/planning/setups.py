"""The different models of a plan's cells (`Setup`), and their descriptions (`Spec`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self, Union

from rwkvbatch.config import NO_ADAPTER
from rwkvbatch.endpoint.served import Endpoint, ServedSpec
from rwkvbatch.replay.planning.plan import Plan

if TYPE_CHECKING:
    from rwkvbatch.model.base import ModelSpec

Spec = Union["ModelSpec", ServedSpec]
"""Description of a setup's model: one that is loaded here, or one that a server has."""


@dataclass(frozen=True)
class Setup:
    """A model, how it is loaded, and the cells that use it.

    Attributes:
        cells: numbers of the cells.
        device: the device that `--devices` names; None if the strategy decides.
        endpoint: the server that has the model; the fields about a model in this process are then not used.
    """

    model: str | None
    strategy: str
    backend: str
    cells: tuple[int, ...]
    adapter: str = NO_ADAPTER
    device: str | None = None
    endpoint: Endpoint | None = None

    def on_device(self, device: str | None) -> Self:
        """The setup on another device, at the same precision; None does not change it.

        >>> Setup(None, "cuda fp16", "auto", (0,)).on_device("cuda:1").strategy
        'cuda:1 fp16'
        """
        precision = self.strategy.partition(" ")[2]
        return self if device is None else replace(self, strategy=f"{device} {precision}".strip(), device=device)


def setups_of(plan: Plan) -> tuple[Setup, ...]:
    """The different models of the plan's cells, in the cells' order."""
    cells_of: dict[tuple[str | None, str, str, str, Endpoint | None], list[int]] = {}
    for cell, settings in enumerate(plan.cell_settings):
        endpoint = Endpoint.of(settings)
        model = settings.model if endpoint is None else None
        key = (model, settings.strategy, settings.backend, settings.adapter, endpoint)
        cells_of.setdefault(key, []).append(cell)
    return tuple(
        Setup(model, strategy, backend, tuple(cells), adapter, endpoint=endpoint)
        for (model, strategy, backend, adapter, endpoint), cells in cells_of.items()
    )
