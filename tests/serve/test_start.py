"""`rwkvbatch serve` as a program: address, key, states, signals, exit codes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch

from rwkvbatch import LLM, SamplingParams
from rwkvbatch.cli.app import invoke
from rwkvbatch.config import RunSettings
from rwkvbatch.errors import UsageError
from rwkvbatch.model.base import State
from rwkvbatch.serve.server import LoadedServer, ServeArguments, key_from_environment, named_states
from rwkvbatch.signals import call_on_signal
from tests.serve.running import ENDLESS, MODEL, raw_post, running

PROGRAM = [sys.executable, "-m", "rwkvbatch", "serve", "--port", "0", "--json", "--quiet", "--threads", "1"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_and_its_duplicate_stop_the_server_once(number: signal.Signals) -> None:
    before, stops = signal.getsignal(number), list[str]()
    with call_on_signal(lambda: stops.append("stop")):
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
    assert stops == ["stop"]
    assert signal.getsignal(number) == before


def test_the_program_prints_its_address_and_exits_with_0_on_sigterm() -> None:
    with subprocess.Popen(PROGRAM, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["pid"] == process.pid
        assert ready["url"].startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{ready['url']}/health", timeout=10) as response:
            assert json.load(response)["status"] == "ok"
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=20)
    assert (process.returncode, rest, errors) == (0, "", "")


def test_the_program_says_that_it_waits_for_unfinished_replies() -> None:
    program = [argument for argument in PROGRAM if argument != "--quiet"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = urlsplit(json.loads(process.stdout.readline())["url"])
        with socket.create_connection((str(url.hostname), int(url.port or 0)), 10) as connection:
            messages = [{"role": "user", "content": "hi"}]
            fields = {"messages": messages, "stream": True, **ENDLESS}
            connection.sendall(raw_post("/v1/chat/completions", {"model": MODEL, **fields}))
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
            process.send_signal(signal.SIGTERM)
            assert process.stderr is not None
            lines = iter(process.stderr.readline, "")
            line = next(line for line in lines if line.startswith("stopping after"))
            process.kill()
    assert "(1), which have 10 s; the server ends after at most 12 s, and at once after a second signal" in line


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--host", "203.0.113.1"], 2, "--host 203.0.113.1 --port 0: cannot listen there"),
        (["--host", "no such host"], 2, "cannot listen there"),
        (["--named-state", "x"], 2, "--named-state must be NAME=FILE"),
        (["--named-state", "none=x"], 2, "none and default are taken"),
        (["--named-state", "x=missing.pth"], 3, "missing.pth"),
        (["--model", "missing.pth"], 3, "missing.pth"),
        (["--template", "missing.jinja"], 3, "missing.jinja"),
        (["--ban", "999999"], 2, "--ban: the model's vocabulary"),
        (["--temp", "0.1,0.2"], 2, "--temp must be a number"),
        (["--host", "203.0.113.1"], 2, "give an address of this machine"),
        (["--max-tokens", "5000"], 2, "--max-tokens 5000 is more than a reply may have (--max-reply-tokens 4096)"),
        (["--max-reply-tokens", "9", "--max-tokens", "10"], 2, "raise --max-reply-tokens, or lower --max-tokens"),
    ],
)
def test_invalid_options_end_with_their_exit_code_and_message(
    options: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["serve", "--port", "0", *options]) == code
    error = capsys.readouterr().err
    assert text in error
    assert "Traceback" not in error


def test_a_port_in_use_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert invoke(["serve", "--port", str(port)]) == 2
    assert f"--host 127.0.0.1 --port {port}: cannot listen there: Address already in use" in capsys.readouterr().err


def test_a_missing_extra_is_named_with_the_command_that_installs_it() -> None:
    code = (
        "import sys\n"
        "sys.modules['uvicorn'] = None\n"
        "from rwkvbatch.cli.app import invoke\n"
        "raise SystemExit(invoke(['serve']))\n"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert completed.returncode == 2
    assert "pip install 'rwkvbatch[serve]'" in completed.stderr


def test_the_key_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert key_from_environment() is None
    monkeypatch.setenv("RWKVBATCH_API_KEY", "s3cret")
    assert key_from_environment() == "s3cret"
    monkeypatch.setenv("RWKVBATCH_API_KEY", "two words")
    with pytest.raises(UsageError, match="RWKVBATCH_API_KEY must be ASCII characters without spaces") as caught:
        key_from_environment()
    assert "two words" not in str(caught.value)


def test_named_states_have_unique_names() -> None:
    assert named_states(["a=x.pth", "b=y=z.pth"]) == {"a": "x.pth", "b": "y=z.pth"}
    with pytest.raises(UsageError, match="gives 'a' twice"):
        named_states(["a=x", "a=y"])


def test_a_request_selects_an_initial_state_by_name(tmp_path: Path) -> None:
    llm = LLM(threads=1)
    spec = llm.spec
    torch.manual_seed(1)
    shape = (spec.num_heads, spec.head_size, spec.head_size)
    tuned = {f"blocks.{at}.att.time_state": 10 * torch.randn(shape) for at in range(spec.num_layers)}
    file = tmp_path / "poet.pth"
    torch.save(tuned, file)
    wkv = torch.stack(list(tuned.values())).unsqueeze(0)
    shift = torch.zeros(1, spec.num_layers, spec.width)
    state = State({"att_shift": shift, "ffn_shift": shift.clone(), "wkv": wkv})
    messages = [{"role": "user", "content": "hi"}]
    params = SamplingParams(temperature=0, max_tokens=24)
    with_state = llm.chat(messages, params, initial_state=state).text
    without = llm.chat(messages, params).text
    assert with_state != without
    settings = RunSettings(threads=1, temperature=0, max_tokens=24, state=str(file))
    with running(settings=settings, named_states={"poet": str(file)}) as server:
        answers = [server.chat("hi", **more) for more in ({}, {"initial_state": "poet"}, {"initial_state": "none"})]
        assert server.send("/v1/models")[1]["data"][0]["initial_states"] == ["none", "default", "poet"]
    assert [body["choices"][0]["message"]["content"] for _, body, _ in answers] == [with_state, with_state, without]


@pytest.mark.parametrize(
    ("strategy", "is_rounded"), [("cpu bf16", False), ("cpu int8", True), ("cpu w8a8", True), ("cpu int4", True)]
)
def test_the_fingerprint_of_rounded_models_changes_with_the_rounding_rules(
    strategy: str, is_rounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fingerprint() -> str:
        return LoadedServer(ServeArguments(RunSettings(threads=1, strategy=strategy))).served.fingerprint

    before = fingerprint()
    assert fingerprint() == before
    monkeypatch.setattr("rwkvbatch.model.ops.ROUNDING_RULES", 99)
    assert (fingerprint() != before) == is_rounded
