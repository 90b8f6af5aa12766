"""Tries an installed wheel: the native kernels with numpy alone, and the bundled model where torch is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

import rwkvbatch


def try_kernels() -> str:
    """Linear layers of small integers, whose products are exact, on each instruction set to be had; their names."""
    from rwkvbatch import _native

    source = np.random.default_rng(1)
    weight = source.integers(-8, 9, (80, 96)).astype(np.float32)
    found: list[str] = []
    for isa in (
        "auto",
        "avx512amx",
        "avx512vnni",
        "avx512",
        "avxvnni",
        "avx2",
        "neoni8mm",
        "neondot",
        "neon",
        "portable",
    ):
        try:
            context = _native.Context(2, isa)
        except ValueError:
            continue
        found.append(context.isa)
        layers = [
            context.linear_layer(weight, "fp32", None, "none", False),
            context.linear_layer(weight.astype(np.float16), "fp16", None, "none", False),
        ]
        for rows in (1, 3, 8, 33):
            x = source.integers(-8, 9, (rows, 96)).astype(np.float32)
            for layer in layers:
                (product,) = context.linears([(context.array(x), layer, None, None, None)])
                # As integers, without a BLAS library.
                expected = x.astype(np.int64) @ weight.T.astype(np.int64)
                assert np.array_equal(product.numpy(), expected), f"{context.isa} computes something else"
    return ", ".join(dict.fromkeys(found))


def try_model() -> str:
    """A reply of the bundled model."""
    from rwkvbatch import LLM, SamplingParams

    llm = LLM()
    assert llm.model.spec.backend == "cpu", "the wheel has no native kernels"
    reply = llm.chat([{"role": "user", "content": "My name is Ada."}], SamplingParams(temperature=0, max_tokens=32))
    assert "Ada" in reply.text, reply.text
    return reply.text


if __name__ == "__main__":
    print("installed in", Path(rwkvbatch.__file__).parent)
    print("kernels:", try_kernels())
    if importlib.util.find_spec("torch") is None:
        print("the model was not tried: torch is not installed")
    else:
        print("the model:", try_model())
