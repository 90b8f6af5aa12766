"""The scheduler, without a model."""

from rwkvbatch.engine.prefix_cache import PrefixTree
from rwkvbatch.engine.scheduler import Scheduler, SequenceState
from tests.engine.hash_model import HashPool


def make_scheduler(*, max_batch: int = 8, step_rows: int = 64, capacity: int = 32) -> Scheduler:
    tree = PrefixTree()
    tree.add_root(0, None)
    return Scheduler(tree, HashPool([None] * capacity), max_batch, step_rows)


def sequence(scheduler: Scheduler, number: int, length: int, *, shared: int = 0) -> SequenceState:
    """A request of `length` tokens, the first `shared` of which are the same for all."""
    tokens = [1] * shared + [1000 + number] * (length - shared)
    return SequenceState(id=number, base=scheduler.tree.base(0), tokens=tokens, num_prompt=length)


def read_all(scheduler: Scheduler, *, limit: int = 1000) -> list[list[tuple[int, int, int]]]:
    """Step until all requests are read; finished requests leave. Returns (id, start, stop) of each step's chunks."""
    steps: list[list[tuple[int, int, int]]] = []
    while scheduler.active or scheduler.waiting:
        chunks = scheduler.plan()
        assert chunks, "every step must make progress"
        scheduler.advance(chunks)
        steps.append([(chunk.sequence.id, chunk.start, chunk.stop) for chunk in chunks])
        for chunk in chunks:
            if chunk.reaches_end:
                scheduler.finish(chunk.sequence, cache=True)
        assert len(steps) < limit
    return steps


def test_a_free_batch_place_is_filled_in_the_next_step() -> None:
    scheduler = make_scheduler(max_batch=2)
    for number, length in enumerate((1, 3, 1, 1)):
        scheduler.add(sequence(scheduler, number, length))
    steps = read_all(scheduler)
    assert [{number for number, _, _ in step} for step in steps] == [{0, 1}, {2, 3}]


def test_a_step_has_at_most_step_rows_rows() -> None:
    scheduler = make_scheduler(step_rows=16)
    for number in range(3):
        scheduler.add(sequence(scheduler, number, 100))
    for step in read_all(scheduler):
        assert sum(stop - start for _, start, stop in step) <= 16


def test_a_decode_has_a_row_in_every_step() -> None:
    scheduler = make_scheduler(step_rows=8)
    decoding = sequence(scheduler, 0, 1)
    scheduler.add(decoding)
    scheduler.add(sequence(scheduler, 1, 500))
    for _ in range(10):
        chunks = scheduler.plan()
        assert any(chunk.sequence is decoding for chunk in chunks)
        scheduler.advance(chunks)
        decoding.tokens.append(5)


def test_a_short_prompt_is_not_starved_by_a_long_one() -> None:
    scheduler = make_scheduler(step_rows=16)
    scheduler.add(sequence(scheduler, 0, 10_000))
    scheduler.plan()
    scheduler.add(sequence(scheduler, 1, 12))
    steps = 0
    while True:
        steps += 1
        chunks = scheduler.plan()
        scheduler.advance(chunks)
        if any(chunk.sequence.id == 1 and chunk.reaches_end for chunk in chunks):
            break
    assert steps <= 2


def test_prompts_get_a_quarter_of_the_rows_when_decodes_fill_the_step() -> None:
    scheduler = make_scheduler(max_batch=20, step_rows=8)
    for number in range(10):
        scheduler.add(sequence(scheduler, number, 1))
    scheduler.add(sequence(scheduler, 10, 50))
    scheduler.plan()
    assert sum(chunk.stop - chunk.start for chunk in scheduler.plan() if chunk.sequence.id == 10) == 2


def test_a_shared_prefix_is_read_once() -> None:
    scheduler = make_scheduler(step_rows=1000)
    for number in range(5):
        scheduler.add(sequence(scheduler, number, 110, shared=100))
    steps = read_all(scheduler)
    assert sum(stop - start for step in steps for _, start, stop in step) == 100 + 5 * 10


def test_identical_prompts_read_only_their_last_token_each() -> None:
    scheduler = make_scheduler(step_rows=1000)
    for number in range(5):
        scheduler.add(sequence(scheduler, number, 100, shared=100))
    steps = read_all(scheduler)
    assert sum(stop - start for step in steps for _, start, stop in step) == 99 + 5


def test_a_request_waits_for_a_prefix_that_another_request_is_reading() -> None:
    scheduler = make_scheduler(step_rows=10)
    scheduler.add(sequence(scheduler, 0, 110, shared=100))
    scheduler.advance(scheduler.plan())
    scheduler.add(sequence(scheduler, 1, 110, shared=100))
    steps = read_all(scheduler)
    assert sum(stop - start for step in steps for number, start, stop in step if number == 1) == 10


def test_other_requests_read_a_prefix_whose_reader_was_cancelled() -> None:
    scheduler = make_scheduler(step_rows=10)
    first = sequence(scheduler, 0, 110, shared=100)
    scheduler.add(first)
    scheduler.add(sequence(scheduler, 1, 110, shared=100))
    scheduler.advance(scheduler.plan())
    scheduler.finish(first, cache=False)
    read_all(scheduler)


def test_requests_do_not_wait_for_short_common_prefixes() -> None:
    scheduler = make_scheduler()
    for number in range(4):
        scheduler.add(sequence(scheduler, number, 40, shared=3))
    assert len(scheduler.plan()) == 4


def test_requests_wait_for_free_state_slots() -> None:
    scheduler = make_scheduler(max_batch=8, capacity=2)
    for number in range(5):
        scheduler.add(sequence(scheduler, number, 20))
    assert len(scheduler.plan()) == 2
    read_all(scheduler)


def test_a_continued_history_is_not_read_again() -> None:
    scheduler = make_scheduler()
    scheduler.add(sequence(scheduler, 0, 30))
    read_all(scheduler)
    longer = SequenceState(id=1, base=scheduler.tree.base(0), tokens=[1000] * 35, num_prompt=35)
    scheduler.add(longer)
    scheduler.plan()
    assert longer.num_cached == 30


def test_every_slot_is_free_or_cached_after_many_requests() -> None:
    scheduler = make_scheduler(capacity=6, max_batch=4)
    for number in range(50):
        scheduler.add(sequence(scheduler, number, 20 + number % 7, shared=(number % 3) * 8))
    read_all(scheduler)
    assert len(scheduler.free_slots) + scheduler.tree.num_states == 6


def test_restarted_requests_are_read_again_before_all_others() -> None:
    scheduler = make_scheduler(max_batch=1)
    first = sequence(scheduler, 0, 10)
    scheduler.add(first)
    scheduler.add(sequence(scheduler, 1, 10))
    scheduler.plan()
    scheduler.restart([first])
    assert [chunk.sequence.id for chunk in scheduler.plan()] == [0]
