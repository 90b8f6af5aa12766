"""Compiles every kernel for a GPU that this machine may lack: `python -m tests.model.ops.compile_kernels 80`.

Run it without TRITON_INTERPRET. It prints a JSON object: bytes of shared memory by kernel.
"""

from __future__ import annotations

import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rwkvbatch.model.ops.triton import chunks, few, sample, scan

WIDTH, HEAD_SIZE, VOCAB_SIZE = 2048, 64, 65536
HEADS = {"HEADS": WIDTH // HEAD_SIZE, "SIZE": HEAD_SIZE, "BLOCK": HEAD_SIZE}
IN_CHUNKS = {**HEADS, "CHUNK": chunks.CHUNK}
NORM = {"WIDTH": WIDTH, "BLOCK": WIDTH, "EPS": 1e-5}
EPILOGUE = {"WIDTH": WIDTH, "BLOCK": few.BLOCK}
NO_INPUTS = {"bias_ptr": None, "start_ptr": None, "target_ptr": None, "BIASED": False, "COMBINE": "none"}
VOCABULARY = {"VOCAB": VOCAB_SIZE, "BLOCK": sample.MAX_BLOCK}

KERNELS = [
    (scan._gather_norm, NORM, {"num_warps": 4}),
    (scan._shift_mix, {**NORM, "MIXES": 6}, {"num_warps": 4}),
    (few._epilogue, {**EPILOGUE, "ACTIVATION": "sigmoid", "BIASED": True, "COMBINE": "blend"}, {"num_warps": 4}),
    (few._epilogue, {**EPILOGUE, **NO_INPUTS, "ACTIVATION": "tanh"}, {"num_warps": 4}),
    (
        few._epilogue,
        {**EPILOGUE, "target_ptr": None, "ACTIVATION": "none", "BIASED": True, "COMBINE": "times"},
        {"num_warps": 4},
    ),
    (few._token_matrix, {"SIZE": 32, "BLOCK": 32, "BLOCK_IN": 32}, {"num_warps": 4}),
    (scan._scan, HEADS, {"num_warps": 8}),
    (chunks._prepare, IN_CHUNKS, {"num_warps": 4, "maxnreg": chunks.MAX_REGISTERS}),
    (chunks._pass_on, {**IN_CHUNKS, "BLOCK_VALUES": chunks.BLOCK_VALUES}, {"num_warps": 4}),
    (chunks._finish, IN_CHUNKS, {"num_warps": 4}),
    (sample._sample, VOCABULARY, {"num_warps": 8}),
    (sample._look_up, VOCABULARY, {"num_warps": 8}),
]
"""Kernels, with the constants and options of their launches."""

INTEGERS = (
    "first_slots_ptr",
    "last_rows_ptr",
    "starts_ptr",
    "stops_ptr",
    "slots_ptr",
    "firsts_ptr",
    "tokens_ptr",
    "index_ptr",
)
LONG_INTEGERS = (
    *("top_k_ptr", "penalty_ids_ptr", "penalty_starts_ptr", "noise_keys_ptr", "turns_ptr", "steps_ptr"),
    *("target_ids_ptr",),
)
HALVES = ("table_ptr", "offset_ptr", "y_ptr", "r_ptr", "k_ptr", "v_ptr", "g_ptr", "out_ptr")


def kind_of(argument: str) -> str:
    """Triton's name for the type of a kernel's argument."""
    if argument in ("num_rows", "size"):
        return "i32"
    if argument in INTEGERS or argument == "best_ptr":
        return "*i32"
    if argument in LONG_INTEGERS:
        return "*i64"
    if argument == "orders_ptr":
        return "*u8"
    if argument == "min_p_cutoffs_ptr":
        return "*fp64"
    return "*fp16" if argument in HALVES else "*fp32"


GROUP_TYPES = {
    "xs": ("*fp16", "*fp16", "*fp16"),
    "weights": ("*fp16", "*fp16", "*fp16"),
    "biases": (None, "*fp32", "*fp32"),
    "starts": (None, "*fp16", "*fp16"),
    "targets": (None, "*fp16", None),
    "outs": ("*fp16", "*fp32", "*fp16"),
    "num_rows": "i32",
}
GROUP_CONSTANTS = {
    "TIMES": (False, False, True),
    "FIRST_PROGRAMS": (0, 6, 134, 262),
    "INS": (WIDTH, 96, 32),
    "OUTS": (96, WIDTH, WIDTH),
    "BLOCKS_IN": (256, 128, 32),
    "ACTIVATIONS": ("tanh", "sigmoid", "none"),
    "COUNT": 3,
    "BLOCK_OUT": few.BLOCK_OUT,
    "WIDEN": False,
}
"""A group of three layers: the first of a low-rank pair, the second of one with bias and blend, and DeepEmbed's."""


def compile_group(target: GPUTarget) -> int:
    names = few._linears.arg_names
    constants = {(names.index(name),): value for name, value in GROUP_CONSTANTS.items()}
    signature, attributes = dict.fromkeys(GROUP_CONSTANTS, "constexpr"), {}
    for name, types in GROUP_TYPES.items():
        signature[name] = types
        if name == "num_rows":
            continue
        signature[name] = tuple(kind or "constexpr" for kind in types)
        for index, kind in enumerate(types):
            if kind is None:
                constants[names.index(name), index] = None
            else:
                attributes[names.index(name), index] = [["tt.divisibility", 16]]
    source = ASTSource(few._linears, {name: signature[name] for name in names}, constants, attributes)
    return triton.compile(source, target=target, options={"num_warps": 4, "num_stages": 4}).metadata.shared


def compile_all(capability: int) -> dict[str, int]:
    target = GPUTarget("cuda", capability, 32)
    shared = {"_linears": compile_group(target)}
    for kernel, constants, options in KERNELS:
        names = kernel.arg_names
        signature = {name: "constexpr" if name in constants else kind_of(name) for name in names}
        source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
        compiled = triton.compile(source, target=target, options=options)
        assert compiled.asm["cubin"]
        shared[kernel.__name__] = compiled.metadata.shared
    return shared


if __name__ == "__main__":
    print(json.dumps(compile_all(int(sys.argv[1]))))  # noqa: T201
