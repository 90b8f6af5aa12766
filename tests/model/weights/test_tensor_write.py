"""Tensor files are written completely or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from rwkvbatch.errors import StorageError, UsageError
from rwkvbatch.model.weights import safetensors as tensor_write
from rwkvbatch.model.weights.safetensors import save_tensors

TENSORS = {"a": torch.arange(6.0).view(2, 3).t(), "b": torch.ones(4, dtype=torch.bfloat16)}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_tensors_come_back(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    save_tensors(path, TENSORS)
    actual = load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)
    assert all(torch.equal(actual[name], tensor) for name, tensor in TENSORS.items())
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_what_is_written_can_be_mapped_and_read_by_every_reader(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(5, dtype=torch.int8), "b": torch.tensor(1.5), "c": torch.ones(3, 0), **TENSORS}
    tensors |= {f"d{dtype}": torch.arange(4).to(dtype) for dtype in (torch.float16, torch.float64, torch.bool)}
    save_tensors(tmp_path / "x.pth", tensors)
    save_tensors(tmp_path / "x.safetensors", tensors, metadata={"format": "pt", "é": '"'})
    mapped = torch.load(tmp_path / "x.pth", weights_only=True, mmap=True)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in mapped.values() if tensor.numel())
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "é": '"'}
    for actual in (mapped, torch.load(tmp_path / "x.pth"), load_file(tmp_path / "x.safetensors")):
        assert actual.keys() == tensors.keys()
        assert all(
            torch.equal(actual[name], tensor) and actual[name].dtype == tensor.dtype for name, tensor in tensors.items()
        )


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_views_are_written_without_what_they_do_not_show(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    save_tensors(path, {"view": torch.zeros(1_000_000)[:10]})
    assert path.stat().st_size < 10_000


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_shared_storage_is_written(suffix: str, tmp_path: Path) -> None:
    shared = torch.ones(4)
    save_tensors(tmp_path / f"x{suffix}", {"a": shared, "b": shared})


@pytest.mark.parametrize(("umask", "mode"), [(0, 0o644), (0o022, 0o644), (0o077, 0o600)])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_nobody_else_may_write_a_file_and_the_umask_says_who_may_read_it(
    suffix: str, umask: int, mode: int, tmp_path: Path
) -> None:
    path = tmp_path / f"x{suffix}"
    before = os.umask(umask)
    try:
        save_tensors(path, TENSORS)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_private_file_is_its_owners_alone_from_the_first_byte_on(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"x{suffix}"
    path.touch(0o644)
    modes: list[int] = []
    opened = os.open

    def note_modes() -> None:
        modes.extend(stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir() if file != path)

    def noting_open(*arguments: object, **options: object) -> int:
        descriptor = opened(*arguments, **options)  # type: ignore[arg-type]
        note_modes()
        return descriptor

    monkeypatch.setattr("os.open", noting_open)
    before = os.umask(0)
    try:
        save_tensors(path, TENSORS, replace=True, private=True)
    finally:
        os.umask(before)
    assert len(modes) >= 2
    assert {*modes, stat.S_IMODE(path.stat().st_mode)} == {0o600}


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "make room on the disk, or choose another one"),
        (errno.EROFS, "choose a folder that you may write to"),
        (errno.EACCES, "choose a folder that you may write to"),
        (errno.EIO, None),
    ],
)
def test_failed_write_leaves_the_old_file_and_nothing_else(
    number: int, hint: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(b"PK\x03\x04 old")

    def full(file: BinaryIO, _entries: object, _on_written: object) -> None:
        file.write(b"half")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tensor_write.pth, "write_zip", full)
    with pytest.raises(StorageError, match=rf"cannot write .*{os.strerror(number)}") as caught:
        save_tensors(path, TENSORS, replace=True)
    assert caught.value.hint == hint
    assert path.read_bytes() == b"PK\x03\x04 old"
    assert [file.name for file in tmp_path.iterdir()] == ["x.pth"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("x.bin", "must end in .pth or .safetensors"), ("absent/x.pth", "no directory"), ("there.pth", "already")],
)
def test_bad_target_is_a_usage_error(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "there.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(UsageError, match=message):
        save_tensors(tmp_path / name, TENSORS)


def test_directory_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "d.pth").mkdir()
    with pytest.raises(UsageError, match="is a directory"):
        save_tensors(tmp_path / "d.pth", TENSORS, replace=True)
