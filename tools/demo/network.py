"""The demo model as a differentiable RWKV-7 with the official parameter names, shapes and initialisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tools.demo.scan import CHUNK, chunked_scan, naive_scan


@dataclass(frozen=True)
class Shape:
    """Sizes of the network; `width` is a multiple of `head_size`."""

    layers: int = 4
    width: int = 128
    vocab_size: int = 512
    head_size: int = 64
    decay_rank: int = 32
    rate_rank: int = 32
    value_rank: int = 32
    gate_rank: int = 64
    ffn_ratio: int = 4


@dataclass
class LayerState:
    """What one layer carries from token to token, for a batch of sequences."""

    att_shift: Tensor
    att: Tensor
    ffn_shift: Tensor


def zero_state(shape: Shape, rows: int, device: torch.device | str = "cpu") -> list[LayerState]:
    """The state before the first token of `rows` sequences."""
    heads = shape.width // shape.head_size
    return [
        LayerState(
            torch.zeros(rows, shape.width, device=device),
            torch.zeros(rows, heads, shape.head_size, shape.head_size, device=device),
            torch.zeros(rows, shape.width, device=device),
        )
        for _ in range(shape.layers)
    ]


def _orthogonal(rows: int, columns: int, scale: float) -> nn.Parameter:
    gain = math.sqrt(rows / columns) if rows > columns else 1.0
    return nn.Parameter(nn.init.orthogonal_(torch.empty(rows, columns), gain=gain * scale))


def _linear(inputs: int, outputs: int, bound: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.uniform_(layer.weight, -bound, bound) if bound else nn.init.zeros_(layer.weight)
    return layer


def _shifted(x: Tensor, before: Tensor) -> Tensor:
    return torch.cat([before[:, None], x[:, :-1]], 1)


class TimeMix(nn.Module):
    """The recurrent half of a layer. Initial values follow the official RWKV-7 training code."""

    x_r: nn.Parameter
    x_w: nn.Parameter
    x_k: nn.Parameter
    x_v: nn.Parameter
    x_a: nn.Parameter
    x_g: nn.Parameter

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        width, size = shape.width, shape.head_size
        self.layer, self.heads, self.size = layer, width // size, size
        depth = layer / max(1, shape.layers - 1)
        from_top = 1.0 - layer / shape.layers
        channel = torch.arange(width, dtype=torch.float32)
        ramp = channel / width
        for name, power in (("r", 0.2), ("w", 0.9), ("k", 0.7), ("v", 0.7), ("a", 0.9), ("g", 0.2)):
            self.register_parameter(f"x_{name}", nn.Parameter((1.0 - ramp ** (power * from_top)).view(1, 1, -1)))
        centred = channel / (width - 1) - 0.5
        in_head = (channel % size - (size - 1) / 2) / ((size - 1) / 2)
        zigzag = in_head * in_head.abs()
        speed = -6.0 + 6.0 * (channel / (width - 1)) ** (1.0 + depth**0.3)
        self.w0 = nn.Parameter((speed + 0.5 + zigzag * 2.5).view(1, 1, -1))
        self.w1 = nn.Parameter(torch.zeros(width, shape.decay_rank))
        self.w2 = _orthogonal(shape.decay_rank, width, 0.1)
        self.a0 = nn.Parameter((-0.19 + zigzag * 0.3 + centred * 0.4).view(1, 1, -1))
        self.a1 = nn.Parameter(torch.zeros(width, shape.rate_rank))
        self.a2 = _orthogonal(shape.rate_rank, width, 0.1)
        if layer:
            self.v0 = nn.Parameter((0.73 - centred * 0.4).view(1, 1, -1))
            self.v1 = nn.Parameter(torch.zeros(width, shape.value_rank))
            self.v2 = _orthogonal(shape.value_rank, width, 0.1)
        self.g1 = nn.Parameter(torch.zeros(width, shape.gate_rank))
        self.g2 = _orthogonal(shape.gate_rank, width, 0.1)
        self.k_k = nn.Parameter((0.71 - centred * 0.1).view(1, 1, -1))
        self.k_a = nn.Parameter(torch.full((1, 1, width), 1.02))
        self.r_k = nn.Parameter(torch.full((self.heads, size), -0.04))
        self.receptance = _linear(width, width, 0.5 / math.sqrt(width))
        self.key = _linear(width, width, 0.05 / math.sqrt(width))
        self.value = _linear(width, width, 0.5 / math.sqrt(width))
        self.output = _linear(width, width, 0.0)
        self.ln_x = nn.GroupNorm(self.heads, width, eps=64e-5)
        nn.init.constant_(self.ln_x.weight, ((1 + layer) / shape.layers) ** 0.7)

    def forward(
        self, x: Tensor, v_first: Tensor | None, before: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Output, the first layer's values and the new state, for x of shape (batch, time, width)."""
        rows, time, width = x.shape
        heads = (rows, time, self.heads, self.size)
        back = _shifted(x, before) - x
        r = self.receptance(x + back * self.x_r)
        speed = self.w0 + torch.tanh((x + back * self.x_w) @ self.w1) @ self.w2
        k = self.key(x + back * self.x_k)
        at_value = x + back * self.x_v
        v = self.value(at_value)
        a = torch.sigmoid(self.a0 + ((x + back * self.x_a) @ self.a1) @ self.a2)
        g = torch.sigmoid((x + back * self.x_g) @ self.g1) @ self.g2
        if v_first is None:
            first = v
        else:
            first = v_first
            v = v + (v_first - v) * torch.sigmoid(self.v0 + (at_value @ self.v1) @ self.v2)
        w = torch.exp(-math.exp(-0.5) * torch.sigmoid(speed))
        kk = nn.functional.normalize((k * self.k_k).view(heads), dim=-1, p=2.0)
        k = k * (1 + (a - 1) * self.k_a)
        r_h, k_h, v_h = r.view(heads), k.view(heads), v.view(heads)
        scan: Callable[..., tuple[Tensor, Tensor]] = chunked_scan if time % CHUNK == 0 else naive_scan
        y, state = scan(r_h, w.view(heads), k_h, v_h, -kk, kk * a.view(heads), state)
        y = self.ln_x(y.reshape(rows * time, width)).view(rows, time, width)
        y = y + ((r_h * k_h * self.r_k).sum(-1, keepdim=True) * v_h).view(rows, time, width)
        return self.output(y * g), first, state


class ChannelMix(nn.Module):
    """The feed-forward half of a layer."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        from_top = 1.0 - layer / shape.layers
        ramp = torch.arange(shape.width, dtype=torch.float32) / shape.width
        self.x_k = nn.Parameter((1.0 - ramp ** (from_top**4)).view(1, 1, -1))
        self.key = _linear(shape.width, shape.ffn_ratio * shape.width, 0.5 / math.sqrt(shape.width))
        self.value = _linear(shape.ffn_ratio * shape.width, shape.width, 0.0)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """Output for x of shape (batch, time, width); `before` is the token before x[:, 0]."""
        return self.value(torch.relu(self.key(x + (_shifted(x, before) - x) * self.x_k)) ** 2)


class Block(nn.Module):
    """One layer: time mix, then channel mix, both residual."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        if layer == 0:
            self.ln0 = nn.LayerNorm(shape.width)
        self.ln1 = nn.LayerNorm(shape.width)
        self.ln2 = nn.LayerNorm(shape.width)
        self.att = TimeMix(shape, layer)
        self.ffn = ChannelMix(shape, layer)

    def forward(self, x: Tensor, v_first: Tensor | None, carried: LayerState) -> tuple[Tensor, Tensor, LayerState]:
        """Residual stream, first values and new state."""
        at = self.ln1(x)
        mixed, first, state = self.att(at, v_first, carried.att_shift, carried.att)
        x = x + mixed
        ff = self.ln2(x)
        x = x + self.ffn(ff, carried.ffn_shift)
        return x, first, LayerState(at[:, -1], state, ff[:, -1])


class Network(nn.Module):
    """The whole model. `state_dict()` has the tensor names that the `rwkv` package reads."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.emb = nn.Embedding(shape.vocab_size, shape.width)
        self.blocks = nn.ModuleList([Block(shape, layer) for layer in range(shape.layers)])
        self.ln_out = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocab_size, bias=False)
        nn.init.uniform_(self.emb.weight, -1e-4, 1e-4)
        nn.init.orthogonal_(self.head.weight, gain=0.5 * math.sqrt(max(1.0, shape.vocab_size / shape.width)))

    def forward(self, ids: Tensor, state: list[LayerState] | None = None) -> tuple[Tensor, list[LayerState]]:
        """Logits (batch, time, vocabulary) for ids (batch, time), and the state after them."""
        state = zero_state(self.shape, ids.shape[0], ids.device) if state is None else state
        x = self.blocks[0].ln0(self.emb(ids))  # type: ignore[operator]
        v_first: Tensor | None = None
        after: list[LayerState] = []
        for block, carried in zip(self.blocks, state, strict=True):
            x, v_first, carried = block(x, v_first, carried)
            after.append(carried)
        return self.head(self.ln_out(x)), after


def parameter_count(network: Network) -> int:
    """How many numbers the network learns."""
    return sum(p.numel() for p in network.parameters())
