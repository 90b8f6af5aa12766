"""The interface of all backends: `Model`, `ModelSpec`, states as values, and the ragged batch of one step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from pathlib import PurePath
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rwkvbatch.errors import ArgumentError, counted, shown_value


@contextmanager
def num_threads(count: int | None) -> Iterator[None]:
    """Set torch's thread count inside the block; None does not change it."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_TF32 = ((torch.backends.cuda.matmul, "allow_tf32"), (torch.backends.cudnn, "allow_tf32"))
_HALF_PRECISION_SUMS = tuple(
    (torch.backends.cuda.matmul, f"allow_{dtype}_reduced_precision_reduction") for dtype in ("fp16", "bf16")
)


def tf32(allowed: bool, device: str = "cuda") -> AbstractContextManager[None]:
    """Set whether a GPU may round fp32 factors of matrix products to TF32, inside the block; no effect on the CPU."""
    return nullcontext() if device == "cpu" else _set_inside(_TF32, allowed)


def fp32_sums(device: str) -> AbstractContextManager[None]:
    """Make a GPU accumulate fp16 and bf16 products in fp32 only, inside the block; no effect on the CPU."""
    return nullcontext() if device == "cpu" else _set_inside(_HALF_PRECISION_SUMS, False)


@contextmanager
def _set_inside(switches: Sequence[tuple[Any, str]], value: bool) -> Iterator[None]:
    before = [getattr(owner, name) for owner, name in switches]
    for owner, name in switches:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name), old in zip(switches, before, strict=True):
            setattr(owner, name, old)


IntArray = npt.NDArray[np.int64]


def check_tokens(tokens: Sequence[int] | IntArray, vocab_size: int) -> None:
    """Raise `ArgumentError` unless all `tokens` are whole numbers in [0, vocab_size)."""
    ids = np.asarray(tokens)
    if ids.size and ids.dtype.kind not in "iu":
        raise ArgumentError(f"token ids must be whole numbers, got {shown_value(ids.reshape(-1)[0].item())}")
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        raise ArgumentError(f"token ids must be in [0, {vocab_size}), got {ids[(ids < 0) | (ids >= vocab_size)][0]}")


FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Dimensions:
    """Generation and sizes of a network.

    Attributes:
        generation: `"7"`, `"7a"` (with DeepEmbed), or an older one as the `rwkv` package distinguishes them: `"4"`,
            `"5.0"`, `"5.1"`, `"5.2"`, `"6.0"`.
        num_heads, head_size: 0 for RWKV-4, which has no heads.
        num_parameters: number of weights in the checkpoint.
    """

    generation: str
    num_layers: int
    width: int
    num_heads: int
    head_size: int
    vocab_size: int
    num_parameters: int


RWKV7 = ("7", "7a")
"""The generations that rwkvbatch computes itself, without the `rwkv` package."""


def is_rwkv7(network: Dimensions) -> bool:
    """Whether the network is of a generation in `RWKV7`."""
    return network.generation in RWKV7


def dimensions_of(network: Dimensions) -> dict[str, Any]:
    """The fields of `Dimensions`, for the constructor of a subclass."""
    return {field.name: getattr(network, field.name) for field in fields(Dimensions)}


@dataclass(frozen=True)
class ModelSpec(Dimensions):
    """Description of a loaded model.

    Attributes:
        state_bytes: size of one sequence's recurrent state in the backend's memory.
        weights_sha256: hash of the checkpoint file; with an adapter, of its files and options too.
        path: the checkpoint file.
        dtype: `fp32`, `bf16` or `fp16`; `int8`, `w8a8` or `int4` for quantised large matrices; the strategy string for
            the upstream backend.
        backend: `cpu` (native kernels), `reference`, `cuda` (`cuda rows=N` with a fixed row count) or `upstream`.
        device: torch device name.
        bitwise: whether replies are bit-identical for every batch (docs/design/reproducibility.md).
        vocabulary: the vocabulary that the checkpoint declares (`world`), or None.
        vocabulary_file: the World vocabulary in the checkpoint's directory, or None.
        adapter: the adapter merged into the weights, as in `load_model`; None without one.
    """

    state_bytes: int
    weights_sha256: str
    path: str
    dtype: str
    backend: str
    device: str
    bitwise: bool
    vocabulary_file: str | None = None
    vocabulary: str | None = None
    adapter: str | None = None

    @property
    def in_words(self) -> str:
        """The model's name and sizes."""
        return (
            f"{PurePath(self.path).name}: RWKV-{self.generation}, {counted(self.num_layers, 'layer')}, "
            f"width {self.width}, {self.num_parameters:,} parameters, {self.backend} {self.dtype}"
            + (f", adapter {self.adapter}" if self.adapter else "")
        )


@dataclass(frozen=True)
class State:
    """The recurrent state of B sequences, as a value that is never changed in place.

    Attributes:
        tensors: named CPU or device tensors, each of shape [B, ...]. RWKV-7 has `att_shift` [B, L, C],
            `ffn_shift` [B, L, C] and `wkv` [B, L, H, N, N] (rows = value, columns = key), all fp32. They may be
            non-contiguous: `Model.forward` on the CPU returns views of memory in the kernels' layout.
    """

    tensors: Mapping[str, Tensor]

    def __repr__(self) -> str:
        count = self.batch_size if self.tensors else 0
        matrices = self.tensors.get("wkv")
        if matrices is None or matrices.ndim != 5:
            sizes = counted(len(self.tensors), "tensor")
        else:
            _, layers, heads, size, _ = matrices.shape
            sizes = f"{counted(layers, 'layer')}, width {heads * size}, {counted(heads, 'head')}"
        num_bytes = sum(tensor.nbytes for tensor in self.tensors.values())
        return f"<State of {counted(count, 'sequence')}: {sizes}, {num_bytes:,} bytes>"

    @property
    def batch_size(self) -> int:
        return next(iter(self.tensors.values())).shape[0]

    def select(self, indices: Sequence[int]) -> State:
        """A copy of the states of the sequences `indices`."""
        return State({name: tensor[list(indices)].clone() for name, tensor in self.tensors.items()})

    @staticmethod
    def cat(states: Sequence[State]) -> State:
        """The states of several batches, concatenated into one batch."""
        names = states[0].tensors.keys()
        return State({name: torch.cat([state.tensors[name] for state in states]) for name in names})


@dataclass(frozen=True)
class RaggedBatch:
    """The R token rows of B sequences that one step reads: prompt chunks and single tokens.

    Attributes:
        tokens: token ids, [R].
        starts: rows of sequence b are starts[b]:starts[b + 1]; [B + 1], starts[0] = 0, ascending, none empty.
        slots: the state pool's slot of each sequence, all different; [B].
        outputs: the rows that need logits, ascending; [P].
    """

    tokens: IntArray
    starts: IntArray
    slots: IntArray
    outputs: IntArray

    @classmethod
    def of(cls, tokens: Sequence[Sequence[int]], slots: Sequence[int], *, every_token: bool = False) -> RaggedBatch:
        """The batch that reads `tokens[b]` in slot `slots[b]`.

        Args:
            every_token: logits after every token, not only after the last one of each sequence.
        """
        starts = np.concatenate([[0], np.cumsum([len(ids) for ids in tokens])]).astype(np.int64)
        flat = np.array([token for ids in tokens for token in ids], dtype=np.int64)
        outputs = np.arange(len(flat), dtype=np.int64) if every_token else starts[1:] - 1
        return cls(flat, starts, np.asarray(slots, dtype=np.int64), outputs)


TEMPERATURE_FIRST, TOP_K_FIRST = 1, 2
"""Bits of `SampleBatch.orders`: divide by the temperature before the cuts; cut by top-k before top-p."""


@dataclass(frozen=True)
class SampleBatch:
    """The choices to make from P rows of logits: tokens to sample from the first S, targets to look up in the others.

    Attributes:
        temperature, top_p: [S] fp32.
        top_k: [S] int64, 0 keeps all tokens.
        orders: [S] uint8, `Sampling.order` as the bits `TEMPERATURE_FIRST` and `TOP_K_FIRST`.
        penalty_ids, penalty_values: ragged over rows; `penalty_values` (fp32) are subtracted from the logits of
            `penalty_ids` (int64); infinity bans a token. An id occurs at most once per row.
        penalty_starts: row s's penalties are penalty_starts[s]:penalty_starts[s + 1]; [S + 1].
        noise_keys: [S] uint64, the Philox key of the row's (run seed, conversation, repeat).
        turns, steps: [S] int64, the turn, and the token's position in the reply.
        min_p_cutoffs: [S] fp64, the `min_p` cut: a token is dropped if its logit minus the row's largest logit, both
            after the penalties, is less than this; minus infinity drops none.
        target_ids: [P - S] int64, the tokens whose log-probabilities are looked up.
    """

    temperature: FloatArray
    top_p: FloatArray
    top_k: IntArray
    orders: npt.NDArray[np.uint8]
    penalty_ids: IntArray
    penalty_values: FloatArray
    penalty_starts: IntArray
    noise_keys: npt.NDArray[np.uint64]
    turns: IntArray
    steps: IntArray
    min_p_cutoffs: npt.NDArray[np.float64]
    target_ids: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @property
    def num_sampled(self) -> int:
        """S, rows to sample from."""
        return len(self.temperature)

    @property
    def num_rows(self) -> int:
        """P, all rows."""
        return self.num_sampled + len(self.target_ids)

    @property
    def arrays(self) -> list[npt.NDArray[Any]]:
        """All arrays in the order of the attributes."""
        return [getattr(self, field.name) for field in fields(self)]

    def check(self, num_rows: int, vocab_size: int) -> None:
        """Raise `ValueError` unless this batch fits logits [num_rows, vocab_size]."""
        if num_rows != self.num_rows:
            raise ValueError(f"{self.num_rows} rows of logits are needed, got {num_rows}")
        for ids in (self.penalty_ids, self.target_ids):
            if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
                raise ValueError(f"a penalised or target token is not in the vocabulary of {vocab_size}")


@dataclass(frozen=True)
class Choices:
    """One token for each of P rows.

    Attributes:
        tokens: [P] int64. For a sampled row the chosen token, or -1 if its logits contain NaN or +infinity or every
            token is banned. For a row with a target token the likeliest token, the smallest id among equals.
        logprobs: [P] fp32, natural-log probability of the chosen or target token under the model's own distribution:
            softmax of the logits, before penalties and temperature.
    """

    tokens: IntArray
    logprobs: FloatArray


class StatePool(Protocol):
    """A fixed number of state slots that `Model.step` advances in place. Their initial content is undefined."""

    @property
    def capacity(self) -> int: ...

    def clear(self, slot: int) -> None:
        """Set `slot` to the zero state."""
        ...

    def copy(self, source: int, target: int) -> None:
        """Copy the state in `source` to `target`."""
        ...

    def read(self, slots: Sequence[int]) -> State:
        """A copy of the states in `slots`."""
        ...

    def write(self, slots: Sequence[int], state: State) -> None:
        """Copy `state` into `slots`.

        Raises:
            CheckpointError: the state does not fit this model.
        """
        ...


@runtime_checkable
class Model(Protocol):
    """A language model shared by many sequences. Use it from one thread at a time."""

    @property
    def spec(self) -> ModelSpec: ...

    def make_pool(self, capacity: int) -> StatePool:
        """Allocate states for `capacity` sequences."""
        ...

    def step(self, batch: RaggedBatch, pool: StatePool) -> Tensor:
        """Read the batch's tokens, advancing its slots of `pool` in place.

        Returns:
            Logits of the rows `batch.outputs`, fp32, [P, vocab_size]. Valid until the next call.
        """
        ...

    def choose(self, logits: Tensor, batch: SampleBatch) -> Choices:
        """Sample tokens, and look up target tokens, in `logits` [P, vocab_size], which are not changed.

        A row's result depends on that row only. On a GPU a step waits for the device here, once.

        Raises:
            ValueError: the number of rows is not that of `batch`, or a token is outside the vocabulary.
        """
        ...

    def forward(
        self, tokens: Sequence[Sequence[int]], state: State | None = None, every_token: bool = False
    ) -> tuple[Tensor, State]:
        """Read B token lists after `state` (None: zero states), which is not changed.

        Returns:
            Logits, fp32, and the new state. Logits are [B, vocab_size], after the last token of each list; with
            `every_token` they are [sum of lengths, vocab_size], after every token of the first list, then of the second
            and so on.

        Raises:
            ValueError: an empty list, a token id outside the vocabulary, or a state of another batch size.
        """
        ...
