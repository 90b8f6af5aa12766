"""Output of a comparison as JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from rwkvbatch.comparison.analysis import COLUMNS as FIELDS
from rwkvbatch.comparison.analysis import Analysis
from rwkvbatch.comparison.dialogues.blame import Blame
from rwkvbatch.comparison.dialogues.changes import changed_turns, most_changed
from rwkvbatch.comparison.dialogues.offenders import Offenders
from rwkvbatch.comparison.gates.results import gates_outcome
from rwkvbatch.comparison.numbers import interval, mean_interval, shown_mean, signed
from rwkvbatch.comparison.pairing.matching import MatchedRows
from rwkvbatch.comparison.pairing.settings import settings_sentence
from rwkvbatch.comparison.runs.data import Variant
from rwkvbatch.comparison.statistics.differences import Comparison
from rwkvbatch.comparison.statistics.ranking import Ranking
from rwkvbatch.comparison.statistics.trend import Trend
from rwkvbatch.comparison.wording import (
    BLAME_TITLE,
    COLUMNS,
    RACE_NOTE,
    RANKING_NOTE,
    TREND_NOTE,
    by_family,
    common_rows,
    conclusion,
    correction,
    family_title,
    finding,
    heading,
    left_out,
    named_dialogues,
    power,
    race_sentence,
    rank_disagreement,
    ranking_sentence,
    sample_size_text,
    significant,
    trend_sentence,
    trend_title,
    variant_label,
    without_undecidable,
)
from rwkvbatch.errors import shortened
from rwkvbatch.prompt.escaping import finite, printable, printable_json

_MAX_CELL = 120
_FORMULA_SIGNS = frozenset("=+-@＝＋－＠")


def as_json(analysis: Analysis, *, num_changes: int = 0) -> str:
    """The whole comparison as one JSON object.

    Its keys are `runs`, `races` (the results of runs that are races), `only` (null without `--only`), `primary`,
    `families`, `trend` (null without `--over`), `trends` (the same one, then those of `--metric`), `blame` (empty
    without `--blame`), `preferences` (empty without `--judge`), `comparisons`, `best`, `means`, `settings_differ`,
    `dropped`, `pairs`, `gates`, `changes` and `notes`. An entry of `changes` has `turns`: the most changed turn of each
    of the `num_changes` most changed conversations.
    """
    content = {
        "runs": [{"name": run.name, "path": run.source, "manifest": run.manifest} for run in analysis.runs],
        "races": [
            {"run": run.name, "result": run.race or None, "sentence": race_sentence(run)}
            for run in analysis.runs
            if run.race is not None
        ],
        "only": None if analysis.restriction is None else analysis.restriction.as_dict(),
        "primary": None if analysis.primary is None else analysis.primary.name,
        "families": [vars(family) | {"metric": family.metric.name} for family in analysis.families],
        "trend": None if analysis.trend is None else analysis.trend.as_dict(),
        "trends": [trend.as_dict() | {"exploratory": trend is not analysis.trend} for trend in analysis.trends],
        "blame": [cell_blame.as_dict() for cell_blame in analysis.blame],
        "preferences": [pair_preferences.as_dict() for pair_preferences in analysis.preferences],
        "comparisons": analysis.records() if analysis.comparisons else [],
        "best": [_best(ranking) for ranking in analysis.rankings],
        "means": [
            {"variant": variant.label, "metric": mean.metric.name}
            | {
                name: getattr(mean, name)
                for name in ("group", "mean", "low", "high", "num_values", "num_conversations")
            }
            for variant in analysis.variants
            for mean in analysis.means(variant)
        ],
        "settings_differ": [difference.as_dict() for difference in analysis.settings_differ],
        "dropped": [vars(variant_dropped) for variant_dropped in analysis.dropped],
        "pairs": [
            {
                "baseline": joined.pair.baseline.label,
                "variant": joined.pair.variant.label,
                "num_matched": len(joined),
                "only_baseline": joined.only_baseline,
                "only_variant": joined.only_variant,
                "num_different": joined.num_different,
            }
            for joined in analysis.all_pairs
        ],
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
            | {
                "conversations": [
                    vars(offender)
                    for offenders in analysis.offenders
                    if offenders.result is gate
                    for offender in offenders.worst
                ]
            }
            for gate in analysis.gates
        ],
        "changes": [
            {
                "baseline": matched.pair.baseline.label,
                "variant": matched.pair.variant.label,
                "conversations": [vars(change) for change in most_changed(matched)],
                "turns": [
                    {"conversation": change.conversation, "repeat": turn.repeat, "turn": turn.variant["turn"]}
                    | {"prompt": turn.variant["prompt"], "baseline": turn.baseline["reply"]}
                    | {"variant": turn.variant["reply"]}
                    for change, turn in (changed_turns(matched, num_changes) if num_changes else ())
                ],
            }
            for matched in analysis.matched
        ],
        "notes": list(analysis.notes),
    }
    return printable_json(json.dumps(finite(content), ensure_ascii=False, indent=1), log=True) + "\n"


def as_csv(analysis: Analysis) -> str:
    """`Analysis.records` as CSV, one record per line; a restricted comparison has the column `only`, too."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    only = {} if analysis.restriction is None else {"only": ", ".join(analysis.restriction.patterns)}
    writer.writerow([*FIELDS, *only])
    for record in analysis.records():
        writer.writerow([harmless(finite(value)) for value in (record | only).values()])
    return text.getvalue()


def harmless(value: Any) -> Any:
    """`value` as a CSV cell; text becomes one line without control characters that no spreadsheet reads as a formula.

    Text whose first visible character is a formula sign is preceded by an apostrophe.
    """
    if not isinstance(value, str):
        return value
    text = printable(value, keep_newlines=False, log=True)
    return f"'{text}" if _begins_formula(value) else text


def _begins_formula(text: str) -> bool:
    # Categories Cc, Cf, Cs, ... are control and format characters; Zs, Zl, Zp are spaces.
    first = next((character for character in text if unicodedata.category(character)[0] not in "CZ"), "")
    return first in _FORMULA_SIGNS


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


def as_markdown(analysis: Analysis, *, num_changes: int = 0) -> str:
    """The comparison as Markdown, with all names escaped.

    It has the outcome of gates and the conversations that made them fail, the restriction, the conclusion, rankings,
    dropped rows, a table per family (of means for a single variant), the `num_changes` most changed conversations of
    each pair, and notes.
    """
    means = [] if analysis.comparisons else analysis.means(analysis.variants[0])
    restriction = "" if analysis.restriction is None else analysis.restriction.sentence
    headline = "; ".join(filter(None, (gates_outcome(analysis.gates), restriction)))
    parts = [f"**{escaped(sentence)}**" for sentence in analysis.races]
    parts += [escaped(RACE_NOTE)] if analysis.races else []
    if analysis.gates:
        parts.append(f"**{'❌' if analysis.failed else '✅'} {escaped(headline)}**")
        parts.append("\n".join(f"- {'❌' if gate.failed else '✅'} {escaped(gate.line)}" for gate in analysis.gates))
        parts += map(_offenders, analysis.offenders)
    elif restriction:
        parts.append(f"**{escaped(restriction)}**")
    parts.append(f"**{escaped(conclusion(analysis.comparisons, means))}**")
    if sentence := settings_sentence(analysis.settings_differ):
        parts.append(escaped(sentence))
    findings = significant(line for line in analysis.comparisons if not line.exploratory)
    if findings:
        parts.append("\n".join(f"- {escaped(finding(line))}" for line in findings))
    if analysis.rankings:
        rankings = [
            f"- {escaped(f'{ranking_sentence(ranking)} ({common_rows(ranking)})')}" for ranking in analysis.rankings
        ]
        parts.append("\n".join(rankings) + f"\n\n{escaped(RANKING_NOTE)}")
    parts += [_trend(trend, exploratory=trend is not analysis.trend) for trend in analysis.trends]
    parts += [escaped(TREND_NOTE)] if analysis.trends else []
    if sentence := left_out(analysis.dropped, analysis.first_metric):
        parts.append(escaped(sentence))
    families = {family.name: family for family in analysis.families}
    for name, lines in by_family(analysis.comparisons).items():
        details = "; ".join(
            filter(None, (sample_size_text(lines, analysis.repetitions), power(lines), rank_disagreement(lines)))
        )
        correction_sentence = correction(families[name], lines) if name in families else ""
        sentences = " ".join(filter(None, (details and f"{details}.", correction_sentence)))
        decidable, undecidable = without_undecidable(lines)
        table = _table(decidable) if decidable else ""
        texts = (f"### {escaped(family_title(lines))}", escaped(sentences), table, escaped(undecidable))
        parts.append("\n\n".join(filter(None, texts)))
    if not analysis.comparisons:
        parts.extend(f"### {escaped(variant.label)}\n\n{_means(analysis, variant)}" for variant in analysis.variants)
    parts += [_blame(cell_blame) for cell_blame in analysis.blame]
    parts += [_changes(matched, num_changes) for matched in analysis.matched] if num_changes else []
    if analysis.notes:
        parts.append("\n".join(f"> {escaped(note)}" for note in analysis.notes))
    return "\n\n".join(parts) + "\n"


def _offenders(offenders: Offenders) -> str:
    """The conversations that made a gate fail, as a table, and the command that shows all of them."""
    sides = list(dict.fromkeys(label for offender in offenders.worst for label in offender.replies))
    rows = [
        _row(
            (
                offender.conversation,
                f"{offender.turn}" + (f", repeat {offender.repeat}" if offender.repeat else ""),
                offender.problem,
                *(_cell_text(text) for text in (offender.prompt, *(offender.replies.get(side, "") for side in sides))),
            )
        )
        for offender in offenders.worst
    ]
    head = _row(("conversation", "turn", "what failed", "prompt", *sides))
    table = "\n".join([head, "|---" * (4 + len(sides)) + "|", *rows])
    command = f"\n\nAll of them: <code>{escaped(offenders.command)}</code>" if offenders.command else ""
    result = offenders.result
    return f"{escaped(f'{result.condition}: {result.label} {offenders.title}')}\n\n{table}{command}"


def _changes(matched: MatchedRows, number: int) -> str:
    """The most changed conversations of a pair, each with its most changed turn."""
    labels = matched.pair.variant.label, matched.pair.baseline.label
    rows = [
        _row(
            (
                change.conversation,
                *(signed(value, 2) for value in (change.score, change.nll)),
                str(turn.variant["turn"]),
                *(_cell_text(text) for text in (turn.variant["prompt"], turn.baseline["reply"], turn.variant["reply"])),
            )
        )
        for change, turn in changed_turns(matched, number)
    ]
    title = f"### {escaped(f'Most changed, {labels[0]} against {labels[1]}')}"
    if not rows:
        return f"{title}\n\nAll replies are equal."
    head = _row(("conversation", "score", "nll", "turn", "prompt", labels[1], labels[0]))
    return "\n".join([f"{title}\n", head, "|---|---:|---:|---:|---|---|---|", *rows])


def _cell_text(text: str) -> str:
    """A text cut to the size of a table's cell."""
    return shortened(" ".join(text.split()), _MAX_CELL)


def _blame(blame: Blame) -> str:
    paragraphs = [f"### {escaped(BLAME_TITLE)}", escaped(blame.sentence) + "."]
    if blame.by_turn:
        rows = [_row((str(turn), str(count), named_dialogues(blame, turn))) for turn, count in blame.by_turn.items()]
        paragraphs.append("\n".join(["| turn | dialogues | such as |", "|---:|---:|---|", *rows]))
    return "\n\n".join(paragraphs)


def _trend(trend: Trend, *, exploratory: bool) -> str:
    rows = [
        _row(
            (
                f"{point.x:,g}",
                point.variant.label,
                shown_mean(trend.metric, point.mean),
                mean_interval(trend.metric, point.low, point.high),
            )
        )
        for point in trend.points
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
        _row(
            (
                *(mean.metric.name, mean.group or "all", shown_mean(mean.metric, mean.mean), interval(mean)),
                *(f"{count:,}" for count in (mean.num_values, mean.num_conversations)),
            )
        )
        for mean in analysis.means(variant)
    ]
    names = "| metric | of | mean | 95 % interval | values | conversations |"
    return "\n".join([names, "|---|---|---:|---|---:|---:|", *rows])


def _table(lines: Sequence[Comparison]) -> str:
    names = "".join(f" {column.name} |" for column in COLUMNS)
    rules = "".join("---|" if column.left else "---:|" for column in COLUMNS)
    several_baselines = len({line.pair.baseline for line in lines}) > 1
    rows = [
        _row((heading(line) if several_baselines else variant_label(line), *(column.text(line) for column in COLUMNS)))
        for line in lines
    ]
    return "\n".join([f"| {'comparison' if several_baselines else 'variant'} |{names}", f"|---|{rules}", *rows])
