"""lm-evaluation-harness with the model `rwkvbatch` compared with a plain loop over the `rwkv` package, alternately.

python benchmarks/lm_eval_against_loop.py [LAYERSxWIDTH] [QUESTIONS] [ROUNDS]

Needs the extra `lm-eval`. Multiple choice with four options after 5 examples: the request type of most of its tasks.
The ratio is printed in wall time and in CPU seconds of all threads, which are less affected by other programs
(with OMP_NUM_THREADS=1, so that waiting threads do not count).
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]

from rwkvbatch.bench.measure import write_random
from rwkvbatch.integrations.harness import RwkvBatchLM
from rwkvbatch.model.load import load_model


def requests(count: int) -> list[Instance]:
    """The requests of `count` questions with four options each, after the same five examples."""
    generator = random.Random(1)
    words = [
        "stone",
        "river",
        "light",
        "cloud",
        "engine",
        "paper",
        "winter",
        "market",
        "garden",
        "signal",
        "number",
        "letter",
    ]
    texts = [f"Question: {' '.join(generator.choices(words, k=20))}?\nAnswer:" for _ in range(count + 5)]
    shots = "\n\n".join(f"{text} {generator.choice(words)}" for text in texts[:5])
    pairs = [(f"{shots}\n\n{text}", f" {word}") for text in texts[5:] for word in generator.sample(words, 4)]
    return [Instance("loglikelihood", {}, pair, index, ("speed", index, 1)) for index, pair in enumerate(pairs)]


def loop(model: Any, lm: RwkvBatchLM, requested: Sequence[Instance]) -> list[tuple[float, bool]]:
    """Each request by itself: the context in one call, then token by token."""
    found: list[tuple[float, bool]] = []
    for request in requested:
        context, target = lm._encode_pair(*request.args)
        logits, state = model.forward([[0, *context]], None)
        total, greedy = 0.0, True
        for token in target:
            logprobs = torch.log_softmax(logits[0].float(), dim=-1)
            total += float(logprobs[token])
            greedy &= int(torch.argmax(logits[0])) == token
            if token is not target[-1]:
                logits, state = model.forward([[token]], state)
        found.append((total, greedy))
    return found


def timed(work: Callable[[], list[tuple[float, bool]]]) -> tuple[list[tuple[float, bool]], float, float]:
    """The scores that `work` returns, its wall time and its CPU time in seconds."""
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    scores = work()
    return scores, time.perf_counter() - start_s, time.process_time() - start_cpu_s


def main(shape: str = "12x768", count: str = "20", rounds: str = "2") -> None:
    requested = requests(int(count))
    with tempfile.TemporaryDirectory() as folder:
        path = str(write_random(shape, Path(folder)))
        package = load_model(path, "cpu fp32", "upstream")
        for _ in range(int(rounds)):
            lm = RwkvBatchLM(path)
            scores, run_s, run_cpu_s = timed(lambda lm=lm: lm.loglikelihood(requested, disable_tqdm=True))
            loop_scores, loop_s, loop_cpu_s = timed(lambda lm=lm: loop(package, lm, requested))
            largest = max(abs(score[0] - expected[0]) for score, expected in zip(scores, loop_scores, strict=True))
            print(
                f"{shape}, {len(requested)} requests: rwkvbatch {run_s:.1f} s, loop {loop_s:.1f} s, ratio "
                f"{loop_s / run_s:.1f}; CPU {run_cpu_s:.1f} s and {loop_cpu_s:.1f} s, "
                f"ratio {loop_cpu_s / run_cpu_s:.1f}; "
                f"largest difference {largest:.2g} nats",
                flush=True,
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
