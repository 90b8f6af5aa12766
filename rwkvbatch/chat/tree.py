"""A dialogue as JSON values, and back: what was read is a dialogue only if all its numbers fit together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from rwkvbatch.config import with_full_names
from rwkvbatch.errors import UsageError

MAIN = "main"
REFERENCE = "reference"
"""How a reply ended that no model has made: the script gave it."""


@dataclass(frozen=True)
class Opening:
    """How a dialogue begins.

    Attributes:
        number: its place in `Dialogue.openings`.
        tokens: what is read before the first turn; may be none.
        state: file of the initial state; None for the zero state. state_sha256: of that file.
    """

    number: int
    system: str | None
    prelude: str | None
    tokens: tuple[int, ...]
    state: str | None = None
    state_sha256: str | None = None


@dataclass(frozen=True)
class Exchange:
    """A message and its reply.

    Attributes:
        number: its place in `Dialogue.exchanges`. parent: that of the exchange before it, None after an opening.
        turn: how many exchanges came before it.
        attempt: how often the same message was answered at the same point before; part of `seed`.
        prompt: tokens of the message and the beginning of the reply, as they follow the parent's.
        ids: the reply's tokens as generated. rest: what the next turn follows, after `prompt`: the reply's tokens
            and the closing ones.
        reply: the reply as shown. raw: without the thinking part that the prompt began, not stripped.
        settings: sampling, stopping and thinking mode that it was made with, by their names.
        logprobs: of `ids`; none when they are not known.
        first_token_s, total_s: seconds from the request on.
        num_read, num_cached: prompt tokens that were read for it, and those that did not have to be.
        weights_sha256: of the model that replied; empty when it is not known.
    """

    number: int
    parent: int | None
    opening: int
    turn: int
    attempt: int
    seed: int
    user: str
    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    rest: tuple[int, ...]
    reply: str
    raw: str
    finish_reason: str
    stopped_by: str | None
    settings: Mapping[str, Any]
    logprobs: tuple[float, ...] = ()
    first_token_s: float = 0.0
    total_s: float = 0.0
    num_read: int = 0
    num_cached: int = 0
    weights_sha256: str = ""

    @property
    def tokens(self) -> tuple[int, ...]:
        """All that it adds to the history."""
        return (*self.prompt, *self.rest)

    @property
    def tokens_per_s(self) -> float:
        """Reply tokens per second, once the first was there."""
        seconds = self.total_s - self.first_token_s
        return (len(self.ids) - 1) / seconds if seconds > 0 and len(self.ids) > 1 else 0.0


@dataclass(frozen=True)
class Point:
    """A place in the tree: after an exchange, or after an opening when `exchange` is None."""

    opening: int
    exchange: int | None = None


@dataclass
class Dialogue:
    """The tree, its branches, and which of them is the current one."""

    openings: list[Opening] = field(default_factory=list[Opening])
    exchanges: list[Exchange] = field(default_factory=list[Exchange])
    branches: dict[str, Point] = field(default_factory=dict[str, Point])
    current: str = MAIN

    def __post_init__(self) -> None:
        self._num_attempts: dict[tuple[Point, str], int] = {}
        for exchange in self.exchanges:
            self._count_attempt(exchange)

    @property
    def head(self) -> Point:
        """Where the next message follows."""
        return self.branches[self.current]

    @property
    def last(self) -> Exchange | None:
        """The exchange that the head stands behind."""
        return self.exchange(self.head)

    def exchange(self, point: Point) -> Exchange | None:
        """The one that `point` stands behind."""
        return None if point.exchange is None else self.exchanges[point.exchange]

    def num_turns(self, point: Point | None = None) -> int:
        """How many exchanges there are up to `point` (the head)."""
        last = self.exchange(point or self.head)
        return 0 if last is None else last.turn + 1

    def path(self, point: Point | None = None) -> list[Exchange]:
        """The exchanges up to `point` (the head), first one first."""
        return list(self._upwards(point or self.head))[::-1]

    def history(self, point: Point | None = None) -> tuple[int, ...]:
        """All tokens up to `point` (the head)."""
        at = point or self.head
        tokens = list(self.openings[at.opening].tokens)
        for exchange in self.path(at):
            tokens += exchange.tokens
        return tuple(tokens)

    def before(self, exchange: Exchange) -> Point:
        """The point that `exchange` follows."""
        return Point(exchange.opening, exchange.parent)

    def next_attempt(self, exchange: Exchange) -> int:
        """The number of another answer to the same message at the same point."""
        return self._num_attempts[self.before(exchange), exchange.user]

    def begin(self, opening: Opening) -> None:
        """Start over behind `opening`, as a new branch; the branch so far stays as it is."""
        self.openings.append(opening)
        if self.branches:
            self.current = self._unused_name()
        self.branches[self.current] = Point(opening.number)

    def add(self, exchange: Exchange, *, move: bool = True) -> None:
        """Put `exchange` into the tree; with `move` the current branch goes on from it."""
        self.exchanges.append(exchange)
        self._count_attempt(exchange)
        if move:
            self.move(exchange)

    def move(self, exchange: Exchange) -> None:
        """Let the current branch end with `exchange`."""
        self.branches[self.current] = Point(exchange.opening, exchange.number)

    def undo(self, count: int = 1) -> list[Exchange]:
        """Step back over `count` exchanges; returns them.

        Raises:
            UsageError: the branch has fewer.
        """
        num_turns = self.num_turns()
        if not 1 <= count <= num_turns:
            if not num_turns:
                raise UsageError("/undo: there is no turn to take back")
            raise UsageError(f"/undo can take back 1 to {num_turns}; got {count}")
        undone = list(islice(self._upwards(self.head), count))[::-1]
        self.branches[self.current] = self.before(undone[0])
        return undone

    def branch(self, name: str | None = None) -> str:
        """Name the head anew and go on under that name; returns it.

        Raises:
            UsageError: the name is taken.
        """
        chosen = name or self._unused_name()
        if chosen in self.branches:
            raise UsageError(f"there is a branch {chosen!r} already", hint=f"/switch {chosen} goes there")
        self.branches[chosen] = self.head
        self.current = chosen
        return chosen

    def switch(self, name: str) -> None:
        """Go on with the branch `name`.

        Raises:
            UsageError: there is none.
        """
        if name not in self.branches:
            raise UsageError(f"/switch needs one of {', '.join(self.branches)}; got {name!r}")
        self.current = name

    def _upwards(self, point: Point) -> Iterator[Exchange]:
        number = point.exchange
        while number is not None:
            exchange = self.exchanges[number]
            yield exchange
            number = exchange.parent

    def _count_attempt(self, exchange: Exchange) -> None:
        place = (self.before(exchange), exchange.user)
        self._num_attempts[place] = max(self._num_attempts.get(place, 0), exchange.attempt + 1)

    def _unused_name(self) -> str:
        number = len(self.branches) + 1
        while f"branch-{number}" in self.branches:
            number += 1
        return f"branch-{number}"


def dialogue_values(dialogue: Dialogue) -> dict[str, Any]:
    """All of it, JSON-ready."""
    return {
        "openings": [asdict(opening) for opening in dialogue.openings],
        "exchanges": [asdict(exchange) for exchange in dialogue.exchanges],
        **branch_values(dialogue),
    }


def branch_values(dialogue: Dialogue) -> dict[str, Any]:
    """Where the branches are, JSON-ready."""
    return {
        "branches": {name: asdict(point) for name, point in dialogue.branches.items()},
        "current": dialogue.current,
    }


def read_dialogue(values: Mapping[str, Any]) -> Dialogue:
    """The opposite of `dialogue_values`.

    Raises:
        KeyError, TypeError, ValueError: `values` is not a dialogue's.
    """
    dialogue = Dialogue(
        [_opening(item) for item in values["openings"]],
        [_exchange(item) for item in values["exchanges"]],
        {str(name): Point(**point) for name, point in values["branches"].items()},
        str(values["current"]),
    )
    for place, opening in enumerate(dialogue.openings):
        if opening.number != place:
            raise ValueError(f"opening {place} has the number {opening.number}")
    for place, exchange in enumerate(dialogue.exchanges):
        _check_place(dialogue, place, exchange)
    for point in [*dialogue.branches.values(), dialogue.head]:
        _check_number(dialogue.openings, point.opening)
        if point.exchange is not None:
            _check_number(dialogue.exchanges, point.exchange)
    return dialogue


def _check_place(dialogue: Dialogue, place: int, exchange: Exchange) -> None:
    follows = place if exchange.parent is None else exchange.parent + 1
    if exchange.number != place or not 0 <= follows <= place:
        raise ValueError(f"exchange {place} is out of place")
    if exchange.turn != dialogue.num_turns(dialogue.before(exchange)):
        raise ValueError(f"exchange {place} says that it is turn {exchange.turn}, and it is not")
    _check_number(dialogue.openings, exchange.opening)
    if exchange.parent is not None and dialogue.exchanges[exchange.parent].opening != exchange.opening:
        raise ValueError(f"exchange {place} is of another opening than the one that it follows")


def _opening(values: Mapping[str, Any]) -> Opening:
    plain: dict[str, Any] = {**values, "tokens": _ids(values["tokens"])}
    return Opening(**plain)


def _exchange(values: Mapping[str, Any]) -> Exchange:
    plain: dict[str, Any] = {**values, "settings": with_full_names(values["settings"])}
    for name in ("prompt", "ids", "rest"):
        plain[name] = _ids(values[name])
    if "finish" in plain:  # its name in sessions of older versions
        plain["finish_reason"] = plain.pop("finish")
    plain["logprobs"] = tuple(float(value) for value in values["logprobs"])
    return Exchange(**plain)


def _ids(values: Sequence[Any]) -> tuple[int, ...]:
    if not all(type(value) is int and value >= 0 for value in values):
        raise ValueError("token ids must be integers")
    return tuple(values)


def _check_number(items: Sequence[object], number: int) -> None:
    if not 0 <= number < len(items):
        raise ValueError(f"{number} is not the number of one of {len(items)}")
