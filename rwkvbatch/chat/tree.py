"""The tree of a chat's exchanges with its branches, and the tree as JSON values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

from rwkvbatch.engine.request import END_OF_TEXT
from rwkvbatch.errors import UsageError
from rwkvbatch.setting_names import with_later_settings

MAIN = "main"
REFERENCE = "reference"
"""How a reply ended that comes from the script and not from a model."""


@dataclass(frozen=True)
class Opening:
    """How a conversation begins.

    Attributes:
        number: its index in `ConversationTree.openings`.
        tokens: what the model reads before the first turn, with `bos` token 0 first; may be empty.
        state: file of the initial state; None for the zero state. state_sha256: of that file.
    """

    number: int
    system: str | None
    prelude: str | None
    tokens: tuple[int, ...]
    state: str | None = None
    state_sha256: str | None = None

    @property
    def bos(self) -> bool:
        """Whether token 0 is read first."""
        return self.tokens[:1] == (END_OF_TEXT,)


@dataclass(frozen=True)
class Exchange:
    """A user message and its reply.

    Attributes:
        number: its index in `ConversationTree.exchanges`. parent: that of the previous exchange, None for the first.
        turn: number of exchanges before it.
        attempt: number of earlier replies to the same message at the same position; added to the seed.
        prompt: tokens of the message and of the beginning of the reply.
        ids: the reply's tokens as generated. rest: the tokens between `prompt` and the next turn: the reply's and the
            closing ones.
        reply: the reply as shown. raw: without the thinking part that the prompt began, not stripped.
        settings: sampling, stopping and thinking mode of the reply, by name.
        logprobs: of `ids`; empty when unknown.
        first_token_s, total_s: seconds since the request.
        num_read, num_cached: prompt tokens that were read, and those whose state was cached.
        weights_sha256: of the model that replied; empty when unknown.
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
        """All tokens that it adds to the history."""
        return (*self.prompt, *self.rest)

    @property
    def tokens_per_s(self) -> float:
        """Reply tokens per second after the first token."""
        seconds = self.total_s - self.first_token_s
        return (len(self.ids) - 1) / seconds if seconds > 0 and len(self.ids) > 1 else 0.0


@dataclass(frozen=True)
class Position:
    """A node of the tree: after an exchange, or after an opening when `exchange` is None."""

    opening: int
    exchange: int | None = None


@dataclass(frozen=True)
class Cut:
    """A move of a branch's end to where it was not before, which `redo` takes back.

    Attributes:
        branch: the branch that moved, from `position`.
        kept: the branch that holds the turns that were cut off; None if none were. made: whether the move made it.
    """

    branch: str
    position: Position
    kept: str | None
    made: bool = False


@dataclass
class ConversationTree:
    """All openings and exchanges, the branches' ends, and the current branch. A wrong move raises `UsageError`.

    No exchange leaves the branches: what a move cuts off the current branch stays as another one (see `Cut`).
    """

    openings: list[Opening] = field(default_factory=list[Opening])
    exchanges: list[Exchange] = field(default_factory=list[Exchange])
    branches: dict[str, Position] = field(default_factory=dict[str, Position])
    current: str = MAIN
    cuts: list[Cut] = field(default_factory=list[Cut], compare=False)
    """The moves of the current branch that `redo` can take back, oldest first; none after a message or `switch`."""

    kept: set[str] = field(default_factory=set[str], compare=False)
    """Branches that a move made to keep what it cut off, and that nobody has gone to yet."""

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
        """Number of exchanges up to `position` (the head)."""
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
        """Start a conversation at `opening`; existing branches stay, and a new one becomes the current one."""
        self.cuts.clear()
        self.openings.append(opening)
        if self.branches:
            self.current = self._unused_name()
        self.branches[self.current] = Position(opening.number)

    def add(self, exchange: Exchange, *, move: bool = True) -> None:
        """Add `exchange`; with `move` it becomes the end of the current branch."""
        self.exchanges.append(exchange)
        self._count_attempt(exchange)
        if not move:
            return
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
        most = self.num_turns()
        if not 1 <= num_turns <= most:
            allowed = {0: "the branch has no turns", 1: f"the branch has 1 turn, so N must be 1, got {num_turns}"}
            several = f"the branch has {most} turns, so N must be in 1 to {most}, got {num_turns}"
            raise UsageError(f"/undo: {allowed.get(most, several)}")
        undone = list(islice(self._newest_first(self.head), num_turns))[::-1]
        self._move_to(self.before(undone[0]))
        return undone

    def redo(self) -> Cut:
        """Take back the last move that cut something off the current branch; returns what that cut off in turn."""
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
        """The last move that `redo` can take back."""
        return self.cuts[-1] if self.cuts else None

    def _move_to(self, position: Position) -> Cut:
        """Move the end of the current branch; what that cuts off stays as a branch."""
        before = self.head
        self.branches[self.current] = position
        if before.exchange is None or self._is_on_the_way(before.exchange, position):
            cut = Cut(self.current, before, None)
        else:
            later = [name for name, end in self.branches.items() if (end.exchange or 0) >= before.exchange]
            found = next((name for name in later if self._is_on_the_way(before.exchange, self.branches[name])), None)
            kept = found or self._unused_name()
            if found is None:
                self.branches[kept] = before
                self.kept.add(kept)
            cut = Cut(self.current, before, kept, made=found is None)
        self.cuts.append(cut)
        return cut

    def _is_on_the_way(self, number: int, position: Position) -> bool:
        """Whether `position` is after exchange `number`, or behind it."""
        at = position.exchange
        while at is not None and at > number:  # an exchange has a higher number than those before it
            at = self.exchanges[at].parent
        return at == number

    def branch(self, name: str | None = None) -> str:
        """Start a branch at the head, make it the current one, and return its name."""
        chosen = name or self._unused_name()
        if chosen in self.branches:
            raise UsageError(f"a branch {chosen!r} exists already", hint=f"/switch {chosen} goes to it")
        self.branches[chosen] = self.head
        self.current = chosen
        self.cuts.clear()
        return chosen

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


def tree_values(tree: ConversationTree, first_opening: int = 0, first_exchange: int = 0) -> dict[str, Any]:
    """The tree as JSON values; of openings and exchanges only those from the given numbers on."""
    return {
        "openings": [dict(vars(opening)) for opening in tree.openings[first_opening:]],
        "exchanges": [dict(vars(exchange)) for exchange in tree.exchanges[first_exchange:]],
        "branches": {name: dict(vars(position)) for name, position in tree.branches.items()},
        "current": tree.current,
    }


def read_tree(values: Mapping[str, Any], vocab_size: int) -> ConversationTree:
    """The inverse of `tree_values`.

    Args:
        vocab_size: of the model, to which the token ids belong.

    Raises:
        KeyError, TypeError, ValueError: `values` is not a consistent tree.
    """
    tree = ConversationTree(
        [_opening(item, vocab_size) for item in values["openings"]],
        [_exchange(item, vocab_size) for item in values["exchanges"]],
        {str(name): Position(**position) for name, position in values["branches"].items()},
        str(values["current"]),
    )
    for number, opening in enumerate(tree.openings):
        if opening.number != number:
            raise ValueError(f"opening {number} has the number {opening.number}")
    for number, exchange in enumerate(tree.exchanges):
        if exchange.number != number or (exchange.parent is not None and not 0 <= exchange.parent < number):
            raise ValueError(f"exchange {number} is out of order")
        _check_position(tree, Position(exchange.opening, exchange.parent))
        turn = tree.num_turns(tree.before(exchange))
        if exchange.turn != turn:
            raise ValueError(f"exchange {number} must have turn {turn}, got {exchange.turn}")
    for position in [*tree.branches.values(), tree.head]:
        _check_position(tree, position)
    return tree


_TEXTS = ("user", "reply", "raw", "finish_reason")
_TEXTS_OR_NULL = ("system", "prelude", "state", "state_sha256", "stopped_by")
_COUNTS = ("number", "opening", "turn", "attempt", "seed", "num_read", "num_cached")


def _check_types(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if name in _TEXTS and not isinstance(value, str):
            raise TypeError(f"{name} must be a string, got {value!r:.60}")
        if name in _TEXTS_OR_NULL and not isinstance(value, str | None):
            raise TypeError(f"{name} must be a string or null, got {value!r:.60}")
        if name in _COUNTS and not (type(value) is int and 0 <= value < 2**64):
            raise TypeError(f"{name} must be an integer that is not negative, got {value!r:.60}")


def _opening(values: Mapping[str, Any], vocab_size: int) -> Opening:
    _check_types(values)
    return Opening(**_with_token_ids(values, vocab_size, "tokens"))


def _exchange(values: Mapping[str, Any], vocab_size: int) -> Exchange:
    _check_types(values)
    plain = _with_token_ids(values, vocab_size, "prompt", "ids", "rest")
    plain["settings"] = with_later_settings(values["settings"])
    if "finish" in plain:  # its name in sessions of older versions
        plain["finish_reason"] = plain.pop("finish")
    plain["logprobs"] = tuple(float(value) for value in values["logprobs"])
    return Exchange(**plain)


def _with_token_ids(values: Mapping[str, Any], vocab_size: int, *names: str) -> dict[str, Any]:
    """`values` with checked token ids under `names`."""
    if not all(type(value) is int and 0 <= value < vocab_size for name in names for value in values[name]):
        raise ValueError(f"token ids must be integers in 0 to {vocab_size - 1}")
    return {**values, **{name: tuple(values[name]) for name in names}}


def _check_position(tree: ConversationTree, position: Position) -> None:
    opening, number = position.opening, position.exchange
    if not 0 <= opening < len(tree.openings):
        raise ValueError(f"an opening must be in 0 to {len(tree.openings) - 1}, got {opening}")
    if number is not None:
        if not 0 <= number < len(tree.exchanges):
            raise ValueError(f"an exchange must be in 0 to {len(tree.exchanges) - 1}, got {number}")
        if tree.exchanges[number].opening != opening:
            raise ValueError(f"exchange {number} belongs to another opening than {opening}")
