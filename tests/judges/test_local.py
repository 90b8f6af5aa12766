"""The bundled model as a judge; it tests the mechanism, since the model is too small to judge well."""

from __future__ import annotations

import math

import pytest

from rwkvbatch.engine.engine import Engine
from rwkvbatch.judges.answers import JudgeAnswer
from rwkvbatch.judges.local import LocalJudge
from rwkvbatch.judges.questions import Question, Side, VoteRequest, about_pair, about_reply
from rwkvbatch.model.base import Model
from rwkvbatch.model.load import load_model
from rwkvbatch.prompt.templates import OfficialTemplate
from rwkvbatch.prompt.vocabulary import tokenizer_of


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(None)


def answered(model: Model, asks: list[VoteRequest], batch: int) -> dict[str, JudgeAnswer]:
    judge = LocalJudge(model, tokenizer_of(model.spec), batch)
    return {found[0].question.text: found[1] for found in judge.answers(iter(asks)) if found is not None}


QUESTIONS = [
    about_reply("The reply names Ada.", Side((), "What is my name?", "Ada.")),
    about_reply("The reply names Ada.", Side((), "What is my name?", "Bob.")),
    about_pair(Side((), "Hi", "Hello!"), Side((), "Hi", "No.")),
]


def test_the_probability_is_that_of_one_word_among_both_as_the_engine_scores_them(model: Model) -> None:
    found = answered(model, [VoteRequest(question) for question in QUESTIONS], 4)
    engine, template = Engine(model), OfficialTemplate()
    for question in QUESTIONS:
        encode = engine.tokenizer.encode
        prompt = encode(template.past_turn(question.text))
        sums = [sum(engine.score(prompt, encode(f" {word}")).logprobs) for word in question.words]
        expected = 1 / (1 + math.exp(sums[1] - sums[0]))
        assert found[question.text].probability == pytest.approx(expected, rel=1e-9)


def test_answers_of_a_rounded_model_are_not_those_of_other_rounding_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    def identities() -> list[object]:
        judges = [load_model(None, f"cpu {dtype}") for dtype in ("bf16", "int8")]
        return [LocalJudge(judge, tokenizer_of(judge.spec)).identity for judge in judges]

    bf16, int8 = identities()
    monkeypatch.setattr("rwkvbatch.model.ops.ROUNDING_RULES", 99)
    assert identities()[0] == bf16
    assert identities()[1] != int8


def test_the_batch_changes_no_answer(model: Model) -> None:
    asks = [VoteRequest(Question(f"{question.text} {n}", question.words)) for n in range(4) for question in QUESTIONS]
    assert answered(model, asks, 1) == answered(model, asks, 8)


def test_memory_that_runs_out_halves_the_batch_and_then_is_a_reason(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks, real, sizes = [VoteRequest(question) for question in QUESTIONS], Engine.step, list[int]()

    def step(engine: Engine) -> object:
        sizes.append(engine.max_batch)
        if engine.max_batch > 2:
            raise MemoryError
        return real(engine)

    expected = answered(model, asks, 4)
    monkeypatch.setattr(Engine, "step", step)
    assert answered(model, asks, 8) == expected
    assert sizes[:3] == [8, 4, 2]

    def never(_: Engine) -> None:
        raise MemoryError

    monkeypatch.setattr(Engine, "step", never)
    assert {answer.problem for answer in answered(model, asks, 2).values()} == {"the judge ran out of memory"}
