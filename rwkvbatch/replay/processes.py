"""Workers in processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.reduction import send_handle
from typing import TYPE_CHECKING, Any

from rwkvbatch.errors import RwkvBatchError, WorkerError
from rwkvbatch.replay.messages import ASKED_TO_LEAVE, Joined, Left, Order, Signal
from rwkvbatch.replay.models import ModelProvider, Setup
from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.pool import RestartLimit
from rwkvbatch.replay.process_worker import Bury, Hire, Load
from rwkvbatch.signals import SIGNALS

if TYPE_CHECKING:
    Ends = Connection[Any, Any]
else:
    Ends = Connection

_START = "from rwkvbatch.replay.process_worker import main; main()"


@dataclass
class _Process:
    """A worker: its connection, process id, device, and how it introduced itself."""

    channel: Ends
    process: int
    device: str | None
    joined: Joined | None = None


class ProcessPool:
    """`count` worker processes, forked from one that has loaded the model; the dead are replaced.

    Args:
        make_loader: makes the models' shop in the process that loads them; picklable.
        count: workers.
        devices: of the workers, in turn; None where the strategies say it.

    Raises:
        WorkerError: from `receive` (as `Left.error`), when workers die one after the other without a row.
    """

    def __init__(
        self,
        plan: Plan,
        make_loader: Callable[[], ModelProvider],
        count: int,
        devices: Sequence[str] = (),
    ) -> None:
        self._plan = plan
        self._make_shop = make_loader
        self._devices: list[str | None] = [devices[n % len(devices)] if devices else None for n in range(count)]
        self._template: _Template | None = None
        self._setup: Setup | None = None
        self._workers: dict[int, _Process] = {}
        self._signals: list[Signal] = []
        self._next_number = 0
        self._deaths = RestartLimit(count)

    def specs(self, setups: Sequence[Setup]) -> dict[Setup, Any]:
        return {setup: self._load(setup) for setup in reversed(setups)}

    @property
    def num_coming(self) -> int:
        return sum(worker.joined is None for worker in self._workers.values())

    def begin(self, setup: Setup) -> None:
        if self._setup != setup or self._template is None:
            self._load(setup)
        if self._workers:
            self._signals += [(n, w.joined) for n, w in self._workers.items() if w.joined is not None]
            return
        for device in self._devices:
            self._hire(device)

    def send(self, worker: int, order: Order) -> None:
        process = self._workers.get(worker)
        if process is not None:
            try:
                process.channel.send(order)
            except OSError:
                return  # its end shows when it is listened to

    def receive(self, timeout_s: float) -> Sequence[Signal]:
        if not self._workers and not self._signals:
            time.sleep(timeout_s)
        numbers = {worker.channel: number for number, worker in self._workers.items()}
        for channel in wait(list(numbers), 0.0 if self._signals else timeout_s):
            assert isinstance(channel, Connection)
            self._listen(numbers[channel], channel)
        signals, self._signals = self._signals, []
        return signals

    def close(self) -> None:
        for worker in self._workers.values():
            worker.channel.close()
            _kill(worker.process)
        self._workers.clear()
        if self._template is not None:
            self._template.close()
            self._template = None
        self._setup = None

    def _load(self, setup: Setup) -> Any:
        """The setup's model, in a process of its own; its spec."""
        self.close()
        self._template = _Template()
        self._setup = setup
        on_device = replace_device(setup, self._devices[0])
        on_cpu = self._devices[0] in (None, "cpu") and not _wants_gpu(on_device)
        try:
            return self._template.ask(Load(self._plan, self._make_shop, on_device, here=on_cpu))
        except (OSError, EOFError) as error:
            raise WorkerError(f"the model cannot be loaded for the workers: {error}") from error

    def _hire(self, device: str | None) -> None:
        assert self._template is not None
        assert self._setup is not None
        number = self._next_number
        self._next_number += 1
        name = f"worker {number}" + (f" on {device}" if device else "")
        ours, theirs = Pipe()
        try:
            process = self._template.hire(Hire(name, replace_device(self._setup, device)), theirs)
        finally:
            theirs.close()
        self._workers[number] = _Process(ours, process, device)

    def _listen(self, number: int, channel: Ends) -> None:
        try:
            while channel.poll():
                event = channel.recv()
                if isinstance(event, Joined):
                    self._workers[number].joined = event
                self._deaths.heard(event)
                if isinstance(event, Left):
                    self._bury(number, event)
                    return
                self._signals.append((number, event))
        except (EOFError, OSError):
            self._bury(number, None)

    def _bury(self, number: int, farewell: Left | None) -> None:
        worker = self._workers.pop(number)
        worker.channel.close()
        status = self._status_of(worker)
        left = self._deaths.judge(farewell or Left(_describe(status, worker.process)))
        self._signals.append((number, left))
        if left.error is None and left.reason != ASKED_TO_LEAVE:
            self._replace(worker)

    def _replace(self, worker: _Process) -> None:
        assert self._setup is not None
        try:
            self._hire(worker.device)
        except (OSError, EOFError):
            # The process with the model is gone too: load it again. The other workers go on meanwhile.
            others, self._workers = self._workers, {}
            setup = self._setup
            self._load(setup)
            self._workers = others
            self._hire(worker.device)

    def _status_of(self, worker: _Process) -> int | None:
        if self._template is None:
            return None
        try:
            return self._template.ask(Bury(worker.process))
        except (OSError, EOFError):
            return None


class _Template:
    """The process that loads and forks, and the connection to it."""

    def __init__(self) -> None:
        self._channel, theirs = Pipe()
        command = [sys.executable, "-c", _START, str(theirs.fileno())]
        environment = {**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1", "OPENBLAS_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        # Inherited, so that not even a process that has just begun ends by them; `template.main` ignores them instead.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()

    def ask(self, request: Load | Bury) -> Any:
        """Raises what is answered if that is an error."""
        self._channel.send(request)
        answer = self._receive()
        if isinstance(answer, RwkvBatchError):
            raise answer
        return answer

    def hire(self, request: Hire, channel: Ends) -> int:
        self._channel.send(request)
        send_handle(self._channel, channel.fileno(), self._process.pid)
        return self._receive()

    def close(self) -> None:
        self._channel.close()
        self._process.kill()
        self._process.wait()

    def _receive(self) -> Any:
        try:
            return self._channel.recv()
        except EOFError:
            code = self._process.wait()
            raise EOFError(f"the process that loads the model ended with {code}") from None


def replace_device(setup: Setup, device: str | None) -> Setup:
    """The setup on another device; the precision stays.

    >>> replace_device(Setup(None, "cuda fp16", "auto", (0,)), "cuda:1").strategy
    'cuda:1 fp16'
    """
    if device is None:
        return setup
    _, _, precision = setup.strategy.partition(" ")
    return replace(setup, strategy=f"{device} {precision}".strip())


def _wants_gpu(setup: Setup) -> bool:
    if setup.strategy.split(" ")[0] != "auto":
        return "cuda" in setup.strategy
    import torch

    return torch.cuda.is_available()


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


def _describe(status: int | None, process: int) -> str:
    if status is None:
        return f"process {process} ended"
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"process {process} ended with exit code {code}"
    return f"process {process} was ended by {signal.Signals(-code).name}"
