"""LAMBADA and MMLU on a random checkpoint: equal to the loops of the RWKV authors over the `rwkv` package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.likelihood_against_loop import (
    Result,
    Text,
    check_equal,
    lambada_loop,
    lambada_run,
    lambada_texts,
    mmlu_loop,
    mmlu_questions,
    mmlu_run,
)
from rwkvbatch.model.base import Model
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.model.load import load_model
from rwkvbatch.prompt.tokenizer import Tokenizer, world_tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model]:
    np.random.seed(5)
    path = tmp_path_factory.mktemp("random") / "random.pth"
    torch.save(random_tensors(1, 64), path)
    return load_model(path, "cpu fp32"), load_model(path, "cpu fp32", "upstream")


def with_greedy(texts: list[Text], package: Model, tokenizer: Tokenizer) -> list[Text]:
    """The texts, every second of which continues with the likeliest token, so that accuracy is above 0."""
    changed: list[Text] = []
    for number, text in enumerate(texts):
        logits, _ = package.forward([[0, *tokenizer.encode(text.prompt)]])
        order = logits[0].argsort(descending=True).tolist()
        likeliest = order[0]
        word = tokenizer.decode_bytes([likeliest]).decode("utf-8", errors="ignore")
        is_whole = bool(word) and tokenizer.encode(word) == [likeliest]
        changed.append(Text(text.prompt, word) if number % 2 and is_whole else text)
    return changed


def test_lambada_is_that_of_the_authors_loop(models: tuple[Model, Model], tmp_path: Path) -> None:
    ours, package = models
    tokenizer = world_tokenizer(ours.spec.vocab_size)
    texts = with_greedy(lambada_texts(None, 6), package, tokenizer)
    found, expected = lambada_run(ours, texts, tmp_path), lambada_loop(package, tokenizer, texts)
    assert expected.accuracy > 0
    assert found.accuracy == expected.accuracy
    assert f"{found.perplexity:.6g}" == f"{expected.perplexity:.6g}"
    np.testing.assert_allclose(found.sums, expected.sums, rtol=1e-5)


@pytest.mark.parametrize("few_shot", [False, True])
def test_mmlu_is_that_of_the_authors_loop(models: tuple[Model, Model], tmp_path: Path, few_shot: bool) -> None:
    ours, package = models
    questions, tokenizer = mmlu_questions(8), world_tokenizer(ours.spec.vocab_size)
    found = mmlu_run(ours, questions, tmp_path, few_shot=few_shot)
    assert found.accuracy == mmlu_loop(package, tokenizer, questions, few_shot=few_shot).accuracy


def test_a_difference_in_the_sixth_digit_is_reported() -> None:
    check_equal(Result(0.5, 2.0), Result(0.5, 2.0000001), "x")
    with pytest.raises(SystemExit, match="perplexity differs"):
        check_equal(Result(0.5, 2.0), Result(0.5, 2.00002), "x")
    with pytest.raises(SystemExit, match="accuracy differs"):
        check_equal(Result(0.5, 2.0), Result(0.25, 2.0), "x")
