"""RWKV-7 behind the `Model` interface: a `Network` and the `Operations` that it runs on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from rwkvbatch.model.base import (
    Choices,
    IntArray,
    Model,
    ModelSpec,
    RaggedBatch,
    SampleBatch,
    State,
    StatePool,
    check_tokens,
    fp32_sums,
    num_threads,
    tf32,
)
from rwkvbatch.model.ops import Operations

ROWS_PER_STEP = 1024
"""Long prompts are read in pieces, so that memory does not grow with their length."""


def forward(
    model: Model, tokens: Sequence[Sequence[int]], state: State | None, every_token: bool
) -> tuple[torch.Tensor, State]:
    """See `Model.forward`."""
    vocab_size = model.spec.vocab_size
    batch_size = len(tokens)
    if batch_size == 0:
        raise ValueError("tokens must hold at least one list of token ids")
    lists = [np.asarray(part, dtype=np.int64) for part in tokens]
    for index, part in enumerate(lists):
        if part.ndim != 1 or len(part) == 0:
            raise ValueError(f"tokens[{index}] must be a list of at least one token id")
        check_tokens(part, vocab_size)
    if state is not None and state.batch_size != batch_size:
        raise ValueError(f"the state is of {state.batch_size} sequences, tokens of {batch_size}")

    pool = model.make_pool(batch_size)
    if state is None:
        for slot in range(batch_size):
            pool.clear(slot)
    else:
        pool.write(range(batch_size), state)

    lengths = [len(part) for part in lists]
    first_output = np.concatenate([[0], np.cumsum(lengths)])
    logits: torch.Tensor | None = None
    piece = max(1, ROWS_PER_STEP // batch_size)
    for start in range(0, max(lengths), piece):
        running = [index for index in range(batch_size) if lengths[index] > start]
        pieces = [lists[index][start : start + piece] for index in running]
        ended = [start + piece >= lengths[index] for index in running]
        batch = _batch(pieces, running, None if every_token else ended)
        found = model.step(batch, pool)
        if every_token:
            targets = [
                first_output[index] + start + np.arange(len(part)) for index, part in zip(running, pieces, strict=True)
            ]
            rows = torch.from_numpy(np.concatenate(targets))
        else:
            rows = torch.tensor([index for index, last in zip(running, ended, strict=True) if last], dtype=torch.int64)
        if logits is None:
            logits = torch.empty(sum(lengths) if every_token else batch_size, vocab_size, device=found.device)
        logits[rows.to(found.device)] = found
    assert logits is not None
    return logits, pool.read(range(batch_size))


def _batch(pieces: list[IntArray], slots: list[int], ended: list[bool] | None) -> RaggedBatch:
    """A step's batch with logits after every token, or after the last one of the sequences that end here."""
    batch = RaggedBatch.of([part.tolist() for part in pieces], slots, every_token=ended is None)
    if ended is None:
        return batch
    return RaggedBatch(batch.tokens, batch.starts, batch.slots, batch.outputs[np.asarray(ended)])


class Stepper(Protocol):
    """A `Network`, or something around one."""

    def step(self, ops: Any, batch: RaggedBatch, pool: StatePool) -> torch.Tensor:
        """See `Network.step`."""
        ...


class Rwkv7Model:
    """See `Model`.

    Args:
        network: weights, packed by `ops`.
        threads: how many threads torch may use while this model runs; None for as many as it likes.
        allow_tf32: whether a GPU may use TF32 for fp32 matrix products, which is faster and less exact.
    """

    def __init__(
        self,
        network: Stepper,
        ops: Operations,
        spec: ModelSpec,
        *,
        threads: int | None = None,
        allow_tf32: bool = False,
    ) -> None:
        self.ops = ops
        self._network = network
        self._spec = spec
        self._threads = threads
        self._allow_tf32 = allow_tf32

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._spec.in_words}>"

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    def make_pool(self, capacity: int) -> StatePool:
        spec = self._spec
        return self.ops.make_pool(capacity, spec.num_layers, spec.num_heads, spec.head_size)

    def step(self, batch: RaggedBatch, pool: StatePool) -> torch.Tensor:
        if not self.ops.in_torch:
            return self._network.step(self.ops, batch, pool)
        check_tokens(batch.tokens, self._spec.vocab_size)
        device = self.ops.device
        with (
            torch.no_grad(),
            num_threads(self._threads),
            tf32(self._allow_tf32, device),
            fp32_sums(device),
        ):
            return self._network.step(self.ops, batch, pool)

    def choose(self, logits: torch.Tensor, batch: SampleBatch) -> Choices:
        if not self.ops.in_torch:
            return self.ops.choose(logits, batch)
        with torch.no_grad(), num_threads(self._threads):
            return self.ops.choose(logits, batch)

    def forward(
        self, tokens: Sequence[Sequence[int]], state: State | None = None, every_token: bool = False
    ) -> tuple[torch.Tensor, State]:
        return forward(self, tokens, state, every_token)


def state_bytes(num_layers: int, num_heads: int, head_size: int) -> int:
    """Size of one sequence's RWKV-7 state: two shifts and the matrices, all fp32."""
    width = num_heads * head_size
    return 4 * num_layers * (2 * width + width * head_size)
