"""The table's columns as data, and the plain formats made of them: JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, Final

from rwkvbatch.compare.analysis import Analysis
from rwkvbatch.compare.changes import ConversationChange, most_changed
from rwkvbatch.compare.paired import Comparison
from rwkvbatch.compare.ranking import Ranking
from rwkvbatch.text.safe import printable, printable_json

_FORMULA_SIGNS = frozenset("=+-@＝＋－＠")

COLUMNS: Final[Mapping[str, Callable[[Comparison], Any]]] = {
    "baseline": lambda line: line.pair.baseline.label,
    "variant": lambda line: line.pair.variant.label,
    "group": lambda line: line.group,
    "metric": lambda line: line.metric.name,
    "unit": lambda line: line.metric.unit,
    "better": lambda line: line.metric.better,
    "baseline_mean": lambda line: line.baseline_mean,
    "variant_mean": lambda line: line.variant_mean,
    "difference": lambda line: line.difference,
    "standard_error": lambda line: line.standard_error,
    "degrees": lambda line: line.degrees,
    "low": lambda line: line.low,
    "high": lambda line: line.high,
    "p": lambda line: line.p,
    "p_holm": lambda line: line.p_holm,
    "verdict": lambda line: line.verdict,
    "wins": lambda line: line.wins,
    "ties": lambda line: line.ties,
    "losses": lambda line: line.losses,
    "detectable": lambda line: line.detectable,
    "num_values": lambda line: line.num_values,
    "num_conversations": lambda line: line.num_conversations,
}


def as_record(line: Comparison) -> dict[str, Any]:
    """One line of the table; NaN becomes None."""
    return {name: _plain(of(line)) for name, of in COLUMNS.items()}


def as_json(analysis: Analysis) -> str:
    """The whole comparison as one JSON object: `comparisons`, `best`, `means`, `gates`, `changes`, `runs`, `notes`."""
    content = {
        "runs": [{"name": run.name, "path": run.source, "manifest": run.manifest} for run in analysis.runs],
        "comparisons": [as_record(line) for line in analysis.comparisons],
        "best": [_best(ranking) for ranking in analysis.rankings],
        "means": [
            {
                "variant": variant.label,
                "metric": mean.metric.name,
                **{name: _plain(getattr(mean, name)) for name in ("mean", "low", "high", "num_values")},
            }
            for variant in analysis.variants
            for mean in analysis.means(variant)
        ],
        "gates": [
            {
                "gate": gate.gate.text,
                "variant": gate.label,
                "failed": gate.failed,
                "left": gate.left,
                "right": gate.right,
                "p_holm": _plain(gate.p_holm),
            }
            for gate in analysis.gates
        ],
        "changes": [
            {
                "baseline": matched.pair.baseline.label,
                "variant": matched.pair.variant.label,
                "conversations": [_change(change) for change in most_changed(matched)],
            }
            for matched in analysis.matched
        ],
        "notes": list(analysis.notes),
    }
    return printable_json(json.dumps(content, ensure_ascii=False, indent=1)) + "\n"


def as_csv(analysis: Analysis) -> str:
    """The table, one comparison a line. A run alone has lines without a baseline, of which only the means are known."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for line in analysis.comparisons:
        writer.writerow([harmless(value) for value in as_record(line).values()])
    if not analysis.comparisons:
        for variant in analysis.variants:
            for mean in analysis.means(variant):
                known = {
                    "variant": variant.label,
                    "metric": mean.metric.name,
                    "unit": mean.metric.unit,
                    "better": mean.metric.better,
                    "variant_mean": mean.mean,
                    "num_values": mean.num_values,
                }
                writer.writerow([harmless(known.get(name)) for name in COLUMNS])
    return text.getvalue()


def harmless(value: Any) -> Any:
    """`value` as a cell: one line that a terminal may show, and that no spreadsheet takes for a formula.

    Text that looks like a formula, whatever invisible characters stand before it, gets an apostrophe.
    """
    if not isinstance(value, str):
        return value
    shown = printable(value, keep_newlines=False)
    return f"'{shown}" if _begins_formula(value) else shown


def _begins_formula(text: str) -> bool:
    # Cc, Cf, Cs, ...: characters that are no letters, marks, digits or signs; Zs, Zl, Zp: spaces.
    first = next((character for character in text if unicodedata.category(character)[0] not in "CZ"), "")
    return first in _FORMULA_SIGNS


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _best(ranking: Ranking) -> dict[str, Any]:
    return {
        "metric": ranking.metric.name,
        "best": ranking.best.variant.label,
        "candidates": [
            {
                "variant": candidate.variant.label,
                "mean": _plain(candidate.mean),
                "p_holm": _plain(candidate.p_holm),
                "could_be_best": candidate.could_be_best,
            }
            for candidate in ranking.candidates
        ],
        **{name: getattr(ranking, name) for name in ("num_values", "num_conversations", "num_left_out")},
    }


def _change(change: ConversationChange) -> dict[str, Any]:
    return {name: _plain(value) for name, value in vars(change).items()}
