"""The parts of `make gpu` that need a GPU: `python benchmarks/gpu_parts.py PART [ARGUMENTS]` prints one JSON object.

The weights are random and in memory. All layers from the second on share one layer's weights, because speed does not
depend on their values.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor

import rwkvbatch
from rwkvbatch.bench.limits import Meter, Rates
from rwkvbatch.bench.measure import Figure, figure_of
from rwkvbatch.bench.verify import verify
from rwkvbatch.bench.workloads import Clock, Workload, decode, prompt, state_traffic, stored_bytes, timed
from rwkvbatch.model.base import Model, ModelSpec, RaggedBatch
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.model.network.rwkv7 import Network
from rwkvbatch.model.network.rwkv7_model import Rwkv7Model
from rwkvbatch.model.ops.reference import ReferenceOps
from rwkvbatch.model.strategy import DTYPES

HEAD_SIZE, VOCAB_SIZE = 64, 65536
ROWS = (1, 8, 32, 128, 320)
PROMPTS = (32, 1024)
"""Number of sequences and of tokens of each in the batch of prompts, as in published figures of other programs."""
ROUNDS = 3
VERIFIED_SHAPE = "4x1024"
NEIGHBOURS = (0, 1, 5, 31, 63)
"""Numbers of other sequences in a step, none of which may change a sequence's logits."""
FIXED_ROWS = 64


class RepeatedLayers(Mapping[str, Tensor]):
    """Random weights of a shape, whose layers from the second on share one layer's weights."""

    def __init__(
        self, num_layers: int, width: int, dtype: torch.dtype = torch.bfloat16, vocab_size: int = VOCAB_SIZE
    ) -> None:
        self.num_layers, self.width = num_layers, width
        self._tensors = random_tensors(min(2, num_layers), width, vocab_size, HEAD_SIZE, dtype=dtype)

    def __getitem__(self, name: str) -> Tensor:
        part, _, rest = name.partition(".")
        number, _, inner = rest.partition(".")
        if part == "blocks" and 1 < int(number) < self.num_layers:
            name = f"blocks.1.{inner}"
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        for name in self._tensors:
            if name.startswith("blocks.1."):
                yield from (f"blocks.{layer}.{name[len('blocks.1.') :]}" for layer in range(1, self.num_layers))
            else:
                yield name

    def __len__(self) -> int:
        return sum(1 for _ in self)


def model_of(tensors: RepeatedLayers, precision: str, *, graphs: bool = True, fixed_rows: int | None = None) -> Model:
    """The model on the GPU, in `fp32`, `fp16` or `bf16`."""
    from rwkvbatch.model.network.graphs import GraphedNetwork, cuda_capture
    from rwkvbatch.model.ops.cuda import CudaOps

    ops = CudaOps("cuda", DTYPES[precision], fixed_rows)  # pyright: ignore[reportArgumentType]
    network = Network.build(tensors, tensors.num_layers, ops)
    spec = spec_of(tensors, precision, "cuda")
    return Rwkv7Model(GraphedNetwork(network, cuda_capture() if graphs else None), ops, spec)


def reference_of(tensors: RepeatedLayers) -> Model:
    """The model with the reference operations, in fp32 on the CPU."""
    ops = ReferenceOps("cpu")
    return Rwkv7Model(Network.build(tensors, tensors.num_layers, ops), ops, spec_of(tensors, "fp32", "cpu"))


def spec_of(tensors: RepeatedLayers, dtype: str, device: str) -> ModelSpec:
    heads = tensors.width // HEAD_SIZE
    return ModelSpec(
        generation="7",
        num_layers=tensors.num_layers,
        width=tensors.width,
        num_heads=heads,
        head_size=HEAD_SIZE,
        vocab_size=tensors["emb.weight"].shape[0],
        num_parameters=sum(tensors[name].numel() for name in tensors),
        state_bytes=4 * tensors.num_layers * tensors.width * (2 + HEAD_SIZE),
        weights_sha256="",
        path=f"random-{tensors.num_layers}x{tensors.width}",
        dtype=dtype,
        backend="reference" if device == "cpu" else "cuda",
        device=device,
        bitwise=False,
    )


def weights_of(shape: str, dtype: torch.dtype = torch.bfloat16) -> RepeatedLayers:
    num_layers, width = map(int, shape.split("x"))
    return RepeatedLayers(num_layers, width, dtype)


def versions() -> dict[str, Any]:
    """Versions of software, and properties of the GPU."""
    values: dict[str, Any] = {
        "rwkvbatch": rwkvbatch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    try:
        import triton

        values["triton"] = triton.__version__
    except ImportError:
        values["triton"] = None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        values |= {
            "gpu": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "driver": _driver(),
        }
    return values


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return None


def verified(precision: str) -> dict[str, Any]:
    """`model verify` with CUDA graphs and without; ok if both are the same network as the reference."""
    tensors = weights_of(VERIFIED_SHAPE, DTYPES[precision])  # pyright: ignore[reportArgumentType]
    verifications: dict[str, Any] = {}
    for name, graphs in (("with graphs", True), ("without graphs", False)):
        verifications[name] = asdict(
            verify(partial(reference_of, tensors), partial(model_of, tensors, precision, graphs=graphs))
        )
    return {"ok": all(verification["same"] for verification in verifications.values()), **verifications}


def invariance(model: Model, counts: tuple[int, ...] = NEIGHBOURS) -> dict[str, Any]:
    """Whether a sequence's logits are bit-identical beside other sequences, in a prompt and four decode steps."""
    generator = np.random.default_rng(1)
    prompt_tokens = generator.integers(1, model.spec.vocab_size, 37).tolist()
    decoded_tokens = generator.integers(1, model.spec.vocab_size, 4).tolist()
    logits: list[list[Tensor]] = []  # by number of other sequences, then by step
    for num_others in counts:
        pool = model.make_pool(num_others + 1)
        for slot in range(num_others + 1):
            pool.clear(slot)
        neighbours = [generator.integers(1, model.spec.vocab_size, 1 + n % 7).tolist() for n in range(num_others)]
        steps = [[prompt_tokens, *neighbours], *([[token], *([[7]] * num_others)] for token in decoded_tokens)]
        slots = [num_others, *range(num_others)]
        logits.append([model.step(RaggedBatch.of(step, slots), pool)[0].cpu().clone() for step in steps])
    same = [all(map(torch.equal, logits[0], beside_others)) for beside_others in logits[1:]]
    return {"ok": all(same), "same_beside": dict(zip(map(str, counts[1:]), same, strict=True))}


def prompts(model: Model, sequences: int, length: int, clock: Clock, weight_bytes: float) -> Workload:
    """Prefill of several prompts in one step; the workload's size is the number of tokens of all prompts."""
    single = prompt(model, length)
    pool = model.make_pool(sequences)
    tokens = np.random.default_rng(0).integers(1, model.spec.vocab_size, (sequences, length)).tolist()

    def once() -> float:
        for slot in range(sequences):
            pool.clear(slot)
        return timed(clock, model.step, RaggedBatch.of(tokens, range(sequences)), pool)

    name = f"prompts, {sequences} x {length:,} tokens"
    memory_bytes = weight_bytes + state_traffic(model.spec, sequences)
    return Workload(name, "prompt", sequences * length, once, sequences * single.operations, memory_bytes)


def speed(
    model: Model,
    meter: Meter,
    rows: tuple[int, ...] = ROWS,
    prompt_tokens: int = 512,
    batch: tuple[int, int] = PROMPTS,
    rounds: int = ROUNDS,
) -> list[Figure]:
    """The figures of decode steps, a prompt and a batch of prompts, with their shares of the limit."""
    clock, weight_bytes = meter.clock, stored_bytes(model.spec)
    workloads = [decode(model, count, clock, weight_bytes) for count in rows]
    workloads.append(prompt(model, prompt_tokens, clock, weight_bytes))
    workloads.append(prompts(model, *batch, clock, weight_bytes))
    figures: list[Figure] = []
    for workload in workloads:
        for _ in range(4):  # compiles kernels and captures graphs
            workload.once()
        seconds, rates = list[float](), list[Rates]()
        for _ in range(rounds):
            if (limit_rates := meter.measure()) is not None:
                rates.append(limit_rates)
            seconds.append(median(workload.once() for _ in range(workload.repeats)))
        figures.append(figure_of(workload, seconds, (), rates))
    return figures


def benchmarked(shape: str, precision: str) -> dict[str, Any]:
    """The figures, limits and memory of a random model."""
    tensors = weights_of(shape)
    model = model_of(tensors, precision)
    del tensors
    weights_gb = torch.cuda.memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    figures = speed(model, meter := Meter.of(model))
    return {
        "ok": True,
        "figures": [asdict(figure) for figure in figures],
        "limits": asdict(limits) if (limits := meter.limits()) is not None else None,
        "memory": {"weights_gb": weights_gb, "peak_gb": torch.cuda.max_memory_allocated() / 1e9},
    }


def main(arguments: list[str]) -> None:
    with torch.no_grad():
        match arguments:
            case ["versions"]:
                result = versions()
            case ["verify", precision]:
                result = verified(precision)
            case ["invariance", precision]:
                result = invariance(model_of(weights_of(VERIFIED_SHAPE), precision, fixed_rows=FIXED_ROWS))
            case ["bench", shape, precision]:
                result = benchmarked(shape, precision)
            case _:
                raise SystemExit(f"unknown part: {' '.join(arguments)}")
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
