"""The tree of a chat's exchanges with its branches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

from rwkvbatch.engine.request import END_OF_TEXT
from rwkvbatch.errors import UsageError
from rwkvbatch.fields import Count, Items, Number, Seed

MAIN = "main"
REFERENCE = "reference"
"""`finish_reason` of a reply that comes from a script, not from a model."""


@dataclass(frozen=True)
class Opening:
    """The beginning of a conversation.

    Attributes:
        number: index in `ConversationTree.openings`.
        tokens: the tokens before the first turn, with token 0 first if `bos`; may be empty.
        state: file of the initial state; None for the zero state.
        state_sha256: hash of that file.
    """

    number: Count
    system: str | None
    prelude: str | None
    tokens: Items[Count]
    state: str | None = None
    state_sha256: str | None = None

    @property
    def bos(self) -> bool:
        """Whether the first token is token 0."""
        return self.tokens[:1] == (END_OF_TEXT,)


@dataclass(frozen=True)
class Exchange:
    """A user message and its reply.

    Attributes:
        number: index in `ConversationTree.exchanges`.
        parent: number of the previous exchange; None for the first one.
        opening: number of the opening.
        turn: number of exchanges before it.
        attempt: number of earlier replies to the same message at the same position; it is added to the seed.
        prompt: tokens of the message and of the beginning of the reply.
        ids: the reply's tokens as generated.
        rest: the tokens between `prompt` and the next turn: the reply's and those that close it.
        reply: the reply as shown.
        raw: the generated text, not stripped and without the beginning of the thinking part in the prompt.
        settings: by name, the `TURN_SETTINGS` of the reply.
        logprobs: log-probabilities of `ids`; empty if unknown.
        first_token_s: seconds from the request to the first token.
        total_s: seconds from the request to the end.
        num_read: prompt tokens that were computed.
        num_cached: prompt tokens whose state was cached.
        weights_sha256: identifies the model that replied; empty if unknown.
    """

    number: Count
    parent: Count | None
    opening: Count
    turn: Count
    attempt: Count
    seed: Seed
    user: str
    prompt: Items[Count]
    ids: Items[Count]
    rest: Items[Count]
    reply: str
    raw: str
    finish_reason: str
    stopped_by: str | None
    settings: Mapping[str, Any]
    logprobs: Items[Number] = ()
    first_token_s: Number = 0.0
    total_s: Number = 0.0
    num_read: Count = 0
    num_cached: Count = 0
    weights_sha256: str = ""

    @property
    def tokens(self) -> tuple[int, ...]:
        """All tokens that the exchange adds to the history."""
        return (*self.prompt, *self.rest)

    @property
    def tokens_per_s(self) -> float:
        """Reply tokens per second after the first token."""
        seconds = self.total_s - self.first_token_s
        return (len(self.ids) - 1) / seconds if seconds > 0 and len(self.ids) > 1 else 0.0


@dataclass(frozen=True)
class Position:
    """A node of the tree: after an exchange, or after an opening if `exchange` is None."""

    opening: Count
    exchange: Count | None = None


@dataclass(frozen=True)
class Cut:
    """A move of a branch's end, which `redo` can revert.

    Attributes:
        branch: the branch that was moved.
        position: its former end.
        kept: a branch that has the turns that the move cut off; None if it cut off none.
        made: whether the move created that branch.
    """

    branch: str
    position: Position
    kept: str | None
    made: bool = False


@dataclass
class ConversationTree:
    """All openings and exchanges, the ends of the branches, and the current branch.

    Every exchange stays on a branch: the turns that a move cuts off the current branch are kept on another one (`Cut`).

    Raises:
        UsageError: a move is not possible.
    """

    openings: list[Opening] = field(default_factory=list[Opening])
    exchanges: list[Exchange] = field(default_factory=list[Exchange])
    branches: dict[str, Position] = field(default_factory=dict[str, Position])
    current: str = MAIN
    cuts: list[Cut] = field(default_factory=list[Cut], compare=False)
    """The moves of the current branch that `redo` can revert, oldest first; empty after a message or `switch`."""

    kept: set[str] = field(default_factory=set[str], compare=False)
    """Branches that moves created for the turns they cut off, and to which the user has not switched yet."""

    def __post_init__(self) -> None:
        self._num_attempts: dict[tuple[Position, str], int] = {}
        for exchange in self.exchanges:
            self._count_attempt(exchange)

    @property
    def head(self) -> Position:
        """The end of the current branch."""
        return self.branches[self.current]

    @property
    def opening(self) -> Opening:
        """The opening of the current branch."""
        return self.openings[self.head.opening]

    @property
    def last(self) -> Exchange | None:
        """The last exchange of the current branch."""
        return self.exchange(self.head)

    def exchange(self, position: Position) -> Exchange | None:
        """The last exchange before `position`."""
        return None if position.exchange is None else self.exchanges[position.exchange]

    def num_turns(self, position: Position | None = None) -> int:
        """Number of exchanges up to `position`, by default the head."""
        last = self.exchange(position or self.head)
        return 0 if last is None else last.turn + 1

    def path(self) -> list[Exchange]:
        """The exchanges of the current branch, oldest first."""
        return list(self._newest_first(self.head))[::-1]

    def history(self) -> tuple[int, ...]:
        """All tokens of the current branch."""
        tokens = list(self.opening.tokens)
        for exchange in self.path():
            tokens += exchange.tokens
        return tuple(tokens)

    def before(self, exchange: Exchange) -> Position:
        """The position that `exchange` follows."""
        return Position(exchange.opening, exchange.parent)

    def next_attempt(self, exchange: Exchange) -> int:
        """The attempt number of another reply to the same message at the same position."""
        return self._num_attempts[self.before(exchange), exchange.user]

    def begin(self, opening: Opening) -> None:
        """Start a conversation at `opening` on a new branch, which becomes the current one."""
        self.openings.append(opening)
        self.begin_at(opening)

    def begin_at(self, opening: Opening) -> None:
        """Start a new branch at `opening`, which is in the tree, and make it the current one."""
        self.cuts.clear()
        if self.branches:
            self.current = self._unused_name()
        self.branches[self.current] = Position(opening.number)

    def add(self, exchange: Exchange, *, move: bool = True) -> None:
        """Add `exchange`; with `move`, make it the end of the current branch."""
        self.exchanges.append(exchange)
        self._count_attempt(exchange)
        if move:
            self.move_to(exchange)

    def move_to(self, exchange: Exchange) -> None:
        """Make `exchange`, which is in the tree, the end of the current branch, as after a message or `retry`."""
        if self.before(exchange) == self.head:
            self.cuts.clear()
            self.branches[self.current] = Position(exchange.opening, exchange.number)
        else:
            self._move_to(Position(exchange.opening, exchange.number))

    def pick(self, exchange: Exchange) -> None:
        """Make `exchange` the end of the current branch."""
        self._move_to(Position(exchange.opening, exchange.number))

    def undo(self, num_turns: int = 1) -> list[Exchange]:
        """Remove the last `num_turns` exchanges from the current branch and return them, oldest first."""
        available = self.num_turns()
        if not 1 <= num_turns <= available:
            if available == 0:
                problem = "the branch has no turns"
            elif available == 1:
                problem = f"the branch has 1 turn, so N must be 1, got {num_turns}"
            else:
                problem = f"the branch has {available} turns, so N must be in 1 to {available}, got {num_turns}"
            raise UsageError(f"/undo: {problem}")
        undone = list(islice(self._newest_first(self.head), num_turns))[::-1]
        self._move_to(self.before(undone[0]))
        return undone

    def redo(self) -> Cut:
        """Revert the last move of the current branch. Returns the move that does so."""
        if not self.cuts:
            raise UsageError(
                "/redo takes back the last /undo, /retry, /edit or /pick, and there is none since the last message",
                hint="/branches lists what was cut off; /switch NAME goes there",
            )
        last = self.cuts.pop()
        earlier = self.cuts[:]
        if last.made and last.kept is not None and self.branches.get(last.kept) == last.position:
            del self.branches[last.kept]
            self.kept.discard(last.kept)
        cut = self._move_to(last.position)
        self.cuts = earlier
        return cut

    @property
    def last_cut(self) -> Cut | None:
        """The last move that `redo` can revert."""
        return self.cuts[-1] if self.cuts else None

    def _move_to(self, position: Position) -> Cut:
        """Move the end of the current branch. Turns that this cuts off stay on another branch, which may be new."""
        former_head = self.head
        self.branches[self.current] = position
        last = former_head.exchange
        if last is None or self._contains(position, last):
            cut = Cut(self.current, former_head, None)
        else:
            # Only branches that end at or after the exchange can contain it; the numbers rule out the others quickly.
            candidates = [name for name, end in self.branches.items() if (end.exchange or 0) >= last]
            containing = next((name for name in candidates if self._contains(self.branches[name], last)), None)
            kept = containing or self._unused_name()
            if containing is None:
                self.branches[kept] = former_head
                self.kept.add(kept)
            cut = Cut(self.current, former_head, kept, made=containing is None)
        self.cuts.append(cut)
        return cut

    def _contains(self, position: Position, number: int) -> bool:
        """Whether exchange `number` is on the path to `position`."""
        exchange = position.exchange
        while exchange is not None and exchange > number:  # an exchange has a higher number than its predecessors
            exchange = self.exchanges[exchange].parent
        return exchange == number

    def branch(self, name: str | None = None) -> str:
        """Start a branch at the head, make it the current one, and return its name."""
        new_name = name or self._unused_name()
        if new_name in self.branches:
            raise UsageError(f"a branch {new_name!r} exists already", hint=f"/switch {new_name} goes to it")
        self.branches[new_name] = self.head
        self.current = new_name
        self.cuts.clear()
        return new_name

    def switch(self, name: str) -> None:
        """Make the branch `name` the current one."""
        if name not in self.branches:
            raise UsageError(f"/switch: the branch must be one of {', '.join(self.branches)}; got {name!r}")
        if name != self.current:
            self.cuts.clear()
        self.kept.discard(name)
        self.current = name

    def _newest_first(self, position: Position) -> Iterator[Exchange]:
        number = position.exchange
        while number is not None:
            exchange = self.exchanges[number]
            yield exchange
            number = exchange.parent

    def _count_attempt(self, exchange: Exchange) -> None:
        key = (self.before(exchange), exchange.user)
        self._num_attempts[key] = max(self._num_attempts.get(key, 0), exchange.attempt + 1)

    def _unused_name(self) -> str:
        names = (f"branch-{number}" for number in count(len(self.branches) + 1))
        return next(name for name in names if name not in self.branches)
