"""Files of tensors that change or cannot be read while they are open."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model.checkpoints.checkpoint import open_tensors
from rwkvbatch.model.weights.safetensors import save_tensors


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_tensors(tmp_path / "x.safetensors", {"a": torch.arange(4096.0)})
    return tmp_path / "x.safetensors"


def broken(*_: Any) -> int:
    raise OSError(errno.EIO, "Input/output error")


def test_the_hash_is_that_of_the_file(path: Path) -> None:
    with open_tensors(path) as file:
        assert file.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_that_is_cut_off_while_it_is_open_is_one_clear_error(path: Path) -> None:
    with open_tensors(path) as file:
        os.truncate(path, path.stat().st_size - 100)
        with pytest.raises(CheckpointError, match=r"x\.safetensors: the file was cut off while"):
            file.read("a")


def test_a_file_that_is_written_to_while_it_is_open_has_no_hash(path: Path) -> None:
    with open_tensors(path) as file:
        file.read("a")
        with path.open("ab") as other:
            other.write(b"more")
        with pytest.raises(CheckpointError, match=r"x\.safetensors: the file was changed while"):
            file.sha256()


def test_a_disk_that_fails_is_one_clear_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_tensors(path) as file:
        monkeypatch.setattr(os, "preadv", broken)
        with pytest.raises(CheckpointError, match=r"x\.safetensors: cannot read it: Input/output error"):
            file.read("a")
        monkeypatch.setattr(os, "pread", broken)
        with pytest.raises(CheckpointError, match=r"x\.safetensors: cannot read it: Input/output error"):
            file.sha256()
