"""Probes: rows of their own that leave no trace in the dialogue."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import rwkvbatch
from rwkvbatch.errors import ScriptError
from rwkvbatch.results.row import Row, decode_row, encode_row
from rwkvbatch.script.reader import read_scripts
from tests.replay.fakes import FakeLoader, make_plan
from tests.replay.runs import StopAfter, results, run

PROBE = {"content": "What is my name?", "expect": {"contains": "Ada"}}


def user(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


TURNS = [user("My name is Ada."), user("What is 3 plus 4?"), user("Say hello.")]


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps({"id": f"c{number}", **line}) + "\n" for number, line in enumerate(lines)))
    return path


def rows_of(path: Path, **options: Any) -> list[Row]:
    return sorted(rwkvbatch.run(path, **options).rows(), key=lambda row: (row.conversation, row.turn))


def test_turns_are_the_same_with_and_without_probes(tmp_path: Path) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "max_tokens": 12}
    plain = rows_of(write(tmp_path / "a.jsonl", {"messages": TURNS}), **options)
    probed = rows_of(write(tmp_path / "b.jsonl", {"messages": TURNS, "probes": [PROBE, PROBE]}), **options)
    assert [replace(row, timing=plain[0].timing) for row in probed[:3]] == [
        replace(row, timing=plain[0].timing) for row in plain
    ]
    assert len(probed) == 3 + 6
    assert [row.turn for row in probed] == list(range(9))


def test_a_probe_is_answered_as_the_next_turn_would_be_and_its_place_is_recorded(tmp_path: Path) -> None:
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
        told = rwkvbatch.LLM().tokenizer.encode("User: My name is Ada.\n\nAssistant:")
        question = rwkvbatch.LLM().tokenizer.encode(f"User: {PROBE['content']}\n\nAssistant:")
        assert probe.probe.tokens == probe.tokens.prompt - len(question) - len(told)
        assert decode_row(encode_row(probe)) == probe


def test_probes_of_a_message_stand_after_its_turn_and_count_from_since(tmp_path: Path) -> None:
    late = [*TURNS[:2], user("Say hello.", probes=[{**PROBE, "since": 1}, {**PROBE, "since": "system"}])]
    line = {"messages": [{"role": "system", "content": "You are Bob."}, *late]}
    rows = rows_of(write(tmp_path / "a.jsonl", line), max_tokens=2)[3:]
    places = [(row.probe.after, row.probe.number, row.probe.turns) for row in rows if row.probe is not None]
    assert places == [(2, 0, 1), (2, 1, 3)]
    standing = {"messages": TURNS, "probes": [{**PROBE, "since": 1}]}
    rows = rows_of(write(tmp_path / "b.jsonl", standing), max_tokens=2)[3:]
    assert [row.probe.turns for row in rows if row.probe is not None] == [0, 1]


def test_sampled_probes_differ_from_turns_and_do_not_depend_on_later_turns(tmp_path: Path) -> None:
    options: dict[str, Any] = {"temperature": 2.0, "top_p": 1.0, "max_tokens": 12}
    short = rows_of(write(tmp_path / "a.jsonl", {"messages": TURNS[:1], "probes": [PROBE, PROBE]}), **options)
    longer = rows_of(write(tmp_path / "b.jsonl", {"messages": TURNS, "probes": [PROBE, PROBE]}), **options)
    assert short[1].reply_ids == longer[3].reply_ids
    assert short[2].reply_ids == longer[4].reply_ids
    assert short[1].reply_ids != short[2].reply_ids


def test_probes_do_not_depend_on_the_batch_and_an_interrupted_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    chosen = {"content": "Which?", "choices": ["a", "b"], "expect": {"choice": "b"}}
    lines = [{"messages": TURNS[: 1 + number % 3], "probes": [PROBE, chosen]} for number in range(5)]
    conversations = read_scripts([str(write(tmp_path / "s.jsonl", *lines))]).conversations
    whole, parts, alone = tmp_path / "whole", tmp_path / "parts", tmp_path / "alone"
    run(whole, make_plan(conversations=conversations))
    for steps in (3, 5, 8):
        run(parts, make_plan(conversations=conversations), should_stop=StopAfter(steps))
    run(parts, make_plan(conversations=conversations))
    run(alone, make_plan(conversations=conversations, batch_size=1))
    assert results(parts) == results(whole) == results(alone)


def test_a_probe_that_fails_does_not_end_the_dialogue(tmp_path: Path) -> None:
    long = {"content": "What? " * 60, "expect": {"contains": "x"}}
    lines = {"messages": TURNS, "probes": [long, PROBE]}
    conversations = read_scripts([str(write(tmp_path / "s.jsonl", lines))]).conversations
    directory = tmp_path / "run"
    for _ in range(2):  # the second time from its rows
        run(directory, make_plan(conversations=conversations, cells=None, max_prompt_tokens=300))
        found = [decode_row(line + b"\n") for line in results(directory).splitlines()]
        failed = {(row.probe is not None and row.probe.number == 0) for row in found if row.finish_reason == "error"}
        assert failed == {True}
        assert sum(row.finish_reason == "error" for row in found) == 6
        assert len(found) == 2 * 9


def test_after_a_failed_turn_its_probes_are_not_reached(tmp_path: Path) -> None:
    line = {"messages": [TURNS[0], user("long " * 200), TURNS[2]], "probes": [PROBE]}
    conversations = read_scripts([str(write(tmp_path / "s.jsonl", line))]).conversations
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
def test_bad_probes_are_refused(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ScriptError, match=message):
        read_scripts([str(write(tmp_path / "s.jsonl", {"messages": TURNS, **more}))])
