"""Replies against a plain chat loop over the `rwkv` package (API_DEMO_CHAT), and against that package's own loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rwkv.utils import PIPELINE, PIPELINE_ARGS

from rwkvbatch.config import Sampling, preset
from rwkvbatch.engine.engine import Engine
from rwkvbatch.engine.request import Request
from rwkvbatch.model.base import Model
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.model.load import load_model

NUM_TOKENS = 300
SAMPLING = Sampling(
    temperature=0, presence_penalty=0.5, frequency_penalty=0.5, penalty_decay=0.996, banned_token_ids=(0,)
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.pth"
    torch.save(random_tensors(2, 64, vocab_size=300, seed=5, dtype=torch.float32), path)
    return path


def plain_loop(forward: Callable[..., tuple[torch.Tensor, object]], prompt: list[int]) -> list[int]:
    """One conversation, one token at a time: penalties, ban, greedy choice, decay, count."""
    logits, state = forward(prompt, None)
    occurrence: dict[int, float] = {}
    tokens: list[int] = []
    for _ in range(NUM_TOKENS):
        logits = logits.clone().flatten()
        for seen, count in occurrence.items():
            logits[seen] -= 0.5 + count * 0.5
        logits[0] -= 1e10
        token = int(logits.argmax())
        tokens.append(token)
        for seen in occurrence:
            occurrence[seen] *= 0.996
        occurrence[token] = 1 + occurrence.get(token, 0)
        logits, state = forward([token], state)
    return tokens


@pytest.fixture(scope="module")
def package_loop(checkpoint: Path) -> Callable[[list[int]], list[int]]:
    package: Model = load_model(checkpoint, strategy="cpu fp32", backend="upstream")

    def forward(tokens: list[int], state: object) -> tuple[torch.Tensor, object]:
        return package.forward([tokens], state)  # type: ignore[arg-type]

    expected: dict[tuple[int, ...], list[int]] = {}

    def loop(prompt: list[int]) -> list[int]:
        if tuple(prompt) not in expected:
            expected[tuple(prompt)] = plain_loop(forward, prompt)
        return expected[tuple(prompt)]

    return loop


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_greedy_replies_with_penalties_are_those_of_a_plain_loop_over_the_package(
    backend: str, checkpoint: Path, package_loop: Callable[[list[int]], list[int]]
) -> None:
    prompts = [[5, 17, 250], list(range(40, 80))]
    engine = Engine(load_model(checkpoint, strategy="cpu fp32", backend=backend))
    replies = engine.generate([Request(tuple(prompt), SAMPLING, max_tokens=NUM_TOKENS, stop=()) for prompt in prompts])
    for prompt, reply in zip(prompts, replies, strict=True):
        expected = package_loop(prompt)
        assert len(set(expected)) > 20, "the loop must not be stuck, or the penalties are not tested"
        assert list(reply.ids) == expected


PROMPT = [5, 17, 250]
DIGITS = " \t0123456789"


class PackageModel:
    """The package's model, as `PIPELINE.generate` calls it; notes the tokens that it is fed."""

    def __init__(self, path: Path) -> None:
        self._model = load_model(path, strategy="cpu fp32", backend="upstream")
        self.fed: list[int] = []

    def forward(self, tokens: list[int], state: object) -> tuple[torch.Tensor, object]:
        self.fed += tokens
        logits, state = self._model.forward([tokens], state)  # type: ignore[arg-type]
        return logits[0].clone(), state


class Pipeline(PIPELINE):
    """The package's pipeline with a prompt of token ids."""

    def encode(self, x: list[int]) -> list[int]:
        return list(x)


def test_the_packages_preset_writes_the_tokens_of_its_own_loop_on_digits(tmp_path: Path) -> None:
    tensors = random_tensors(2, 64, vocab_size=300, seed=5, dtype=torch.float32)
    tensors["head.weight"][49:59] *= 2.0
    path = tmp_path / "digits.pth"
    torch.save(tensors, path)
    # Temperature 0: both choose the largest logit after the penalties.
    sampling = preset("rwkv-package").replace(temperature=0, banned_token_ids=(0,))
    settings = PIPELINE_ARGS(
        temperature=0,
        alpha_frequency=sampling.frequency_penalty,
        alpha_presence=sampling.presence_penalty,
        alpha_decay=sampling.penalty_decay,
        token_ban=[0],
    )
    model = PackageModel(path)
    Pipeline(model, "rwkv_vocab_v20230424").generate(PROMPT, token_count=101, args=settings)
    expected = model.fed[len(PROMPT) :]
    engine = Engine(load_model(path, strategy="cpu fp32"))
    with_all_counted = sampling.replace(no_penalty=())
    exact, other = engine.generate(
        [Request(tuple(PROMPT), each, max_tokens=100, stop=()) for each in (sampling, with_all_counted)]
    )
    assert sum(engine.tokenizer.decode([token]) in DIGITS for token in expected) > 25
    assert list(exact.ids) == expected
    assert list(other.ids) != expected
