"""Files that are no weights at all, and weights files that were cut off."""

from __future__ import annotations

import io
import os
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save

from tests.model.hostile.case import Case, from_bytes, tiny
from tests.model.hostile.packing import archive_of, legacy_pth, pth


def not_files() -> Iterator[Case]:
    yield Case("directory", lambda path: path.mkdir(), "this directory has no weights")
    yield Case("fifo", os.mkfifo, "pipe, socket or device")
    yield Case("dangling-link", lambda path: path.symlink_to("nowhere"), "symbolic link to a file that is not there")
    yield Case("link-loop", lambda path: path.symlink_to(path.name), "cannot open it")
    yield Case("device", lambda path: path.symlink_to("/dev/zero"), "pipe, socket or device")
    yield Case("socket", _socket, "cannot open it")
    yield Case("absent", lambda path: None, "there is no such file")


def _socket(path: Path) -> None:
    # A socket's own path must be short, so it is made elsewhere and linked to.
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(before)


def not_checkpoints() -> Iterator[Case]:
    yield from_bytes("empty", b"", "the file is empty")
    yield from_bytes("one-byte", b"\x80", "not a checkpoint")
    yield from_bytes("zeros", bytes(4096), "not a checkpoint")
    yield from_bytes("lfs-pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "not a checkpoint")
    yield from_bytes("web-page", b"<!DOCTYPE html><html>404</html>", "not a checkpoint")
    yield from_bytes("picture", b"\x89PNG\r\n\x1a\n" + bytes(100), "not a checkpoint")
    yield from_bytes("plain-program", b"\x80\x02}q\x00.", "not a checkpoint")
    yield from_bytes("other-zip", archive_of({"readme.txt": b"hello"}), "without data.pkl")
    yield from_bytes("other-tensors", pth({"layers.0.weight": torch.ones(2, 2)}), "not an RWKV checkpoint")
    yield from_bytes("no-tensors", pth({}), "no tensors at all")
    yield from_bytes("no-tensors-safe", save({}), "no tensors at all")
    yield from_bytes("state-tuned", pth({"blocks.0.att.time_state": torch.ones(2, 32, 32)}), "--state FILE")


def truncated() -> Iterator[Case]:
    whole = {"pth": pth(tiny()), "old": legacy_pth(tiny()), "safe": save(tiny())}
    for kind, data in whole.items():
        cuts = {1, 2, 4, 7, 8, 9, 15, 16, 17, 30, 64, 100, 1000, len(data) // 2, len(data) - 1}
        cuts |= {round(len(data) * part / 16) for part in range(1, 16)}
        if kind == "pth":
            for start, length in _members(data):
                cuts |= {start, start + 1, start + length - 1, start + length}
        cuts |= {len(data) - part for part in (2, 16, 21, 22, 23, 64, 98, 100)}
        for cut in sorted(cuts):
            yield from_bytes(f"cut-{kind}-{cut}", data[:cut], "")


def _members(data: bytes) -> list[tuple[int, int]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
    # Every boundary of the first and last few; the middle ones are all alike.
    return [(member.header_offset, 64) for member in members[:4] + members[-4:]]
