"""The comparison as JUnit XML: a test case a gate, and one a comparison for the record."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from rwkvbatch.comparison.analysis import Analysis
from rwkvbatch.comparison.changes import ConversationChange, most_changed
from rwkvbatch.comparison.paired import Comparison, Variant
from rwkvbatch.comparison.ranking import Ranking
from rwkvbatch.comparison.report.wording import (
    RANKING_NOTE,
    common_rows,
    conclusion,
    extent,
    finding,
    findings,
    heading,
    interval,
    mean_interval,
    metric_title,
    number,
    p_value,
    signed,
    standing,
)
from rwkvbatch.prompt.escaping import printable, printable_json

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


_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~&])")


def as_markdown(analysis: Analysis) -> str:
    """Headings, a table a pair (of means where there is none), gates and notes. All names are escaped."""
    parts = [f"**{conclusion(analysis)}**"]
    found = findings(analysis)
    if found:
        parts.append("\n".join(f"- {escaped(finding(line))}" for line in found))
    if analysis.rankings:
        best = [f"- {escaped(f'{standing(line)} ({common_rows(line)})')}" for line in analysis.rankings]
        parts.append("\n".join(best) + f"\n\n{escaped(RANKING_NOTE)}")
    if analysis.gates:
        parts.append(gates_markdown(analysis))
    by_heading: dict[str, list[Comparison]] = {}
    for line in analysis.comparisons:
        by_heading.setdefault(heading(line), []).append(line)
    for title, lines in by_heading.items():
        parts.append(f"### {escaped(title)}\n\n{escaped(extent(lines))}\n\n{_table(lines)}")
    if not analysis.comparisons:
        parts.extend(f"### {escaped(variant.label)}\n\n{_means(analysis, variant)}" for variant in analysis.variants)
    if analysis.notes:
        parts.append("\n".join(f"> {escaped(note)}" for note in analysis.notes))
    return "\n\n".join(parts) + "\n"


def gates_markdown(analysis: Analysis) -> str:
    """One line a gate."""
    return "\n".join(f"- {'❌' if gate.failed else '✅'} {escaped(gate.line)}" for gate in analysis.gates)


def escaped(text: str) -> str:
    """`text` as Markdown shows it letter by letter, on one line."""
    return _SPECIAL.sub(r"\\\1", printable(text, keep_newlines=False))


def _means(analysis: Analysis, variant: Variant) -> str:
    rows = ["| metric | mean | 95 % interval |", "|---|---:|---|"]
    for mean in analysis.means(variant):
        cells = (mean.metric.title, number(mean.mean, mean.metric.digits), mean_interval(mean))
        rows.append(f"| {' | '.join(escaped(cell) for cell in cells)} |")
    return "\n".join(rows)


def _table(lines: Iterable[Comparison]) -> str:
    rows = [
        "| metric | baseline | variant | difference | 95 % interval | p (Holm) | W/T/L | detectable | verdict |",
        "|---|---:|---:|---:|---|---:|---|---:|---|",
    ]
    for line in lines:
        digits = line.metric.digits
        cells = (
            metric_title(line),
            number(line.baseline_mean, digits),
            number(line.variant_mean, digits),
            signed(line.difference, digits),
            interval(line),
            p_value(line.p_holm),
            f"{line.wins}/{line.ties}/{line.losses}",
            number(line.detectable, digits),
            "" if line.verdict == "untested" else line.verdict,
        )
        rows.append(f"| {' | '.join(escaped(cell) for cell in cells)} |")
    return "\n".join(rows)


def as_junit(analysis: Analysis) -> str:
    """`testsuites` with the suite `gates`, and one suite a pair, whose cases never fail."""
    root = ET.Element("testsuites", name="rwkvbatch compare")
    failed = sum(gate.failed for gate in analysis.gates)
    suite = ET.SubElement(
        root, "testsuite", name="gates", tests=str(len(analysis.gates)), failures=str(failed), errors="0"
    )
    for gate in analysis.gates:
        case = ET.SubElement(suite, "testcase", classname=safe(gate.label), name=safe(gate.gate.text))
        if gate.failed:
            ET.SubElement(case, "failure", message=safe(gate.line))
    suites: dict[str, ET.Element] = {}
    for line in analysis.comparisons:
        title = heading(line)
        if title not in suites:
            suites[title] = ET.SubElement(root, "testsuite", name=safe(title), failures="0", errors="0")
        case = ET.SubElement(suites[title], "testcase", classname=safe(title), name=line.metric.name)
        digits = line.metric.digits
        ET.SubElement(case, "system-out").text = (
            f"{number(line.baseline_mean, digits)} -> {number(line.variant_mean, digits)}, "
            f"{signed(line.difference, digits)} {interval(line)}, p {p_value(line.p_holm)}, {line.verdict}"
        )
    for suite in suites.values():
        suite.set("tests", str(len(suite)))
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def safe(text: str) -> str:
    """`text` on one line and without what XML 1.0 has no place for at all, such as most control characters."""
    return printable(text, keep_newlines=False).replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")
