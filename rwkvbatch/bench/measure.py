"""One run of the benchmark: load, then rounds in which everything is timed in turn.

What is to be compared is timed in the same rounds, so that a machine that is busy for a while slows all of it alike.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from rwkvbatch import __version__
from rwkvbatch.bench.package import Package, strategy_for
from rwkvbatch.bench.records import (
    Figure,
    LimitMeter,
    Limits,
    Loading,
    Meter,
    Rates,
    Report,
    best_rate,
    limits_from,
    median,
    native_ops,
)
from rwkvbatch.bench.workloads import (
    PROCESSOR,
    WALL,
    Clock,
    Workload,
    decode,
    prompt,
    sampling,
    stored_bytes,
    tokenizing,
)
from rwkvbatch.errors import UsageError
from rwkvbatch.model.base import Model
from rwkvbatch.model.load import load_model

_SIZE = re.compile(r"(\d{1,4})x(\d{1,6})")
HEAD_SIZE = 64


def write_random(size: str, folder: Path) -> Path:
    """Write random bf16 weights of the shape `size` (such as `12x768`) into `folder`; the file's path.

    Raises:
        UsageError: `size` is not LAYERSxWIDTH, or the width is no multiple of 64.
    """
    match = _SIZE.fullmatch(size)
    if match is None or not int(match[1]) or not int(match[2]) or int(match[2]) % HEAD_SIZE:
        raise UsageError(f"--random must be LAYERSxWIDTH with a width that is a multiple of 64, got {size!r}")
    path = folder / f"random-{size}.safetensors"
    process = multiprocessing.get_context("spawn").Process(target=_write, args=(path, int(match[1]), int(match[2])))
    process.start()
    process.join()
    if process.exitcode != 0 or not path.is_file():
        raise UsageError(f"a random checkpoint of {size} could not be made; is there memory and space enough?")
    return path


def _write(path: Path, num_layers: int, width: int) -> None:
    from rwkvbatch.model.random_checkpoint import random_tensors
    from rwkvbatch.model.safetensors import save_tensors

    save_tensors(path, random_tensors(num_layers, width))


_COPIED_BYTES = 512 << 20
"""More than any cache."""
_MATRIX_SIZE = 8192
_MATRIX_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class DeviceWork(Protocol):
    """What a device is timed at. Both may return before it is done: the clock waits."""

    name: str
    copy_bytes: float
    product_operations: float

    def copy(self) -> None:
        """Move `copy_bytes`, those read and those written counted."""
        ...

    def multiply(self) -> None:
        """Do `product_operations` floating-point operations in one matrix product."""
        ...


class TorchWork:
    """Copies and products by torch on `device`, in the model's dtype (`fp32`, `bf16` or `fp16`)."""

    copy_bytes = 2.0 * _COPIED_BYTES
    product_operations = 2.0 * _MATRIX_SIZE**3

    def __init__(self, device: str, dtype: str) -> None:
        self.name = f"{torch.cuda.get_device_name(device)}, {dtype} products"
        self._source = torch.zeros(_COPIED_BYTES, dtype=torch.uint8, device=device)
        self._target = torch.empty_like(self._source)
        shape = (_MATRIX_SIZE, _MATRIX_SIZE)
        # Random, because a GPU that multiplies zeros needs less power and runs faster.
        self._left = torch.randn(shape, device=device).to(_MATRIX_DTYPES[dtype])
        self._right = torch.randn(shape, device=device).to(_MATRIX_DTYPES[dtype])
        self._product = torch.empty_like(self._left)

    def copy(self) -> None:
        self._target.copy_(self._source)

    def multiply(self) -> None:
        torch.mm(self._left, self._right, out=self._product)


@dataclass
class GpuMeter:
    """Measures both limits each time it is asked to; see `LimitMeter`.

    Args:
        clock: has to wait for the device, see `device_clock`.
    """

    work: DeviceWork
    clock: Clock
    _measured: list[Rates] = field(default_factory=list)

    def measure(self) -> Rates:
        work = self.work
        rates = Rates(
            read=best_rate(work.copy, work.copy_bytes, self.clock),
            fma=best_rate(work.multiply, work.product_operations, self.clock),
            arithmetic="products",
        )
        self._measured.append(rates)
        return rates

    def found(self) -> Limits:
        return limits_from(self.work.name, self._measured)


def device_clock(device: str) -> Clock:
    """The wall's time once `device` has done what it was asked for. Can be sent to another process."""
    return partial(_time_when_done, device)


def _time_when_done(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()
    return WALL()


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    rows: Sequence[int] = (1, 8, 32, 64, 128)
    prompt_tokens: int = 512
    rounds: int = 7
    against_package: bool = False
    processor_time: bool = False
    """Count one thread's processor time, not the wall's: what a busy machine does to others is left out."""


def run_benchmark(
    path: Path | str | None,
    plan: Plan,
    *,
    strategy: str = "auto",
    backend: str = "auto",
    threads: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Load the model at `path` (None: the bundled one) and measure it.

    Raises:
        RwkvBatchError: the model cannot be loaded.
        UsageError: processor time was asked for, and the model is on a GPU.
    """
    threads = 1 if plan.processor_time else threads
    load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    say("loading")
    model, loading = _load(path, strategy, backend, threads)
    device = model.spec.device
    clock, meter = _instruments(model, plan)
    ops = native_ops(model)
    num_threads = ops.threads if ops is not None else threads or torch.get_num_threads()
    weight_bytes = ops.step_bytes if ops is not None else stored_bytes(model.spec)
    workloads = [decode(model, rows, clock, weight_bytes) for rows in plan.rows]
    workloads.append(prompt(model, plan.prompt_tokens, clock, weight_bytes))
    workloads += [sampling(model, clock), tokenizing(clock)]
    ours: dict[str, list[float]] = {workload.name: [] for workload in workloads}
    theirs: dict[str, list[float]] = {workload.name: [] for workload in workloads}
    rates: dict[str, list[Rates]] = {workload.name: [] for workload in workloads}
    with ExitStack() as stack:
        package = None
        if plan.against_package:
            say("loading the rwkv package")
            package = stack.enter_context(Package(Path(model.spec.path), num_threads, clock, strategy_for(device)))
        for workload in workloads:
            workload.once()
        for number in range(plan.rounds):
            say(f"round {number + 1} of {plan.rounds}")
            for workload in workloads:
                if workload.operations and (possible := meter.measure()) is not None:
                    rates[workload.name].append(possible)
                ours[workload.name].append(median([workload.once() for _ in range(workload.repeats)]))
            if package is not None:
                _measure_package(package, workloads, theirs)
    return Report(
        model=model.spec.path,
        parameters=model.spec.num_parameters,
        dtype=model.spec.dtype,
        backend=model.spec.backend,
        threads=num_threads,
        rounds=plan.rounds,
        clock="processor" if plan.processor_time else "wall",
        version=__version__,
        torch=torch.__version__,
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        load_average_before=load_average,
        loading=loading,
        limits=meter.found(),
        figures=tuple(
            figure_of(workload, ours[workload.name], theirs[workload.name], rates[workload.name])
            for workload in workloads
        ),
        against="rwkv" if plan.against_package else None,
    )


def _instruments(model: Model, plan: Plan) -> tuple[Clock, Meter]:
    """The clock for the model's device, and what measures that device's limits."""
    device = model.spec.device
    if device == "cpu":
        clock = PROCESSOR if plan.processor_time else WALL
        return clock, LimitMeter(model, clock)
    if plan.processor_time:
        raise UsageError("--cpu-time is the time of a processor's thread, and the model is on a GPU")
    clock = device_clock(device)
    if model.spec.backend.startswith("cuda"):
        return clock, GpuMeter(TorchWork(device, model.spec.dtype), clock)
    return clock, LimitMeter(model, clock)


def _measure_package(package: Package, workloads: Sequence[Workload], theirs: dict[str, list[float]]) -> None:
    """One round; the package has no batches, so one decode stands against every number of rows."""
    seconds: dict[tuple[str, int], float] = {}
    for workload in workloads:
        size = 1 if workload.kind == "decode" else workload.size
        key = (workload.kind, size)
        if key not in seconds:
            repeats = 1 if workload.kind in ("prompt", "tokenize") else 5
            seconds[key] = median([package.measure(workload.kind, size) for _ in range(repeats)])
        theirs[workload.name].append(seconds[key])


def _load(path: Path | str | None, strategy: str, backend: str, threads: int | None) -> tuple[Model, Loading]:
    before = resident_bytes()
    start = time.perf_counter()
    model = load_model(path, strategy, backend, threads=threads)
    seconds = time.perf_counter() - start
    after = resident_bytes()
    size = Path(model.spec.path).stat().st_size
    grown = None if before is None or after is None else after - before
    return model, Loading(
        seconds=seconds,
        checkpoint_mb=size / 1e6,
        resident_mb=None if grown is None else grown / 1e6,
        resident_share=None if grown is None else grown / size,
    )


def resident_bytes() -> int | None:
    """Resident memory of this process; None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def figure_of(workload: Workload, seconds: Sequence[float], package: Sequence[float], rates: Sequence[Rates]) -> Figure:
    """What the seconds of each round say, ours and (unless empty) the package's.

    Args:
        rates: what the machine could do right before each of `seconds`, or empty.
    """
    middle, best = median(seconds), min(seconds)
    limit = share = None
    if rates:
        at_best = [(workload.weight_bytes / rate.read, workload.operations / rate.fma) for rate in rates]
        limit = "memory" if median([memory_s - fma_s for memory_s, fma_s in at_best]) > 0 else rates[0].arithmetic
        share = median([max(times) / taken for times, taken in zip(at_best, seconds, strict=True)])
    unit, value = _UNITS[workload.kind]
    theirs = ratio = None
    if package:
        # The package decodes and samples one row at a time.
        size = 1 if workload.kind in ("decode", "sample") else workload.size
        theirs = value(size, median(package))
        own = value(workload.size, middle)
        ratio = theirs / own if workload.kind == "sample" else own / theirs
    return Figure(
        name=workload.name,
        unit=unit,
        median=value(workload.size, middle),
        best=value(workload.size, best),
        limit=limit,
        share=share,
        package=theirs,
        ratio=ratio,
    )


def _rate(size: int, seconds: float) -> float:
    return size / seconds


_UNITS: dict[str, tuple[str, Callable[[int, float], float]]] = {
    "decode": ("tokens/s", _rate),
    "prompt": ("tokens/s", _rate),
    "sample": ("ms/row", lambda rows, seconds: 1e3 * seconds / rows),
    "tokenize": ("MB/s", lambda size, seconds: size / seconds / 1e6),
}
