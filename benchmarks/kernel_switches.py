"""Decode steps with and without one technique of the kernels.

`zeros` skips the weights whose inputs are zero, `prefetch` prefetches the weights of up to three rows by instructions.
Both kinds of steps run alternately in one process on the same random checkpoint, in which `--sparsity` is the share of
the inputs of `ffn.value` that are zero. First their logits are compared bit for bit. Prints for each number of rows the
bytes not read, the median times, and the median, smallest and largest ratio of the rounds.

    python benchmarks/kernel_switches.py zeros [--shape 24x2048] [--sparsity 0.75] [--strategy "cpu bf16"]
        [--rows 1 2 3] [--threads 2] [--rounds 15] [--cpu-time]
    python benchmarks/kernel_switches.py prefetch --sparsity 0 --shape 12x768
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from rwkvbatch.bench.measure import write_random
from rwkvbatch.bench.workloads import native_ops
from rwkvbatch.model.base import FloatArray, Model, RaggedBatch
from rwkvbatch.model.load import load_model
from rwkvbatch.model.ops.cpu import CpuOps

Clock = Callable[[], float]
Switch = Callable[[bool], None]

STEPS = 4
"""Timed steps of one measurement, of which the fastest counts; one step before them is not timed."""


class Steps:
    """Decode steps of random tokens over a pool of states."""

    def __init__(self, model: Model, rows: int) -> None:
        self._model, self._pool, self._rows = model, model.make_pool(rows), rows
        self.restart()

    def restart(self) -> None:
        self._tokens = np.random.default_rng(self._rows)
        for slot in range(self._rows):
            self._pool.clear(slot)

    def seconds(self, clock: Clock) -> float:
        tokens = self._tokens.integers(1, self._model.spec.vocab_size, self._rows)
        batch = RaggedBatch.of([[int(token)] for token in tokens], range(self._rows))
        started_s = clock()
        self._logits = self._model.step(batch, self._pool)
        return clock() - started_s

    def logits(self) -> FloatArray:
        """Logits of three steps from the empty state."""
        self.restart()
        logits = []
        for _ in range(3):
            self.seconds(time.perf_counter)
            logits.append(self._logits.numpy().copy())
        return np.concatenate(logits)


def fastest_step_s(switch: Switch, steps: Steps, clock: Clock, on: bool) -> float:
    """Seconds of a step with or without the technique."""
    switch(on)
    steps.seconds(clock)
    return min(steps.seconds(clock) for _ in range(STEPS))


def measure(model: Model, ops: CpuOps, switch: Switch, rows: int, rounds: int, clock: Clock) -> str:
    """One line of the table.

    Raises:
        AssertionError: logits differ.
    """
    steps = Steps(model, rows)
    switch(False)
    expected = steps.logits()
    switch(True)
    assert np.array_equal(steps.logits().view(np.int32), expected.view(np.int32)), "logits differ"
    before = ops.native.skipped_bytes
    steps.seconds(clock)
    skipped = ops.native.skipped_bytes - before
    without_s, with_s, ratios = [], [], []
    for _ in range(rounds):
        without_s.append(fastest_step_s(switch, steps, clock, on=False))
        with_s.append(fastest_step_s(switch, steps, clock, on=True))
        ratios.append(without_s[-1] / with_s[-1])
    return (
        f"{rows} row{'s' if rows > 1 else ' '}  skipped {skipped / 1e6:,.0f} of {ops.step_bytes / 1e6:,.0f} MB  "
        f"without {median(without_s) * 1e3:.2f} ms, with {median(with_s) * 1e3:.2f} ms, "
        f"{median(ratios):.3f} times ({min(ratios):.3f} to {max(ratios):.3f})"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("technique", choices=("zeros", "prefetch"))
    parser.add_argument("--shape", default="24x2048")
    parser.add_argument("--sparsity", type=float, default=0.75)
    parser.add_argument("--strategy", default="cpu bf16")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cpu-time", action="store_true", help="processor time of one thread, on a busy machine")
    arguments = parser.parse_args()
    clock = time.thread_time if arguments.cpu_time else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        load = partial(load_model, strategy=arguments.strategy, threads=1 if arguments.cpu_time else arguments.threads)
        model = load(write_random(arguments.shape, Path(folder), arguments.sparsity))
    ops = native_ops(model)
    assert ops is not None, "only the native operations have these techniques"
    switch = ops.native.set_sparse if arguments.technique == "zeros" else ops.native.set_prefetch
    threads = f"{ops.threads} thread{'s' if ops.threads > 1 else ''}"
    about = f"{arguments.shape}, {arguments.sparsity:.0%} zeros, {arguments.strategy}, {ops.isa}, {threads}"
    print(f"{arguments.technique}, {about}")
    for rows in arguments.rows:
        print(measure(model, ops, switch, rows, arguments.rounds, clock), flush=True)


if __name__ == "__main__":
    main()
