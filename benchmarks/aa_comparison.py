"""A/A tests: how often `compare` finds a difference between variants that are equal.

The bundled model replays a script under one setting, many times. Each try assigns repetitions at random to a baseline
and its variants, as if they were runs under different seeds, and tests them as `rwkvbatch compare` does. Repetitions
have independent random numbers, so that variants differ only by chance. A try is a false alarm if any difference of the
family is significant. At a level of 5 %, this may happen in about 5 of 100 tries; exact tests of yes/no outcomes have
fewer, because their p-values are discrete.

    python benchmarks/aa_comparison.py                         # the bundled model: replay, then 2,000 tries
    python benchmarks/aa_comparison.py --run runs/aa           # replay into a directory, or continue there
    python benchmarks/aa_comparison.py --synthetic             # simulated rows, without a model
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
from rwkvbatch.comparison.metrics.declarations import metric_named
from rwkvbatch.stats import signflip
from rwkvbatch.stats.family import compare_family

METRICS = ("score", "tokens", "logprob", "loop")
DESIGNS = ((8, 1, 1), (12, 1, 1), (30, 1, 1), (30, 4, 1), (30, 1, 4))
"""Conversations, repetitions of each side, variants against one baseline."""


@dataclass(frozen=True)
class Sums:
    """The sums of a metric and its counts of rows, both `[conversations, repetitions]`."""

    sums: NDArray[np.float64]
    counts: NDArray[np.float64]


def sums_of(table: Any, metric: str) -> Sums | None:
    """The sums over the repetitions that all conversations have; None if all rows have the same value."""
    if metric not in table or table[metric].nunique() < 2:
        return None
    codes, repeats = table["conversation"].factorize()[0], table["repeat"].to_numpy(dtype=np.int64)
    values = table[metric].to_numpy(dtype=np.float64)
    known = ~np.isnan(values)
    shape = (int(codes.max()) + 1, int(repeats.max()) + 1)
    flat_index = (codes * shape[1] + repeats)[known]
    sums = np.bincount(flat_index, values[known], minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
    counts = np.bincount(flat_index, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
    complete = (counts == counts.max(axis=1, keepdims=True)).all(axis=0)
    return Sums(sums[:, complete], counts[:, complete])


@dataclass(frozen=True)
class Alarms:
    """The results of all tries.

    Attributes:
        false_alarms: share of tries with a significant difference. differing: share of tries in which any pair differs.
        covered: share of tries in which the first variant's interval contains 0.
        num_differing: mean number of conversations that differ between the baseline and the first variant.
    """

    false_alarms: float
    differing: float
    covered: float
    num_differing: float


def alarms(metric: str, values: Sums, conversations: int, repeats: int, variants: int, tries: int) -> Alarms:
    """The results of `tries` tries."""
    rng = np.random.default_rng((conversations, repeats, variants))
    widest = metric_named(metric).widest
    judged = np.flatnonzero(values.counts[:, 0])
    false_alarms = differing = covered = num_differing = 0
    for _ in range(tries):
        sample = rng.permutation(judged)[:conversations]
        # Repetitions are assigned in each conversation independently. A common assignment would carry the chance
        # correlations of the existing repetitions into all tries.
        order = rng.random((conversations, values.sums.shape[1])).argsort(axis=1)
        assigned = order[:, : repeats * (variants + 1)].reshape(conversations, variants + 1, repeats)
        sides = np.take_along_axis(values.sums[sample][:, None], assigned, axis=2).sum(axis=2).T
        counts = values.counts[sample, 0] * repeats
        differences = np.stack([side - sides[0] for side in sides[1:]], axis=1)
        family = compare_family(differences, np.stack([counts] * variants, axis=1), widest=widest)
        false_alarms += any(difference.significant for difference in family.differences)
        differing += any(not difference.identical for difference in family.differences)
        num_differing += int(np.count_nonzero(differences[:, 0]))
        covered += family.differences[0].low <= 0 <= family.differences[0].high
    return Alarms(false_alarms / tries, differing / tries, covered / tries, num_differing / tries)


def replay(directory: Path, script: Path, repeats: int, conversations: int) -> Any:
    """Rows of the bundled model, sampled from its whole distribution; continues a run in `directory`."""
    import rwkvbatch

    rwkvbatch.run(
        script, out=directory, preset="model", temperature=1.0, repeats=repeats, limit=conversations, max_tokens=48
    )
    return load(directory)


def synthetic(directory: Path, repeats: int, conversations: int) -> Any:
    """Simulated rows: conversations have a difficulty and a length, and the turns of a dialogue are correlated."""
    rng = np.random.default_rng(0)
    difficulty, length = rng.normal(size=conversations), rng.integers(20, 80, conversations)
    rows: list[str] = []
    for number in range(conversations):
        for repeat in range(repeats):
            dialogue_effect = rng.normal()
            for turn in range(3):
                ids = rng.integers(0, 200, int(rng.poisson(length[number])) + 2).tolist()
                score = float(rng.random() < 1 / (1 + np.exp(difficulty[number] + dialogue_effect)))
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
    parser.add_argument("--repeats", type=int, default=200, help="number of repetitions to assign from")
    parser.add_argument("--conversations", type=int, default=30)
    parser.add_argument("--script", type=Path, default=Path("datasets/memory.jsonl"))
    parser.add_argument("--run", type=Path, help="run directory to write or to continue")
    parser.add_argument("--synthetic", action="store_true", help="simulate rows instead of replaying the bundled model")
    parser.add_argument("--patterns", type=int, default=1998, help="sign patterns drawn beyond 13 conversations")
    args = parser.parse_args()
    # The default is a tenth of what `compare` draws. It makes single p-values vary more, but not the rate at which
    # they are at most 5 %.
    signflip.DRAWN_PATTERNS = args.patterns
    start_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if args.synthetic:
            table = synthetic(Path(folder), args.repeats, args.conversations)
        else:
            table = replay(args.run or Path(folder) / "run", args.script, args.repeats, args.conversations)
    print(f"{len(table):,} rows; {args.tries} tries of each design")
    print(
        "conversations, repetitions, variants: false alarms (of tries in which anything differs), coverage of 0, "
        "conversations that differ"
    )
    for metric in METRICS:
        values = sums_of(table, metric)
        if values is None:
            continue
        for conversations, repeats, variants in DESIGNS:
            num_judged = int((values.counts[:, 0] > 0).sum())
            if conversations > num_judged or repeats * (variants + 1) > values.sums.shape[1]:
                continue
            results = alarms(metric, values, conversations, repeats, variants, args.tries)
            among_differing = results.false_alarms / max(results.differing, 1 / args.tries)
            print(
                f"{metric:10} {conversations:3} {repeats:2} {variants:2}: {results.false_alarms:6.2%} "
                f"({among_differing:6.2%}), {results.covered:.3f}, {results.num_differing:4.1f}",
                flush=True,
            )
    print(f"{time.perf_counter() - start_s:.0f} s")


if __name__ == "__main__":
    main()
