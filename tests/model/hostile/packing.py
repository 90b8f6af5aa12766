"""Bytes that look like what torch saves: items of a pickle, archives of records."""

from __future__ import annotations

import io
import struct
import zipfile
from typing import Any

import torch


def unicode_item(text: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text


def _integer(value: int) -> bytes:
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _storage(key: bytes, count: int) -> bytes:
    return (
        b"("
        + unicode_item(b"storage")
        + b"ctorch\nFloatStorage\n"
        + unicode_item(key)
        + unicode_item(b"cpu")
        + _integer(count)
        + b"tQ"
    )


def tensor_item(
    name: bytes, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, key: bytes = b"0"
) -> bytes:
    sizes = b"(" + b"".join(map(_integer, shape)) + b"t(" + b"".join(map(_integer, strides)) + b"t"
    return (
        unicode_item(name)
        + b"ctorch._utils\n_rebuild_tensor_v2\n("
        + _storage(key, 16)
        + _integer(offset)
        + sizes
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def program(*items: bytes) -> bytes:
    """A `.pth` file whose dict is made by `items`, with one record of 64 bytes."""
    return archive_of(
        {"a/data.pkl": b"\x80\x02}(" + b"".join(items) + b"u.", "a/data/0": bytes(64), "a/version": b"3\n"}
    )


def archive_of(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def pth(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def legacy_pth(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()
