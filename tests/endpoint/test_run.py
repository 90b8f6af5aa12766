"""`run` with a served model: the same rows as with the model in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import rwkvbatch
from rwkvbatch.cli.app import invoke
from rwkvbatch.engine.engine import Engine
from rwkvbatch.errors import RequestsSpentError, UsageError, WorkerError
from rwkvbatch.results.row import Row
from tests.endpoint.server import FakeServer, raw_server, serving

CHATS: list[dict[str, Any]] = [
    {
        "id": "names",
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "My name is Ada."},
            {"role": "assistant", "content": "Hi Ada!"},
            {"role": "user", "content": "What is my name?", "expect": [{"contains": "Ada"}]},
        ],
    },
    {
        "id": "two",
        "messages": [{"role": "user", "content": "Say a word."}, {"role": "user", "content": "And one more."}],
    },
]
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12, "turn_end": "blank-line"}


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in CHATS))
    return path


def plain(row: Row) -> dict[str, Any]:
    values = row.as_dict()
    del values["timing"]
    values["logprob"] = {name: round(value, 5) for name, value in values["logprob"].items()}
    if values.get("reference"):
        values["reference"]["nll"] = round(values["reference"]["nll"], 5)
    return values


@pytest.mark.parametrize("api", ["completions", "completions-ids"])
@pytest.mark.parametrize("style", ["lists", "content"])
def test_greedy_rows_are_those_of_the_model_in_this_process(
    script: Path, demo_engine: Engine, api: str, style: str
) -> None:
    here = rwkvbatch.run(script, **GREEDY)
    with serving(FakeServer(demo_engine, style=style)) as server:
        there = rwkvbatch.run(script, endpoint=server.url, endpoint_api=api, **GREEDY)
    assert list(map(plain, there.rows())) == list(map(plain, here.rows()))
    prompts = [body["prompt"] for body in server.bodies]
    assert all(isinstance(prompt, str if api == "completions" else list) for prompt in prompts)


@pytest.mark.parametrize("style", ["lists", "named"])
@pytest.mark.parametrize("api", ["completions", "completions-ids"])
def test_characters_of_several_tokens_are_scored_by_the_server(
    tmp_path: Path, demo_engine: Engine, style: str, api: str
) -> None:
    talk = {"messages": [{"role": "user", "content": "你好 👍"}, {"role": "assistant", "content": "Ünï ✓ 名。"}]}
    path = tmp_path / "script.jsonl"
    lines = [{"prompt": "Le café 空", "continuation": " très 👍🏽 chaud 空"}, {"text": "é 日本 x"}, talk]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {**GREEDY, "bos": "off"}
    here = [row.reference for row in rwkvbatch.run(path, **settings).rows()]
    with serving(FakeServer(demo_engine, style=style)) as server:
        there = list(rwkvbatch.run(path, endpoint=server.url, endpoint_api=api, **settings).rows())
    for own, served in zip(here, there, strict=True):
        # Where half a character is the first token, a text says nothing of where the next one begins.
        if api == "completions" and style == "lists" and served.prompt == "":
            continue
        assert own is not None
        assert served.error is None
        assert served.reference is not None
        assert served.reference.nll == pytest.approx(own.nll, abs=1e-4)
        assert (served.reference.tokens, served.reference.matched) == (own.tokens, own.matched)


@pytest.mark.parametrize("api", ["completions", "completions-ids"])
def test_prompts_of_plain_text_are_sent_as_they_are(tmp_path: Path, demo_engine: Engine, api: str) -> None:
    path = tmp_path / "script.jsonl"
    prompts = ["User: hi\n\nAssistant:", "Q: 1 + 1?\n\nA:"]
    path.write_text("".join(json.dumps({"prompt": text, "params": {"stop": ["."]}}) + "\n" for text in prompts))
    settings = {**GREEDY, "bos": "off"}
    here = rwkvbatch.run(path, **settings)
    with serving(FakeServer(demo_engine)) as server:
        there = rwkvbatch.run(path, endpoint=server.url, endpoint_api=api, **settings)
    assert list(map(plain, there.rows())) == list(map(plain, here.rows()))
    encode = demo_engine.tokenizer.encode
    sent = prompts if api == "completions" else [encode(text) for text in prompts]
    assert sorted(body["prompt"] for body in server.bodies) == sorted(sent)
    assert all(body["stop"] == ["."] for body in server.bodies)


CHOICES: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": "Sky?", "choices": ["blue", "a green one"], "expect": {"choice": "blue"}}
        ]
    },
    {"prompt": "", "choices": ["The sky is blue.", "The sky are blue."]},
    {"prompt": "Ada thanked ", "choices": ["Ada", "Bob"], "continuation": ", who helped."},
]


@pytest.mark.parametrize("line", CHOICES)
def test_choices_are_scored_by_the_server(line: dict[str, Any], tmp_path: Path, server: FakeServer) -> None:
    path = tmp_path / "choices.jsonl"
    path.write_text(json.dumps({"id": "sky", **line}) + "\n")
    (here,) = rwkvbatch.run(path, **GREEDY).rows()
    (there,) = rwkvbatch.run(path, endpoint=server.url, endpoint_api="completions-ids", **GREEDY).rows()
    assert here.choices is not None
    assert there.choices is not None
    assert there.error is None
    assert [(s.name, round(s.logprob, 4)) for s in there.choices.scores] == [
        (s.name, round(s.logprob, 4)) for s in here.choices.scores
    ]


def test_without_echo_references_are_left_out_and_choices_are_errors(tmp_path: Path, demo_engine: Engine) -> None:
    path = tmp_path / "mixed.jsonl"
    turn = {"role": "user", "content": "Sky?", "choices": ["blue", "green"]}
    lines = [CHATS[0], {"id": "sky", "messages": [turn]}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with serving(FakeServer(demo_engine, echo=False)) as server:
        rows = list(rwkvbatch.run(path, endpoint=server.url, **GREEDY).rows())
    assert [row.reference for row in rows] == [None, None, None]
    assert [row.error is None for row in rows] == [True, True, False]
    assert "echo" in (rows[2].error or "")


def test_chat_interface_sends_messages_with_the_replies_so_far(script: Path, server: FakeServer) -> None:
    settings = {**GREEDY, "turn_end": "auto"}
    rows = list(rwkvbatch.run(script, endpoint=server.url, endpoint_api="chat", **settings).rows())
    assert [row.error for row in rows] == [None] * 4
    second = next(body for body in server.bodies if body["messages"][-1]["content"] == "What is my name?")
    assert [message["role"] for message in second["messages"]] == ["system", "user", "assistant", "user"]
    assert second["messages"][2]["content"] == rows[0].reply
    assert "stop" not in second
    server.bodies.clear()
    gold = list(rwkvbatch.run(script, endpoint=server.url, endpoint_api="chat", history="gold", **settings).rows())
    assert gold[0].reply == rows[0].reply
    histories = {body["messages"][-1]["content"]: body["messages"][:-1] for body in server.bodies}
    assert histories["What is my name?"][2]["content"] == "Hi Ada!"
    assert histories["And one more."][1]["content"] == rows[2].reply


def test_interrupted_run_continues_with_the_same_history(script: Path, server: FakeServer, tmp_path: Path) -> None:
    whole = rwkvbatch.run(script, endpoint=server.url, **GREEDY)
    out = tmp_path / "run"
    with pytest.raises(RequestsSpentError, match="--max-requests allows 3"):
        rwkvbatch.run(script, endpoint=server.url, out=out, max_requests=3, concurrency=1, **GREEDY)
    first = len((out / "results.jsonl").read_text().splitlines())
    assert 0 < first < 4
    done = rwkvbatch.run(script, endpoint=server.url, out=out, max_requests=20, **GREEDY)
    assert list(map(plain, done.rows())) == list(map(plain, whole.rows()))


def test_seed_differs_by_row_and_not_by_cell(script: Path, server: FakeServer) -> None:
    rwkvbatch.run(script, endpoint=server.url, temperature=[0.7, 1.0], repeats=2, max_tokens=3)
    seeds: dict[float, set[int]] = {}
    for body in server.bodies:
        if not body.get("echo"):
            seeds.setdefault(body["temperature"], set()).add(body["seed"])
    assert seeds[0.7] == seeds[1.0]
    assert len(seeds[0.7]) == 8


def test_concurrency_is_the_most_requests_at_a_time(tmp_path: Path, server: FakeServer) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text(
        "".join(json.dumps({"id": f"c{n}", "messages": [CHATS[0]["messages"][1]]}) + "\n" for n in range(9))
    )
    server.delay_s = 0.02
    rwkvbatch.run(path, endpoint=server.url, concurrency=3, temperature=0.0, max_tokens=1)
    assert server.most_at_once == 3


def test_busy_server_is_asked_again(script: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwkvbatch.endpoint.client.FIRST_BACKOFF_S", 0.001)
    server.statuses = [429, 503, 500, 408]
    rows = list(rwkvbatch.run(script, endpoint=server.url, concurrency=1, **GREEDY).rows())
    assert [row.error for row in rows] == [None] * 4


def test_refused_request_is_an_error_row_without_the_key(
    script: Path, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RWKVBATCH_ENDPOINT_KEY", "sk-secret-1")
    server.statuses, server.refusal = [400], "bad \x1b[31mkey sk-secret-1"
    out = tmp_path / "run"
    rows = list(rwkvbatch.run(script, endpoint=server.url, out=out, concurrency=1, **GREEDY).rows())
    assert rows[0].error is not None
    assert "bad \\x1b[31mkey [key]" in rows[0].error
    assert server.headers[-1]["Authorization"] == "Bearer sk-secret-1"
    for path in out.iterdir():
        assert b"sk-secret" not in path.read_bytes()


def test_the_command_takes_the_key_from_the_environment_and_shows_it_nowhere(
    script: Path,
    server: FakeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RWKVBATCH_ENDPOINT_KEY", "sk-secret-2")
    server.statuses, server.refusal = [400], "no: sk-secret-2"
    options = ["--endpoint", server.url, "--temp", "0", "--max-tokens", "4", "--concurrency", "1"]
    out, log = tmp_path / "run", tmp_path / "log"
    assert invoke(["run", str(script), *options, "--out", str(out), "--log-file", str(log), "--json"]) == 1
    captured = capsys.readouterr()
    assert "no: [key]" in log.read_text()
    for text in (captured.out, captured.err, log.read_text(), *(path.read_text() for path in out.iterdir())):
        assert "secret" not in text
    assert invoke(["run", str(script), *options, "--out", str(out), "--retry-errors", "--quiet"]) in (0, 1)
    assert invoke(["show", str(out), "--failed"]) == 0


def test_log_probabilities_that_are_refused_are_not_asked_for_again(script: Path, server: FakeServer) -> None:
    server.statuses, server.refusal = [400], "logprobs are not supported"
    rows = list(rwkvbatch.run(script, endpoint=server.url, concurrency=1, **GREEDY).rows())
    assert [row.error for row in rows] == [None] * 4
    assert "logprobs" in server.bodies[0]
    assert not any("logprobs" in body for body in server.bodies[1:])


@pytest.mark.parametrize("status", [401, 403, 404])
def test_refused_key_or_unknown_model_ends_the_run(script: Path, server: FakeServer, status: int) -> None:
    server.statuses = [status] * 9
    with pytest.raises(UsageError, match=f"status {status}"):
        rwkvbatch.run(script, endpoint=server.url, **GREEDY)


def test_server_that_is_gone_ends_the_run(script: Path) -> None:
    with pytest.raises(WorkerError, match="cannot be reached"):
        rwkvbatch.run(script, endpoint="http://127.0.0.1:9/v1", endpoint_retries=0, **GREEDY)


@pytest.mark.parametrize("status", [500, 418])
def test_server_that_is_broken_from_the_start_is_a_usage_error(
    status: int, script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode()
    with raw_server(lambda connection: connection.sendall(head)) as url:
        assert invoke(["run", str(script), "--endpoint", url, "--endpoint-retries", "0"]) == 2
    assert f"--endpoint {url}" in capsys.readouterr().err


def test_server_that_is_not_there_from_the_start_is_a_usage_error(
    script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["run", str(script), "--endpoint", "http://127.0.0.1:9/v1", "--endpoint-retries", "0"]) == 2
    assert "--endpoint http://127.0.0.1:9/v1: cannot be reached" in capsys.readouterr().err


def test_grid_of_a_served_model_and_one_in_this_process(script: Path, server: FakeServer, tmp_path: Path) -> None:
    grid = tmp_path / "grid.toml"
    grid.write_text(f'[cells.here]\nmax_tokens = 12\n[cells.there]\nmax_tokens = 12\nendpoint = "{server.url}"\n')
    rows = list(rwkvbatch.run(script, grid=grid, temperature=0.0, turn_end="blank-line", only=["two"]).rows())
    replies: dict[str, list[str]] = {}
    for row in rows:
        replies.setdefault(row.cell, []).append(row.reply)
    assert replies["here"] == replies["there"]
    assert len(replies["here"]) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"endpoint_model": "x"}, "--endpoint-model belongs to --endpoint"),
        ({"endpoint_api": "chat"}, "--endpoint-api belongs to --endpoint"),
        ({"max_requests": 3}, "--max-requests belongs to --endpoint"),
        ({"concurrency": 3}, "--concurrency belongs to --endpoint or --judge-url"),
        ({"endpoint_timeout": 3.0}, "--endpoint-timeout belongs to --endpoint or --judge-url"),
        ({"endpoint_retries": 3}, "--endpoint-retries belongs to --endpoint or --judge-url"),
        ({"endpoint": "127.0.0.1:8080"}, "must be an http or https URL"),
        ({"endpoint": "http://me:secret@127.0.0.1/v1"}, "must not contain a user name or a key"),
        ({"endpoint": "http://127.0.0.1/v1?key=secret"}, "must have no query"),
        ({"endpoint": "http://127.0.0.1/v1", "state": "s.pth"}, "--state is of a model in this process"),
        ({"endpoint": "http://127.0.0.1/v1", "model": "m.pth"}, "--model and --endpoint"),
        ({"endpoint": "http://127.0.0.1/v1", "workers": 2}, "--workers"),
        ({"endpoint": "http://127.0.0.1/v1", "batch_size": 2}, "--batch-size"),
        ({"endpoint": "http://127.0.0.1/v1", "endpoint_body": "[1]"}, "must be a JSON object"),
        ({"endpoint": "http://127.0.0.1/v1", "endpoint_body": '{"stream": 1}'}, "must not set stream"),
        ({"endpoint": "http://127.0.0.1/v1", "endpoint_body": '{"x": 1, "x": 2}'}, "the key 'x' is repeated"),
        ({"endpoint": "http://127.0.0.1/v1", "endpoint_body": '{"x": NaN}'}, "NaN is not a JSON number"),
        ({"endpoint": "http://127.0.0.1/v1", "endpoint_body": '{"x": 1e999}'}, "1e999 is out of range"),
        ({"endpoint": "http://127.0.0.1/v1", "endpoint_api": "chat", "think": "on"}, "--think changes the prompt"),
        ({"endpoint": "http://127.0.0.1/v1", "endpoint_api": "chat", "reply_prefix": "A"}, "--reply-prefix"),
    ],
)
def test_what_a_server_cannot_do_is_refused(script: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        rwkvbatch.run(script, **settings)
    assert "secret" not in str(caught.value)


def test_settings_in_the_environment_that_need_another_one_are_not_refused(script: Path) -> None:
    names = {"ENDPOINT_MODEL": "a", "ENDPOINT_API": "chat", "ENDPOINT_BODY": "{}", "ENDPOINT_TIMEOUT": "3"}
    names |= {"ENDPOINT_RETRIES": "1", "CONCURRENCY": "3", "MAX_REQUESTS": "3"}
    names |= {"JUDGE_MODEL": "a", "JUDGE_BODY": "{}", "JUDGE_STRATEGY": "cpu fp32", "RACE_ROWS": "9"}
    environment = {f"RWKVBATCH_{name}": value for name, value in names.items()}
    expected, found = (
        [row.reply for row in rwkvbatch.run(script, environment=variables, **GREEDY).rows()]
        for variables in ({}, environment)
    )
    assert found == expected
    with pytest.raises(UsageError, match="--concurrency belongs to --endpoint or --judge-url, which are not given"):
        rwkvbatch.run(script, environment=environment, concurrency=2, **GREEDY)


def test_several_models_need_a_name(script: Path, server: FakeServer) -> None:
    server.models = ["a", "b"]
    with pytest.raises(UsageError, match="lists 2 models: a, b"):
        rwkvbatch.run(script, endpoint=server.url)
    (row, *_) = rwkvbatch.run(script, endpoint=server.url, endpoint_model="b", **GREEDY).rows()
    assert row.error is None
    assert server.bodies[-1]["model"] == "b"


def test_the_end_of_a_turn_that_a_server_decides_is_unknown_and_no_difference(
    script: Path, demo_engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = {name: str(tmp_path / name) for name in ("here", "there", "given")}
    run = ["run", str(script), "--preset", "greedy", "--max-tokens", "12", "--quiet", "--out"]
    with serving(FakeServer(demo_engine)) as server:
        for name, more in (
            ("here", []),
            ("there", ["--endpoint", server.url]),
            ("given", ["--endpoint", server.url, "--turn-end", "end-of-text"]),
        ):
            assert invoke([*run, out[name], *more]) in (0, 1)
    capsys.readouterr()
    for name, is_named in (("there", False), ("given", True)):
        assert invoke(["compare", out["here"], out[name]]) == 0
        said = " ".join("".join(capsys.readouterr()).split())
        assert ("different ends of a turn" in said) == is_named
        assert ("turn_end blank-line/end-of-text" in said) == is_named
        assert "endpoint_body" not in said


def test_manifest_names_the_endpoint(script: Path, server: FakeServer, tmp_path: Path) -> None:
    out = tmp_path / "run"
    rwkvbatch.run(script, endpoint=server.url, out=out, endpoint_body='{"x": 1}', **GREEDY)
    cell = json.loads((out / "manifest.json").read_text())["identity"]["cells"]["base"]
    assert (cell["endpoint"], cell["endpoint_model"], cell["endpoint_api"]) == (server.url, "demo", "completions")
    assert server.bodies[-1]["x"] == 1


def test_a_run_without_an_endpoint_depends_on_none_of_its_settings(script: Path, tmp_path: Path) -> None:
    rwkvbatch.run(script, out=tmp_path / "run", environment={"RWKVBATCH_ENDPOINT_BODY": '{"x": 1}'}, **GREEDY)
    cell = json.loads((tmp_path / "run" / "manifest.json").read_text())["identity"]["cells"]["base"]
    of_endpoint = {name: value for name, value in cell.items() if name.startswith("endpoint")}
    assert of_endpoint == dict.fromkeys(["endpoint", "endpoint_model", "endpoint_api", "endpoint_body"])


BENCHMARK: list[dict[str, Any]] = [
    {"id": "choice", "prompt": "Ada thanked ", "choices": ["Ada", "Bob"], "expect": {"choice": "Bob"}},
    {"id": "text", "text": "The sky is blue."},
    {"id": "talk", "messages": [{"role": "user", "content": "hi"}]},
]


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_plain_texts_that_begin_with_token_0_are_refused_before_the_first_request(
    tmp_path: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "script.jsonl", BENCHMARK)
    for out in (None, tmp_path / "run"):
        with pytest.raises(UsageError, match=r"2 of 3 conversations \(choice, text\) begin with token 0") as caught:
            rwkvbatch.run(path, out=out, endpoint=server.url, **GREEDY)
        assert "--endpoint-api completions-ids" in (caught.value.hint or "")
        assert "--bos off" in (caught.value.hint or "")
    assert server.bodies == []
    assert invoke(["run", str(path), "--endpoint", server.url, "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert "2 of 3 conversations (choice, text) begin with token 0" in " ".join((printed.out + printed.err).split())
    assert server.bodies == []


@pytest.mark.parametrize("params", [{"bos": "on"}, {}])
def test_dialogues_that_begin_with_token_0_are_refused_too(
    tmp_path: Path, server: FakeServer, params: dict[str, str]
) -> None:
    talk = {"id": "talk", "messages": [{"role": "user", "content": "hi"}], "params": params}
    path = write(tmp_path / "script.jsonl", [talk, BENCHMARK[2] | {"id": "other"}])
    if params:
        with pytest.raises(UsageError, match=r"1 of 2 conversations \(talk\) begin with token 0"):
            rwkvbatch.run(path, endpoint=server.url, **GREEDY)
    else:
        with pytest.raises(UsageError, match=r"2 of 2 conversations"):
            rwkvbatch.run(path, endpoint=server.url, bos="on", **GREEDY)
        assert rwkvbatch.run(path, endpoint=server.url, **GREEDY).summary.errors == 0


@pytest.mark.parametrize(
    "settings", [{"bos": "off", "only": ["text", "talk"]}, {"endpoint_api": "completions-ids"}, {"only": ["talk"]}]
)
def test_the_ways_out_of_the_refusal_work(tmp_path: Path, server: FakeServer, settings: dict[str, Any]) -> None:
    path = write(tmp_path / "script.jsonl", BENCHMARK)
    assert rwkvbatch.run(path, endpoint=server.url, **GREEDY, **settings).summary.errors == 0


@pytest.mark.parametrize("line", [*CHOICES, BENCHMARK[1]])
def test_texts_to_score_are_refused_with_the_chat_interface(
    tmp_path: Path, server: FakeServer, line: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "script.jsonl", [{**line, "id": "scored"}, BENCHMARK[2]])
    command = ["run", str(path), "--endpoint", server.url, "--endpoint-api", "chat", "--out", str(tmp_path / "run")]
    for further in ([], ["--dry-run"]):
        assert invoke([*command, *further]) == 2
        assert "1 of 2 conversations have some (scored)" in " ".join(capsys.readouterr().err.split())
    assert server.bodies == []
    assert not (tmp_path / "run").exists()
    assert invoke([*command, "--only", "talk"]) == 0


def test_rows_that_could_not_be_scored_are_no_share_of_passed_checks(
    tmp_path: Path, demo_engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "script.jsonl", BENCHMARK[:1])
    with serving(FakeServer(demo_engine, echo=False)) as server:
        options = ["--endpoint", server.url, "--endpoint-api", "completions-ids", "--out", str(tmp_path / "run")]
        assert invoke(["run", str(path), *options]) == 1
    shown = capsys.readouterr().err
    assert "0/1 error" in shown
    assert "0%" not in shown
