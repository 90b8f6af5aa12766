"""A process that loads a model once and forks workers from it, which share the memory of its weights.

Started by `ProcessCrew`, with the number of the socket over which it is spoken to. Forking is safe here: torch is kept
to one thread, and the kernels' threads take no lock that a child needs, which starts its own. Models on a GPU are
loaded by the workers themselves, since CUDA cannot be forked.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any

from rwkvbatch.errors import RwkvBatchError
from rwkvbatch.run.planning.plan import Plan
from rwkvbatch.run.planning.setups import Setup
from rwkvbatch.run.workers.serve import NoteTaker, noted, serve
from rwkvbatch.run.workers.worker import Worker
from rwkvbatch.run.workshop import ModelShop

DRIVERS_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Terminals, `timeout` and service managers send them to all processes of a run; the driver decides what they mean."""


@dataclass(frozen=True)
class Load:
    """Make the shop and, with `here`, load the setup's model in this process; answered with its spec or an error."""

    plan: Plan
    make_shop: Callable[[], ModelShop]
    setup: Setup
    here: bool


@dataclass(frozen=True)
class Hire:
    """Fork a worker that speaks over the socket that follows; answered with its process id."""

    name: str
    setup: Setup


@dataclass(frozen=True)
class Bury:
    """Answered with the wait status of a worker that is ending."""

    process: int


def main() -> None:
    """Answer requests until the driver is gone."""
    for number in DRIVERS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, DRIVERS_SIGNALS)
    notes = NoteTaker()
    with noted(notes):
        _answer(Connection(int(sys.argv[1])), notes)


def _answer(channel: Connection[Any, Any], notes: NoteTaker) -> None:
    """`notes` are of what was loaded here: the first worker takes them along."""
    loaded: Load | None = None
    shop: ModelShop | None = None
    while True:
        try:
            request = channel.recv()
        except (EOFError, OSError):
            return
        match request:
            case Load():
                loaded, shop = request, request.make_shop()
                spec = _spec(shop, request)
                if request.here and not isinstance(spec, RwkvBatchError):
                    _warm_up(shop, request)
                _say(channel, spec)
                gc.freeze()  # so that a worker's collector does not touch, and copy, what it shares
            case Hire():
                assert loaded is not None
                assert shop is not None
                socket = recv_handle(channel)
                process = os.fork()
                if process == 0:
                    channel.close()
                    _work(Connection(socket), loaded.plan, shop, request, notes)
                notes.take()
                os.close(socket)
                _say(channel, process)
            case Bury(process):
                _say(channel, os.waitpid(process, 0)[1])
            case _:
                raise TypeError(f"not a request: {request!r}")


def _say(channel: Connection[Any, Any], answer: Any) -> None:
    with contextlib.suppress(BrokenPipeError):  # the driver is gone: the next request is the end
        channel.send(answer)


def _spec(shop: ModelShop, load: Load) -> Any:
    try:
        return shop.specs([load.setup])[load.setup] if load.here else _spec_in_a_child(shop, load.setup)
    except RwkvBatchError as error:
        return error


def _warm_up(shop: ModelShop, load: Load) -> None:
    """Do what every worker would have to do before its first step: vocabulary, modules."""
    with contextlib.suppress(RwkvBatchError):  # a worker meets the error again, and reports it
        shop.desk(load.setup, load.plan)
        shop.engine(load.setup, load.plan, 1)


def _spec_in_a_child(shop: ModelShop, setup: Setup) -> Any:
    receiving, sending = os.pipe()
    process = os.fork()
    if process == 0:
        channel: Connection[Any, Any] = Connection(sending, readable=False)
        try:
            channel.send(shop.specs([setup])[setup])
        except Exception as error:
            channel.send(error)
        os._exit(0)
    os.close(sending)
    channel = Connection(receiving, writable=False)
    try:
        answer = channel.recv()
    except EOFError:
        answer = RwkvBatchError("the process that loaded the model ended early")
    channel.close()
    os.waitpid(process, 0)
    if isinstance(answer, Exception):
        raise answer
    return answer


def _work(
    channel: Connection[Any, Any], plan: Plan, shop: ModelShop, request: Hire, notes: NoteTaker
) -> None:
    """The worker's whole life; does not return."""
    status = 1
    try:
        serve(
            channel,
            lambda: Worker(plan, shop, request.setup),
            request.name,
            plan.settings.batch_size,
            notes,
        )
        status = 0
    finally:
        os._exit(status)
