"""A/A: the same thing twice, with other seeds. How often does `compare` find a difference that is not there?

Every try runs the same settings under two seeds and compares their primary metric; a try counts as a false alarm when
the difference is significant. At 5 %, about 5 of 100 tries may.

    python benchmarks/aa_comparison.py                   # the bundled model, 100 tries
    python benchmarks/aa_comparison.py --synthetic       # made-up rows, without a model; seconds
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rwkvbatch.comparison import compare
from rwkvbatch.comparison.wording import finding, significant

MakeRun = Callable[[Path, int], None]
"""Write a run directory at a path, with a seed."""


def false_alarms(make_run: MakeRun, tries: int) -> int:
    alarms = 0
    for number in range(tries):
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / name for name in ("a", "b")]
            for offset, path in enumerate(paths):
                make_run(path, 2 * number + offset)
            found = significant(compare(paths).comparisons)
        if found:
            alarms += 1
            print(f"try {number}: {finding(found[0])}", flush=True)
    return alarms


def model_runs(script: Path, repeats: int, conversations: int) -> MakeRun:
    """Runs of the bundled model that sample its whole distribution."""
    import rwkvbatch

    model = rwkvbatch.load_model()

    def make(path: Path, seed: int) -> None:
        rwkvbatch.run(
            script, out=path, model=model, preset="model", temperature=1.0, seed=seed, repeats=repeats,
            limit=conversations, max_tokens=48,
        )  # fmt: skip

    return make


def synthetic_runs(repeats: int, conversations: int) -> MakeRun:
    """Rows in which conversations differ (in hardness and length) and seeds do not."""
    nature = np.random.default_rng(0)
    hardness, length = nature.normal(size=conversations), nature.integers(20, 80, conversations)

    def make(path: Path, seed: int) -> None:
        rng = np.random.default_rng(seed + 1)
        path.mkdir()
        rows: list[str] = []
        for number in range(conversations):
            for repeat in range(repeats):
                mood = rng.normal()  # what the turns of one dialogue share
                for turn in range(3):
                    ids = rng.integers(0, 200, int(rng.poisson(length[number])) + 2).tolist()
                    score = float(rng.random() < 1 / (1 + np.exp(hardness[number] + mood)))
                    check = {"kind": "k", "expected": "", "passed": bool(score), "score": score, "weight": 1.0}
                    nll = float(2 + hardness[number] + 0.5 * mood + 0.3 * rng.normal())
                    row = {
                        "conversation": f"c{number}", "cell": "base", "repeat": repeat, "turn": turn, "seed": seed,
                        "tags": [], "prompt": "", "reply": "", "reply_ids": ids, "finish_reason": "stop",
                        "tokens": {"prompt": 1, "reply": len(ids)}, "error": None, "checks": [check],
                        "logprob": {"mean": float(rng.normal(-1, 0.2)), "sum": 0.0},
                        "reference": {"text": "", "nll": nll, "matched": float(rng.random()), "tokens": 1},
                        "timing": {"first_token_s": 0.1, "tokens_per_s": 1.0},
                    }  # fmt: skip
                    rows.append(json.dumps(row) + "\n")
        (path / "results.jsonl").write_text("".join(rows))

    return make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--conversations", type=int, default=30)
    parser.add_argument("--script", type=Path, default=Path("datasets/memory.jsonl"))
    parser.add_argument("--synthetic", action="store_true", help="made-up rows instead of the bundled model")
    chosen = parser.parse_args()
    started_s = time.perf_counter()
    if chosen.synthetic:
        make_run = synthetic_runs(chosen.repeats, chosen.conversations)
    else:
        make_run = model_runs(chosen.script, chosen.repeats, chosen.conversations)
    alarms = false_alarms(make_run, chosen.tries)
    quiet, took_s = chosen.tries - alarms, time.perf_counter() - started_s
    print(f"nothing found in {quiet} of {chosen.tries} A/A comparisons ({took_s:.0f} s)")


if __name__ == "__main__":
    main()
