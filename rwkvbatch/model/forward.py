"""`Model.forward`, in terms of `Model.step` and a pool: the same for every backend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rwkvbatch.model.base import IntArray, Model, RaggedBatch, State

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
                first_output[index] + start + np.arange(len(part))
                for index, part in zip(running, pieces, strict=True)
            ]
            rows = torch.from_numpy(np.concatenate(targets))
        else:
            rows = torch.tensor(
                [index for index, last in zip(running, ended, strict=True) if last], dtype=torch.int64
            )
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


def check_tokens(tokens: IntArray, vocab_size: int) -> None:
    """Raise `ValueError` unless all `tokens` are in [0, vocab_size)."""
    if len(tokens) and (int(tokens.min()) < 0 or int(tokens.max()) >= vocab_size):
        outside = tokens[(tokens < 0) | (tokens >= vocab_size)]
        raise ValueError(f"token ids must be in [0, {vocab_size}), got {int(outside[0])}")
