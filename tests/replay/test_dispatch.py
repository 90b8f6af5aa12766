"""Leases: who gets what, and what becomes of it when workers die, lag or are idle."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvbatch.replay.dispatch import LATE_S, LOOK_EVERY_S, MAX_ATTEMPTS, Dispatcher


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def in_tens(dialogue: int) -> int:
    return dialogue // 10


def dispatcher(
    count: int, group: Callable[[int], int] = in_tens, clock: Callable[[], float] | None = None
) -> Dispatcher:
    return Dispatcher(range(count), group, clock=clock or Clock())


def granted(found: Dispatcher) -> dict[int, list[int]]:
    """What each worker is given now."""
    given: dict[int, list[int]] = {}
    for grant in found.grants():
        given.setdefault(grant.worker, []).extend(grant.dialogues)
    return given


def end(found: Dispatcher, worker: int, dialogues: Sequence[int]) -> None:
    for dialogue in dialogues:
        found.over(worker, dialogue)


def test_one_worker_gets_everything_in_order_and_never_more_than_it_has_room_for() -> None:
    found = dispatcher(25)
    found.joined(0, 4)
    order: list[int] = []
    while not found.finished:
        given = granted(found)[0]
        order += given
        assert len(given) <= 4
        end(found, 0, given)
    assert order == list(range(25))


def test_the_dialogues_of_a_conversation_go_to_one_worker_while_there_is_enough() -> None:
    found = dispatcher(200)
    found.joined(0, 7)
    found.joined(1, 7)
    owner: dict[int, set[int]] = {}
    for _ in range(7):
        for worker, dialogues in granted(found).items():
            for dialogue in dialogues:
                owner.setdefault(dialogue // 10, set()).add(worker)
            end(found, worker, dialogues)
    assert len(owner) == 10
    assert all(len(workers) == 1 for workers in owner.values())


def test_nobody_holds_more_than_an_even_share() -> None:
    found = dispatcher(40)
    found.joined(0, 32)
    found.joined(1, 32)
    given = granted(found)
    assert {worker: len(dialogues) for worker, dialogues in given.items()} == {0: 20, 1: 20}


def test_a_worker_that_comes_late_takes_over_half_of_what_the_other_holds() -> None:
    clock = Clock()
    found = dispatcher(8, clock=clock)
    found.joined(0, 20)
    assert granted(found) == {0: list(range(8))}
    clock.now = LOOK_EVERY_S
    found.joined(1, 20)
    grant = found.grants()[0]
    assert grant.dialogues == (7, 6, 5, 4)
    assert grant.taken == dict.fromkeys((7, 6, 5, 4), 0)


def test_what_is_under_way_is_not_taken_over() -> None:
    clock = Clock()
    found = dispatcher(8, clock=clock)
    found.joined(0, 20)
    assert granted(found) == {0: list(range(8))}
    found.reported(0, 5)
    clock.now = LOOK_EVERY_S
    found.joined(1, 20)
    assert granted(found) == {1: [7, 6, 5]}
    clock.now = 2 * LOOK_EVERY_S
    end(found, 1, [7, 6, 5])
    assert granted(found) == {}


def test_a_worker_that_holds_less_takes_over_until_both_hold_the_same() -> None:
    clock = Clock()
    found = dispatcher(16, clock=clock)
    found.joined(0, 12)
    assert granted(found) == {0: list(range(12))}
    found.reported(0, 4)
    found.joined(1, 12)
    left_over, taken_over = found.grants()
    assert sorted(left_over.dialogues) == [12, 13, 14, 15]
    assert (taken_over.worker, taken_over.dialogues) == (1, (11, 10, 9, 8))
    assert taken_over.taken == dict.fromkeys(taken_over.dialogues, 0)
    clock.now = LOOK_EVERY_S
    assert found.grants() == []


def test_a_worker_never_takes_over_more_than_it_has_room_for() -> None:
    clock = Clock()
    found = dispatcher(12, clock=clock)
    found.joined(0, 12)
    assert granted(found) == {0: list(range(12))}
    clock.now = LOOK_EVERY_S
    found.joined(1, 3)
    assert granted(found) == {1: [11, 10, 9]}
    clock.now = 2 * LOOK_EVERY_S
    assert granted(found) == {}


def test_the_first_worker_leaves_an_even_share_to_those_who_are_coming() -> None:
    found = dispatcher(40, group=lambda _: 0)
    found.expect(2)
    found.joined(0, 32)
    found.expect(1)
    assert {worker: len(dialogues) for worker, dialogues in granted(found).items()} == {0: 20}
    found.expect(0)
    found.joined(1, 32)
    assert {worker: len(dialogues) for worker, dialogues in granted(found).items()} == {1: 20}


def test_who_comes_never_keeps_the_others_from_working() -> None:
    found = dispatcher(3)
    found.expect(7)
    found.joined(0, 4)
    done: list[int] = []
    while not found.finished:
        given = granted(found)[0]
        end(found, 0, given)
        done += given
    assert done == [0, 1, 2]


def test_a_dialogue_that_is_late_is_repeated_and_the_first_end_counts() -> None:
    clock = Clock()
    found = dispatcher(2, clock=clock)
    found.joined(0, 1)
    found.joined(1, 1)
    assert granted(found) == {0: [0], 1: [1]}
    found.reported(0, 1)
    clock.now = 0.1
    found.over(1, 1)
    assert found.grants() == []
    clock.now = 0.1 + LATE_S
    assert granted(found) == {1: [0]}
    assert found.over(1, 0) == [0]
    assert found.finished
    assert found.over(0, 0) == []
    assert found.finished


def test_what_a_dead_worker_held_is_given_to_others() -> None:
    found = dispatcher(6)
    found.joined(0, 3)
    found.joined(1, 3)
    first = granted(found)
    assert found.left(0) == []
    end(found, 1, first[1])
    rest: list[int] = []
    while not found.finished:
        given = granted(found)[1]
        rest += given
        end(found, 1, given)
    assert sorted([*first[1], *rest]) == list(range(6))


def test_after_two_deaths_a_dialogue_runs_alone_and_after_three_it_is_given_up() -> None:
    found = dispatcher(3, group=lambda _: 0)
    found.joined(0, 3)
    assert granted(found) == {0: [0, 1, 2]}
    assert found.left(0) == []
    found.joined(1, 3)
    assert sorted(granted(found)[1]) == [0, 1, 2]
    assert found.left(1) == []
    given_up: list[int] = []
    for worker in (2, 3, 4):
        found.joined(worker, 3)
        assert len(granted(found)[worker]) == 1
        given_up += found.left(worker)
    assert sorted(given_up) == [0, 1, 2]
    assert found.finished


def test_a_last_try_waits_for_a_worker_that_holds_nothing() -> None:
    found = dispatcher(4, group=lambda d: d)
    for worker in (0, 1):
        found.joined(worker, 1)
        assert granted(found) == {worker: [0]}
        if worker == 0:
            found.left(worker)
    found.joined(2, 2)
    assert granted(found) == {2: [1, 2]}
    found.left(1)
    end(found, 2, [1])
    assert granted(found) == {2: [3]}
    end(found, 2, [2, 3])
    assert granted(found) == {2: [0]}


def test_a_worker_without_company_for_a_last_try_gets_more_when_that_is_over() -> None:
    found = dispatcher(4, group=lambda d: d)
    for worker in (0, 1):
        found.joined(worker, 1)
        assert granted(found) == {worker: [0]}
        found.left(worker)
    found.joined(2, 3)
    assert granted(found) == {2: [0]}
    found.over(2, 0)
    assert granted(found) == {2: [1, 2, 3]}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_workers_do_every_dialogue_ends_and_only_the_deadly_are_given_up(
    data: st.DataObject,
) -> None:
    clock = Clock()
    count = data.draw(st.integers(1, 40), "dialogues")
    deadly = data.draw(st.sets(st.integers(0, count - 1), max_size=2), "deadly")
    found = dispatcher(count, group=lambda d: d // data.draw(st.just(3)), clock=clock)
    held: dict[int, list[int]] = {}
    ended: set[int] = set()
    given_up: set[int] = set()
    deaths: dict[int, int] = {}
    next_worker = 0
    for _ in range(3000):
        if found.finished:
            break
        clock.now += data.draw(st.sampled_from([0.01, 0.2, 3.0]), "time") if len(ended) < 10 else 0.5
        if len(held) < 2:
            found.joined(next_worker, data.draw(st.integers(1, 5), "room"))
            held[next_worker] = []
            next_worker += 1
        for grant in found.grants():
            for dialogue, loser in grant.taken.items():
                held[loser].remove(dialogue)
            held[grant.worker] += grant.dialogues
        for worker in list(held):
            if deadly & set(held[worker]):
                for dialogue in held[worker]:
                    deaths[dialogue] = deaths.get(dialogue, 0) + 1
                given_up |= set(found.left(worker))
                del held[worker]
            elif held[worker]:
                dialogue = held[worker].pop(0)
                for other in found.over(worker, dialogue):
                    held[other].remove(dialogue)
                ended.add(dialogue)
    assert found.finished
    assert ended | given_up == set(range(count))
    assert not ended & given_up
    assert given_up <= {dialogue for dialogue, times in deaths.items() if times >= MAX_ATTEMPTS}
    assert deadly <= given_up
