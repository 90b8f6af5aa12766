"""What was said, as a tree: every reply follows a point, and several may follow the same one.

A branch is a name for a point. Undoing, retrying and switching move a name; nothing said is ever taken out of the
tree. Every exchange knows its own tokens; those of all on the way to a point are the point's history. Whatever is
needed to go on from a point takes the same time however far down it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

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
    finish: str
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
