"""One worker process against two, of one thread each: the same run, in turns; medians and their ratio.

python benchmarks/workers.py [--shape 12x768 | --model FILE] [--conversations 64] [--rounds 3]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import jsonlines

import rwkvbatch
from rwkvbatch.bench.random_file import write_random

NUM_TURNS = 3
MAX_TOKENS = 64


def write_script(path: Path, count: int) -> None:
    with jsonlines.open(path, "w") as writer:
        for number in range(count):
            texts = [f"Question {turn} of conversation {number}?" for turn in range(NUM_TURNS)]
            writer.write({"id": f"c{number}", "messages": [{"role": "user", "content": t} for t in texts]})


def replay(model: Path, script: Path, workers: int, batch_size: int) -> float:
    """Reply tokens per second, from the first lease to the last row; loading the model does not count."""
    with tempfile.TemporaryDirectory() as folder:
        result = rwkvbatch.run(
            script,
            model=model,
            out=Path(folder) / "run",
            workers=workers,
            threads=1,
            batch_size=batch_size,
            max_tokens=MAX_TOKENS,
        )
        return result.progress.tokens_per_s


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="12x768", help="random weights of this shape, unless --model")
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--conversations", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    speeds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or write_random(options.shape, Path(folder))
        script = Path(folder) / "script.jsonl"
        write_script(script, options.conversations)
        for _ in range(options.rounds):
            for workers, found in speeds.items():
                found.append(replay(model, script, workers, options.batch_size))
    ratios = [two / one for one, two in zip(speeds[1], speeds[2], strict=True)]
    for workers, found in speeds.items():
        print(
            f"{workers} worker{'s' if workers > 1 else ' '}: {statistics.median(found):8.1f} reply tokens/s"
        )
    print(f"ratio: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
