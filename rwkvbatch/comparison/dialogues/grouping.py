"""Groups of dialogues that differ only in their cell and repeat, because all replies are equal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rwkvbatch.comparison.dialogues.selection import Dialogue
from rwkvbatch.errors import counted, listed

_CONTENT = ("turn", "probe_after", "prompt", "reply", "finish_reason", "error", "reference", "checks")


@dataclass
class DialogueGroup:
    """Dialogues of one conversation with equal replies and results of checks; their numbers may differ.

    Attributes:
        total: number of dialogues of the conversation in the selection, whatever their replies.
    """

    total: int
    members: list[Dialogue] = field(default_factory=list[Dialogue])

    @property
    def first(self) -> Dialogue:
        """The dialogue that is shown for all."""
        return self.members[0]

    def metric_range(self, turn: int, name: str) -> tuple[float, float] | None:
        """The smallest and the largest value of a metric in the turn at an index; None if no dialogue has one."""
        metrics: Iterable[Mapping[str, float]] = (member.turns[turn]["metrics"] for member in self.members)
        values = [values[name] for values in metrics if name in values]
        return (min(values), max(values)) if values else None

    def extent(self, *, many_cells: bool, many_repeats: bool, max_cells: int | None = None) -> str:
        """A sentence on how many dialogues are equal, with their cells and repeats, of which `max_cells` are named."""
        cells_of: dict[tuple[int, ...], list[str]] = {}
        repeats_of: dict[str, list[int]] = {}
        for member in self.members:
            repeats_of.setdefault(member.cell, []).append(member.repeat)
        for cell, repeats in repeats_of.items():
            cells_of.setdefault(tuple(sorted(repeats)), []).append(cell)
        parts: list[str] = []
        for repeats, cells in cells_of.items():
            names = listed(cells, len(cells) if max_cells is None else max_cells) if many_cells else ""
            numbers = f"repeat{'s' if len(repeats) > 1 else ''} {_ranges(repeats)}" if many_repeats else ""
            parts.append(f"{names} ({numbers})" if names and numbers else names or numbers)
        counts = f"{len(self.members):,} of {self.total:,} dialogues are equal"
        if len(cells_of) == 1:
            ((repeats, cells),) = cells_of.items()
            sides = [counted(len(cells), "cell")] * (len(cells) > 1)
            sides += [counted(len(repeats), "repetition")] * (len(repeats) > 1)
            counts = ", ".join(filter(None, (counts, " x ".join(sides))))
        return f"{counts}: {'; '.join(parts)}"


def grouped(
    dialogues: Sequence[Dialogue], totals: Mapping[str, int], *, separately: bool = False
) -> list[DialogueGroup]:
    """Groups of equal dialogues, those of one conversation next to each other, in the order of their first dialogues.

    Args:
        totals: by conversation, the number of dialogues in the selection.
        separately: a group for every dialogue, in the order of `dialogues`.
    """
    if separately:
        return [DialogueGroup(totals[dialogue.conversation], [dialogue]) for dialogue in dialogues]
    groups: dict[str, dict[str, DialogueGroup]] = {}
    for dialogue in dialogues:
        own = groups.setdefault(dialogue.conversation, {})
        own.setdefault(_content(dialogue), DialogueGroup(totals[dialogue.conversation])).members.append(dialogue)
    return [group for own in groups.values() for group in own.values()]


def _content(dialogue: Dialogue) -> str:
    """All that is shown of a dialogue but its cell, repeat and metrics. Likelihoods of choices are rounded as shown."""
    return repr((dialogue.system, [(*(turn[name] for name in _CONTENT), _choices(turn)) for turn in dialogue.turns]))


def _choices(turn: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(choice["name"], f"{choice['logprob']:.2f}") for choice in turn["choices"] or ()]


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as ranges: `0-2, 5`."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1][1:] = [number]
        else:
            ranges.append([number])
    return ", ".join("-".join(map(str, ends)) for ends in ranges)
