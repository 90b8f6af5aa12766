"""`Rwkv7Model`: the `Model` that runs an RWKV-7 network; `forward` for every model with pools of states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rwkvbatch.arguments import SWITCH, checks
from rwkvbatch.errors import ArgumentError, counted, shown_value
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


def token_lists(tokens: Sequence[Sequence[int]], state: State | None, vocab_size: int) -> list[IntArray]:
    """The arguments of `Model.forward` as arrays.

    Raises:
        ArgumentError: no list, an empty one, a token id outside the vocabulary, or a state of another batch size.
    """
    if isinstance(tokens, str | bytes | Mapping) or not isinstance(tokens, Iterable):
        raise ArgumentError(f"tokens must be a list of lists of token ids; got {shown_value(tokens)}")
    lists = [_token_array(ids, index, vocab_size) for index, ids in enumerate(tokens)]
    if not lists:
        raise ArgumentError("tokens must contain at least one list of token ids; got none")
    given: object = state
    if given is not None and not isinstance(given, State):
        raise ArgumentError(f"state must be a State, or None; got {shown_value(given)}")
    if state is not None and state.batch_size != len(lists):
        raise ArgumentError(f"the state has {counted(state.batch_size, 'sequence')}, tokens has {len(lists)}")
    return lists


def _token_array(ids: object, index: int, vocab_size: int) -> IntArray:
    try:
        array = np.asarray(None if isinstance(ids, str | bytes) else ids)
    except (TypeError, ValueError):  # lists of several lengths, tensors on a GPU
        array = np.asarray(None)
    if array.ndim != 1 or len(array) == 0:
        raise ArgumentError(f"tokens[{index}] must be a list of at least one token id; got {shown_value(ids)}")
    try:
        check_tokens(array, vocab_size)
    except ArgumentError as error:
        raise error.add_place(f"tokens[{index}]") from None
    return array.astype(np.int64)


ROWS_PER_STEP = 1024
"""Most token rows per step of `forward`. Longer inputs take several steps, so that memory use is bounded."""


def forward(
    model: Model, tokens: Sequence[Sequence[int]], state: State | None, every_token: bool
) -> tuple[Tensor, State]:
    """See `Model.forward`."""
    vocab_size = model.spec.vocab_size
    lists = token_lists(tokens, state, vocab_size)
    batch_size = len(lists)

    pool = model.make_pool(batch_size)
    if state is None:
        for slot in range(batch_size):
            pool.clear(slot)
    else:
        pool.write(range(batch_size), state)

    flat = np.concatenate(lists)
    lengths = np.array([len(ids) for ids in lists])
    ends = np.cumsum(lengths)
    output_rows = np.arange(len(flat)) if every_token else ends - 1
    logits: Tensor | None = None
    step_length = max(1, ROWS_PER_STEP // batch_size)
    for start in range(0, max(lengths), step_length):
        parts = [
            np.arange(end - length, end)[start : start + step_length] for length, end in zip(lengths, ends, strict=True)
        ]
        sizes = np.array([len(part) for part in parts])
        running = np.flatnonzero(sizes)
        rows = np.concatenate(parts)
        outputs = np.flatnonzero(np.isin(rows, output_rows))
        starts = np.concatenate([[0], np.cumsum(sizes[running])])
        step_logits = model.step(RaggedBatch(flat[rows], starts, running, outputs), pool)
        if logits is None:
            logits = torch.empty(len(output_rows), vocab_size, device=step_logits.device)
        targets = torch.from_numpy(np.searchsorted(output_rows, rows[outputs]))
        logits[targets.to(step_logits.device)] = step_logits
    assert logits is not None
    return logits, pool.read(range(batch_size))


class Stepper(Protocol):
    """A `Network`, or a faster wrapper of one."""

    def step(self, ops: Any, batch: RaggedBatch, pool: StatePool) -> Tensor:
        """See `Network.step`."""
        ...


class Rwkv7Model:
    """See `Model`.

    Args:
        network: weights, packed by `ops`.
        threads: the number of threads that torch may use while this model runs; None for torch's own setting.
        initial_wkv: the matrices of an empty sequence [L, H, N, N], if a tuned state was merged into the checkpoint;
            None for zeros.
    """

    def __init__(
        self,
        network: Stepper,
        ops: Operations,
        spec: ModelSpec,
        *,
        threads: int | None = None,
        initial_wkv: Tensor | None = None,
    ) -> None:
        self.ops = ops
        self._initial_wkv = initial_wkv
        self._network = network
        self.spec = spec
        self._threads = threads

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.spec.in_words}>"

    def make_pool(self, capacity: int) -> StatePool:
        spec = self.spec
        pool = self.ops.make_pool(capacity, spec.num_layers, spec.num_heads, spec.head_size)
        return pool if self._initial_wkv is None else pool.with_initial(self._initial_wkv)

    def step(self, batch: RaggedBatch, pool: StatePool) -> Tensor:
        if not self.ops.in_torch:
            return self._network.step(self.ops, batch, pool)
        check_tokens(batch.tokens, self.spec.vocab_size)
        device = self.ops.device
        with torch.no_grad(), num_threads(self._threads), tf32(False, device), fp32_sums(device):
            return self._network.step(self.ops, batch, pool)

    def choose(self, logits: Tensor, batch: SampleBatch) -> Choices:
        if not self.ops.in_torch:
            return self.ops.choose(logits, batch)
        with torch.no_grad(), num_threads(self._threads):
            return self.ops.choose(logits, batch)

    @checks(every_token=SWITCH)
    def forward(
        self, tokens: Sequence[Sequence[int]], state: State | None = None, every_token: bool = False
    ) -> tuple[Tensor, State]:
        return forward(self, tokens, state, every_token)
