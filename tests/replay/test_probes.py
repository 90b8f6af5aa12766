"""Probes: questions with rows of their own that are not in the dialogue."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import rwkvbatch
from rwkvbatch.errors import ScriptError
from rwkvbatch.results.row import Row
from rwkvbatch.results.row_codec import decode_row, encode_row
from tests.replay.fakes import FakeLoader, make_plan
from tests.replay.runs import check_invariance, results, run
from tests.script.writing import read, user, write

PROBE = {"content": "What is my name?", "expect": {"contains": "Ada"}}


TURNS = [user("My name is Ada."), user("What is 3 plus 4?"), user("Say hello.")]


def rows_of(path: str, **options: Any) -> list[Row]:
    return sorted(rwkvbatch.run(path, **options).rows(), key=lambda row: (row.conversation, row.turn))


def test_turns_have_the_same_rows_with_and_without_probes(tmp_path: Path) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "max_tokens": 12}
    plain = rows_of(write(tmp_path / "a.jsonl", {"messages": TURNS}), **options)
    probed = rows_of(write(tmp_path / "b.jsonl", {"messages": TURNS, "probes": [PROBE, PROBE]}), **options)
    assert [replace(row, timing=plain[0].timing) for row in probed[:3]] == [
        replace(row, timing=plain[0].timing) for row in plain
    ]
    assert len(probed) == 3 + 6
    assert [row.turn for row in probed] == list(range(9))


def test_a_probe_is_answered_like_a_next_turn_and_its_position_is_recorded(tmp_path: Path) -> None:
    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12}
    probed = rows_of(write(tmp_path / "a.jsonl", {"messages": TURNS, "probes": [PROBE]}), **options)
    for after, probe in enumerate(probed[3:]):
        asked = rows_of(
            write(tmp_path / "b.jsonl", {"messages": [*TURNS[: after + 1], user(PROBE["content"])]}), **options
        )
        assert probe.reply_ids == asked[-1].reply_ids
        assert probe.tokens == asked[-1].tokens
        assert probe.probe is not None
        assert (probe.probe.after, probe.probe.number, probe.probe.turns) == (after, 0, after)
        first_turn = rwkvbatch.LLM().tokenizer.encode("User: My name is Ada.\n\nAssistant:")
        question = rwkvbatch.LLM().tokenizer.encode(f"User: {PROBE['content']}\n\nAssistant:")
        assert probe.probe.tokens == probe.tokens.prompt - len(question) - len(first_turn)
        assert decode_row(encode_row(probe)) == probe


def test_probes_of_a_message_follow_its_turn_and_count_turns_from_since(tmp_path: Path) -> None:
    messages = [*TURNS[:2], user("Say hello.", probes=[{**PROBE, "since": 1}, {**PROBE, "since": "system"}])]
    line = {"messages": [{"role": "system", "content": "You are Bob."}, *messages]}
    rows = rows_of(write(tmp_path / "a.jsonl", line), max_tokens=2)[3:]
    positions = [(row.probe.after, row.probe.number, row.probe.turns) for row in rows if row.probe is not None]
    assert positions == [(2, 0, 1), (2, 1, 3)]
    line = {"messages": TURNS, "probes": [{**PROBE, "since": 1}]}
    rows = rows_of(write(tmp_path / "b.jsonl", line), max_tokens=2)[3:]
    assert [row.probe.turns for row in rows if row.probe is not None] == [0, 1]


def test_sampled_probes_differ_from_turns_and_do_not_depend_on_later_turns(tmp_path: Path) -> None:
    options: dict[str, Any] = {"temperature": 2.0, "top_p": 1.0, "max_tokens": 12}
    short = rows_of(write(tmp_path / "a.jsonl", {"messages": TURNS[:1], "probes": [PROBE, PROBE]}), **options)
    longer = rows_of(write(tmp_path / "b.jsonl", {"messages": TURNS, "probes": [PROBE, PROBE]}), **options)
    assert short[1].reply_ids == longer[3].reply_ids
    assert short[2].reply_ids == longer[4].reply_ids
    assert short[1].reply_ids != short[2].reply_ids


def test_rows_of_probes_depend_neither_on_the_batch_nor_on_interruptions(tmp_path: Path) -> None:
    chosen = {"content": "Which?", "choices": ["a", "b"], "expect": {"choice": "b"}}
    lines = [{"messages": TURNS[: 1 + number % 3], "probes": [PROBE, chosen]} for number in range(5)]
    check_invariance(tmp_path, read(tmp_path, *lines).conversations, interrupt_after=[3, 5])


def test_a_failed_probe_does_not_end_the_dialogue(tmp_path: Path) -> None:
    long = {"content": "What? " * 60, "expect": {"contains": "x"}}
    conversations = read(tmp_path, {"messages": TURNS, "probes": [long, PROBE]}).conversations
    directory = tmp_path / "run"
    for _ in range(2):  # the second run reads the rows of the first
        run(directory, make_plan(conversations=conversations, cells=None, max_prompt_tokens=300))
        found = [decode_row(line + b"\n") for line in results(directory).splitlines()]
        failed = {(row.probe is not None and row.probe.number == 0) for row in found if row.finish_reason == "error"}
        assert failed == {True}
        assert sum(row.finish_reason == "error" for row in found) == 6
        assert len(found) == 2 * 9


def test_probes_after_a_failed_turn_are_not_reached(tmp_path: Path) -> None:
    line = {"messages": [TURNS[0], user("long " * 200), TURNS[2]], "probes": [PROBE]}
    conversations = read(tmp_path, line).conversations
    plan = make_plan(conversations=conversations, max_prompt_tokens=300)
    rows = {row.turn: row for row in run(None, plan, FakeLoader()).rows()}
    assert {turn: row.error is None for turn, row in rows.items()} == {
        0: True, 1: False, 2: False, 3: True, 4: False, 5: False
    }  # fmt: skip
    assert str(rows[4].error).startswith("not reached: turn 1")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"probes": []}, "probes: must be an array of probes, got none"),
        ({"probes": "x"}, "probes: must be an array of probes, got a string"),
        ({"probes": [{"expect": {"contains": "x"}}]}, r"probes\[0\].content: is missing"),
        ({"probes": [{**PROBE, "since": 3}]}, r"probes\[0\].since: must be a turn from 0 to 2"),
        ({"probes": [{**PROBE, "since": -1}]}, "since: must be a turn from 0 to 2"),
        ({"probes": [{**PROBE, "since": "system"}]}, "there is no system message"),
        ({"probes": [{**PROBE, "probes": []}]}, "unknown key 'probes'"),
        ({"probes": [{"content": "x", "expect": {"choice": 0}}]}, "needs choices"),
    ],
)
def test_invalid_probes_are_refused(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ScriptError, match=message):
        read(tmp_path, {"messages": TURNS, **more})
