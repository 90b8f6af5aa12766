"""`Operations`: the interface between the network (`model/network/rwkv7.py`) and the arithmetic.

`reference.py` is the reference implementation, in plain torch; `cpu.py` and `cuda.py` compute the same faster. Each
implementation has its own array type (a torch tensor, a native buffer), which the network only passes on. R is the
number of token rows of the ragged batch, C the width, H the number of heads, N the head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from rwkvbatch.model.base import Choices, RaggedBatch, SampleBatch, StatePool

Array = Any
"""An implementation's own array of activations, or its packed form of a weight."""

Activation = Literal["none", "tanh", "sigmoid", "decay", "relu_squared"]
"""The function at the end of a linear layer. `decay` is exp(-exp(-1/2) sigmoid(x)), RWKV-7's per-channel decay;
`relu_squared` is max(x, 0)^2."""

ShiftKind = Literal["att", "ffn"]

Rounding = Literal["int8", "w8a8", "int4"]
"""How matrices are rounded, in groups of inputs. `int8`: weights to 8 bits. `w8a8`: weights and inputs to 8 bits.
`int4`: weights to 4 bits and inputs to 8 bits."""

ROUNDING_RULES = 3
"""Version of the logits with these roundings: incremented when a rounding or the order of its arithmetic changes."""


def rounding_rules(dtype: str) -> dict[str, int]:
    """The rules that change the logits of a model in addition to its weights and `dtype`; none without rounding.

    They belong to everything that says whether two models answer the same: cells of a run, judges, served models.
    """
    return {"rounding_rules": ROUNDING_RULES} if dtype in get_args(Rounding) else {}


MatrixKind = Literal["large", "low_rank", "other"]
"""What a matrix is in the network. `large`: one of those that hold nearly all weights. `low_rank`: a factor of the
low-rank chains of the time mix. See `matrix_rounding`."""


def matrix_rounding(strategy: Rounding | None, kind: MatrixKind) -> Rounding | None:
    """The rounding of a matrix when the strategy rounds large ones as `strategy`; None for no rounding.

    With 4 bits the low-rank chains have 8: they are small, so 4 bits would save little. The choice is measured by
    `benchmarks/rounding_by_class.py`.
    """
    if strategy is None or kind == "other":
        return None
    return "w8a8" if kind == "low_rank" and strategy == "int4" else strategy


@dataclass(frozen=True)
class StoredRows:
    """The location of a matrix [outputs, inputs], in row-major order, in an open file, for backends that read files.

    `rounding`: as in `StoredBytes`; None for numbers of type `dtype`.
    """

    descriptor: int
    start: int
    dtype: torch.dtype
    rounding: str | None
    outputs: int
    inputs: int


class Product(NamedTuple):
    """One application of a linear layer, y = activation(x W^T + bias), and how y is combined
    with another array.

    Attributes:
        x: [R, in].
        layer: a result of `linear_layer`.
        add: the result is add + y, which may overwrite `add`.
        blend: a pair (start, target); the result is start + (target - start) * y.
        times: the result is times * y.

    At most one of `add`, `blend` and `times` is given.
    """

    x: Array
    layer: Array
    add: Array | None = None
    blend: tuple[Array, Array] | None = None
    times: Array | None = None


class HeadRows(NamedTuple):
    """The inputs of one layer's heads for each row of a step, [R, C] each."""

    r: Array
    w: Array
    k: Array
    v: Array
    a: Array
    g: Array


class HeadWeights(NamedTuple):
    """The vectors of one layer's heads, [C] each."""

    k_k: Array
    k_a: Array
    r_k: Array
    norm_weight: Array
    norm_bias: Array


class StepOperations(Protocol):
    """The operations of one step. Each computes a row from that row and its own sequence only.

    `step` is the result of `Operations.begin`.
    """

    def embed(self, step: Array, table: Array, norm: tuple[Array, Array], *, as_input: bool = False) -> Array:
        """layer_norm(table[tokens]); [R, C].

        Args:
            as_input: return an input of linear layers, in their precision, which is never overwritten. Without it, the
                result is the first term of the residual stream.
        """
        ...

    def shift_mix(
        self, step: Array, kind: ShiftKind, layer: int, x: Array, norm: tuple[Array, Array], mix: Array
    ) -> Sequence[Array]:
        """xn + (p - xn) * mix[m] for each of M mixes; M arrays [R, C].

        xn = layer_norm(x, eps 1e-5). p is xn of the sequence's previous row; for its first row, p comes from the state.
        The last row's xn is stored in the state.
        """
        ...

    def linears(self, products: Sequence[Product]) -> Sequence[Array]:
        """Independent linear layers; one array [R, out] for each."""
        ...

    def token_matrix(self, step: Array, table: Array, offset: Array, x: Array) -> Array:
        """x E for each row, E = table[token] + offset as a matrix [D, D]; [R, D].

        Args:
            table: [vocab, D * D], packed by `Operations.table`.
            offset: [R, D * D].
            x: [R, D].
        """
        ...

    def wkv7(self, step: Array, layer: int, rows: HeadRows, weights: HeadWeights) -> Array:
        """The recurrence of one layer and all other per-head arithmetic; [R, C].

        Per head and row, in sequence order:
            kk = normalize(k * k_k);  k = k * (1 + (a - 1) * k_a)
            S = S diag(w) - (S kk)(kk * a)^T + v k^T;  y = S r
            y = group_norm(y, eps 64e-5) + (sum r * k * r_k) v;  result = y * g
        normalize divides by max(norm, 1e-12). S is kept in the state.
        """
        ...

    def head(self, step: Array, x: Array, norm: tuple[Array, Array], layer: Array) -> Tensor:
        """The linear layer of layer_norm(x), for the step's output rows; fp32 torch tensor [P, vocab]."""
        ...


class Rwkv7Pool(StatePool, Protocol):
    """State slots of RWKV-7."""

    def with_initial(self, wkv: Tensor) -> StatePool:
        """The same slots, which `clear` sets to the matrices `wkv` [L, H, N, N] and zero shifts."""
        ...


class Operations(StepOperations, Protocol):
    """A backend: packs weights, allocates states, runs steps and chooses tokens.

    Attributes:
        bitwise: see `ModelSpec`.
        in_torch: whether it computes with torch. The model then sets torch's settings around every call and checks the
            token ids. Other backends are called directly: Python code between two steps takes five to ten times as long
            as usual, since reading the weights evicts it from the processor's caches.
    """

    name: str
    bitwise: bool
    device: str
    in_torch: bool

    # Weights, once at loading

    def vector(self, weight: Tensor) -> Array:
        """Pack a small weight (a norm, a bias, mixing factors); fp32 arithmetic on its exact values."""
        ...

    def linear_layer(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: Activation = "none",
        *,
        kind: MatrixKind = "other",
        sparse_inputs: bool = False,
    ) -> Array:
        """Pack a linear layer: weight [out, in], bias and activation.

        Args:
            kind: decides how the strategies `cpu int8`, `cpu w8a8` and `cpu int4` round it, see `matrix_rounding`.
            sparse_inputs: whether its inputs are mostly zero, as after relu squared. A backend may then pack the
                weights so that those of zero inputs are not read.
        """
        ...

    def table(self, weight: Tensor) -> Array:
        """Pack an embedding table [vocab, C]."""
        ...

    def make_pool(self, capacity: int, num_layers: int, num_heads: int, head_size: int) -> Rwkv7Pool:
        """State slots for `capacity` sequences."""
        ...

    def begin(self, batch: RaggedBatch, pool: StatePool) -> Array:
        """Prepare one ragged batch; the result is the `step` of the operations."""
        ...

    # Choosing tokens

    def choose(self, logits: Tensor, batch: SampleBatch) -> Choices:
        """See `Model.choose`, and `choosing.choose` for the definition."""
        ...
