from rwkvbatch.engine.prefix_cache import PrefixTree
from rwkvbatch.engine.scheduler import Scheduler, SequenceState
from tests.engine.hash_model import HashPool


def scheduler(*, max_batch: int = 8, step_rows: int = 64, capacity: int = 32) -> Scheduler:
    tree = PrefixTree()
    tree.add_root(0, None)
    return Scheduler(tree, HashPool([None] * capacity), max_batch, step_rows)


def sequence(made: Scheduler, number: int, length: int, *, shared: int = 0) -> SequenceState:
    """A request of `length` tokens, the first `shared` of which are the same for all."""
    tokens = [1] * shared + [1000 + number] * (length - shared)
    return SequenceState(id=number, base=made.tree.base(0), tokens=tokens, num_prompt=length)


def read_all(made: Scheduler, *, limit: int = 1000) -> list[list[tuple[int, int, int]]]:
    """Step until nothing is left to read; finished requests leave. The chunks of each step."""
    steps: list[list[tuple[int, int, int]]] = []
    while made.active or made.waiting:
        chunks = made.plan()
        assert chunks, "somebody must always be able to go on"
        made.advance(chunks)
        steps.append([(chunk.sequence.id, chunk.start, chunk.stop) for chunk in chunks])
        for chunk in chunks:
            if chunk.reaches_end:
                made.finish(chunk.sequence, cache=True)
        assert len(steps) < limit
    return steps


def test_a_place_that_becomes_free_is_taken_at_once() -> None:
    made = scheduler(max_batch=2)
    for number, length in enumerate((1, 3, 1, 1)):
        made.add(sequence(made, number, length))
    steps = read_all(made)
    assert [{number for number, _, _ in step} for step in steps] == [{0, 1}, {2, 3}]


def test_a_step_keeps_to_the_row_budget() -> None:
    made = scheduler(step_rows=16)
    for number in range(3):
        made.add(sequence(made, number, 100))
    for step in read_all(made):
        assert sum(stop - start for _, start, stop in step) <= 16


def test_decodes_are_never_kept_waiting_by_prompts() -> None:
    made = scheduler(step_rows=8)
    decoding = sequence(made, 0, 1)
    made.add(decoding)
    made.add(sequence(made, 1, 500))
    for _ in range(10):
        chunks = made.plan()
        assert any(chunk.sequence is decoding for chunk in chunks)
        made.advance(chunks)
        decoding.tokens.append(5)


def test_a_short_prompt_is_not_starved_by_a_long_one() -> None:
    made = scheduler(step_rows=16)
    made.add(sequence(made, 0, 10_000))
    made.plan()
    made.add(sequence(made, 1, 12))
    steps = 0
    while True:
        steps += 1
        chunks = made.plan()
        made.advance(chunks)
        if any(chunk.sequence.id == 1 and chunk.reaches_end for chunk in chunks):
            break
    assert steps <= 2


def test_prompts_go_on_even_when_decodes_fill_the_step() -> None:
    made = scheduler(max_batch=20, step_rows=8)
    for number in range(10):
        made.add(sequence(made, number, 1))
    made.add(sequence(made, 10, 50))
    made.plan()
    assert sum(chunk.stop - chunk.start for chunk in made.plan() if chunk.sequence.id == 10) == 2


def test_a_shared_prefix_is_read_once() -> None:
    made = scheduler(step_rows=1000)
    for number in range(5):
        made.add(sequence(made, number, 110, shared=100))
    steps = read_all(made)
    assert sum(stop - start for step in steps for _, start, stop in step) == 100 + 5 * 10


def test_identical_prompts_read_only_their_last_token_each() -> None:
    made = scheduler(step_rows=1000)
    for number in range(5):
        made.add(sequence(made, number, 100, shared=100))
    steps = read_all(made)
    assert sum(stop - start for step in steps for _, start, stop in step) == 99 + 5


def test_a_request_that_comes_while_its_prefix_is_being_read_waits_for_it() -> None:
    made = scheduler(step_rows=10)
    made.add(sequence(made, 0, 110, shared=100))
    made.advance(made.plan())
    made.add(sequence(made, 1, 110, shared=100))
    steps = read_all(made)
    assert sum(stop - start for step in steps for number, start, stop in step if number == 1) == 10


def test_a_reader_that_gives_up_lets_the_others_read() -> None:
    made = scheduler(step_rows=10)
    first = sequence(made, 0, 110, shared=100)
    made.add(first)
    made.add(sequence(made, 1, 110, shared=100))
    made.advance(made.plan())
    made.finish(first, cache=False)
    read_all(made)


def test_short_common_beginnings_are_not_waited_for() -> None:
    made = scheduler()
    for number in range(4):
        made.add(sequence(made, number, 40, shared=3))
    assert len(made.plan()) == 4


def test_requests_wait_when_there_is_no_memory_for_their_states() -> None:
    made = scheduler(max_batch=8, capacity=2)
    for number in range(5):
        made.add(sequence(made, number, 20))
    assert len(made.plan()) == 2
    read_all(made)


def test_a_continued_history_is_not_read_again() -> None:
    made = scheduler()
    made.add(sequence(made, 0, 30))
    read_all(made)
    longer = SequenceState(id=1, base=made.tree.base(0), tokens=[1000] * 35, num_prompt=35)
    made.add(longer)
    made.plan()
    assert longer.num_cached == 30


def test_all_slots_are_owned_by_somebody_after_any_number_of_requests() -> None:
    made = scheduler(capacity=6, max_batch=4)
    for number in range(50):
        made.add(sequence(made, number, 20 + number % 7, shared=(number % 3) * 8))
    read_all(made)
    assert len(made.free_slots) + made.tree.num_states == 6


def test_restarted_requests_are_read_again_before_all_others() -> None:
    made = scheduler(max_batch=1)
    first = sequence(made, 0, 10)
    made.add(first)
    made.add(sequence(made, 1, 10))
    made.plan()
    made.restart([first])
    assert [chunk.sequence.id for chunk in made.plan()] == [0]
