"""The workloads of the benchmark, and the clocks that time them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from rwkvbatch.errors import counted
from rwkvbatch.model.base import Model, ModelSpec, RaggedBatch, SampleBatch
from rwkvbatch.model.network.rwkv7_model import Rwkv7Model
from rwkvbatch.prompt.tokenizer import world_tokenizer

if TYPE_CHECKING:
    from rwkvbatch.model.ops.cpu import CpuOps

Kind = Literal["decode", "prompt", "sample", "tokenize"]

Clock = Callable[[], float]
"""Returns seconds: `WALL`, or `PROCESSOR` (processor time of the calling thread) on a busy machine."""
WALL: Clock = time.perf_counter
PROCESSOR: Clock = time.thread_time

SAMPLE_ROWS = 64
PENALISED_TOKENS = 64
TEMPERATURE, TOP_P = 1.0, 0.3
"""The sampling parameters of API_DEMO_CHAT."""

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
        size: rows of a decode step, tokens of a prompt, rows to sample, or bytes of text.
        once: runs the work once and returns the seconds.
        operations: fp32 operations of the products with weights.
        memory_bytes: bytes that are read and written: weights, and the states of all sequences, which are read once
            and written once. The machine's limits apply to both.
        repeats: runs per round, whose median counts.
    """

    name: str
    kind: Kind
    size: int
    once: Callable[[], float]
    operations: float = 0.0
    memory_bytes: float = 0.0
    repeats: int = 1


def timed(clock: Clock, work: Callable[..., object], *arguments: Any) -> float:
    """The seconds that one call takes."""
    start = clock()
    work(*arguments)
    return clock() - start


def decode(model: Model, rows: int, clock: Clock = WALL, weight_bytes: float = 0.0) -> Workload:
    """A decode step of `rows` sequences, including logits.

    Args:
        weight_bytes: bytes of all weights that a step can read. Weights that it skips, because their inputs are zero,
            are subtracted.
    """
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
    products, memory_bytes = _products(spec), weight_bytes + state_traffic(spec, rows)
    return Workload(name, "decode", rows, once, 2 * products * rows, memory_bytes, max(1, 8 // rows))


def state_traffic(spec: ModelSpec, sequences: int) -> float:
    """Bytes of recurrent states that a step reads and writes. Between two steps, weights evict them from the caches."""
    return 2.0 * spec.state_bytes * sequences


def _skipped_bytes(ops: CpuOps, once: Callable[[], float]) -> float:
    """Bytes of weights that a step skips because their inputs are zero; mean over a few steps."""
    before = ops.native.skipped_bytes
    once()
    if ops.native.skipped_bytes == before:
        return 0.0
    before = ops.native.skipped_bytes  # excludes the first step, whose state is zero
    for _ in range(_SKIPPING_STEPS):
        once()
    return (ops.native.skipped_bytes - before) / _SKIPPING_STEPS


_SKIPPING_STEPS = 4


def prompt(model: Model, length: int, clock: Clock = WALL, weight_bytes: float = 0.0) -> Workload:
    """Prefill of one prompt, including the logits after its last token. It reads `weight_bytes` of weights once."""
    pool = model.make_pool(1)
    generator = np.random.default_rng(length)
    spec = model.spec

    def once() -> float:
        pool.clear(0)
        batch = RaggedBatch.of([generator.integers(1, spec.vocab_size, length).tolist()], [0])
        return timed(clock, model.step, batch, pool)

    head = spec.vocab_size * spec.width
    operations = 2 * ((_products(spec) - head) * length + head)
    memory_bytes = weight_bytes + state_traffic(spec, 1)
    return Workload(f"prompt, {length} tokens", "prompt", length, once, operations, memory_bytes)


def sampling(model: Model, clock: Clock = WALL) -> Workload:
    """Sampling from the model's logits with penalties, as in API_DEMO_CHAT."""
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
            min_p_cutoffs=np.full(SAMPLE_ROWS, -np.inf),
        )
        return timed(clock, model.choose, logits, batch)

    return Workload("sampling with penalties", "sample", SAMPLE_ROWS, once, repeats=3)


def tokenizing(clock: Clock = WALL) -> Workload:
    """Encoding of text in several languages."""
    once = partial(timed, clock, world_tokenizer().encode, TEXT)
    return Workload("tokenizer", "tokenize", len(TEXT.encode()), once)


def _products(spec: ModelSpec) -> int:
    """Multiply-adds of one token: one per weight, without the embedding, of which a token reads one row."""
    return spec.num_parameters - spec.vocab_size * spec.width


def stored_bytes(spec: ModelSpec) -> int:
    """Bytes of the weights that a step reads, in the model's precision."""
    return _products(spec) * (4 if "fp32" in spec.dtype else 2)


def native_ops(model: Model) -> CpuOps | None:
    """The native operations that `model` runs on; None for other operations."""
    if not isinstance(model, Rwkv7Model) or model.ops.name != "cpu":
        return None
    from rwkvbatch.model.ops.cpu import CpuOps

    return model.ops if isinstance(model.ops, CpuOps) else None


def device_clock(device: str) -> Clock:
    """A clock of the wall time at which `device` has finished its work. It can be sent to another process."""
    return WALL if device == "cpu" else partial(_time_when_done, device)


def _time_when_done(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()
    return WALL()
