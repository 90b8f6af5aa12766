"""Decoding 32 sequences with the reference operations compared with the one stream of the `rwkv` package.

Both run alternately in one process on the same random checkpoint of 12 layers x 768; medians, and medians of ratios.

    python benchmarks/reference_against_package.py [--rows 32] [--rounds 5] [--shape 12x768]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from rwkvbatch.model.base import Model, RaggedBatch
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.model.load import load_model


def decode_speed(model: Model, rows: int, steps: int) -> float:
    """Tokens per second of `steps` decode steps of `rows` sequences."""
    pool = model.make_pool(rows)
    for slot in range(rows):
        pool.clear(slot)
    batch = RaggedBatch.of([[row + 1] for row in range(rows)], list(range(rows)))
    model.step(batch, pool)
    started_s = time.perf_counter()
    for _ in range(steps):
        model.step(batch, pool)
    return rows * steps / (time.perf_counter() - started_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", default="12x768")
    arguments = parser.parse_args()
    layers, width = (int(part) for part in arguments.shape.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.pth"
        torch.save(random_tensors(layers, width, dtype=torch.float32), path)
        ours = load_model(path, "cpu fp32", "reference")
        package = load_model(path, "cpu fp32", "upstream")
        speeds = [
            (decode_speed(ours, arguments.rows, 4), decode_speed(package, 1, 12)) for _ in range(arguments.rounds)
        ]
    ours_median = statistics.median(speed for speed, _ in speeds)
    package_median = statistics.median(speed for _, speed in speeds)
    ratios = [speed / package_speed for speed, package_speed in speeds]
    print(f"reference operations, {arguments.rows} rows: {ours_median:8.1f} tokens/s")
    print(f"rwkv package, one stream:      {package_median:8.1f} tokens/s")
    print(f"ratio: median {statistics.median(ratios):.1f}, {min(ratios):.1f} to {max(ratios):.1f}")


if __name__ == "__main__":
    main()
