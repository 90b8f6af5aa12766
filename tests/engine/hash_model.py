"""A model without weights whose state is a hash of all tokens read: any mistake with states changes its logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model.base import Choices, ModelSpec, RaggedBatch, SampleBatch, State, StatePool
from rwkvbatch.model.ops import choosing

try:
    from rwkvbatch.model.ops.cpu import CpuOps
except ImportError:
    choose = choosing.choose
else:
    choose = CpuOps(1).choose  # a tenth of the time of the reference implementation

MODULUS = 2**31 - 1


@dataclass
class HashPool:
    hashes: list[int | None]

    @property
    def capacity(self) -> int:
        return len(self.hashes)

    def clear(self, slot: int) -> None:
        self.hashes[slot] = 1

    def copy(self, source: int, target: int) -> None:
        assert self.hashes[source] is not None
        self.hashes[target] = self.hashes[source]

    def read(self, slots: Sequence[int]) -> State:
        return State({"hash": torch.tensor([[self.hashes[slot] or 0] for slot in slots])})

    def write(self, slots: Sequence[int], state: State) -> None:
        if state.tensors.keys() != {"hash"} or state.tensors["hash"].shape != (len(slots), 1):
            raise CheckpointError("the state must have one hash a sequence")
        for row, slot in enumerate(slots):
            self.hashes[slot] = int(state.tensors["hash"][row, 0])


@dataclass
class HashModel:
    """A `Model` with a hash as its state.

    Attributes:
        fail_over: steps of more rows run out of memory.
        not_finite_after: states that are multiples of this number give NaN.
        num_rows: rows of each step. num_logits: rows of logits computed. num_choices: calls of `choose`.
    """

    vocab_size: int = 300
    fail_over: int | None = None
    not_finite_after: int | None = None
    num_rows: list[int] = field(default_factory=list[int])
    num_logits: int = 0
    num_choices: int = 0

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec("7", 1, 64, 1, 64, self.vocab_size, 0, 1024, "", "", "fp32", "hash", "cpu", True)

    def make_pool(self, capacity: int) -> StatePool:
        return HashPool([None] * capacity)

    def step(self, batch: RaggedBatch, pool: StatePool) -> torch.Tensor:
        assert isinstance(pool, HashPool)
        assert len(set(batch.slots.tolist())) == len(batch.slots)
        assert (np.diff(batch.starts) > 0).all()
        if self.fail_over is not None and len(batch.tokens) > self.fail_over:
            for slot in batch.slots:
                pool.hashes[slot] = -1
            raise MemoryError
        self.num_rows.append(len(batch.tokens))
        self.num_logits += len(batch.outputs)
        after: list[int] = []
        for sequence, slot in enumerate(batch.slots):
            value = pool.hashes[slot]
            assert value is not None
            for token in batch.tokens[batch.starts[sequence] : batch.starts[sequence + 1]]:
                value = (value * 48271 + int(token) + 7) % MODULUS
                after.append(value)
            pool.hashes[slot] = value
        return (
            torch.stack([self.logits(after[row]) for row in batch.outputs])
            if len(batch.outputs)
            else torch.empty(0, self.vocab_size)
        )

    def logits(self, value: int) -> torch.Tensor:
        generator = np.random.Generator(np.random.Philox(value))
        logits = torch.from_numpy(generator.standard_normal(self.vocab_size).astype(np.float32) * 3)
        if self.not_finite_after is not None and value % self.not_finite_after == 0:
            logits[5] = float("nan")
        return logits

    def choose(self, logits: torch.Tensor, batch: SampleBatch) -> Choices:
        self.num_choices += 1
        return choose(logits, batch)

    def forward(
        self, tokens: Sequence[Sequence[int]], state: State | None = None, every_token: bool = False
    ) -> tuple[torch.Tensor, State]:
        pool = self.make_pool(len(tokens))
        slots = list(range(len(tokens)))
        for slot in slots:
            pool.clear(slot)
        if state is not None:
            pool.write(slots, state)
        return self.step(RaggedBatch.of(tokens, slots, every_token=every_token), pool), pool.read(slots)
