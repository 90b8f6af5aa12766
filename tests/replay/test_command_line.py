"""Commands that are shown so that they can be given again."""

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
def test_the_directory_is_given_where_options_are(command: str, with_out: str) -> None:
    assert with_directory(shlex.split(command), Path("runs/x y")) == with_out


@pytest.mark.parametrize("given", ["--out d", "--out=d", "-o d", "-od", "--shard 1/2 -o d", "-od --shard=1/2"])
def test_options_go_with_their_values(given: str) -> None:
    words = shlex.split(f"rwkvbatch run a.jsonl {given} -q -- -o.jsonl --shard")
    kept = without_options(words, ("--shard", "--out", "-o"))
    assert shlex.join(kept) == "rwkvbatch run a.jsonl -q -- -o.jsonl --shard"
