"""Runs of conversations that a program gives instead of files."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

import rwkvbatch
from rwkvbatch.errors import ArgumentError, UsageError
from rwkvbatch.replay.judging.recheck import recheck
from rwkvbatch.replay.merge import merge
from rwkvbatch.replay.prepare import prepare

CONVERSATIONS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "Hi", "expect": {"min_tokens": 1}}], "tags": ["short"]},
    {"id": "s", "conversations": [{"from": "human", "value": "Count."}, {"from": "human", "value": "Again."}]},
]


@pytest.fixture(scope="module")
def llm() -> rwkvbatch.LLM:
    return rwkvbatch.LLM()


def without_timing(directory: Path) -> list[dict[str, Any]]:
    """The rows with their digests, without what may differ between two runs of the same thing."""
    lines = (directory / "results.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in ("timing", "crc")} for line in lines]


def test_a_run_of_mappings_is_that_of_the_same_lines_in_a_file(tmp_path: Path, llm: rwkvbatch.LLM) -> None:
    script = tmp_path / "chats.jsonl"
    script.write_text("".join(json.dumps(line) + "\n" for line in CONVERSATIONS))
    rwkvbatch.run(script, model=llm, max_tokens=3, out=tmp_path / "file")
    rwkvbatch.run((line for line in CONVERSATIONS), model=llm, max_tokens=3, out=tmp_path / "python")
    assert without_timing(tmp_path / "python") == without_timing(tmp_path / "file")
    assert (tmp_path / "python/script.jsonl").read_bytes() == (tmp_path / "file/script.jsonl").read_bytes()
    continued = rwkvbatch.run(CONVERSATIONS, model=llm, max_tokens=3, out=tmp_path / "file")
    assert continued.reuse is not None
    assert (continued.reuse.kept, continued.reuse.to_generate) == (3, 0)
    manifest = json.loads((tmp_path / "python/manifest.json").read_text())
    assert manifest["about"]["scripts"] == ["<python>"]


def test_the_run_directory_serves_other_commands(tmp_path: Path, llm: rwkvbatch.LLM) -> None:
    parts = [tmp_path / "1", tmp_path / "2"]
    for number, part in enumerate(parts, 1):
        rwkvbatch.run(CONVERSATIONS, model=llm, max_tokens=3, shard=f"{number}/2", out=part)
    merge(parts, tmp_path / "merged")
    assert recheck(tmp_path / "merged").judged == 1
    rwkvbatch.run(CONVERSATIONS, model=llm, max_tokens=2, out=tmp_path / "short")
    (line,) = rwkvbatch.compare([tmp_path / "merged", tmp_path / "short"], metrics=["tokens"]).comparisons
    assert line.difference == -1


def test_one_mapping_and_a_mix_with_paths_are_scripts(tmp_path: Path) -> None:
    script = tmp_path / "chats.jsonl"
    script.write_text(json.dumps(CONVERSATIONS[0]))
    assert [c.id for c in prepare(CONVERSATIONS[1]).plan.conversations] == ["s"]
    mixed = prepare([CONVERSATIONS[0], script])
    assert [c.id for c in mixed.plan.conversations] == ["python:1", "chats.jsonl:1"]
    assert mixed.names == ("<python>", str(script))


@pytest.mark.parametrize("item", [5, b"a.jsonl", None, ["a.jsonl"]])
def test_an_item_that_is_neither_is_refused_by_its_index(item: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^scripts\[1\] must be a path or a mapping \(a conversation\); got "):
        prepare([CONVERSATIONS[0], item])


def test_an_endless_iterator_ends_at_the_limit_of_conversations() -> None:
    with pytest.raises(UsageError, match="more than 10 conversations"):
        prepare(itertools.repeat(CONVERSATIONS[0]), max_conversations=10)


def test_documents_are_files() -> None:
    with pytest.raises(UsageError, match="documents=True is for files"):
        prepare([{"text": "A text."}], documents=True)
