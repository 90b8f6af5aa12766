"""lm-evaluation-harness with the model `rwkvbatch` against a plain loop over the `rwkv` package, in turns.

python benchmarks/lm_eval_against_loop.py [LAYERSxWIDTH] [QUESTIONS] [TURNS]

Needs the extra `lm-eval`. Multiple choice with four options after 5 examples: the request type of most of its tasks.
The ratio is printed by the clock and in CPU seconds of all threads, which other programs on the machine disturb less
(with OMP_NUM_THREADS=1, so that waiting threads do not count).
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]

from rwkvbatch.bench.measure import write_random
from rwkvbatch.integrations.harness import RwkvBatchLM
from rwkvbatch.model.load import load_model


def requests(count: int) -> list[Instance]:
    """The requests of `count` questions with four options each, after the same five examples."""
    choose = random.Random(1)
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
    texts = [f"Question: {' '.join(choose.choices(words, k=20))}?\nAnswer:" for _ in range(count + 5)]
    shots = "\n\n".join(f"{text} {choose.choice(words)}" for text in texts[:5])
    pairs = [(f"{shots}\n\n{text}", f" {word}") for text in texts[5:] for word in choose.sample(words, 4)]
    return [Instance("loglikelihood", {}, pair, at, ("speed", at, 1)) for at, pair in enumerate(pairs)]


def loop(model: Any, lm: RwkvBatchLM, asked: Sequence[Instance]) -> list[tuple[float, bool]]:
    """Each request on its own: the context in one call, then token after token."""
    found: list[tuple[float, bool]] = []
    for request in asked:
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


def main(shape: str = "12x768", count: str = "20", turns: str = "2") -> None:
    asked = requests(int(count))
    with tempfile.TemporaryDirectory() as folder:
        path = str(write_random(shape, Path(folder)))
        package = load_model(path, "cpu fp32", "upstream")
        for _ in range(int(turns)):
            lm = RwkvBatchLM(path)
            begin, begin_cpu = time.perf_counter(), time.process_time()
            ours = lm.loglikelihood(asked, disable_tqdm=True)
            middle, middle_cpu = time.perf_counter(), time.process_time()
            theirs = loop(package, lm, asked)
            end, end_cpu = time.perf_counter(), time.process_time()
            worst = max(abs(one[0] - two[0]) for one, two in zip(ours, theirs, strict=True))
            print(
                f"{shape}, {len(asked)} requests: rwkvbatch {middle - begin:.1f} s, loop {end - middle:.1f} s, ratio "
                f"{(end - middle) / (middle - begin):.1f}; CPU {middle_cpu - begin_cpu:.1f} s and "
                f"{end_cpu - middle_cpu:.1f} s, ratio {(end_cpu - middle_cpu) / (middle_cpu - begin_cpu):.1f}; "
                f"largest difference {worst:.2g} nats",
                flush=True,
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
