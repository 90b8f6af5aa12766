"""Assigns tasks to workers in order, reassigns those of lost workers, and balances the load near the end of a run.

Workers and tasks are numbers; models and rows do not occur here. Tasks of one group (a conversation) share prefixes and
go to one worker as long as there are enough groups for all workers. Near the end, workers with room take over tasks
that others have not started, and idle workers re-run stragglers. Both are safe because a row does not depend on the
worker; the first copy of a row counts.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

MAX_ATTEMPTS = 3
"""A task is given up when this many workers have ended while they held it."""
MAX_HANGS = 2
"""A task is given up when it has hung this many workers."""
MAX_MOVES = 2
"""Times that a task may be moved to another worker."""
MAX_COPIES = 2
"""Workers that may hold the same task at a time."""
STRAGGLER_FACTOR = 3.0
STRAGGLER_S = 2.0
"""A straggler has been held for at least this time, and `STRAGGLER_FACTOR` times the mean time of finished tasks."""
REBALANCE_EVERY_S = 0.1
"""Shortest time between two attempts to move tasks."""


@dataclass(frozen=True)
class Assignment:
    """Tasks for a worker.

    Attributes:
        moved_from: for each task that another worker held, the number of that worker, which must drop it.
    """

    worker: int
    tasks: tuple[int, ...]
    moved_from: dict[int, int] = field(default_factory=dict[int, int])


@dataclass
class _Worker:
    """State of a worker.

    Attributes:
        capacity: number of tasks that it may hold.
        active: number of tasks under way, the first ones of those held.
        held: by task, the time of its assignment.
        reserved: tasks to assign to this worker next.
        exclusive: whether it holds the last attempt of a task, and so gets no other one.
    """

    capacity: int
    active: int = 0
    held: dict[int, float] = field(default_factory=dict[int, float])
    reserved: deque[int] = field(default_factory=deque[int])
    exclusive: bool = False


class Dispatcher:
    """Assigns tasks in order until all are finished or given up.

    Args:
        tasks: task numbers; those of one group are adjacent.
        group: gives the group of a task.
        clock: gives the time in seconds.
    """

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
        """Leave an even share of the tasks to each of `num_starting` workers that will join soon."""
        self._num_starting = num_starting

    def add_worker(self, worker: int, capacity: int) -> None:
        """Add a worker that may hold `capacity` tasks."""
        self._workers[worker] = _Worker(capacity)
        self._with_room[worker] = None

    def reported(self, worker: int, active: int) -> None:
        """Record how many of a worker's tasks are under way."""
        if worker in self._workers:
            self._workers[worker].active = active

    def left(self, worker: int, hung_by: int | None = None) -> list[int]:
        """Remove a worker, and queue its tasks for others. Returns the tasks that are given up.

        Args:
            hung_by: the task that hung the worker, if one did. It runs alone next, and is given up after `MAX_HANGS`.
                For the worker's other tasks, this end does not count towards `MAX_ATTEMPTS`.
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
                    self._count_hang(task)
                continue
            del self._holders[task]
            if task == hung_by:
                attempts = MAX_ATTEMPTS if self._count_hang(task) >= MAX_HANGS else MAX_ATTEMPTS - 1
            elif hung_by is None:
                attempts = self._attempts.get(task, 0) + 1
            else:
                self._retries.append(task)
                continue
            self._attempts[task] = attempts
            if attempts >= MAX_ATTEMPTS:
                given_up.append(task)
                self._forget(task)
            elif attempts == MAX_ATTEMPTS - 1:
                # The last attempt runs alone, so that a crash affects no other task.
                self._last_attempts.append(task)
            else:
                self._retries.append(task)
        return given_up

    def _count_hang(self, task: int) -> int:
        """Count that a task hung a worker. Returns how many workers it has hung."""
        self._hangs[task] = self._hangs.get(task, 0) + 1
        return self._hangs[task]

    def finish(self, worker: int, task: int) -> list[int]:
        """Record that `worker` finished a task. Returns the other workers that hold it, which must drop it."""
        holders = self._holders.pop(task, None)
        if holders is None:  # another worker finished it before
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
        """New assignments. Their tasks count as held by the workers from now on."""
        assignments: list[Assignment] = []
        for worker in list(self._with_room):
            state = self._workers[worker]
            if tasks := self._choose(state):
                self._hold(worker, tasks)
                assignments.append(Assignment(worker, tuple(tasks)))
            if state.exclusive or len(state.held) >= state.capacity:
                del self._with_room[worker]
        if self._with_room and self._next >= len(self._tasks) and not self._retries and not self._last_attempts:
            assignments += self._rebalance()
        return assignments

    @property
    def _num_sharing(self) -> int:
        return len(self._workers) + self._num_starting

    def _choose(self, state: _Worker) -> list[int]:
        """Tasks for a worker, taken from the last attempts, the retries, or those reserved for it, in this order."""
        if state.exclusive:
            return []
        if self._last_attempts and not state.held:
            state.exclusive = True
            return [self._last_attempts.popleft()]
        tasks: list[int] = []
        # No worker holds more than an even share of the unfinished tasks.
        share = -(-self._num_left // self._num_sharing)
        while len(state.held) + len(tasks) < min(state.capacity, share):
            if self._retries:
                tasks.append(self._retries.popleft())
            elif state.reserved or self._reserve(state):
                tasks.append(state.reserved.popleft())
                self._num_reserved -= 1
            else:
                break
        return tasks

    def _reserve(self, state: _Worker) -> bool:
        """Reserve tasks for a worker that has none reserved. Returns whether there are any.

        It gets the next tasks of one group, at most half of its even share of those that are not reserved yet. When
        all are, it gets half of those that are reserved for the worker with the most reserved tasks.
        """
        num_remaining = len(self._tasks) - self._next
        if num_remaining <= 0:
            if self._num_reserved:
                donor = max(self._workers.values(), key=lambda other: len(other.reserved))
                for _ in range((len(donor.reserved) + 1) // 2):
                    state.reserved.appendleft(donor.reserved.pop())
            return bool(state.reserved)
        max_tasks = max(1, num_remaining // (2 * self._num_sharing)) if self._num_sharing > 1 else num_remaining
        start = self._next
        group = self._group(self._tasks[start])
        stop = start + 1
        limit = min(len(self._tasks), start + min(max_tasks, 2 * state.capacity))
        while stop < limit and self._group(self._tasks[stop]) == group:
            stop += 1
        state.reserved.extend(self._tasks[start:stop])
        self._num_reserved += stop - start
        self._next = stop
        return True

    def _rebalance(self) -> list[Assignment]:
        """Move tasks that have not started to workers with room, or else copy a straggler to an idle worker."""
        now = self._clock()
        if now - self._rebalanced_s < REBALANCE_EVERY_S:
            return []
        self._rebalanced_s = now
        assignments: list[Assignment] = []
        for worker in sorted(self._with_room, key=lambda number: len(self._workers[number].held)):
            state = self._workers[worker]
            assignment = self._move(worker, state)
            if assignment is None and not state.held:
                assignment = self._copy_straggler(worker, now)
            if assignment is None:
                break
            assignments.append(assignment)
        return assignments

    def _move(self, worker: int, state: _Worker) -> Assignment | None:
        """Move tasks to a worker from the one that holds most and has not started all, until both hold equally many."""
        donors = [n for n, other in self._workers.items() if len(other.held) > other.active and not other.exclusive]
        if not donors:
            return None
        donor = max(donors, key=lambda number: len(self._workers[number].held))
        donor_state = self._workers[donor]
        num_tasks = min((len(donor_state.held) - len(state.held)) // 2, state.capacity - len(state.held))
        # Active tasks stay: repeating their turns would take longer than finishing them.
        not_started = list(donor_state.held)[donor_state.active :][::-1]
        movable = [t for t in not_started if self._moves.get(t, 0) < MAX_MOVES and self._holders[t] == [donor]]
        tasks = movable[: max(0, num_tasks)]
        if not tasks:
            return None
        for task in tasks:
            self._moves[task] = self._moves.get(task, 0) + 1
            self._holders[task].remove(donor)
            del donor_state.held[task]
        self._with_room[donor] = None
        self._hold(worker, tasks)
        return Assignment(worker, tuple(tasks), dict.fromkeys(tasks, donor))

    def _copy_straggler(self, worker: int, now: float) -> Assignment | None:
        """Assign the task that has been held longest to one more worker, if it is a straggler."""
        if self._num_timed == 0:
            return None
        held_tasks = ((held_since, task) for other in self._workers.values() for task, held_since in other.held.items())
        held_since, task = min(
            (pair for pair in held_tasks if len(self._holders[pair[1]]) < MAX_COPIES and pair[1] not in self._hangs),
            default=(now, -1),
        )
        if now - held_since < max(STRAGGLER_S, STRAGGLER_FACTOR * self._mean_s):
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
