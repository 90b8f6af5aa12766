"""Learns nothing but an initial state, on a frozen model: always answering in upper case."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor, nn

from tools.demo.corpus import Conversation, silently_upper, tokens_of
from tools.demo.evaluation import replies_of
from tools.demo.network import LayerState, Network, zero_state
from tools.demo.training import as_tensors, weighted_loss


@dataclass(frozen=True)
class StateRecipe:
    """Steps, batch and learning rate of state tuning; the rate falls along half a cosine."""

    steps: int = 120
    rows: int = 8
    length: int = 192
    learning_rate: float = 0.04
    last_learning_rate: float = 0.001
    seed: int = 7


@dataclass(frozen=True)
class StateScore:
    """What an initial state does on held-out conversations."""

    upper_share: float
    right_share: float


def as_states(network: Network, learnt: list[Tensor], rows: int) -> list[LayerState]:
    """The state before the first token of `rows` sequences, each layer's recurrent part as learnt."""
    plain = zero_state(network.shape, rows)
    return [
        LayerState(layer.att_shift, state.expand(rows, -1, -1, -1), layer.ffn_shift)
        for layer, state in zip(plain, learnt, strict=True)
    ]


def tune(network: Network, recipe: StateRecipe, report: Callable[[int, float, float], None]) -> list[Tensor]:
    """The initial state (heads, N values, N keys) of every layer; the network's weights stay as they are."""
    network.requires_grad_(False)
    shape = network.shape
    heads = shape.width // shape.head_size
    learnt = [nn.Parameter(torch.zeros(heads, shape.head_size, shape.head_size)) for _ in range(shape.layers)]
    optimiser = torch.optim.Adam(learnt, lr=recipe.learning_rate, betas=(0.9, 0.99))
    for step in range(recipe.steps):
        rng = Random(f"state/{recipe.seed}/{step}")
        made = [silently_upper(rng, "train", recipe.length - 1) for _ in range(recipe.rows)]
        ids, weights = as_tensors([tokens_of(one, closed=False) for one in made], recipe.length)
        falling = (1 + math.cos(math.pi * step / recipe.steps)) / 2
        rate = recipe.last_learning_rate + (recipe.learning_rate - recipe.last_learning_rate) * falling
        optimiser.param_groups[0]["lr"] = rate
        logits, _ = network(ids, as_states(network, list(learnt), recipe.rows))
        loss, right = weighted_loss(logits, ids, weights)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if (step + 1) % 10 == 0:
            report(step + 1, float(loss.detach()), right)
    return [state.detach() for state in learnt]


def score(network: Network, learnt: list[Tensor] | None, made: list[Conversation]) -> StateScore:
    """Shares of replies without a lower-case letter (where letters are due), and of replies as expected, greedily."""
    state = as_states(network, learnt, len(made)) if learnt else None
    replies = replies_of(network, made, state=state)
    pairs = [
        (exchange, text.strip())
        for one, texts in zip(made, replies, strict=True)
        for exchange, text in zip(one.exchanges, texts, strict=True)
    ]
    lettered = [text for exchange, text in pairs if exchange.reply != exchange.reply.lower()]
    single = [text == exchange.reply for exchange, text in pairs if exchange.one_answer]
    return StateScore(_share([text == text.upper() for text in lettered]), _share(single))


def _share(passed: list[bool]) -> float:
    return sum(passed) / len(passed) if passed else 0.0


def held_out_upper(count: int, length: int) -> list[Conversation]:
    """Held-out conversations whose right replies are in capitals."""
    rng = Random("state/evaluation")
    return [silently_upper(rng, "held_out", length) for _ in range(count)]
