"""Assigns tasks to workers: order, restarts after lost workers, moves and re-runs near the end.

Knows neither models nor rows; workers and tasks are numbers. Tasks of one group (a conversation) go to one worker while
there are enough for all, because they share prefixes. Near the end, workers with room take tasks that others have not
started, and idle workers re-run stragglers. Both are safe because rows do not depend on the worker; the first copy of
a row counts.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

MAX_ATTEMPTS = 3
"""Workers that may end while they hold a task, before it is given up."""
MAX_HANGS = 2
"""Workers that a task may hang before it is given up."""
MAX_MOVES = 2
MAX_COPIES = 2
STRAGGLER_FACTOR = 3.0
STRAGGLER_S = 2.0
"""A straggler has been held for this time, and for `STRAGGLER_FACTOR` times the mean of finished tasks."""
REBALANCE_EVERY_S = 0.1


@dataclass(frozen=True)
class Assignment:
    """Tasks for a worker. `moved_from` has those to be dropped by the worker that held them, with its number."""

    worker: int
    tasks: tuple[int, ...]
    moved_from: dict[int, int] = field(default_factory=dict[int, int])


@dataclass
class _Worker:
    """State of a worker: it may hold `room` tasks; the first `active` of those held are under way.

    `held` has times of assignment, `reserved` the tasks to assign next. An `exclusive` worker holds the last attempt of
    a task and gets no other one.
    """

    room: int
    active: int = 0
    held: dict[int, float] = field(default_factory=dict[int, float])
    reserved: deque[int] = field(default_factory=deque[int])
    exclusive: bool = False


class Dispatcher:
    """Assigns `tasks`, in which those of one `group` are neighbours, in order until all are finished or given up."""

    def __init__(
        self, tasks: Sequence[int], group: Callable[[int], int], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tasks = tasks
        self._group = group
        self._clock = clock
        self._num_starting = 0
        self._next = 0
        self._num_reserved = 0
        self._retries: deque[int] = deque()
        self._last_attempts: deque[int] = deque()
        self._workers: dict[int, _Worker] = {}
        self._with_room: dict[int, None] = {}  # a set in order of insertion
        self._holders: dict[int, list[int]] = {}
        self._attempts: dict[int, int] = {}
        self._hangs: dict[int, int] = {}
        self._moves: dict[int, int] = {}
        self._num_left = len(tasks)
        self._mean_s = 0.0
        self._num_timed = 0
        self._rebalanced_s = -REBALANCE_EVERY_S

    @property
    def finished(self) -> bool:
        """Whether every task is finished or given up."""
        return self._num_left == 0

    def expect(self, num_starting: int) -> None:
        """Leave a share of the tasks to workers that will join soon."""
        self._num_starting = num_starting

    def joined(self, worker: int, room: int) -> None:
        """Add a worker that may hold `room` tasks."""
        self._workers[worker] = _Worker(room)
        self._with_room[worker] = None

    def reported(self, worker: int, active: int) -> None:
        """Record how many of a worker's tasks are under way."""
        if worker in self._workers:
            self._workers[worker].active = active

    def left(self, worker: int, hung_by: int | None = None) -> list[int]:
        """Remove a worker. Returns the tasks that are given up, after `MAX_ATTEMPTS` lost workers.

        Args:
            hung_by: the task that hung the worker. The worker's end is no attempt of its other tasks; this one is run
                alone, and given up after `MAX_HANGS`.
        """
        if (state := self._workers.pop(worker, None)) is None:
            return []
        self._with_room.pop(worker, None)
        self._retries.extend(state.reserved)
        self._num_reserved -= len(state.reserved)
        given_up: list[int] = []
        for task in state.held:
            self._holders[task].remove(worker)
            if self._holders[task]:
                if task == hung_by:
                    self._has_hung(task)
                continue
            del self._holders[task]
            if hung_by is not None and task != hung_by:
                self._retries.append(task)
                continue
            attempts = self._attempts[task] = self._attempts.get(task, 0) + 1
            if task == hung_by:
                attempts = self._attempts[task] = MAX_ATTEMPTS if self._has_hung(task) else MAX_ATTEMPTS - 1
            if attempts >= MAX_ATTEMPTS:
                given_up.append(task)
                self._forget(task)
            elif attempts == MAX_ATTEMPTS - 1:
                # The last attempt runs alone, so that a crash affects no other task.
                self._last_attempts.append(task)
            else:
                self._retries.append(task)
        return given_up

    def _has_hung(self, task: int) -> bool:
        """Count that a task hung a worker. Returns whether it has hung as many as it may."""
        self._hangs[task] = self._hangs.get(task, 0) + 1
        return self._hangs[task] >= MAX_HANGS

    def finish(self, worker: int, task: int) -> list[int]:
        """Record that `worker` finished a task. Returns the other workers that hold it."""
        holders = self._holders.pop(task, None)
        if holders is None:  # another copy was finished before
            return []
        now = self._clock()
        for holder in holders:
            state = self._workers[holder]
            self._num_timed += 1
            self._mean_s += (now - state.held.pop(task) - self._mean_s) / min(self._num_timed, 1000)
            state.exclusive = False
            self._with_room[holder] = None
        self._forget(task)
        return [holder for holder in holders if holder != worker]

    def assignments(self) -> list[Assignment]:
        """New assignments, which count as held from now on."""
        found: list[Assignment] = []
        for worker in list(self._with_room):
            state = self._workers[worker]
            if chosen := self._choose(state):
                self._hold(worker, chosen)
                found.append(Assignment(worker, tuple(chosen)))
            if state.exclusive or len(state.held) >= state.room:
                del self._with_room[worker]
        if self._with_room and self._next >= len(self._tasks) and not self._retries and not self._last_attempts:
            found += self._rebalance()
        return found

    @property
    def _num_sharing(self) -> int:
        return len(self._workers) + self._num_starting

    def _choose(self, state: _Worker) -> list[int]:
        if state.exclusive:
            return []
        if self._last_attempts and not state.held:
            state.exclusive = True
            return [self._last_attempts.popleft()]
        chosen: list[int] = []
        # No worker holds more than an even share of the unfinished tasks.
        share = -(-self._num_left // self._num_sharing)
        while len(state.held) + len(chosen) < min(state.room, share):
            if self._retries:
                chosen.append(self._retries.popleft())
            elif state.reserved or self._reserve(state):
                chosen.append(state.reserved.popleft())
                self._num_reserved -= 1
            else:
                break
        return chosen

    def _reserve(self, state: _Worker) -> bool:
        """Reserve the next tasks of one group for a worker: at most half of its even share of the remaining tasks."""
        num_remaining = len(self._tasks) - self._next
        if num_remaining <= 0:
            if self._num_reserved:  # take half of the tasks that are reserved for the worker with the most of them
                richest = max(self._workers.values(), key=lambda other: len(other.reserved))
                for _ in range((len(richest.reserved) + 1) // 2):
                    state.reserved.appendleft(richest.reserved.pop())
            return bool(state.reserved)
        most = max(1, num_remaining // (2 * self._num_sharing)) if self._num_sharing > 1 else num_remaining
        start = self._next
        group = self._group(self._tasks[start])
        stop = start + 1
        limit = min(len(self._tasks), start + min(most, 2 * state.room))
        while stop < limit and self._group(self._tasks[stop]) == group:
            stop += 1
        state.reserved.extend(self._tasks[start:stop])
        self._num_reserved += stop - start
        self._next = stop
        return True

    def _rebalance(self) -> list[Assignment]:
        """Move tasks that have not started to workers with room; assign stragglers to idle workers as well."""
        now = self._clock()
        if now - self._rebalanced_s < REBALANCE_EVERY_S:
            return []
        self._rebalanced_s = now
        found: list[Assignment] = []
        for worker in sorted(self._with_room, key=lambda number: len(self._workers[number].held)):
            state = self._workers[worker]
            assignment = self._move(worker, state)
            if assignment is None and not state.held:
                assignment = self._copy_straggler(worker, now)
            if assignment is None:
                break
            found.append(assignment)
        return found

    def _move(self, worker: int, state: _Worker) -> Assignment | None:
        """Move tasks from the worker that holds most and has some not started, until both hold the same number."""
        givers = [n for n, other in self._workers.items() if len(other.held) > other.active and not other.exclusive]
        if not givers:
            return None
        giver = max(givers, key=lambda number: len(self._workers[number].held))
        other = self._workers[giver]
        num = min((len(other.held) - len(state.held)) // 2, state.room - len(state.held))
        # Active tasks stay: to repeat their turns would take longer than to finish them.
        not_started = list(other.held)[other.active :][::-1]
        movable = [t for t in not_started if self._moves.get(t, 0) < MAX_MOVES and self._holders[t] == [giver]]
        chosen = movable[: max(0, num)]
        if not chosen:
            return None
        for task in chosen:
            self._moves[task] = self._moves.get(task, 0) + 1
            self._holders[task].remove(giver)
            del other.held[task]
        self._with_room[giver] = None
        self._hold(worker, chosen)
        return Assignment(worker, tuple(chosen), dict.fromkeys(chosen, giver))

    def _copy_straggler(self, worker: int, now: float) -> Assignment | None:
        if self._num_timed == 0:
            return None
        held = ((since, task) for other in self._workers.values() for task, since in other.held.items())
        since, task = min(
            (pair for pair in held if len(self._holders[pair[1]]) < MAX_COPIES and pair[1] not in self._hangs),
            default=(now, -1),
        )
        if now - since < max(STRAGGLER_S, STRAGGLER_FACTOR * self._mean_s):
            return None
        self._hold(worker, [task])
        return Assignment(worker, (task,))

    def _hold(self, worker: int, tasks: Sequence[int]) -> None:
        now = self._clock()
        held = self._workers[worker].held
        for task in tasks:
            held[task] = now
            self._holders.setdefault(task, []).append(worker)

    def _forget(self, task: int) -> None:
        self._num_left -= 1
        self._attempts.pop(task, None)
        self._hangs.pop(task, None)
        self._moves.pop(task, None)
