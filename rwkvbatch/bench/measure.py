"""The benchmark: loads a model, and times all workloads in rounds.

All figures that are compared are timed in the same rounds, so that other load on the machine slows them equally.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median

import torch

from rwkvbatch import __version__
from rwkvbatch.bench.limits import Limits, Meter, Rates
from rwkvbatch.bench.package import rwkv_package, strategy_for
from rwkvbatch.bench.workloads import Kind, Workload, decode, native_ops, prompt, sampling, stored_bytes, tokenizing
from rwkvbatch.errors import UsageError
from rwkvbatch.model.base import Model
from rwkvbatch.model.load import load_model

_SIZE = re.compile(r"(\d{1,4})x(\d{1,6})")
HEAD_SIZE = 64


def write_random(size: str, folder: Path, sparsity: float | None = None) -> Path:
    """Write random bf16 weights of the shape `size` (such as `12x768`) to a file in `folder`, and return its path.

    Args:
        sparsity: see `random_tensors`.

    Raises:
        UsageError: `size` is not LAYERSxWIDTH, or the width is not a multiple of 64, or there is no memory or space.
    """
    match = _SIZE.fullmatch(size)
    if match is None or not int(match[1]) or not int(match[2]) or int(match[2]) % HEAD_SIZE:
        raise UsageError(f"--random must be LAYERSxWIDTH with a width that is a multiple of 64, got {size!r}")
    path = folder / f"random-{size}.safetensors"
    process = multiprocessing.get_context("spawn").Process(
        target=_write, args=(path, int(match[1]), int(match[2]), sparsity)
    )
    process.start()
    process.join()
    if process.exitcode != 0 or not path.is_file():
        raise UsageError(f"cannot write a random checkpoint of {size}; is there enough memory and disk space?")
    return path


def _write(path: Path, num_layers: int, width: int, sparsity: float | None) -> None:
    from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
    from rwkvbatch.model.weights.safetensors import save_tensors

    save_tensors(path, random_tensors(num_layers, width, sparsity=sparsity))


@dataclass(frozen=True)
class Figure:
    """One measured quantity.

    Attributes:
        name: name of the workload, such as `decode, 64 rows`.
        unit: unit of `median` and `best`: `tokens/s`, `ms/row` or `MB/s`.
        median, best: median and best of the rounds.
        limit: the limit that is reached first: `memory`, or arithmetic (`fma`, `products`); None without limits.
        share: the time that the work takes at that limit, divided by the time it took; median over the rounds. The
            limit is measured immediately before the work.
        package: the `rwkv` package's median in the same unit, measured in the same rounds.
        ratio: how many times faster than the package, by the medians.
    """

    name: str
    unit: str
    median: float
    best: float
    limit: str | None = None
    share: float | None = None
    package: float | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class Loading:
    """Time and memory of loading a model.

    Attributes:
        checkpoint_mb: size of the file.
        resident_mb: growth of the resident memory. Both are in 10^6 bytes.
        resident_share: `resident_mb / checkpoint_mb`.
    """

    seconds: float
    checkpoint_mb: float
    resident_mb: float | None
    resident_share: float | None


@dataclass(frozen=True)
class Report:
    """The result of a benchmark; `clock` is `wall`, or `processor` if the processor time of one thread was measured."""

    model: str
    parameters: int
    dtype: str
    backend: str
    threads: int
    rounds: int
    clock: str
    version: str
    torch: str
    machine: str
    load_average_before: float | None
    loading: Loading
    limits: Limits | None
    figures: tuple[Figure, ...]
    against: str | None


@dataclass(frozen=True)
class Plan:
    """The extent of a benchmark.

    Attributes:
        rows: numbers of rows of the decode steps.
        prompt_tokens: length of the prompt.
        rounds: number of rounds.
        against_package: measure the `rwkv` package too.
        processor_time: measure the processor time of one thread instead of wall time, to exclude the load of other
            programs.
    """

    rows: Sequence[int] = (1, 8, 32, 64, 128)
    prompt_tokens: int = 512
    rounds: int = 7
    against_package: bool = False
    processor_time: bool = False


def run_benchmark(
    path: Path | str | None,
    plan: Plan,
    *,
    strategy: str = "auto",
    backend: str = "auto",
    threads: int | None = None,
    notify: Callable[[str], None] = lambda _: None,
) -> Report:
    """Load the model at `path` (None for the bundled one) and measure it.

    Raises:
        RwkvBatchError: the model cannot be loaded.
        UsageError: processor time is requested for a model on a GPU.
    """
    threads = 1 if plan.processor_time else threads
    load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    notify("loading")
    model, loading = _load(path, strategy, backend, threads)
    meter, ops = Meter.of(model, processor_time=plan.processor_time), native_ops(model)
    clock = meter.clock
    num_threads = ops.threads if ops is not None else threads or torch.get_num_threads()
    weight_bytes = ops.step_bytes if ops is not None else stored_bytes(model.spec)
    workloads = [decode(model, rows, clock, weight_bytes) for rows in plan.rows]
    workloads.append(prompt(model, plan.prompt_tokens, clock, weight_bytes))
    workloads += [sampling(model, clock), tokenizing(clock)]
    measured = [_Measured(workload) for workload in workloads]
    package_process = nullcontext()
    if plan.against_package:
        notify("loading the rwkv package")
        package_process = rwkv_package(Path(model.spec.path), num_threads, clock, strategy_for(model.spec.device))
    with package_process as package:
        for workload in workloads:
            workload.once()
        for number in range(plan.rounds):
            notify(f"round {number + 1} of {plan.rounds}")
            for each in measured:
                if each.workload.operations and (rates := meter.measure()) is not None:
                    each.rates.append(rates)
                each.seconds.append(median([each.workload.once() for _ in range(each.workload.repeats)]))
            if package is not None:
                _measure_package(package, measured)
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
        limits=meter.limits(),
        figures=tuple(figure_of(each.workload, each.seconds, each.package_seconds, each.rates) for each in measured),
        against="rwkv" if plan.against_package else None,
    )


@dataclass(frozen=True)
class _Measured:
    """A workload's measurements, one for each round: our seconds, the package's, and the rates just before ours."""

    workload: Workload
    seconds: list[float] = field(default_factory=list[float])
    package_seconds: list[float] = field(default_factory=list[float])
    rates: list[Rates] = field(default_factory=list[Rates])


def _measure_package(package: Callable[[Kind, int], float], measured: Sequence[_Measured]) -> None:
    """Measure the package for one round.

    The package has no batches, so that one decode step of one row is compared with steps of any number of rows.
    """

    @cache
    def seconds(kind: Kind, size: int) -> float:
        repeats = 1 if kind in ("prompt", "tokenize") else 5
        return median([package(kind, size) for _ in range(repeats)])

    for each in measured:
        size = 1 if each.workload.kind == "decode" else each.workload.size
        each.package_seconds.append(seconds(each.workload.kind, size))


def _load(path: Path | str | None, strategy: str, backend: str, threads: int | None) -> tuple[Model, Loading]:
    before = resident_bytes()
    start = time.perf_counter()
    model = load_model(path, strategy, backend, threads=threads)
    seconds = time.perf_counter() - start
    after = resident_bytes()
    checkpoint_mb = Path(model.spec.path).stat().st_size / 1e6
    if before is None or after is None:
        return model, Loading(seconds, checkpoint_mb, None, None)
    resident_mb = (after - before) / 1e6
    return model, Loading(seconds, checkpoint_mb, resident_mb, resident_mb / checkpoint_mb)


def resident_bytes() -> int | None:
    """Resident memory of this process; None if the system does not report it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def figure_of(workload: Workload, seconds: Sequence[float], package: Sequence[float], rates: Sequence[Rates]) -> Figure:
    """The figure of a workload.

    Args:
        seconds: our seconds in each round.
        package: the package's seconds in each round, or empty.
        rates: the limits measured immediately before each of `seconds`, or empty.
    """
    limit = share = None
    if rates:
        limit_seconds = [(workload.memory_bytes / rate.read, workload.operations / rate.fma) for rate in rates]
        memory_excess = median([memory_s - arithmetic_s for memory_s, arithmetic_s in limit_seconds])
        limit = "memory" if memory_excess > 0 else rates[0].arithmetic
        share = median([max(limits) / taken for limits, taken in zip(limit_seconds, seconds, strict=True)])
    unit, value = _UNITS[workload.kind]
    our_median, our_best = value(workload.size, median(seconds)), value(workload.size, min(seconds))
    package_median = ratio = None
    if package:
        # The package decodes and samples one row at a time.
        size = 1 if workload.kind in ("decode", "sample") else workload.size
        package_median = value(size, median(package))
        ratio = package_median / our_median if workload.kind == "sample" else our_median / package_median
    return Figure(workload.name, unit, our_median, our_best, limit, share, package_median, ratio)


_UNITS: dict[str, tuple[str, Callable[[int, float], float]]] = {
    "decode": ("tokens/s", lambda rows, seconds: rows / seconds),
    "prompt": ("tokens/s", lambda tokens, seconds: tokens / seconds),
    "sample": ("ms/row", lambda rows, seconds: 1e3 * seconds / rows),
    "tokenize": ("MB/s", lambda size, seconds: size / seconds / 1e6),
}
