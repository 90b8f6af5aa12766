"""The workloads, the machine's limits (memory bandwidth, arithmetic), and the same work by the `rwkv` package.

The package runs in a process of its own, so that its threads, settings and memory do not affect ours, and takes turns.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from rwkvbatch.errors import RwkvBatchError, UsageError, counted
from rwkvbatch.model.base import Model, ModelSpec, RaggedBatch, SampleBatch
from rwkvbatch.model.rwkv7_model import Rwkv7Model
from rwkvbatch.model.strategy import DTYPES
from rwkvbatch.prompt.tokenizer import world_tokenizer

if TYPE_CHECKING:
    from rwkvbatch.model.ops.cpu import CpuOps

Kind = Literal["decode", "prompt", "sample", "tokenize"]

Clock = Callable[[], float]
"""Seconds: `WALL`, or on a busy machine `PROCESSOR`, the processor time of the calling thread."""
WALL: Clock = time.perf_counter
PROCESSOR: Clock = time.thread_time

SAMPLE_ROWS = 64
PENALISED_TOKENS = 64
TEMPERATURE, TOP_P = 1.0, 0.3
"""Those of API_DEMO_CHAT."""

TEXT = (
    "The quick brown fox jumps over the lazy dog, 1234 times; then it rests.\n\n"
    "User: Wie heißt die Hauptstadt von Österreich?\n\nAssistant: Wien.\n\n"
    "def add(first: int, second: int) -> int:\n    return first + second\n\n"
    "春眠不覺曉,處處聞啼鳥。 Съешь же ещё этих мягких французских булок. 🙂\n"
) * 200


@dataclass(frozen=True)
class Workload:
    """Work to time.

    Attributes:
        size: rows of a decode step, tokens of a prompt, rows to sample, bytes of text.
        once: runs it once and returns the seconds.
        operations: fp32 operations of the products with weights; the limits apply to these and to `weight_bytes`.
        repeats: runs per round, of which the median counts.
    """

    name: str
    kind: Kind
    size: int
    once: Callable[[], float]
    operations: float = 0.0
    weight_bytes: float = 0.0
    repeats: int = 1


def timed(clock: Clock, work: Callable[..., object], *arguments: Any) -> float:
    """Seconds of one call."""
    start = clock()
    work(*arguments)
    return clock() - start


def decode(model: Model, rows: int, clock: Clock = WALL, weight_bytes: float = 0.0) -> Workload:
    """A decode step of `rows` sequences, logits included, that reads `weight_bytes` of weights, if all are read."""
    pool = model.make_pool(rows)
    for slot in range(rows):
        pool.clear(slot)
    generator = np.random.default_rng(rows)
    spec = model.spec

    def once() -> float:
        tokens = generator.integers(1, spec.vocab_size, rows)
        batch = RaggedBatch.of([[int(token)] for token in tokens], range(rows))
        return timed(clock, model.step, batch, pool)

    name = f"decode, {counted(rows, 'row')}"
    if (ops := native_ops(model)) is not None:
        weight_bytes -= _skipped_bytes(ops, once)
    products = _products(spec)
    return Workload(name, "decode", rows, once, 2 * products * rows, weight_bytes, max(1, 8 // rows))


def _skipped_bytes(ops: CpuOps, once: Callable[[], float]) -> float:
    """Weights that a step does not read, as their inputs are zero; mean over a few steps."""
    before = ops.native.skipped_bytes
    once()
    if ops.native.skipped_bytes == before:
        return 0.0
    before = ops.native.skipped_bytes  # the first step was from the zero state
    for _ in range(_SKIPPING_STEPS):
        once()
    return (ops.native.skipped_bytes - before) / _SKIPPING_STEPS


_SKIPPING_STEPS = 4


def prompt(model: Model, length: int, clock: Clock = WALL, weight_bytes: float = 0.0) -> Workload:
    """Prefill of one prompt, logits after its last token included, that reads `weight_bytes` of weights once."""
    pool = model.make_pool(1)
    generator = np.random.default_rng(length)
    spec = model.spec

    def once() -> float:
        pool.clear(0)
        batch = RaggedBatch.of([generator.integers(1, spec.vocab_size, length).tolist()], [0])
        return timed(clock, model.step, batch, pool)

    head = spec.vocab_size * spec.width
    operations = 2 * ((_products(spec) - head) * length + head)
    return Workload(f"prompt, {length} tokens", "prompt", length, once, operations, weight_bytes)


def sampling(model: Model, clock: Clock = WALL) -> Workload:
    """Sampling with penalties as in API_DEMO_CHAT, on logits of the model."""
    generator = np.random.default_rng(0)
    vocab_size = model.spec.vocab_size
    logits, _ = model.forward(generator.integers(1, vocab_size, (SAMPLE_ROWS, 4)).tolist())
    logits = logits.clone()
    count = min(PENALISED_TOKENS, vocab_size)
    penalised = [np.sort(generator.choice(vocab_size, count, replace=False)) for _ in range(SAMPLE_ROWS)]
    steps = iter(range(1 << 30))

    def once() -> float:
        batch = SampleBatch(
            temperature=np.full(SAMPLE_ROWS, TEMPERATURE, np.float32),
            top_p=np.full(SAMPLE_ROWS, TOP_P, np.float32),
            top_k=np.zeros(SAMPLE_ROWS, np.int64),
            orders=np.zeros(SAMPLE_ROWS, np.uint8),
            penalty_ids=np.concatenate(penalised).astype(np.int64),
            penalty_values=np.full(SAMPLE_ROWS * count, 0.5, np.float32),
            penalty_starts=np.arange(0, SAMPLE_ROWS * count + 1, count, dtype=np.int64),
            noise_keys=np.arange(SAMPLE_ROWS, dtype=np.uint64),
            turns=np.zeros(SAMPLE_ROWS, np.int64),
            steps=np.full(SAMPLE_ROWS, next(steps), np.int64),
            least_scores=np.full(SAMPLE_ROWS, -np.inf),
        )
        return timed(clock, model.choose, logits, batch)

    return Workload("sampling with penalties", "sample", SAMPLE_ROWS, once, repeats=3)


def tokenizing(clock: Clock = WALL) -> Workload:
    """Encoding mixed text."""
    once = partial(timed, clock, world_tokenizer().encode, TEXT)
    return Workload("tokenizer", "tokenize", len(TEXT.encode()), once)


def _products(spec: ModelSpec) -> int:
    """Multiply-adds of one token: one per weight except the embedding, of which a token reads one row."""
    return spec.num_parameters - spec.vocab_size * spec.width


def stored_bytes(spec: ModelSpec) -> int:
    """Bytes of the weights that a step reads, in the model's precision."""
    return _products(spec) * (4 if "fp32" in spec.dtype else 2)


def strategy_for(device: str) -> str:
    """The package's fastest strategy on a device."""
    return "cpu fp32" if device == "cpu" else f"{device} fp16"


_READ_FLOATS = 64 << 20
"""256 MiB: more than any cache."""
_COPIED_BYTES = 512 << 20
_MATRIX_SIZE = 8192
_ROUNDS_PER_PEAK = 60_000


@dataclass(frozen=True)
class Rates:
    """One measurement: bytes of memory per second, operations per second; see `Limits`."""

    read: float
    fma: float
    arithmetic: str = "fma"


@dataclass(frozen=True)
class Limits:
    """The limits of a machine: medians over the rounds, and the best round.

    Attributes:
        isa: the instruction set that is used, or the GPU's name and the precision of the products.
        read_gb_s: memory read by all threads, 10^9 bytes per second; on a GPU bytes read and written in a copy.
        fma_gflop_s: fp32 operations in fused multiply-adds, two each; on a GPU operations of a large matrix product
            in the model's precision.
        arithmetic: which of these `fma_gflop_s` is: `fma` or `products`.
    """

    isa: str
    read_gb_s: float
    best_read_gb_s: float
    fma_gflop_s: float
    best_fma_gflop_s: float
    arithmetic: str = "fma"


@dataclass(frozen=True)
class DeviceWork:
    """Work that measures a device. Both functions may return before the device is done: the clock waits for it.

    Attributes:
        name: the `Limits.isa`. arithmetic: the `Limits.arithmetic`.
        copy_bytes: bytes that `copy` reads, and writes if it does.
        product_operations: floating-point operations of `multiply`.
    """

    name: str
    arithmetic: str
    copy: Callable[[], object]
    copy_bytes: float
    multiply: Callable[[], object]
    product_operations: float


def native_work(ops: CpuOps) -> DeviceWork:
    """Reads memory and computes multiply-adds with the threads and instruction set of native operations."""
    memory = np.ones(_READ_FLOATS, dtype=np.float32)
    read, multiply = partial(ops.native.read_all, memory), partial(ops.native.multiply_add, _ROUNDS_PER_PEAK)
    return DeviceWork(ops.isa, "fma", read, memory.nbytes, multiply, ops.native.operations(_ROUNDS_PER_PEAK))


def torch_work(device: str, dtype: str) -> DeviceWork:
    """Copies and products by torch on `device`, in the model's dtype (`fp32`, `bf16` or `fp16`)."""
    source = torch.zeros(_COPIED_BYTES, dtype=torch.uint8, device=device)
    copy = partial(torch.empty_like(source).copy_, source)
    # Random, because a GPU that multiplies zeros needs less power and runs faster.
    precision = DTYPES[dtype]  # pyright: ignore[reportArgumentType]
    left, right = (torch.randn((_MATRIX_SIZE, _MATRIX_SIZE), device=device).to(precision) for _ in range(2))
    multiply = partial(torch.mm, left, right, out=torch.empty_like(left))
    name = f"{torch.cuda.get_device_name(device)}, {dtype} products"
    return DeviceWork(name, "products", copy, 2.0 * _COPIED_BYTES, multiply, 2.0 * _MATRIX_SIZE**3)


@dataclass
class Meter:
    """Measures both limits. They change with the load of the machine, so each call of `measure` measures them again.

    Args:
        work: None for a backend whose limits cannot be measured.
        clock: must wait for the device, see `device_clock`.
    """

    work: DeviceWork | None
    clock: Clock = WALL
    _measured: list[Rates] = field(default_factory=list)

    @classmethod
    def of(cls, model: Model, *, processor_time: bool = False) -> Meter:
        """The meter and clock for the backend and device of `model`.

        Raises:
            UsageError: processor time of a model on a GPU.
        """
        ops, spec = native_ops(model), model.spec
        if spec.device != "cpu" and processor_time:
            raise UsageError("--cpu-time measures the time of a CPU thread, but the model is on a GPU")
        clock = PROCESSOR if processor_time else device_clock(spec.device)
        if spec.backend.startswith("cuda"):
            return cls(torch_work(spec.device, spec.dtype), clock)
        return cls(None if ops is None else native_work(ops), clock)

    def measure(self) -> Rates | None:
        """Measure both limits once; None if they cannot be measured."""
        if (work := self.work) is None:
            return None
        read = best_rate(work.copy, work.copy_bytes, self.clock)
        self._measured.append(
            Rates(read, best_rate(work.multiply, work.product_operations, self.clock), work.arithmetic)
        )
        return self._measured[-1]

    def found(self) -> Limits | None:
        """Medians and best of the measurements; None if there are none."""
        if self.work is None or not self._measured:
            return None
        reads = [rates.read / 1e9 for rates in self._measured]
        peaks = [rates.fma / 1e9 for rates in self._measured]
        return Limits(self.work.name, median(reads), max(reads), median(peaks), max(peaks), self.work.arithmetic)


def best_rate(once: Callable[[], object], amount: float, clock: Clock) -> float:
    """The amount per second, the best of three calls."""
    return amount / min(timed(clock, once) for _ in range(3))


def native_ops(model: Model) -> CpuOps | None:
    """The native operations that `model` runs on, or None."""
    if not isinstance(model, Rwkv7Model) or model.ops.name != "cpu":
        return None
    from rwkvbatch.model.ops.cpu import CpuOps

    return model.ops if isinstance(model.ops, CpuOps) else None


def device_clock(device: str) -> Clock:
    """Wall time after `device` has finished its work. Can be sent to another process."""
    return WALL if device == "cpu" else partial(_time_when_done, device)


def _time_when_done(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()
    return WALL()


@contextmanager
def rwkv_package(path: Path, threads: int, clock: Clock, strategy: str) -> Generator[Callable[[Kind, int], float]]:
    """A function that measures the `rwkv` package in a process of its own.

    It returns the seconds for one token, a prompt of that many tokens, one row's sampling, or the text.

    Raises:
        RwkvBatchError: the package cannot load the model, or its process ended.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _watch_parent) as pool:

        def call(function: Callable[..., Any], *arguments: Any) -> Any:
            try:
                return pool.submit(function, *arguments).result()
            except BrokenProcessPool:
                raise RwkvBatchError("the process with the `rwkv` package ended early") from None

        call(_load_package, path, threads, clock, strategy)
        yield partial(call, _measure_package)


def _watch_parent() -> None:
    """Ends this process with its parent; a pool's process would wait for work after its parent was killed."""
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _load_package(path: Path, threads: int, clock: Clock, strategy: str) -> None:
    from rwkvbatch.model.checkpoint import open_checkpoint
    from rwkvbatch.model.upstream import load_package_model

    global _loaded
    torch.set_num_threads(threads)
    with open_checkpoint(path) as checkpoint:
        vocab_size = checkpoint.architecture.vocab_size
        _loaded = _Package(load_package_model(checkpoint, strategy), vocab_size, clock)


def _measure_package(kind: Kind, size: int) -> float:
    return _loaded.measure(kind, size)


class _Package:
    """The package's model, sampling and tokenizer, called as in its own examples."""

    def __init__(self, model: Any, vocab_size: int, clock: Clock) -> None:
        import rwkv
        from rwkv.rwkv_tokenizer import TRIE_TOKENIZER
        from rwkv.utils import PIPELINE

        self._model = model
        self._clock = clock
        self._vocab_size = vocab_size
        self._generator = np.random.default_rng(0)
        self._pipeline = PIPELINE.__new__(PIPELINE)
        self._tokenizer = TRIE_TOKENIZER(str(Path(next(iter(rwkv.__path__))) / "rwkv_vocab_v20230424.txt"))
        self._logits, self._state = model.forward([1], model.generate_zero_state())

    @torch.no_grad()
    def measure(self, kind: Kind, size: int) -> float:
        match kind:
            case "decode":
                token = int(self._generator.integers(1, self._vocab_size))
                start = self._clock()
                self._logits, self._state = self._model.forward([token], self._state)
            case "prompt":
                tokens = self._generator.integers(1, self._vocab_size, size).tolist()
                state = self._model.generate_zero_state()
                start = self._clock()
                self._model.forward(tokens, state)
            case "sample":
                logits = self._logits.float().clone()
                start = self._clock()
                self._pipeline.sample_logits(logits, temperature=TEMPERATURE, top_p=TOP_P, top_k=0)
            case _:
                start = self._clock()
                self._tokenizer.encode(TEXT)
        return self._clock() - start


_loaded: _Package
"""In the package's process only."""
