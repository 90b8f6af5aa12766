"""Examples, fields and limits in docs/serve.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rwkvbatch.serve import connection, fields, server
from tests.serve.running import running

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "serve.md").read_text()


def test_the_python_example_prints_a_reply(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    with running() as started:
        exec(block.replace("http://127.0.0.1:8000", started.url), {})  # noqa: S102
    assert capsys.readouterr().out.strip()


def test_every_setting_of_a_request_is_documented() -> None:
    openai_fields = {"temperature", "top_p", "presence_penalty", "frequency_penalty"}
    assert [name for name in fields.OWN_FIELDS if f"`{name}`" not in TEXT and name not in openai_fields] == []


def test_the_documented_limits_are_those_of_the_program() -> None:
    assert f"{fields.MAX_STOPS}, {fields.MAX_STOP_CHARACTERS} " in TEXT
    assert f"| prompts times `n` | {fields.MAX_REPLIES} |" in TEXT
    assert f"`--max-prompt-tokens`, {server.DEFAULT_MAX_PROMPT_TOKENS} " in TEXT
    assert f"{connection.MAX_HEAD_BYTES:,}" in TEXT
    assert f"{connection.HEAD_SECONDS:.0f}; {connection.WRITE_SECONDS:.0f} " in TEXT
