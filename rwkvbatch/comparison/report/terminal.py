"""Comparisons and dialogues in a terminal: tables that fit its width, word diffs, replies side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import takewhile
from textwrap import wrap
from typing import Any, Final, Literal

from rich.cells import cell_len
from rich.console import Console, Group
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from rwkvbatch.comparison.analysis import Analysis
from rwkvbatch.comparison.blame import Blame
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
from rwkvbatch.comparison.matching import MatchedRows
from rwkvbatch.comparison.metrics import metric_named
from rwkvbatch.comparison.paired import Comparison
from rwkvbatch.comparison.ranking import VariantMean
from rwkvbatch.comparison.trend import sparkline
from rwkvbatch.comparison.wording import (
    BLAME_TITLE,
    COLUMNS,
    TableColumn,
    by_family,
    common_rows,
    conclusion,
    extent,
    interval,
    left_out,
    metric_title,
    named_dialogues,
    number,
    power,
    question,
    rank_disagreement,
    signed,
    standing,
    trend_sentence,
    trend_title,
)
from rwkvbatch.errors import UsageError
from rwkvbatch.prompt.escaping import CONTEXT, printable

_VERDICT_STYLES: Final = {"better": "bold green", "worse": "bold red", "differs": "bold yellow"}
_PIECE_STYLES: Final = {"same": "", "gone": "red strike", "new": "green bold"}
_MARKS: Final = {"gone": ("[-", "-]"), "new": ("{+", "+}")}
_LESS_WANTED: Final = ("detectable", "p", "W/T/L", "baseline", "mean", "95 % interval")
"""The columns that a narrower terminal does not show, the first one first."""
_MIN_LABEL = 12
_MAX_LINES = 2
_MAX_DIFF_CHARACTERS = 600
_RULE_ENDS = 4
"""The width of a rule's line and blank on both sides of its title."""

_CHECK_MARKS: Final[Mapping[bool | None, tuple[str, str]]] = {
    True: ("✓", "green"),
    False: ("✗", "bold red"),
    None: ("?", "yellow"),
}
"""The mark and the style of a check's verdict; None where a judge gave none."""


def print_analysis(analysis: Analysis, console: Console, *, num_changes: int = 0) -> None:
    """The verdicts, family by family, and the `num_changes` most changed conversations of each pair."""
    if not analysis.comparisons:
        for table in _means(analysis):
            console.print(table)
        console.print(Text(conclusion(analysis.comparisons), style="bold"))
    for trend in analysis.trends:
        exploratory = trend is not analysis.trend
        _print_wrapped(trend_title(trend, exploratory=exploratory), console, "bold")
        console.print(Text(sparkline(trend, console.width)))
        style = {"improves": "bold green", "worsens": "bold red"}.get("" if exploratory else trend.verdict, "bold")
        _print_wrapped(trend_sentence(trend), console, style)
        console.print()
    rankings = {ranking.metric.name: ranking for ranking in analysis.rankings}
    for place, (family, lines) in enumerate(by_family(analysis.comparisons).items()):
        if place:
            console.print()
        _print_wrapped(question(lines), console, "bold")
        if about := "; ".join(filter(None, (extent(lines, analysis.repetitions), power(lines)))):
            _print_wrapped(about, console, "dim")
        console.print(_table(lines, console.width))
        if sentence := rank_disagreement(lines):
            _print_wrapped(sentence, console)
        if family in rankings:
            ranking = rankings[family]
            rest = f" ({common_rows(ranking)})" if ranking.num_left_out else ""
            most = len(ranking.candidates)
            shown = [standing(ranking, max_named=named) + rest for named in range(most, 0, -1)]
            _print_wrapped(_fitting(shown, console.width), console, "bold")
    if left_out(analysis.dropped, analysis.primary):
        shown = [left_out(analysis.dropped, analysis.primary, named=named) for named in (True, False)]
        _print_wrapped(_fitting(shown, console.width), console)
    for gate in analysis.gates:
        console.print(safe(gate.line, "bold red" if gate.failed else "green"))
    if analysis.comparisons and (hidden := _hidden(analysis)):
        _print_wrapped(hidden, console, "dim")
    for found in analysis.blame:
        _print_blame(found, console)
    for matched in analysis.matched if num_changes else ():
        _print_changes(matched, console, num_changes)


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
    """What other options would show."""
    if analysis.metrics is not None:
        return ""
    shown = {line.metric.name for line in analysis.comparisons}
    others = sum(metric.name not in shown for metric in analysis.available)
    return f"--all shows {others} other metrics (exploratory)" if others > 1 else ""


def _fitting(texts: Sequence[str], width: int) -> str:
    """The first of `texts` that fits into two lines, else the last one."""
    return next((text for text in texts if len(_wrapped(text, width)) <= _MAX_LINES), texts[-1])


def _wrapped(text: str, width: int) -> list[str]:
    shown = printable(text, keep_newlines=False)
    return wrap(shown, width, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)


def _print_wrapped(text: str, console: Console, style: str = "") -> None:
    """A sentence with further lines indented."""
    console.print(Text("\n".join(_wrapped(text, console.width)), style=style, overflow="fold"))


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
    """Each dialogue under its name: system message, prompts, replies, references, checks and metrics."""
    for dialogue in shown:
        title = dialogue.conversation
        if many_cells:
            title += f"  {dialogue.cell}"
        if many_repeats:
            title += f"  repeat {dialogue.repeat}"
        console.print(_headline(title, console.width, "left"))
        if dialogue.system is not None:
            system = Table.grid(padding=(0, 2, 0, 0))
            system.add_row(Text("system", "dim"), Text(printable(dialogue.system), overflow="fold"))
            console.print(system)
            console.print()
        for record in dialogue.turns:
            console.print(_turn(record))
            console.print()


def diff_text(pieces: Sequence[Piece], *, colour: bool, limit: int = _MAX_DIFF_CHARACTERS) -> Text:
    """A word diff in one text: with styles, or with brackets where `colour` is false."""
    text = Text()
    for piece in pieces:
        shown = printable(piece.text, before=text.plain[-CONTEXT:])
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
        mark, style = _CHECK_MARKS[check["passed"]]
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
            metric, value = metric_named(name), record["metrics"][name]
            # A turn has a whole number of tokens; only means have decimals.
            yield f"{name} {number(value, 0 if metric.unit == 'tokens' else min(metric.digits, 2))}"


@dataclass(frozen=True)
class _Labels:
    """The labels of a table's lines, and what their column is called."""

    heading: str
    labels: tuple[str, ...]

    @property
    def width(self) -> int:
        return max(cell_len(label) for label in self.labels)


def _labels(lines: Sequence[Comparison]) -> tuple[_Labels, _Labels]:
    """The labels in full, and in short: cells of one grid by their values alone, others without what all begin with."""
    names = [line.pair.variant.label for line in lines]
    short, heading = names, ""
    parts = [[part.partition("=") for part in name.split(",")] for name in names]
    if len(set(names)) > 1 and len({tuple(key for key, _, _ in part) for part in parts}) == 1 and parts[0][0][1]:
        varied = [place for place in range(len(parts[0])) if len({part[place][2] for part in parts}) > 1]
        heading = ", ".join(parts[0][place][0] for place in varied)
        short = [",".join(part[place][2] for place in varied) for part in parts]
    elif len(set(names)) > 1:
        common = sum(1 for _ in takewhile(lambda signs: len(set(signs)) == 1, zip(*names, strict=False)))
        start = 1 + max(names[0][:common].rfind(sign) for sign in "-_./=,:")
        heading = f"{names[0][:start]}*" if start else ""
        short = [name[start:] for name in names]
    groups = [f", {line.group}" if line.group else "" for line in lines]

    def named(title: str, own: Sequence[str]) -> _Labels:
        whole = (printable(name + group, keep_newlines=False) for name, group in zip(own, groups, strict=True))
        return _Labels(printable(title, keep_newlines=False), tuple(whole))

    return named("", names), named(heading, short)


def _table(lines: Sequence[Comparison], width: int) -> Table:
    """One line per comparison. A narrow terminal has shorter labels, then fewer columns, then broken labels."""
    skipped = {"baseline"} if len({line.pair.baseline for line in lines}) == 1 else set[str]()
    texts = {column.name: [column.text(line) for line in lines] for column in COLUMNS}
    titles = {c.name: "" if c.name == "verdict" else c.short or c.name for c in COLUMNS}
    room = {c.name: 1 + max(map(cell_len, (titles[c.name], *texts[c.name]))) for c in COLUMNS}
    skipped |= {name for name, own in texts.items() if not any(text.strip("—") for text in own)}
    columns = [column for column in COLUMNS if column.name not in skipped]
    full, short = _labels(lines)

    def left(shown: Sequence[TableColumn]) -> int:
        return width - sum(room[column.name] for column in shown)

    chosen = full
    for name in ("", *_LESS_WANTED):
        columns = [column for column in columns if column.name != name]
        # What the first screen has is kept as long as labels can be shorter.
        if full.width <= left(columns):
            break
        if name in ("p", "baseline", "mean", "95 % interval") and short.width <= left(columns):
            chosen = short
            break
    else:
        chosen = short if short.width <= max(_MIN_LABEL, left(columns)) else full
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(chosen.heading, overflow="fold")
    for column in columns:
        table.add_column(titles[column.name], justify="left" if column.left else "right", no_wrap=True)
    for place, (label, line) in enumerate(zip(chosen.labels, lines, strict=True)):
        shown = Text(label)
        if cell_len(label) > max(_MIN_LABEL, left(columns)):
            shown = Text(label.replace(",", ",\n"))
        style = "" if line.exploratory else _VERDICT_STYLES.get(line.verdict, "")
        styles = {"difference": style, "verdict": style or "dim"}
        cells = (Text(texts[column.name][place], styles.get(column.name, "")) for column in columns)
        table.add_row(shown, *cells)
    return table


def _similar_names(analysis: Analysis, wanted: str) -> str:
    names = list(dict.fromkeys(change.conversation for matched in analysis.matched for change in most_changed(matched)))
    if not names:
        return "only one variant is given; `rwkvbatch show RUN ID` prints the dialogues of one run"
    near = get_close_matches(wanted, names, n=3) or names[:3]
    return f"there are {len(names)}, such as {', '.join(near)}; `--json` and the HTML report list them"


def _means(analysis: Analysis) -> Iterator[Table]:
    """The means of a single variant, a table per group."""
    groups: dict[str | None, list[VariantMean]] = {}
    for mean in analysis.means(analysis.variants[0]):
        groups.setdefault(mean.group, []).append(mean)
    for group, means in groups.items():
        title = analysis.variants[0].label + (f", {group}" if group else "")
        table = Table(title=safe(title, "bold"), title_justify="left", box=None, pad_edge=False)
        table.add_column("metric")
        table.add_column("mean", justify="right")
        table.add_column("95 % interval")
        for mean in means:
            table.add_row(metric_title(mean.metric), number(mean.mean, mean.metric.digits), interval(mean))
        yield table


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
                shown = printable(piece.text, before=reply.plain[-CONTEXT:])
                reply.append(_marked(piece, shown, colour=colour), style=_PIECE_STYLES[piece.kind])
        replies.append(reply)
    table.add_row(*replies)
    records = (turn.baseline, turn.variant)
    table.add_row(*(Text("  ".join(_numbers(record, ("score", "nll"))), "dim") for record in records))
    about = f"turn {turn.baseline['turn']}, repeat {turn.repeat}  "
    return Group(Text.assemble((about, "dim"), (printable(turn.baseline["prompt"]), "bold")), table)
