"""Output of the dialogues of one run in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from rwkvbatch.comparison.dialogues.grouping import DialogueGroup
from rwkvbatch.comparison.dialogues.selection import SHOWN_METRICS, has_failed
from rwkvbatch.comparison.metrics.declarations import metric_named
from rwkvbatch.comparison.numbers import check_name, turn_value
from rwkvbatch.errors import counted, shortened
from rwkvbatch.prompt.escaping import printable
from rwkvbatch.results.row import SCORED
from rwkvbatch.script.choices import probability_among

_MAX_CHOICES = 10
_MIN_TEXT_WIDTH = 5
_WIDEST_CHARACTER = 2
"""The most columns that a character takes; one that is wider than a line would become a blank."""
_RULE_ENDS = 4
"""The width of a rule's line and space on both sides of its title."""

_CHECK_MARKS: Final[Mapping[bool | None, tuple[str, str]]] = {
    True: ("✓", "green"),
    False: ("✗", "bold red"),
    None: ("?", "yellow"),
}
"""The mark and the style of a check's verdict; None is a missing verdict of a judge."""


def print_dialogues(
    groups: Iterable[DialogueGroup],
    console: Console,
    *,
    many_cells: bool,
    many_repeats: bool,
    only_failures: bool = False,
    full: bool = False,
    max_cells: int | None = None,
) -> None:
    """Print one dialogue of each group under its name: system message, prompts, replies, references, checks, metrics.

    Metrics that differ within a group are ranges.

    Args:
        many_cells, many_repeats: name the cell and the repeat of each dialogue.
        only_failures: a turn without an error or a failed check is one line, and those after the last failure are
            counted.
        full: print long prompts, system messages and references whole instead of their beginnings and ends.
        max_cells: the most cells that are named for a group; None for all.
    """
    for group in groups:
        dialogue = group.first
        title = dialogue.conversation
        if len(group.members) == 1:
            title += f"  {dialogue.cell}" if many_cells else ""
            title += f"  repeat {dialogue.repeat}" if many_repeats else ""
        console.print(headline(title, console.width, "left"))
        if len(group.members) > 1:
            extent = group.extent(many_cells=many_cells, many_repeats=many_repeats, max_cells=max_cells)
            console.print(safe(extent, "dim"))
        if dialogue.system is not None and only_failures:
            _print_line("system  ", dialogue.system, console)
        elif dialogue.system is not None:
            console.print(
                _labelled([(Text("system", "dim"), Text(printable(_cut(dialogue.system, full=full))))], console),
                no_wrap=True,
            )
            console.print()
        if dialogue.greeting is not None and only_failures:
            _print_line("Assistant  ", dialogue.greeting, console)
        elif dialogue.greeting is not None:
            greeting = [(Text("Assistant", "green"), Text(printable(_cut(dialogue.greeting, full=full))))]
            console.print(_labelled(greeting, console), no_wrap=True)
            console.print()
        failures = [index for index, record in enumerate(dialogue.turns) if has_failed(record)]
        last = failures[-1] if only_failures and failures else len(dialogue.turns) - 1
        for index, record in enumerate(dialogue.turns[: last + 1]):
            if only_failures and failures and index not in failures:
                _print_line(f"turn {record['turn']}  ", _in_one_line(record), console)
                continue
            console.print(_turn(group, index, console, full=full), no_wrap=True)
            if index < last:
                console.print()
        if more := len(dialogue.turns) - 1 - last:
            console.print(Text(counted(more, "more turn"), "dim"))
        console.print()


def safe(text: str, style: str = "") -> Text:
    """Untrusted text on one line, without control characters and markup."""
    return Text(printable(text, keep_newlines=False), style=style)


def headline(title: str, width: int, align: Literal["left", "center"]) -> Rule | Text:
    """A rule with a title; only the title if the rule does not fit."""
    text = Text(printable(title, keep_newlines=False), style="bold", overflow="fold")
    return Rule(text, align=align, style="dim") if text.cell_len + _RULE_ENDS <= width else text


def _print_line(label: str, text: str, console: Console) -> None:
    """Print a label and a text on one line, which is cut to the width."""
    line = safe(label + text, "dim")
    line.truncate(console.width, overflow="ellipsis")
    console.print(line, no_wrap=True, overflow="ellipsis")


_MAX_LINES: Final = 24
_MAX_CHARACTERS: Final = 2_000
_HEAD: Final = (14, 1_200)
_TAIL: Final = (6, 500)
"""The most lines and characters that are printed of both ends of a longer text."""


def _cut(text: str, *, full: bool) -> str:
    """A text, or if it is long the two ends of it and between them how much is left out."""
    if full or (len(text) <= _MAX_CHARACTERS and text.count("\n") < _MAX_LINES):
        return text
    head = "\n".join(text.split("\n", _HEAD[0])[: _HEAD[0]])[: _HEAD[1]]
    tail = "\n".join(text.rsplit("\n", _TAIL[0])[-_TAIL[0] :])[-_TAIL[1] :]
    middle = text[len(head) : len(text) - len(tail)]
    num_lines = max(0, middle.count("\n") - 1)  # whole lines, each between two newlines
    lines = f"{counted(num_lines, 'line')}, " if num_lines else ""
    return f"{head}\n[{lines}{counted(len(middle), 'character')} left out; --full prints all]\n{tail}"


_MAX_PROMPT = 40


def _in_one_line(record: Mapping[str, Any]) -> str:
    """The prompt, cut if it is long, and the reply."""
    prompt, reply = (" ".join(record[name].split()) for name in ("prompt", "reply"))
    return " → ".join(filter(None, (shortened(prompt, _MAX_PROMPT), reply)))


def _turn(group: DialogueGroup, index: int, console: Console, *, full: bool) -> Text:
    """The turn at an index: who said what, the checks, and the metrics."""
    record = group.first.turns[index]
    is_probe = record["probe_after"] is not None
    is_scored = record["finish_reason"] == SCORED  # a plain text, or a result of another program, may lack both
    asks, answers = ("Prompt", "Reply") if group.first.is_plain else ("User", "Assistant")
    rows: list[tuple[Text, Text]] = []
    if record["prompt"] or not is_scored:
        rows.append((Text("Probe" if is_probe else asks, "cyan"), Text(printable(_cut(record["prompt"], full=full)))))
    if record["error"]:
        rows.append((Text("Error", "bold red"), Text(printable(record["error"]), "red")))
    elif record["reply"] or not is_scored:
        rows.append((Text(answers, "green"), Text(printable(record["reply"]))))
    if record["reference"]:
        rows.append((Text("Reference", "dim"), Text(printable(_cut(record["reference"], full=full)), "dim")))
    if record["choices"]:
        rows.append((Text("Choices", "dim"), _choices(record)))
    for check in record["checks"]:
        mark, style = _CHECK_MARKS[check["passed"]]
        text = f"{mark} {check_name(check)}"
        if not check["passed"] and check.get("detail"):
            text += f": {check['detail']}"
        rows.append((Text(), safe(text, style)))
    position = f"turn {record['turn']}" + (f", asked after turn {record['probe_after']}" if is_probe else "")
    details = [position, f"ended by {record['finish_reason']}", *_ranges(group, index)]
    rows.append((Text(), safe(", ".join(details), "dim")))
    return _labelled(rows, console)


def _labelled(rows: Sequence[tuple[Text, Text]], console: Console) -> Text:
    """Labels and, to their right, texts folded to the remaining width; a grid of rich would take five times as long.

    Where the rest is too narrow, labels are on separate lines, and texts the whole width.
    """
    indent = max(label.cell_len for label, _ in rows) + 2
    is_narrow = console.width < indent + _MIN_TEXT_WIDTH
    lines: list[Text] = []
    for label, text in rows:
        if is_narrow:
            lines += label.wrap(console, console.width, overflow="fold") if label else ()
            label, indent = Text(), 0
        label.pad_right(indent - label.cell_len)
        for line in text.wrap(console, max(_WIDEST_CHARACTER, console.width - indent), overflow="fold"):
            lines.append(Text.assemble(label, line))
            label = Text(" " * indent)
    return Text("\n").join(lines)


def _choices(record: Mapping[str, Any]) -> Text:
    """A line for each choice: its text, its probability if the reply is one of them, and its sum of log-probabilities.

    Of many choices, the likeliest are shown, in the script's order.
    """
    scores: Sequence[Mapping[str, Any]] = record["choices"]
    logprobs = [score["logprob"] for score in scores]
    likeliest = sorted(range(len(scores)), key=lambda index: -logprobs[index])[:_MAX_CHOICES]
    lines = [
        f"{printable(scores[index]['name'], keep_newlines=False)}: "
        f"{probability_among(logprobs, index):.1%}, logprob {logprobs[index]:.2f}"
        for index in sorted(likeliest)
    ]
    if more := len(scores) - len(likeliest):
        lines.append(f"{more} less likely")
    return Text("\n".join(lines), "dim")


def _ranges(group: DialogueGroup, index: int) -> Iterator[str]:
    """The metrics of a turn, each as its value, or from the smallest to the largest one."""
    for name in SHOWN_METRICS:
        if (ends := group.metric_range(index, name)) is not None:
            texts = dict.fromkeys(turn_value(metric_named(name), end) for end in ends)
            yield f"{name} {' to '.join(texts)}"


def metric_values(record: Mapping[str, Any], names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if name in record["metrics"]:
            yield f"{name} {turn_value(metric_named(name), record['metrics'][name])}"
