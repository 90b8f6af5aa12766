"""Programs inside a `.pth` file."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tests.model.hostile.case import WITNESS, Case, from_bytes, tiny
from tests.model.hostile.packing import archive_of, program, pth, tensor_item, unicode_item


def programs() -> Iterator[Case]:
    run = unicode_item(f"touch {WITNESS}".encode())
    name = unicode_item(b"emb.weight")
    calls = {
        "system": b"cposix\nsystem\n(" + run + b"tR",
        "system-instance": b"(" + run + b"iposix\nsystem\n",
        "system-object": b"(cposix\nsystem\n" + run + b"o",
        "system-new": b"cposix\nsystem\n(" + run + b"t\x81",
        "system-stack-global": unicode_item(b"posix") + unicode_item(b"system") + b"\x93(" + run + b"tR",
        "open": b"c__builtin__\nopen\n(" + unicode_item(WITNESS.encode()) + unicode_item(b"w") + b"tR",
        "eval": b"cbuiltins\neval\n(" + unicode_item(f"open('{WITNESS}','w')".encode()) + b"tR",
        "attribute-path": unicode_item(b"torch") + unicode_item(b"os.system") + b"\x93(" + run + b"tR",
        "rebuild-wrapper": b"ctorch._tensor\n_rebuild_from_type_v2\n(cposix\nsystem\nctorch\nTensor\n(" + run + b"t}tR",
        "wrapped-twice": b"ctorch._utils\n_rebuild_parameter\n(cposix\nsystem\n\x88}tR",
    }
    for label, call in calls.items():
        yield from_bytes(f"runs-{label}", program(name + call), "refused, nothing was run")
    nested = b"\x8c\x01a\x85" + b"".join(b"q" + bytes([0]) + b"h\x00\x86" for _ in range(60))
    wrapper, tensor_type = b"ctorch._tensor\n_rebuild_from_type_v2\n", b"ctorch\nTensor\n"
    deep = b"".join(b"(" + wrapper + tensor_type for _ in range(20_000)) + b")" + b"t" * 20_000
    yield from_bytes("wrapped-deep", program(name + wrapper + deep + b"R"), "refused, nothing was run")
    yield from_bytes(
        "wrapped-other-type", program(name + wrapper + b"(ctorch._utils\n_rebuild_tensor\nca\nb\n)tR"), "refused"
    )
    yield from_bytes("item-of-a-number", program(name + b"K\x01NNs"), "damaged")
    yield from_bytes("append-to-a-number", program(name + b"K\x01Na"), "damaged")
    yield from_bytes("call-a-number", program(name + b"K\x01)R"), "damaged")
    yield from_bytes("name-of-a-number", program(name + b"K\x01K\x02\x93"), "damaged")
    yield from_bytes("too-few-for-a-tuple", archive_of({"a/data.pkl": b"\x80\x02K\x01\x87."}), "damaged")
    yield from_bytes("list-item-without-mark", archive_of({"a/data.pkl": b"\x80\x02]K\x01e."}), "damaged")
    yield from_bytes("a-list-of-one", archive_of({"a/data.pkl": b"\x80\x02]K\x01a."}), "found one list")
    yield from_bytes("a-size", archive_of({"a/data.pkl": b"\x80\x02ctorch\nSize\n)\x85R."}), "found one tuple")
    foreign = (
        b"("
        + unicode_item(b"storage")
        + b"cos\nFloatStorage\n"
        + unicode_item(b"0")
        + unicode_item(b"cpu")
        + b"K\x01tQ"
    )
    yield from_bytes("foreign-storage", program(name + foreign), "storage of an unknown kind")
    lone = b"(" + unicode_item(b"storage") + b"ctorch\nFloatStorage\n" + b"K\x00" + unicode_item(b"cpu") + b"K\x01tQ"
    yield from_bytes("storage-key-number", program(name + lone), "damaged")
    odd = tensor_item(b"w", (1,), (1,)).replace(b"FloatStorage", b"QuadStorage")
    yield from_bytes("unknown-storage", program(odd), "must be bf16, fp16 or fp32, it is QuadStorage")
    yield from_bytes("unequal-axes", program(tensor_item(b"w", (1, 1), (1,))), "damaged")
    yield from_bytes("hash-bomb", program(nested + b"N"), "damaged")
    yield from_bytes("nested-value", program(name + nested), "is of type tuple")
    yield from_bytes("set-attributes", program(name + b"cbuiltins\nlist\n}b"), "refused, nothing was run")
    yield from_bytes("endless", program(b"N" * 1_500_000), "steps")
    yield from_bytes("many-marks", program(b"(" * 900_000), "damaged")
    yield from_bytes("many-dicts", program(b"}" * 900_000), "damaged")
    yield from_bytes("memo-missing", program(name + b"h\x07"), "damaged")
    yield from_bytes("unknown-instruction", program(name + b"\xff"), "xff")
    yield from_bytes("unwanted-instruction", program(name + b"I1\n"), "(INT)")
    yield from_bytes("unterminated-text", program(name + b"S" + b"x" * 15_000_000), "damaged")
    yield from_bytes("persistent-number", program(name + b"K\x01Q"), "damaged")
    yield from_bytes("long-text", program(b"X\xff\xff\xff\x7fabc"), "damaged")
    yield from_bytes("long-integer", program(name + b"\x8a\xff" + b"\x7f" * 255), "is of type int")
    yield from_bytes("a-number", archive_of({"a/data.pkl": b"\x80\x02K\x01."}), "found one int")
    yield from_bytes("a-list", archive_of({"a/data.pkl": b"\x80\x02]."}), "found one list")
    yield from_bytes("nothing", archive_of({"a/data.pkl": b"\x80\x02."}), "damaged")
    yield from_bytes("wrapped-number", pth({"state_dict": 1, "epoch": 2}), "'state_dict' is of type int")
    yield from_bytes("wrapped-nothing", pth({"state_dict": {}}), "no tensors at all")
    yield from_bytes("wrapped-often", pth(_nested(9)), "is of type dict")
    yield from_bytes("wrapped-object", pth({"model": torch.nn.Linear(2, 2)}), "torch.nn.modules.linear.Linear")
    own = b"cmy.trainer\nArgs\n)\x81}b"
    yield from_bytes("own-object-alone", program(name + own), "is of type my.trainer.Args")
    yield from_bytes("own-function", program(name + b"cmy.trainer\nrun\n)\x81"), "refused, nothing was run")
    yield from_bytes("own-class-called", program(name + b"cmy.trainer\nArgs\n)R"), "refused, nothing was run")
    yield from_bytes("library-class", program(name + b"csubprocess\nPopen\n)\x81"), "refused, nothing was run")
    yield from_bytes("numpy-function", program(name + b"cnumpy\nload\n)R"), "refused, nothing was run")
    yield from_bytes("torch-function", program(name + b"ctorch.hub\nload\n)R"), "refused, nothing was run")
    yield from_bytes("set-of-a-number", program(name + b"K\x01(K\x02\x90"), "damaged")
    yield from_bytes("negative-bit-number", program(_with_bits(b"K\x01")), "damaged")
    yield from_bytes("conjugate-bit", program(_with_bits(b"}" + unicode_item(b"conj") + b"\x88s")), "not supported")
    yield from_bytes(
        "huge-shape", program(tensor_item(b"w", (1 << 40, 1 << 40), (1 << 40, 1))), "more bytes than its record"
    )
    yield from_bytes(
        "huge-stride", program(tensor_item(b"w", (2, 2), (1 << 61, 1 << 61))), "more bytes than its record"
    )
    yield from_bytes(
        "huge-offset", program(tensor_item(b"w", (1,), (1,), offset=1 << 61)), "more bytes than its record"
    )
    yield from_bytes("negative-shape", program(tensor_item(b"w", (-1, 2), (1, 1))), "damaged")
    yield from_bytes("negative-stride", program(tensor_item(b"w", (4, 4), (-4, 1), offset=12)), "damaged")
    yield from_bytes("negative-offset", program(tensor_item(b"w", (4,), (1,), offset=-1)), "damaged")
    yield from_bytes("many-axes", program(tensor_item(b"w", (1,) * 1000, (1,) * 1000)), "damaged")
    yield from_bytes("one-too-many", program(tensor_item(b"w", (17,), (1,))), "more bytes than its record")
    yield from_bytes("no-record", program(tensor_item(b"w", (1,), (1,), key=b"1")), "data/1, which is missing")
    yield from_bytes(
        "record-outside", program(tensor_item(b"w", (1,), (1,), key=b"../../etc/passwd")), "which is missing"
    )
    yield from_bytes(
        "many-views", program(*(tensor_item(b"w%d" % number, (100, 100), (0, 0)) for number in range(9))), "more than 4"
    )


def _nested(depth: int) -> dict[str, object]:
    return {"model": _nested(depth - 1)} if depth else dict(tiny())


def _with_bits(bits: bytes) -> bytes:
    """A tensor with `bits` as torch's properties."""
    plain = tensor_item(b"w", (1,), (1,))
    return plain.removesuffix(b"tR") + bits + b"tR"
