"""The report's page, put together."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from rwkvbatch import __version__
from rwkvbatch.comparison.analysis import Analysis
from rwkvbatch.comparison.changes import most_changed
from rwkvbatch.comparison.metrics import TURN_METRICS
from rwkvbatch.comparison.paired import Comparison
from rwkvbatch.comparison.ranking import rows_of
from rwkvbatch.comparison.report.charts import sweep_figures, turn_figures
from rwkvbatch.comparison.report.wording import (
    ARROWS,
    RANKING_NOTE,
    common_rows,
    conclusion,
    findings,
    heading,
    interval,
    mean_interval,
    number,
    p_value,
    signed,
)

# pandas ships no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false


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
    conversations: dict[str, dict[str, Any]] = {name: {"tags": [], "asked": {}, "rows": {}} for name in chosen}
    for index, variant in enumerate(analysis.variants):
        rows = rows_of(analysis.table, variant)
        own = rows.loc[rows["conversation"].isin(list(chosen))]
        for row in own.to_dict("records"):
            _add(conversations[row["conversation"]], index, row, [metric.name for metric in metrics])
    content = {
        "variants": [variant.label for variant in analysis.variants],
        "metrics": [
            {"name": m.name, "title": m.title, "unit": m.unit, "digits": m.digits, "better": m.better} for m in metrics
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
            "finish_reason": row["finish_reason"],
            "error": row["error"],
            "numbers": [_number(row[name]) for name in metrics],
            "checks": [[check["kind"], bool(check["passed"]), check.get("detail")] for check in row["checks"]],
        }
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 6)


_HERE = Path(__file__).parent
_MAX_VALUE = 400


@dataclass(frozen=True)
class Bar:
    """An interval drawn in a table cell, in units of 0 to 100 with zero in the middle."""

    low: float
    high: float
    mean: float


@dataclass(frozen=True)
class Finding:
    """What the table says of one metric beyond noise: its largest difference, and how many say the same."""

    line: Comparison
    num_found: int
    num_tested: int


@dataclass(frozen=True)
class Fact:
    """One line of the manifest's table: the same setting in every run or cell."""

    name: str
    values: tuple[str, ...]

    @property
    def differs(self) -> bool:
        return len(set(self.values)) > 1


def as_html(analysis: Analysis) -> str:
    """The whole report as one HTML document."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    style = (_HERE / "report.css").read_text(encoding="utf-8")
    script = (_HERE / "report.js").read_text(encoding="utf-8")
    dialogues = collect(analysis)
    reaches = _reaches(analysis.comparisons)
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.j2")
    return template.render(
        title=_title(analysis),
        facts=_headline_facts(analysis),
        conclusion=conclusion(analysis),
        findings=_findings(analysis),
        rankings=analysis.rankings,
        ranking_note=RANKING_NOTE,
        common_rows=common_rows,
        number=_typeset(number),
        signed=_typeset(signed),
        p_value=_typeset(p_value),
        titles=list(dict.fromkeys(line.metric.title for line in analysis.comparisons)),
        heading=heading,
        interval=_typeset(interval),
        mean_interval=_typeset(mean_interval),
        arrows=ARROWS,
        gates=analysis.gates,
        notes=analysis.notes,
        sweep=[_trusted(figure) for figure in sweep_figures(analysis)],
        turns=[_trusted(figure) for figure in turn_figures(analysis)],
        comparisons=[(line, _bar(line, reaches.get(line.metric.name, 0.0))) for line in analysis.comparisons],
        headings=list(dict.fromkeys(heading(line) for line in analysis.comparisons)),
        means=analysis.means(analysis.variants[0]) if not analysis.comparisons else [],
        manifest=_manifest_facts(analysis),
        runs=analysis.runs,
        left_out=dialogues.left_out,
        data=Markup(dialogues.as_script()),
        style=Markup(style),
        script=Markup(script),
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
        version=__version__,
        isnan=math.isnan,
    )


def _typeset(write: Callable[..., str]) -> Callable[..., str]:
    """`write`, with a true minus sign instead of a hyphen: plain formats must stay readable for programs."""
    return lambda *values: write(*values).replace("-", "\u2212")


def _findings(analysis: Analysis) -> list[Finding]:
    """One a metric, in the table's order; where variants go both ways, the largest difference is shown."""
    found = findings(analysis)
    return [
        Finding(
            max((line for line in found if line.metric == metric), key=lambda line: abs(line.difference)),
            sum(line.metric == metric for line in found),
            sum(line.metric == metric for line in analysis.comparisons),
        )
        for metric in dict.fromkeys(line.metric for line in analysis.comparisons)
        if any(line.metric == metric for line in found)
    ]


def _trusted(figure: Any) -> dict[str, Any]:
    """The drawing is markup of our own making, in which every text was escaped by the XML writer."""
    from markupsafe import Markup

    return {**vars(figure), "svg": Markup(figure.svg)}


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _title(analysis: Analysis) -> str:
    if len(analysis.pairs) == 1:
        return f"{analysis.pairs[0].variant.label} against {analysis.pairs[0].baseline.label}"
    if len(analysis.variants) == 1:
        return analysis.variants[0].label
    names = ", ".join(run.name for run in analysis.runs)
    baselines = {pair.baseline.label for pair in analysis.pairs}
    against = f" against {next(iter(baselines))}" if len(baselines) == 1 else ""
    return f"{names}: {len(analysis.pairs)} variants{against}"


def _headline_facts(analysis: Analysis) -> list[tuple[str, str]]:
    facts = [run.facts for run in analysis.runs]
    models = dict.fromkeys(_model_name(model) for fact in facts for model in fact.models)
    scripts = dict.fromkeys(Path(path).name for fact in facts for path in fact.scripts)
    seeds = dict.fromkeys(str(fact.seed) for fact in facts if fact.seed is not None)
    table = analysis.table
    shown = [
        ("model", ", ".join(models)),
        ("script", ", ".join(scripts)),
        ("conversations", str(_num_conversations(analysis))),
        ("turns replayed", f"{len(table):,}"),
        ("seed", ", ".join(seeds)),
        ("run on", ", ".join(dict.fromkeys((fact.created or "")[:10] for fact in facts))),
    ]
    return [(name, value) for name, value in shown if value]


def _num_conversations(analysis: Analysis) -> int:
    return len({name for run in analysis.runs for name in run.conversations})


def _model_name(model: Any) -> str:
    name = Path(str(model.get("path") or "unnamed")).stem
    layers, width = model.get("layers"), model.get("width")
    return f"{name} ({layers}x{width})" if layers and width else name


def _reaches(lines: Sequence[Comparison]) -> dict[str, float]:
    """By metric, how far from zero its intervals reach: one scale for all of them, so that bars can be compared."""
    reaches: dict[str, float] = {}
    for line in lines:
        if not math.isnan(line.low):
            reach = max(abs(line.low), abs(line.high))
            reaches[line.metric.name] = max(reach, reaches.get(line.metric.name, 0.0))
    return reaches


def _bar(line: Comparison, reach: float) -> Bar | None:
    """`reach` away from zero is near the edge."""
    if math.isnan(line.low) or reach == 0:
        return None
    low, high, mean = (round(50 + 50 * value / (1.06 * reach), 2) for value in (line.low, line.high, line.difference))
    return Bar(low, high, mean)


def _manifest_facts(analysis: Analysis) -> list[Fact]:
    columns = [
        _flat(run.manifest.get("about", {})) | _flat(_without_cells(run.facts.identity)) for run in analysis.runs
    ]
    names = dict.fromkeys(name for column in columns for name in column)
    return [Fact(name, tuple(column.get(name, "") for column in columns)) for name in names]


def _without_cells(identity: Any) -> dict[str, Any]:
    """Cells as one entry each, with only the settings in which cells differ, or all where there is one."""
    from rwkvbatch.comparison.loading import varied_settings

    cells = identity.get("cells", {})
    keys = varied_settings(cells) if len(cells) > 1 else None
    shown = {
        name: {key: value for key, value in settings.items() if keys is None or key in keys}
        for name, settings in cells.items()
    }
    return {**identity, "cells": shown}


def _flat(values: Any, prefix: str = "") -> dict[str, str]:
    """Nested records as one line a leaf; lists of plain values stay together."""
    if isinstance(values, dict):
        items = [(str(key), value) for key, value in cast("dict[Any, Any]", values).items()]
    elif isinstance(values, list) and any(isinstance(item, dict) for item in cast("list[Any]", values)):
        items = [(str(place), value) for place, value in enumerate(cast("list[Any]", values))]
    else:
        text = ", ".join(map(str, cast("list[Any]", values))) if isinstance(values, list) else str(values)
        return {prefix: text[:_MAX_VALUE]} if prefix else {}
    found: dict[str, str] = {}
    for key, value in items:
        found.update(_flat(value, f"{prefix}.{key}" if prefix else key))
    return found
