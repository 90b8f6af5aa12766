"""Updates of many flights to the event loop, without an engine and a real loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from rwkvbatch.engine.request import EngineStats, Reply, ReplyTiming, Request
from rwkvbatch.serve import batcher as batcher_module
from rwkvbatch.serve.batcher import EVENTS_PER_SECOND, Batcher, Flight

REPLY = Reply("abc", (1,), (1,), "eos", None, (0.0,), 1, 0, ReplyTiming(0, 0, 0, 0))


class Loop:
    """An event loop that calls functions at once, and counts the calls."""

    def __init__(self) -> None:
        self.num_calls = 0

    def is_closed(self) -> bool:
        return False

    def call_soon_threadsafe(self, function: Callable[..., None], *arguments: Any) -> None:
        self.num_calls += 1
        function(*arguments)


class Steps:
    """Steps of an engine, each of which adds a piece of text to every flight."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, num_flights: int) -> None:
        self.now_s = 100.0
        monkeypatch.setattr(batcher_module.time, "monotonic", lambda: self.now_s)
        self.loop = Loop()
        self.batcher = Batcher(cast("Any", None), 1000)
        self.batcher._loop = cast("Any", self.loop)
        self.flights = [Flight([Request((1,))], streams=True) for _ in range(num_flights)]

    def step(self, text: str, ended: Flight | None = None) -> None:
        for flight in self.flights:
            flight.undelivered.append((0, text))
            self.batcher._updated.setdefault(flight, False)
        if ended is not None:
            self.batcher._notify(ended, 0, REPLY)
        self.batcher._hand_over_updates()

    def texts(self) -> set[str]:
        return {flight.take_text(0) for flight in self.flights}


def test_the_updates_of_all_flights_take_one_call_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch, 4)
    for number in range(3):
        steps.step(str(number))
        assert steps.texts() == {str(number)}
        steps.now_s += 4 / EVENTS_PER_SECOND
    assert steps.loop.num_calls == 3


def test_many_streams_get_their_first_text_at_once_and_later_text_in_larger_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = Steps(monkeypatch, 200)
    steps.step("a")
    assert steps.texts() == {"a"}
    for text in "bcd":
        steps.now_s += 20 / EVENTS_PER_SECOND
        steps.step(text)
    assert steps.texts() == {""}
    assert steps.loop.num_calls == 1
    steps.now_s += 140 / EVENTS_PER_SECOND
    steps.step("e")
    assert steps.texts() == {"bcde"}


def test_the_end_of_a_reply_is_delivered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch, 200)
    steps.step("a")
    ending = steps.flights[3]
    steps.step("b", ended=ending)
    assert ending.is_done
    assert ending.take_text(0) == "ab"
    assert steps.texts() == {"a", ""}


def test_without_an_engine_requests_end_with_an_error_and_counters_are_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch, 1)
    (flight,) = steps.flights
    steps.batcher._begin(flight)
    steps.batcher._hand_over_updates()
    assert flight.is_done
    assert str(flight.error) == "there is no engine"
    assert steps.batcher.stats == EngineStats()
    assert (steps.batcher.num_cached_states, steps.batcher.num_waiting) == (0, 0)


def test_closing_the_batcher_ends_unfinished_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    batcher = Steps(monkeypatch, 0).batcher
    flight = batcher.submit([Request((1,)), Request((2,))], streams=False)
    assert batcher.num_unfinished == 2
    batcher._running[5] = flight, 0
    batcher._drop(flight)  # its client has disconnected, and there is no engine
    assert not batcher._running
    batcher.close()
    assert str(flight.error) == "the server is shutting down"
    assert batcher.num_unfinished == 0


def test_a_second_result_of_a_request_is_ignored() -> None:
    flight = Flight([Request((1,)), Request((2,))], streams=False)
    flight.put([(0, REPLY), (0, REPLY)])
    assert not flight.is_done
    flight.put([(1, REPLY)])
    assert flight.is_done


def test_an_empty_flight_is_done_at_once_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    batcher = Steps(monkeypatch, 0).batcher
    flight = batcher.submit([], streams=False)
    assert flight.is_done
    assert flight._changed.is_set()
    assert not batcher._flights
