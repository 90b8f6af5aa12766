"""The dialogues of the report: what its script shows on demand, as JSON that no HTML parser can trip over."""

# pandas ships no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from rwkvbatch.compare.analysis import Analysis
from rwkvbatch.compare.changes import most_changed
from rwkvbatch.compare.metrics import TURN_METRICS
from rwkvbatch.compare.summary import rows_of

MAX_TURNS: Final = 20_000
"""At most so many turns are put into one report; the most changed conversations come first."""


@dataclass(frozen=True)
class Dialogues:
    """`content` is what the script gets; `left_out` conversations did not fit."""

    content: dict[str, Any]
    left_out: int

    def as_script(self) -> str:
        """JSON in which no character can end the element it stands in, or begin a comment."""
        text = json.dumps(self.content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        for character in "<>&\u2028\u2029":
            text = text.replace(character, f"\\u{ord(character):04x}")
        return text


def collect(analysis: Analysis, *, max_turns: int = MAX_TURNS) -> Dialogues:
    """The dialogues of all variants, most changed conversations first, as many as fit."""
    pairs: list[dict[str, Any]] = [
        {
            "baseline": analysis.variants.index(matched.pair.baseline),
            "variant": analysis.variants.index(matched.pair.variant),
            "changes": {
                change.conversation: [_number(change.score), _number(change.nll), change.replies_changed]
                for change in most_changed(matched)
            },
        }
        for matched in analysis.matched
    ]
    order = dict.fromkeys(name for pair in pairs for name in pair["changes"])
    order.update(dict.fromkeys(str(name) for name in analysis.table["conversation"].unique()))
    sizes = {str(name): int(size) for name, size in analysis.table["conversation"].value_counts().items()}
    chosen: dict[str, int] = {}
    for name in order:
        if sum(chosen.values()) + sizes[name] > max_turns and chosen:
            break
        chosen[name] = sizes[name]
    metrics = [metric for metric in TURN_METRICS if bool(analysis.table[metric.name].notna().any())]
    conversations: dict[str, dict[str, Any]] = {
        name: {"tags": [], "asked": {}, "rows": {}} for name in chosen
    }
    for number, variant in enumerate(analysis.variants):
        rows = rows_of(analysis.table, variant)
        own = rows.loc[rows["conversation"].isin(list(chosen))]
        for row in own.to_dict("records"):
            _add(conversations[row["conversation"]], number, row, [metric.name for metric in metrics])
    content = {
        "variants": [variant.label for variant in analysis.variants],
        "metrics": [
            {"name": m.name, "title": m.title, "unit": m.unit, "digits": m.digits, "better": m.better}
            for m in metrics
        ],
        "pairs": [
            {**pair, "changes": {name: value for name, value in pair["changes"].items() if name in chosen}}
            for pair in pairs
        ],
        "conversations": conversations,
    }
    return Dialogues(content, len(order) - len(chosen))


def _add(conversation: dict[str, Any], variant: int, row: dict[Any, Any], metrics: Sequence[str]) -> None:
    conversation["tags"] = list(row["tags"])
    conversation["asked"].setdefault(str(row["turn"]), [row["prompt"], row["reference"]])
    conversation["rows"].setdefault(str(variant), []).append(
        {
            "repeat": row["repeat"],
            "turn": row["turn"],
            "reply": row["reply"],
            "finish": row["finish"],
            "error": row["error"],
            "numbers": [_number(row[name]) for name in metrics],
            "checks": [
                [check["kind"], bool(check["passed"]), check.get("detail")] for check in row["checks"]
            ],
        }
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 6)
