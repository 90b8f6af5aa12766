"""Time and memory of `rwkvbatch compare` for 100,000 rows: two runs of 50,000 turns.

Rows have the usual length: replies of about 100 tokens, with their token ids, a reference and two checks. The
comparison runs in its own process, so that the peak memory is that of the command.

    python benchmarks/compare_speed.py [--rows 100000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from zlib import crc32

import numpy as np

NUM_REPEATS, NUM_TURNS = 5, 4
WORDS = tuple(f"word{i}" for i in range(5000))


def write_run(directory: Path, num_rows: int, seed: int) -> int:
    """A run directory with `num_rows` turns; returns the size of its results in bytes."""
    rng = np.random.default_rng(seed)
    directory.mkdir()
    num_conversations = max(2, num_rows // (NUM_REPEATS * NUM_TURNS))
    identity = {"script": {"sha256": "00"}, "seed": seed, "cells": {"base": {"history": "own"}}}
    (directory / "manifest.json").write_text(json.dumps({"format": 1, "identity": identity, "about": {}}))
    with (directory / "results.jsonl").open("wb") as file:
        for number in range(num_conversations):
            difficulty = rng.normal()
            for repeat in range(NUM_REPEATS):
                for turn in range(NUM_TURNS):
                    file.write(encoded_row(number, repeat, turn, difficulty, rng))
    return (directory / "results.jsonl").stat().st_size


def encoded_row(number: int, repeat: int, turn: int, difficulty: float, rng: np.random.Generator) -> bytes:
    length = int(rng.integers(60, 140))
    ids = np.minimum(rng.zipf(1.2, length), len(WORDS) - 1).tolist()  # word frequencies follow Zipf's law
    checks = [
        {"kind": "contains", "expected": "word7", "passed": bool(score), "score": score, "weight": 1.0, "detail": None}
        for score in (rng.random(2) < 0.6).astype(float).tolist()
    ]
    row = {
        "conversation": f"conversation-{number}", "cell": "base", "repeat": repeat, "turn": turn, "seed": 0,
        "tags": ["even" if number % 2 else "odd"], "prompt": f"Question {turn} of conversation {number}?",
        "reply": " ".join(WORDS[i] for i in ids), "reply_ids": ids, "finish_reason": "stop", "stopped_by": "\n\n",
        "tokens": {"prompt": 200 * (turn + 1), "reply": length}, "logprob": {"mean": -0.5, "sum": -50.0},
        "reference": {"text": "a reference", "nll": float(2 + difficulty + rng.normal()), "matched": 0.5, "tokens": 9},
        "checks": checks, "error": None,
        "timing": {"queued_s": 0.0, "prefill_s": 0.1, "first_token_s": 0.1, "total_s": 1.0, "tokens_per_s": 99.0,
                   "cached_tokens": 0},
    }  # fmt: skip
    body = json.dumps(row, separators=(",", ":")).encode()
    return body[:-1] + b',"crc":"%08x"}\n' % crc32(body)


def measure(arguments: list[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak resident memory in MiB of one `rwkvbatch` process."""
    started_s = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "rwkvbatch", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - started_s
    if status != 0:
        raise SystemExit(f"rwkvbatch {' '.join(arguments)} ended with status {status}")
    return wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [Path(folder) / name for name in ("a", "b")]
        size = sum(write_run(run, arguments.rows // 2, seed) for seed, run in enumerate(runs))
        print(f"{arguments.rows} rows in two runs, {size / 2**20:.0f} MiB of results")
        for output in ("table", "html"):
            command = ["compare", *map(str, runs), "--quiet", "--format", output]
            measurements = [measure(command) for _ in range(arguments.rounds)]
            wall_s, cpu_s, memory_mib = zip(*measurements, strict=True)
            print(
                f"{output}: median {statistics.median(wall_s):.1f} s, {statistics.median(cpu_s):.1f} s of "
                f"processor time (of {len(measurements)}), peak {max(memory_mib):.0f} MiB"
            )


if __name__ == "__main__":
    main()
