"""The operations that the network is written in, and what each promises.

`Operations` is the whole interface between `model/rwkv7.py` and the arithmetic. `reference.py` says each operation
in plain torch and is the truth; `cpu.py` and `cuda.py` do the same faster. An array is whatever the implementation
likes (a torch tensor, a native buffer): the network only hands it from one operation to the next. R is the number
of token rows of the ragged batch, C the width, H the heads, N the head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch

from rwkvbatch.model.base import Choices, RaggedBatch, SampleBatch, StatePool

Array = Any
"""An implementation's own array of activations, or its packed form of a weight."""

Activation = Literal["none", "tanh", "sigmoid", "decay", "relu_squared"]
"""The end of a linear layer. `decay` is exp(-exp(-1/2) sigmoid(x)), RWKV-7's per-channel decay; `relu_squared` is
max(x, 0)^2."""

ShiftKind = Literal["att", "ffn"]


class Product(NamedTuple):
    """One linear layer at work: y = activation(x W^T + bias), and what is done with it.

    Attributes:
        x: [R, in].
        layer: what `linear_layer` returned.
        add: the result is add + y; its memory may be used again for the result.
        blend: a pair (start, target); the result is start + (target - start) * y.
    """

    x: Array
    layer: Array
    add: Array | None = None
    blend: tuple[Array, Array] | None = None


class StepOperations(Protocol):
    """What the network is written in. Every operation computes a row from that row and its own sequence alone.

    `step` is what `Operations.begin` returned.
    """

    def embed(self, step: Array, table: Array, norm: tuple[Array, Array]) -> Array:
        """layer_norm(table[tokens]); [R, C]."""
        ...

    def shift_mix(
        self, step: Array, kind: ShiftKind, layer: int, x: Array, norm: tuple[Array, Array], mix: Array
    ) -> Sequence[Array]:
        """xn + (p - xn) * mix[m] for each of M mixes; M arrays [R, C].

        xn = layer_norm(x, eps 1e-5); p is the previous row's xn of the same sequence, for its first row the one
        that the state carries; afterwards the state carries the last row's xn.
        """
        ...

    def linears(self, products: Sequence[Product]) -> Sequence[Array]:
        """Linear layers that do not need each other's results; one array [R, out] for each."""
        ...

    def wkv7(
        self,
        step: Array,
        layer: int,
        r: Array,
        w: Array,
        k: Array,
        v: Array,
        a: Array,
        g: Array,
        k_k: Array,
        k_a: Array,
        r_k: Array,
        group_norm: tuple[Array, Array],
    ) -> Array:
        """The recurrence of one layer with everything that belongs to a head; [R, C].

        Per head and row, in sequence order:
            kk = normalize(k * k_k);  k = k * (1 + (a - 1) * k_a)
            S = S diag(w) - (S kk)(kk * a)^T + v k^T;  y = S r
            y = group_norm(y, eps 64e-5) + (sum r * k * r_k) v;  result = y * g
        normalize divides by max(norm, 1e-12). S is carried by the state.
        """
        ...

    def head(self, step: Array, x: Array, norm: tuple[Array, Array], layer: Array) -> torch.Tensor:
        """The linear layer of layer_norm(x), for the step's output rows; fp32 torch tensor [P, vocab]."""
        ...


class Operations(StepOperations, Protocol):
    """All that a backend does: it keeps weights and states, runs steps and chooses tokens.

    Attributes:
        bitwise: see `ModelSpec`.
        in_torch: whether it computes with torch, whose settings are then set around every call, and trusts the tokens,
            which are then checked. Others are called directly: what Python does between two steps takes five to ten
            times as long as usual, since the weights have gone through all caches meanwhile.
    """

    name: str
    bitwise: bool
    device: str
    in_torch: bool

    # Weights, once at load

    def vector(self, weight: torch.Tensor) -> Array:
        """Keep a small weight (a norm, a bias, mixing factors); fp32 arithmetic on its exact values."""
        ...

    def linear_layer(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        activation: Activation = "none",
        *,
        large: bool = False,
    ) -> Array:
        """Keep a linear layer: its weight [out, in], packed as the implementation likes, its bias and its end.

        `large` marks the matrices that hold nearly all weights. Operations that were told to round those to int8 do
        so here (`ops/int8.py`); to others it says nothing.
        """
        ...

    def table(self, weight: torch.Tensor) -> Array:
        """Keep an embedding table [vocab, C]."""
        ...

    def make_pool(self, capacity: int, num_layers: int, num_heads: int, head_size: int) -> StatePool:
        """State slots for `capacity` sequences."""
        ...

    def begin(self, batch: RaggedBatch, pool: StatePool) -> Array:
        """Prepare one ragged batch; what it returns is `step` of the operations."""
        ...

    # Choosing tokens

    def choose(self, logits: torch.Tensor, batch: SampleBatch) -> Choices:
        """See `Model.choose`, and `reference.choose` for the definition."""
        ...
