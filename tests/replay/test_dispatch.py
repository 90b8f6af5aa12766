"""Assignments of tasks to workers that join, lag, idle or are lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvbatch.replay.dispatch import MAX_ATTEMPTS, REBALANCE_EVERY_S, STRAGGLER_S, Dispatcher


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def in_tens(task: int) -> int:
    return task // 10


def dispatcher(
    count: int, group: Callable[[int], int] = in_tens, clock: Callable[[], float] | None = None
) -> Dispatcher:
    return Dispatcher(range(count), group, clock=clock or Clock())


def assigned(found: Dispatcher) -> dict[int, list[int]]:
    """The new assignments of each worker."""
    given: dict[int, list[int]] = {}
    for assignment in found.assignments():
        given.setdefault(assignment.worker, []).extend(assignment.tasks)
    return given


def end(found: Dispatcher, worker: int, tasks: Sequence[int]) -> None:
    for task in tasks:
        found.finish(worker, task)


def test_one_worker_gets_everything_in_order_and_never_more_than_it_has_room_for() -> None:
    found = dispatcher(25)
    found.joined(0, 4)
    order: list[int] = []
    while not found.finished:
        given = assigned(found)[0]
        order += given
        assert len(given) <= 4
        end(found, 0, given)
    assert order == list(range(25))


def test_the_tasks_of_a_conversation_go_to_one_worker_while_there_is_enough() -> None:
    found = dispatcher(200)
    found.joined(0, 7)
    found.joined(1, 7)
    owner: dict[int, set[int]] = {}
    for _ in range(7):
        for worker, tasks in assigned(found).items():
            for task in tasks:
                owner.setdefault(task // 10, set()).add(worker)
            end(found, worker, tasks)
    assert len(owner) == 10
    assert all(len(workers) == 1 for workers in owner.values())


def test_no_worker_holds_more_than_an_even_share() -> None:
    found = dispatcher(40)
    found.joined(0, 32)
    found.joined(1, 32)
    given = assigned(found)
    assert {worker: len(tasks) for worker, tasks in given.items()} == {0: 20, 1: 20}


def test_half_of_the_other_s_tasks_move_to_a_worker_that_joins_late() -> None:
    clock = Clock()
    found = dispatcher(8, clock=clock)
    found.joined(0, 20)
    assert assigned(found) == {0: list(range(8))}
    clock.now = REBALANCE_EVERY_S
    found.joined(1, 20)
    assignment = found.assignments()[0]
    assert assignment.tasks == (7, 6, 5, 4)
    assert assignment.moved_from == dict.fromkeys((7, 6, 5, 4), 0)


def test_what_is_active_is_not_moved() -> None:
    clock = Clock()
    found = dispatcher(8, clock=clock)
    found.joined(0, 20)
    assert assigned(found) == {0: list(range(8))}
    found.reported(0, 5)
    clock.now = REBALANCE_EVERY_S
    found.joined(1, 20)
    assert assigned(found) == {1: [7, 6, 5]}
    clock.now = 2 * REBALANCE_EVERY_S
    end(found, 1, [7, 6, 5])
    assert assigned(found) == {}


def test_a_worker_that_holds_less_takes_over_until_both_hold_the_same() -> None:
    clock = Clock()
    found = dispatcher(16, clock=clock)
    found.joined(0, 12)
    assert assigned(found) == {0: list(range(12))}
    found.reported(0, 4)
    found.joined(1, 12)
    left_over, moved = found.assignments()
    assert sorted(left_over.tasks) == [12, 13, 14, 15]
    assert (moved.worker, moved.tasks) == (1, (11, 10, 9, 8))
    assert moved.moved_from == dict.fromkeys(moved.tasks, 0)
    clock.now = REBALANCE_EVERY_S
    assert found.assignments() == []


def test_a_worker_never_takes_over_more_than_it_has_room_for() -> None:
    clock = Clock()
    found = dispatcher(12, clock=clock)
    found.joined(0, 12)
    assert assigned(found) == {0: list(range(12))}
    clock.now = REBALANCE_EVERY_S
    found.joined(1, 3)
    assert assigned(found) == {1: [11, 10, 9]}
    clock.now = 2 * REBALANCE_EVERY_S
    assert assigned(found) == {}


def test_the_first_worker_leaves_an_even_share_to_those_that_are_starting() -> None:
    found = dispatcher(40, group=lambda _: 0)
    found.expect(2)
    found.joined(0, 32)
    found.expect(1)
    assert {worker: len(tasks) for worker, tasks in assigned(found).items()} == {0: 20}
    found.expect(0)
    found.joined(1, 32)
    assert {worker: len(tasks) for worker, tasks in assigned(found).items()} == {1: 20}


def test_expected_workers_never_keep_the_others_from_working() -> None:
    found = dispatcher(3)
    found.expect(7)
    found.joined(0, 4)
    done: list[int] = []
    while not found.finished:
        given = assigned(found)[0]
        end(found, 0, given)
        done += given
    assert done == [0, 1, 2]


def test_a_straggler_is_run_again_and_the_first_copy_counts() -> None:
    clock = Clock()
    found = dispatcher(2, clock=clock)
    found.joined(0, 1)
    found.joined(1, 1)
    assert assigned(found) == {0: [0], 1: [1]}
    found.reported(0, 1)
    clock.now = 0.1
    found.finish(1, 1)
    assert found.assignments() == []
    clock.now = 0.1 + STRAGGLER_S
    assert assigned(found) == {1: [0]}
    assert found.finish(1, 0) == [0]
    assert found.finished
    assert found.finish(0, 0) == []
    assert found.finished


def test_the_tasks_of_a_lost_worker_are_assigned_to_others() -> None:
    found = dispatcher(6)
    found.joined(0, 3)
    found.joined(1, 3)
    first = assigned(found)
    assert found.left(0) == []
    end(found, 1, first[1])
    rest: list[int] = []
    while not found.finished:
        given = assigned(found)[1]
        rest += given
        end(found, 1, given)
    assert sorted([*first[1], *rest]) == list(range(6))


def test_after_two_lost_workers_a_task_runs_alone_and_after_three_it_is_given_up() -> None:
    found = dispatcher(3, group=lambda _: 0)
    found.joined(0, 3)
    assert assigned(found) == {0: [0, 1, 2]}
    assert found.left(0) == []
    found.joined(1, 3)
    assert sorted(assigned(found)[1]) == [0, 1, 2]
    assert found.left(1) == []
    given_up: list[int] = []
    for worker in (2, 3, 4):
        found.joined(worker, 3)
        assert len(assigned(found)[worker]) == 1
        given_up += found.left(worker)
    assert sorted(given_up) == [0, 1, 2]
    assert found.finished


def test_a_last_attempt_waits_for_a_worker_that_holds_nothing() -> None:
    found = dispatcher(4, group=lambda d: d)
    for worker in (0, 1):
        found.joined(worker, 1)
        assert assigned(found) == {worker: [0]}
        if worker == 0:
            found.left(worker)
    found.joined(2, 2)
    assert assigned(found) == {2: [1, 2]}
    found.left(1)
    end(found, 2, [1])
    assert assigned(found) == {2: [3]}
    end(found, 2, [2, 3])
    assert assigned(found) == {2: [0]}


def test_a_worker_with_a_last_attempt_gets_more_tasks_when_it_is_finished() -> None:
    found = dispatcher(4, group=lambda d: d)
    for worker in (0, 1):
        found.joined(worker, 1)
        assert assigned(found) == {worker: [0]}
        found.left(worker)
    found.joined(2, 3)
    assert assigned(found) == {2: [0]}
    found.finish(2, 0)
    assert assigned(found) == {2: [1, 2, 3]}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_task_ends_and_only_fatal_ones_are_given_up(data: st.DataObject) -> None:
    clock = Clock()
    count = data.draw(st.integers(1, 40), "tasks")
    fatal = data.draw(st.sets(st.integers(0, count - 1), max_size=2), "fatal")
    found = dispatcher(count, group=lambda d: d // data.draw(st.just(3)), clock=clock)
    held: dict[int, list[int]] = {}
    ended: set[int] = set()
    given_up: set[int] = set()
    losses: dict[int, int] = {}
    next_worker = 0
    for _ in range(3000):
        if found.finished:
            break
        clock.now += data.draw(st.sampled_from([0.01, 0.2, 3.0]), "time") if len(ended) < 10 else 0.5
        if len(held) < 2:
            found.joined(next_worker, data.draw(st.integers(1, 5), "room"))
            held[next_worker] = []
            next_worker += 1
        for assignment in found.assignments():
            for task, former in assignment.moved_from.items():
                held[former].remove(task)
            held[assignment.worker] += assignment.tasks
        for worker in list(held):
            if fatal & set(held[worker]):
                for task in held[worker]:
                    losses[task] = losses.get(task, 0) + 1
                given_up |= set(found.left(worker))
                del held[worker]
            elif held[worker]:
                task = held[worker].pop(0)
                for other in found.finish(worker, task):
                    held[other].remove(task)
                ended.add(task)
    assert found.finished
    assert ended | given_up == set(range(count))
    assert not ended & given_up
    assert given_up <= {task for task, times in losses.items() if times >= MAX_ATTEMPTS}
    assert fatal <= given_up


def test_nothing_is_run_again_before_it_is_known_how_long_a_task_takes() -> None:
    clock = Clock()
    found = dispatcher(1, clock=clock)
    found.joined(0, 1)
    found.joined(1, 1)
    assert assigned(found) == {0: [0]}
    clock.now = 100 * STRAGGLER_S
    assert assigned(found) == {}
