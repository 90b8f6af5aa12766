"""The comparison in a terminal: tables that fit 80 columns, word diffs, dialogues side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from textwrap import wrap

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rwkvbatch.comparison.analysis import Analysis
from rwkvbatch.comparison.changes import (
    ConversationChange,
    Piece,
    TurnChange,
    most_changed,
    telling_turn,
    turn_changes,
)
from rwkvbatch.comparison.paired import Comparison, MatchedRows
from rwkvbatch.comparison.ranking import Ranking
from rwkvbatch.comparison.report.dialogue import headline
from rwkvbatch.comparison.report.wording import (
    RANKING_NOTE,
    common_rows,
    conclusion,
    extent,
    heading,
    interval,
    mean_interval,
    metric_title,
    number,
    p_value,
    signed,
    standing,
)
from rwkvbatch.errors import UsageError
from rwkvbatch.prompt.escaping import printable

_VERDICT_STYLES = {"better": "bold green", "worse": "bold red", "differs": "bold yellow"}
_PIECE_STYLES = {"same": "", "gone": "red strike", "new": "green bold"}
_MARKS = {"gone": ("[-", "-]"), "new": ("{+", "+}")}
_WIDE = 104
_COLUMNS = (
    (_WIDE, ("baseline", "variant", "diff", "95 % interval", "W/T/L", "detectable", "p", "verdict")),
    (72, ("baseline", "variant", "diff", "95 % interval", "p", "verdict")),
    (50, ("variant", "diff", "95 % interval", "verdict")),
    (0, ("diff", "95 % interval", "verdict")),
)
"""From which width on a terminal has which columns."""
_LEFT = ("95 % interval", "verdict")
_MANY_PAIRS = 3
_MOST_NAMED = 5
_MAX_DIFF_CHARACTERS = 600


def print_analysis(analysis: Analysis, console: Console, *, num_changes: int = 3) -> None:
    """The tables, the conclusion, and the `num_changes` conversations of each pair that changed most."""
    if analysis.comparisons:
        headings = {heading(line) for line in analysis.comparisons}
        tables = _by_metric if len(headings) >= _MANY_PAIRS else _by_pair
        for table in tables(analysis.comparisons, console.width):
            console.print(table)
            console.print()
    else:
        console.print(_means(analysis))
        console.print()
    console.print(Text(conclusion(analysis), style="bold"))
    if analysis.rankings:
        _print_rankings(analysis.rankings, console)
    shown = analysis.matched if len(analysis.matched) < _MANY_PAIRS else ()
    for matched in shown:
        _print_changes(matched, console, num_changes)
    for gate in analysis.gates:
        console.print(safe(gate.line, "bold red" if gate.failed else "green"))


def print_conversation(analysis: Analysis, conversation: str, console: Console) -> None:
    """One conversation of every pair, side by side, turn by turn.

    Raises:
        UsageError: no pair has a conversation of that name.
    """
    known = False
    for matched in analysis.matched:
        turns = turn_changes(matched, conversation)
        known = known or bool(turns)
        if turns:
            title = f"{conversation}: {matched.pair.baseline.label} | {matched.pair.variant.label}"
            console.print(headline(title, console.width))
        for turn in turns:
            console.print(_side_by_side(turn, matched, colour=_in_colour(console)))
            console.print()
    if not known:
        raise UsageError(
            f"--show: no matched conversation is called {conversation!r}",
            hint=_names_like(analysis, conversation),
        )


def diff_text(pieces: Sequence[Piece], *, colour: bool, limit: int = _MAX_DIFF_CHARACTERS) -> Text:
    """Pieces in one line of thought: struck out and bold, and bracketed where colours do not show."""
    text = Text()
    for piece in pieces:
        shown = printable(piece.text)
        if len(text.plain) + len(shown) > limit:
            shown = shown[: max(0, limit - len(text.plain))] + "…"
        before, after = ("", "") if colour or piece.kind == "same" else _MARKS[piece.kind]
        text.append(before + shown + after, style=_PIECE_STYLES[piece.kind])
        if len(text.plain) >= limit:
            break
    return text


def safe(text: str, style: str = "") -> Text:
    """Untrusted text that a terminal may show: nothing in it acts, and nothing in it is markup."""
    return Text(printable(text, keep_newlines=False), style=style)


def _print_rankings(rankings: Sequence[Ranking], console: Console) -> None:
    """A sentence a metric, its further lines indented."""
    for ranking in rankings:
        left_out = f" ({common_rows(ranking)})" if ranking.num_left_out else ""
        sentence = printable(standing(ranking, most_named=_MOST_NAMED) + left_out, keep_newlines=False)
        lines = wrap(sentence, console.width, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)
        console.print(Text("\n".join(lines), overflow="fold"))
    console.print(Text(RANKING_NOTE, style="dim"))


def _by_pair(lines: Iterable[Comparison], width: int) -> Iterable[Table]:
    groups: dict[str, list[Comparison]] = {}
    for line in lines:
        groups.setdefault(heading(line), []).append(line)
    for title, own in groups.items():
        yield _table(f"{title}  ({extent(own)})", "metric", [(metric_title(line), line) for line in own], width)


def _by_metric(lines: Iterable[Comparison], width: int) -> Iterable[Table]:
    groups: dict[str, list[Comparison]] = {}
    for line in lines:
        groups.setdefault(line.metric.name, []).append(line)
    for own in groups.values():
        labels = [line.pair.variant.label + (f", {line.group}" if line.group else "") for line in own]
        yield _table(metric_title(own[0]), "", list(zip(labels, own, strict=True)), width)


def _table(title: str, first: str, rows: Sequence[tuple[str, Comparison]], width: int) -> Table:
    """One line a comparison, under a label. A narrow terminal has fewer columns, and breaks labels at commas."""
    columns = next(columns for least, columns in _COLUMNS if width >= least)
    table = Table(
        title=safe(title, "bold"),
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2 if width >= _WIDE else 1, 0, 0),
    )
    table.add_column(first, overflow="fold")
    for name in columns:
        justify = "left" if name in _LEFT else "right"
        table.add_column("" if name == "verdict" else name, justify=justify, no_wrap=True)
    for label, line in rows:
        shown = safe(label)
        if len(label) > width // 3:
            shown = Text("\n").join(safe(part) for part in label.replace(",", ",\n").split("\n"))
        cells = _cells(line)
        table.add_row(shown, *(cells[name] for name in columns))
    return table


def _cells(line: Comparison) -> dict[str, Text | str]:
    digits = line.metric.digits
    style = _VERDICT_STYLES.get(line.verdict, "")
    verdict = "" if line.verdict == "untested" else line.verdict
    return {
        "baseline": number(line.baseline_mean, digits),
        "variant": number(line.variant_mean, digits),
        "diff": Text(signed(line.difference, digits), style=style),
        "95 % interval": interval(line),
        "W/T/L": f"{line.wins}/{line.ties}/{line.losses}",
        "detectable": number(line.detectable, digits),
        "p": p_value(line.p_holm),
        "verdict": Text(verdict, style=style or "dim"),
    }


def _names_like(analysis: Analysis, asked: str) -> str:
    names = list(dict.fromkeys(change.conversation for matched in analysis.matched for change in most_changed(matched)))
    if not names:
        return "nothing is compared here; `rwkvbatch show RUN ID` prints the dialogues of one run"
    near = get_close_matches(asked, names, n=3) or names[:3]
    return f"there are {len(names)}, such as {', '.join(near)}; `--json` or the HTML report lists them"


def _means(analysis: Analysis) -> Table:
    """One variant alone: its means."""

    table = Table(title=safe(analysis.variants[0].label, "bold"), title_justify="left", box=None, pad_edge=False)
    table.add_column("metric")
    table.add_column("mean", justify="right")
    table.add_column("95 % interval")
    for line in analysis.means(analysis.variants[0]):
        table.add_row(safe(line.metric.title), number(line.mean, line.metric.digits), mean_interval(line))
    return table


def _print_changes(matched: MatchedRows, console: Console, num_changes: int) -> None:
    changed = [change for change in most_changed(matched) if change.replies_changed > 0][:num_changes]
    if not changed:
        return
    console.print()
    console.print(safe(f"Most changed, {matched.pair.variant.label} against {matched.pair.baseline.label}", "bold"))
    for change in changed:
        turn = telling_turn(turn_changes(matched, change.conversation))
        console.print(_change_title(change))
        if turn is not None:
            question = safe(f"turn {turn.turn}, repeat {turn.repeat}: {turn.prompt}", "dim")
            diff = diff_text(turn.pieces, colour=_in_colour(console))
            console.print(Padding(Group(question, diff), (0, 0, 0, 2)))


def _in_colour(console: Console) -> bool:
    return console.color_system is not None and not console.no_color


def _change_title(change: ConversationChange) -> Text:
    title = safe(change.conversation, "cyan")
    if not math.isnan(change.score):
        title.append(f"  score {signed(change.score, 2)}", style="")
    if not math.isnan(change.nll):
        title.append(f"  nll {signed(change.nll, 2)}", style="")
    title.append(f"  {change.replies_changed:.0%} of replies differ", style="")
    return title


def _side_by_side(turn: TurnChange, matched: MatchedRows, *, colour: bool) -> Group:
    table = Table(box=None, expand=True, pad_edge=False, padding=(0, 2, 0, 0), show_header=True)
    table.add_column(safe(matched.pair.baseline.label, "bold"), ratio=1, overflow="fold")
    table.add_column(safe(matched.pair.variant.label, "bold"), ratio=1, overflow="fold")
    left, right = Text(), Text()
    for piece in turn.pieces:
        before, after = ("", "") if colour or piece.kind == "same" else _MARKS[piece.kind]
        shown = before + printable(piece.text) + after
        if piece.kind != "new":
            left.append(shown, style=_PIECE_STYLES[piece.kind] if piece.kind == "gone" else "")
        if piece.kind != "gone":
            right.append(shown, style=_PIECE_STYLES[piece.kind] if piece.kind == "new" else "")
    table.add_row(left, right)
    table.add_row(
        _turn_numbers(turn.baseline_score, turn.baseline_nll),
        _turn_numbers(turn.variant_score, turn.variant_nll),
    )
    question = Text.assemble((f"turn {turn.turn}, repeat {turn.repeat}  ", "dim"), (printable(turn.prompt), "bold"))
    return Group(question, table)


def _turn_numbers(score: float, nll: float) -> Text:
    parts = [f"{name} {value:.2f}" for name, value in (("score", score), ("nll", nll)) if not math.isnan(value)]
    return Text("  ".join(parts), style="dim")
