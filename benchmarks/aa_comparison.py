"""A/A: the same thing twice. How often does `compare` find a difference that is not there?

The bundled model replays a script under one setting, many times. Each try deals repetitions at random to a baseline and
its variants, as if they were runs under different seeds, and tests them as `rwkvbatch compare` does: repetitions have
random numbers of their own, so nothing but chance differs. A try counts as a false alarm when a difference of the
family is significant. At 5 %, about 5 of 100 tries may; exact tests of yes/no outcomes may do so less often, since
their p-values come in steps.

    python benchmarks/aa_comparison.py                         # the bundled model: replay, then 2,000 tries
    python benchmarks/aa_comparison.py --run runs/aa           # replay into a directory, or continue there
    python benchmarks/aa_comparison.py --synthetic             # made-up rows, without a model
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison import load
from rwkvbatch.comparison.metrics import metric_named
from rwkvbatch.stats import signflip
from rwkvbatch.stats.family import compare_family

METRICS = ("score", "tokens", "logprob", "loop")
DESIGNS = ((8, 1, 1), (12, 1, 1), (30, 1, 1), (30, 4, 1), (30, 1, 4))
"""Conversations, repetitions of each side, variants against one baseline."""


@dataclass(frozen=True)
class Sums:
    """A metric added up by conversation and repetition: `sums` and `counts` are `[conversations, repetitions]`."""

    sums: NDArray[np.float64]
    counts: NDArray[np.float64]


def sums_of(table: Any, metric: str) -> Sums | None:
    """Of the repetitions that all conversations have; None where all rows have the same number."""
    if metric not in table or table[metric].nunique() < 2:
        return None
    codes, numbers = table["conversation"].factorize()[0], table["repeat"].to_numpy(dtype=np.int64)
    values = table[metric].to_numpy(dtype=np.float64)
    known = ~np.isnan(values)
    shape = (int(codes.max()) + 1, int(numbers.max()) + 1)
    place = (codes * shape[1] + numbers)[known]
    sums = np.bincount(place, values[known], minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
    counts = np.bincount(place, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
    whole = (counts == counts.max(axis=1, keepdims=True)).all(axis=0)
    return Sums(sums[:, whole], counts[:, whole])


@dataclass(frozen=True)
class Alarms:
    """Shares of tries: with a significant difference, in which anything differs, whose first interval holds 0.

    `num_differing`: conversations that differ between the baseline and the first variant, on average.
    """

    found: float
    differing: float
    covered: float
    num_differing: float


def alarms(metric: str, values: Sums, conversations: int, repeats: int, variants: int, tries: int) -> Alarms:
    """What `tries` deals come to."""
    rng = np.random.default_rng((conversations, repeats, variants))
    widest = metric_named(metric).widest
    judged = np.flatnonzero(values.counts[:, 0])
    found = differing = covered = num_differing = 0
    for _ in range(tries):
        chosen = rng.permutation(judged)[:conversations]
        # Each conversation has a deal of its own: dealt together, the repetitions that are there would bring the
        # correlations that they happen to have into all tries.
        order = rng.random((conversations, values.sums.shape[1])).argsort(axis=1)
        dealt = order[:, : repeats * (variants + 1)].reshape(conversations, variants + 1, repeats)
        sides = np.take_along_axis(values.sums[chosen][:, None], dealt, axis=2).sum(axis=2).T
        counts = values.counts[chosen, 0] * repeats
        differences = np.stack([side - sides[0] for side in sides[1:]], axis=1)
        family = compare_family(differences, np.stack([counts] * variants, axis=1), widest=widest)
        found += any(each.significant for each in family.differences)
        differing += any(not each.identical for each in family.differences)
        num_differing += int(np.count_nonzero(differences[:, 0]))
        covered += family.differences[0].low <= 0 <= family.differences[0].high
    return Alarms(found / tries, differing / tries, covered / tries, num_differing / tries)


def replay(directory: Path, script: Path, repeats: int, conversations: int) -> Any:
    """Rows of the bundled model, which samples its whole distribution; continues a run in `directory`."""
    import rwkvbatch

    rwkvbatch.run(
        script, out=directory, preset="model", temperature=1.0, repeats=repeats, limit=conversations, max_tokens=48
    )
    return load(directory)


def synthetic(directory: Path, repeats: int, conversations: int) -> Any:
    """Rows in which conversations differ in hardness and length, and the turns of a dialogue share a mood."""
    rng = np.random.default_rng(0)
    hardness, length = rng.normal(size=conversations), rng.integers(20, 80, conversations)
    rows: list[str] = []
    for number in range(conversations):
        for repeat in range(repeats):
            mood = rng.normal()
            for turn in range(3):
                ids = rng.integers(0, 200, int(rng.poisson(length[number])) + 2).tolist()
                score = float(rng.random() < 1 / (1 + np.exp(hardness[number] + mood)))
                check = {"kind": "k", "expected": "", "passed": bool(score), "score": score, "weight": 1.0}
                row = {
                    "conversation": f"c{number}", "cell": "base", "repeat": repeat, "turn": turn, "seed": 0,
                    "tags": [], "prompt": "", "reply": "", "reply_ids": ids, "finish_reason": "stop",
                    "tokens": {"prompt": 1, "reply": len(ids)}, "error": None, "checks": [check],
                    "logprob": {"mean": float(rng.normal(-1, 0.2)), "sum": 0.0},
                    "reference": {"text": "", "nll": 1.0, "matched": float(rng.random()), "tokens": 1},
                    "timing": {"first_token_s": 0.1, "tokens_per_s": 1.0},
                }  # fmt: skip
                rows.append(json.dumps(row) + "\n")
    (directory / "results.jsonl").write_text("".join(rows))
    return load(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=200, help="repetitions to deal from")
    parser.add_argument("--conversations", type=int, default=30)
    parser.add_argument("--script", type=Path, default=Path("datasets/memory.jsonl"))
    parser.add_argument("--run", type=Path, help="where the rows are, or are to be")
    parser.add_argument("--synthetic", action="store_true", help="made-up rows instead of the bundled model")
    parser.add_argument("--patterns", type=int, default=1998, help="sign patterns drawn beyond 13 conversations")
    chosen = parser.parse_args()
    # A tenth of what `compare` draws: single p-values vary more, how often they are at most 5 % does not.
    signflip.DRAWN_PATTERNS = chosen.patterns
    started_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if chosen.synthetic:
            table = synthetic(Path(folder), chosen.repeats, chosen.conversations)
        else:
            table = replay(chosen.run or Path(folder) / "run", chosen.script, chosen.repeats, chosen.conversations)
    print(f"{len(table):,} rows; {chosen.tries} tries of each design")
    print(
        "conversations, repetitions, variants: false alarms (of tries in which anything differs), coverage of 0, "
        "conversations that differ"
    )
    for metric in METRICS:
        values = sums_of(table, metric)
        if values is None:
            continue
        for conversations, own, variants in DESIGNS:
            there = int((values.counts[:, 0] > 0).sum())
            if conversations > there or own * (variants + 1) > values.sums.shape[1]:
                continue
            of = alarms(metric, values, conversations, own, variants, chosen.tries)
            print(
                f"{metric:10} {conversations:3} {own:2} {variants:2}: {of.found:6.2%} "
                f"({of.found / max(of.differing, 1 / chosen.tries):6.2%}), {of.covered:.3f}, {of.num_differing:4.1f}",
                flush=True,
            )
    print(f"{time.perf_counter() - started_s:.0f} s")


if __name__ == "__main__":
    main()
