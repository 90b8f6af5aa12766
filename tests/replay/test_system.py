"""`--system` and `--system-file`: replacing and filling in system messages, grids, and reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import rwkvbatch
from rwkvbatch.comparison.dialogues.selection import dialogues
from rwkvbatch.comparison.runs.loading import load_runs
from rwkvbatch.errors import RunMismatchError, UsageError
from rwkvbatch.replay.prepare import prepare
from rwkvbatch.replay.worker.conversation import ConversationReplay
from rwkvbatch.replay.worker.prompts import PromptEncoder
from rwkvbatch.results.manifest import FILLS_IN_SYSTEM, read_manifest
from tests.replay.fakes import ByteTokenizer


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A conversation with a system message, and one without."""
    path = tmp_path / "s.jsonl"
    user = {"role": "user", "content": "Hi"}
    lines = [
        {"id": "with", "messages": [{"role": "system", "content": "Own."}, user]},
        {"id": "without", "messages": [user]},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def systems(script: Path, **settings: Any) -> list[tuple[str, str, str | None]]:
    """The conversation, the cell and the system message of each task's prompt."""
    plan = prepare(script, **settings).plan
    found: list[tuple[str, str, str | None]] = []
    for number in range(plan.num_tasks):
        task = plan.task(number)
        prompt = ByteTokenizer().decode(list(ConversationReplay(task, PromptEncoder(ByteTokenizer())).prompt()))
        first_part = prompt.partition("\n\n")[0]
        system = first_part.removeprefix("System: ") if first_part.startswith("System: ") else None
        found.append((task.conversation.id, task.cell.name, system))
    return found


def test_an_explicit_text_replaces_system_messages_and_an_empty_one_removes_them(script: Path) -> None:
    assert systems(script) == [("with", "base", "Own."), ("without", "base", None)]
    assert systems(script, system="A, b.") == [("with", "base", "A, b."), ("without", "base", "A, b.")]
    assert systems(script, system="") == [("with", "base", None), ("without", "base", None)]


def test_the_environment_and_the_config_file_fill_in_missing_system_messages(script: Path, tmp_path: Path) -> None:
    expected = [("with", "base", "Own."), ("without", "base", "Env.")]
    assert systems(script, environment={"RWKVBATCH_SYSTEM": "Env."}) == expected
    (tmp_path / "c.toml").write_text('system = "Env."\n')
    assert systems(script, config=tmp_path / "c.toml") == expected
    (tmp_path / "env.txt").write_text("Env.\n")
    assert systems(script, environment={"RWKVBATCH_SYSTEM_FILE": str(tmp_path / "env.txt")}) == expected


def test_a_grid_varies_system_texts_and_files(script: Path, tmp_path: Path) -> None:
    for name in ("brief", "long"):
        (tmp_path / f"{name}.txt").write_text(f"Be {name}.\n")
    files = [str(tmp_path / f"{name}.txt") for name in ("brief", "long")]
    expected = [("with", "system_file=brief", "Be brief."), ("with", "system_file=long", "Be long.")]
    assert systems(script, system_file=files)[:2] == expected
    assert systems(script, system_file=",".join(files))[:2] == expected
    assert systems(script, system=["One, two.", ""])[:2] == [
        ("with", "system=One_two.", "One, two."),
        ("with", "system=none", None),
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"system": "a", "system_file": "s.jsonl"}, "given twice with --system and --system-file"),
        ({"system": ["a", "b"], "system_file": ["c", "d"]}, "varied twice, by --system and by --system-file"),
        ({"system": "a", "system_file": ["s.jsonl", "t.txt"]}, "--system is given for all cells"),
        ({"system_file": "nothing.txt"}, "--system-file nothing.txt: cannot be read"),
    ],
)
def test_contradictory_options_and_unreadable_files_are_refused(
    script: Path, settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(script.parent)
    Path("t.txt").write_text("T.")
    with pytest.raises(UsageError, match=message):
        prepare(script, **settings)


def test_dialogues_and_the_manifest_have_the_system_message_that_was_read(script: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_tokens": 1, "out": tmp_path / "given", "system": ["Be brief.", ""]}
    rwkvbatch.run(script, **settings)
    rwkvbatch.run(script, max_tokens=1, out=tmp_path / "filled", environment={"RWKVBATCH_SYSTEM": "Env."})
    shown = [
        (each.conversation, each.system) for run in load_runs([str(tmp_path / "given")]) for each in dialogues(run)
    ]
    assert shown == [("with", "Be brief."), ("without", "Be brief."), ("with", None), ("without", None)]
    (run,) = load_runs([str(tmp_path / "filled")])
    assert [each.system for each in dialogues(run)] == ["Own.", "Env."]
    manifest = read_manifest(tmp_path / "filled")
    assert manifest is not None
    assert manifest["identity"]["cells"]["base"][FILLS_IN_SYSTEM] is True
    with pytest.raises(RunMismatchError, match=r"cells\.base\.system"):
        rwkvbatch.run(script, max_tokens=1, out=tmp_path / "filled", system="Other.")
