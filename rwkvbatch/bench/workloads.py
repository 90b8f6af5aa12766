"""The workloads, each a function that runs once and returns the seconds, and the same work by the `rwkv` package.

The package runs in a process of its own, so that its threads, settings and memory do not affect ours, and takes turns.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from rwkvbatch.errors import RwkvBatchError
from rwkvbatch.model.base import Model, ModelSpec, RaggedBatch, SampleBatch
from rwkvbatch.prompt.tokenizer import world_tokenizer

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


def decode(model: Model, rows: int, clock: Clock = WALL, weight_bytes: float = 0.0) -> Workload:
    """A decode step of `rows` sequences, logits included, that reads `weight_bytes` of weights."""
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
    """Prefill of one prompt, logits after its last token included, that reads `weight_bytes` of weights once."""
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
    """Multiply-adds of one token: one per weight except the embedding, of which a token reads one row."""
    return spec.num_parameters - spec.vocab_size * spec.width


def stored_bytes(spec: ModelSpec) -> int:
    """Bytes of the weights that a step reads, in the model's precision."""
    return _products(spec) * (4 if "fp32" in spec.dtype else 2)


def strategy_for(device: str) -> str:
    """The package's fastest strategy on a device."""
    return "cpu fp32" if device == "cpu" else f"{device} fp16"


class Package:
    """The `rwkv` package in a process of its own; a context manager.

    Raises:
        RwkvBatchError: on entering if the package cannot load the model, later if its process ended.
    """

    def __init__(self, path: Path, threads: int, clock: Clock, strategy: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, str(path), threads, clock, strategy), daemon=True)

    def __enter__(self) -> Package:
        self._process.start()
        self._receive()
        return self

    def measure(self, kind: Kind, size: int) -> float:
        """Seconds for one token, a prompt of `size` tokens, one row's sampling, or the text."""
        self._pipe.send((kind, size))
        return self._receive()

    def _receive(self) -> float:
        try:
            while not self._pipe.poll(0.5):
                if not self._process.is_alive():
                    raise EOFError
            answer = self._pipe.recv()
        except EOFError:
            raise RwkvBatchError("the process with the `rwkv` package ended early") from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.terminate()


def _serve(pipe: Connection, path: str, threads: int, clock: Clock, strategy: str) -> None:
    try:
        package = _load(path, threads, clock, strategy)
    except Exception as error:
        pipe.send(error)
        return
    pipe.send(0.0)
    while True:
        try:
            kind, size = pipe.recv()
        except (EOFError, OSError):
            return
        pipe.send(package.measure(kind, size))


def _load(path: str, threads: int, clock: Clock, strategy: str) -> _Loaded:
    import torch

    from rwkvbatch.model.checkpoint import open_checkpoint
    from rwkvbatch.model.upstream import load_package_model

    torch.set_num_threads(threads)
    with open_checkpoint(Path(path)) as checkpoint:
        vocab_size = checkpoint.architecture.vocab_size
        return _Loaded(load_package_model(checkpoint, strategy), vocab_size, clock)


class _Loaded:
    """The package's model, sampling and tokenizer, called as in its own examples."""

    def __init__(self, model: Any, vocab_size: int, clock: Clock) -> None:
        import numpy as np
        import rwkv
        from rwkv.rwkv_tokenizer import TRIE_TOKENIZER
        from rwkv.utils import PIPELINE

        self._model = model
        self._clock = clock
        self._vocab_size = vocab_size
        self._state = model.generate_zero_state()
        self._generator = np.random.default_rng(0)
        self._pipeline = PIPELINE.__new__(PIPELINE)
        self._tokenizer = TRIE_TOKENIZER(str(Path(next(iter(rwkv.__path__))) / "rwkv_vocab_v20230424.txt"))
        self._logits, self._state = model.forward([1], self._state)

    def measure(self, kind: Kind, size: int) -> float:
        import torch

        with torch.no_grad():
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
                case "tokenize":
                    start = self._clock()
                    self._tokenizer.encode(TEXT)
            return self._clock() - start
