"""Messages, conversations and script files for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rwkvbatch.script.lines import SourceLine
from rwkvbatch.script.reader import Script, read_scripts

HERE = SourceLine("demo.jsonl", 3)


def user(content: str = "Hi", **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def assistant(content: str = "Hello", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def conversation(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": list(messages or (user(),)), **more}


def write(path: Path, *lines: Any) -> str:
    """One line for each value; bytes are written as they are."""
    data = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    path.write_bytes(data)
    return str(path)


def read(tmp_path: Path, *lines: Any, **options: Any) -> Script:
    return read_scripts([write(tmp_path / "demo.jsonl", *lines)], **options)


GOOD = json.dumps(conversation(id="good")).encode()
"""A line that can be read."""
