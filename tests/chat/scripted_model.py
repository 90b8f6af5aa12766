"""A model with scripted replies, one byte per token; its state is all tokens read."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch

from rwkvbatch.model.base import Choices, ModelSpec, RaggedBatch, SampleBatch, State, StatePool
from rwkvbatch.model.ops import choosing
from rwkvbatch.prompt.tokenizer import world_tokenizer

REPLY_PREFIX = "So = yes:"
"""The only reply prefix that the model recognises as the start of its reply."""

VOCAB_SIZE = 300


def echo(message: str) -> str:
    return f"You said: {message}"


@cache
def _bytes_of() -> list[bytes]:
    """The bytes of each token, cached because every step decodes all tokens read."""
    tokenizer = world_tokenizer(VOCAB_SIZE)
    return [tokenizer.token_bytes(token) for token in range(VOCAB_SIZE)]


@dataclass
class TokensPool:
    read_tokens: list[tuple[int, ...]]

    @property
    def capacity(self) -> int:
        return len(self.read_tokens)

    def clear(self, slot: int) -> None:
        self.read_tokens[slot] = ()

    def copy(self, source: int, target: int) -> None:
        self.read_tokens[target] = self.read_tokens[source]

    def read(self, slots: Sequence[int]) -> State:
        (tokens,) = [self.read_tokens[slot] for slot in slots]
        return State({"tokens": torch.tensor([tokens], dtype=torch.float32)})

    def write(self, slots: Sequence[int], state: State) -> None:
        for slot in slots:
            self.read_tokens[slot] = tuple(int(value) for value in state.tensors["tokens"][0])


@dataclass
class ScriptedModel:
    """`answer` gives the reply to a message; each step takes `step_s` seconds."""

    answer: Callable[[str], str] = echo
    step_s: float = 0.0
    num_rows: list[int] = field(default_factory=list[int])

    @property
    def spec(self) -> ModelSpec:
        sizes = ("7", 1, 64, 1, 64, VOCAB_SIZE, 0, 1024)
        return ModelSpec(*sizes, "5c", "scripted.pth", "fp32", "scripted", "cpu", True, vocabulary="world")

    def make_pool(self, capacity: int) -> StatePool:
        return TokensPool([()] * capacity)

    def step(self, batch: RaggedBatch, pool: StatePool) -> torch.Tensor:
        assert isinstance(pool, TokensPool)
        if self.step_s:
            time.sleep(self.step_s)
        self.num_rows.append(len(batch.tokens))
        logits = torch.full((len(batch.outputs), VOCAB_SIZE), -20.0)
        outputs = {int(row): index for index, row in enumerate(batch.outputs)}
        for sequence, slot in enumerate(batch.slots):
            for row in range(batch.starts[sequence], batch.starts[sequence + 1]):
                pool.read_tokens[slot] += (int(batch.tokens[row]),)
                if row in outputs:
                    logits[outputs[row], self._next(pool.read_tokens[slot])] = 20.0
        return logits

    def _next(self, tokens: tuple[int, ...]) -> int:
        data = b"".join(map(_bytes_of().__getitem__, tokens))
        before, _, written = data.rpartition(b"\n\nAssistant:")
        if not before:
            return ord("?") + 1
        written = written.removeprefix(b" <think").removeprefix(f" {REPLY_PREFIX}".encode())
        message = before.rpartition(b"User: ")[2].decode()
        reply = self.answer(message).encode() + b"\n\n\nUser:"
        return reply[len(written)] + 1 if len(written) < len(reply) else ord("\n") + 1

    def choose(self, logits: torch.Tensor, batch: SampleBatch) -> Choices:
        return choosing.choose(logits, batch)

    def forward(
        self, tokens: Sequence[Sequence[int]], state: State | None = None, every_token: bool = False
    ) -> tuple[torch.Tensor, State]:
        pool = self.make_pool(1)
        if state is not None:
            pool.write([0], state)
        return self.step(RaggedBatch.of(tokens, [0], every_token=every_token), pool), pool.read([0])
