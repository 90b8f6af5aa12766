"""Which worker carries out which dialogue: order, leases, lost workers, and the end of a run.

Knows neither models nor rows; workers and dialogues are numbers. Dialogues of one group (a conversation) go to one
worker as long as there is enough for all, because they share prefixes. Towards the end no worker waits for another:
who holds less takes over what others have not begun, and who is idle repeats what somebody holds for suspiciously
long. That is safe because rows do not depend on who makes them; the first one counts.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

MAX_ATTEMPTS = 3
MAX_MOVES = 2
MAX_COPIES = 2
LATE_FACTOR = 3.0
LATE_S = 2.0
LOOK_EVERY_S = 0.1
"""How often idle workers look for something to take over."""


@dataclass(frozen=True)
class Grant:
    """Dialogues for a worker; those of them in `taken` are no longer to be done by `taken[dialogue]`."""

    worker: int
    dialogues: tuple[int, ...]
    taken: dict[int, int] = field(default_factory=dict[int, int])


@dataclass
class _Member:
    """A worker: the dialogues that it holds, since when, and those that are kept for it.

    The first `num_begun` of those that it holds are under way.
    """

    room: int
    num_begun: int = 0
    held: dict[int, float] = field(default_factory=dict[int, float])
    kept: deque[int] = field(default_factory=deque[int])
    alone: bool = False

    @property
    def num_waiting(self) -> int:
        return len(self.held) - self.num_begun


class Dispatcher:
    """Hands out dialogues until all of them are over.

    Args:
        dialogues: in the order in which they should be begun; those of a group one after the other.
        group: of a dialogue.
        clock: seconds that never jump.
    """

    def __init__(
        self,
        dialogues: Sequence[int],
        group: Callable[[int], int],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dialogues = dialogues
        self._group = group
        self._clock = clock
        self._num_coming = 0
        self._next = 0
        self._num_kept = 0
        self._again: deque[int] = deque()
        self._last_try: deque[int] = deque()
        self._members: dict[int, _Member] = {}
        self._hungry: dict[int, None] = {}
        self._holders: dict[int, list[int]] = {}
        self._attempts: dict[int, int] = {}
        self._moves: dict[int, int] = {}
        self._num_left = len(dialogues)
        self._mean_s = 0.0
        self._num_timed = 0
        self._looked_s = -LOOK_EVERY_S

    @property
    def finished(self) -> bool:
        """Whether every dialogue is over or given up."""
        return self._num_left == 0

    @property
    def num_workers(self) -> int:
        return len(self._members)

    def expect(self, num_coming: int) -> None:
        """So many workers will join soon: what is theirs is not given to those who are first."""
        self._num_coming = num_coming

    def joined(self, worker: int, room: int) -> None:
        """A worker is ready for `room` dialogues at a time."""
        self._members[worker] = _Member(room)
        self._hungry[worker] = None

    def reported(self, worker: int, num_begun: int) -> None:
        """A worker has so many dialogues under way, the first ones of those that it was given."""
        member = self._members.get(worker)
        if member is not None:
            member.num_begun = num_begun

    def left(self, worker: int) -> list[int]:
        """A worker is gone. Returns dialogues that are given up: three workers died while they held them."""
        member = self._members.pop(worker, None)
        if member is None:
            return []
        self._hungry.pop(worker, None)
        self._again.extend(member.kept)
        self._num_kept -= len(member.kept)
        given_up: list[int] = []
        for dialogue in member.held:
            holders = self._holders[dialogue]
            holders.remove(worker)
            if holders:
                continue
            del self._holders[dialogue]
            attempts = self._attempts[dialogue] = self._attempts.get(dialogue, 0) + 1
            if attempts >= MAX_ATTEMPTS:
                given_up.append(dialogue)
                self._forget(dialogue)
            elif attempts == MAX_ATTEMPTS - 1:
                # The last time alone, so that it cannot take others along.
                self._last_try.append(dialogue)
            else:
                self._again.append(dialogue)
        return given_up

    def over(self, worker: int, dialogue: int) -> list[int]:
        """`worker` has ended a dialogue. Returns who else holds it; nobody if it had ended before."""
        holders = self._holders.pop(dialogue, None)
        if holders is None:
            return []
        now = self._clock()
        for holder in holders:
            member = self._members[holder]
            self._count_time(now - member.held.pop(dialogue))
            member.alone = False
            self._hungry[holder] = None
        self._forget(dialogue)
        return [holder for holder in holders if holder != worker]

    def grants(self) -> list[Grant]:
        """What to lease now, and to whom."""
        found: list[Grant] = []
        for worker in list(self._hungry):
            member = self._members[worker]
            chosen = self._choose(member)
            if chosen:
                self._lease(worker, chosen)
                found.append(Grant(worker, tuple(chosen)))
            if member.alone or len(member.held) >= member.room:
                del self._hungry[worker]
        if self._hungry and self._exhausted:
            found += self._take_over()
        return found

    @property
    def _num_sharing(self) -> int:
        return len(self._members) + self._num_coming

    @property
    def _exhausted(self) -> bool:
        return self._next >= len(self._dialogues) and not self._again and not self._last_try

    def _choose(self, member: _Member) -> list[int]:
        if member.alone:
            return []
        if self._last_try and not member.held:
            member.alone = True
            return [self._last_try.popleft()]
        chosen: list[int] = []
        # Nobody holds more than an even share of all that is not over.
        share = -(-self._num_left // self._num_sharing)
        while len(member.held) + len(chosen) < min(member.room, share):
            if self._again:
                chosen.append(self._again.popleft())
            elif member.kept or self._keep_more(member):
                chosen.append(member.kept.popleft())
                self._num_kept -= 1
            else:
                break
        return chosen

    def _keep_more(self, member: _Member) -> bool:
        """Keep the next dialogues of one group for a worker: at most half of its fair share of what is left."""
        num_left = len(self._dialogues) - self._next
        if num_left <= 0:
            return self._keep_what_others_keep(member)
        most = max(1, num_left // (2 * self._num_sharing)) if self._num_sharing > 1 else num_left
        start = self._next
        group = self._group(self._dialogues[start])
        stop = start + 1
        limit = min(len(self._dialogues), start + min(most, 2 * member.room))
        while stop < limit and self._group(self._dialogues[stop]) == group:
            stop += 1
        member.kept.extend(self._dialogues[start:stop])
        self._num_kept += stop - start
        self._next = stop
        return True

    def _keep_what_others_keep(self, member: _Member) -> bool:
        if self._num_kept == 0:
            return False
        richest = max(self._members.values(), key=lambda other: len(other.kept))
        for _ in range((len(richest.kept) + 1) // 2):
            member.kept.appendleft(richest.kept.pop())
        return bool(member.kept)

    def _take_over(self) -> list[Grant]:
        """For workers with room, what others have more of and have not begun; for idle ones, a copy of what is late."""
        now = self._clock()
        if now - self._looked_s < LOOK_EVERY_S:
            return []
        self._looked_s = now
        found: list[Grant] = []
        for worker in sorted(self._hungry, key=lambda number: len(self._members[number].held)):
            member = self._members[worker]
            grant = self._move(worker, member)
            if grant is None and not member.held:
                grant = self._copy(worker, now)
            if grant is None:
                break
            found.append(grant)
        return found

    def _move(self, worker: int, member: _Member) -> Grant | None:
        """From the one that holds most, of those that have something to give, until both hold the same."""
        givers = [number for number, other in self._members.items() if other.num_waiting > 0 and not other.alone]
        if not givers:
            return None
        giver = max(givers, key=lambda number: len(self._members[number].held))
        other = self._members[giver]
        num = min((len(other.held) - len(member.held)) // 2, member.room - len(member.held))
        # What is under way stays: to begin its turn again would take longer than to let it end.
        waiting = list(other.held)[other.num_begun :][::-1]
        movable = [d for d in waiting if self._moves.get(d, 0) < MAX_MOVES and self._holders[d] == [giver]]
        chosen = movable[: max(0, num)]
        if not chosen:
            return None
        for dialogue in chosen:
            self._moves[dialogue] = self._moves.get(dialogue, 0) + 1
            self._holders[dialogue].remove(giver)
            del other.held[dialogue]
        self._hungry[giver] = None
        self._lease(worker, chosen)
        return Grant(worker, tuple(chosen), dict.fromkeys(chosen, giver))

    def _copy(self, worker: int, now: float) -> Grant | None:
        if self._num_timed == 0:
            return None
        late_s = max(LATE_S, LATE_FACTOR * self._mean_s)
        oldest: tuple[float, int] | None = None
        for other in self._members.values():
            for dialogue, since in other.held.items():
                if len(self._holders[dialogue]) < MAX_COPIES and (oldest is None or since < oldest[0]):
                    oldest = (since, dialogue)
        if oldest is None or now - oldest[0] < late_s:
            return None
        self._lease(worker, [oldest[1]])
        return Grant(worker, (oldest[1],))

    def _lease(self, worker: int, dialogues: Sequence[int]) -> None:
        now = self._clock()
        held = self._members[worker].held
        for dialogue in dialogues:
            held[dialogue] = now
            self._holders.setdefault(dialogue, []).append(worker)

    def _forget(self, dialogue: int) -> None:
        self._num_left -= 1
        self._attempts.pop(dialogue, None)
        self._moves.pop(dialogue, None)

    def _count_time(self, seconds: float) -> None:
        self._num_timed += 1
        self._mean_s += (seconds - self._mean_s) / min(self._num_timed, 1000)
