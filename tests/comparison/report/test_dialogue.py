"""Dialogues of one run in the terminal (`rwkvbatch show`): order, errors, selection."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from rwkvbatch.comparison.dialogues.selection import dialogues
from rwkvbatch.comparison.report.terminal import print_dialogues
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


def printed(run: RunData, **selection: Any) -> str:
    text = io.StringIO()
    found = dialogues(run, **selection)
    print_dialogues(found, Console(file=text, width=100), many_cells=True, many_repeats=True)
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
    print_dialogues(found, Console(file=text, width=width), many_cells=False, many_repeats=False)
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
    print_dialogues(found, Console(file=text, width=width), many_cells=False, many_repeats=False)
    lines = text.getvalue().splitlines()
    assert max(Text(line).cell_len for line in lines) <= width
    assert ("Assistant" + reply + "turn").replace(" ", "").replace("\n", "") in "".join("".join(lines).split())


def test_dialogues_are_selected_by_pattern_cell_repeat_turn_and_failure(run: RunData) -> None:
    def selected(**selection: Any) -> list[tuple[str, str, int, int]]:
        found = dialogues(run, **selection)
        return [(d.conversation, d.cell, d.repeat, len(d.turns)) for d in found]

    assert selected(conversations=["names-*"], cells=["t=2"]) == [("names-2", "t=2", 0, 2), ("names-1", "t=2", 1, 1)]
    assert selected(repeat=1) == [("names-1", "t=2", 1, 1)]
    assert selected(turn=1) == [("names-2", "t=2", 0, 1)]
    assert {name for name, *_ in selected(failed_only=True)} == {"names-2", "sums"}


def test_an_unknown_name_is_refused_with_the_existing_ones(run: RunData) -> None:
    with pytest.raises(UsageError, match="none called 'zzz'") as caught:
        dialogues(run, conversations=["zzz"])
    assert "names-2" in (caught.value.hint or "")
