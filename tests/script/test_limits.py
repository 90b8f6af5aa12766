"""Limits of scripts: bytes of a line, turns, conversations."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from rwkvbatch.config import ScriptLimits
from rwkvbatch.errors import ScriptError, UsageError
from rwkvbatch.script.reader import read_scripts
from tests.script.writing import GOOD, conversation, read, user


def test_a_line_over_the_limit_is_refused_and_later_lines_keep_their_numbers(tmp_path: Path) -> None:
    limits = ScriptLimits(max_line_bytes=200)
    long = conversation(user("x" * 3_000_000))
    with pytest.raises(ScriptError, match=r":2: the line is longer than 200 bytes") as caught:
        read(tmp_path, GOOD, long, limits=limits)
    assert "max_line_bytes" in str(caught.value.hint)
    script = read(tmp_path, GOOD, long, conversation(), limits=limits, skip_bad=True)
    assert [found.source.line for found in script.conversations] == [1, 3]
    assert (len(script.skipped[0].raw), script.skipped[0].whole) == (200, False)


def test_an_endless_file_is_refused() -> None:
    with pytest.raises(ScriptError, match=r"zero:1: the line is longer than 1,000 bytes"):
        read_scripts(["/dev/zero"], limits=ScriptLimits(max_line_bytes=1000))


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_a_line_of_exactly_the_limit_is_read(end: bytes, tmp_path: Path) -> None:
    path = tmp_path / "demo.jsonl"
    path.write_bytes(GOOD + end)
    assert read_scripts([str(path)], limits=ScriptLimits(max_line_bytes=len(GOOD))).conversations
    with pytest.raises(ScriptError, match="longer than"):
        read_scripts([str(path)], limits=ScriptLimits(max_line_bytes=len(GOOD) - 1))


def test_a_huge_line_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "demo.jsonl"
    with path.open("wb") as file:
        file.write(b'{"messages": "')
        file.seek(90_000_000)
        file.write(b'"}\n')
    tracemalloc.start()
    try:
        with pytest.raises(ScriptError, match="longer than 10,000,000 bytes"):
            read_scripts([str(path)])
        with pytest.raises(ScriptError, match="no conversation that can be used"):
            read_scripts([str(path)], skip_bad=True)  # skips the line
        assert tracemalloc.get_traced_memory()[1] < 60_000_000
    finally:
        tracemalloc.stop()


def test_more_turns_than_allowed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=r":1: has 10,001 turns, more than 10,000"):
        read(tmp_path, conversation(*[user()] * 10_001))
    assert read(tmp_path, conversation(*[user()] * 3), limits=ScriptLimits(max_turns=3)).conversations


def test_many_turns_are_refused_by_the_limit_of_a_line(tmp_path: Path) -> None:
    line = b'{"messages": [' + b",".join([b'{"role":"user","content":""}'] * 400_000) + b"]}"
    with pytest.raises(ScriptError, match="longer than 10,000,000 bytes"):
        read(tmp_path, line)


def test_more_conversations_than_allowed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="more than 2 conversations"):
        read(tmp_path, *[conversation()] * 3, limits=ScriptLimits(max_conversations=2), skip_bad=True)
