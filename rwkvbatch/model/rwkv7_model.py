"""RWKV-7 behind the `Model` interface: a `Network` and the `Operations` that it runs on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from rwkvbatch.model.base import (
    Choices,
    ModelSpec,
    RaggedBatch,
    SampleBatch,
    State,
    StatePool,
)
from rwkvbatch.model.forward import check_tokens, forward
from rwkvbatch.model.ops import Operations
from rwkvbatch.model.settings import fp32_sums, num_threads, tf32


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
