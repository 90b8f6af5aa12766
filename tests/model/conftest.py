"""A tiny checkpoint that the tests share, and one thread for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rwkvbatch.model.random_checkpoint import random_tensors

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
