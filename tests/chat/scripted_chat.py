"""A program: a chat with a scripted model. `python -m tests.chat.scripted_chat DIRECTORY [SECONDS PER STEP]`."""

from __future__ import annotations

import sys
from pathlib import Path

from rwkvbatch.chat.app import Chat
from rwkvbatch.chat.session import Session
from rwkvbatch.chat.storage import Transcript
from rwkvbatch.chat.terminal import TerminalView, run_terminal, terminal_console
from rwkvbatch.config import CellSettings
from rwkvbatch.engine.engine import Engine
from tests.chat.scripted_model import ScriptedModel, echo

LONG = "\n".join(f"line {number} of a long reply" for number in range(40))
MARKDOWN = "Some **bold** words.\n```python\ndef f(x):\n    return x + 1\n```\n- one\n- two\nDone."
ESCAPES = "red \x1b[31mtext\x1b[0m \x1b]0;stolen title\x07 \u202eback \x9b2J end"
THINKING = ">\nLet me think.\nOne and one.\n</think>\nIt is **two**."
ANSWERS = {
    "long": LONG,
    "paragraph": " ".join(f"w{number}w" for number in range(120)),
    "markdown": MARKDOWN,
    "escapes": ESCAPES,
    "wide": "日本語の文章です。" * 8 + " e\u0301e\u0301 end",
}


def answer(message: str) -> str:
    if message.startswith("think"):
        return THINKING
    return ANSWERS.get(message, echo(message if len(message) < 200 else f"{len(message)} characters"))


def main() -> None:
    directory, step_s = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    settings = CellSettings(temperature=0.0, top_p=0.0, max_tokens=5000)
    session = Session(Engine(ScriptedModel(answer, step_s)), settings)
    session.begin()
    transcript = Transcript(directory / "transcript.jsonl")
    chat = Chat(
        session,
        TerminalView(terminal_console()),
        transcript,
        lambda path: Engine(ScriptedModel(lambda message: f"other: {message}")),
        is_terminal=True,
    )
    transcript.start(session)
    run_terminal(chat, directory / "history")
    transcript.close()
    print("left cleanly")  # noqa: T201


if __name__ == "__main__":
    main()
