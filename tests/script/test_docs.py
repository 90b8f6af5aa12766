"""Examples in `docs/scripts.md` and `docs/prompts.md` are accepted by the reader, the checks and the linter."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rwkvbatch.script.checks import parse_checks
from rwkvbatch.script.lint import _RULES, lint
from tests.script.writing import HERE, assistant, conversation, read, user

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "scripts.md").read_text(encoding="utf-8")
EXAMPLES = [
    json.loads(line) for block in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()
]
SCRIPT_KEYS = {"messages", "body", "conversations", "turns", "text", "prompt"}


def test_the_scripts_in_the_documentation_are_read(tmp_path: Path) -> None:
    defaults = [line for line in EXAMPLES if "defaults" in line]
    conversations = [line for line in EXAMPLES if SCRIPT_KEYS & line.keys()]
    script = read(tmp_path, *defaults, *conversations)
    assert len(script.conversations) == 16
    assert all(found.tags[0] == "smoke" for found in script.conversations)


def test_the_checks_in_the_documentation_are_read() -> None:
    entries = [line.get("expect", line) for line in EXAMPLES if not ({"defaults"} | SCRIPT_KEYS) & line.keys()]
    assert sum(len(parse_checks(entry, HERE)) for entry in entries) == 9


LINT_EXAMPLES = re.findall(r"\| `([a-z-]+)` \| [^|]* \| `(\".*?\")` \|", TEXT)


def test_every_lint_rule_has_an_example() -> None:
    assert len(LINT_EXAMPLES) == len(_RULES)


@pytest.mark.parametrize(("code", "content"), LINT_EXAMPLES)
def test_the_lint_examples_in_the_documentation_are_found(code: str, content: str, tmp_path: Path) -> None:
    text = json.loads(content)
    messages = [user(), assistant(text)] if "reference" in code else [user(text)]
    script = read(tmp_path, conversation(*messages)).conversations
    assert code in [warning.code for warning in lint(script, turn_end="blank-line")]


def test_the_template_in_the_documentation_is_the_tested_file() -> None:
    documented = re.findall(
        r"```jinja\n(.*?)```", (ROOT / "docs" / "prompts.md").read_text(encoding="utf-8"), re.DOTALL
    )
    tested = (ROOT / "tests" / "prompt" / "chatml.jinja").read_text(encoding="utf-8")
    assert documented == [tested.split("\n", 1)[1]]
