"""The comparison as JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, cast

from rwkvbatch.comparison.analysis import COLUMNS as FIELDS
from rwkvbatch.comparison.analysis import Analysis
from rwkvbatch.comparison.blame import Blame
from rwkvbatch.comparison.dialogues import most_changed
from rwkvbatch.comparison.paired import Comparison
from rwkvbatch.comparison.pairing import Variant
from rwkvbatch.comparison.ranking import Ranking
from rwkvbatch.comparison.trend import Trend
from rwkvbatch.comparison.wording import (
    BLAME_TITLE,
    COLUMNS,
    RANKING_NOTE,
    TREND_NOTE,
    by_family,
    common_rows,
    conclusion,
    correction,
    extent,
    finding,
    heading,
    interval,
    left_out,
    named_dialogues,
    number,
    power,
    question,
    rank_disagreement,
    significant,
    standing,
    trend_sentence,
    trend_title,
    variant_label,
)
from rwkvbatch.prompt.escaping import printable, printable_json

_FORMULA_SIGNS = frozenset("=+-@＝＋－＠")


def as_json(analysis: Analysis) -> str:
    """The whole comparison as one JSON object.

    `primary`, `families`, `trend` (null without `--over`), `trends` (that, and those of `--metric`), `blame` (empty
    without `--blame`), `preferences` (empty without `--judge`), `comparisons`, `best`, `means`, `dropped`, `gates`,
    `changes`, `runs`, `notes`.
    """
    content = {
        "runs": [{"name": run.name, "path": run.source, "manifest": run.manifest} for run in analysis.runs],
        "primary": None if analysis.primary is None else analysis.primary.name,
        "families": [vars(family) | {"metric": family.metric.name} for family in analysis.families],
        "trend": None if analysis.trend is None else analysis.trend.as_dict(),
        "trends": [trend.as_dict() | {"exploratory": trend is not analysis.trend} for trend in analysis.trends],
        "blame": [found.as_dict() for found in analysis.blame],
        "preferences": [found.as_dict() for found in analysis.preferences],
        "comparisons": analysis.records() if analysis.comparisons else [],
        "best": [_best(ranking) for ranking in analysis.rankings],
        "means": [
            {"variant": variant.label, "metric": mean.metric.name}
            | {name: getattr(mean, name) for name in ("group", "mean", "low", "high", "num_values")}
            for variant in analysis.variants
            for mean in analysis.means(variant)
        ],
        "dropped": [vars(each) for each in analysis.dropped],
        "gates": [
            {"gate": gate.gate.text, "option": gate.gate.option, "variant": gate.label, "baseline": gate.baseline_label}
            | {
                name: getattr(gate, name)
                for name in (
                    "failed",
                    "left",
                    "right",
                    "low",
                    "high",
                    "p_adjusted",
                    "reason",
                    "conversations_needed",
                    "note",
                )
            }
            for gate in analysis.gates
        ],
        "changes": [
            {
                "baseline": matched.pair.baseline.label,
                "variant": matched.pair.variant.label,
                "conversations": [vars(change) for change in most_changed(matched)],
            }
            for matched in analysis.matched
        ],
        "notes": list(analysis.notes),
    }
    return printable_json(json.dumps(_plain(content), ensure_ascii=False, indent=1), log=True) + "\n"


def as_csv(analysis: Analysis) -> str:
    """`Analysis.records`, one per line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FIELDS)
    for record in analysis.records():
        writer.writerow([harmless(_plain(value)) for value in record.values()])
    return text.getvalue()


def harmless(value: Any) -> Any:
    """`value` as a CSV cell: text is on one line, without control characters, and no formula in a spreadsheet.

    Text that begins with a formula sign, ignoring invisible characters before it, gets an apostrophe.
    """
    if not isinstance(value, str):
        return value
    shown = printable(value, keep_newlines=False, log=True)
    return f"'{shown}" if _begins_formula(value) else shown


def _begins_formula(text: str) -> bool:
    # Categories Cc, Cf, Cs, ... are control and format characters; Zs, Zl, Zp are spaces.
    first = next((character for character in text if unicodedata.category(character)[0] not in "CZ"), "")
    return first in _FORMULA_SIGNS


def _plain(value: Any) -> Any:
    """`value` with None for NaN and infinity, at any depth: JSON and CSV do not have them."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_plain(item) for item in cast("list[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _best(ranking: Ranking) -> dict[str, Any]:
    return {
        "metric": ranking.metric.name,
        "best": ranking.best.variant.label,
        "candidates": [
            {
                "variant": candidate.variant.label,
                "mean": candidate.mean,
                "could_be_best": candidate.could_be_best,
                "beaten_by": candidate.beaten_by,
            }
            for candidate in ranking.candidates
        ],
        **{name: getattr(ranking, name) for name in ("num_values", "num_conversations", "num_left_out")},
    }


_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~&])")


def as_markdown(analysis: Analysis) -> str:
    """Conclusion, rankings, dropped rows, gates, a table per family (of means for a single variant) and notes.

    Names are escaped.
    """
    parts = [f"**{escaped(conclusion(analysis.comparisons))}**"]
    found = significant(line for line in analysis.comparisons if not line.exploratory)
    if found:
        parts.append("\n".join(f"- {escaped(finding(line))}" for line in found))
    if analysis.rankings:
        best = [f"- {escaped(f'{standing(line)} ({common_rows(line)})')}" for line in analysis.rankings]
        parts.append("\n".join(best) + f"\n\n{escaped(RANKING_NOTE)}")
    parts += [_trend(trend, exploratory=trend is not analysis.trend) for trend in analysis.trends]
    parts += [escaped(TREND_NOTE)] if analysis.trends else []
    if sentence := left_out(analysis.dropped, analysis.primary):
        parts.append(escaped(sentence))
    if analysis.gates:
        parts.append("\n".join(f"- {'❌' if gate.failed else '✅'} {escaped(gate.line)}" for gate in analysis.gates))
    families = {family.name: family for family in analysis.families}
    for name, lines in by_family(analysis.comparisons).items():
        about = "; ".join(filter(None, (extent(lines, analysis.repetitions), power(lines), rank_disagreement(lines))))
        correct = correction(families[name]) if name in families else ""
        sentences = " ".join(filter(None, (about and f"{about}.", correct)))
        parts.append("\n\n".join(filter(None, (f"### {escaped(question(lines))}", escaped(sentences), _table(lines)))))
    if not analysis.comparisons:
        parts.extend(f"### {escaped(variant.label)}\n\n{_means(analysis, variant)}" for variant in analysis.variants)
    parts += [_blame(found) for found in analysis.blame]
    if analysis.notes:
        parts.append("\n".join(f"> {escaped(note)}" for note in analysis.notes))
    return "\n\n".join(parts) + "\n"


def _blame(blame: Blame) -> str:
    head = [f"### {escaped(BLAME_TITLE)}", escaped(blame.sentence) + "."]
    if not blame.by_turn:
        return "\n\n".join(head)
    rows = [_row((str(turn), str(count), named_dialogues(blame, turn))) for turn, count in blame.by_turn.items()]
    return "\n\n".join([*head, "\n".join(["| turn | dialogues | such as |", "|---:|---:|---|", *rows])])


def _trend(trend: Trend, *, exploratory: bool) -> str:
    digits = trend.metric.digits
    rows = [
        _row(
            (
                f"{p.x:,g}",
                p.variant.label,
                number(p.mean, digits),
                f"[{number(p.low, digits)}, {number(p.high, digits)}]",
            )
        )
        for p in trend.points
    ]
    table = "\n".join([f"| {escaped(trend.over)} | checkpoint | mean | 95 % band |", "|---:|---|---:|---|", *rows])
    title = escaped(trend_title(trend, exploratory=exploratory))
    return f"### {title}\n\n**{escaped(trend_sentence(trend))}**\n\n{table}"


def escaped(text: str) -> str:
    """`text` on one line, with all Markdown syntax escaped."""
    return _SPECIAL.sub(r"\\\1", printable(text, keep_newlines=False, log=True))


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(escaped(cell) for cell in cells)} |"


def _means(analysis: Analysis, variant: Variant) -> str:
    rows = [
        _row((mean.metric.name, mean.group or "all", number(mean.mean, mean.metric.digits), interval(mean)))
        for mean in analysis.means(variant)
    ]
    return "\n".join(["| metric | of | mean | 95 % interval |", "|---|---|---:|---|", *rows])


def _table(lines: Sequence[Comparison]) -> str:
    names = "".join(f" {column.name} |" for column in COLUMNS)
    rules = "".join("---|" if column.left else "---:|" for column in COLUMNS)
    several = len({line.pair.baseline for line in lines}) > 1
    rows = [
        _row((heading(line) if several else variant_label(line), *(column.text(line) for column in COLUMNS)))
        for line in lines
    ]
    return "\n".join([f"| {'comparison' if several else 'variant'} |{names}", f"|---|{rules}", *rows])
