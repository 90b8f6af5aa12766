"""Which token rows the next step has: requests join and leave at every step, prompts and decodes share it.

The scheduler moves states between slots but never looks into them; it needs no model. Its decisions depend on the
order of submission alone, never on the clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from rwkvbatch.engine.prefix_cache import Node, PrefixTree, SlotAllocator
from rwkvbatch.model.base import StatePool

MIN_SHARED_ROWS = 32
"""A state is kept where requests part when that saves at least so many token rows."""


@dataclass(eq=False, slots=True)
class Reading:
    """One request's way through its tokens.

    Positions and lengths count from the initial state on.

    Attributes:
        base: the place in the tree that `tokens` follow.
        tokens: all tokens known so far: the prompt, then what was generated.
        num_prompt: the length of the prompt.
        position: how many tokens have been read.
        num_cached: how many of the prompt's did not have to be.
        slot: the state after `position` tokens, while the request is active.
        node: the place in the tree of the prompt's tokens that need not be read, while not all of them are.
        num_unread_at_end: how many of the prompt's last tokens are always read, for their logits: the last one,
            or all from which a given text is scored.
    """

    id: int
    base: Node
    tokens: list[int]
    num_prompt: int
    position: int = 0
    num_cached: int = 0
    slot: int | None = None
    node: Node | None = None
    num_unread_at_end: int = 1

    @property
    def end(self) -> int:
        return self.base.depth + len(self.tokens)

    @property
    def num_unread(self) -> int:
        return self.end - self.position

    def part(self, start: int, stop: int) -> list[int]:
        """The tokens from position `start` on, up to `stop`; not before `base`."""
        return self.tokens[start - self.base.depth : stop - self.base.depth]


@dataclass(frozen=True)
class Chunk:
    """Read `reading.part(start, stop)` in this step."""

    reading: Reading
    start: int
    stop: int

    @property
    def ends(self) -> bool:
        """Whether nothing is left unread after it."""
        return self.stop == self.reading.end


@dataclass
class Scheduler:
    """Admits, splits into chunks, and keeps the states that others will want.

    Attributes:
        max_batch: at most this many requests are active at a time.
        step_rows: about this many token rows a step.
    """

    tree: PrefixTree
    slots: SlotAllocator
    pool: StatePool
    max_batch: int
    step_rows: int
    waiting: list[Reading] = field(default_factory=list[Reading])
    active: list[Reading] = field(default_factory=list[Reading])

    def add(self, reading: Reading) -> None:
        """Let `reading` wait for its turn."""
        self.tree.pin(reading.base)
        self._reach_state(reading)
        self._announce(reading)
        self.waiting.append(reading)

    def plan(self) -> list[Chunk]:
        """The chunks of the next step; empty when nobody is active or can be admitted."""
        for reading in self.active:
            self._claim_forks(reading)
        self._admit()
        decoding = [reading for reading in self.active if reading.num_unread == 1]
        prompts = [reading for reading in self.active if reading.num_unread > 1]
        chunks = [Chunk(reading, reading.position, reading.position + 1) for reading in decoding]
        # Prompts get what the decodes leave, but never less than a quarter. Short ones are served first and equally, so
        # that a long prompt delays nobody's first token.
        budget = max(self.step_rows - len(chunks), self.step_rows // 4, 1)
        prompts.sort(key=lambda reading: reading.num_unread)
        for index, reading in enumerate(prompts):
            share = min(-(-budget // (len(prompts) - index)), budget)
            if share == 0:
                break
            stop = min(reading.position + share, reading.end, self._next_fork(reading))
            chunks.append(Chunk(reading, reading.position, stop))
            budget -= stop - reading.position
        return chunks

    def advance(self, chunks: Iterable[Chunk]) -> None:
        """The step has been made: `chunks` are read."""
        for chunk in chunks:
            reading = chunk.reading
            reading.position = chunk.stop
            self._leave_fork(reading)
            if reading.node is not None and reading.position >= reading.node.depth:
                self._withdraw(reading)

    def finish(self, reading: Reading, *, keep: bool) -> None:
        """`reading` is done or given up; with `keep` its state stays in the tree for whoever goes on from it."""
        self._withdraw(reading)
        if reading.slot is None:
            self.waiting.remove(reading)
        else:
            self.active.remove(reading)
            self.release(reading, reading.slot, reading.position, keep=keep)
            reading.slot = None
        self.tree.unpin(reading.base)

    def release(self, reading: Reading, slot: int, length: int, *, keep: bool) -> None:
        """Give up `slot`, which holds the state after the first `length` tokens of `reading`."""
        if keep and length > 0:
            node = self.tree.extend(reading.base, tuple(reading.part(reading.base.depth, length)))
            if self.tree.keep(node, slot):
                return
        self.slots.give_back(slot)

    def restart(self, readings: Iterable[Reading]) -> None:
        """Give up the states of active `readings` and let them wait again, before all others."""
        returned = list(readings)
        for reading in returned:
            self.active.remove(reading)
            self._withdraw(reading)
            assert reading.slot is not None
            self.slots.give_back(reading.slot)
            reading.slot, reading.position, reading.num_cached = None, 0, 0
            self._announce(reading)
        self.waiting[:0] = returned

    def take_slot(self) -> int | None:
        """A slot for a state: a free one, or that of the state that was not used for the longest time."""
        slot = self.slots.take()
        return self.tree.drop_oldest() if slot is None else slot

    def _reach_state(self, reading: Reading) -> None:
        """Begin at a place whose state is known, since what follows the next one above has to be read."""
        start = self.tree.deepest_kept(reading.base)
        if start is reading.base:
            return
        self._withdraw(reading)
        before = [node.edge for node in reading.base.path(start)]
        reading.tokens[:0] = [token for edge in reversed(before) for token in edge]
        self.tree.pin(start)
        self.tree.unpin(reading.base)
        reading.base = start

    def _announce(self, reading: Reading) -> None:
        known = tuple(reading.tokens[: -reading.num_unread_at_end])
        reading.node = self.tree.extend(reading.base, known)
        self.tree.begin_pending(reading.node, reading.base)

    def _withdraw(self, reading: Reading) -> None:
        if reading.node is not None:
            self.tree.end_pending(reading.node, reading.base, reading.id)
            reading.node = None

    def _admit(self) -> None:
        still_waiting: list[Reading] = []
        for index, reading in enumerate(self.waiting):
            if len(self.active) >= self.max_batch:
                still_waiting.extend(self.waiting[index:])
                break
            assert reading.node is not None
            start = self.tree.deepest_kept(reading.node)
            if start.depth < reading.base.depth:
                # The state was dropped while the request waited.
                self._reach_state(reading)
                self._announce(reading)
            if self._is_read_by_another(reading.node, start):
                still_waiting.append(reading)
                continue
            start.num_holds += 1
            slot = self.take_slot()
            start.num_holds -= 1
            if slot is None:
                still_waiting.extend(self.waiting[index:])
                break
            if start.slot is None:
                self.pool.clear(slot)
            else:
                self.pool.copy(start.slot, slot)
            reading.slot = slot
            reading.position = reading.num_cached = start.depth
            self.active.append(reading)
            self._claim_forks(reading)
            if reading.position >= reading.node.depth:
                self._withdraw(reading)
        self.waiting = still_waiting

    def _is_read_by_another(self, node: Node, start: Node) -> bool:
        """Whether an active request will leave a state between `start` and `node`."""
        for ancestor in node.path():
            if ancestor is start:
                return False
            if ancestor.reader is not None:
                return True
        return False

    def _claim_forks(self, reading: Reading) -> None:
        """Mark the places ahead of `reading` where it will leave a state for others."""
        if reading.node is None:
            return
        for ancestor in reading.node.path():
            length = ancestor.depth - reading.position
            if length <= 0:
                break
            saved = (ancestor.num_pending - 1) * length
            if ancestor.slot is None and ancestor.reader is None and saved >= MIN_SHARED_ROWS:
                ancestor.reader = reading.id

    def _next_fork(self, reading: Reading) -> int:
        """The depth at which `reading` has to stop to leave a state; its end if there is none."""
        depth = reading.end
        if reading.node is not None:
            for ancestor in reading.node.path():
                if ancestor.depth <= reading.position:
                    break
                if ancestor.reader == reading.id:
                    depth = ancestor.depth
        return depth

    def _leave_fork(self, reading: Reading) -> None:
        if reading.node is None:
            return
        for ancestor in reading.node.path():
            if ancestor.depth < reading.position:
                break
            if ancestor.depth == reading.position and ancestor.reader == reading.id:
                ancestor.reader = None
                slot = self.take_slot()
                if slot is not None:
                    assert reading.slot is not None
                    self.pool.copy(reading.slot, slot)
                    if not self.tree.keep(ancestor, slot):
                        self.slots.give_back(slot)
