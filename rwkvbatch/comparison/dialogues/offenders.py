"""The conversations that made a gate fail, worst first, each with its worst turn on both sides."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rwkvbatch.comparison.gates.expressions import Gate, Value
from rwkvbatch.comparison.gates.results import GateResult
from rwkvbatch.comparison.metrics.declarations import metric_named
from rwkvbatch.comparison.pairing.matching import MatchedRows
from rwkvbatch.comparison.runs.data import RunData, Variant
from rwkvbatch.comparison.values.columns import rows_of
from rwkvbatch.comparison.values.groups import with_tag
from rwkvbatch.errors import counted, shortened

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

MOST_NAMED: Final = 5
"""The most conversations that are named for a gate."""
_MAX_PROBLEM = 70
_MAX_TEXT = 60
_KEYS: Final = ["conversation", "repeat", "turn"]


@dataclass(frozen=True)
class Offender:
    """A conversation that made a gate fail.

    Attributes:
        repeat, turn: its worst turn.
        problem: what is wrong in this turn, and whether the baseline passes there.
        replies: by the label of the side, baseline first.
    """

    conversation: str
    repeat: int
    turn: int
    problem: str
    prompt: str
    replies: Mapping[str, str]


@dataclass(frozen=True)
class Offenders:
    """The worst conversations of a failed gate.

    Attributes:
        result: the gate on one variant.
        worst: at most `MOST_NAMED`, worst first.
        num_conversations: number of all conversations that contributed.
        command: shows the rest; empty for results in memory.
    """

    result: GateResult
    worst: tuple[Offender, ...]
    num_conversations: int
    command: str

    @property
    def title(self) -> str:
        """The number of conversations, as the title of a list."""
        count = counted(self.num_conversations, "conversation")
        shown = f", the worst {len(self.worst)}" if self.num_conversations > len(self.worst) else ", worst first"
        return f"fails because of {count}{shown if self.num_conversations > 1 else ''}"

    @property
    def lines(self) -> list[str]:
        """The list as indented lines of a log, with texts cut short."""
        lines = [f"  {self.title}:"]
        for offender in self.worst:
            where = f"turn {offender.turn}" + (f", repeat {offender.repeat}" if offender.repeat else "")
            lines.append(f"    {offender.conversation}, {where}: {offender.problem}")
            named = {"prompt": offender.prompt, **offender.replies}
            lines += [f"      {name}: {_one_line(text)}" for name, text in named.items()]
        return lines + ([f"  all of them: {self.command}"] if self.command else [])


def find_offenders(
    result: GateResult,
    pairs: Sequence[MatchedRows],
    variants: Sequence[Variant],
    runs: Sequence[RunData],
    table: pd.DataFrame,
) -> Offenders | None:
    """The conversations that made a gate fail on a variant; None if it passed, or if no conversation did.

    These are the ones with errors or missing turns where such rows failed the gate. Otherwise they are those that moved
    the gate's first metric in the failing direction, or that are beyond its limit if no baseline is in the gate.

    Args:
        table: all rows of all runs (`comparable_rows`).
    """
    if not result.failed:
        return None
    variant = next(variant for variant in variants if variant.label == result.label)
    matched = next((rows for rows in pairs if rows.pair.variant == variant and len(rows)), None)
    baseline = None if matched is None else matched.pair.baseline
    found = list(_incomplete(result, variant, baseline, table))
    by_failures = bool(found)
    if not found:
        value = _judged_value(result.gate)
        if value is None:
            return None
        rows = rows_of(table, variant) if matched is None else matched.rows
        found = _by_metric(result, value, rows, baseline)
        by_failures = metric_named(value.metric).name in ("score", "passed")
    if not found:
        return None
    num_conversations = len({offender.conversation for offender in found})
    both = baseline if baseline is not None and any(value.of_baseline for value in result.gate.values) else None
    command = _command(variant, both, runs, num_conversations, only_failures=by_failures)
    return Offenders(result, tuple(found[:MOST_NAMED]), num_conversations, command)


def _incomplete(
    result: GateResult, variant: Variant, baseline: Variant | None, table: pd.DataFrame
) -> Iterator[Offender]:
    """The first turn of each conversation that ended in an error, and then those that the variant lacks."""
    counts = {value.metric for value in result.gate.values if metric_named(value.metric).level == "variant"}
    counts |= {"error_rate"} & {value.metric for value in result.gate.values}
    if not result.reason and not counts:
        return
    own = rows_of(table, variant)
    sides = [(variant, own)] if baseline is None else [(variant, own), (baseline, rows_of(table, baseline))]
    named: set[str] = set()
    for side, rows in sides:
        for row in rows.loc[rows["finish_reason"] == "error"].sort_values("turn", kind="stable").to_dict("records"):
            if row["conversation"] not in named:
                named.add(row["conversation"])
                problem = f"error in {side.label}: {shortened(' '.join(str(row['error']).split()), _MAX_PROBLEM)}"
                yield _offender(row, problem, {})
    if baseline is None or "missing" not in (*counts, *result.reason.split()):
        return
    keys = set(own[_KEYS].itertuples(index=False, name=None))
    for row in sides[1][1].to_dict("records"):
        if row["conversation"] not in named and tuple(row[name] for name in _KEYS) not in keys:
            named.add(row["conversation"])
            yield _offender(row, f"missing in {variant.label}", {baseline.label: row["reply"]})


def _judged_value(gate: Gate) -> Value | None:
    """The gate's first statistic of a metric with values of the variant's turns; None if it has none."""
    values = [value for value in gate.values if metric_named(value.metric).level in ("turn", "conversation")]
    return next((value for value in values if not value.of_baseline), None)


def _by_metric(result: GateResult, value: Value, rows: pd.DataFrame, baseline: Variant | None) -> list[Offender]:
    """The conversations that moved a metric in the direction in which the gate fails, worst first."""
    gate, metric = result.gate, metric_named(value.metric)
    column = metric.column if metric.level == "turn" else "score"
    own, other = ("", "") if baseline is None else ("_b", "_a")
    if value.tag is not None:
        rows = with_tag(rows, value.tag, other)
    sign = 1 if (gate.comparator in (">", ">=")) == (gate.option == "--fail-if") else -1
    sign *= _direction(gate, value)
    values = rows[f"{column}{own}"].to_numpy(dtype=np.float64)
    if not np.isfinite(values).any():
        return []
    is_paired = baseline is not None and any(item.of_baseline for item in gate.values)
    if is_paired:
        excess = sign * (values - rows[f"{column}{other}"].to_numpy(dtype=np.float64))
    else:
        limit = result.right if gate.left == value else result.left if gate.right == value else math.nan
        is_limit = not metric.log_of and math.isfinite(limit)
        excess = sign * (values - (limit if is_limit else float(np.nanmean(values))))
    by_conversation: dict[str, tuple[list[float], int]] = {}
    for index, (name, number) in enumerate(zip(rows["conversation"].tolist(), excess.tolist(), strict=True)):
        if not math.isnan(number):
            numbers, worst = by_conversation.setdefault(name, ([], index))
            numbers.append(number)
            by_conversation[name] = (numbers, index if number > excess[worst] else worst)
    totals = {name: sum(numbers) if is_paired else sum(numbers) / len(numbers) for name, (numbers, _) in
              by_conversation.items()}  # fmt: skip
    worst_first = sorted((name for name, total in totals.items() if total > 0), key=lambda name: -totals[name])
    offenders: list[Offender] = []
    for name in worst_first:
        row = rows.iloc[by_conversation[name][1]].to_dict()
        replies = {} if baseline is None else {baseline.label: row[f"reply{other}"]}
        replies[result.label] = row[f"reply{own}"]
        problem = _failed_checks(row[f"checks{own}"]) if column in ("score", "passed") else ""
        if problem and baseline is not None:
            problem += f"; {baseline.label} {'fails, too' if _failed_checks(row[f'checks{other}']) else 'passed'}"
        if not problem:
            problem = f"{column} {row[f'{column}{own}']:.4g}"
            problem += f", {baseline.label} {row[f'{column}{other}']:.4g}" if baseline is not None else ""
        offenders.append(_offender(row, problem, replies, other))
    return offenders


def _direction(gate: Gate, value: Value) -> int:
    """1 if `left - right` grows with a value, -1 if it falls."""
    form = gate.form
    if form is not None and value in form.weights:
        return 1 if form.weights[value] > 0 else -1
    return -1 if gate.right == value else 1


def _failed_checks(checks: Sequence[Mapping[str, Any]]) -> str:
    failed = [check for check in checks if check["passed"] is False]
    return shortened("; ".join(f"{_check(check)} failed" for check in failed), _MAX_PROBLEM)


def _check(check: Mapping[str, Any]) -> str:
    return str(check["kind"]) + ("" if check["expected"] in (None, "") else f" {check['expected']!r}")


def _offender(row: Mapping[Any, Any], problem: str, replies: Mapping[str, str], side: str = "") -> Offender:
    prompt = row["prompt"] if "prompt" in row else row[f"prompt{side}"]
    return Offender(str(row["conversation"]), int(row["repeat"]), int(row["turn"]), problem, prompt, dict(replies))


def _one_line(text: str) -> str:
    """A text cut to the width of a log; an empty reply is visible."""
    return shortened(" ".join(text.split()), _MAX_TEXT) or "(empty)"


def _command(
    variant: Variant, baseline: Variant | None, runs: Sequence[RunData], number: int, *, only_failures: bool
) -> str:
    """The command that shows all conversations; empty if a run is not on disk."""
    of_name = {run.name: run for run in runs}
    sides = [side for side in (baseline, variant) if side is not None]
    paths = [of_name[side.run].source.partition("::")[0] for side in sides]
    if not all(Path(path).exists() for path in paths):
        return ""
    has_cells = [len(of_name[side.run].facts.cells) > 1 or len(of_name[side.run].cells) > 1 for side in sides]
    if baseline is not None:
        names = [f"{path}::{side.cell}" if cells else path for path, side, cells in
                 zip(paths, sides, has_cells, strict=True)]  # fmt: skip
        return f"rwkvbatch compare {shlex.join(names)} --changes {number}"
    cell = ["--cell", variant.cell] if has_cells[-1] else []
    return shlex.join(["rwkvbatch", "show", paths[-1], *cell, *(["--failed"] if only_failures else [])])
