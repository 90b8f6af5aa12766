"""Files that are no weights at all, and weights files that were cut off."""

from __future__ import annotations

import io
import os
import socket
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save

from tests.model.hostile.case import Case, from_bytes, tiny
from tests.model.hostile.packing import archive_of, legacy_pth, pth


def not_files() -> Iterator[Case]:
    yield Case("directory", lambda path: path.mkdir(), "this directory has no weights")
    yield Case("fifo", os.mkfifo, "it is a FIFO, not a regular file")
    yield Case("dangling-link", lambda path: path.symlink_to("nowhere"), "symbolic link to a file that does not exist")
    yield Case("link-loop", lambda path: path.symlink_to(path.name), "cannot open it")
    yield Case("device", lambda path: path.symlink_to("/dev/zero"), "it is a device, not a regular file")
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
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    yield from_bytes("lfs-pointer", pointer, "this is a Git LFS pointer")
    yield from_bytes("web-page", b"<!DOCTYPE html><html>404</html>", "this is a web page (HTML)")
    yield from_bytes("web-page-later", b"\xef\xbb\xbf\n  <html lang='en'>" + b"x" * 999, "this is a web page (HTML)")
    yield from_bytes("xml-error", b"<?xml version='1.0'?><Error>AccessDenied</Error>", "this is an XML document")
    yield from_bytes("text", b"Invalid username or password.\n", "this is text, not weights")
    yield from_bytes("json-error", b'{"error":"Repository not found"}', "this is JSON, not weights")
    yield from_bytes("json-list", b'["a"]', "this is JSON, not weights")
    rwkv_cpp = b"fmgg" + struct.pack("<IIIII", 101, 65536, 768, 12, 1)
    yield from_bytes("rwkv-cpp.bin", rwkv_cpp + bytes(64), "this is a ggml file of rwkv.cpp")
    yield from_bytes("ggml.bin", b"lmgg" + bytes(64), "this is a ggml file (")
    yield from_bytes("ggjt.bin", b"tjgg\3\0\0\0" + bytes(64), "this is a ggml file (")
    yield from_bytes("model.onnx", b"\x08\x08\x12\x07pytorch\x1a\x052.0.0" + bytes(64), "this is an ONNX model")
    yield from_bytes("array.npy", b"\x93NUMPY\x01\0" + bytes(64), "this is a NumPy file")
    yield from_bytes("keras.h5", b"\x89HDF\r\n\x1a\n" + bytes(64), "this is an HDF5 file")
    yield from_bytes("packed.gz", b"\x1f\x8b\x08\0" + bytes(64), "this is a gzip archive")
    yield from_bytes("packed.zst", b"\x28\xb5\x2f\xfd" + bytes(64), "this is a Zstandard archive")
    yield Case("packed.tar", _tar, "this is a tar archive")
    yield from_bytes("picture", b"\x89PNG\r\n\x1a\n" + bytes(100), "this is a PNG picture")
    yield from_bytes("old.pth", legacy_pth(tiny()), "before version 1.6 load it with PyTorch")
    yield from_bytes("plain-program", b"\x80\x02}q\x00.", "a pickle, but not one of torch.save")
    yield from_bytes("other-zip", archive_of({"readme.txt": b"hello"}), "without data.pkl")
    yield from_bytes("other-tensors", pth({"layers.0.weight": torch.ones(2, 2)}), "not an RWKV checkpoint")
    yield from other_networks()
    yield from_bytes("no-tensors", pth({}), "no tensors at all")
    yield from_bytes("no-tensors-safe", save({}), "no tensors at all")
    yield from_bytes("state-tuned", pth({"blocks.0.att.time_state": torch.ones(2, 32, 32)}), "--state FILE")


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("a.pth"))


def other_networks() -> Iterator[Case]:
    """Sound files of networks that this program does not compute, each with the name it must be called by."""
    some = torch.ones(2, 2)
    names = {
        "llama": ("model.layers.0.self_attn.q_proj.weight", "a transformer with softmax attention (Llama"),
        "neox": ("gpt_neox.layers.0.attention.query_key_value.weight", "GPT-NeoX"),
        "gpt2": ("transformer.h.0.attn.c_attn.weight", "GPT-2"),
        "meta-llama": ("layers.0.attention.wq.weight", "Meta's Llama"),
        "mamba": ("backbone.layers.0.mixer.A_log", "a Mamba model"),
        "bert": ("bert.encoder.layer.0.attention.self.query.weight", "BERT"),
        "arwkv": ("model.layers.0.self_attn.r_k", "RWKV-7 attention inside another model"),
        "fla-rwkv6": ("model.layers.0.attn.bonus", "RWKV-6 under the names of flash-linear-attention"),
        "gla": ("model.layers.0.attn.q_proj.weight", "another linear attention model"),
        "rwkv2": ("blocks.0.att.time_curve", "RWKV-2 or RWKV-3"),
        "rosa": ("rosa1.emb0", "RWKV-8 with ROSA"),
    }
    for label, (name, true_name) in names.items():
        yield from_bytes(f"network-{label}", save({name: some, "emb.weight": some.clone()}), true_name)
    added = {
        "rwkv7b": ("blocks.0.qkv.qq.weight", "RWKV-7b"),
        "rwkv8": ("blocks.0.ffn.enn.weight", "RWKV-8 (DeepEmbed"),
        "rwkv8-rosa": ("blocks.0.rosa.q.weight", "RWKV-8 with ROSA"),
        "gptq": ("blocks.0.att.key.qweight", "its weights are quantised"),
    }
    for label, (name, true_name) in added.items():
        yield from_bytes(f"network-{label}", pth({**tiny(), name: some}), true_name)


def truncated() -> Iterator[Case]:
    whole = {"pth": pth(tiny()), "safe": save(tiny())}
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
