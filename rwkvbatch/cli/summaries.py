"""The summary of a run on the terminal: a table of its cells, totals, the result of a race, and the next command."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from rwkvbatch.cli.views import console, fitted_table
from rwkvbatch.config.names import short_names
from rwkvbatch.errors import counted, listed
from rwkvbatch.prompt.escaping import printable
from rwkvbatch.results.row import SCORED
from rwkvbatch.results.summary import FORMER_VERDICTS, OVERFLOW, CellSummary, Summary, percentage, worst

if TYPE_CHECKING:
    from rwkvbatch.replay.runner import RunResult

FIXED_COLUMNS = 74
"""Width of the table without the names of the cells."""
MAX_SHORT_NAME = 16
"""Width of a shortened name for which columns are omitted rather than the name written on several lines."""
CELLS_SHOWN = 4
"""Largest number of cells that a line lists, in addition to the leader of a race."""


def show_summary(result: RunResult) -> None:
    """Print the table by cell, the totals, and the next command."""
    err = console(stderr=True)
    err.print(summary_table(result.summary, err.width))
    for line in _summary_lines(result):
        # A line with a path or a command is not wrapped, so that it can be copied.
        err.print(Text(printable(line)), soft_wrap=line.startswith(("rows are in ", "next")))


def summary_table(summary: Summary, width: int = 100) -> Table:
    """A table with one row for each cell.

    If `width` is too small for the names of cells, they are shortened to what differs; if that does not fit either,
    each setting of a name is on its own line, and columns are omitted.
    """
    header, names = "cell", [printable(cell.name) for cell in summary.cells]
    room = width - FIXED_COLUMNS
    if max(map(len, names), default=0) > room:
        heading, short = short_names(names)
        if heading and max(map(len, short)) <= max(room, MAX_SHORT_NAME):
            header, names = heading.replace(", ", ",\n"), short
        else:
            names = [name.replace(",", ",\n") for name in names]
    longest = max((len(line) for name in (*names, header) for line in name.split("\n")), default=0)
    columns = _columns(summary)
    ends = [ending.replace("\n", ", ") for ending in columns["ended by"]]
    if max(map(len, ends), default=0) - len("length 1,234") <= room - longest:
        columns["ended by"] = ends
    return fitted_table(
        names,
        columns,
        width,
        header=header,
        min_name_width=min(24, longest),
        folded=["ended by"],
        optional_columns=[
            *("first token\np50 / p95", "score", "reply\ntokens", "ended by", "tokens\nscored", "perplexity\nof texts"),
            *("perplexity", "bits per\nbyte", "accuracy", "ref.\nnll"),
        ],
        box=SIMPLE_HEAD,
    )


def _columns(summary: Summary) -> dict[str, list[str]]:
    """By header, the columns of the table without that of the names."""
    cells = summary.cells
    scored = any(cell.score is not None for cell in cells)
    columns = {
        "rows": [f"{cell.rows:,}" for cell in cells],
        "checks\npassed": [_passed(cell) for cell in cells],
        **({"score": ["-" if cell.score is None else f"{cell.score:.3f}" for cell in cells]} if scored else {}),
        "reply\ntokens": [f"{cell.reply_tokens:,}" for cell in cells],
        "ended by": [_ends(cell) for cell in cells],
        "first token\np50 / p95": [_waits(cell.first_token_p50_s, cell.first_token_p95_s) for cell in cells],
    }
    if all(set(cell.finish_reasons) <= {SCORED, "error"} and cell.rows for cell in cells):
        for name in ("reply\ntokens", "first token\np50 / p95"):
            del columns[name]
        if not any(cell.checks for cell in cells):
            del columns["checks\npassed"]
    if any(cell.plain_text is not None for cell in cells):
        texts = [cell.plain_text for cell in cells]
        columns |= {
            "tokens\nscored": ["-" if text is None else f"{text.tokens:,}" for text in texts],
            "nll": ["-" if text is None else f"{text.nll:.4f}" for text in texts],
            "perplexity": [_perplexity(text is not None, text and text.perplexity) for text in texts],
            "bits per\nbyte": ["-" if text is None else f"{text.bits_per_byte:.4f}" for text in texts],
        }
        if any(text is not None and text.accuracy is not None for text in texts):
            columns["perplexity\nof texts"] = [
                _perplexity(text is not None, text and text.text_perplexity) for text in texts
            ]
            columns["accuracy"] = [
                "-" if text is None or text.accuracy is None else f"{text.accuracy:.2%}" for text in texts
            ]
    if any(cell.reference_nll is not None for cell in cells):
        columns["ref.\nnll"] = ["-" if cell.reference_nll is None else f"{cell.reference_nll:.3f}" for cell in cells]
    return columns


def _passed(cell: CellSummary) -> str:
    """The checks that passed, and the number of rows with an error, whose checks count as failed."""
    judged = cell.checks - cell.unjudged
    if not judged:
        return "-"
    if cell.errors == cell.rows:
        return f"0/{judged} error"
    errors = f"\n{counted(cell.errors, 'error')}" if cell.errors else ""
    return f"{cell.checks_passed}/{judged} {percentage(cell.checks_passed, judged)}{errors}"


def _perplexity(has_texts: bool, value: float | None) -> str:
    """A perplexity; None is one that overflowed where there are texts."""
    if value is None:
        return OVERFLOW if has_texts else "-"
    return f"{value:,.3f}" if value < 1e6 else f"{value:.4g}"


def _ends(cell: CellSummary) -> str:
    ends = sorted(cell.finish_reasons.items(), key=lambda item: -item[1])
    return ends[0][0] if len(ends) == 1 else "\n".join(f"{name} {count:,}" for name, count in ends)


def _waits(median: float | None, high: float | None) -> str:
    if median is None or high is None:
        return "-"
    return f"{median * 1000:.0f} / {high * 1000:.0f} ms" if high < 1 else f"{median:.2f} / {high:.2f} s"


def _summary_lines(result: RunResult) -> list[str]:
    import shlex

    from rwkvbatch.replay.progress import duration

    summary, progress = result.summary, result.progress
    only_scored = all(set(cell.finish_reasons) <= {SCORED, "error"} and cell.rows for cell in summary.cells)
    speed = "no reply was generated" if progress.failures else "all rows already existed"
    counts = {"reply": progress.reply_tokens, "scored": progress.scored_tokens}
    if any(counts.values()):
        tokens = " and ".join(f"{count:,} {kind}" for kind, count in counts.items() if count)
        speed = f"{tokens} tokens in {duration(progress.elapsed_s)}, {progress.tokens_per_s:,.0f} tokens/s"
        if result.reuse is not None:
            speed = f"this session: {speed}"
    if not summary.planned:
        speed = "this part of the run has no conversation"
    lines = [speed]
    if 0 < progress.scored_tokens < summary.scored_prompt_tokens:  # the rate leaves out most tokens that were read
        whole = "whole run: " if result.reuse is not None else ""
        before = f"{summary.scored_prompt_tokens:,} prompt tokens before the scored tokens"
        lines.append(f"{whole}{before}; tokens/s does not count them")
    if not only_scored:
        # Rows that were only scored have no number of cached tokens.
        prompt_tokens = summary.prompt_tokens - summary.scored_prompt_tokens
        computed = prompt_tokens - summary.cached_tokens
        of_replies = " of replies" if summary.scored_prompt_tokens else ""
        whole = "whole run: " if result.reuse is not None else ""
        lines.append(
            f"{whole}{prompt_tokens:,} prompt tokens{of_replies}: {computed:,} read, {summary.cached_tokens:,} reused"
        )
    if summary.errors:
        lines.append(_errors_line(summary))
    if summary.unjudged:
        lines.append(f"no verdict of {counted(summary.unjudged, 'check')}: the scores are missing")
    for kind, shares in (("tags", summary.failed_tags), ("checks", summary.failed_checks)):
        if worst_shares := worst(shares):
            shown = ", ".join(f"{name} {share.failed:,} of {share.of:,}" for name, share in worst_shares)
            lines.append(f"{kind} that failed most: {shown}")
    lines += _equal_reply_lines(result)
    lines += _precision_lines(result)
    if result.race is not None:
        lines += race_lines(result.race.as_dict())
    if result.verified is not None:
        lines.append(f"verified: {result.verified['held']}")
    directory = shlex.quote(str(result.directory))
    lines.append(f"rows are in {directory}")
    if (shard := result.plan.shard) is not None:
        lines.append(f"next, when all {shard.parts} parts are done: rwkvbatch merge PART... --out DIR")
    elif any(cell.errors == cell.rows for cell in summary.cells if cell.rows):
        lines.append(f"next: rwkvbatch show {directory} --failed")
    elif result.race is not None:
        lines += _after_race(result.race.as_dict(), directory)
    elif not _can_decide(summary.cells):
        lines += [
            "nothing decides a comparison: the script has neither checks nor references",
            f"next: rwkvbatch show {directory}, or rwkvbatch compare {directory} --primary tokens, or add `expect`",
        ]
    elif len(summary.cells) > 1:
        lines.append(f"next: rwkvbatch compare {directory}{_primary_option(summary.cells)}")
    elif summary.errors or any(cell.checks_passed < cell.checks for cell in summary.cells):
        lines.append(f"next: rwkvbatch show {directory} --failed")
    elif only_scored:
        lines.append(f"next: rwkvbatch show {directory}, or score with another --model and compare")
    else:
        lines.append(f"next: rwkvbatch show {directory}, or run again with --temp 0.3,1.0 --top-p 1 and compare")
    return lines


def _errors_line(summary: Summary) -> str:
    """How many rows failed, and whether running them again can help."""
    failed = f"{counted(summary.errors, 'row')} failed"
    if not summary.prompt_errors:
        return f"{failed}; --retry-errors runs {'it' if summary.errors == 1 else 'them'} again"
    prompts = counted(summary.prompt_errors, "prompt")
    if summary.prompt_errors + summary.not_reached == summary.errors:
        is_are = "is" if summary.prompt_errors == 1 else "are"
        return f"{failed}: {prompts} {is_are} too long or too short, which --retry-errors does not change"
    return f"{failed}; --retry-errors runs them again, in vain where a prompt is too long or too short ({prompts})"


def _can_decide(cells: Sequence[CellSummary]) -> bool:
    """Whether there is a value of a default primary metric of `compare`: of score or nll."""
    return any(cell.score is not None or cell.reference_nll is not None or cell.plain_text for cell in cells)


def _after_race(race: Mapping[str, Any], directory: str) -> list[str]:
    """The next step after a race. Its own rows cannot test a difference: how many there are depends on the scores."""
    import shlex

    if race["leader"] is None:
        return [f"next: rwkvbatch show {directory}"]
    cell = f" --cell {shlex.quote(race['leader'])}"
    return [
        "to measure how much better the leader is, run it and a baseline again with another --seed",
        f"next: rwkvbatch show {directory}{cell}",
    ]


def _equal_reply_lines(result: RunResult) -> list[str]:
    """The cells whose repetitions, or whose replies and those of the first cell, are nearly all the same."""
    plan, cells = result.plan, result.summary.cells
    greedy = {cell.name for cell in plan.greedy_cells()}  # a warning before the run names them
    repeats = {cell.name: cell.equal_replies.repeats for cell in cells if cell.name not in greedy}
    with_first = {cell.name: cell.equal_replies.first_cell for cell in cells[1:]}
    lines, named = list[str](), set[str]()
    for what, counts in (
        ("the same reply in all repetitions", repeats),
        (f"the same replies as {cells[0].name}", with_first),
    ):
        nearly_all = {name: count for name, count in counts.items() if count.nearly_all}
        if nearly_all:
            named |= nearly_all.keys()
            cell_names = [f"{name} in {n.equal:,} of {n.compared:,} turns" for name, n in nearly_all.items()]
            lines.append(f"{what}: {listed(cell_names, CELLS_SHOWN)}")
    sampled = [
        settings.sampling
        for cell, settings in zip(plan.cells, plan.cell_settings, strict=True)
        if cell.name in named - greedy
    ]
    if sampled and all(sampling.top_p <= FEW_TOKENS_TOP_P for sampling in sampled):
        lines.append("  a top-p this small leaves few tokens to sample from; --top-p 1 keeps all")
    return lines


FEW_TOKENS_TOP_P = 0.5
"""Where replies are nearly all the same, a top-p of at most this is named as a reason."""


def _primary_option(cells: Sequence[CellSummary]) -> str:
    """The metric that `compare` needs where only texts are scored, and models cut these into other tokens."""
    texts = [cell.plain_text for cell in cells if cell.plain_text is not None]
    has_default = any(cell.checks or cell.reference_nll is not None for cell in cells)
    are_same = len({(text.texts, text.bytes) for text in texts}) == 1
    is_needed = not has_default and are_same and len({text.tokens for text in texts}) > 1
    return " --primary bits_per_byte" if is_needed else ""


def until_ci_record(result: RunResult) -> dict[str, Any] | None:
    """Result of `--until-ci` for `--json`; a width is null if it is unknown or there is nothing to compare."""
    if not result.reached:
        return None
    cells = [
        {**vars(cell), "width": None if cell.width is None or math.isinf(cell.width) else cell.width}
        for cell in result.reached
    ]
    return {"asked": result.plan.settings.until_ci, "cells": cells}


def _precision_lines(result: RunResult) -> list[str]:
    """Repeats of each cell, and the width of its interval against the first cell."""
    if not result.reached:
        return []
    until_ci = result.plan.settings.until_ci
    assert until_ci is not None
    baseline = result.reached[0].cell
    lines = [
        f"--until-ci {until_ci:g}: width of the score's interval against {baseline}, of each cell by itself: by "
        "conversation, or as if all turns were independent where that is wider; intervals of `compare` differ"
    ]
    for cell in result.reached:
        if cell is result.reached[0]:
            precision = "the first cell"
        elif cell.width is None:
            precision = "nothing to compare"
        elif math.isinf(cell.width):
            precision = "width unknown: one conversation only, or the same difference in all"
        else:
            precision = f"width {cell.width:.3g}" + ("" if cell.width <= until_ci else ", wider than asked")
        lines.append(f"  {cell.cell}: {counted(cell.repeats, 'repeat')}, {precision}")
    return lines


def race_lines(record: Mapping[str, Any]) -> list[str]:
    """The result of a race in a few lines, whose number does not grow with the number of cells.

    Args:
        record: the result as in `summary.json`.
    """
    from rwkvbatch.replay.planning.race import can_drop

    left, cells = record["left"], {cell["cell"]: cell for cell in record["cells"]}
    scored = [name for name in left if cells[name]["score"] is not None]
    if not scored:
        return ["race: no look yet"]
    ranked = sorted(scored, key=lambda name: -cells[name]["score"])
    endings = {
        "one cell left": "one cell is left",
        "within the margin": f"the leader is less than {record['margin'] or 0:g} worse than any cell left",
        "budget": "the budget is used up",
        "interrupted": "interrupted",
    }
    share = percentage(record["rows"], record["rows_of_grid"]) if record["rows_of_grid"] else "-"
    lines = [
        f"race: {endings[record['ending']]}, after {record['draws']:,} of {record['draws_planned']:,} draws, "
        f"{counted(record['looks'], 'look')} and "
        f"{record['rows']:,} rows, {share} of the full grid's {record['rows_of_grid']:,}",
        f"  leader: {record['leader']}, score {cells[record['leader']]['score']:.3f}",
    ]
    others = [name for name in ranked if name != record["leader"]]
    if others:
        shown = "; ".join(f"{name} {cells[name]['score']:.3f}" for name in others[:CELLS_SHOWN])
        more = f"; and {len(others) - CELLS_SHOWN} more" if len(others) > CELLS_SHOWN else ""
        lines.append(f"  not shown to be worse: {shown}{more}")
    dropped = sorted(
        (cell for cell in record["cells"] if cell["dropped_after"] is not None), key=lambda cell: -cell["dropped_after"]
    )
    if dropped:
        first, last = dropped[-1]["dropped_after"], dropped[0]["dropped_after"]
        when = f"{first:,}" if first == last else f"{first:,} to {last:,}"
        lines.append(
            f"  dropped: {len(dropped)} of {len(cells)} cells, after {when} draws; the last one: {dropped[0]['cell']}"
        )
    elif len(cells) > 1 and not can_drop(len(cells), record["draws_planned"], record["level"]):
        lines.append("  so few draws cannot show that a cell is worse: --repeats gives more of them")
    lines.append(f"  probability of dropping a best cell: at most {record['level']:g}")
    if record.get(FORMER_VERDICTS):
        lines.append("  by the verdicts before `rwkvbatch check`: run its command again to recompute the race")
    return lines
