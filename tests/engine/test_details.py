"""Log-probabilities of the likeliest tokens, of replies and of scored texts."""

from __future__ import annotations

import pytest
import torch

from rwkvbatch.config import Sampling
from rwkvbatch.engine.engine import Engine
from rwkvbatch.engine.request import END_OF_TEXT, Reply, Request, Score, TokenDetails
from rwkvbatch.engine.sampling import likeliest
from rwkvbatch.model.load import load_model

PROMPT = tuple(b"User: hi\n\nAssistant:"[i] + 1 for i in range(20))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(load_model(None, threads=1), max_batch=4)


def reference_details(engine: Engine, before: tuple[int, ...], token: int, count: int) -> TokenDetails:
    logprobs = torch.log_softmax(engine.next_logits(before).logits.double(), dim=0)
    top = sorted(range(len(logprobs)), key=lambda id_: (-float(logprobs[id_]), id_))[:count]
    return TokenDetails(token, float(logprobs[token]), tuple((id_, float(logprobs[id_])) for id_ in top))


def assert_close(actual: TokenDetails, expected: TokenDetails) -> None:
    assert actual.token == expected.token
    assert actual.logprob == pytest.approx(expected.logprob, abs=1e-4)
    assert [token for token, _ in actual.top] == [token for token, _ in expected.top]
    assert [value for _, value in actual.top] == pytest.approx([value for _, value in expected.top], abs=1e-4)


def test_a_reply_has_the_likeliest_tokens_at_each_position(engine: Engine) -> None:
    sampling = Sampling(temperature=2.0, top_p=1.0, frequency_penalty=3.0)
    (reply,) = engine.generate([Request(PROMPT, sampling, max_tokens=6, stop=(), num_top=3)])
    assert [details.token for details in reply.details][: len(reply.ids)] == list(reply.ids)
    assert [details.logprob for details in reply.details][: len(reply.ids)] == list(reply.logprobs)
    for index, details in enumerate(reply.details):
        assert_close(details, reference_details(engine, PROMPT + reply.ids[:index], details.token, 3))


def test_the_logprob_of_the_likeliest_token_is_exactly_the_one_of_the_token(engine: Engine) -> None:
    (reply,) = engine.generate([Request(PROMPT, Sampling(temperature=0.0), max_tokens=8, stop=(), num_top=1)])
    assert [details.top for details in reply.details] == [
        ((details.token, details.logprob),) for details in reply.details
    ]


def test_end_of_text_has_details_although_it_is_not_in_the_reply(engine: Engine) -> None:
    # All but token 0 banned.
    sampling = Sampling(banned_token_ids=tuple(range(1, engine.model.spec.vocab_size)))
    (reply,) = engine.generate([Request(PROMPT, sampling, max_tokens=2, num_top=0)])
    assert (reply.finish_reason, reply.ids) == ("eos", ())
    assert [(details.token, details.top) for details in reply.details] == [(END_OF_TEXT, ())]


def test_a_scored_text_has_the_likeliest_tokens_whatever_else_is_in_the_batch(engine: Engine) -> None:
    text = tuple(byte + 1 for byte in b" Hello! How can I help you?")
    alone = engine.submit_score(PROMPT, text, num_top=2)
    done = dict(engine.step() + engine.step())
    score = done[alone]
    assert isinstance(score, Score)
    assert [details.logprob for details in score.details] == list(score.logprobs)
    for index in (0, 5, len(text) - 1):
        assert_close(score.details[index], reference_details(engine, PROMPT + text[:index], text[index], 2))
    requests = [Request(PROMPT + text[:length], Sampling(top_p=1.0), max_tokens=5) for length in (1, 4)]
    others = [engine.submit(request) for request in requests]
    again = engine.submit_score(PROMPT, text, num_top=2)
    plain = engine.submit_score(PROMPT, text)
    results = dict[int, Reply | Score]()
    while len(results) < 4:
        results.update(engine.step())
    assert results[again] == score
    assert isinstance(actual := results[plain], Score)
    assert actual.details == ()
    assert isinstance(other := results[others[0]], Reply)
    assert other.details == ()


def test_equal_logits_are_listed_by_id_and_rows_may_have_different_counts() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0], [0.0, 1.0, 2.0, 3.0], [5.0, 0.0, 0.0, 0.0]])
    actual = likeliest(logits, [1, 0, -1], [-0.5, -4.0, 0.0], [2, 9, 1])
    assert actual == [((1, -0.5), (2, -0.5)), ((3, -1.0), (2, -2.0), (1, -3.0), (0, -4.0)), ()]
