"""`rwkvbatch run` compared with a plain loop over the `rwkv` package: 64 conversations x 3 turns x 64 tokens.

The loop is that of a user without this project: one conversation at a time, its state kept from turn to turn
(histories are not read again), the package's `sample_logits`, API_DEMO_CHAT's penalties. It is
timed on some of the conversations, because all take long, alternately with the run. Medians of tokens per second, and
of their ratios.

    python benchmarks/run_against_loop.py [--shape 12x768] [--conversations 64] [--loop 2] [--rounds 3]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jsonlines
import numpy as np
import torch
from rwkv.utils import PIPELINE

import rwkvbatch
from rwkvbatch.config import Sampling
from rwkvbatch.model.base import Model, State
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.model.load import load_model
from rwkvbatch.prompt.tokenizer import Tokenizer, world_tokenizer

NUM_TURNS = 3
MAX_TOKENS = 64
SAMPLING = Sampling(temperature=1.0, top_p=0.3, presence_penalty=0.5, frequency_penalty=0.5, banned_token_ids=(0,))


def questions(number: int) -> list[str]:
    return [f"Question {turn} of conversation {number}: what is {number} plus {turn}?" for turn in range(NUM_TURNS)]


def write_script(path: Path, count: int) -> None:
    with jsonlines.open(path, "w") as writer:
        for number in range(count):
            messages = [{"role": "user", "content": text} for text in questions(number)]
            writer.write({"id": f"c{number}", "messages": messages})


def plain_loop(package: Model, tokenizer: Tokenizer, count: int) -> float:
    """Reply tokens per second."""
    sample = PIPELINE.sample_logits
    num_tokens, started_s = 0, time.perf_counter()
    for number in range(count):
        state: State | None = None
        for text in questions(number):
            logits, state = package.forward([tokenizer.encode(f"User: {text}\n\nAssistant:")], state)
            occurrence: dict[int, float] = {}
            for _ in range(MAX_TOKENS):
                row = logits[0].clone()
                for token, weight in occurrence.items():
                    row[token] -= SAMPLING.presence_penalty + weight * SAMPLING.frequency_penalty
                row[0] -= 1e10
                token = sample(None, row, temperature=SAMPLING.temperature, top_p=SAMPLING.top_p)  # type: ignore[arg-type]
                for seen_token in occurrence:
                    occurrence[seen_token] *= SAMPLING.penalty_decay
                occurrence[token] = 1 + occurrence.get(token, 0)
                logits, state = package.forward([[token]], state)
                num_tokens += 1
    return num_tokens / (time.perf_counter() - started_s)


def replay(model: Model, script: Path) -> float:
    """Reply tokens per second of the whole run, including prompts and durable rows."""
    with tempfile.TemporaryDirectory() as folder:
        started_s = time.perf_counter()
        result = rwkvbatch.run(
            script,
            model=model,
            out=Path(folder) / "run",
            max_tokens=MAX_TOKENS,
            batch_size=64,
            **SAMPLING.model_dump(exclude_defaults=True),
        )
        seconds = time.perf_counter() - started_s
        return sum(row.tokens.reply for row in result.rows()) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="12x768")
    parser.add_argument("--conversations", type=int, default=64)
    parser.add_argument("--loop", type=int, default=2, help="conversations of the plain loop")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backend", default="auto")
    arguments = parser.parse_args()
    layers, width = (int(part) for part in arguments.shape.split("x"))
    np.random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path, script = Path(folder) / "random.pth", Path(folder) / "script.jsonl"
        torch.save(random_tensors(layers, width), path)
        write_script(script, arguments.conversations)
        ours = load_model(path, backend=arguments.backend)
        package = load_model(path, "cpu fp32", "upstream")
        tokenizer = world_tokenizer(ours.spec.vocab_size)
        speeds: dict[str, list[float]] = {"run": [], "loop": []}
        measurements: dict[str, Callable[[], float]] = {
            "run": lambda: replay(ours, script),
            "loop": lambda: plain_loop(package, tokenizer, arguments.loop),
        }
        for _ in range(arguments.rounds):
            for name, measure in measurements.items():
                speeds[name].append(measure())
    ratios = [run_speed / loop_speed for run_speed, loop_speed in zip(speeds["run"], speeds["loop"], strict=True)]
    print(f"rwkvbatch run ({ours.spec.backend}): {statistics.median(speeds['run']):8.1f} reply tokens/s")
    print(f"plain loop over the package: {statistics.median(speeds['loop']):8.1f} reply tokens/s")
    print(f"ratio: median {statistics.median(ratios):.1f}, {min(ratios):.1f} to {max(ratios):.1f}")


if __name__ == "__main__":
    main()
