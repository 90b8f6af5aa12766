"""Assignment of tasks to workers that join, lag, idle or are lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvbatch.replay.pools.dispatch import MAX_ATTEMPTS, REBALANCE_EVERY_S, STRAGGLER_S, Dispatcher


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def conversation_of(task: int) -> int:
    return task // 10


def make_dispatcher(
    count: int, group: Callable[[int], int] = conversation_of, clock: Callable[[], float] | None = None
) -> Dispatcher:
    return Dispatcher(range(count), group, clock=clock or Clock())


def assigned(dispatcher: Dispatcher) -> dict[int, list[int]]:
    """The newly assigned tasks of each worker."""
    tasks: dict[int, list[int]] = {}
    for assignment in dispatcher.assignments():
        tasks.setdefault(assignment.worker, []).extend(assignment.tasks)
    return tasks


def finish_all(dispatcher: Dispatcher, worker: int, tasks: Sequence[int]) -> None:
    for task in tasks:
        dispatcher.finish(worker, task)


def test_one_worker_gets_all_tasks_in_order_and_never_more_than_its_capacity() -> None:
    dispatcher = make_dispatcher(25)
    dispatcher.add_worker(0, 4)
    order: list[int] = []
    while not dispatcher.finished:
        tasks = assigned(dispatcher)[0]
        order += tasks
        assert len(tasks) <= 4
        finish_all(dispatcher, 0, tasks)
    assert order == list(range(25))


def test_the_tasks_of_a_conversation_go_to_one_worker_while_both_have_enough() -> None:
    dispatcher = make_dispatcher(200)
    dispatcher.add_worker(0, 7)
    dispatcher.add_worker(1, 7)
    workers_of: dict[int, set[int]] = {}
    for _ in range(7):
        for worker, tasks in assigned(dispatcher).items():
            for task in tasks:
                workers_of.setdefault(task // 10, set()).add(worker)
            finish_all(dispatcher, worker, tasks)
    assert len(workers_of) == 10
    assert all(len(workers) == 1 for workers in workers_of.values())


def test_no_worker_holds_more_than_an_even_share() -> None:
    dispatcher = make_dispatcher(40)
    dispatcher.add_worker(0, 32)
    dispatcher.add_worker(1, 32)
    assert {worker: len(tasks) for worker, tasks in assigned(dispatcher).items()} == {0: 20, 1: 20}


def test_half_of_a_worker_s_tasks_move_to_a_worker_that_joins_late() -> None:
    clock = Clock()
    dispatcher = make_dispatcher(8, clock=clock)
    dispatcher.add_worker(0, 20)
    assert assigned(dispatcher) == {0: list(range(8))}
    clock.now = REBALANCE_EVERY_S
    dispatcher.add_worker(1, 20)
    assignment = dispatcher.assignments()[0]
    assert assignment.tasks == (7, 6, 5, 4)
    assert assignment.moved_from == dict.fromkeys((7, 6, 5, 4), 0)


def test_active_tasks_are_not_moved() -> None:
    clock = Clock()
    dispatcher = make_dispatcher(8, clock=clock)
    dispatcher.add_worker(0, 20)
    assert assigned(dispatcher) == {0: list(range(8))}
    dispatcher.reported(0, 5)
    clock.now = REBALANCE_EVERY_S
    dispatcher.add_worker(1, 20)
    assert assigned(dispatcher) == {1: [7, 6, 5]}
    clock.now = 2 * REBALANCE_EVERY_S
    finish_all(dispatcher, 1, [7, 6, 5])
    assert assigned(dispatcher) == {}


def test_tasks_move_to_the_worker_with_fewer_until_both_hold_the_same() -> None:
    clock = Clock()
    dispatcher = make_dispatcher(16, clock=clock)
    dispatcher.add_worker(0, 12)
    assert assigned(dispatcher) == {0: list(range(12))}
    dispatcher.reported(0, 4)
    dispatcher.add_worker(1, 12)
    left_over, moved = dispatcher.assignments()
    assert sorted(left_over.tasks) == [12, 13, 14, 15]
    assert (moved.worker, moved.tasks) == (1, (11, 10, 9, 8))
    assert moved.moved_from == dict.fromkeys(moved.tasks, 0)
    clock.now = REBALANCE_EVERY_S
    assert dispatcher.assignments() == []


def test_no_more_tasks_move_to_a_worker_than_its_capacity() -> None:
    clock = Clock()
    dispatcher = make_dispatcher(12, clock=clock)
    dispatcher.add_worker(0, 12)
    assert assigned(dispatcher) == {0: list(range(12))}
    clock.now = REBALANCE_EVERY_S
    dispatcher.add_worker(1, 3)
    assert assigned(dispatcher) == {1: [11, 10, 9]}
    clock.now = 2 * REBALANCE_EVERY_S
    assert assigned(dispatcher) == {}


def test_the_first_worker_leaves_an_even_share_to_starting_workers() -> None:
    dispatcher = make_dispatcher(40, group=lambda _: 0)
    dispatcher.expect(2)
    dispatcher.add_worker(0, 32)
    dispatcher.expect(1)
    assert {worker: len(tasks) for worker, tasks in assigned(dispatcher).items()} == {0: 20}
    dispatcher.expect(0)
    dispatcher.add_worker(1, 32)
    assert {worker: len(tasks) for worker, tasks in assigned(dispatcher).items()} == {1: 20}


def test_a_worker_gets_tasks_while_others_are_expected() -> None:
    dispatcher = make_dispatcher(3)
    dispatcher.expect(7)
    dispatcher.add_worker(0, 4)
    done: list[int] = []
    while not dispatcher.finished:
        tasks = assigned(dispatcher)[0]
        finish_all(dispatcher, 0, tasks)
        done += tasks
    assert done == [0, 1, 2]


def test_a_straggler_is_run_again_and_the_first_result_counts() -> None:
    clock = Clock()
    dispatcher = make_dispatcher(2, clock=clock)
    dispatcher.add_worker(0, 1)
    dispatcher.add_worker(1, 1)
    assert assigned(dispatcher) == {0: [0], 1: [1]}
    dispatcher.reported(0, 1)
    clock.now = 0.1
    dispatcher.finish(1, 1)
    assert dispatcher.assignments() == []
    clock.now = 0.1 + STRAGGLER_S
    assert assigned(dispatcher) == {1: [0]}
    assert dispatcher.finish(1, 0) == [0]
    assert dispatcher.finished
    assert dispatcher.finish(0, 0) == []
    assert dispatcher.finished


def test_the_tasks_of_a_lost_worker_are_assigned_to_others() -> None:
    dispatcher = make_dispatcher(6)
    dispatcher.add_worker(0, 3)
    dispatcher.add_worker(1, 3)
    first = assigned(dispatcher)
    assert dispatcher.left(0) == []
    finish_all(dispatcher, 1, first[1])
    rest: list[int] = []
    while not dispatcher.finished:
        tasks = assigned(dispatcher)[1]
        rest += tasks
        finish_all(dispatcher, 1, tasks)
    assert sorted([*first[1], *rest]) == list(range(6))


def test_a_task_runs_alone_after_two_lost_workers_and_is_given_up_after_three() -> None:
    dispatcher = make_dispatcher(3, group=lambda _: 0)
    dispatcher.add_worker(0, 3)
    assert assigned(dispatcher) == {0: [0, 1, 2]}
    assert dispatcher.left(0) == []
    dispatcher.add_worker(1, 3)
    assert sorted(assigned(dispatcher)[1]) == [0, 1, 2]
    assert dispatcher.left(1) == []
    given_up: list[int] = []
    for worker in (2, 3, 4):
        dispatcher.add_worker(worker, 3)
        assert len(assigned(dispatcher)[worker]) == 1
        given_up += dispatcher.left(worker)
    assert sorted(given_up) == [0, 1, 2]
    assert dispatcher.finished


def test_a_last_attempt_waits_for_an_idle_worker() -> None:
    dispatcher = make_dispatcher(4, group=lambda d: d)
    for worker in (0, 1):
        dispatcher.add_worker(worker, 1)
        assert assigned(dispatcher) == {worker: [0]}
        if worker == 0:
            dispatcher.left(worker)
    dispatcher.add_worker(2, 2)
    assert assigned(dispatcher) == {2: [1, 2]}
    dispatcher.left(1)
    finish_all(dispatcher, 2, [1])
    assert assigned(dispatcher) == {2: [3]}
    finish_all(dispatcher, 2, [2, 3])
    assert assigned(dispatcher) == {2: [0]}


def test_a_worker_gets_more_tasks_after_a_last_attempt() -> None:
    dispatcher = make_dispatcher(4, group=lambda d: d)
    for worker in (0, 1):
        dispatcher.add_worker(worker, 1)
        assert assigned(dispatcher) == {worker: [0]}
        dispatcher.left(worker)
    dispatcher.add_worker(2, 3)
    assert assigned(dispatcher) == {2: [0]}
    dispatcher.finish(2, 0)
    assert assigned(dispatcher) == {2: [1, 2, 3]}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_task_ends_and_only_fatal_ones_are_given_up(data: st.DataObject) -> None:
    clock = Clock()
    count = data.draw(st.integers(1, 40), "tasks")
    fatal = data.draw(st.sets(st.integers(0, count - 1), max_size=2), "fatal")
    dispatcher = make_dispatcher(count, group=lambda d: d // data.draw(st.just(3)), clock=clock)
    held: dict[int, list[int]] = {}
    ended: set[int] = set()
    given_up: set[int] = set()
    losses: dict[int, int] = {}
    next_worker = 0
    for _ in range(3000):
        if dispatcher.finished:
            break
        clock.now += data.draw(st.sampled_from([0.01, 0.2, 3.0]), "time") if len(ended) < 10 else 0.5
        if len(held) < 2:
            dispatcher.add_worker(next_worker, data.draw(st.integers(1, 5), "capacity"))
            held[next_worker] = []
            next_worker += 1
        for assignment in dispatcher.assignments():
            for task, former in assignment.moved_from.items():
                held[former].remove(task)
            held[assignment.worker] += assignment.tasks
        for worker in list(held):
            if fatal & set(held[worker]):
                for task in held[worker]:
                    losses[task] = losses.get(task, 0) + 1
                given_up |= set(dispatcher.left(worker))
                del held[worker]
            elif held[worker]:
                task = held[worker].pop(0)
                for other in dispatcher.finish(worker, task):
                    held[other].remove(task)
                ended.add(task)
    assert dispatcher.finished
    assert ended | given_up == set(range(count))
    assert not ended & given_up
    assert given_up <= {task for task, times in losses.items() if times >= MAX_ATTEMPTS}
    assert fatal <= given_up


def test_no_task_is_a_straggler_before_any_task_has_finished() -> None:
    clock = Clock()
    dispatcher = make_dispatcher(1, clock=clock)
    dispatcher.add_worker(0, 1)
    dispatcher.add_worker(1, 1)
    assert assigned(dispatcher) == {0: [0]}
    clock.now = 100 * STRAGGLER_S
    assert assigned(dispatcher) == {}
