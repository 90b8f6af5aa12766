"""Command lines in messages: with another directory, and without some options."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from rwkvbatch.replay.logs import with_directory, without_options


@pytest.mark.parametrize(
    ("command", "with_out"),
    [
        ("rwkvbatch run 'a b.jsonl'", "rwkvbatch run 'a b.jsonl' --out 'runs/x y'"),
        ("rwkvbatch run -q -- -odd.jsonl", "rwkvbatch run -q --out 'runs/x y' -- -odd.jsonl"),
    ],
)
def test_out_is_added_before_the_end_of_options(command: str, with_out: str) -> None:
    assert with_directory(shlex.split(command), Path("runs/x y")) == with_out


@pytest.mark.parametrize("options", ["--out d", "--out=d", "-o d", "-od", "--shard 1/2 -o d", "-od --shard=1/2"])
def test_options_are_removed_with_their_values(options: str) -> None:
    words = shlex.split(f"rwkvbatch run a.jsonl {options} -q -- -o.jsonl --shard")
    kept = without_options(words, ("--shard", "--out", "-o"))
    assert shlex.join(kept) == "rwkvbatch run a.jsonl -q -- -o.jsonl --shard"
