"""The things that are timed, each as a function that does it once and says how many seconds it took."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rwkvbatch.model.base import Model, ModelSpec, RaggedBatch, SampleBatch
from rwkvbatch.prompt.tokenizer import world_tokenizer

Kind = Literal["decode", "prompt", "sample", "tokenize"]

Clock = Callable[[], float]
"""Seconds: `WALL`, or on a busy machine `PROCESSOR`, the time that the calling thread had a processor."""
WALL: Clock = time.perf_counter
PROCESSOR: Clock = time.thread_time

SAMPLE_ROWS = 64
PENALISED_TOKENS = 64
TEMPERATURE, TOP_P = 1.0, 0.3
"""API_DEMO_CHAT's."""

TEXT = (
    "The quick brown fox jumps over the lazy dog, 1234 times; then it rests.\n\n"
    "User: Wie heißt die Hauptstadt von Österreich?\n\nAssistant: Wien.\n\n"
    "def add(first: int, second: int) -> int:\n    return first + second\n\n"
    "春眠不覺曉,處處聞啼鳥。 Съешь же ещё этих мягких французских булок. 🙂\n"
) * 200


@dataclass(frozen=True)
class Workload:
    """Something to time.

    Attributes:
        size: rows of a decode step, tokens of a prompt, rows to sample, bytes of text.
        once: does it once and returns the seconds it took.
        operations: fp32 operations of the weights' products; with `weight_bytes`, what the limits are applied to.
        repeats: how often in one round; the round counts by its median.
    """

    name: str
    kind: Kind
    size: int
    once: Callable[[], float]
    operations: float = 0.0
    weight_bytes: float = 0.0
    repeats: int = 1


def decode(model: Model, rows: int, clock: Clock = WALL, weight_bytes: float = 0.0) -> Workload:
    """One token for each of `rows` sequences, logits included; reads `weight_bytes` of weights."""
    pool = model.make_pool(rows)
    for slot in range(rows):
        pool.clear(slot)
    generator = np.random.default_rng(rows)
    spec = model.spec

    def once() -> float:
        tokens = generator.integers(1, spec.vocab_size, rows)
        batch = RaggedBatch.of([[int(token)] for token in tokens], range(rows))
        start = clock()
        model.step(batch, pool)
        return clock() - start

    name = f"decode, {rows} row{'s' if rows > 1 else ''}"
    products = _products(spec)
    return Workload(name, "decode", rows, once, 2 * products * rows, weight_bytes, max(1, 8 // rows))


def prompt(model: Model, length: int, clock: Clock = WALL, weight_bytes: float = 0.0) -> Workload:
    """Reading one prompt, and once `weight_bytes` of weights; logits after its last token."""
    pool = model.make_pool(1)
    generator = np.random.default_rng(length)
    spec = model.spec

    def once() -> float:
        pool.clear(0)
        batch = RaggedBatch.of([generator.integers(1, spec.vocab_size, length).tolist()], [0])
        start = clock()
        model.step(batch, pool)
        return clock() - start

    head = spec.vocab_size * spec.width
    operations = 2 * ((_products(spec) - head) * length + head)
    return Workload(f"prompt, {length} tokens", "prompt", length, once, operations, weight_bytes)


def sampling(model: Model, clock: Clock = WALL) -> Workload:
    """API_DEMO_CHAT's sampling with penalties, on the model's own logits."""
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
            temperature_first=np.zeros(SAMPLE_ROWS, np.bool_),
            penalty_ids=np.concatenate(penalised).astype(np.int64),
            penalty_values=np.full(SAMPLE_ROWS * count, 0.5, np.float32),
            penalty_starts=np.arange(0, SAMPLE_ROWS * count + 1, count, dtype=np.int64),
            noise_keys=np.arange(SAMPLE_ROWS, dtype=np.uint64),
            turns=np.zeros(SAMPLE_ROWS, np.int64),
            steps=np.full(SAMPLE_ROWS, next(steps), np.int64),
        )
        start = clock()
        model.choose(logits, batch)
        return clock() - start

    return Workload("sampling with penalties", "sample", SAMPLE_ROWS, once, repeats=3)


def tokenizing(clock: Clock = WALL) -> Workload:
    """Encoding mixed text."""
    tokenizer = world_tokenizer()

    def once() -> float:
        start = clock()
        tokenizer.encode(TEXT)
        return clock() - start

    return Workload("tokenizer", "tokenize", len(TEXT.encode()), once)


def _products(spec: ModelSpec) -> int:
    """Multiply-adds of one token: every weight once, but for the embedding, of which a token reads one row."""
    return spec.num_parameters - spec.vocab_size * spec.width


def stored_bytes(spec: ModelSpec) -> int:
    """Bytes of the weights that a step reads, where each has the size of its precision."""
    return _products(spec) * (4 if "fp32" in spec.dtype else 2)
