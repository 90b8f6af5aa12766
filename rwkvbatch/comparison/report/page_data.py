"""The data of the HTML report's dialogues, for the page's script."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from rwkvbatch.comparison.analysis import Analysis
from rwkvbatch.comparison.dialogues.changes import most_changed
from rwkvbatch.comparison.dialogues.selection import SHOWN_METRICS
from rwkvbatch.comparison.metrics.declarations import TURN_METRICS
from rwkvbatch.comparison.runs.loading import system_messages
from rwkvbatch.comparison.values.columns import rows_of
from rwkvbatch.prompt.escaping import printable_json
from rwkvbatch.results.manifest import system_of

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

MAX_TURNS: Final = 20_000
"""The most turns in a report; if there are more, it has the most changed conversations."""
_ROW_COLUMNS: Final = (
    "conversation", "repeat", "tags", "turn", "prompt", "reference", "reply", "finish_reason", "error", "checks",
    "probe_after",
)  # fmt: skip


@dataclass(frozen=True)
class PageData:
    """The dialogues for the page's script.

    Attributes:
        left_out: number of conversations left out.
        unknown_systems: whether the system messages are unknown: a run's copy of its script is missing or damaged.
    """

    content: dict[str, Any]
    left_out: int
    unknown_systems: bool = False

    def as_script(self) -> str:
        """JSON without characters that could end its HTML element or begin a comment."""
        import orjson

        try:
            text = orjson.dumps(self.content).decode()
        except TypeError:  # a lone surrogate, or an integer above 64 bits
            text = json.dumps(self.content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        text = printable_json(text, log=True)
        for character in "<>&\u2028\u2029":
            text = text.replace(character, f"\\u{ord(character):04x}")
        return text


def page_data(analysis: Analysis, *, max_turns: int = MAX_TURNS) -> PageData:
    """The dialogues of all variants, the most changed conversations first, up to `max_turns` turns."""
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
    sizes = {str(name): int(size) for name, size in analysis.table["conversation"].value_counts(sort=False).items()}
    order = dict.fromkeys(name for pair in pairs for name in pair["changes"]) | dict.fromkeys(sizes)
    conversations: dict[str, dict[str, Any]] = {}
    num_turns = 0
    for name in order:
        num_turns += sizes[name]
        if num_turns > max_turns and conversations:
            break
        conversations[name] = {"tags": [], "asked": {}, "rows": {}}
    for pair in pairs:
        pair["changes"] = {name: change for name, change in pair["changes"].items() if name in conversations}
    metrics = [metric for metric in TURN_METRICS if bool(analysis.table[metric.name].notna().any())]
    for index, variant in enumerate(analysis.variants):
        rows = rows_of(analysis.table, variant, [*_ROW_COLUMNS, *(metric.name for metric in metrics)])
        rows = rows.loc[rows["conversation"].isin(list(conversations))]
        metric_values = rows[[metric.name for metric in metrics]].to_numpy(dtype=np.float64).tolist()
        for numbers, *values in zip(metric_values, *(rows[name] for name in _ROW_COLUMNS), strict=True):
            _add(conversations, str(index), dict(zip(_ROW_COLUMNS, values, strict=True)), numbers)
    systems: dict[str, str] = {}
    unknown_systems = False
    for run in analysis.runs:
        script_systems = system_messages(run)
        unknown_systems |= script_systems is None
        for name in conversations:
            in_script = (script_systems or {}).get(name)
            cell_systems = {system_of(settings, in_script) for settings in run.facts.cells.values() or [{}]}
            # A system message that differs between cells is one of their settings, and part of their labels.
            if len(cell_systems) == 1 and (system := cell_systems.pop()) is not None:
                systems[name] = system
    content = {
        "variants": [variant.label for variant in analysis.variants],
        "metrics": [
            {name: getattr(metric, name) for name in ("name", "title", "unit", "digits", "better")}
            | {"is_share": metric.widest == 1}
            for metric in metrics
        ],
        "shown": SHOWN_METRICS,
        "pairs": pairs,
        "conversations": conversations,
        "systems": systems,
        "blame": [
            [analysis.variants.index(cell_blame.own), dialogue.conversation, dialogue.repeat, dialogue.turn]
            for cell_blame in analysis.blame
            for dialogue in cell_blame.dialogues
            if dialogue.turn is not None and dialogue.conversation in conversations
        ],
    }
    return PageData(content, len(order) - len(conversations), unknown_systems and not systems)


def _add(
    conversations: Mapping[str, dict[str, Any]], variant: str, row: Mapping[str, Any], numbers: Sequence[float]
) -> None:
    conversation = conversations[row["conversation"]]
    conversation["tags"] = list(row["tags"])
    probe_after = _number(row["probe_after"])
    conversation["asked"].setdefault(str(row["turn"]), [row["prompt"], row["reference"], probe_after])
    conversation["rows"].setdefault(variant, []).append(
        {
            **{name: row[name] for name in ("repeat", "turn", "reply", "finish_reason", "error")},
            "numbers": [_number(value) for value in numbers],
            "checks": [[check["kind"], check["passed"], check.get("detail")] for check in row["checks"]],
        }
    )


def _number(value: float) -> float | None:
    if math.isnan(value):
        return None
    rounded = round(float(value), 6)
    return float(value) if rounded in (0, 1) else rounded  # a share or score near 0 or 1 is neither
