"""The chat in tmux, with its pane read back."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


class Pane:
    """A separate tmux server with one pane."""

    def __init__(self, command: str) -> None:
        self.socket = f"rwkvbatch-{uuid.uuid4().hex[:8]}"
        self.run("-f", "/dev/null", "new-session", "-d", "-x", "60", "-y", "20", command)

    def run(self, *arguments: str) -> str:
        completed = self._call(*arguments)
        assert completed.returncode == 0, completed.stderr
        return completed.stdout

    def close(self) -> None:
        """Leave the program, which ends its server; kill the server if it still runs."""
        end_s = time.monotonic() + 10
        while self._is_running() and time.monotonic() < end_s:
            self._call("send-keys", "C-c", "C-d")
            time.sleep(0.3)
        self._call("kill-server")

    def _is_running(self) -> bool:
        return self._call("has-session").returncode == 0

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["tmux", "-L", self.socket, *arguments], check=False, capture_output=True, text=True, cwd=ROOT
        )

    @property
    def text(self) -> str:
        return self.run("capture-pane", "-p", "-S", "-")

    def wait_for(self, text: str, timeout_s: float = 40.0) -> None:
        end_s = time.monotonic() + timeout_s
        while text not in self.text:
            time.sleep(0.05)
            assert time.monotonic() < end_s, f"waited for {text!r}; the pane:\n{self.text}"


@pytest.fixture
def pane(tmp_path: Path) -> Iterator[Pane]:
    pane = Pane(f"{sys.executable} -m tests.chat.scripted_chat {tmp_path} 0.005")
    try:
        yield pane
    finally:
        pane.close()


def test_a_stopped_reply_is_complete_after_resizes(pane: Pane) -> None:
    pane.wait_for("turn 1")
    pane.run("send-keys", "hello", "Enter")
    pane.wait_for("You said: hello")
    pane.wait_for("turn 2")
    pane.run("send-keys", "long", "Enter")
    for line, (columns, rows) in ((4, (44, 16)), (9, (80, 30)), (14, (46, 9)), (19, (60, 20))):
        pane.wait_for(f"line {line} of")
        pane.run("resize-window", "-x", str(columns), "-y", str(rows))
    pane.wait_for("line 26 of a long reply")
    pane.run("send-keys", "C-c")
    pane.wait_for("[stopped]")
    pane.wait_for("turn 3")
    lines = [line.rstrip() for line in pane.text.splitlines()]
    for number in range(27):
        assert lines.count(f"line {number} of a long reply") == 1
    assert not [line for line in lines if "Ctrl-C stops" in line and "lists the commands" not in line]


def test_a_paragraph_resized_while_it_is_streamed_loses_no_word(pane: Pane) -> None:
    pane.wait_for("turn 1")
    pane.run("send-keys", "paragraph", "Enter")
    for number, columns in ((12, 44), (30, 70), (55, 45), (80, 60)):
        pane.wait_for(f"w{number}w")
        pane.run("resize-window", "-x", str(columns), "-y", "20")
    pane.wait_for("turn 2")
    # -J joins rows that the terminal has wrapped.
    output = " ".join(pane.run("capture-pane", "-p", "-J", "-S", "-").split())
    words = [int(word) for word in re.findall(r"\bw(\d+)w\b", output)]
    for before, after in itertools.pairwise(words):
        # Rows that stay after a resize are repeated whole; none is skipped.
        assert after <= before + 1
    assert set(words) == set(range(120))
