"""`EndpointEngine` outside of runs: cancellation, streaming, warnings, unusable answers."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rwkvbatch.config import Sampling
from rwkvbatch.endpoint.client import Client, ClientOptions, Json
from rwkvbatch.endpoint.engine import EndpointEngine
from rwkvbatch.endpoint.protocol import ServedToken, reply_body, sampling_fields
from rwkvbatch.endpoint.served import Endpoint, ServedSpec, served_spec
from rwkvbatch.endpoint.tokens import TokenReader
from rwkvbatch.engine.request import Reply, Request, Score
from rwkvbatch.errors import EndpointError, MissingExtraError, UsageError, WorkerError
from rwkvbatch.prompt.tokenizer import world_tokenizer
from tests.endpoint.server import raw_server
from tests.endpoint.test_hostile import JSON, STREAM, answering, ask, client, event

TOKENIZER = world_tokenizer(257)


def choice(text: str, finish: str | None = "length", **values: Any) -> Json:
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish}], **values}


class Scripted(Client):
    """Answers every request with the same events, or with an error, once `go` is set."""

    def __init__(self, *answer: Json | Exception, busy: bool = False) -> None:
        self.options = ClientOptions()
        self.answer = answer
        self.bodies: list[Json] = []
        self.entered, self.go = threading.Event(), threading.Event()
        self._key = ""
        if not busy:
            self.go.set()

    def call(
        self, method: str, path: str, body: Json | None, read: Callable[[Iterator[Json]], Any], **options: Any
    ) -> Any:
        self.bodies.append(body or {})
        self.entered.set()
        assert self.go.wait(10)
        if options["cancelled"].is_set():
            return None
        return read(self._events())

    def _events(self) -> Iterator[Json]:
        for each in self.answer:
            if isinstance(each, Exception):
                raise each
            yield each


def engine_of(server: Client, api: Any = "completions", **options: Any) -> EndpointEngine:
    spec = ServedSpec("http://x/v1", "m", api, "0" * 64, vocab_size=257)
    return EndpointEngine(server, spec, TOKENIZER, **options)


def request(text: str = "User: hi\n\nAssistant:", **values: Any) -> Request:
    tokens = values.pop("tokens", None) or tuple(TOKENIZER.encode(text))
    return Request(tokens, Sampling(temperature=0.0), **{"max_tokens": 4, **values})


def finished(engine: EndpointEngine) -> dict[int, Reply | Score]:
    found: dict[int, Reply | Score] = {}
    while engine.busy:
        found.update(engine.step())
    return found


def test_a_cancelled_reply_ends_once_and_those_that_wait_are_never_sent() -> None:
    server = Scripted(choice("hello"), busy=True)
    engine = engine_of(server, max_batch=1)
    running, waiting = engine.submit(request()), engine.submit(request())
    assert server.entered.wait(10)
    for number in (running, waiting, waiting, 99):
        engine.cancel(number)
    found = [(number, reply.finish_reason) for number, reply in engine.step() if isinstance(reply, Reply)]
    assert found == [(running, "cancelled"), (waiting, "cancelled")]
    assert not engine.busy
    server.go.set()
    last = engine.generate([request()])[0]
    assert (last.text, last.finish_reason) == ("hello", "length")
    assert len(server.bodies) == 2


def test_a_cancelled_score_leaves_nothing() -> None:
    server = Scripted(choice("x"), busy=True)
    engine = engine_of(server, max_batch=1)
    number = engine.submit_score([1, 2], [3])
    assert server.entered.wait(10)
    engine.cancel(number)
    assert not engine.busy
    server.go.set()
    assert engine.generate([request()])[0].text == "x"


def test_text_after_a_cancellation_is_not_shown() -> None:
    shown: list[str] = []
    engine = engine_of(Scripted(choice("one", None), choice(" two", None), choice(" three")))

    def show(piece: str) -> None:
        shown.append(piece)
        engine.cancel(number)

    number = engine.submit(request(on_text=show))
    (reply,) = finished(engine).values()
    assert isinstance(reply, Reply)
    assert shown == ["one"]


def test_a_connection_that_breaks_after_text_was_shown_is_an_error() -> None:
    shown: list[str] = []
    with raw_server(answering(STREAM + event(text="half"))) as url:
        (reply,) = engine_of(client(url, retries=1)).generate([request(on_text=shown.append)])
    assert shown == ["half"]
    assert (reply.finish_reason, reply.error) == ("error", "the connection failed in the middle of the reply")


def test_a_reply_past_its_time_ends_with_the_text_so_far() -> None:
    now = iter(range(100))
    engine = engine_of(Scripted(choice("one", None), choice(" two")), clock=lambda: float(next(now)))
    (reply,) = engine.generate([request(max_seconds=1.0)])
    assert (reply.text, reply.finish_reason) == ("one", "time")


def test_token_0_is_sent_as_an_id_and_refused_as_text() -> None:
    server = Scripted(choice("a"))
    tokens = (0, *TOKENIZER.encode("hi"))
    (reply,) = engine_of(server).generate([request(tokens=tokens)])
    assert (reply.finish_reason, server.bodies) == ("error", [])
    assert "--endpoint-api completions-ids" in str(reply.error)
    (reply,) = engine_of(server, "completions-ids").generate([request(tokens=tokens)])
    assert (reply.text, server.bodies[0]["prompt"]) == ("a", list(tokens))


def test_a_prompt_that_the_server_counts_one_token_longer_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    asked = request()
    answer = choice("a", usage={"prompt_tokens": len(asked.tokens) + 1})
    with caplog.at_level(logging.WARNING):
        replies = engine_of(Scripted(answer)).generate([asked, asked])
    assert [reply.num_prompt for reply in replies] == [len(asked.tokens) + 1] * 2
    assert [record.message.count("one token more than the prompt") for record in caplog.records] == [1]


SAMPLED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"temperature": 0.0, "top_p": 0.5, "top_k": 7}, {"temperature": 0.0}),
    ({"top_p": 0.5}, {"temperature": 1.0, "top_p": 0.5}),
    ({"top_k": 7, "min_p": 0.1}, {"temperature": 1.0, "top_p": 0.3, "top_k": 7, "min_p": 0.1}),
    ({"order": "temperature-first"}, {"temperature": 1.0, "top_p": 0.3}),  # one cut at temperature 1: no order
    (
        {"order": "temperature-first", "temperature": 0.5},
        {"temperature": 0.5, "top_p": 0.3, "order": "temperature-first"},
    ),
    ({"order": "top-k-first", "top_k": 7}, {"temperature": 1.0, "top_p": 0.3, "top_k": 7, "order": "top-k-first"}),
    (
        {"temperature": 0.0, "frequency_penalty": 0.5},
        {"temperature": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.5, "penalty_decay": 0.996},
    ),
    (
        {"temperature": 0.0, "presence_penalty": 0.5, "penalty_decay": 1.0, "no_penalty": ("a",)},
        {"temperature": 0.0, "presence_penalty": 0.5, "frequency_penalty": 0.0},
    ),
    (
        {"temperature": 0.0, "frequency_penalty": 0.5, "penalty_decay": 1.0, "no_penalty": ("a",)},
        {"temperature": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.5, "no_penalty": ["a"]},
    ),
    ({"temperature": 0.0, "banned_token_ids": (3, 9)}, {"temperature": 0.0, "logit_bias": {"3": -100, "9": -100}}),
]


@pytest.mark.parametrize(("sampling", "fields"), SAMPLED)
def test_settings_that_change_the_reply_are_sent(sampling: dict[str, Any], fields: dict[str, Any]) -> None:
    assert sampling_fields(Sampling(**sampling)) == fields
    body = reply_body(Request((1,), Sampling(**sampling)), "x", model="m", api="completions", logprobs=False)
    assert body.items() >= fields.items()


def test_fields_beyond_openais_api_are_warned_of_once_each(caplog: pytest.LogCaptureFixture) -> None:
    asked = Request((1,), Sampling(top_k=7, min_p=0.1, presence_penalty=0.5, penalty_decay=1.0))
    with caplog.at_level(logging.WARNING):
        engine_of(Scripted(choice("a"))).generate([asked, asked])
    assert [record.message.split(": ")[1] for record in caplog.records] == ["min_p", "top_k"]


def scored(
    tokens: list[str], values: list[Any], prefix: str = "a", rest: str = "bc", api: Any = "completions"
) -> Score:
    answer = choice("".join(tokens))
    answer["choices"][0]["logprobs"] = {"tokens": tokens, "token_logprobs": values}
    return engine_of(Scripted(answer), api).score(TOKENIZER.encode(prefix), TOKENIZER.encode(rest))


def test_a_score_is_that_of_the_continuation_alone() -> None:
    assert scored(["a", "b", "c", "!"], [None, -1.0, -2.0, -9.0]).logprobs == [-1.0, -2.0]


@pytest.mark.parametrize(
    ("tokens", "values", "api", "message"),
    [
        (["a", "b", "c", "!"], [None, -1.0, None, -9.0], "completions", "no log-probability for some tokens"),
        (["a", "b", "c", "!"], [None, -1.0], "completions", "has 4 tokens and 2 log-probabilities"),
        (["ab", "c", "!"], [None, -1.0, -9.0], "completions", "no token of the server begins where the scored text"),
        (["a", "x", "y", "!"], [None, -1.0, -1.0, -9.0], "completions", "has its model another vocabulary?"),
        (["a", "b", "c", "!", "!"], [None, *[-1.0] * 4], "completions-ids", "counts 5 tokens where 3 ids and one"),
    ],
)
def test_a_score_that_is_not_of_the_text_is_an_error(
    tokens: list[str], values: list[Any], api: Any, message: str
) -> None:
    found = scored(tokens, values, api=api)
    assert message in str(found.error)
    assert found.unavailable is None


@pytest.mark.parametrize(
    ("refusal", "unavailable"), [("echo is not supported", True), ("no logprobs here", True), ("too long", False)]
)
def test_a_refused_score_is_unavailable_where_the_server_has_none(refusal: str, unavailable: bool) -> None:
    found = engine_of(Scripted(EndpointError(refusal, status=400))).score([1], [2])
    assert (found.unavailable is not None, found.error) == (unavailable, None if unavailable else refusal)


@pytest.mark.parametrize(("prefix", "continuation"), [([], [1]), ([1], [])])
def test_scoring_takes_a_token_on_both_sides(prefix: list[int], continuation: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        engine_of(Scripted()).submit_score(prefix, continuation)


@pytest.mark.parametrize("told", [True, False])
def test_a_reply_has_all_tokens_of_characters_of_several_tokens(told: bool) -> None:
    text = "a你👍é!"
    data = [bytes([byte]) for byte in text.encode()]
    names = [f"bytes:\\x{byte.hex()}" if byte > b"\x7f" and told else byte.decode("utf-8", "replace") for byte in data]
    logprobs = {"tokens": [*names, "<|endoftext|>"], "token_logprobs": [*[-1.0] * len(data), -9.0]}
    event = choice(text, "stop", usage={"prompt_tokens": 3})
    event["choices"][0] |= {"logprobs": logprobs, "stop_reason": None}
    engine = engine_of(Scripted(event))
    (reply,) = engine.generate([request(max_tokens=99)])
    assert reply.text == text
    assert reply.logprobs == (-1.0,) * len(data)
    assert reply.ids == tuple(TOKENIZER.encode(text))


_ENDS: list[tuple[str, dict[str, Any], tuple[str, ...], tuple[str, str | None]]] = [
    # A server that says what ended the reply (vLLM): null is end of text, where no template of its own ends the turn.
    ("completions", {"finish_reason": "stop", "stop_reason": None}, (), ("eos", None)),
    ("completions", {"finish_reason": "stop", "stop_reason": None}, ("User",), ("eos", None)),
    ("completions", {"finish_reason": "stop", "stop_reason": "User"}, ("User",), ("stop", "User")),
    ("completions", {"finish_reason": "stop", "stop_reason": 261}, (), ("stop", None)),
    ("completions", {"finish_reason": "stop", "stop_reason": "unasked"}, ("User",), ("stop", None)),
    ("chat", {"finish_reason": "stop", "stop_reason": None}, (), ("stop", None)),
    ("chat", {"finish_reason": "stop", "stop_reason": "User"}, ("User",), ("stop", "User")),
    # One that does not say it.
    ("completions", {"finish_reason": "stop"}, (), ("stop", None)),
    ("completions", {"finish_reason": "stop"}, ("User",), ("stop", None)),
    ("chat", {"finish_reason": "stop"}, (), ("stop", None)),
    # Other names of the reason.
    ("chat", {"finish_reason": "eos_token"}, ("User",), ("eos", None)),
    ("completions", {"finish_reason": "stop_sequence"}, (), ("stop", None)),
    ("completions", {"finish_reason": "stop_sequence", "stop_reason": None}, (), ("stop", None)),
    ("chat", {"finish_reason": "length", "stop_reason": None}, (), ("length", None)),
]


@pytest.mark.parametrize(("api", "ending", "stops", "end"), _ENDS)
def test_the_reason_of_a_replys_end_is_only_what_the_server_says(
    api: str, ending: dict[str, Any], stops: tuple[str, ...], end: tuple[str, str | None]
) -> None:
    answer = choice("hi")
    del answer["choices"][0]["finish_reason"]
    answer["choices"][0] |= ending
    (reply,) = engine_of(Scripted(answer), api).generate([request(stop=stops)])
    assert (reply.finish_reason, reply.stopped_by) == end


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        ({"token": "<|endoftext|>", "bytes": []}, "eos"),
        ({"token": "<|endoftext|>", "bytes": None}, "eos"),
        ({"token": "<|rwkv_tokenizer_end_of_text|>", "bytes": []}, "eos"),
        ({"token": "", "bytes": [], "id": 0}, "eos"),
        ({"token": "", "bytes": []}, "stop"),
        ({"token": "<|im_end|>", "bytes": []}, "stop"),
        ({"token": "", "bytes": [], "id": 12}, "stop"),  # llama.cpp's server holds back text that may become a stop
        ({"token": "\n\n", "bytes": [10, 10]}, "stop"),
        ({"token": "<|im_end|>", "bytes": list(b"<|im_end|>")}, "stop"),
    ],
)
def test_a_last_token_0_is_the_end_of_text_where_the_server_does_not_say_it(last: dict[str, Any], reason: str) -> None:
    answer = choice("hi", "stop")
    has_ids = "id" in last
    first = [{"token": c, "logprob": -1.0, "bytes": [ord(c)]} | ({"id": ord(c) + 1} if has_ids else {}) for c in "hi"]
    answer["choices"][0]["logprobs"] = {"content": [*first, {"logprob": -1.0, **last}]}
    (reply,) = engine_of(Scripted(answer), "chat").generate([request(stop=())])
    assert (reply.text, reply.finish_reason, reply.stopped_by) == ("hi", reason, None)


def test_a_token_is_known_by_the_name_of_its_bytes() -> None:
    """Also where the text's own tokens are others."""
    halves = [ServedToken("bytes:\\xc3", -1.0, data=b"\xc3"), ServedToken("bytes:\\xa9", -1.0, data=b"\xa9")]
    assert TokenReader(TOKENIZER).ids("é", None, halves) == (0xC3 + 1, 0xA9 + 1)


def test_ids_are_the_texts_own_where_the_server_names_half_a_character() -> None:
    halves = [ServedToken("\ufffd", -1.0), ServedToken("\ufffd", -1.0)]
    assert TokenReader(TOKENIZER).ids("é", None, halves) == tuple(TOKENIZER.encode("é"))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "no"}}', "no"),
        (b'{"error": "no"}', "no"),
        (b'{"detail": "no"}', "no"),
        (b'{"message": "no"}', "no"),
        (b'"no"', "no"),
        (b"no", "no"),
        (b'{"why": "no"}', '{"why": "no"}'),
        (b"", "Teapot"),
    ],
)
def test_the_words_of_a_refusal_are_found_in_every_form(body: bytes, said: str) -> None:
    head = b"HTTP/1.1 418 Teapot\r\nConnection: close\r\n\r\n"
    with raw_server(answering(head + body)) as url:
        assert ask(url).error == f"the server refuses the request (status 418): {said}"


@pytest.mark.parametrize("ending", [b"\n\ndata: [DONE]", b"\n\ndata: [DONE]\r", b"\n", b"", b"\n\n"])
def test_a_stream_may_end_without_a_blank_line(ending: bytes) -> None:
    with raw_server(answering(STREAM + event(text="fine", finish_reason="length").rstrip() + ending)) as url:
        reply = ask(url)
    assert (reply.text, reply.finish_reason, reply.error) == ("fine", "length", None)


@pytest.mark.parametrize("head", [b"HTTP/1.1 503 Busy\r\nConnection: close\r\n\r\n", STREAM + event(text="a")])
def test_a_cancelled_request_is_neither_repeated_nor_read(head: bytes) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with raw_server(answering(head)) as url:
        assert client(url, retries=5).call("POST", "completions", {}, list, cancelled=cancelled) is None


LISTED: list[tuple[Any, str, int | None]] = [
    ({"data": [{"id": "a", "meta": {"n_vocab": 300}}]}, "a", 300),
    ({"data": [{"id": "a", "vocab_size": 300}]}, "a", 300),
    ({"data": [7, {"id": 3}, {"id": "a", "vocab_size": 1}]}, "a", 65_536),
    ({"data": []}, "lists 0 models: none", None),
    ({}, "lists 0 models: none", None),
    (None, "lists 0 models: none", None),
]


@pytest.mark.parametrize(("listed", "found", "size"), LISTED)
def test_the_model_and_its_vocabulary_are_found_in_the_servers_list(listed: Any, found: str, size: int | None) -> None:
    missing = b"HTTP/1.1 404 None\r\nConnection: close\r\n\r\n"
    with raw_server(answering(missing if listed is None else JSON + json.dumps(listed).encode())) as url:
        if size is None:
            with pytest.raises(UsageError, match=found):
                served_spec(Endpoint(url, "", "completions", ""), client(url))
            spec = served_spec(Endpoint(url, "named", "completions", ""), client(url))
            assert (spec.name, spec.vocab_size) == ("named", 65_536)
        else:
            spec = served_spec(Endpoint(url, "", "completions", ""), client(url))
            assert (spec.name, spec.vocab_size) == (found, size)


def test_a_server_that_takes_no_connection_cannot_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(3)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(address)
        with pytest.raises(WorkerError, match="cannot be reached: no connection within the time limit"):
            ask(f"http://127.0.0.1:{address[1]}/v1", timeout_s=0.1)
        for each in waiting:
            each.close()


def test_without_urllib3_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="--endpoint needs the package urllib3") as caught:
        Client("http://127.0.0.1:1")
    assert "rwkvbatch[endpoint]" in str(caught.value.hint)
