"""`Model.forward`, as a library calls it, compared with `Model.step` over a pool and `forward` of the `rwkv` package.

All three run alternately in one process on the same random checkpoint; medians, and medians of the rounds' ratios. The
package has no batches: one token of its one stream is compared with every number of rows. It reads its prompt in
chunks of 128 tokens.

    python benchmarks/forward_against_package.py [--shape 12x768] [--rows 1 32 64] [--rounds 7]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from rwkvbatch.bench.measure import write_random
from rwkvbatch.model.base import Model, RaggedBatch, State
from rwkvbatch.model.load import load_model

PROMPT_TOKENS, CHUNK_TOKENS = 512, 128
TOKEN = 5


def seconds(clock: Callable[[], float], work: Callable[[], object], repeats: int) -> float:
    """Seconds of one call, the mean of `repeats`."""
    started_s = clock()
    for _ in range(repeats):
        work()
    return (clock() - started_s) / repeats


class Forward:
    """The loop of a user of the library: every call gets the state that the last one returned."""

    def __init__(self, model: Model, rows: int) -> None:
        self._model, self._rows = model, rows
        self._state: State | None = None

    def __call__(self) -> None:
        _, self._state = self._model.forward([[TOKEN]] * self._rows, self._state)


class Step:
    """The same decoding by steps over a pool of states, which are updated in place."""

    def __init__(self, model: Model, rows: int) -> None:
        self._model, self._pool = model, model.make_pool(rows)
        for slot in range(rows):
            self._pool.clear(slot)
        self._batch = RaggedBatch.of([[TOKEN]] * rows, range(rows))

    def __call__(self) -> None:
        self._model.step(self._batch, self._pool)


class Package:
    """Decoding token by token with the package, and reading a prompt with it."""

    def __init__(self, path: Path) -> None:
        from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
        from rwkvbatch.model.upstream import load_package_model

        with open_checkpoint(path) as checkpoint:
            self._model = load_package_model(checkpoint, "cpu fp32")
        self._state = self._model.generate_zero_state()

    @torch.no_grad()
    def __call__(self) -> None:
        _, self._state = self._model.forward([TOKEN], self._state)

    @torch.no_grad()
    def prompt(self) -> None:
        state = self._model.generate_zero_state()
        for start in range(0, PROMPT_TOKENS, CHUNK_TOKENS):
            _, state = self._model.forward(list(range(start + 1, start + CHUNK_TOKENS + 1)), state)


def report(name: str, rounds: list[tuple[float, ...]], tokens: int, others: list[str], package_tokens: int) -> None:
    """One line: tokens per second of `forward`, and its ratio to each of the others."""
    tokens_per_s = tokens / median(each[0] for each in rounds)
    line = f"{name:22} forward {tokens_per_s:8.1f} tokens/s"
    for index, other in enumerate(others, start=1):
        count = tokens if other == "step" else package_tokens
        ratios = [(tokens / each[0]) / (count / each[index]) for each in rounds]
        line += f"; {median(ratios):5.2f} of {other} ({min(ratios):.2f} to {max(ratios):.2f})"
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="12x768")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32, 64])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--without-package", action="store_true")
    parser.add_argument("--cpu-time", action="store_true", help="processor time of one thread: for a busy machine")
    arguments = parser.parse_args()
    clock = time.thread_time if arguments.cpu_time else time.perf_counter
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    with tempfile.TemporaryDirectory() as folder:
        path = write_random(arguments.shape, Path(folder))
        if arguments.cpu_time:
            torch.set_num_threads(1)
        model = load_model(path, threads=1 if arguments.cpu_time else None)
        package = None if arguments.without_package else Package(path)
        others = ["step", *(["the package"] if package else [])]
        for rows in arguments.rows:
            variants: list[Callable[[], None]] = [
                Forward(model, rows),
                Step(model, rows),
                *([package] if package else []),
            ]
            repeats = max(1, 16 // rows)
            for work in variants:
                work()
                work()
            rounds = [tuple(seconds(clock, work, repeats) for work in variants) for _ in range(arguments.rounds)]
            report(f"decode, {rows} row{'s' if rows > 1 else ''}", rounds, rows, others, 1)
        tokens = list(range(1, PROMPT_TOKENS + 1))
        prompts: list[Callable[[], object]] = [lambda: model.forward([tokens])]
        if package is not None:
            prompts.append(package.prompt)
        for work in prompts:
            work()
        rounds = [tuple(seconds(clock, work, 1) for work in prompts) for _ in range(arguments.rounds)]
        report(f"prompt, {PROMPT_TOKENS} tokens", rounds, PROMPT_TOKENS, others[1:], PROMPT_TOKENS)


if __name__ == "__main__":
    main()
