"""What a file of the corpus is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors

Tensors = dict[str, torch.Tensor]


WITNESS = "code-was-run"
"""Every file that tries to run code would make a file of this name in the working directory."""


@dataclass(frozen=True)
class Case:
    """A file of the corpus: `write` makes it at a path; the error message must hold `message`."""

    name: str
    write: Callable[[Path], object]
    message: str


def tiny() -> Tensors:
    return random_tensors(2, 64, 97, head_size=32, seed=1)


def from_bytes(name: str, data: bytes | Callable[[], bytes], message: str) -> Case:
    """A file of `data`, or of what `data` makes: what takes long is made when it is written, not at each collection."""
    return Case(name, lambda path: path.write_bytes(data if isinstance(data, bytes) else data()), message)
