"""A small checkpoint shared by the tests, and one torch thread."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from rwkvbatch.model.base import SampleBatch
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors

VOCAB_SIZE = 97


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def tiny_tensors() -> dict[str, torch.Tensor]:
    """2 layers x 64, 2 heads of 32, vocabulary 97, bf16."""
    return random_tensors(2, 64, VOCAB_SIZE, head_size=32, seed=1)


@pytest.fixture(scope="package")
def tiny_file(tiny_tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.pth"
    torch.save(tiny_tensors, path)
    return path


def greedy_batch(rows: int) -> SampleBatch:
    """The choice of the largest logit, for `rows` rows."""
    none = np.zeros(rows, dtype=np.int64)
    return SampleBatch(
        temperature=np.zeros(rows, dtype=np.float32),
        top_p=np.ones(rows, dtype=np.float32),
        top_k=none,
        orders=np.zeros(rows, dtype=np.uint8),
        penalty_ids=none[:0],
        penalty_values=np.zeros(0, dtype=np.float32),
        penalty_starts=np.zeros(rows + 1, dtype=np.int64),
        noise_keys=np.zeros(rows, dtype=np.uint64),
        turns=none,
        steps=none,
        min_p_cutoffs=np.full(rows, -np.inf),
    )
