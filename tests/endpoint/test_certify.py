"""`certify` against servers of the same, a quantised and a damaged network, and servers with varying answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from rwkvbatch.bench import certify as certify_module
from rwkvbatch.bench.certify import Certificate, CertifyOptions, certify
from rwkvbatch.cli.app import invoke
from rwkvbatch.cli.exits import ExitCode
from rwkvbatch.endpoint.client import Client
from rwkvbatch.engine.engine import Engine
from rwkvbatch.engine.request import Reply
from rwkvbatch.errors import UnreachableError, UsageError
from rwkvbatch.model.load import load_model
from rwkvbatch.model.model_files import resolve_model_path
from tests.endpoint.server import FakeServer, serving

OPTIONS = CertifyOptions(max_tokens=16, concurrency=4)


def certified(engine: Engine, *, style: str | None = "lists", **changes: Any) -> Certificate:
    with serving(FakeServer(engine, style=style)) as server:
        return certify(server.url, replace(OPTIONS, **changes))


@pytest.mark.parametrize("api", ["completions", "completions-ids"])
def test_the_network_itself_is_the_same(demo_engine: Engine, api: Any) -> None:
    found = certified(demo_engine, endpoint_api=api)
    assert (found.verdict, found.agreement, found.largest_gap) == ("same", 1.0, 0.0)
    assert found.repeated == found.under_load == found.same_replies == found.num_replies == 12
    assert found.num_scored == found.num_tokens > 50


def test_a_server_that_names_tokens_by_the_text_it_sends_is_read_by_their_ids(demo_engine: Engine) -> None:
    found = certified(demo_engine, style="held")
    assert (found.verdict, found.agreement, found.largest_gap) == ("same", 1.0, 0.0)
    assert found.num_scored == found.num_tokens > 50


def test_int8_is_rounded() -> None:
    found = certified(Engine(load_model(None, "cpu int8")))
    assert found.verdict == "rounded"
    assert found.mean_gap is not None
    assert 1e-4 < found.mean_gap < 0.05


@pytest.mark.parametrize("name", ["blocks.1.att.output.weight", "blocks.2.att.key.weight"])
@pytest.mark.parametrize("style", ["lists", None])
def test_a_transposed_matrix_is_damage(tmp_path: Path, name: str, style: str | None) -> None:
    tensors = load_file(resolve_model_path(None).path)
    tensors[name] = tensors[name].T.contiguous()
    path = tmp_path / "damaged.safetensors"
    save_file(tensors, path)
    found = certified(Engine(load_model(path)), style=style)
    assert found.verdict == "damaged"
    assert (found.mean_gap is None) == (style is None)


def test_answers_that_vary_are_counted(demo_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    number = 0
    replies = FakeServer.reply

    def varying(self: FakeServer, body: dict[str, Any]) -> Reply:
        nonlocal number
        number += 1
        reply = replies(self, body)
        return replace(reply, logprobs=tuple(value - 1e-4 * number for value in reply.logprobs))

    monkeypatch.setattr(FakeServer, "reply", varying)
    found = certified(demo_engine)
    assert (found.repeated, found.under_load, found.verdict) == (0, 0, "rounded")


def test_the_command_says_it_and_damage_is_exit_code_1(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["certify", server.url, "--max-tokens", "16", "--quiet"]
    assert invoke(arguments) == 0
    assert "THE SAME network" in capsys.readouterr().out
    monkeypatch.setattr("rwkvbatch.bench.certify.SAME_GAP", -1.0)
    monkeypatch.setattr("rwkvbatch.bench.certify.ROUNDED_GAP", -1.0)
    assert invoke([*arguments, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["verdict"] == "damaged"


def test_a_server_that_reads_token_0_first_is_compared_with_the_network_after_token_0(
    demo_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = FakeServer.reply

    def beginning(self: FakeServer, body: dict[str, Any]) -> Reply:
        return replies(self, {**body, "prompt": [0, *body["prompt"]]})

    monkeypatch.setattr(FakeServer, "reply", beginning)
    found = certified(demo_engine, limit=2)
    assert (found.begins_with_0, found.verdict, found.largest_gap) == (True, "same", 0.0)


def test_replies_without_a_token_are_not_scored(demo_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    replies = FakeServer.reply

    def silent(self: FakeServer, body: dict[str, Any]) -> Reply:
        found = replies(self, body)
        is_silent = "France" in self.engine.tokenizer.decode(body["prompt"])
        return replace(found, text="", ids=(), logprobs=(), stopped_by=None) if is_silent else found

    monkeypatch.setattr(FakeServer, "reply", silent)
    found = certified(demo_engine, limit=3)
    assert (found.same_replies, found.num_replies) == (4, 5)
    assert (found.verdict, found.largest_gap) == ("same", 0.0)


def asking(path: Path, *turns: dict[str, Any]) -> Path:
    messages = [{"role": "user", **turn} for turn in turns]
    path.write_text(json.dumps({"id": "a", "messages": messages}) + "\n")
    return path


@pytest.mark.parametrize("begins", [False, True])
def test_what_the_figures_are_of_is_told(
    begins: bool, demo_engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replies = FakeServer.reply

    def beginning(self: FakeServer, body: dict[str, Any]) -> Reply:
        return replies(self, {**body, "prompt": [0, *body["prompt"]]} if begins else body)

    monkeypatch.setattr(FakeServer, "reply", beginning)
    with serving(FakeServer(demo_engine, style="lists" if begins else None)) as server:
        assert invoke(["certify", server.url, "--limit", "2", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert ("it reads token 0 before each prompt" in out) == begins
    assert ("log-probabilities: the server gives none" in out) != begins


def test_turns_of_choices_are_not_compared(demo_engine: Engine, tmp_path: Path) -> None:
    chosen = {"content": "Which?", "choices": ["one", "two"]}
    written = {"content": "Tell me a long story."}
    script = asking(tmp_path / "s.jsonl", chosen, written, written)
    found = certified(demo_engine, script=script, max_tokens=64)
    assert (found.num_replies, found.verdict) == (2, "same")
    with pytest.raises(UsageError, match="asks for no reply that could be compared"):
        certified(demo_engine, script=asking(tmp_path / "t.jsonl", chosen))


def test_a_prompt_that_is_not_answered_is_an_error(server: FakeServer) -> None:
    server.statuses, server.refusal = [400] * 99, "too odd"
    with pytest.raises(UnreachableError, match=r"did not answer a prompt: the server refuses .* too odd"):
        certify(server.url, OPTIONS)


def test_too_few_tokens_decide_nothing(demo_engine: Engine) -> None:
    with pytest.raises(UsageError, match="at least 50"):
        certified(demo_engine, max_tokens=1)


def test_the_chat_interface_is_refused(server: FakeServer) -> None:
    with pytest.raises(UsageError, match="--endpoint-api chat"):
        certify(server.url, replace(OPTIONS, endpoint_api="chat"))


def test_a_server_that_cannot_be_reached_is_named_as_the_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["certify", "http://127.0.0.1:9/v1", "--endpoint-retries", "0"]) == ExitCode.USAGE
    assert "rwkvbatch: error: URL http://127.0.0.1:9/v1: cannot be reached" in capsys.readouterr().err


def test_a_server_that_ends_after_its_list_of_models_cannot_be_reached(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = certify_module.served_spec

    def listed_then_gone(endpoint: Any, client: Client) -> Any:
        spec = listed(endpoint, client)
        client.url = "http://127.0.0.1:9/v1"
        return spec

    monkeypatch.setattr(certify_module, "served_spec", listed_then_gone)
    assert invoke(["certify", server.url, "--endpoint-retries", "0", "--quiet"]) == ExitCode.USAGE
    assert "rwkvbatch: error: URL http://127.0.0.1:9/v1: cannot be reached" in capsys.readouterr().err


def test_a_server_that_refuses_prompts_is_a_usage_error_of_the_command(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.statuses, server.refusal = [400] * 99, "too odd"
    assert invoke(["certify", server.url, "--quiet"]) == ExitCode.USAGE
    assert "too odd" in capsys.readouterr().err


def test_the_limit_of_a_line_is_that_of_the_environment(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = asking(tmp_path / "s.jsonl", {"content": "Tell me a long story."}, {"content": "And a longer one."})
    arguments = ["certify", server.url, "--script", str(script), "--quiet", "--max-tokens", "64"]
    monkeypatch.setenv("RWKVBATCH_MAX_LINE_BYTES", "40")
    assert invoke(arguments) == ExitCode.BAD_INPUT
    assert "the line is longer than 40 bytes" in capsys.readouterr().err
    monkeypatch.setenv("RWKVBATCH_MAX_LINE_BYTES", "1M")
    assert invoke(arguments) == ExitCode.DONE
