"""The comparison as Markdown, as a pull request or `$GITHUB_STEP_SUMMARY` shows it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rwkvbatch.compare.analysis import Analysis
from rwkvbatch.compare.output.wording import (
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
from rwkvbatch.compare.paired import Comparison
from rwkvbatch.compare.pairing import Variant
from rwkvbatch.text.safe import printable

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
        parts.extend(
            f"### {escaped(variant.label)}\n\n{_means(analysis, variant)}" for variant in analysis.variants
        )
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
