"""Logits and sampling settings of all kinds, for the tests of every sampling implementation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch

from rwkvbatch.model.base import SampleBatch


def logits_of(rows: int, vocab_size: int, spread: float, *, seed: int = 0, ties: bool = False) -> torch.Tensor:
    values = np.random.default_rng(seed).standard_normal((rows, vocab_size)) * spread
    return torch.from_numpy((np.round(values) if ties else values).astype(np.float32))


def batch_of(rows: int, vocab_size: int, *, seed: int = 0, **fixed: object) -> SampleBatch:
    """All kinds of settings, row by row; `fixed` gives every row the same value."""
    generator = np.random.default_rng(seed)
    counts = generator.integers(0, min(vocab_size, 40) + 1, rows)
    ids = [np.sort(generator.choice(vocab_size, count, replace=False)) for count in counts]
    values = generator.choice([0.5, 3.0, np.inf, -1.0], counts.sum())
    batch = SampleBatch(
        temperature=generator.choice([0, 0.3, 1.0, 1.0, 2.0], rows).astype(np.float32),
        top_p=generator.choice([0, 0.1, 0.3, 0.8, 0.95, 1.0], rows).astype(np.float32),
        top_k=generator.choice([0, 0, 1, 5, 50, 10_000], rows).astype(np.int64),
        orders=generator.integers(0, 4, rows, dtype=np.uint8),
        penalty_ids=np.concatenate(ids).astype(np.int64),
        penalty_values=values.astype(np.float32),
        penalty_starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        noise_keys=generator.integers(0, 2**64, rows, dtype=np.uint64),
        turns=generator.integers(0, 9, rows),
        steps=generator.integers(0, 999, rows),
        min_p_cutoffs=generator.choice([-np.inf, -np.inf, -6.0, -1.5, -0.25, 0.0], rows),
    )
    whole = {
        name: np.full(rows, value, dtype=getattr(batch, name).dtype)  # pyright: ignore[reportArgumentType, reportCallIssue]
        for name, value in fixed.items()
    }
    return replace(batch, **whole)


def select(batch: SampleBatch, rows: Sequence[int], target_ids: Sequence[int] = ()) -> SampleBatch:
    """Sampled rows of `batch`, followed by rows that look up `target_ids`."""
    ends = list(pairwise(batch.penalty_starts.tolist()))
    penalties = np.array([place for row in rows for place in range(*ends[row])], dtype=np.int64)
    by_row = ("temperature", "top_p", "top_k", "orders", "noise_keys", "turns", "steps", "min_p_cutoffs")
    return replace(
        batch,
        **{name: getattr(batch, name)[list(rows)] for name in by_row},
        penalty_ids=batch.penalty_ids[penalties],
        penalty_values=batch.penalty_values[penalties],
        penalty_starts=np.cumsum([0, *(ends[row][1] - ends[row][0] for row in rows)], dtype=np.int64),
        target_ids=np.array(target_ids, dtype=np.int64),
    )


def without_penalties(batch: SampleBatch) -> SampleBatch:
    """`batch` with neither penalties nor the `min_p` cut."""
    rows = len(batch.temperature)
    none = np.zeros(0, dtype=np.int64)
    return replace(
        batch,
        penalty_ids=none,
        penalty_values=none.astype(np.float32),
        penalty_starts=np.zeros(rows + 1, np.int64),
        min_p_cutoffs=np.full(rows, -np.inf),
    )
