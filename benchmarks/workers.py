"""One worker of one thread compared with two workers and with two threads: the same run, alternately; medians.

python benchmarks/workers.py [--shape 12x768 | --model FILE] [--conversations 64] [--rounds 3]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jsonlines

import rwkvbatch
from rwkvbatch.bench.measure import write_random
from rwkvbatch.replay.progress import Progress

NUM_TURNS = 3
MAX_TOKENS = 64


def write_script(path: Path, count: int) -> None:
    with jsonlines.open(path, "w") as writer:
        for number in range(count):
            texts = [f"Question {turn} of conversation {number}?" for turn in range(NUM_TURNS)]
            writer.write({"id": f"c{number}", "messages": [{"role": "user", "content": t} for t in texts]})


@dataclass(frozen=True)
class Setting:
    """A number of workers, and of threads of each."""

    workers: int
    threads: int

    def __str__(self) -> str:
        return f"{self.workers} x {self.threads} thread{'s' if self.threads > 1 else ''}"


SETTINGS = (Setting(1, 1), Setting(2, 1), Setting(1, 2))


class Stopwatch:
    """Measures reply tokens per second since the first worker has loaded its model."""

    def __init__(self) -> None:
        self._started_s: float | None = None
        self.tokens_per_s = 0.0

    def started(self, progress: Progress) -> None: ...

    def moved(self, progress: Progress) -> None:
        if self._started_s is None and progress.workers:
            self._started_s = time.monotonic()

    def ended(self, progress: Progress) -> None:
        assert self._started_s is not None
        self.tokens_per_s = progress.reply_tokens / (time.monotonic() - self._started_s)


def replay(model: Path, script: Path, setting: Setting, batch_size: int) -> float:
    """Reply tokens per second, without the time to load the model."""
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        rwkvbatch.run(
            script,
            model=model,
            out=Path(folder) / "run",
            workers=setting.workers,
            threads=setting.threads,
            batch_size=batch_size,
            max_tokens=MAX_TOKENS,
            observer=watch,
        )
    return watch.tokens_per_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="12x768", help="shape of random weights, without --model")
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--conversations", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    speeds: dict[Setting, list[float]] = {setting: [] for setting in SETTINGS}
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or write_random(options.shape, Path(folder))
        script = Path(folder) / "script.jsonl"
        write_script(script, options.conversations)
        for _ in range(options.rounds):
            for setting, tokens_per_s in speeds.items():
                tokens_per_s.append(replay(model, script, setting, options.batch_size))
    for setting, tokens_per_s in speeds.items():
        ratios = [speed / baseline for baseline, speed in zip(speeds[SETTINGS[0]], tokens_per_s, strict=True)]
        print(
            f"{setting!s:12} {statistics.median(tokens_per_s):8.1f} reply tokens/s, "
            f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
