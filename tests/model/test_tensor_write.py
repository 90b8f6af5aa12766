"""Files are written whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rwkvbatch.errors import StorageError, UsageError
from rwkvbatch.model import safetensors as tensor_write
from rwkvbatch.model.safetensors import save_tensors

TENSORS = {"a": torch.arange(6.0).view(2, 3).t(), "b": torch.ones(4, dtype=torch.bfloat16)}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_tensors_come_back(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    save_tensors(path, TENSORS)
    found = load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


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


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(b"old")

    def full(_value: object, target: Path) -> None:
        target.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file: file write failed")

    monkeypatch.setattr(tensor_write.torch, "save", full)
    with pytest.raises(StorageError, match=r"cannot write .*file write failed"):
        save_tensors(path, TENSORS, replace=True)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["x.pth"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("x.bin", "must end in .pth or .safetensors"), ("absent/x.pth", "no directory"), ("there.pth", "already there")],
)
def test_bad_target_is_a_usage_error(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "there.pth").touch()
    with pytest.raises(UsageError, match=message):
        save_tensors(tmp_path / name, TENSORS)


def test_directory_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "d.pth").mkdir()
    with pytest.raises(UsageError, match="already there"):
        save_tensors(tmp_path / "d.pth", TENSORS, replace=True)
