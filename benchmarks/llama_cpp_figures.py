"""What `against_llama_cpp.py` measured, and what it says of that."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from benchmarks.machine_load import IDLE


@dataclass(frozen=True)
class Agreement:
    """How near llama.cpp's logits are to ours after each token of a text.

    Attributes:
        kind: of GGUF file.
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
    who: our strategy (`cpu int8`), or the kind of GGUF file (`Q8_0`).
    read_gb_s: what the machine read right before, 10^9 bytes a second.
    others: share of the processors that other programs used meanwhile; None if unknown.
    """

    round: int
    what: str
    who: str
    tokens_per_s: float
    read_gb_s: float
    others: float | None = None


@dataclass(frozen=True)
class Ratio:
    """How many times faster a strategy of ours is than llama.cpp with a kind of file: a quotient for each round, in
    which both were measured in turn, and of these the median, the lowest and the highest."""

    strategy: str
    median: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Figure:
    """Attributes:
    median, lowest, highest: tokens per second over the measurements.
    count: how many those are.
    ratios: of each of our strategies that was measured in the same rounds; none for ourselves.
    read_gb_s: median.
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


def figures_of(found: Sequence[Measurement], pairs: Mapping[str, Sequence[str]]) -> list[Figure]:
    """One figure for each thing done and each who did it, things in their order, kinds after the strategies.

    Args:
        pairs: for each kind of file, our strategies that it is compared with.
    """
    whats = list(dict.fromkeys(measurement.what for measurement in found))
    measured: dict[tuple[str, str], dict[int, Measurement]] = {}
    for one in found:
        measured.setdefault((one.what, one.who), {})[one.round] = one
    ordered = sorted(measured, key=lambda key: (whats.index(key[0]), not is_ours(key[1])))
    return [
        _figure(what, who, measured[what, who], {name: measured.get((what, name), {}) for name in pairs.get(who, ())})
        for what, who in ordered
    ]


def _figure(
    what: str, who: str, rounds: Mapping[int, Measurement], ours: Mapping[str, Mapping[int, Measurement]]
) -> Figure:
    speeds = [one.tokens_per_s for one in rounds.values()]
    ratios: list[Ratio] = []
    for strategy, mine in ours.items():
        quotients = [mine[number].tokens_per_s / one.tokens_per_s for number, one in rounds.items() if number in mine]
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
        read_gb_s=statistics.median(one.read_gb_s for one in rounds.values()),
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


def idle_text(found: Sequence[Measurement]) -> str:
    """Whether the machine was idle while these were measured, in a sentence."""
    known = [one.others for one in found if one.others is not None]
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
    """Print both as text and tables."""
    console = Console(highlight=False)
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
