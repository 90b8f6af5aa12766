"""The commands of the guides run on the bundled model, and the Chinese guide gives those of the English one."""

from __future__ import annotations

import io
import re
import shlex
import sys
from pathlib import Path

import pytest

from rwkvbatch.cli.app import invoke

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
SHELL = re.compile(r"```sh\n(.*?)```", re.DOTALL)
INSTALLING = ("make demo", ". .venv/bin/activate")
"""Commands that make the environment which these tests run in."""
NUM_CONVERSATIONS = 16


def commands_of(document: Path) -> list[str]:
    blocks = SHELL.findall(document.read_text(encoding="utf-8"))
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def write_beginnings(source: Path, target: Path) -> None:
    """Write the first conversations of each script, which the commands take as they take all of them."""
    target.mkdir()
    for path in source.glob("*.jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        (target / path.name).write_text("".join(lines[:NUM_CONVERSATIONS]), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_every_command_of_a_guide_runs(
    guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("rwkvbatch", "README.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_beginnings(ROOT / "datasets", tmp_path / "datasets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RWKVBATCH_VOCAB")
    commands = [command for command in commands_of(guide) if command not in INSTALLING]
    assert commands
    for command in commands:
        words = shlex.split(command)
        if words[0] == "echo" and words[-2] == ">":
            Path(words[-1]).write_text(" ".join(words[1:-2]) + "\n", encoding="utf-8")
            continue
        if words[0] == "echo":
            bar = words.index("|")
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((" ".join(words[1:bar]) + "\n").encode())))
            words = words[bar + 1 :]
        assert words[0] == "rwkvbatch", command
        target = Path(words[-1]) if words[-2] == ">" else None
        words = words[:-2] if target else words
        monkeypatch.setattr(sys, "argv", words)
        code = invoke(words[1:])
        said = capsys.readouterr()
        # A run, a comparison or a plan that finds failed checks or too little data ends with 1.
        assert code in (0, 1), f"{command}: {said.err}"
        assert said.out or said.err, command
        if target is not None:
            target.write_text(said.out, encoding="utf-8")


def test_the_chinese_guide_has_the_commands_of_the_english_one() -> None:
    assert commands_of(ROOT / "docs/zh/first-run.md") == commands_of(ROOT / "docs/guides/first-run.md")


def test_the_chinese_readme_has_the_commands_of_the_english_one() -> None:
    english = commands_of(ROOT / "README.md")
    chinese = commands_of(ROOT / "README.zh-CN.md")
    assert chinese
    assert [command for command in chinese if command not in english] == []
    assert [command for command in english if command.startswith("make ")] == [
        command for command in chinese if command.startswith("make ")
    ]
