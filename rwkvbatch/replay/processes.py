"""A pool of worker processes on this machine.

The workers are forked from a template process, which has loaded the model, and share the memory of its weights. Forking
is safe there: torch is kept to one thread, and the threads of the kernels hold no lock that a child needs, which starts
its own. Models on a GPU are loaded by the workers themselves, since CUDA contexts cannot be forked.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, TypeAlias

from rwkvbatch import signals
from rwkvbatch.errors import RwkvBatchError, WorkerError
from rwkvbatch.replay.models import ModelLoader, Setup
from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.pool import Event, Joined, Left, LogEntry, Order, RestartLimit
from rwkvbatch.replay.worker import LogCollector, Worker, collecting_logs, serve
from rwkvbatch.signals import end_process, end_with

Channel: TypeAlias = "Connection[Any, Any]"
MakeLoader = Callable[[], ModelLoader]

_START_TEMPLATE = "from rwkvbatch.replay.processes import template_main; template_main()"


@dataclass
class _Process:
    """A worker process, and its `Joined` event once it has sent it."""

    channel: Channel
    id: int
    device: str | None
    joined: Joined | None = None


class ProcessPool:
    """`count` worker processes, on `devices` in turn. Those that crash are restarted, within a `RestartLimit`.

    `make_loader` is called in the template process. Without devices, the setups' strategies stay as they are.
    """

    def __init__(self, plan: Plan, make_loader: MakeLoader, count: int, devices: Sequence[str] = ()) -> None:
        self._plan = plan
        self._make_loader = make_loader
        self._devices: list[str | None] = [devices[n % len(devices)] if devices else None for n in range(count)]
        self._template: _Template | None = None
        self._setup: Setup | None = None
        self._workers: dict[int, _Process] = {}
        self._events: list[tuple[int, Event]] = []
        self._next_number = 0
        self._restarts = RestartLimit(count)

    def specs(self, setups: Sequence[Setup]) -> dict[Setup, Any]:
        return {setup: self._load(setup) for setup in reversed(setups)}

    @property
    def num_starting(self) -> int:
        return sum(worker.joined is None for worker in self._workers.values())

    def begin(self, setup: Setup) -> None:
        if self._setup != setup or self._template is None:
            self._load(setup)
        if self._workers:
            self._events += [(n, w.joined) for n, w in self._workers.items() if w.joined is not None]
            return
        for device in self._devices:
            self._start_reloading(device)

    def send(self, worker: int, order: Order) -> None:
        process = self._workers.get(worker)
        if process is not None:
            with contextlib.suppress(OSError):  # `receive` notices that the process ended
                process.channel.send(order)

    def kill(self, worker: int) -> None:
        process = self._workers.get(worker)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.id, signal.SIGKILL)

    def receive(self, timeout_s: float) -> Sequence[tuple[int, Event]]:
        if not self._workers and not self._events:
            time.sleep(timeout_s)
        numbers = {worker.channel: number for number, worker in self._workers.items()}
        for channel in wait(list(numbers), 0.0 if self._events else timeout_s):
            assert isinstance(channel, Connection)
            self._receive_from(numbers[channel], channel)
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        for worker in self._workers.values():
            worker.channel.close()
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.id, signal.SIGKILL)
        self._workers.clear()
        if self._template is not None:
            self._template.close()
            self._template = None
        self._setup = None

    def _load(self, setup: Setup) -> Any:
        """Load the setup's model in a new template process. Returns its spec."""
        self.close()
        self._template = _Template()
        self._setup = setup
        device = self._devices[0]
        on_device = setup.on_device(device)
        in_template = device in (None, "cpu") and not _wants_gpu(on_device)
        try:
            return self._template.ask(_Load(self._plan, self._make_loader, on_device, in_template))
        except (OSError, EOFError) as error:
            raise WorkerError(f"the model cannot be loaded for the workers: {error}") from error

    def _start(self, device: str | None) -> None:
        assert self._template is not None
        assert self._setup is not None
        number = self._next_number
        self._next_number += 1
        name = f"worker {number}" + (f" on {device}" if device else "")
        ours, theirs = Pipe()
        with theirs:
            process = self._template.ask(_Fork(name, self._setup.on_device(device)), theirs)
        self._workers[number] = _Process(ours, process, device)

    def _receive_from(self, number: int, channel: Channel) -> None:
        try:
            while channel.poll():
                event = channel.recv()
                if isinstance(event, Joined):
                    self._workers[number].joined = event
                self._restarts.observe(event)
                if isinstance(event, Left):
                    self._reap(number, event)
                    return
                self._events.append((number, event))
        except (EOFError, OSError):
            self._reap(number, None)

    def _reap(self, number: int, left: Left | None) -> None:
        """Remove a worker that has ended, and start another one unless it was asked to leave."""
        worker = self._workers.pop(number)
        worker.channel.close()
        status = None
        if self._template is not None:
            with contextlib.suppress(OSError, EOFError):
                status = self._template.ask(_Wait(worker.id))
        left = self._restarts.check(left or Left(f"process {worker.id} {_describe(status)}"))
        self._events.append((number, left))
        if left.restartable:
            self._start_reloading(worker.device)

    def _start_reloading(self, device: str | None) -> None:
        """Start a worker. Where the template process has ended, load it again while the other workers continue."""
        assert self._setup is not None
        while True:
            try:
                self._start(device)
            except (OSError, EOFError) as error:
                left = self._restarts.check(Left(f"the process that starts workers is gone: {error}"))
                if left.error is not None:
                    raise left.error from None
                others, self._workers = self._workers, {}
                try:
                    self._load(self._setup)
                finally:
                    self._workers |= others
            else:
                return


def _wants_gpu(setup: Setup) -> bool:
    if setup.strategy.split(" ")[0] != "auto":
        return "cuda" in setup.strategy
    import torch

    return torch.cuda.is_available()


def _describe(status: int | None) -> str:
    if status is None:
        return "ended"
    code = os.waitstatus_to_exitcode(status)
    return f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"


# The protocol between the pool and the template process. Each request has one answer.


@dataclass(frozen=True)
class _Load:
    """Make the model loader and, with `here`, load the setup's model in the template. Answer: its spec, or an error."""

    plan: Plan
    make_loader: MakeLoader
    setup: Setup
    here: bool


@dataclass(frozen=True)
class _Fork:
    """Fork a worker that uses the socket sent after the request. Answer: its process id."""

    name: str
    setup: Setup


@dataclass(frozen=True)
class _Wait:
    """Wait for a worker that is ending. Answer: its wait status."""

    process: int


@dataclass(frozen=True)
class _Logged:
    """What was logged while a model was loaded; sent before the answer, since a worker may end before it reports."""

    entries: tuple[LogEntry, ...]


class _Template:
    """The pool's end: starts the template process and sends it requests."""

    def __init__(self) -> None:
        self._channel, theirs = Pipe()
        # Nothing is ever written to this pipe: the system closes it with this process, however that ends.
        lifeline, self._life = os.pipe()
        command = [sys.executable, "-c", _START_TEMPLATE, str(theirs.fileno()), str(lifeline)]
        environment = {**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1", "OPENBLAS_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        # The new process inherits the mask, so that these signals do not end it before `template_main` ignores them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)
        inherited = [theirs.fileno(), lifeline]
        try:
            self._process = subprocess.Popen(command, pass_fds=inherited, env=environment, stdin=subprocess.DEVNULL)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
            os.close(lifeline)

    def ask(self, request: _Load | _Fork | _Wait, socket: Channel | None = None) -> Any:
        """The answer to a request, after which `socket` is sent. An answer that is an error is raised."""
        self._channel.send(request)
        if socket is not None:
            send_handle(self._channel, socket.fileno(), self._process.pid)
        try:
            while isinstance(answer := self._channel.recv(), _Logged):
                for entry in answer.entries:
                    logging.getLogger(entry.logger).log(entry.level, entry.text)
        except EOFError:
            code = self._process.wait()
            raise EOFError(f"the process that loads the model ended with {code}") from None
        if isinstance(answer, RwkvBatchError):
            raise answer
        return answer

    def close(self) -> None:
        self._channel.close()
        self._process.kill()
        self._process.wait()
        os.close(self._life)


def template_main() -> None:
    """The template process: answers requests until the pool's end is closed."""
    signals.ignore()
    lifeline = int(sys.argv[2])
    end_with(lifeline)
    logs = LogCollector()
    with collecting_logs(logs):
        _answer_requests(Connection(int(sys.argv[1])), logs, lifeline)


def _answer_requests(channel: Channel, logs: LogCollector, lifeline: int) -> None:
    """Log records of the template go to the pool with the answer, or to the next worker, which reports them."""
    served: tuple[Plan, ModelLoader] | None = None
    while True:
        try:
            request = channel.recv()
        except (EOFError, OSError):
            return
        answer: Any
        match request:
            case _Load():
                served = request.plan, request.make_loader()
                answer = _load_spec(served[1], request)
                gc.freeze()  # keeps the workers' garbage collectors from touching, and thereby copying, shared pages
            case _Fork():
                assert served is not None
                socket = recv_handle(channel)
                answer = os.fork()
                if answer == 0:
                    status = 1
                    try:
                        end_with(lifeline)
                        channel.close()
                        serve(Connection(socket), partial(Worker, *served, request.setup), request.name, logs)
                        status = 0
                    finally:
                        end_process(status)
                logs.take()
                os.close(socket)
            case _Wait(process):
                answer = os.waitpid(process, 0)[1]
            case _:
                raise TypeError(f"not a request: {request!r}")
        with contextlib.suppress(BrokenPipeError):  # the pool has ended: the next `recv` ends this process
            if isinstance(request, _Load) and (entries := logs.take()):
                channel.send(_Logged(entries))
            channel.send(answer)


def _load_spec(loader: ModelLoader, load: _Load) -> Any:
    try:
        if not load.here:
            return _load_spec_in_child(loader, load.setup)
        spec = loader.specs([load.setup])[load.setup]
    except RwkvBatchError as error:
        return error
    with contextlib.suppress(RwkvBatchError):  # a worker meets the error again, and reports it
        # What every worker would do before its first step: load the vocabulary and modules.
        loader.encoder(load.setup, load.plan)
        loader.engine(load.setup, load.plan, 1)
    return spec


def _load_spec_in_child(loader: ModelLoader, setup: Setup) -> Any:
    ours, theirs = Pipe(duplex=False)
    process = os.fork()
    if process == 0:
        try:
            try:
                answer = loader.specs([setup])[setup]
            except Exception as error:  # raised in the template
                answer = error
            theirs.send(answer)
        finally:
            end_process(0)
    theirs.close()
    with ours:
        try:
            answer = ours.recv()
        except EOFError:
            answer = RwkvBatchError("the process that loaded the model ended early")
    os.waitpid(process, 0)
    if isinstance(answer, Exception):
        raise answer
    return answer
