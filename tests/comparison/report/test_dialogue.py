"""Dialogues of one run in the terminal (`rwkvbatch show`): order, errors, selection."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from rwkvbatch.comparison.dialogues.grouping import DialogueGroup, grouped
from rwkvbatch.comparison.dialogues.selection import Dialogue, dialogues
from rwkvbatch.comparison.report.terminal_dialogues import print_dialogues
from rwkvbatch.comparison.runs.data import RunData
from rwkvbatch.comparison.runs.loading import load_runs
from rwkvbatch.errors import UsageError
from tests.comparison.make_run import make_row, write_run


@pytest.fixture
def run(tmp_path: Path) -> RunData:
    failed = [{"kind": "contains", "expected": "zebra", "passed": False, "score": 0.0, "detail": "no zebra"}]
    passed = [{"kind": "contains", "expected": "boat", "passed": True, "score": 1.0}]
    rows = [
        make_row("names-2", cell="t=2", turn=1, checks=failed),
        make_row("names-2", cell="t=2", turn=0, checks=passed),
        make_row("names-1", cell="t=1", checks=passed, reply="Hello \x1b[31mthere."),
        make_row("names-1", cell="t=2", checks=passed, repeat=1, reference=None),
        make_row("sums", cell="t=1", finish_reason="error", error="too long", reply="", reply_ids=[], checks=[]),
    ]
    write_run(tmp_path / "a", rows, manifest={})
    return load_runs([str(tmp_path / "a")])[0]


def groups_of(found: Sequence[Dialogue]) -> list[DialogueGroup]:
    return grouped(found, Counter(dialogue.conversation for dialogue in found))


def printed(run: RunData, **selection: Any) -> str:
    text = io.StringIO()
    found = dialogues(run, **selection)
    print_dialogues(groups_of(found), Console(file=text, width=100), many_cells=True, many_repeats=True)
    return text.getvalue()


def test_turns_are_printed_in_order_with_their_checks_and_numbers(run: RunData) -> None:
    text = printed(run, conversations=["names-2"])
    assert text.index("turn 0, ended by stop") < text.index("turn 1, ended by stop")
    assert "✓ contains 'boat'" in text
    assert "✗ contains 'zebra': no zebra" in text
    assert "score 1.00" in text


def test_an_error_is_printed_instead_of_the_reply(run: RunData) -> None:
    text = printed(run, conversations=["sums"])
    assert "too long" in text
    assert "Assistant" not in text


def test_replies_are_printed_without_control_characters(run: RunData) -> None:
    text = printed(run, conversations=["names-1"], cells=["t=1"])
    assert "\x1b" not in text
    assert "there." in text


@pytest.mark.parametrize("width", [16, 20, 30])
def test_long_texts_are_folded_beside_their_labels(width: int, tmp_path: Path) -> None:
    reply = "one two three four five\n\nsix " + "七" * 9
    write_run(tmp_path / "b", [make_row("a", reply=reply, checks=[], reference=None)], manifest={})
    text = io.StringIO()
    found = dialogues(load_runs([str(tmp_path / "b")])[0])
    print_dialogues(groups_of(found), Console(file=text, width=width), many_cells=False, many_repeats=False)
    lines = text.getvalue().splitlines()
    assert max(Text(line).cell_len for line in lines) <= width
    _, _, shown = text.getvalue().partition("Assistant  ")
    shown, _, _ = shown.partition("turn")
    assert all(line.startswith(" " * 11) for line in shown.splitlines()[1:] if line)
    assert "".join(shown.split()) == "".join(reply.split())


@pytest.mark.parametrize("width", [2, 4, 11, 15])
def test_in_a_narrow_terminal_labels_stand_above_their_texts(width: int, tmp_path: Path) -> None:
    reply = "one two three four five\n\nsix " + "七" * 9
    write_run(tmp_path / "b", [make_row("a", reply=reply, checks=[], reference=None)], manifest={})
    text = io.StringIO()
    found = dialogues(load_runs([str(tmp_path / "b")])[0])
    print_dialogues(groups_of(found), Console(file=text, width=width), many_cells=False, many_repeats=False)
    lines = text.getvalue().splitlines()
    assert max(Text(line).cell_len for line in lines) <= width
    assert ("Assistant" + reply + "turn").replace(" ", "").replace("\n", "") in "".join("".join(lines).split())


def test_dialogues_are_selected_by_pattern_cell_repeat_and_turn_and_say_whether_they_failed(run: RunData) -> None:
    def selected(**selection: Any) -> list[tuple[str, str, int, int]]:
        found = dialogues(run, **selection)
        return [(d.conversation, d.cell, d.repeat, len(d.turns)) for d in found]

    assert selected(conversations=["names-*"], cells=["t=2"]) == [("names-2", "t=2", 0, 2), ("names-1", "t=2", 1, 1)]
    assert selected(repeat=1) == [("names-1", "t=2", 1, 1)]
    assert selected(turn=1) == [("names-2", "t=2", 0, 1)]
    assert {dialogue.conversation for dialogue in dialogues(run) if dialogue.failed} == {"names-2", "sums"}


def test_an_unknown_name_is_refused_with_the_existing_ones(run: RunData) -> None:
    with pytest.raises(UsageError, match="none called 'zzz'") as caught:
        dialogues(run, conversations=["zzz"])
    assert "names-2" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("prompt", "left_out"),
    [
        ("\n".join(f"line {number}" for number in range(25)), "5 lines, 41 characters"),
        ("\n".join(["a" * 1_190, "b" * 500, "c", "d" * 499, "e"]), "1 line, 495 characters"),
        ("a" * 2_001, "301 characters"),
    ],
)
def test_whole_lines_that_are_left_out_of_a_long_prompt_are_counted(tmp_path: Path, prompt: str, left_out: str) -> None:
    write_run(tmp_path / "b", [make_row("a", prompt=prompt)], manifest={})
    assert f"[{left_out} left out; --full" in printed(load_runs([str(tmp_path / "b")])[0])


def equal_rows(conversation: str, cells: Sequence[str], repeats: Sequence[int], **changes: Any) -> list[dict[str, Any]]:
    """Rows of a turn with the same reply in all cells and repeats, whose log-probabilities and timings differ."""
    rows = [make_row(conversation, cell=cell, repeat=repeat, **changes) for cell in cells for repeat in repeats]
    for number, row in enumerate(rows):
        row["logprob"] = {"mean": -0.25 - number, "sum": -1.0}
    return rows


def extents(tmp_path: Path, rows: list[dict[str, Any]], **names: Any) -> list[str]:
    write_run(tmp_path / "c", rows, manifest={})
    given = {"many_cells": True, "many_repeats": True} | names
    return [group.extent(**given) for group in groups_of(dialogues(load_runs([str(tmp_path / "c")])[0]))]


def test_equal_dialogues_are_printed_once_with_their_cells_repeats_and_ranges_of_numbers(tmp_path: Path) -> None:
    rows = equal_rows("x", ["t=0", "t=1"], [0, 1, 2])
    write_run(tmp_path / "c", rows, manifest={})
    text = printed(load_runs([str(tmp_path / "c")])[0])
    assert text.count("Question 0 of x?") == 1
    assert "6 of 6 dialogues are equal, 2 cells x 3 repetitions: t=0, t=1 (repeats 0-2)" in text
    assert "logprob -5.25 to -0.25" in text
    assert f", tokens {rows[0]['tokens']['reply']}, logprob" in text


def test_groups_name_what_they_contain_even_if_it_is_no_grid(tmp_path: Path) -> None:
    rows = equal_rows("x", ["a"], [0, 1, 3]) + equal_rows("x", ["b", "c"], [1])
    rows += equal_rows("x", ["b"], [0], reply="Another one.")
    assert extents(tmp_path, rows) == [
        "5 of 6 dialogues are equal: a (repeats 0-1, 3); b, c (repeat 1)",
        "1 of 6 dialogues are equal: b (repeat 0)",
    ]


def test_many_cells_are_shortened_only_if_that_is_asked_for(tmp_path: Path) -> None:
    rows = equal_rows("x", [f"t={number}" for number in range(6)], [0])
    sentence = "6 of 6 dialogues are equal, 6 cells: "
    assert extents(tmp_path, rows, many_repeats=False, max_cells=4) == [f"{sentence}t=0, t=1, t=2, t=3 and 2 more"]
    assert extents(tmp_path, rows, many_repeats=False) == [f"{sentence}t=0, t=1, t=2, t=3, t=4, t=5"]


@pytest.mark.parametrize(
    "change",
    [
        {"reply": "Else."},
        {"prompt": "Else?"},
        {"finish_reason": "length"},
        {"reference": {"text": "Else.", "nll": 1.0, "matched": 0.4, "tokens": 3}},
        {"checks": [{"kind": "contains", "expected": "boat", "passed": False, "score": 0.0, "weight": 1.0}]},
        {"finish_reason": "error", "error": "else"},
        {"choices": {"scores": [{"name": "a", "logprob": -1.0, "tokens": 1, "bytes": 1, "characters": 1}]}},
        {"turn": 1},
        {"conversation": "y"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_dialogues_that_differ_in_anything_but_numbers_are_not_grouped(tmp_path: Path, change: dict[str, Any]) -> None:
    rows = equal_rows("x", ["a", "b"], [0])
    rows[1] |= change
    write_run(tmp_path / "c", rows, manifest={})
    assert len(groups_of(dialogues(load_runs([str(tmp_path / "c")], choices=True)[0]))) == 2


def test_dialogues_of_one_conversation_are_beside_each_other(tmp_path: Path) -> None:
    rows = [make_row(name, cell=cell, reply=cell) for cell in ("a", "b") for name in ("x", "y")]
    write_run(tmp_path / "c", rows, manifest={})
    groups = groups_of(dialogues(load_runs([str(tmp_path / "c")])[0]))
    assert [(group.first.conversation, group.first.cell) for group in groups] == [
        ("x", "a"),
        ("x", "b"),
        ("y", "a"),
        ("y", "b"),
    ]
