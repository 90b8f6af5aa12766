"""Makes a corpus of damaged and malicious weights files: what each is, and what its message must say.

`python -m tests.model.hostile_checkpoints FOLDER` writes it; `... FOLDER --check` also opens every file and prints
one JSON line a file: the message, the CPU time in seconds and the growth of the peak memory in MiB.
"""

from __future__ import annotations

import io
import json
import os
import resource
import socket
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from rwkvbatch.model.random_checkpoint import random_tensors

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


def corpus() -> Iterator[Case]:
    yield from _not_files()
    yield from _not_checkpoints()
    yield from _truncated()
    yield from _wrong_tensors()
    yield from _programs()
    yield from _zips()
    yield from _safetensors()


def _bytes(name: str, data: bytes, message: str) -> Case:
    return Case(name, lambda path: path.write_bytes(data), message)


# Things that are not regular files


def _not_files() -> Iterator[Case]:
    yield Case("directory", lambda path: path.mkdir(), "this is a directory")
    yield Case("fifo", os.mkfifo, "pipe, socket or device")
    yield Case(
        "dangling-link", lambda path: path.symlink_to("nowhere"), "symbolic link to a file that is not there"
    )
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


def _not_checkpoints() -> Iterator[Case]:
    yield _bytes("empty", b"", "the file is empty")
    yield _bytes("one-byte", b"\x80", "not a checkpoint")
    yield _bytes("zeros", bytes(4096), "not a checkpoint")
    yield _bytes(
        "lfs-pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "not a checkpoint"
    )
    yield _bytes("web-page", b"<!DOCTYPE html><html>404</html>", "not a checkpoint")
    yield _bytes("picture", b"\x89PNG\r\n\x1a\n" + bytes(100), "not a checkpoint")
    yield _bytes("plain-program", b"\x80\x02}q\x00.", "not a checkpoint")
    yield _bytes("other-zip", _zip({"readme.txt": b"hello"}), "without data.pkl")
    yield _bytes("other-tensors", pth({"layers.0.weight": torch.ones(2, 2)}), "not an RWKV checkpoint")
    yield _bytes("no-tensors", pth({}), "no tensors at all")
    yield _bytes("no-tensors-safe", save({}), "no tensors at all")
    yield _bytes("state-tuned", pth({"blocks.0.att.time_state": torch.ones(2, 32, 32)}), "--state FILE")


# Cut off


def _truncated() -> Iterator[Case]:
    whole = {"pth": pth(tiny()), "old": legacy_pth(tiny()), "safe": save(tiny())}
    for kind, data in whole.items():
        cuts = {1, 2, 4, 7, 8, 9, 15, 16, 17, 30, 64, 100, 1000, len(data) // 2, len(data) - 1}
        cuts |= {round(len(data) * part / 16) for part in range(1, 16)}
        if kind == "pth":
            for start, length in _members(data):
                cuts |= {start, start + 1, start + length - 1, start + length}
        cuts |= {len(data) - part for part in (2, 16, 21, 22, 23, 64, 98, 100)}
        for cut in sorted(cuts):
            yield _bytes(f"cut-{kind}-{cut}", data[:cut], "")


def _members(data: bytes) -> list[tuple[int, int]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
    # Every boundary of the first and last few; the middle ones are all alike.
    return [(member.header_offset, 64) for member in members[:4] + members[-4:]]


# Sound files of wrong tensors


def _wrong_tensors() -> Iterator[Case]:
    for label, name, value in (
        ("nan", "blocks.1.att.key.weight", float("nan")),
        ("inf", "head.weight", float("-inf")),
    ):
        tensors = tiny()
        tensors[name][-1, -1] = value
        for kind, data in (("pth", pth(tensors)), ("safe", save(tensors))):
            yield _bytes(f"{label}-{kind}", data, f"{name!r} holds NaN or infinity (1 of ")

    def changed(label: str, message: str, **changes: torch.Tensor | None) -> Case:
        tensors = tiny()
        for name, tensor in changes.items():
            if tensor is None:
                del tensors[name]
            else:
                tensors[name] = tensor
        return _bytes(label, pth(tensors), message)

    wide = torch.ones(64, 65)
    yield changed("missing", "missing: 'blocks.1.att.g1'", **{"blocks.1.att.g1": None})
    yield changed("missing-head", "missing: 'head.weight'", **{"head.weight": None})
    yield changed("missing-embedding", "'emb.weight' is missing", **{"emb.weight": None})
    yield changed("missing-v1", "missing: 'blocks.1.att.v1'", **{"blocks.1.att.v1": None})
    yield changed("surplus", "surplus: 'blocks.0.att.zzz'", **{"blocks.0.att.zzz": torch.ones(1)})
    yield changed("surplus-name", "surplus: '\\x1b[2J'", **{"\x1b[2J": torch.ones(1)})
    yield changed("many-surplus", "more", **{f"extra.{number}": torch.ones(1) for number in range(1000)})
    yield changed(
        "misshapen",
        "'blocks.0.att.key.weight' must be 64 x 64, it is 64 x 65",
        **{"blocks.0.att.key.weight": wide},
    )
    yield changed(
        "misshapen-vector", "'ln_out.weight' must be 64, it is 8 x 8", **{"ln_out.weight": torch.ones(8, 8)}
    )
    yield changed(
        "misshapen-rank",
        "'blocks.0.att.w2' must be 32 x 64, it is 31 x 64",
        **{"blocks.0.att.w2": torch.ones(31, 64)},
    )
    yield changed("misshapen-heads", "heads times head size", **{"blocks.0.att.r_k": torch.ones(3, 32)})
    yield changed("flat-embedding", "must be [vocabulary, width]", **{"emb.weight": torch.ones(97 * 64)})
    yield changed(
        "scalar", "'head.weight' must be 97 x 64, it is a single number", **{"head.weight": torch.tensor(1.0)}
    )
    yield changed("empty-embedding", "must be [vocabulary, width]", **{"emb.weight": torch.ones(0, 64)})
    yield changed(
        "no-rank",
        "'blocks.1.att.a1' is empty",
        **{"blocks.1.att.a1": torch.ones(64, 0), "blocks.1.att.a2": torch.ones(0, 64)},
    )
    yield changed(
        "whole-numbers",
        "must be bf16, fp16 or fp32, it is int64",
        **{"ln_out.bias": torch.ones(64, dtype=torch.int64)},
    )
    yield changed("double", "it is float64", **{"head.weight": torch.ones(97, 64, dtype=torch.float64)})
    yield changed("layer-gap", "layer 2 is missing", **{"blocks.3.ln1.weight": torch.ones(64)})
    yield changed("layer-million", "layer 2 is missing", **{"blocks.999999.ln1.weight": torch.ones(64)})
    yield changed("layer-number-huge", "surplus", **{f"blocks.{'9' * 400}.ln1.weight": torch.ones(64)})
    yield changed("deep-embed", "DeepEmbed", **{"blocks.0.ffn.s_emb.weight": torch.ones(97, 1024)})
    older = {"emb.weight": torch.ones(9, 8), "blocks.0.att.time_decay": torch.ones(8)}
    yield _bytes("older-incomplete", pth(older), "cannot load it")
    yield _bytes(
        "big-embedding-expanded",
        _program(_tensor(b"emb.weight", (1 << 16, 1 << 20), (0, 0))),
        "more than 4 times",
    )


# Programs inside a .pth file


def _unicode(text: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text


def _integer(value: int) -> bytes:
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _storage(key: bytes, count: int) -> bytes:
    return (
        b"("
        + _unicode(b"storage")
        + b"ctorch\nFloatStorage\n"
        + _unicode(key)
        + _unicode(b"cpu")
        + _integer(count)
        + b"tQ"
    )


def _tensor(
    name: bytes, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, key: bytes = b"0"
) -> bytes:
    sizes = b"(" + b"".join(map(_integer, shape)) + b"t(" + b"".join(map(_integer, strides)) + b"t"
    return (
        _unicode(name)
        + b"ctorch._utils\n_rebuild_tensor_v2\n("
        + _storage(key, 16)
        + _integer(offset)
        + sizes
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def _program(*items: bytes) -> bytes:
    """A `.pth` file whose dict is made by `items`, with one record of 64 bytes."""
    return _zip(
        {"a/data.pkl": b"\x80\x02}(" + b"".join(items) + b"u.", "a/data/0": bytes(64), "a/version": b"3\n"}
    )


def _programs() -> Iterator[Case]:
    run = _unicode(f"touch {WITNESS}".encode())
    name = _unicode(b"emb.weight")
    calls = {
        "system": b"cposix\nsystem\n(" + run + b"tR",
        "system-instance": b"(" + run + b"iposix\nsystem\n",
        "system-object": b"(cposix\nsystem\n" + run + b"o",
        "system-new": b"cposix\nsystem\n(" + run + b"t\x81",
        "system-stack-global": _unicode(b"posix") + _unicode(b"system") + b"\x93(" + run + b"tR",
        "open": b"c__builtin__\nopen\n(" + _unicode(WITNESS.encode()) + _unicode(b"w") + b"tR",
        "eval": b"cbuiltins\neval\n(" + _unicode(f"open('{WITNESS}','w')".encode()) + b"tR",
        "attribute-path": _unicode(b"torch") + _unicode(b"os.system") + b"\x93(" + run + b"tR",
        "rebuild-wrapper": b"ctorch._tensor\n_rebuild_from_type_v2\n(cposix\nsystem\nctorch\nTensor\n("
        + run
        + b"t}tR",
        "wrapped-twice": b"ctorch._utils\n_rebuild_parameter\n(cposix\nsystem\n\x88}tR",
    }
    for label, call in calls.items():
        yield _bytes(f"runs-{label}", _program(name + call), "refused, nothing was run")
        legacy = _legacy_head() + b"\x80\x02}(" + name + call + b"u." + b"\x80\x02].."
        yield _bytes(f"runs-{label}-old", legacy, "refused, nothing was run")
    nested = b"\x8c\x01a\x85" + b"".join(b"q" + bytes([0]) + b"h\x00\x86" for _ in range(60))
    wrapper, tensor_type = b"ctorch._tensor\n_rebuild_from_type_v2\n", b"ctorch\nTensor\n"
    deep = b"".join(b"(" + wrapper + tensor_type for _ in range(20_000)) + b")" + b"t" * 20_000
    yield _bytes("wrapped-deep", _program(name + wrapper + deep + b"R"), "refused, nothing was run")
    yield _bytes(
        "wrapped-other-type",
        _program(name + wrapper + b"(ctorch._utils\n_rebuild_tensor\nca\nb\n)tR"),
        "refused",
    )
    yield _bytes("item-of-a-number", _program(name + b"K\x01NNs"), "damaged")
    yield _bytes("append-to-a-number", _program(name + b"K\x01Na"), "damaged")
    yield _bytes("call-a-number", _program(name + b"K\x01)R"), "damaged")
    yield _bytes("name-of-a-number", _program(name + b"K\x01K\x02\x93"), "damaged")
    yield _bytes("too-few-for-a-tuple", _zip({"a/data.pkl": b"\x80\x02K\x01\x87."}), "damaged")
    yield _bytes("list-item-without-mark", _zip({"a/data.pkl": b"\x80\x02]K\x01e."}), "damaged")
    yield _bytes("a-list-of-one", _zip({"a/data.pkl": b"\x80\x02]K\x01a."}), "found one list")
    yield _bytes("a-size", _zip({"a/data.pkl": b"\x80\x02ctorch\nSize\n)\x85R."}), "found one tuple")
    foreign = (
        b"(" + _unicode(b"storage") + b"cos\nFloatStorage\n" + _unicode(b"0") + _unicode(b"cpu") + b"K\x01tQ"
    )
    yield _bytes("foreign-storage", _program(name + foreign), "storage of an unknown kind")
    lone = b"(" + _unicode(b"storage") + b"ctorch\nFloatStorage\n" + b"K\x00" + _unicode(b"cpu") + b"K\x01tQ"
    yield _bytes("storage-key-number", _program(name + lone), "damaged")
    odd = _tensor(b"w", (1,), (1,)).replace(b"FloatStorage", b"QuadStorage")
    yield _bytes("unknown-storage", _program(odd), "unsupported type QuadStorage")
    yield _bytes("unequal-axes", _program(_tensor(b"w", (1, 1), (1,))), "damaged")
    old = _legacy_head()
    yield _bytes("old-preamble", old.replace(b"}(", b"](") + b"\x80\x02}." + b"\x80\x02].", "damaged")
    yield _bytes(
        "old-big-endian", old.replace(b"\x88u.", b"\x89u.") + b"\x80\x02}." + b"\x80\x02].", "big-endian"
    )
    listed = b"\x80\x02}(" + _tensor(b"w", (16,), (1,)) + b"u."
    yield _bytes(
        "old-storage-unlisted", old + listed + b"\x80\x02].", "storages that are not there, such as '0'"
    )
    yield _bytes(
        "old-storage-unknown",
        old + listed + b"\x80\x02](" + _unicode(b"7") + b"e.",
        "does not fit its tensors",
    )
    counted = old + listed + b"\x80\x02](" + _unicode(b"0") + b"e."
    yield _bytes(
        "old-storage-count", counted + struct.pack("<q", 1 << 40) + bytes(64), "damaged at its storage '0'"
    )
    yield _bytes("hash-bomb", _program(nested + b"N"), "damaged")
    yield _bytes("nested-value", _program(name + nested), "is of type tuple")
    yield _bytes("set-attributes", _program(name + b"cbuiltins\nlist\n}b"), "refused, nothing was run")
    yield _bytes("endless", _program(b"N" * 1_500_000), "steps")
    yield _bytes("many-marks", _program(b"(" * 900_000), "damaged")
    yield _bytes("many-dicts", _program(b"}" * 900_000), "damaged")
    yield _bytes("memo-missing", _program(name + b"h\x07"), "damaged")
    yield _bytes("unknown-instruction", _program(name + b"\xff"), "0xff")
    yield _bytes("persistent-number", _program(name + b"K\x01Q"), "damaged")
    yield _bytes("long-text", _program(b"X\xff\xff\xff\x7fabc"), "damaged")
    yield _bytes("long-integer", _program(name + b"\x8a\xff" + b"\x7f" * 255), "is of type int")
    yield _bytes("a-number", _zip({"a/data.pkl": b"\x80\x02K\x01."}), "found one int")
    yield _bytes("a-list", _zip({"a/data.pkl": b"\x80\x02]."}), "found one list")
    yield _bytes("nothing", _zip({"a/data.pkl": b"\x80\x02."}), "damaged")
    yield _bytes("wrapped", pth({"state_dict": tiny()}), "'state_dict' is of type dict")
    yield _bytes(
        "huge-shape", _program(_tensor(b"w", (1 << 40, 1 << 40), (1 << 40, 1))), "more bytes than its record"
    )
    yield _bytes(
        "huge-stride", _program(_tensor(b"w", (2, 2), (1 << 61, 1 << 61))), "more bytes than its record"
    )
    yield _bytes(
        "huge-offset", _program(_tensor(b"w", (1,), (1,), offset=1 << 61)), "more bytes than its record"
    )
    yield _bytes("negative-shape", _program(_tensor(b"w", (-1, 2), (1, 1))), "damaged")
    yield _bytes("negative-stride", _program(_tensor(b"w", (4, 4), (-4, 1), offset=12)), "damaged")
    yield _bytes("negative-offset", _program(_tensor(b"w", (4,), (1,), offset=-1)), "damaged")
    yield _bytes("many-axes", _program(_tensor(b"w", (1,) * 1000, (1,) * 1000)), "damaged")
    yield _bytes("one-too-many", _program(_tensor(b"w", (17,), (1,))), "more bytes than its record")
    yield _bytes("no-record", _program(_tensor(b"w", (1,), (1,), key=b"1")), "data/1 that is not there")
    yield _bytes("record-outside", _program(_tensor(b"w", (1,), (1,), key=b"../../etc/passwd")), "not there")
    yield _bytes(
        "many-views",
        _program(*(_tensor(b"w%d" % number, (100, 100), (0, 0)) for number in range(9))),
        "more than 4",
    )


def _legacy_head() -> bytes:
    head = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19." + b"\x80\x02M\xe9\x03."
    return head + b"\x80\x02}(" + _unicode(b"little_endian") + b"\x88u."


# Zip archives


def _zip(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
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


def _zips() -> Iterator[Case]:
    item = b"\x80\x02}(" + _tensor(b"emb.weight", (1 << 12, 1 << 12), (1 << 12, 1)) + b"u."
    bomb = _zip({"a/data.pkl": item, "a/data/0": bytes(64 << 20)}, zipfile.ZIP_DEFLATED)
    yield _bytes("bomb", bomb, "compressed")
    yield _bytes("bomb-lying", _patched_sizes(bomb), "")
    yield _bytes("many-members", _zip({f"a/{number:060}": b"" for number in range(40_000)}), "too large")
    yield _bytes("overlapping-members", _overlapping(), "more bytes than the file")
    yield _bytes(
        "big-endian", _zip({"a/data.pkl": item, "a/byteorder": b"big", "a/data/0": b""}), "big-endian"
    )
    yield _bytes("member-offset", _patched_offset(pth(tiny())), "cut off or damaged")
    marked = _zip({"a/data.pkl": b"\x80\x02}.", "a/byteorder": b"little"})
    yield _bytes("members-before-the-file", _patched_directory(marked, 1000), "cut off or damaged")
    yield _bytes(
        "directory-elsewhere",
        _patched_directory(_program(_tensor(b"w", (1,), (1,))), -50),
        "cut off or damaged",
    )
    yield Case("directory-of-gigabytes", _sparse_directory, "too large")
    yield Case("recipe-of-gigabytes", _sparse_recipe, "at most")


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
    data = _zip({f"a/data/{number:03}": bytes(1 << 20 if number == 0 else 0) for number in range(100)})
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
        struct.pack(
            "<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, size, size, len(name), 0, 0, 0, 0, 0, 0
        )
        + name
    )
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(entry), len(local) + size, 0)
    with path.open("wb") as file:
        file.write(local)
        file.truncate(len(local) + size)
        file.seek(len(local) + size)
        file.write(entry + end)


# Safetensors headers


def _safe(header: object, data: bytes = bytes(64)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _entry(shape: list[Any], start: Any, end: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _safetensors() -> Iterator[Case]:
    damaged = "damaged or cut off"
    yield _bytes("safe-header-gigantic", struct.pack("<Q", 1 << 62) + b'{"a":1}', "at most")
    yield _bytes("safe-header-beyond", struct.pack("<Q", 1 << 20) + b'{"a":1}', damaged)
    yield _bytes("safe-header-open", _safe(b'{"a": {"dtype"'), damaged)
    yield _bytes("safe-header-deep", _safe(b'{"a":' * 100_000), damaged)
    yield _bytes("safe-header-broken-text", _safe(b'{"\xff\xfe": 1}'), damaged)
    yield _bytes("safe-header-list", _safe(b"{} "), "damaged or cut off")
    yield _bytes("safe-header-wrong-kind", _safe({"a": [1, 2]}), damaged)
    yield _bytes("safe-overlap", _safe({"a": _entry([16], 0, 64), "b": _entry([16], 0, 64)}), damaged)
    yield _bytes("safe-gap", _safe({"a": _entry([4], 0, 16), "b": _entry([4], 48, 64)}), damaged)
    yield _bytes("safe-beyond", _safe({"a": _entry([32], 0, 128)}), damaged)
    yield _bytes("safe-tail", _safe({"a": _entry([8], 0, 32)}), damaged)
    yield _bytes("safe-negative", _safe({"a": _entry([16], -64, 0)}), damaged)
    yield _bytes("safe-negative-shape", _safe({"a": _entry([-16], 0, 64)}), damaged)
    yield _bytes("safe-backwards", _safe({"a": _entry([16], 64, 0)}), damaged)
    yield _bytes("safe-shape-overflow", _safe({"a": _entry([1 << 40, 1 << 40], 0, 64)}), damaged)
    yield _bytes("safe-shape-lies", _safe({"a": _entry([15], 0, 64)}), damaged)
    yield _bytes("safe-unknown-type", _safe({"a": _entry([16], 0, 64, "F33")}), damaged)
    yield _bytes("safe-complex", _safe({"a": _entry([8], 0, 64, "C64")}), "unsupported type C64")
    yield _bytes("safe-fraction", _safe({"a": _entry([16.5], 0, 64)}), damaged)
    yield _bytes(
        "safe-infinite", _safe(b'{"a":{"dtype":"F32","shape":[1e400],"data_offsets":[0,64]}}'), damaged
    )
    yield _bytes("safe-metadata-kind", _safe({"__metadata__": {"a": 1}, "a": _entry([16], 0, 64)}), damaged)
    yield Case("safe-header-of-gigabytes", _sparse_header, "at most")


def _sparse_header(path: Path) -> None:
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 3 << 30) + b"{")
        file.truncate((3 << 30) + 8)


def main(arguments: list[str]) -> None:
    """Write the corpus, and with `--check` open every file."""
    folder = Path(arguments[0])
    cases = list(corpus())
    for case in cases:
        case.write(folder / case.name)
    if "--check" in arguments:
        os.chdir(folder)
        for case in cases:
            sys.stdout.write(json.dumps(_opened(case, folder / case.name)) + "\n")
            sys.stdout.flush()


def _opened(case: Case, path: Path) -> dict[str, Any]:
    from rwkvbatch.errors import CheckpointError
    from rwkvbatch.model.load import load_model

    before, started = _peak_mib(), time.process_time()
    try:
        load_model(path, "cpu fp32", "auto")
        error, message = None, ""
    except CheckpointError as refusal:
        error, message = "CheckpointError", f"{refusal} {refusal.hint or ''}"
    except BaseException as other:
        error, message = type(other).__name__, str(other)
    return {
        "name": case.name,
        "expected": case.message,
        "error": error,
        "message": message,
        "cpu_s": time.process_time() - started,
        "memory_mib": _peak_mib() - before,
        "open_files": len(list(Path("/proc/self/fd").iterdir())),
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main(sys.argv[1:])
