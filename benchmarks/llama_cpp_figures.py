"""Measurements of `against_llama_cpp.py`, and the figures and tables made from them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from benchmarks.machine_load import IDLE

TABLE_WIDTH = 110
"""Least width of the tables in columns, also where the output is a file."""


@dataclass(frozen=True)
class Agreement:
    """The difference between llama.cpp's logits and ours after each token of a text.

    Attributes:
        kind: kind of GGUF file.
        error: root mean square difference, as a share of the standard deviation of our logits.
        same_choice: share of positions at which both have the same likeliest token.
    """

    kind: str
    error: float
    same_choice: float


@dataclass(frozen=True)
class Measurement:
    """One measurement.

    Attributes:
        what: the workload, such as `decode, 32 rows`.
        who: our strategy (`cpu int8`), or llama.cpp's kind of GGUF file (`Q8_0`).
        read_gb_s: memory bandwidth measured immediately before, in 10^9 bytes per second.
        others: share of the processors that other programs used during the measurement; None if unknown.
    """

    round: int
    what: str
    who: str
    tokens_per_s: float
    read_gb_s: float
    others: float | None = None


@dataclass(frozen=True)
class Ratio:
    """Our speed divided by llama.cpp's speed with a kind of file: median, minimum and maximum over the rounds.

    In each round, both are measured one after the other.
    """

    strategy: str
    median: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Figure:
    """The figure of one workload, of a strategy or a kind of file.

    Attributes:
        median, lowest, highest: tokens per second over the measurements.
        count: number of measurements.
        ratios: one for each of our strategies that was measured in the same rounds; empty for our own figures.
        read_gb_s: median memory bandwidth.
    """

    what: str
    who: str
    median: float
    lowest: float
    highest: float
    count: int
    ratios: tuple[Ratio, ...]
    read_gb_s: float


def is_ours(who: str) -> bool:
    """Whether `who` is one of our strategies."""
    return who.startswith("cpu")


def figures_of(measurements: Sequence[Measurement], pairs: Mapping[str, Sequence[str]]) -> list[Figure]:
    """One figure per workload and strategy or kind of file; workloads in their order, our strategies before kinds.

    Args:
        pairs: for each kind of file, our strategies that it is compared with.
    """
    whats = list(dict.fromkeys(measurement.what for measurement in measurements))
    by_round: dict[tuple[str, str], dict[int, Measurement]] = {}
    for measurement in measurements:
        by_round.setdefault((measurement.what, measurement.who), {})[measurement.round] = measurement
    ordered = sorted(by_round, key=lambda key: (whats.index(key[0]), not is_ours(key[1])))
    return [
        _figure(
            what,
            who,
            by_round[what, who],
            {strategy: by_round.get((what, strategy), {}) for strategy in pairs.get(who, ())},
        )
        for what, who in ordered
    ]


def _figure(
    what: str, who: str, rounds: Mapping[int, Measurement], ours: Mapping[str, Mapping[int, Measurement]]
) -> Figure:
    speeds = [measurement.tokens_per_s for measurement in rounds.values()]
    ratios: list[Ratio] = []
    for strategy, our_rounds in ours.items():
        quotients = [
            our_rounds[number].tokens_per_s / measurement.tokens_per_s
            for number, measurement in rounds.items()
            if number in our_rounds
        ]
        if quotients:
            ratios.append(Ratio(strategy, statistics.median(quotients), min(quotients), max(quotients)))
    return Figure(
        what=what,
        who=who,
        median=statistics.median(speeds),
        lowest=min(speeds),
        highest=max(speeds),
        count=len(speeds),
        ratios=tuple(ratios),
        read_gb_s=statistics.median(measurement.read_gb_s for measurement in rounds.values()),
    )


def groups_of(measurements: Sequence[Measurement], split_gb_s: float | None) -> dict[str, list[Measurement]]:
    """The measurements in one group, or split into two by memory bandwidth at `split_gb_s`.

    The order of workloads and strategies in each group is that of `measurements`.
    """
    if split_gb_s is None:
        return {"all rounds": list(measurements)}
    whats = list(dict.fromkeys(measurement.what for measurement in measurements))
    whos = list(dict.fromkeys(measurement.who for measurement in measurements))
    ordered = sorted(measurements, key=lambda measurement: (whats.index(measurement.what), whos.index(measurement.who)))
    slow = [measurement for measurement in ordered if measurement.read_gb_s < split_gb_s]
    fast = [measurement for measurement in ordered if measurement.read_gb_s >= split_gb_s]
    groups = {f"memory below {split_gb_s:g} GB/s": slow, f"memory from {split_gb_s:g} GB/s up": fast}
    return {title: group for title, group in groups.items() if group}


def idle_text(measurements: Sequence[Measurement]) -> str:
    """A sentence on whether the machine was idle during the measurements."""
    known = [measurement.others for measurement in measurements if measurement.others is not None]
    if not known:
        return "what other programs used of the processors is not known on this system"
    busy = [share for share in known if share > IDLE]
    if not busy:
        return f"the machine was idle: other programs used at most {max(known):.1%} of the processors"
    return (
        f"THE MACHINE WAS NOT IDLE: in {len(busy)} of {len(known)} measurements other programs used more than "
        f"{IDLE:.0%} of the processors, up to {max(known):.0%}; do not publish these figures"
    )


def show(agreements: Sequence[Agreement], figures: Mapping[str, Sequence[Figure]]) -> None:
    """Print the agreements as lines, and the figures as tables."""
    console = Console(highlight=False)
    console.width = max(console.width, TABLE_WIDTH)
    for agreement in agreements:
        console.print(
            f"{agreement.kind}: logits differ by {agreement.error:.3%} of their deviation, "
            f"{agreement.same_choice:.0%} of the likeliest tokens are ours",
            soft_wrap=True,
        )
    for title, group in figures.items():
        table = Table(box=None, header_style="bold", title=title, title_justify="left")
        table.add_column("", no_wrap=True)
        table.add_column("", no_wrap=True)
        for column in ("tokens/s", "lowest to highest", "of", "GB/s"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("we are", no_wrap=True)
        for figure in group:
            table.add_row(
                figure.what,
                figure.who,
                f"{figure.median:,.1f}",
                f"{figure.lowest:,.1f} to {figure.highest:,.1f}",
                str(figure.count),
                f"{figure.read_gb_s:.0f}",
                ", ".join(f"{ratio.median:.2f} x ({ratio.strategy})" for ratio in figure.ratios),
            )
        console.print(table)
