"""The HTML report of a comparison: one file that needs no network and runs only its own script."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from rwkvbatch import __version__
from rwkvbatch.comparison.analysis import Analysis
from rwkvbatch.comparison.dialogues.failures import FailureCount, failures_by_check, failures_by_tag
from rwkvbatch.comparison.gates.results import gates_outcome
from rwkvbatch.comparison.numbers import difference, interval, number, p_value, shown_mean, with_minus
from rwkvbatch.comparison.pairing.settings import settings_sentence
from rwkvbatch.comparison.report.charts import memory_figures, most_different, sweep_figures, trend_figure, turn_figures
from rwkvbatch.comparison.report.page_data import page_data
from rwkvbatch.comparison.runs.data import Variant, varied_settings
from rwkvbatch.comparison.runs.table import without_collection
from rwkvbatch.comparison.statistics.differences import Comparison
from rwkvbatch.comparison.wording import (
    BLAME_TITLE,
    RACE_NOTE,
    RANKING_NOTE,
    by_family,
    by_heading,
    common_rows,
    conclusion,
    correction,
    directions,
    family_title,
    heading,
    left_out,
    metric_title,
    named_dialogues,
    power,
    rank_disagreement,
    sample_size_text,
    trend_sentence,
    verdict,
    without_undecidable,
)
from rwkvbatch.errors import counted
from rwkvbatch.prompt.escaping import printable
from rwkvbatch.results.summary import percentage

if TYPE_CHECKING:
    from jinja2 import Template

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

MAX_FAILURE_COLUMNS: Final = 6
"""The most variants in the tables of failures; if there are more, those that differ most are shown."""
MAX_FAILURE_ROWS: Final = 30
_HERE = Path(__file__).parent
_MAX_NAMED_RUNS = 3
_MAX_VALUE = 400
"""The most characters of a value in the table of settings."""


@dataclass(frozen=True)
class Bar:
    """An interval drawn in a table cell, on a scale from 0 to 100 with zero at 50."""

    low: float
    high: float
    mean: float


def _without_controls(value: object) -> object:
    """A value for the template; text loses control characters and workflow commands of CI services."""
    return printable(value, log=True) if type(value) is str else value


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_without_controls,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


@without_collection()
def as_html(analysis: Analysis) -> str:
    """The whole report as one HTML document."""
    from markupsafe import Markup

    style = (_HERE / "report.css").read_text(encoding="utf-8")
    script = (_HERE / "report.js").read_text(encoding="utf-8")
    data = page_data(analysis)
    families = by_family(analysis.comparisons)
    decisive = next(iter(families.values()), [])
    others = [line for line in analysis.comparisons if line not in decisive]
    asked = bool(others)
    others += analysis.secondary if analysis.metrics is None else ()
    by_decidability = [without_undecidable(lines) for lines in by_family(others).values()]
    others = [line for lines, _ in by_decidability for line in lines]
    ranges = _ranges((*decisive, *others))
    trends = [(trend, trend is not analysis.trend) for trend in analysis.trends]
    failing = most_different(analysis, MAX_FAILURE_COLUMNS)
    means = [] if analysis.comparisons else analysis.means(analysis.variants[0])
    return _template().render(
        title=_title(analysis) + ("" if analysis.restriction is None else f", {analysis.restriction.sentence}"),
        facts=_headline_facts(analysis),
        conclusion=_typeset(conclusion)(analysis.comparisons, means),
        trends=[
            (trend, vars(figure) | {"svg": Markup(figure.svg)})
            for trend, exploratory in trends
            for figure in (trend_figure(trend, exploratory=exploratory),)
        ],
        trend_sentence=_typeset(trend_sentence),
        about=_about(analysis, decisive) if decisive else [],
        correction=_correction(analysis, decisive) if decisive else "",
        decisive=[(line, _bar(line, ranges.get(line.metric.name, 0.0))) for line in decisive],
        several_baselines=len({line.pair.baseline for line in decisive}) > 1,
        races=analysis.races,
        race_note=RACE_NOTE,
        settings_differ=settings_sentence(analysis.settings_differ),
        left_out_rows=left_out(analysis.dropped, analysis.first_metric, named=True),
        tone=_tone,
        verdict=verdict,
        failures=_failures(analysis, failing),
        failing=failing,
        num_variants=len(analysis.variants),
        max_failure_rows=MAX_FAILURE_ROWS,
        rankings=analysis.rankings,
        ranking_note=RANKING_NOTE,
        common_rows=common_rows,
        shown_mean=_typeset(shown_mean),
        percentage=percentage,
        number=_typeset(number),
        difference=_typeset(difference),
        directions=directions,
        p_value=_typeset(p_value),
        titles=list(dict.fromkeys(line.metric.title for line in others)),
        heading=heading,
        interval=_typeset(interval),
        metric_title=metric_title,
        gates=analysis.gates,
        gates_outcome=gates_outcome(analysis.gates),
        gates_failed=analysis.failed,
        notes=analysis.notes,
        # The SVG is generated here, with all texts escaped by the XML writer.
        sweep=[vars(figure) | {"svg": Markup(figure.svg)} for figure in sweep_figures(analysis)],
        memory=[vars(figure) | {"svg": Markup(figure.svg)} for figure in memory_figures(analysis)],
        blame=analysis.blame,
        blame_title=BLAME_TITLE,
        named_dialogues=named_dialogues,
        drift=_has_both_histories(analysis),
        turns=[vars(figure) | {"svg": Markup(figure.svg)} for figure in turn_figures(analysis)],
        others=[(line, _bar(line, ranges.get(line.metric.name, 0.0))) for line in others],
        asked=asked,
        undecidable=[sentence for _, sentence in by_decidability if sentence],
        headings=list(by_heading(others)),
        means=means,
        by=analysis.by,
        settings=_settings(analysis),
        runs=analysis.runs,
        left_out=data.left_out,
        unknown_systems=data.unknown_systems,
        data=Markup(data.as_script()),
        style=Markup(style),
        script=Markup(script),
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
        version=__version__,
        isnan=math.isnan,
    )


def _typeset(write: Callable[..., str]) -> Callable[..., str]:
    """`write`, with minus signs instead of hyphens in its result."""
    return lambda *values: with_minus(write(*values))


def _tone(line: Comparison) -> str:
    """The style class of a line's verdict; exploratory lines are never coloured."""
    return line.verdict if line.verdict in ("better", "worse", "differs") and not line.exploratory else "plain"


def _has_both_histories(analysis: Analysis) -> bool:
    """Whether there are cells with `--history own` and cells with `--history gold`."""
    histories = {settings.get("history") for run in analysis.runs for settings in run.facts.cells.values()}
    return {"own", "gold"} <= histories


def _about(analysis: Analysis, lines: Sequence[Comparison]) -> list[str]:
    """Sentences on the primary family: its extent, and the differences that it could detect."""
    sentences = [": ".join(filter(None, (family_title(lines), sample_size_text(lines, analysis.repetitions)))) + "."]
    sentences += [f"{text[0].upper()}{text[1:]}." for text in (power(lines), rank_disagreement(lines)) if text]
    return sentences


def _correction(analysis: Analysis, lines: Sequence[Comparison]) -> str:
    """Sentences on the correction of the primary family; empty if it has none."""
    families = [family for family in analysis.families if family.name == lines[0].family]
    return correction(families[0], lines) if families else ""


@dataclass(frozen=True)
class Breakdown:
    """A table of failures: its title, the heading `of` its first column, and its rows."""

    title: str
    of: str
    rows: list[FailureCount]


def _failures(analysis: Analysis, variants: Sequence[Variant]) -> list[Breakdown]:
    """The tables of failures that are not empty."""
    breakdowns = (
        Breakdown("Turns with a failed check, by tag", "tag", failures_by_tag(analysis.table, variants)),
        Breakdown("Failed checks, by kind", "check", failures_by_check(analysis.table, variants)),
    )
    return [breakdown for breakdown in breakdowns if breakdown.rows]


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _title(analysis: Analysis) -> str:
    if analysis.trend is not None:
        return f"{analysis.trend.metric.title} over {analysis.trend.over}: {len(analysis.trend.points)} checkpoints"
    if len(analysis.pairs) == 1:
        return f"{analysis.pairs[0].variant.label} against {analysis.pairs[0].baseline.label}"
    if len(analysis.variants) == 1:
        return analysis.variants[0].label
    runs = ", ".join(run.name for run in analysis.runs)
    if len(analysis.runs) > _MAX_NAMED_RUNS:
        runs = f"{len(analysis.runs)} runs"
    baselines = {pair.baseline.label for pair in analysis.pairs}
    against = f" against {next(iter(baselines))}" if len(baselines) == 1 else ""
    return f"{runs}: {counted(len(analysis.pairs), 'variant')}{against}"


def _headline_facts(analysis: Analysis) -> list[tuple[str, str]]:
    """Names and values of the facts under the title, without empty ones."""
    all_facts = [run.facts for run in analysis.runs]
    models = dict.fromkeys(_model_name(model) for facts in all_facts for model in facts.models)
    scripts = dict.fromkeys(Path(path).name for facts in all_facts for path in facts.scripts)
    seeds = dict.fromkeys(str(facts.seed) for facts in all_facts if facts.seed is not None)
    table = analysis.table
    named_values = [
        ("model", ", ".join(models)),
        ("script", ", ".join(scripts)),
        ("conversations", str(table["conversation"].nunique())),
        ("turns replayed", f"{len(table):,}"),
        ("seed", ", ".join(seeds)),
        ("run on", ", ".join(dict.fromkeys((facts.created or "")[:10] for facts in all_facts))),
    ]
    return [(name, value) for name, value in named_values if value]


def _model_name(model: Any) -> str:
    name = Path(str(model.get("path") or "unnamed")).stem
    layers, width = model.get("layers"), model.get("width")
    return f"{name} ({layers}x{width})" if layers and width else name


def _ranges(lines: Sequence[Comparison]) -> dict[str, float]:
    """The common scale of each metric's bars: the largest distance from zero of a finite end of an interval."""
    ranges: dict[str, float] = {}
    for line in lines:
        ends = [abs(end) for end in (line.low, line.high, line.difference) if math.isfinite(end)]
        ranges[line.metric.name] = max((*ends, ranges.get(line.metric.name, 0.0)))
    return ranges


def _bar(line: Comparison, scale: float) -> Bar | None:
    """The bar of a line; `scale` is drawn near its edges, and an infinite end beyond them."""
    if math.isnan(line.low) or scale == 0 or (math.isinf(line.low) and math.isinf(line.high)):
        return None
    low, high, mean = (
        round(50 + 50 * min(1.06, max(-1.06, value / (1.06 * scale))), 2)
        for value in (line.low, line.high, line.difference)
    )
    return Bar(low, high, mean)


def _settings(analysis: Analysis) -> list[tuple[str, list[str]]]:
    """The rows of the table of settings: a name, and its value in each run."""
    columns = [
        _flat(run.manifest.get("about", {})) | _flat(_varied(run.facts.identity or {"cells": run.facts.cells}))
        for run in analysis.runs
    ]
    names = dict.fromkeys(name for column in columns for name in column)
    return [(name, [column.get(name, "") for column in columns]) for name in names]


def _varied(identity: Mapping[str, Any]) -> dict[str, Any]:
    """`identity` with only the settings that differ between cells, or with all settings of a single cell."""
    cells = identity.get("cells", {})
    if len(cells) <= 1:
        return dict(identity)
    varied = varied_settings(cells)
    varied_cells = {
        name: {key: value for key, value in settings.items() if key in varied} for name, settings in cells.items()
    }
    return {**identity, "cells": varied_cells}


def _flat(values: Any, prefix: str = "") -> dict[str, str]:
    """Nested records as one entry per leaf; lists of plain values stay together."""
    if isinstance(values, dict):
        items = [(str(key), value) for key, value in cast("dict[Any, Any]", values).items()]
    elif isinstance(values, list) and any(isinstance(item, dict) for item in cast("list[Any]", values)):
        items = [(str(index), value) for index, value in enumerate(cast("list[Any]", values))]
    else:
        text = ", ".join(map(str, cast("list[Any]", values))) if isinstance(values, list) else str(values)
        return {prefix: text if len(text) <= _MAX_VALUE else f"{text[: _MAX_VALUE - 1]}…"} if prefix else {}
    leaves: dict[str, str] = {}
    for key, value in items:
        leaves.update(_flat(value, f"{prefix}.{key}" if prefix else key))
    return leaves
