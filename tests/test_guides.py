"""The commands of the guides run on the bundled model, and the Chinese guide gives those of the English one.

The workflows of docs/ci.md are valid YAML, and the command lines in them are valid.
"""

from __future__ import annotations

import io
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.cli.app import invoke, load_command
from rwkvbatch.cli.report_output import ReportOutput
from rwkvbatch.comparison.gates.parsing import parse_gate

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


def workflows() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml")
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/ci.md").read_text(encoding="utf-8"), re.DOTALL)
    return [yaml.safe_load(block) for block in blocks]


def steps_of(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of a job of GitHub Actions, or the script of one of GitLab as such steps."""
    if "jobs" in workflow:
        return [step for job in workflow["jobs"].values() for step in job["steps"]]
    return [{"run": line} for job in workflow.values() for line in job["script"]]


def programs_of(workflow: dict[str, Any]) -> list[list[str]]:
    """The arguments of each rwkvbatch command in a workflow; variables of the shell stay as they are."""
    commands: list[list[str]] = []
    for step in steps_of(workflow):
        for line in step.get("run", "").replace("\\\n", " ").splitlines():
            words = shlex.split(line.partition("||")[0])
            commands += [words[1:]] if words[:1] == ["rwkvbatch"] else []
    return commands


def test_the_page_on_ci_has_a_whole_job_of_each_service_for_both_cases() -> None:
    found = workflows()
    assert [("jobs" in workflow) for workflow in found] == [True, False, True, False]
    for workflow in found:
        assert [arguments[0] for arguments in programs_of(workflow)] == ["run", "compare"]
        steps = steps_of(workflow)
        assert any(step.get("run") == "pip install rwkvbatch" for step in steps)
        (run,) = [step["run"] for step in steps if "rwkvbatch run" in step.get("run", "")]
        assert run.endswith("|| [ $? -eq 1 ]"), "a failed check would end the job before the gates"
        if "jobs" in workflow:
            assert True in workflow, "`on:` is read as a key"
            assert all(("uses" in step) != ("run" in step) for step in steps)
            artifacts = " ".join(step["with"]["path"] for step in steps if "upload-artifact" in step.get("uses", ""))
        else:
            (job,) = workflow.values()
            artifacts = " ".join(job["artifacts"]["paths"])
            assert job["artifacts"]["reports"]["junit"] == "gates.xml"
        assert "gates.xml" in artifacts
        assert "runs/" in artifacts


def test_every_command_line_in_the_page_on_ci_is_valid() -> None:
    for workflow in workflows():
        for name, *arguments in programs_of(workflow):
            values = load_command(name).make_context(name, arguments).params
            if name == "compare":
                for gate in values["fail_if"]:
                    parse_gate(gate, "--fail-if")
                output = ReportOutput.of_options(
                    values["output_format"],
                    values["out"],
                    as_json=values["as_json"],
                    replace=values["replace"],
                    junit_cases=values["junit_cases"],
                    num_changes=values["changes"],
                )
                assert output.format == "junit"
            else:
                assert values["scripts"]
                assert values["out"] is not None
