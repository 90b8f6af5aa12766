"""The workloads run by the `rwkv` package, in a separate process.

The package's threads, settings and memory therefore do not affect this process.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rwkvbatch.bench.workloads import TEMPERATURE, TEXT, TOP_P, Clock, Kind
from rwkvbatch.errors import RwkvBatchError


def strategy_for(device: str) -> str:
    """The fastest strategy of the `rwkv` package on a device."""
    return "cpu fp32" if device == "cpu" else f"{device} fp16"


@contextmanager
def rwkv_package(path: Path, threads: int, clock: Clock, strategy: str) -> Generator[Callable[[Kind, int], float]]:
    """A context with a function that times the `rwkv` package in a separate process.

    The function returns the seconds for one token, a prompt of the given number of tokens, the sampling of one row, or
    the encoding of the text.

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
    """End this process with its parent; a pool's process would otherwise wait for work after its parent was killed."""
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _load_package(path: Path, threads: int, clock: Clock, strategy: str) -> None:
    from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
    from rwkvbatch.model.upstream import load_package_model

    global _loaded
    torch.set_num_threads(threads)
    with open_checkpoint(path) as checkpoint:
        vocab_size = checkpoint.architecture.vocab_size
        _loaded = _Package(load_package_model(checkpoint, strategy), vocab_size, clock)


def _measure_package(kind: Kind, size: int) -> float:
    return _loaded.measure(kind, size)


class _Package:
    """The package's model, sampling and tokenizer, called as in the package's examples."""

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
"""Set only in the package's process."""
