"""A served judge: parsing of its answers, and servers that misbehave."""

from __future__ import annotations

import json
import math
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import rwkvbatch
from rwkvbatch.config import RunSettings
from rwkvbatch.endpoint.client import JUDGE_OPTIONS, Budget, Client, ClientOptions
from rwkvbatch.errors import UsageError, WorkerError
from rwkvbatch.judges.answers import JudgeAnswer
from rwkvbatch.judges.questions import Question, VoteRequest, seeds_of
from rwkvbatch.judges.served import ServedJudge, read_probability, read_word
from rwkvbatch.judges.source import judge_source
from tests.endpoint.server import raw_server, send_json

WORDS = ("Yes", "No")
Answers = Callable[[dict[str, Any]], tuple[int, Any]]


def chat(text: str, tops: dict[str, float] | None = None, reason: str = "stop") -> tuple[int, Any]:
    choice: dict[str, Any] = {"index": 0, "message": {"content": text}, "finish_reason": reason}
    if tops is not None:
        alternatives = [{"token": token, "logprob": logprob} for token, logprob in tops.items()]
        first = {"token": next(iter(tops)), "logprob": next(iter(tops.values())), "top_logprobs": alternatives}
        choice["logprobs"] = {"content": [first]}
    return 200, {"choices": [choice]}


@contextmanager
def serving(answers: Answers) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The URL of a server of chat completions, and the bodies of its requests."""
    bodies: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            send_json(self, 200, {"data": [{"id": "grader"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            bodies.append({**body, "authorization": self.headers.get("Authorization")})
            send_json(self, *answers(body))

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}/v1", bodies
        finally:
            http.shutdown()


def judge_at(url: str, budget: Budget | None = None, **extra: Any) -> ServedJudge:
    options = ClientOptions(4, 10.0, 0, JUDGE_OPTIONS)
    return ServedJudge(Client(url, options, budget=budget, jitter=lambda: 0.0), "grader", extra)


def asked(judge: ServedJudge, *asks: VoteRequest) -> dict[str, JudgeAnswer]:
    return {found[0].question.text: found[1] for found in judge.answers(iter(asks)) if found is not None}


def ask(votes: int = 1, text: str = "q") -> VoteRequest:
    return VoteRequest(Question(text, WORDS), seeds_of(votes, 0, "c", 0, 0))


def one(answers: Answers, votes: int = 1) -> tuple[JudgeAnswer, list[dict[str, Any]]]:
    with serving(answers) as (url, bodies):
        return asked(judge_at(url), ask(votes))["q"], bodies


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Yes", True), ("no.", False), (' "**Yes**!"\n', True), ("<think>No, no.</think>\n\nYes", True),
        ("Yes, it does", None), ("Not", None), ("", None), ("Yes No", None), ("<think>Yes", None), ("Maybe", None),
    ],
)  # fmt: skip
def test_a_text_is_read_only_as_one_of_the_words(text: str, word: bool | None) -> None:
    assert read_word(text, WORDS) is word


@pytest.mark.parametrize(
    ("tops", "probability"),
    [
        ({"Yes": -0.5, " No": -1.5, "yes": -3.0}, (0.60653 + 0.04979) / (0.60653 + 0.04979 + 0.22313)),
        ({"Yes": -0.1}, 1.0),
        ({"Maybe": -0.1, "Yes": -3.0, "No": -4.0}, None),
        ({"Yes": 0.0, "No": 0.0}, None),
        ({"Yes": 5.0, "No": -0.1}, 0.0),
        ({}, None),
    ],
)
def test_a_probability_is_read_where_the_words_have_most_of_it(
    tops: dict[str, float], probability: float | None
) -> None:
    listed = [{"token": token, "logprob": logprob} for token, logprob in tops.items()]
    found = read_probability([{"token": "\n", "top_logprobs": []}, {"token": "Y", "top_logprobs": listed}], WORDS)
    assert found == (probability if probability is None else pytest.approx(probability, abs=1e-4))


def test_with_log_probabilities_one_request_serves_all_votes() -> None:
    found, bodies = one(lambda _: chat("Yes", {"Yes": -0.2231, "No": -1.6094}), votes=5)
    assert found.probability == pytest.approx(0.8, abs=1e-3)
    assert [body["temperature"] for body in bodies] == [0.0]
    assert bodies[0]["top_logprobs"] == 20
    assert bodies[0]["messages"] == [{"role": "user", "content": "q"}]


def test_without_them_each_vote_is_sampled_under_its_seed() -> None:
    found, bodies = one(lambda body: chat("Yes" if body.get("seed", 0) % 2 else "No"), votes=3)
    seeds = ask(3).seeds
    assert found == JudgeAnswer(votes={seed: bool(seed and seed % 2) for seed in seeds})
    assert [body.get("seed") for body in bodies] == [None, *seeds]
    assert [body["temperature"] for body in bodies[1:]] == [1.0] * 3


def test_one_vote_without_them_is_the_answer_at_temperature_0() -> None:
    found, bodies = one(lambda _: chat("No"))
    assert found == JudgeAnswer(votes={None: False})
    assert len(bodies) == 1


def test_a_server_that_refuses_log_probabilities_is_asked_without() -> None:
    def refuses(body: dict[str, Any]) -> tuple[int, Any]:
        refused = {"error": {"message": "logprobs are not supported"}}
        return (400, refused) if "logprobs" in body else chat("Yes")

    found, bodies = one(refuses)
    assert found == JudgeAnswer(votes={None: True})
    assert ["logprobs" in body for body in bodies] == [True, False]


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        (lambda _: chat("Surely\x1b[31m!"), "neither Yes nor No"),
        (lambda _: chat("Yes", {"No": -0.1, "Yes": -3.0}), "not the likelier word"),
        (lambda _: chat("It is\nbecause", reason="length"), r"cut off at its limit of tokens: 'It is\nbecause'"),
        (lambda _: chat("Yes", reason="content_filter"), "content_filter"),
        (lambda _: (200, {"choices": [{"message": {"content": ["Yes"]}}]}), "must be a string"),
        (lambda _: (200, {"choices": "Yes"}), "must be a list"),
        (lambda _: (200, {"choices": []}), "ended before"),
        (lambda _: (200, ["Yes"]), "JSON object"),
        (lambda _: (500, {"error": "down"}), "status 500"),
        (lambda _: (400, {"error": "too long"}), "too long"),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_is_a_reason_and_no_verdict(answers: Answers, problem: str) -> None:
    found, _ = one(answers, votes=3)
    assert found.probability is None
    assert not found.votes
    assert found.problem is not None
    assert problem in found.problem
    assert "\x1b" not in found.problem


def test_what_ends_all_requests_is_asked_once_and_is_the_reason_for_the_rest() -> None:
    with serving(lambda _: (401, {"error": {"message": "who are you?"}})) as (url, bodies):
        found = asked(judge_at(url), *(ask(text=str(number)) for number in range(50)))
    assert len(found) == 50
    assert all("refuses access" in (answer.problem or "") for answer in found.values())
    assert len(bodies) <= 8


def test_a_spent_budget_is_a_reason() -> None:
    with serving(lambda _: chat("Yes", {"Yes": -0.1})) as (url, bodies):
        found = asked(judge_at(url, Budget(3)), *(ask(text=str(number)) for number in range(20)))
    assert len(bodies) == 3
    problems = [answer.problem for answer in found.values() if answer.problem is not None]
    assert len(problems) == 17
    assert all("--max-requests allows 3" in problem for problem in problems)


def test_a_server_that_is_not_there_is_a_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    found = asked(judge_at(f"http://127.0.0.1:{port}/v1"), ask(), ask(text="r"))
    assert all("cannot be reached" in (answer.problem or "") for answer in found.values())


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\n\r\n\xff\xfe", b"", b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n"]
)
def test_a_server_that_sends_nonsense_is_a_reason(answer: bytes) -> None:
    with raw_server(lambda connection: connection.sendall(answer)) as url:
        found = asked(judge_at(url), ask())["q"]
    assert found.problem


def test_the_judge_s_key_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKVBATCH_ENDPOINT_KEY", "secret-of-another-host")
    monkeypatch.setenv("RWKVBATCH_JUDGE_KEY", "mine")
    with serving(lambda _: chat("Yes")) as (url, bodies):
        asked(judge_at(url), ask())
        monkeypatch.delenv("RWKVBATCH_JUDGE_KEY")
        asked(judge_at(url), ask())
    assert [body["authorization"] for body in bodies] == ["Bearer mine", None]


def test_the_identity_is_the_address_the_model_and_the_further_fields() -> None:
    with serving(lambda _: chat("Yes")) as (url, _):
        settings = RunSettings(judge_url=url, judge_body='{"max_tokens": 900}')
        source = judge_source(settings)
        assert source is not None
        source.check()
        identity = source.open().identity
    assert identity == {"kind": "served", "url": url, "model": "grader", "body": {"max_tokens": 900}}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"judge": "bundled", "judge_url": "http://127.0.0.1:1/v1"}, "--judge and --judge-url"),
        ({"judge_model": "x"}, "--judge-model belongs to --judge-url"),
        ({"judge_strategy": "cpu fp32"}, "--judge-strategy belongs to --judge"),
        ({"judge_url": "http://u:p@h/v1", "judge_model": "m"}, "--judge-url must not contain a user"),
        ({"judge_url": "ftp://h/v1", "judge_model": "m"}, "--judge-url must be an http"),
        ({"judge_url": "http://h/v1", "judge_model": "m", "judge_body": "[]"}, "--judge-body must be a JSON object"),
        ({"judge_url": "http://h/v1", "judge_model": "m", "judge_body": '{"model": "x"}'}, "--judge-body must not set"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], named: str) -> None:
    def check() -> None:
        source = judge_source(RunSettings(**settings))
        assert source is not None
        source.check()

    with pytest.raises(UsageError, match=named):
        check()


def test_a_server_without_a_named_model_is_asked_for_it_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    source = judge_source(RunSettings(judge_url=f"http://127.0.0.1:{port}/v1", endpoint_retries=0))
    assert source is not None
    with pytest.raises(WorkerError):
        source.check()


def test_a_run_asks_the_server_and_a_spent_budget_is_a_missing_score(tmp_path: Path) -> None:
    script = tmp_path / "s.jsonl"
    ask_for = [{"role": "user", "content": f"Say {n}.", "expect": {"judge": "Brief."}} for n in range(3)]
    script.write_text(json.dumps({"id": "c", "messages": ask_for}) + "\n")
    options: dict[str, Any] = {"out": tmp_path / "run", "max_tokens": 3, "temperature": 0.0, "concurrency": 1}
    with serving(lambda body: chat("Yes" if "Say 1" in body["messages"][0]["content"] else "No")) as (url, bodies):
        judge = {"judge_url": url, "judge_model": "grader"}
        first = rwkvbatch.run(script, max_requests=2, **judge, **options)
        checks = [row.checks[0] for row in first.rows()]
        assert [check.passed for check in checks] == [False, True, None]
        assert "--max-requests allows 2" in (checks[2].detail or "")
        second = rwkvbatch.run(script, **judge, **options)
        assert [row.checks[0].passed for row in second.rows()] == [False, True, False]
    assert len(bodies) == 3
    assert second.summary.unjudged == 0


def test_alternatives_that_are_none_or_come_twice_are_passed_over() -> None:
    """The first of two of one text counts; what is no alternative does not."""
    tops = [
        {"token": "Yes", "logprob": math.log(0.6)},
        {"token": "Yes", "logprob": math.log(0.3)},
        {"token": "No", "logprob": math.log(0.2)},
        {"token": 7, "logprob": -1.0},
        {"token": "no", "logprob": True},
        "x",
    ]
    assert read_probability([{"token": "Yes", "top_logprobs": tops}], WORDS) == pytest.approx(0.75)
    status, content = chat("Yes", {"Yes": math.log(0.6), "No": math.log(0.2)})
    content["choices"][0]["logprobs"]["content"].insert(0, {"token": "Yes", "logprob": -0.1})  # without alternatives
    found, _ = one(lambda _: (status, content))
    assert found.probability == pytest.approx(0.75)


def test_a_server_without_probabilities_is_asked_for_votes_alone_the_next_time() -> None:
    with serving(lambda _: chat("Yes")) as (url, bodies):
        judge = judge_at(url)
        asked(judge, ask(3, "one"))
        num_first = len(bodies)
        seeds = [seed for seed in ask(3).seeds if seed is not None]
        assert asked(judge, ask(3, "two"))["two"].votes == dict.fromkeys(seeds, True)
    assert (num_first, len(bodies) - num_first) == (len(seeds) + 1, len(seeds))


def test_a_vote_that_is_neither_word_keeps_the_votes_before_it() -> None:
    number = 0

    def answers(body: dict[str, Any]) -> tuple[int, Any]:
        nonlocal number
        number += 1
        return chat("Perhaps" if number == 3 else "Yes")

    found, _ = one(answers, votes=3)
    assert "is neither Yes nor No: 'Perhaps'" in str(found.problem)
    assert list(found.votes.values()) == [True]


def test_a_fault_of_the_program_is_raised_where_the_answers_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> JudgeAnswer:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(ServedJudge, "_answer", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        asked(judge_at("http://127.0.0.1:9/v1"), ask())


def test_an_answer_that_nobody_waits_for_is_no_opinion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ServedJudge, "_call", lambda *_, **__: None)
    found = asked(judge_at("http://127.0.0.1:9/v1"), ask())["q"]
    assert found.problem == "the judge was stopped before it answered"
