"""`Analysis`: a finished comparison, from which every output format is written."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rwkvbatch.comparison.dialogues.blame import Blame
from rwkvbatch.comparison.dialogues.offenders import Offenders, find_offenders
from rwkvbatch.comparison.gates.results import GateResult
from rwkvbatch.comparison.metrics.declarations import Metric
from rwkvbatch.comparison.numbers import interval, shown_mean
from rwkvbatch.comparison.pairing.matching import Dropped, MatchedRows
from rwkvbatch.comparison.pairing.pairs import Pair
from rwkvbatch.comparison.pairing.preference import Preferences
from rwkvbatch.comparison.pairing.settings import SettingDifference, settings_sentence
from rwkvbatch.comparison.runs.data import RunData, Variant
from rwkvbatch.comparison.runs.restriction import Restriction
from rwkvbatch.comparison.statistics.differences import Comparison, Family, compare_metric
from rwkvbatch.comparison.statistics.means import VariantMean, variant_means
from rwkvbatch.comparison.statistics.metric_selection import available_metrics
from rwkvbatch.comparison.statistics.ranking import Ranking
from rwkvbatch.comparison.statistics.trend import Trend
from rwkvbatch.comparison.values.groups import Breakdown
from rwkvbatch.comparison.wording import COLUMNS as TABLE_COLUMNS
from rwkvbatch.comparison.wording import RACE_NOTE, conclusion, heading, race_sentence, ranking_sentence, summary
from rwkvbatch.errors import StorageError, counted
from rwkvbatch.files import save_file, user_path, writing_hint
from rwkvbatch.prompt.escaping import html_table, printable
from rwkvbatch.targets import FileKind, check_target, file_head

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

COLUMNS: Final[Mapping[str, Callable[[Comparison], Any]]] = {
    "baseline": lambda line: line.pair.baseline.label,
    "variant": lambda line: line.pair.variant.label,
    "group": lambda line: line.group,
    "metric": lambda line: line.metric.name,
    "unit": lambda line: line.metric.unit,
    "better": lambda line: line.metric.better,
    **{
        name: lambda line, name=name: getattr(line, name)
        for name in (
            "baseline_mean", "variant_mean", "difference", "standard_error", "low", "high", "low_alone", "high_alone",
            "p", "p_adjusted", "p_rank", "level_each", "verdict", "wins", "ties", "losses", "detectable", "margin",
            "num_values", "num_without_preference", "num_conversations", "family", "exploratory",
        )
    },
}  # fmt: skip
"""The columns of `Analysis.to_pandas`, of CSV and of JSON, with the value of each."""

_MAX_REPR_LINES = 12
_MAX_FAILURES_EXPLAINED = 3

_HTML_REPORT = FileKind("an HTML report", lambda path: file_head(path).lstrip().lower().startswith("<!doctype html>"))


@dataclass(frozen=True, repr=False)
class Analysis:
    """A finished comparison.

    Attributes:
        runs: the compared runs.
        variants: all their cells.
        all_pairs: the joined rows of each variant with its baseline, which may be none.
        primary: the metric that decides; None if nothing is compared.
        comparisons: the lines of the table: those of the primary metric and of other requested metrics. Each metric's
            lines over all rows come before those of its groups.
        families: their corrections, in the same order.
        gates: the result of every gate on every variant that is not a baseline.
        notes: warnings about rows that did not match, and about anything that makes the comparison less reliable.
        table: all rows of all runs (`comparable_rows`).
        metrics: names of the requested metrics; None if none were requested.
        rankings: rankings of three or more variants by the primary metric, then by the requested metrics.
        dropped: the rows that each variant lacks.
        by, ks, margin: as given to `compare`.
        trends: with `over`, the trend of the primary metric over checkpoints, then the exploratory trends of `metrics`.
        blame: with `blame`, the turns at which dialogues went wrong; else empty.
        restriction: with `only`, the conversations that are compared; None for all.
        settings_differ: the settings of runs that differ between variants and baselines, without those of a grid.
        preferences: with `judge`, the counts of its verdicts on each pair's replies; else empty.
    """

    runs: tuple[RunData, ...]
    variants: tuple[Variant, ...]
    all_pairs: tuple[MatchedRows, ...]
    primary: Metric | None
    comparisons: tuple[Comparison, ...]
    families: tuple[Family, ...]
    gates: tuple[GateResult, ...]
    notes: tuple[str, ...]
    table: pd.DataFrame
    metrics: tuple[str, ...] | None = None
    rankings: tuple[Ranking, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    by: Breakdown | None = None
    ks: tuple[int, ...] | None = None
    margin: float | None = None
    trends: tuple[Trend, ...] = ()
    blame: tuple[Blame, ...] = ()
    preferences: tuple[Preferences, ...] = ()
    restriction: Restriction | None = None
    settings_differ: tuple[SettingDifference, ...] = ()

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Each variant with its baseline."""
        return tuple(pair_rows.pair for pair_rows in self.all_pairs)

    @property
    def matched(self) -> tuple[MatchedRows, ...]:
        """The joined rows of each pair that has any."""
        return tuple(pair_rows for pair_rows in self.all_pairs if len(pair_rows))

    @property
    def trend(self) -> Trend | None:
        """The trend of the primary metric; None without `over`."""
        return next(iter(self.trends), None)

    @property
    def races(self) -> tuple[str, ...]:
        """The result of each run that is a race, as a sentence."""
        return tuple(filter(None, map(race_sentence, self.runs)))

    @property
    def race_notes(self) -> tuple[str, ...]:
        """The results of races, and what they mean for differences; empty without races."""
        return (*(f"{sentence}." for sentence in self.races), RACE_NOTE) if self.races else ()

    @property
    def first_metric(self) -> Metric | None:
        """The metric of the first lines of the table, or the primary one where these are counts of whole variants."""
        first = self.comparisons[0].metric if self.comparisons else self.primary
        return self.primary if first is None or first.level == "variant" else first

    @property
    def available(self) -> tuple[Metric, ...]:
        """The metrics that can be compared: those of which both sides of a pair have values."""
        return tuple(available_metrics(self.matched, self.ks))

    @property
    def repetitions(self) -> tuple[int, int]:
        """The fewest and the most repetitions of a conversation that a pair has in common; 0 without pairs."""
        counts: list[int] = []
        for pair_rows in self.matched:
            conversations, repeats = (
                pair_rows.columns[name].to_numpy(np.int64) for name in ("conversation_code", "repeat")
            )
            num_repeats = int(repeats.max(initial=0)) + 1
            repeated_conversations = np.unique(conversations * num_repeats + repeats) // num_repeats
            counts += np.unique(repeated_conversations, return_counts=True)[1].tolist()
        return min(counts, default=0), max(counts, default=0)

    @cached_property
    def secondary(self) -> tuple[Comparison, ...]:
        """The comparisons by all other metrics over all rows, one family per metric; computed on first use."""
        shown = {line.metric.name for line in self.comparisons}
        return tuple(
            line
            for metric in self.available
            if metric.name not in shown
            for line in compare_metric(metric, self.matched, margin=None, exploratory=True)[0]
        )

    def means(self, variant: Variant, *, turns_only: bool = False) -> list[VariantMean]:
        """The means of one variant in the requested metrics, or in all metrics if none were requested.

        Without pairs, those of the groups of `by` follow. `turns_only` leaves out the metrics of conversations.
        """
        ks = () if turns_only else self.ks
        breakdowns: list[Breakdown | None] = [None] if self.by is None or self.pairs else [None, self.by]
        return [
            mean
            for by in breakdowns
            for mean in variant_means(self.table, variant, by=by, ks=ks)
            if self.metrics is None or mean.metric.name in self.metrics
        ]

    def records(self) -> list[dict[str, Any]]:
        """The table: one record per comparison with the keys of `COLUMNS`.

        Without comparisons (a single variant), there is one record per mean. Its interval is in `low` and `high` and,
        because nothing is corrected, also in `low_alone` and `high_alone`; values that need a baseline are None.
        """
        if self.comparisons:
            return [{name: value_of(line) for name, value_of in COLUMNS.items()} for line in self.comparisons]
        return [
            dict.fromkeys(COLUMNS)
            | {"variant": variant.label, "group": mean.group, "metric": mean.metric.name, "unit": mean.metric.unit}
            | {
                "better": mean.metric.better,
                "variant_mean": mean.mean,
                "num_values": mean.num_values,
                "num_conversations": mean.num_conversations,
            }
            | {"low": mean.low, "high": mean.high, "low_alone": mean.low, "high_alone": mean.high}
            for variant in self.variants
            for mean in self.means(variant)
        ]

    def to_pandas(self) -> pd.DataFrame:
        """The table as a `DataFrame` with one row per comparison (or per mean, see `records`)."""
        import pandas as pd

        return pd.DataFrame(self.records(), columns=list(COLUMNS))

    @property
    def failed(self) -> bool:
        """Whether any gate failed."""
        return any(result.failed for result in self.gates)

    @cached_property
    def offenders(self) -> tuple[Offenders, ...]:
        """The conversations that made gates fail, for the first few failed gates of which there are any."""
        found: list[Offenders] = []
        for result in self.gates:
            offenders = find_offenders(result, self.all_pairs, self.variants, self.runs, self.table)
            if offenders is not None:
                found.append(offenders)
            if len(found) == _MAX_FAILURES_EXPLAINED:
                break
        return tuple(found)

    def gate_lines(self, *, only_failed: bool = False) -> list[str]:
        """A line for each gate; below a failed one, the conversations that made it fail."""
        lines_of = {id(offenders.result): offenders.lines for offenders in self.offenders}
        return [
            line
            for result in self.gates
            if result.failed or not only_failed
            for line in (result.line, *lines_of.get(id(result), ()))
        ]

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write the report as one HTML file, as `rwkvbatch compare --out report.html` does. It replaces a report.

        Raises:
            UsageError: there is a file of another kind at `path`, or a directory.
            StorageError: the file cannot be written.
        """
        from rwkvbatch.comparison.report.html import as_html

        target = user_path(path)
        check_target(target, _HTML_REPORT, replace=True)
        try:
            save_file(target, [as_html(self).encode("utf-8", "backslashreplace")])
        except OSError as error:
            raise StorageError(f"{target}: cannot be written: {error.strerror}", hint=writing_hint(error)) from None

    def _repr_html_(self) -> str:
        """The table of `rwkvbatch compare`, for notebooks."""
        if not self.comparisons:
            rows = [
                (variant.label, mean.metric.name, shown_mean(mean.metric, mean.mean), interval(mean))
                for variant in self.variants
                for mean in self.means(variant)
            ]
            return html_table(
                " ".join((*self.race_notes, conclusion(()))), ("variant", "metric", "mean", "95 % interval"), rows
            )
        header = ("variant", "metric", *(column.name for column in TABLE_COLUMNS))
        lines = [
            (heading(line), line.metric.name, *(column.text(line) for column in TABLE_COLUMNS))
            for line in self.comparisons
        ]
        return html_table(" ".join((*self.race_notes, conclusion(self.comparisons))), header, lines)

    def __repr__(self) -> str:
        lines = [f"{heading(line)}: {line.metric.name} {summary(line)}" for line in self.comparisons] or [
            f"{variant.label}: {mean.metric.name} {shown_mean(mean.metric, mean.mean)} {interval(mean)}"
            for variant in self.variants
            for mean in self.means(variant)
        ]
        if len(lines) > _MAX_REPR_LINES:
            lines[_MAX_REPR_LINES:] = [f"... {counted(len(lines) - _MAX_REPR_LINES, 'more line')}, see to_pandas()"]
        restriction = [] if self.restriction is None else [self.restriction.sentence]
        lines = [
            *self.race_notes,
            *restriction,
            conclusion(self.comparisons),
            *filter(None, [settings_sentence(self.settings_differ)]),
            *lines,
            *(ranking_sentence(ranking, max_named=5) for ranking in self.rankings),
        ]
        lines += [gate.line for gate in self.gates]
        return f"<Analysis: {counted(len(self.variants), 'variant')}, {counted(len(self.table), 'row')}>\n" + "\n".join(
            f"  {printable(line, keep_newlines=False)[:160]}" for line in lines
        )
