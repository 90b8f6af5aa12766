"""`chat --endpoint`: the chat front ends with a served model."""

from __future__ import annotations

import io
import json
import re
import shlex
import socket
import sys
from pathlib import Path

import pytest

from rwkvbatch.cli.app import invoke
from tests.endpoint.server import FakeServer, raw_server

GREEDY = ["--temp", "0", "--max-tokens", "12", "--turn-end", "blank-line", "--prelude", "none", "--no-transcript"]


def chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lines: str, *options: str) -> list[str]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode()), "utf-8"))
    code = invoke(["chat", "--quiet", "--no-transcript", *options])
    captured = capsys.readouterr()
    return [str(code), captured.out, captured.err]


def test_replies_are_those_of_the_model_in_this_process(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "My name is Ada.\nWhat is my name?\n/retry\n/undo\nSay a word.\n"
    options = ["--json", *GREEDY[:-1]]
    here = chat(monkeypatch, capsys, lines, *options)
    there = chat(monkeypatch, capsys, lines, *options, "--endpoint", server.url)
    assert here[0] == there[0] == "0"
    replies = [[json.loads(line)["reply"] for line in out[1].splitlines()] for out in (here, there)]
    assert replies[0] == replies[1]
    assert len(replies[0]) == 4


def test_chat_interface_sends_the_dialogue(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--endpoint", server.url, "--endpoint-api", "chat", "--temp", "0", "--max-tokens", "8"]
    code, out, _ = chat(monkeypatch, capsys, "hi\nand now?\n", *options, "--system", "Be short.")
    assert code == "0"
    roles = [[message["role"] for message in body["messages"]] for body in server.bodies]
    assert roles == [["system", "user"], ["system", "user", "assistant", "user"]]
    assert server.bodies[1]["messages"][2]["content"] in out
    assert chat(monkeypatch, capsys, "hi\n", *options)[0] == "0"
    assert [message["role"] for message in server.bodies[2]["messages"]] == ["user"]


@pytest.mark.parametrize(
    "command", ["/top", "/model x.pth", "/save-state s.pth", "/state save s.pth", f"/state load {__file__}"]
)
def test_what_needs_the_inside_of_an_engine_is_refused(
    command: str, server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = chat(monkeypatch, capsys, f"hi\n{command}\n", *GREEDY[:-1], "--endpoint", server.url)
    assert code == "1"
    assert "Traceback" not in err
    assert err.strip()


def test_escape_sequences_of_a_server_do_not_reach_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {"choices": [{"index": 0, "text": "a\x1b[2Jb\x9bc", "finish_reason": "stop"}]}
    body = json.dumps({**content, "data": [{"id": "m\x1b]0;x\x07"}]}).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"

    def answer(connection: socket.socket) -> None:
        connection.sendall(head + body)

    with raw_server(answer) as url:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hi\n"), "utf-8"))
        code = invoke(["chat", "--no-transcript", "--endpoint", url])
    captured = capsys.readouterr()
    assert code == 0
    assert "\x1b" not in captured.out + captured.err
    assert "\x9b" not in captured.out + captured.err
    assert "a\\x1b[2Jb" in captured.out


def test_a_failed_reply_leaves_the_session_usable(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.statuses, server.refusal = [400, 0], "too odd"
    code, out, err = chat(monkeypatch, capsys, "hi\nhello\n", *GREEDY[:-1], "--endpoint", server.url)
    assert code == "1"
    assert "too odd" in err
    assert out.strip()


def test_options_of_a_model_in_this_process_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--state", "s.pth"], ["--model", "m.pth"], ["--load", "x.json"]):
        assert invoke(["chat", "--endpoint", "http://127.0.0.1:9/v1", *options]) in (2, 3)
        assert options[0] in capsys.readouterr().err


def test_the_command_of_an_export_asks_the_same_server(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = f"My name is Ada.\n/export {tmp_path / 'a.jsonl'}\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode()), "utf-8"))
    assert invoke(["chat", "--json", *GREEDY, "--endpoint", server.url]) == 0
    captured = capsys.readouterr()
    shown = json.loads(captured.out.splitlines()[0])
    (command,) = re.findall(r"rwkvbatch (run .*)", captured.err)
    assert f"--endpoint {server.url}" in command
    num_before = len(server.bodies)
    assert invoke([*shlex.split(command), "--out", str(tmp_path / "run"), "--quiet"]) in (0, 1)
    assert len(server.bodies) > num_before
    (row,) = [json.loads(line) for line in (tmp_path / "run/results.jsonl").read_text().splitlines()]
    assert row["reply"] == shown["reply"]
