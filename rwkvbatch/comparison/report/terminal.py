"""Output of comparisons in a terminal: verdicts, word diffs, and replies side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from textwrap import wrap
from typing import Final

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rwkvbatch.comparison.analysis import Analysis
from rwkvbatch.comparison.dialogues.blame import Blame
from rwkvbatch.comparison.dialogues.changes import (
    ConversationChange,
    Piece,
    TurnChange,
    changed_turns,
    most_changed,
    turn_changes,
)
from rwkvbatch.comparison.numbers import interval, shown_mean, signed
from rwkvbatch.comparison.pairing.matching import MatchedRows
from rwkvbatch.comparison.pairing.settings import settings_sentence
from rwkvbatch.comparison.report.terminal_dialogues import headline, metric_values, safe
from rwkvbatch.comparison.report.terminal_table import comparison_table
from rwkvbatch.comparison.statistics.means import VariantMean
from rwkvbatch.comparison.statistics.trend import sparkline
from rwkvbatch.comparison.wording import (
    BLAME_TITLE,
    RACE_NOTE,
    by_family,
    common_rows,
    conclusion,
    family_title,
    left_out,
    metric_title,
    named_dialogues,
    power,
    rank_disagreement,
    ranking_sentence,
    sample_size_text,
    trend_sentence,
    trend_title,
    without_undecidable,
)
from rwkvbatch.errors import UsageError
from rwkvbatch.prompt.escaping import CONTEXT, printable
from rwkvbatch.results.summary import percentage

_PIECE_STYLES: Final = {"same": "", "gone": "red strike", "new": "green bold"}
_MARKS: Final = {"gone": ("[-", "-]"), "new": ("{+", "+}")}
_MAX_LINES = 2
_MAX_DIFF_CHARACTERS = 600


def print_analysis(analysis: Analysis, console: Console, *, num_changes: int = 0) -> None:
    """Print the verdicts, family by family, and the `num_changes` most changed conversations of each pair."""
    for sentence in analysis.races:
        _print_wrapped(sentence, console, "bold")
    if analysis.races:
        _print_wrapped(RACE_NOTE, console)
    if analysis.restriction is not None:
        _print_wrapped(analysis.restriction.sentence, console, "bold")
    if not analysis.comparisons:
        for table in _means(analysis, with_counts=console.width >= WIDTH_WITH_COUNTS):
            console.print(table)
        console.print(Text(conclusion(analysis.comparisons), style="bold"))
    for trend in analysis.trends:
        exploratory = trend is not analysis.trend
        _print_wrapped(trend_title(trend, exploratory=exploratory), console, "bold")
        lowest, highest = (shown_mean(trend.metric, end([p.mean for p in trend.points])) for end in (min, max))
        scale = f"  bars from {lowest} to {highest}"
        console.print(Text(sparkline(trend, max(1, console.width - len(scale))) + scale), soft_wrap=True)
        style = {"improves": "bold green", "worsens": "bold red"}.get("" if exploratory else trend.verdict, "bold")
        _print_wrapped(trend_sentence(trend), console, style)
        console.print()
    rankings = {ranking.metric.name: ranking for ranking in analysis.rankings}
    for index, (family, lines) in enumerate(by_family(analysis.comparisons).items()):
        if index:
            console.print()
        _print_wrapped(family_title(lines), console, "bold")
        if details := "; ".join(filter(None, (sample_size_text(lines, analysis.repetitions), power(lines)))):
            _print_wrapped(details, console, "dim")
        decidable, undecidable = without_undecidable(lines)
        if decidable:
            console.print(comparison_table(decidable, console.width))
        if undecidable:
            _print_wrapped(undecidable, console, "dim")
        if sentence := rank_disagreement(lines):
            _print_wrapped(sentence, console)
        if family in rankings:
            ranking = rankings[family]
            rows = f" ({common_rows(ranking)})" if ranking.num_left_out else ""
            # More names than a line has characters cannot fit on two lines.
            most_named = min(len(ranking.candidates), console.width)
            texts = [ranking_sentence(ranking, max_named=max_named) + rows for max_named in range(most_named, 0, -1)]
            _print_wrapped(_fitting(texts, console.width), console, "bold")
        if not index:
            if sentence := settings_sentence(analysis.settings_differ):
                _print_wrapped(sentence, console, "yellow")
            _print_left_out(analysis, console)
    if not analysis.comparisons:
        _print_left_out(analysis, console)
    for line in analysis.gate_lines():
        # In a pipe or file, also one with colours (FORCE_COLOR), programs search for whole lines.
        style = "" if line.startswith(" ") else "bold red" if line.startswith("FAILED") else "green"
        console.print(safe(line, style), soft_wrap=not console.file.isatty())
    if analysis.comparisons and (hidden := _hidden(analysis)):
        _print_wrapped(hidden, console, "dim")
    for cell_blame in analysis.blame:
        _print_blame(cell_blame, console)
    for matched in analysis.matched if num_changes else ():
        _print_changes(matched, console, num_changes)


def _print_left_out(analysis: Analysis, console: Console) -> None:
    """Print the sentence on rows that are not as planned, under the lines of the first metric, which it is about."""
    if left_out(analysis.dropped, analysis.first_metric):
        texts = [left_out(analysis.dropped, analysis.first_metric, named=named) for named in (True, False)]
        _print_wrapped(_fitting(texts, console.width), console)


def _print_blame(blame: Blame, console: Console) -> None:
    console.print()
    _print_wrapped(BLAME_TITLE, console, "bold")
    _print_wrapped(blame.sentence, console)
    if not blame.by_turn:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("turn", justify="right")
    table.add_column("dialogues", justify="right")
    table.add_column("such as", overflow="fold")
    for turn, count in blame.by_turn.items():
        table.add_row(str(turn), f"{count:,}", safe(named_dialogues(blame, turn)))
    console.print(table)


def _hidden(analysis: Analysis) -> str:
    """A hint at the option that shows more metrics; empty if there are none."""
    if analysis.metrics is not None:
        return ""
    shown = {line.metric.name for line in analysis.comparisons}
    others = sum(metric.name not in shown for metric in analysis.available)
    return f"--all shows {others} other metrics (exploratory)" if others > 1 else ""


def _fitting(texts: Sequence[str], width: int) -> str:
    """The first of `texts` that fits on two lines, or the last one."""
    return next((text for text in texts if len(_wrapped(text, width)) <= _MAX_LINES), texts[-1])


def _wrapped(text: str, width: int) -> list[str]:
    text = printable(text, keep_newlines=False)
    return wrap(text, width, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)


def _print_wrapped(text: str, console: Console, style: str = "") -> None:
    """Print a sentence, with its second and further lines indented."""
    console.print(Text("\n".join(_wrapped(text, console.width)), style=style, overflow="fold"))


def print_conversation(analysis: Analysis, conversation: str, console: Console) -> None:
    """Print one conversation of every pair, turn by turn, with the replies side by side.

    Raises:
        UsageError: no pair has a conversation of that name.
    """
    is_found = False
    for matched in analysis.matched:
        turns = turn_changes(matched, conversation)
        if turns:
            is_found = True
            title = f"{conversation}: {matched.pair.baseline.label} | {matched.pair.variant.label}"
            console.print(headline(title, console.width, "center"))
        for turn in turns:
            console.print(_side_by_side(turn, matched, colour=_in_colour(console)))
            console.print()
    if not is_found:
        raise UsageError(
            f"--show: no matched conversation is called {conversation!r}", hint=_similar_names(analysis, conversation)
        )


def diff_text(pieces: Sequence[Piece], *, colour: bool, limit: int = _MAX_DIFF_CHARACTERS) -> Text:
    """A word diff as one text of about `limit` characters, with styles, or with brackets if `colour` is False."""
    text = Text()
    for piece in pieces:
        piece_text = printable(piece.text, before=text.plain[-CONTEXT:])
        if len(text.plain) + len(piece_text) > limit:
            piece_text = piece_text[: max(0, limit - len(text.plain))] + "…"
        text.append(_marked(piece, piece_text, colour=colour), style=_PIECE_STYLES[piece.kind])
        if len(text.plain) >= limit:
            break
    return text


def _marked(piece: Piece, text: str, *, colour: bool) -> str:
    """The text of a piece, in brackets for a change without colour."""
    opening, closing = ("", "") if colour or piece.kind == "same" else _MARKS[piece.kind]
    return opening + text + closing


def _similar_names(analysis: Analysis, name: str) -> str:
    """A hint that names the conversations most similar to `name`."""
    names = list(dict.fromkeys(change.conversation for matched in analysis.matched for change in most_changed(matched)))
    if not names:
        return "only one variant is given; `rwkvbatch show RUN ID` prints the dialogues of one run"
    similar = get_close_matches(name, names, n=3) or names[:3]
    return f"there are {len(names)}, such as {', '.join(similar)}; `--json` and the HTML report list them"


WIDTH_WITH_COUNTS = 70
"""Columns of a terminal from which tables of means have the numbers of values and conversations."""


def _means(analysis: Analysis, *, with_counts: bool) -> Iterator[Table]:
    """The means of a single variant: a table of all metrics or, with `by`, a table of the groups for each metric."""
    label, means = analysis.variants[0].label, analysis.means(analysis.variants[0])
    if analysis.by is None:
        table = _table_of_means(label, "metric", with_counts=with_counts)
        for mean in means:
            table.add_row(metric_title(mean.metric), *_cells_of_mean(mean, with_counts=with_counts))
        yield table
        return
    by_metric: dict[str, Table] = {}
    for mean in means:
        title = metric_title(mean.metric)
        if title not in by_metric:
            by_metric[title] = _table_of_means(f"{label}, {title}", "of", with_counts=with_counts)
        by_metric[title].add_row(safe(mean.group or "all"), *_cells_of_mean(mean, with_counts=with_counts))
    yield from by_metric.values()


def _table_of_means(title: str, first_column: str, *, with_counts: bool) -> Table:
    table = Table(title=safe(title, "bold"), title_justify="left", box=None, pad_edge=False)
    table.add_column(first_column, overflow="fold")
    table.add_column("mean", justify="right")
    table.add_column("95 % interval")
    for count in ("values", "conversations") if with_counts else ():
        table.add_column(count, justify="right")
    return table


def _cells_of_mean(mean: VariantMean, *, with_counts: bool) -> tuple[str, ...]:
    counts = [f"{count:,}" for count in (mean.num_values, mean.num_conversations)] if with_counts else []
    return shown_mean(mean.metric, mean.mean), interval(mean), *counts


def _print_changes(matched: MatchedRows, console: Console, num_changes: int) -> None:
    changed = changed_turns(matched, num_changes)
    if not changed:
        return
    console.print()
    console.print(safe(f"Most changed, {matched.pair.variant.label} against {matched.pair.baseline.label}", "bold"))
    for change, turn in changed:
        console.print(_change_title(change))
        question = safe(f"turn {turn.baseline['turn']}, repeat {turn.repeat}: {turn.baseline['prompt']}", "dim")
        diff = diff_text(turn.pieces, colour=_in_colour(console))
        console.print(Padding(Group(question, diff), (0, 0, 0, 2)))


def _in_colour(console: Console) -> bool:
    return console.color_system is not None and not console.no_color


def _change_title(change: ConversationChange) -> Text:
    title = safe(change.conversation, "cyan")
    for name, value in (("score", change.score), ("nll", change.nll)):
        if not math.isnan(value):
            title.append(f"  {name} {signed(value, 2)}", style="")
    return title.append(f"  {percentage(change.replies_changed)} of replies differ", style="")


def _side_by_side(turn: TurnChange, matched: MatchedRows, *, colour: bool) -> Group:
    table = Table(box=None, expand=True, pad_edge=False, padding=(0, 2, 0, 0), show_header=True)
    replies: list[Text] = []
    for variant, hidden_kind in ((matched.pair.baseline, "new"), (matched.pair.variant, "gone")):
        table.add_column(safe(variant.label, "bold"), ratio=1, overflow="fold")
        reply = Text()
        for piece in turn.pieces:
            if piece.kind != hidden_kind:
                text = printable(piece.text, before=reply.plain[-CONTEXT:])
                reply.append(_marked(piece, text, colour=colour), style=_PIECE_STYLES[piece.kind])
        replies.append(reply)
    table.add_row(*replies)
    records = (turn.baseline, turn.variant)
    table.add_row(*(Text("  ".join(metric_values(record, ("score", "nll"))), "dim") for record in records))
    position = f"turn {turn.baseline['turn']}, repeat {turn.repeat}  "
    return Group(Text.assemble((position, "dim"), (printable(turn.baseline["prompt"]), "bold")), table)
