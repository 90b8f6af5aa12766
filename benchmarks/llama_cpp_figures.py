"""What `against_llama_cpp.py` measured, and what it says of that."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

OURS = "rwkvbatch"


@dataclass(frozen=True)
class Agreement:
    """How near llama.cpp's logits are to ours after each token of a text.

    Attributes:
        error: root of the mean squared difference, over the standard deviation of ours.
        same_choice: share of the tokens after which both find the same token the likeliest.
    """

    kind: str
    error: float
    same_choice: float


@dataclass(frozen=True)
class Measurement:
    """Attributes:
    what: such as `decode, 32 rows`.
    who: `rwkvbatch`, or the kind of GGUF file.
    read_gb_s: what the machine read right before, 10^9 bytes a second.
    """

    round: int
    what: str
    who: str
    tokens_per_s: float
    read_gb_s: float


@dataclass(frozen=True)
class Figure:
    """Attributes:
    median, lowest, highest: tokens per second over the measurements.
    count: how many those are.
    ratio: how many times faster we are, by the medians; None for ourselves, and where we were not measured.
    read_gb_s: median.
    """

    what: str
    who: str
    median: float
    lowest: float
    highest: float
    count: int
    ratio: float | None
    read_gb_s: float


def figures_of(found: Sequence[Measurement]) -> list[Figure]:
    """One figure for each thing done and each who did it, things in their order, we first."""
    measured: dict[str, dict[str, list[Measurement]]] = {}
    for measurement in found:
        measured.setdefault(measurement.what, {}).setdefault(measurement.who, []).append(measurement)
    return [
        _figure(what, who, by_who[who], by_who.get(OURS))
        for what, by_who in measured.items()
        for who in sorted(by_who, key=lambda who: who != OURS)
    ]


def _figure(what: str, who: str, measured: Sequence[Measurement], ours: Sequence[Measurement] | None) -> Figure:
    speeds = [measurement.tokens_per_s for measurement in measured]
    ratio = None
    if ours is not None and who != OURS:
        ratio = statistics.median(mine.tokens_per_s for mine in ours) / statistics.median(speeds)
    return Figure(
        what=what,
        who=who,
        median=statistics.median(speeds),
        lowest=min(speeds),
        highest=max(speeds),
        count=len(speeds),
        ratio=ratio,
        read_gb_s=statistics.median(measurement.read_gb_s for measurement in measured),
    )


def groups_of(found: Sequence[Measurement], split_gb_s: float | None) -> dict[str, list[Measurement]]:
    """All measurements, or those apart before which memory was read more slowly than `split_gb_s`, and the others.

    In each group things come in the order of `found`, whatever is missing.
    """
    if split_gb_s is None:
        return {"all rounds": list(found)}
    whats = list(dict.fromkeys(measurement.what for measurement in found))
    whos = list(dict.fromkeys(measurement.who for measurement in found))
    ordered = sorted(found, key=lambda one: (whats.index(one.what), whos.index(one.who)))
    slow = [measurement for measurement in ordered if measurement.read_gb_s < split_gb_s]
    fast = [measurement for measurement in ordered if measurement.read_gb_s >= split_gb_s]
    groups = {f"memory below {split_gb_s:g} GB/s": slow, f"memory from {split_gb_s:g} GB/s up": fast}
    return {title: group for title, group in groups.items() if group}


def show(agreements: Sequence[Agreement], figures: Mapping[str, Sequence[Figure]]) -> None:
    console = Console(highlight=False)
    for agreement in agreements:
        console.print(
            f"{agreement.kind}: logits differ by {agreement.error:.2%} of their deviation, "
            f"{agreement.same_choice:.0%} of the likeliest tokens are ours",
            soft_wrap=True,
        )
    for title, group in figures.items():
        table = Table(box=None, header_style="bold", title=title, title_justify="left")
        table.add_column("", no_wrap=True)
        table.add_column("", no_wrap=True)
        for column in ("tokens/s", "lowest to highest", "of", "we are", "GB/s"):
            table.add_column(column, justify="right", no_wrap=True)
        for figure in group:
            table.add_row(
                figure.what,
                figure.who,
                f"{figure.median:,.1f}",
                f"{figure.lowest:,.1f} to {figure.highest:,.1f}",
                str(figure.count),
                "" if figure.ratio is None else f"{figure.ratio:.2f} x",
                f"{figure.read_gb_s:.0f}",
            )
        console.print(table)
