"""Each setting of a reply that `run` sends to this server: honoured as by a model in this process, or refused."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import rwkvbatch
from rwkvbatch.cli.app import invoke
from rwkvbatch.config import PRESETS, CellSettings
from rwkvbatch.endpoint.engine import EndpointEngine
from rwkvbatch.endpoint.protocol import seed_of
from rwkvbatch.engine.engine import Engine
from rwkvbatch.engine.request import NoiseKey, Request
from rwkvbatch.errors import InputError, UsageError
from rwkvbatch.serve.fields import MAX_EXEMPT, MAX_STOP_CHARACTERS, MAX_STOPS
from tests.serve.running import SETTINGS, Server, running

CONVERSATIONS = [
    {"id": "name", "messages": [{"role": "user", "content": text} for text in ("My name is Ada.", "What is my name?")]},
    {
        "id": "gold",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Tell me a story about 12 cats."},
            {"role": "assistant", "content": "No cats today."},
            {"role": "user", "content": "Why?"},
        ],
    },
]
OF_THE_ENGINE = {"model", "adapter", "strategy", "backend", "state"}
OF_THE_SERVER = {"endpoint", "endpoint_model", "endpoint_api", "endpoint_body"}
SAMPLED: dict[str, Any] = {"temperature": 1.0, "top_p": 0.7, "seed": 3}
BY_SETTING: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.6},
    "top_p": {"top_p": 0.4},
    "top_k": {"top_k": 3},
    "min_p": {"min_p": 0.2},
    "presence_penalty": {"presence_penalty": 1.5},
    "frequency_penalty": {"frequency_penalty": 0.7},
    "penalty_decay": {"frequency_penalty": 3.0, "penalty_decay": 0.5},
    "order": {"order": "temperature-top-k", "temperature": 1.7, "top_k": 9, "top_p": 0.5},
    "no_penalty": {"frequency_penalty": 3.0, "no_penalty": ["aeiou "]},
    "banned_token_ids": {"banned_token_ids": [0, 102, 117], "top_p": 0.3},
    "max_tokens": {"max_tokens": 7},
    "max_seconds": {"max_seconds": 600.0},
    "stop": {"stop": ["a", "."]},
    "think": {"think": "fake"},
    "turn_end": {"turn_end": "end-of-text"},
    "reply_prefix": {"reply_prefix": "Well,"},
    "bos": {"bos": "on"},
    "history": {"history": "gold"},
    "template": {"template": "bot"},
    "system": {"system": "You are a pirate."},
    "prelude": {"prelude": "api-demo-chat"},
}
CASES: dict[str, dict[str, Any]] = {
    **{f"preset {name}": {"preset": name} for name in PRESETS},
    **{name: {**SAMPLED, **values} for name, values in BY_SETTING.items()},
}
CHANGED_DEFAULTS: dict[str, Any] = {
    "temperature": 0.3, "top_k": 2, "min_p": 0.3, "presence_penalty": 2.0, "frequency_penalty": 2.0, "bos": "on",
    "penalty_decay": 0.1, "order": "top-k-first", "no_penalty": ["e"], "banned_token_ids": [101], "stop": ["h"],
    "turn_end": "end-of-text", "think": "on",
}  # fmt: skip
"""Settings of a server's command line, none of which may reach a run that gives its own."""


@pytest.fixture(scope="module")
def changed() -> Iterator[Server]:
    with running(settings=SETTINGS.replace(**CHANGED_DEFAULTS)) as started:
        yield started


@contextmanager
def seeds_of_the_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give the replies of a model in this process the random numbers that the server draws for them."""
    submit = Engine.submit

    def with_seed(engine: Engine, request: Request) -> int:
        content = hashlib.blake2b(" ".join(map(str, request.tokens)).encode(), digest_size=16).hexdigest()
        return submit(engine, replace(request, noise=NoiseKey(seed_of(request.noise), content)))

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "submit", with_seed)
        yield


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in CONVERSATIONS))
    return path


def replies(script: Path, **settings: Any) -> list[tuple[Any, ...]]:
    result = rwkvbatch.run(script, **{"max_tokens": 24, **settings})
    rows = sorted(result.rows(), key=lambda row: (row.conversation, row.turn))
    assert [row.error for row in rows] == [None] * 4
    return [(row.reply, row.reply_ids, row.finish_reason) for row in rows]


def test_the_table_has_every_setting_of_a_reply() -> None:
    assert set(BY_SETTING) == CellSettings.model_fields.keys() - OF_THE_ENGINE - OF_THE_SERVER


@pytest.mark.parametrize("name", CASES)
def test_a_run_has_the_replies_of_the_model_in_this_process(
    changed: Server, script: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    served = replies(script, endpoint=f"{changed.url}/v1", **CASES[name])
    with seeds_of_the_server(monkeypatch):
        here = replies(script, **CASES[name])
    assert served == here


@pytest.mark.parametrize("options", [(), ("--think", "fake"), ("--turn-end", "end-of-text")])
def test_a_chat_has_the_replies_of_the_model_in_this_process(
    changed: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    said: list[list[str]] = []
    stops: list[list[Sequence[str]]] = []
    for kind, where in ((Engine, ()), (EndpointEngine, ("--endpoint", f"{changed.url}/v1"))):
        submit, sent = kind.submit, list[Sequence[str]]()

        def watched(engine: Any, request: Request, submit: Any = submit, sent: Any = sent) -> int:
            sent.append(request.stop)
            return submit(engine, request)

        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"My name is Ada.\nWhat is my name?\n"), "utf-8"))
        chat = ["chat", "--quiet", "--no-transcript", "--json", "--temp", "0", "--max-tokens", "60"]
        with monkeypatch.context() as patched:
            patched.setattr(kind, "submit", watched)
            assert invoke([*chat, *options, *where]) == 0
        said.append([json.loads(line)["reply"] for line in capsys.readouterr().out.splitlines()])
        stops.append(sent)
    assert len(said[0]) == len(stops[0]) == 2
    assert (said[0], stops[0]) == (said[1], stops[1])


@pytest.mark.parametrize("bos", ["off", "on"])
def test_scores_are_those_of_the_model_in_this_process(changed: Server, tmp_path: Path, bos: str) -> None:
    path = tmp_path / "script.jsonl"
    choice = {"role": "user", "content": "What is the sky?", "choices": ["blue", "a green one"]}
    plain = {"prompt": "Ada thanked ", "choices": ["Ada", "Bob"], "continuation": ", who helped."}
    path.write_text("".join(json.dumps(each) + "\n" for each in ({"messages": [choice]}, plain, CONVERSATIONS[1])))

    def scores(**settings: Any) -> list[float]:
        rows = list(rwkvbatch.run(path, bos=bos, max_tokens=4, **settings).rows())
        assert [row.error for row in rows] == [None] * 4
        choices = [score.logprob for row in rows if row.choices for score in row.choices.scores]
        return choices + [row.reference.nll for row in rows if row.reference]

    here = scores()
    assert len(here) > 4
    assert scores(endpoint=f"{changed.url}/v1") == pytest.approx(here, abs=1e-4)


def test_the_table_changes_replies(script: Path) -> None:
    hot = {"temperature": 2.0, "top_p": 1.0, "frequency_penalty": 3.0}
    plain = replies(script, **hot)
    same = {name for name in BY_SETTING if replies(script, **{**hot, **BY_SETTING[name]}) == plain}
    assert same == {"max_seconds"}


CHAT = ("temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty", "no_penalty", "banned_token_ids")


@pytest.mark.parametrize("name", [*CHAT, *(f"preset {name}" for name in PRESETS if "api-demo" not in name)])
def test_the_chat_interface_has_the_same_sampling(
    server: Server, script: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    served = replies(script, endpoint=f"{server.url}/v1", endpoint_api="chat", **CASES[name])
    with seeds_of_the_server(monkeypatch):
        here = replies(script, **CASES[name])
    assert [reply for reply, *_ in served] == [reply for reply, *_ in here]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 4097}, "--max-tokens: the server allows at most 4,096; got 4,097"),
        ({"stop": ["x"] * MAX_STOPS}, "--stop: the server allows at most 32 texts, with those of the template; got 33"),
        ({"stop": ["x" * (MAX_STOP_CHARACTERS + 1)]}, "--stop: the server allows at most 256 characters in a text"),
        ({"no_penalty": ["x"] * (MAX_EXEMPT + 1)}, "--no-penalty: the server allows at most 8 texts; got 9"),
        ({"banned_token_ids": [10**6]}, "--ban: the model's vocabulary has"),
    ],
)
def test_what_the_server_does_not_take_is_refused_by_name_before_the_first_request(
    server: Server, script: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    submitted = server.batcher.stats.num_generated
    for out in (None, tmp_path / "run"):
        with pytest.raises(UsageError) as caught:
            rwkvbatch.run(script, out=out, endpoint=f"{server.url}/v1", **settings)
        assert message in caught.value.message
    assert server.batcher.stats.num_generated == submitted


@pytest.mark.parametrize("template", [None, "markdown"])
def test_the_largest_allowed_values_are_taken(server: Server, script: Path, template: str | None) -> None:
    # With the bundled model, a blank line replaces the stop texts of every template.
    settings = {
        "template": template,
        "stop": ["x" * MAX_STOP_CHARACTERS] * (MAX_STOPS - 1),
        "no_penalty": ["x"] * MAX_EXEMPT,
    }
    assert len(replies(script, endpoint=f"{server.url}/v1", temperature=0.0, frequency_penalty=0.1, **settings)) == 4


def test_params_that_the_server_does_not_take_are_refused_with_their_line(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "script.jsonl"
    message = {"role": "user", "content": "x", "params": {"max_tokens": 5000}}
    path.write_text(
        "".join(json.dumps({"messages": messages}) + "\n" for messages in ([{**message, "params": {}}], [message]))
    )
    with pytest.raises(InputError, match=r"jsonl:2: params of turn 0: max_tokens: the server allows at most 4,096"):
        rwkvbatch.run(path, endpoint=f"{server.url}/v1")


@pytest.fixture(scope="module")
def short() -> Iterator[Server]:
    with running(max_reply_tokens=200) as started:
        yield started


USER = {"role": "user", "content": "Why?"}
CHOICE = {**USER, "choices": ["a", "b"]}


@pytest.mark.parametrize(
    "line",
    [
        {"messages": [CHOICE]},
        {"messages": [CHOICE], "params": {"max_tokens": 300}},
        {"messages": [USER], "params": {"max_tokens": 50}},
        {"messages": [CHOICE, {**USER, "params": {"max_tokens": 50}}]},
        {"prompt": "One, two, ", "continuation": "three"},
    ],
)
def test_only_settings_that_replies_use_are_checked(short: Server, tmp_path: Path, line: dict[str, Any]) -> None:
    path = tmp_path / "script.jsonl"
    path.write_text(json.dumps(line) + "\n")
    rows = list(rwkvbatch.run(path, endpoint=f"{short.url}/v1").rows())
    assert rows
    assert [row.error for row in rows] == [None] * len(rows)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"messages": [USER]}, "--max-tokens: the server allows at most 200; got 256"),
        ({"messages": [{**USER, "params": {"max_tokens": 50}}, USER]}, "--max-tokens: the server allows at most 200"),
        ({"messages": [{**CHOICE, "generate": True}]}, "--max-tokens: the server allows at most 200"),
        ({"messages": [USER], "params": {"max_tokens": 201}}, "params of turn 0: max_tokens: the server allows"),
    ],
)
def test_settings_of_every_reply_are_checked(short: Server, tmp_path: Path, line: dict[str, Any], message: str) -> None:
    path = tmp_path / "script.jsonl"
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises((UsageError, InputError)) as caught:
        rwkvbatch.run(path, endpoint=f"{short.url}/v1")
    assert message in caught.value.message
