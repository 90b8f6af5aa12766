"""The `rwkv` package in a process of its own, doing what it is told when it is told.

Its threads, its settings and its memory are then no part of what is measured here, and the two can take turns.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from rwkvbatch.bench.workloads import TEMPERATURE, TEXT, TOP_P, Clock, Kind
from rwkvbatch.errors import RwkvBatchError


def strategy_for(device: str) -> str:
    """The package's fastest strategy on a device."""
    return "cpu fp32" if device == "cpu" else f"{device} fp16"


class Package:
    """A context manager; `measure` returns seconds.

    Raises:
        RwkvBatchError: on entering, when the package cannot load the model; later, when its process ended.
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
    """The package's model, sampling and tokenizer, called as its own examples call them."""

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
