"""Scoring of texts, alone and in a batch with replies."""

from __future__ import annotations

import pytest

from rwkvbatch.config import Sampling
from rwkvbatch.engine.engine import Engine
from rwkvbatch.engine.request import Reply, Request, Score
from tests.engine.hash_model import HashModel
from tests.engine.requests import contents, request


def test_scores_are_those_of_the_tokens_read_one_by_one() -> None:
    model = HashModel()
    prefix, continuation = [5, 6, 7], [9, 10, 11, 12]
    score = Engine(model, step_rows=2).score(prefix, continuation)
    logits, _ = model.forward([prefix + continuation[:-1]], every_token=True)
    rows = logits[len(prefix) - 1 :].log_softmax(-1)
    expected = [float(row[token]) for row, token in zip(rows, continuation, strict=True)]
    assert score.logprobs == pytest.approx(expected, abs=1e-5)
    assert score.nll == pytest.approx(-sum(expected) / 4, abs=1e-5)


def test_a_text_whose_state_is_known_already_gets_the_same_score() -> None:
    prefix, continuation = list(request(3).tokens), [9, 10, 11, 12]
    alone = Engine(HashModel()).score(prefix, continuation)
    engine = Engine(HashModel())
    # These leave states within and behind the text that is scored.
    for known in (prefix + continuation[:2], prefix + continuation, prefix + continuation + [1]):
        engine.score(known, [1])
    assert engine.score(prefix, continuation) == alone
    assert engine.score(prefix, continuation) == alone


def test_scoring_beside_a_reply_changes_neither() -> None:
    alone = contents(Engine(HashModel()).generate([request(3)])[0])
    score_alone = Engine(HashModel()).score(request(3).tokens, [1, 2, 3])
    engine = Engine(HashModel(), step_rows=5)
    reply_id = engine.submit(request(3))
    score_id = engine.submit_score(request(3).tokens, [1, 2, 3])
    results: dict[int, Reply | Score] = {}
    while engine.busy:
        results.update(engine.step())
    reply = results[reply_id]
    assert isinstance(reply, Reply)
    assert contents(reply) == alone
    assert results[score_id] == score_alone


@pytest.mark.parametrize("step_rows", [1, 6, 512])
def test_replies_and_texts_mixed_in_a_step_get_what_they_get_alone(step_rows: int) -> None:
    requests = [request(number, length=3 + number) for number in range(4)]
    texts = [(list(range(1, 4 + number)), list(range(40, 41 + 2 * number))) for number in range(5)]
    alone = [contents(Engine(HashModel()).generate([one])[0]) for one in requests]
    scores_alone = [Engine(HashModel()).score(*text) for text in texts]
    engine = Engine(HashModel(), step_rows=step_rows)
    score_ids = [engine.submit_score(*text) for text in texts[:3]]
    reply_ids = [engine.submit(one) for one in requests]
    results = dict(engine.step())
    score_ids += [engine.submit_score(*text) for text in texts[3:]]
    while engine.busy:
        results.update(engine.step())
    assert [contents(reply) for at in reply_ids if isinstance(reply := results[at], Reply)] == alone
    assert [results[at] for at in score_ids] == scores_alone


def test_the_tokens_that_are_likeliest_count_as_matched() -> None:
    greedy = Request((5, 6, 7), Sampling(temperature=0, banned_token_ids=()), max_tokens=4)
    reply = Engine(HashModel()).generate([greedy])[0]
    other = (reply.ids[-1] + 1) % 300
    score = Engine(HashModel(), step_rows=2).score([5, 6, 7], [*reply.ids[:3], other])
    assert (len(reply.ids), score.num_matched) == (4, 3)


@pytest.mark.parametrize(("prefix", "continuation"), [([], [1]), ([1], [])])
def test_scoring_takes_a_token_on_both_sides(prefix: list[int], continuation: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one token in the prefix and one in the continuation"):
        Engine(HashModel()).submit_score(prefix, continuation)


def test_the_nll_of_certain_tokens_is_not_negative_zero() -> None:
    assert str(Score([0.0, 0.0], 2).nll) == "0.0"
