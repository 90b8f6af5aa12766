"""What the driver and its workers say to each other. Plain values that can be pickled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rwkvbatch.errors import RwkvBatchError
from rwkvbatch.results.row import EncodedRow, Row

# From the driver


@dataclass(frozen=True, slots=True)
class Lease:
    """A dialogue to carry out, from its first missing row on.

    Attributes:
        dialogue: its number in the plan.
        rows: the rows that are there already, by turn; they are replayed, never generated again.
    """

    dialogue: int
    rows: Mapping[int, Row] = field(default_factory=dict[int, Row])


@dataclass(frozen=True, slots=True)
class Work:
    """More dialogues to carry out."""

    leases: tuple[Lease, ...]


@dataclass(frozen=True, slots=True)
class Drop:
    """Dialogues that somebody else has finished or taken over; what is known of them may be thrown away."""

    dialogues: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Leave:
    """Report what is finished, drop the rest, and end."""


Order = Work | Drop | Leave

# From a worker


@dataclass(frozen=True, slots=True)
class FinishedRow:
    """A row as it goes into the file, and what the run counts of it.

    Attributes:
        error: the row's error message, None for a good row.
        reached: False where an earlier turn of the dialogue failed.
        failed_checks: checks that did not pass.
        prompt_tokens: in the whole history. cached_tokens: those that did not have to be read.
    """

    encoded: EncodedRow
    error: str | None
    reached: bool
    failed_checks: int
    reply_tokens: int
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Note:
    """A log record of a worker: the logger's name, the level's number, the finished text."""

    logger: str
    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker is ready.

    Attributes:
        name: for people.
        room: so many dialogues it wants to hold.
    """

    name: str
    room: int


@dataclass(frozen=True, slots=True)
class Report:
    """What happened in one step.

    Attributes:
        rows: that were finished. over: dialogues that have no row left to make.
        active: dialogues under way.
    """

    rows: tuple[FinishedRow, ...] = ()
    over: tuple[int, ...] = ()
    active: int = 0
    notes: tuple[Note, ...] = ()


ASKED_TO_LEAVE = "was asked to leave"
"""Why a worker is gone that did as it was told."""


@dataclass(frozen=True, slots=True)
class Left:
    """A worker is gone.

    Attributes:
        reason: for people.
        error: why no worker like it can be had (the model cannot be loaded, say); None when another may do better.
    """

    reason: str
    error: RwkvBatchError | None = None


Event = Joined | Report | Left

Signal = tuple[int, Event]
"""A worker's number and what it says."""
