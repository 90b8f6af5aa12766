"""Coverage-guided fuzzing of gate expressions: `python -m tools.fuzz.fuzz_gates [SECONDS] [FOLDER]`.

Every text must be a gate that is judged, failed gates with a reason among them, or end in a `UsageError` that names the
option.
"""

from __future__ import annotations

import sys

from tools.fuzz.fuzzing import fuzz, instrumented

with instrumented("rwkvbatch"):
    import numpy as np

    from rwkvbatch.comparison.gates.evaluation import judge
    from rwkvbatch.comparison.gates.parsing import parse_gate
    from rwkvbatch.comparison.gates.scopes import Column, GateScope
    from rwkvbatch.comparison.metrics.declarations import TURN_METRICS, VARIANT_METRICS
    from rwkvbatch.comparison.pairing.matching import Dropped
    from rwkvbatch.errors import UsageError

_SEEDS = (
    "score < baseline - 0.02 significantly",
    "p95(first_token_s) > 2 * baseline",
    "mean(num_tokens) / (1 + .5e1) >= -baseline.num_tokens",
    "median(baseline.score) <= max(score) * 3.",
    "pass_at_3 < all_10",
    "min(nll) > --1",
    'score[memory] < baseline["a b"] - 0.1',
)
_VALUES = {True: np.array([0.0, 1.0, np.nan, -2.5]), False: np.array([1.0, np.nan, np.nan, 0.25])}


def _column(metric: str, of_baseline: bool, tag: str | None) -> Column:
    del metric, tag
    return Column(_VALUES[of_baseline], np.array([0, 0, 1, 2]), np.array([0, 1, 0, 0]))


def judge_one(data: bytes) -> None:
    """Parse, and judge what could be parsed, with and without a baseline."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        gate = parse_gate(text)
        for baseline in ("base", None):
            dropped = (Dropped("variant"), Dropped("base"))
            for result in judge([gate], [GateScope("variant", baseline, _column, lambda: ("memory", "a b"), dropped)]):
                if text.strip() not in result.line:
                    raise AssertionError("the line does not name the gate")
    except UsageError as error:
        if "--fail-if" not in str(error):
            raise AssertionError("the message does not name the option") from error


def main() -> None:
    """Fuzz; see `fuzz`."""
    words = [metric.name for metric in (*TURN_METRICS, *VARIANT_METRICS)]
    words += ["baseline", "baseline.", "significantly", "mean(", "median(", "p99(", "pass_at_", "all_", "1e9", ")"]
    seeds = {f"seed-{number}": text.encode() for number, text in enumerate(_SEEDS)}
    fuzz(judge_one, seeds, max_bytes=600, words=tuple(words))


if __name__ == "__main__":
    sys.exit(main())
