"""Forking work to side streams and joining it, with streams that record the order of events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rwkvbatch.model.ops.cuda import in_branches

Event = tuple[str, str]


class Stream:
    def __init__(self, name: str, events: list[Event]) -> None:
        self.name = name
        self._events = events

    def wait_stream(self, stream: Stream) -> None:
        self._events.append((self.name, f"waits for {stream.name}"))


@pytest.mark.parametrize(("num_works", "num_streams"), [(1, 3), (3, 3), (5, 2)])
def test_every_work_comes_after_the_fork_and_before_the_join(num_works: int, num_streams: int) -> None:
    events: list[Event] = []
    main, side = Stream("main", events), [Stream(f"side {n}", events) for n in range(num_streams)]

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        current.append(stream.name)
        yield
        current.pop()

    def work(number: int) -> int:
        events.append((current[-1], "works"))
        return number

    current = ["main"]
    results = in_branches([lambda n=n: work(n) for n in range(num_works)], main, side, on)
    assert results == list(range(num_works))
    assert current == ["main"]
    workers = [name for name, what in events if what == "works"]
    assert len(workers) == num_works
    assert len(set(workers)) == min(num_works, num_streams)
    for name in set(workers):
        own = [place for place, event in enumerate(events) if event == (name, "works")]
        assert events.index((name, "waits for main")) < own[0]
        assert events.index(("main", f"waits for {name}")) > own[-1]
