"""Comparisons and dialogues in a terminal: tables that fit its width, word diffs, replies side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from textwrap import wrap
from typing import Any, Final, Literal

from rich.console import Console, Group
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from rwkvbatch.comparison.analysis import Analysis
from rwkvbatch.comparison.dialogues import (
    SHOWN_METRICS,
    ConversationChange,
    Dialogue,
    Piece,
    TurnChange,
    most_changed,
    most_changed_turn,
    turn_changes,
)
from rwkvbatch.comparison.metrics import metric_named
from rwkvbatch.comparison.paired import Comparison, MatchedRows
from rwkvbatch.comparison.ranking import Ranking
from rwkvbatch.comparison.wording import (
    COLUMNS,
    RANKING_NOTE,
    by_heading,
    common_rows,
    conclusion,
    extent,
    interval,
    metric_title,
    number,
    signed,
    standing,
)
from rwkvbatch.errors import UsageError
from rwkvbatch.prompt.escaping import printable

_VERDICT_STYLES: Final = {"better": "bold green", "worse": "bold red", "differs": "bold yellow"}
_PIECE_STYLES: Final = {"same": "", "gone": "red strike", "new": "green bold"}
_MARKS: Final = {"gone": ("[-", "-]"), "new": ("{+", "+}")}
_WIDE = 104
_MIN_WIDTHS: Final = {"baseline": 72, "variant": 50, "W/T/L": _WIDE, "detectable": _WIDE, "p (Holm)": 72}
"""Columns of the table that a narrower terminal does not show."""
_MANY_PAIRS = 3
_MAX_NAMED = 5
_MAX_DIFF_CHARACTERS = 600
_RULE_ENDS = 4
"""The width of a rule's line and blank on both sides of its title."""


def print_analysis(analysis: Analysis, console: Console, *, num_changes: int = 3) -> None:
    """The tables, the conclusion, and the `num_changes` most changed conversations of each pair."""
    if analysis.comparisons:
        several = len(by_heading(analysis.comparisons)) >= _MANY_PAIRS
        for table in (_by_metric if several else _by_pair)(analysis.comparisons, console.width):
            console.print(table)
            console.print()
    else:
        console.print(_means(analysis))
        console.print()
    console.print(Text(conclusion(analysis.comparisons), style="bold"))
    if analysis.rankings:
        _print_rankings(analysis.rankings, console)
    for matched in analysis.matched if len(analysis.matched) < _MANY_PAIRS else ():
        _print_changes(matched, console, num_changes)
    for gate in analysis.gates:
        console.print(safe(gate.line, "bold red" if gate.failed else "green"))


def print_conversation(analysis: Analysis, conversation: str, console: Console) -> None:
    """One conversation of every pair, side by side, turn by turn.

    Raises:
        UsageError: no pair has a conversation of that name.
    """
    found = False
    for matched in analysis.matched:
        turns = turn_changes(matched, conversation)
        if turns:
            found = True
            title = f"{conversation}: {matched.pair.baseline.label} | {matched.pair.variant.label}"
            console.print(_headline(title, console.width, "center"))
        for turn in turns:
            console.print(_side_by_side(turn, matched, colour=_in_colour(console)))
            console.print()
    if not found:
        raise UsageError(
            f"--show: no matched conversation is called {conversation!r}", hint=_similar_names(analysis, conversation)
        )


def print_dialogues(shown: Sequence[Dialogue], console: Console, *, many_cells: bool, many_repeats: bool) -> None:
    """Each dialogue under its name: prompts, replies, references, checks and metrics."""
    for dialogue in shown:
        title = dialogue.conversation
        if many_cells:
            title += f"  {dialogue.cell}"
        if many_repeats:
            title += f"  repeat {dialogue.repeat}"
        console.print(_headline(title, console.width, "left"))
        for record in dialogue.turns:
            console.print(_turn(record))
            console.print()


def diff_text(pieces: Sequence[Piece], *, colour: bool, limit: int = _MAX_DIFF_CHARACTERS) -> Text:
    """A word diff in one text: with styles, or with brackets where `colour` is false."""
    text = Text()
    for piece in pieces:
        shown = printable(piece.text)
        if len(text.plain) + len(shown) > limit:
            shown = shown[: max(0, limit - len(text.plain))] + "…"
        text.append(_marked(piece, shown, colour=colour), style=_PIECE_STYLES[piece.kind])
        if len(text.plain) >= limit:
            break
    return text


def safe(text: str, style: str = "") -> Text:
    """Untrusted text on one line, without control characters and markup."""
    return Text(printable(text, keep_newlines=False), style=style)


def _marked(piece: Piece, shown: str, *, colour: bool) -> str:
    before, after = ("", "") if colour or piece.kind == "same" else _MARKS[piece.kind]
    return before + shown + after


def _headline(title: str, width: int, align: Literal["left", "center"]) -> Rule | Text:
    """A rule with a title; only the title where a rule does not fit."""
    shown = Text(printable(title, keep_newlines=False), style="bold", overflow="fold")
    return Rule(shown, align=align, style="dim") if shown.cell_len + _RULE_ENDS <= width else shown


def _turn(record: Mapping[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(Text("User", "cyan"), Text(printable(record["prompt"])))
    if record["error"]:
        table.add_row(Text("Error", "bold red"), Text(printable(record["error"]), "red"))
    else:
        table.add_row(Text("Assistant", "green"), Text(printable(record["reply"])))
    if record["reference"]:
        table.add_row(Text("Reference", "dim"), Text(printable(record["reference"]), "dim"))
    for check in record["checks"]:
        mark, style = ("✓", "green") if check["passed"] else ("✗", "bold red")
        text = f"{mark} {check['kind']} {check['expected']!r}"
        if not check["passed"] and check.get("detail"):
            text += f": {check['detail']}"
        table.add_row("", safe(text, style))
    about = [f"turn {record['turn']}", f"ended by {record['finish_reason']}", *_numbers(record, SHOWN_METRICS)]
    table.add_row("", safe(", ".join(about), "dim"))
    return table


def _numbers(record: Mapping[str, Any], names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if name in record["metrics"]:
            yield f"{name} {number(record['metrics'][name], min(metric_named(name).digits, 2))}"


def _print_rankings(rankings: Sequence[Ranking], console: Console) -> None:
    """One sentence per metric, with further lines indented."""
    for ranking in rankings:
        left_out = f" ({common_rows(ranking)})" if ranking.num_left_out else ""
        sentence = printable(standing(ranking, max_named=_MAX_NAMED) + left_out, keep_newlines=False)
        lines = wrap(sentence, console.width, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)
        console.print(Text("\n".join(lines), overflow="fold"))
    console.print(Text(RANKING_NOTE, style="dim"))


def _by_pair(lines: Iterable[Comparison], width: int) -> Iterator[Table]:
    for title, own in by_heading(lines).items():
        yield _table(f"{title}  ({extent(own)})", "metric", [(metric_title(line.metric), line) for line in own], width)


def _by_metric(lines: Iterable[Comparison], width: int) -> Iterator[Table]:
    groups: dict[str, list[Comparison]] = {}
    for line in lines:
        groups.setdefault(metric_title(line.metric), []).append(line)
    for title, own in groups.items():
        labels = [line.pair.variant.label + (f", {line.group}" if line.group else "") for line in own]
        yield _table(title, "", list(zip(labels, own, strict=True)), width)


def _table(title: str, first: str, rows: Sequence[tuple[str, Comparison]], width: int) -> Table:
    """One line per comparison, under a label. A narrow terminal has fewer columns, and labels break at commas."""
    columns = [column for column in COLUMNS if width >= _MIN_WIDTHS.get(column.name, 0)]
    table = Table(
        title=safe(title, "bold"),
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2 if width >= _WIDE else 1, 0, 0),
    )
    table.add_column(first, overflow="fold")
    for column in columns:
        name = "" if column.name == "verdict" else column.short or column.name
        table.add_column(name, justify="left" if column.left else "right", no_wrap=True)
    for label, line in rows:
        shown = safe(label)
        if len(label) > width // 3:
            shown = Text("\n").join(safe(part) for part in label.replace(",", ",\n").split("\n"))
        style = _VERDICT_STYLES.get(line.verdict, "")
        styles = {"difference": style, "verdict": style or "dim"}
        table.add_row(shown, *(Text(column.text(line), styles.get(column.name, "")) for column in columns))
    return table


def _similar_names(analysis: Analysis, wanted: str) -> str:
    names = list(dict.fromkeys(change.conversation for matched in analysis.matched for change in most_changed(matched)))
    if not names:
        return "only one variant is given; `rwkvbatch show RUN ID` prints the dialogues of one run"
    near = get_close_matches(wanted, names, n=3) or names[:3]
    return f"there are {len(names)}, such as {', '.join(near)}; `--json` and the HTML report list them"


def _means(analysis: Analysis) -> Table:
    """The means of a single variant."""
    table = Table(title=safe(analysis.variants[0].label, "bold"), title_justify="left", box=None, pad_edge=False)
    table.add_column("metric")
    table.add_column("mean", justify="right")
    table.add_column("95 % interval")
    for line in analysis.means(analysis.variants[0]):
        table.add_row(safe(line.metric.title), number(line.mean, line.metric.digits), interval(line))
    return table


def _print_changes(matched: MatchedRows, console: Console, num_changes: int) -> None:
    changed = [change for change in most_changed(matched) if change.replies_changed > 0][:num_changes]
    if not changed:
        return
    console.print()
    console.print(safe(f"Most changed, {matched.pair.variant.label} against {matched.pair.baseline.label}", "bold"))
    for change in changed:
        console.print(_change_title(change))
        turn = most_changed_turn(turn_changes(matched, change.conversation))
        if turn is not None:
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
    return title.append(f"  {change.replies_changed:.0%} of replies differ", style="")


def _side_by_side(turn: TurnChange, matched: MatchedRows, *, colour: bool) -> Group:
    table = Table(box=None, expand=True, pad_edge=False, padding=(0, 2, 0, 0), show_header=True)
    replies: list[Text] = []
    for side, other in ((matched.pair.baseline, "new"), (matched.pair.variant, "gone")):
        table.add_column(safe(side.label, "bold"), ratio=1, overflow="fold")
        reply = Text()
        for piece in turn.pieces:
            if piece.kind != other:
                reply.append(_marked(piece, printable(piece.text), colour=colour), style=_PIECE_STYLES[piece.kind])
        replies.append(reply)
    table.add_row(*replies)
    records = (turn.baseline, turn.variant)
    table.add_row(*(Text("  ".join(_numbers(record, ("score", "nll"))), "dim") for record in records))
    about = f"turn {turn.baseline['turn']}, repeat {turn.repeat}  "
    return Group(Text.assemble((about, "dim"), (printable(turn.baseline["prompt"]), "bold")), table)
