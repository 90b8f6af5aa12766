"""A pool of worker processes on this machine.

The workers are forked from a template process, which has loaded the model, and share the memory of its weights. Forking
is safe there: torch uses one thread, and the kernel threads hold no lock that a child needs; a child starts its own
kernel threads. Models on a GPU are loaded by the workers themselves, since CUDA contexts cannot be forked.
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
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.planning.setups import Setup
from rwkvbatch.replay.pools.pool import Event, LogEntry, Order, RestartLimit, WorkerExited, WorkerReady
from rwkvbatch.replay.pools.worker_loop import LogCollector, collecting_logs, run_worker
from rwkvbatch.replay.worker.models import ModelLoader
from rwkvbatch.replay.worker.worker import Worker
from rwkvbatch.signals import end_process, end_with

Channel: TypeAlias = "Connection[Any, Any]"
MakeLoader = Callable[[], ModelLoader]

_START_TEMPLATE = "from rwkvbatch.replay.pools.processes import template_main; template_main()"


@dataclass
class _Process:
    """A worker process; `ready` is its `WorkerReady` event, None before it is received."""

    channel: Channel
    id: int
    device: str | None
    ready: WorkerReady | None = None


class ProcessPool:
    """A pool of worker processes. Crashed workers are restarted, within a `RestartLimit`.

    Args:
        make_loader: makes the model loader; called in the template process.
        count: number of workers.
        devices: devices that are assigned to the workers in turn; without any, the setups' strategies decide.
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
        return sum(worker.ready is None for worker in self._workers.values())

    def begin(self, setup: Setup) -> None:
        if self._setup != setup or self._template is None:
            self._load(setup)
        if self._workers:
            self._events += [(n, w.ready) for n, w in self._workers.items() if w.ready is not None]
            return
        for device in self._devices:
            self._start_reloading(device)

    def send(self, worker: int, order: Order) -> None:
        process = self._workers.get(worker)
        if process is not None:
            with contextlib.suppress(OSError):  # the process has ended, which `receive` reports
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
        in_template = device in (None, "cpu") and not _uses_gpu(on_device)
        try:
            return self._template.ask(_Load(self._plan, self._make_loader, on_device, in_template))
        except (OSError, EOFError) as error:
            raise WorkerError(f"the model cannot be loaded for the workers: {error}") from error

    def _start(self, device: str | None) -> None:
        """Start a worker; raises `OSError` or `EOFError` when the template process has ended."""
        assert self._template is not None
        assert self._setup is not None
        number = self._next_number
        self._next_number += 1
        name = f"worker {number}" + (f" on {device}" if device else "")
        channel, worker_end = Pipe()
        with worker_end:
            process_id = self._template.ask(_Fork(name, self._setup.on_device(device)), worker_end)
        self._workers[number] = _Process(channel, process_id, device)

    def _receive_from(self, number: int, channel: Channel) -> None:
        """Receive all events that a worker has sent."""
        try:
            while channel.poll():
                event = channel.recv()
                if isinstance(event, WorkerReady):
                    self._workers[number].ready = event
                self._restarts.observe(event)
                if isinstance(event, WorkerExited):
                    self._reap(number, event)
                    return
                self._events.append((number, event))
        except (EOFError, OSError):
            self._reap(number, None)

    def _reap(self, number: int, left: WorkerExited | None) -> None:
        """Remove a worker that has ended, and start another one unless the worker was asked to leave."""
        worker = self._workers.pop(number)
        worker.channel.close()
        status = None
        if self._template is not None:
            with contextlib.suppress(OSError, EOFError):
                status = self._template.ask(_Wait(worker.id))
        left = self._restarts.check(left or WorkerExited(f"process {worker.id} {_describe(status)}"))
        self._events.append((number, left))
        if left.restartable:
            self._start_reloading(worker.device)

    def _start_reloading(self, device: str | None) -> None:
        """Start a worker. If the template process has ended, load it again while the other workers continue."""
        assert self._setup is not None
        while True:
            try:
                self._start(device)
            except (OSError, EOFError) as error:
                left = self._restarts.check(WorkerExited(f"the process that starts workers is gone: {error}"))
                if left.error is not None:
                    raise left.error from None
                running, self._workers = self._workers, {}  # `_load` would kill them
                try:
                    self._load(self._setup)
                finally:
                    self._workers |= running
            else:
                return


def _uses_gpu(setup: Setup) -> bool:
    if setup.strategy.split(" ")[0] != "auto":
        return "cuda" in setup.strategy
    import torch

    return torch.cuda.is_available()


def _describe(status: int | None) -> str:
    """How a process with this wait status ended."""
    if status is None:
        return "ended"
    code = os.waitstatus_to_exitcode(status)
    return f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"


# The protocol between the pool and the template process. Each request gets one answer.


@dataclass(frozen=True)
class _Load:
    """Make the model loader, and load the setup's model. Answer: the model's spec, or an error.

    `in_template` loads it in the template process; otherwise a child process loads it and ends, for its spec only.
    """

    plan: Plan
    make_loader: MakeLoader
    setup: Setup
    in_template: bool


@dataclass(frozen=True)
class _Fork:
    """Fork a worker, which uses the socket sent after the request. Answer: its process id."""

    name: str
    setup: Setup


@dataclass(frozen=True)
class _Wait:
    """Wait for a worker that is ending. Answer: its wait status."""

    process: int


@dataclass(frozen=True)
class _Logged:
    """Log entries of loading a model; sent before the answer, since a worker may end before its first report."""

    entries: tuple[LogEntry, ...]


class _Template:
    """The pool's end: starts the template process and sends it requests."""

    def __init__(self) -> None:
        self._channel, template_end = Pipe()
        # Nothing is written to this pipe. The system closes its write end when this process ends, in whatever way; that
        # ends the template process and the workers.
        lifeline, self._lifeline_write = os.pipe()
        command = [sys.executable, "-c", _START_TEMPLATE, str(template_end.fileno()), str(lifeline)]
        environment = {**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1", "OPENBLAS_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        # The new process inherits the mask, so that these signals do not end it before `template_main` ignores them.
        former_mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)
        inherited = [template_end.fileno(), lifeline]
        try:
            self._process = subprocess.Popen(command, pass_fds=inherited, env=environment, stdin=subprocess.DEVNULL)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former_mask)
            template_end.close()
            os.close(lifeline)

    def ask(self, request: _Load | _Fork | _Wait, socket: Channel | None = None) -> Any:
        """Send a request, and `socket` after it. Returns the answer; raises it if it is an error.

        Raises:
            RwkvBatchError: the model cannot be loaded.
            EOFError: the template process ended.
        """
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
        os.close(self._lifeline_write)


def template_main() -> None:
    """The template process: answers requests until the pool's end is closed."""
    signals.ignore()
    lifeline = int(sys.argv[2])
    end_with(lifeline)
    logs = LogCollector()
    with collecting_logs(logs):
        _answer_requests(Connection(int(sys.argv[1])), logs, lifeline)


def _answer_requests(channel: Channel, logs: LogCollector, lifeline: int) -> None:
    """Answer requests until the pool's end of `channel` is closed.

    Log records are sent to the pool before the answer to `_Load`; later ones are reported by the next worker.
    """
    plan_and_loader: tuple[Plan, ModelLoader] | None = None
    while True:
        try:
            request = channel.recv()
        except (EOFError, OSError):
            return
        answer: Any
        match request:
            case _Load():
                plan_and_loader = request.plan, request.make_loader()
                answer = _load_spec(plan_and_loader[1], request)
                gc.freeze()  # keeps the workers' garbage collectors from touching, and thereby copying, shared pages
            case _Fork():
                assert plan_and_loader is not None
                socket = recv_handle(channel)
                answer = os.fork()
                if answer == 0:
                    status = 1
                    try:
                        end_with(lifeline)
                        channel.close()
                        make_worker = partial(Worker, *plan_and_loader, request.setup)
                        run_worker(Connection(socket), make_worker, request.name, logs)
                        status = 0
                    finally:
                        end_process(status)
                logs.take()
                os.close(socket)
            case _Wait(process):
                answer = os.waitpid(process, 0)[1]
            case _:
                raise TypeError(f"not a request: {request!r}")
        with contextlib.suppress(BrokenPipeError):  # the pool has ended; the next `recv` ends this process
            if isinstance(request, _Load) and (entries := logs.take()):
                channel.send(_Logged(entries))
            channel.send(answer)


def _load_spec(loader: ModelLoader, load: _Load) -> Any:
    """The spec of a setup's model, or the error of loading it."""
    try:
        if not load.in_template:
            return _load_spec_in_child(loader, load.setup)
        spec = loader.specs([load.setup])[load.setup]
    except RwkvBatchError as error:
        return error
    with contextlib.suppress(RwkvBatchError):  # a worker gets the same error, and reports it
        # Loads the vocabulary and modules, which every worker would otherwise load before its first step.
        loader.encoder(load.setup, load.plan)
        loader.engine(load.setup, load.plan, 1)
    return spec


def _load_spec_in_child(loader: ModelLoader, setup: Setup) -> Any:
    """The spec of a setup's model, loaded in a child process that then ends; raises the child's exception."""
    receiver, sender = Pipe(duplex=False)
    process_id = os.fork()
    if process_id == 0:
        try:
            try:
                answer = loader.specs([setup])[setup]
            except Exception as error:  # the parent raises it
                answer = error
            sender.send(answer)
        finally:
            end_process(0)
    sender.close()
    with receiver:
        try:
            answer = receiver.recv()
        except EOFError:
            answer = RwkvBatchError("the process that loaded the model ended early")
    os.waitpid(process_id, 0)
    if isinstance(answer, Exception):
        raise answer
    return answer
