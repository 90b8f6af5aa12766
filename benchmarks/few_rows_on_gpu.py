"""Decode steps of 1 to 16 rows on a GPU with the kernels for few rows and with cuBLAS, alternately.

    python benchmarks/few_rows_on_gpu.py [LAYERSxWIDTH] [bf16|fp16]      (24x2048 bf16 when not given)

Random weights, decode steps as CUDA graphs. A row of the table: milliseconds per step of both (medians over the rounds,
each of which is a median of several steps), the share of the step that reading the weights once would take at the
bandwidth of a copy measured in the same round, and the ratio. Above 1 the kernels for few rows are faster.
Needs an NVIDIA GPU; ends with exit code 2 without one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch

from rwkvbatch.bench.limits import best_rate
from rwkvbatch.bench.workloads import device_clock
from rwkvbatch.model.base import RaggedBatch, fp32_sums
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.model.network.rwkv7 import Network

ROWS = (1, 2, 4, 8, 16)
ROUNDS = 9
STEPS = 15
HEAD_SIZE, VOCAB_SIZE = 64, 65536
COPIED_BYTES = 512 << 20
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def main() -> int:
    if not torch.cuda.is_available() or torch.version.hip is not None:
        print("this benchmark needs an NVIDIA GPU, and torch finds none", file=sys.stderr)
        return 2
    shape, precision = (*sys.argv[1:], *("24x2048", "bf16")[len(sys.argv) - 1 :])
    num_layers, width = (int(part) for part in shape.split("x"))
    with torch.no_grad(), fp32_sums("cuda"):
        measure(num_layers, width, DTYPES[precision])
    return 0


def measure(num_layers: int, width: int, dtype: torch.dtype) -> None:
    from rwkvbatch.model.ops.triton import few

    tensors = random_tensors(num_layers, width, VOCAB_SIZE, HEAD_SIZE, dtype=dtype)
    # A step reads all weights but the embedding, of which it reads one row per token.
    weight_bytes = sum(
        tensor.numel() * tensor.element_size() for name, tensor in tensors.items() if name != "emb.weight"
    )
    clock = device_clock("cuda")
    source = torch.zeros(COPIED_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    few_rows, cublas = (steppers(tensors, num_layers, width, dtype, rows) for rows in (few.MAX_ROWS, 0))
    variants = {"few.py": few_rows, "cuBLAS": cublas}

    print(f"{torch.cuda.get_device_name()}, {num_layers}x{width} {dtype}, {weight_bytes / 1e9:.2f} GB of weights")
    print(f"{'rows':>4}{'few.py ms':>12}{'of copy':>9}{'cuBLAS ms':>12}{'of copy':>9}{'ratio':>8}")
    for rows in ROWS:
        steps = {name: make(rows) for name, make in variants.items()}
        for step in steps.values():
            for _ in range(5):  # compiles kernels and captures graphs
                step()
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
        for _ in range(ROUNDS):
            bytes_per_s = best_rate(lambda: target.copy_(source), 2.0 * COPIED_BYTES, clock)
            for name, step in steps.items():
                seconds = timed(step)
                found[name].append((seconds, weight_bytes / bytes_per_s / seconds))
        cells, median_s = "", []
        for measured in found.values():
            median_s.append(median(seconds for seconds, _ in measured))
            cells += f"{1e3 * median_s[-1]:>12.3f}{median(share for _, share in measured):>9.0%}"
        print(f"{rows:>4}{cells}{median_s[1] / median_s[0]:>8.2f}", flush=True)


def steppers(
    tensors: dict[str, torch.Tensor], num_layers: int, width: int, dtype: torch.dtype, few_rows: int
) -> Callable[[int], Callable[[], object]]:
    """A function that makes a decode step of a given number of rows, over its own copy of the weights."""
    from rwkvbatch.model.network.graphs import GraphedNetwork, cuda_capture
    from rwkvbatch.model.ops.cuda import CudaOps

    ops = CudaOps("cuda", dtype, few_rows=few_rows)
    network = GraphedNetwork(Network.build(tensors, num_layers, ops), cuda_capture())

    def make(rows: int) -> Callable[[], object]:
        pool = ops.make_pool(rows, num_layers, width // HEAD_SIZE, HEAD_SIZE)
        for slot in range(rows):
            pool.clear(slot)
        tokens = np.random.default_rng(rows).integers(0, VOCAB_SIZE, rows)
        batch = RaggedBatch.of([[int(token)] for token in tokens], range(rows))
        return lambda: network.step(ops, batch, pool)

    return make


def timed(step: Callable[[], object]) -> float:
    """Seconds per step, the median of `STEPS` synchronised steps."""
    seconds: list[float] = []
    for _ in range(STEPS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


if __name__ == "__main__":
    sys.exit(main())
