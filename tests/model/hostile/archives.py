"""`.pth` files that are unsound as zip archives."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tests.model.hostile.case import Case, from_bytes, tiny
from tests.model.hostile.packing import archive_of, program, pth, tensor_item

_ITEM = b"\x80\x02}(" + tensor_item(b"emb.weight", (1 << 12, 1 << 12), (1 << 12, 1)) + b"u."


def zips() -> Iterator[Case]:
    yield from_bytes("bomb", _bomb, "compressed")
    yield from_bytes("bomb-lying", lambda: _patched_sizes(_bomb()), "")
    yield from_bytes(
        "many-members", lambda: archive_of({f"a/{number:060}": b"" for number in range(40_000)}), "too large"
    )
    yield from_bytes("overlapping-members", _overlapping(), "more bytes than the file")
    yield from_bytes(
        "big-endian", archive_of({"a/data.pkl": _ITEM, "a/byteorder": b"big", "a/data/0": b""}), "big-endian"
    )
    yield from_bytes("member-offset", _patched_offset(pth(tiny())), "cut off or damaged")
    marked = archive_of({"a/data.pkl": b"\x80\x02}.", "a/byteorder": b"little"})
    yield from_bytes("members-before-the-file", _patched_directory(marked, 1000), "cut off or damaged")
    yield from_bytes(
        "directory-elsewhere", _patched_directory(program(tensor_item(b"w", (1,), (1,))), -50), "cut off or damaged"
    )
    yield Case("directory-of-gigabytes", _sparse_directory, "too large")
    yield Case("recipe-of-gigabytes", _sparse_recipe, "at most")


def _bomb() -> bytes:
    return archive_of({"a/data.pkl": _ITEM, "a/data/0": bytes(64 << 20)}, zipfile.ZIP_DEFLATED)


def _patched_sizes(data: bytes) -> bytes:
    """The same archive, whose members say that they are stored and as long as they unpack to."""
    patched = bytearray(data)
    position = 0
    while (position := patched.find(b"PK\x01\x02", position)) >= 0:
        struct.pack_into("<H", patched, position + 10, zipfile.ZIP_STORED)
        patched[position + 20 : position + 24] = patched[position + 24 : position + 28]
        position += 4
    return bytes(patched)


def _overlapping() -> bytes:
    """One megabyte, named by a hundred directory entries."""
    data = archive_of({f"a/data/{number:03}": bytes(1 << 20 if number == 0 else 0) for number in range(100)})
    patched = bytearray(data)
    first = patched.find(b"PK\x01\x02")
    position = first
    while (position := patched.find(b"PK\x01\x02", position)) >= 0:
        patched[position + 20 : position + 28] = patched[first + 20 : first + 28]
        patched[position + 42 : position + 46] = patched[first + 42 : first + 46]
        position += 4
    return bytes(patched)


def _patched_offset(data: bytes) -> bytes:
    patched = bytearray(data)
    struct.pack_into("<I", patched, patched.find(b"PK\x01\x02") + 42, 77)
    return bytes(patched)


def _patched_directory(data: bytes, shift: int) -> bytes:
    """The same archive, whose directory says that it starts elsewhere, which moves all its members."""
    patched = bytearray(data)
    place = patched.rfind(b"PK\x05\x06") + 16
    struct.pack_into("<I", patched, place, struct.unpack_from("<I", patched, place)[0] + shift)
    return bytes(patched)


def _sparse_directory(path: Path) -> None:
    size = 3 << 30
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(size - 22)
        file.seek(size - 22)
        file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, size - 100, 50, 0))


def _sparse_recipe(path: Path) -> None:
    """A data.pkl of 3 GiB, none of it on the disk."""
    size = 3 << 30
    name = b"a/data.pkl"
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, size, size, len(name), 0) + name
    entry = (
        struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, size, size, len(name), 0, 0, 0, 0, 0, 0) + name
    )
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(entry), len(local) + size, 0)
    with path.open("wb") as file:
        file.write(local)
        file.truncate(len(local) + size)
        file.seek(len(local) + size)
        file.write(entry + end)
