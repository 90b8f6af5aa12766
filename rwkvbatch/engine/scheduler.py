"""Scheduler: chooses the token rows of each step.

Requests join and leave at every step. Prefill and decode rows share a step.
The scheduler copies states between slots without reading them and needs no model. Its decisions depend on the order of
submission only, never on the clock.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain

from rwkvbatch.engine.prefix_cache import Node, PrefixTree
from rwkvbatch.model.base import StatePool

MIN_SHARED_ROWS = 32
"""The state at a fork of prompts is cached if that saves at least this many token rows."""


@dataclass(eq=False, slots=True)
class SequenceState:
    """The tokens of one request and how far they have been read.

    Positions and lengths count from the initial state.

    Attributes:
        base: the tree node that `tokens` follow.
        tokens: all tokens known so far: the prompt, then generated ones; 4 bytes each (array type `i`).
        num_prompt: the length of the prompt.
        position: number of tokens that have been read.
        num_cached: number of prompt tokens whose state came from the cache.
        slot: the pool slot of the state after `position` tokens, while the request is active.
        node: the tree node at the end of the prompt's cacheable part, until that part has been read.
        num_unread_at_end: number of last prompt tokens that are never taken from the cache, since their logits are
            needed: one for a reply, those that predict the continuation for a score.
    """

    id: int
    base: Node
    tokens: array[int]
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

    def part(self, start: int, stop: int) -> array[int]:
        """The tokens at positions `start` to `stop`, which may not lie before `base`."""
        return self.tokens[start - self.base.depth : stop - self.base.depth]


@dataclass(frozen=True)
class Chunk:
    """The tokens `sequence.part(start, stop)`, read in one step."""

    sequence: SequenceState
    start: int
    stop: int

    @property
    def reaches_end(self) -> bool:
        """Whether its last token is the last one of the sequence so far."""
        return self.stop == self.sequence.end


@dataclass
class Scheduler:
    """Admits requests, splits prompts into chunks, and caches the states that other requests will need.

    Attributes:
        max_batch: the most requests that are active at a time.
        step_rows: approximate number of token rows per step.
        free_slots: the slots of `pool` that hold no state.
    """

    tree: PrefixTree
    pool: StatePool
    max_batch: int
    step_rows: int
    waiting: list[SequenceState] = field(default_factory=list[SequenceState])
    active: list[SequenceState] = field(default_factory=list[SequenceState])
    free_slots: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.free_slots = list(range(self.pool.capacity))[::-1]

    def add(self, sequence: SequenceState) -> None:
        """Queue `sequence`."""
        self.tree.pin(sequence.base)
        self._move_base_to_state(sequence)
        self._begin_pending(sequence)
        self.waiting.append(sequence)

    def plan(self) -> list[Chunk]:
        """The chunks of the next step; empty when no request is active or can be admitted."""
        for sequence in self.active:
            self._claim_forks(sequence)
        self._admit()
        decoding = [sequence for sequence in self.active if sequence.num_unread == 1]
        prompts = [sequence for sequence in self.active if sequence.num_unread > 1]
        chunks = [Chunk(sequence, sequence.position, sequence.position + 1) for sequence in decoding]
        # Prompts get the rows that decodes leave, at least a quarter. They get equal shares, and short prompts leave
        # their unused rows to longer ones, so that a long prompt does not delay the first token of others.
        budget = max(self.step_rows - len(chunks), self.step_rows // 4, 1)
        prompts.sort(key=lambda sequence: sequence.num_unread)
        for index, sequence in enumerate(prompts):
            share = min(-(-budget // (len(prompts) - index)), budget)
            if share == 0:
                break
            stop = min(sequence.position + share, sequence.end, self._next_fork(sequence))
            chunks.append(Chunk(sequence, sequence.position, stop))
            budget -= stop - sequence.position
        return chunks

    def advance(self, chunks: Iterable[Chunk]) -> None:
        """Record that the model has read `chunks`."""
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.position = chunk.stop
            self._cache_fork(sequence)
            if sequence.node is not None and sequence.position >= sequence.node.depth:
                self._end_pending(sequence)

    def finish(self, sequence: SequenceState, *, cache: bool) -> None:
        """Remove `sequence`; with `cache`, keep its state in the tree for requests that continue it."""
        self._end_pending(sequence)
        if sequence.slot is None:
            self.waiting.remove(sequence)
        else:
            self.active.remove(sequence)
            self.cache_or_free(sequence, sequence.slot, sequence.position, cache=cache)
            sequence.slot = None
        self.tree.unpin(sequence.base)

    def cache_or_free(self, sequence: SequenceState, slot: int, length: int, *, cache: bool) -> None:
        """Cache the state in `slot`, which is after `length` tokens of `sequence`; without `cache`, free the slot."""
        if cache and length > 0:
            node = self.tree.extend(sequence.base, tuple(sequence.part(sequence.base.depth, length)))
            if self.tree.store(node, slot):
                return
        self.free_slots.append(slot)

    def restart(self, sequences: Iterable[SequenceState]) -> None:
        """Discard the states of active `sequences` and queue them again, before all others."""
        restarted = list(sequences)
        for sequence in restarted:
            self.active.remove(sequence)
            self._end_pending(sequence)
            assert sequence.slot is not None
            self.free_slots.append(sequence.slot)
            sequence.slot, sequence.position, sequence.num_cached = None, 0, 0
            self._begin_pending(sequence)
        self.waiting[:0] = restarted

    def take_slot(self) -> int | None:
        """A slot for a state: a free one, or that of the least recently used cached state; None if all are in use."""
        return self.free_slots.pop() if self.free_slots else self.tree.evict_oldest()

    def _move_base_to_state(self, sequence: SequenceState) -> None:
        """Move `base` up to the nearest ancestor with a state, and add the tokens in between to `tokens`."""
        start = self.tree.deepest_cached(sequence.base)
        if start is sequence.base:
            return
        self._end_pending(sequence)
        edges = [node.edge for node in sequence.base.path(start)]
        sequence.tokens[:0] = array("i", chain.from_iterable(reversed(edges)))
        self.tree.pin(start)
        self.tree.unpin(sequence.base)
        sequence.base = start

    def _begin_pending(self, sequence: SequenceState) -> None:
        cacheable = tuple(sequence.tokens[: -sequence.num_unread_at_end])
        sequence.node = self.tree.extend(sequence.base, cacheable)
        self.tree.begin_pending(sequence.node, sequence.base)

    def _end_pending(self, sequence: SequenceState) -> None:
        if sequence.node is not None:
            self.tree.end_pending(sequence.node, sequence.base, sequence.id)
            sequence.node = None

    def _admit(self) -> None:
        """Activate waiting requests while slots and batch places are free."""
        still_waiting: list[SequenceState] = []
        for index, sequence in enumerate(self.waiting):
            if len(self.active) >= self.max_batch:
                still_waiting.extend(self.waiting[index:])
                break
            assert sequence.node is not None
            start = self.tree.deepest_cached(sequence.node)
            if start.depth < sequence.base.depth:
                # The state was evicted while the request waited.
                self._move_base_to_state(sequence)
                self._begin_pending(sequence)
            if self._is_read_by_another(sequence.node, start):
                still_waiting.append(sequence)
                continue
            start.num_state_pins += 1  # taking a slot must not evict this state
            slot = self.take_slot()
            start.num_state_pins -= 1
            if slot is None:
                still_waiting.extend(self.waiting[index:])
                break
            self._activate(sequence, start, slot)
        self.waiting = still_waiting

    def _activate(self, sequence: SequenceState, start: Node, slot: int) -> None:
        """Begin reading `sequence` in `slot` from the state at `start`."""
        assert sequence.node is not None
        if start.slot is None:
            self.pool.clear(slot)
        else:
            self.pool.copy(start.slot, slot)
        sequence.slot = slot
        sequence.position = sequence.num_cached = start.depth
        self.active.append(sequence)
        self._claim_forks(sequence)
        if sequence.position >= sequence.node.depth:
            self._end_pending(sequence)

    def _is_read_by_another(self, node: Node, start: Node) -> bool:
        """Whether an active request will cache a state between `start` and `node`."""
        return any(ancestor.reader is not None for ancestor in node.path(start))

    def _claim_forks(self, sequence: SequenceState) -> None:
        """Choose the nodes ahead of `sequence` at which it will cache a state for others."""
        if sequence.node is None:
            return
        for ancestor in sequence.node.path():
            num_rows = ancestor.depth - sequence.position
            if num_rows <= 0:
                break
            num_saved = (ancestor.num_pending - 1) * num_rows
            if ancestor.slot is None and ancestor.reader is None and num_saved >= MIN_SHARED_ROWS:
                ancestor.reader = sequence.id

    def _next_fork(self, sequence: SequenceState) -> int:
        """The depth at which `sequence` must stop to cache a state; its end if there is none."""
        depth = sequence.end
        if sequence.node is not None:
            for ancestor in sequence.node.path():
                if ancestor.depth <= sequence.position:
                    break
                if ancestor.reader == sequence.id:
                    depth = ancestor.depth
        return depth

    def _cache_fork(self, sequence: SequenceState) -> None:
        """Cache the state of `sequence` if it has reached a fork that it claimed."""
        if sequence.node is None:
            return
        for ancestor in sequence.node.path():
            if ancestor.depth < sequence.position:
                break
            if ancestor.depth == sequence.position and ancestor.reader == sequence.id:
                ancestor.reader = None
                slot = self.take_slot()
                if slot is not None:
                    assert sequence.slot is not None
                    self.pool.copy(sequence.slot, slot)
                    if not self.tree.store(ancestor, slot):
                        self.free_slots.append(slot)
