"""The training loop: batches, schedule, optimiser groups, checkpoints that resume, a log."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tools.demo.corpus import Tokens, batch
from tools.demo.network import Network, Shape, parameter_count


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the trained weights, besides the corpus and the network's shape."""

    steps: int = 2000
    warmup_steps: int = 40
    decay_share: float = 0.5
    learning_rate: float = 2e-3
    last_learning_rate: float = 2e-5
    weight_decay: float = 0.01
    clip: float = 1.0
    rows: int = 18
    length: int = 448
    averaged: int = 5
    smoothing: float = 1e-3
    seed: int = 7

    def rate_at(self, step: int) -> float:
        """Learning rate: linear warm-up, flat, then half a cosine over the last `decay_share` of steps."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        start = self.steps * (1 - self.decay_share)
        done = min(1.0, max(0.0, (step - start) / max(1.0, self.steps - start)))
        return (
            self.last_learning_rate
            + (self.learning_rate - self.last_learning_rate) * (1 + math.cos(math.pi * done)) / 2
        )


@dataclass(frozen=True)
class Progress:
    """One line of the training log."""

    step: int
    loss: float
    reply_accuracy: float
    learning_rate: float
    tokens: int
    elapsed_s: float


def as_tensors(rows: list[Tokens], length: int) -> tuple[Tensor, Tensor]:
    """Ids and loss weights, padded at the end with token 0 at weight 0; both of shape (rows, length)."""
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    weights = torch.zeros(len(rows), length)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        weights[i, : len(row.ids)] = torch.tensor(row.weights)
    return ids, weights


def weighted_loss(logits: Tensor, ids: Tensor, weights: Tensor, smoothing: float = 0.0) -> tuple[Tensor, float]:
    """Mean cross entropy under `weights`, and the share of full-weight tokens that the argmax gets right.

    Args:
        smoothing: share of the target's probability that is spread over the whole vocabulary (label smoothing;
            Szegedy et al. 2016).
    """
    flat, target, weight = logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), weights[:, 1:].flatten()
    losses = cross_entropy(flat, target, reduction="none", label_smoothing=smoothing)
    reply = weight == 1.0
    right = float((flat.detach().argmax(-1) == target)[reply].float().mean())
    return (losses * weight).sum() / weight.sum(), right


@dataclass(frozen=True)
class Optimisers:
    """Muon for the square and wide matrices of the layers, AdamW for everything else, under one learning rate.

    Muon's updates are scaled to the size that AdamW's have, so that the rate means the same to both.
    """

    muon: torch.optim.Muon
    adam: torch.optim.AdamW

    def set_rate(self, rate: float) -> None:
        """The rate of the next step; `att.w0` moves at twice that."""
        for group in (*self.muon.param_groups, *self.adam.param_groups):
            group["lr"] = rate * group.get("scale", 1.0)

    def step(self) -> None:
        """Moves all parameters along their gradients, and forgets these."""
        for optimiser in (self.muon, self.adam):
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs."""
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Goes on from `state_dict()`."""
        self.muon.load_state_dict(saved["muon"])
        self.adam.load_state_dict(saved["adam"])


def optimisers_of(network: Network, recipe: Recipe) -> Optimisers:
    """The optimisers with their groups: decay only on matrices called `weight`, twice the rate for `att.w0`."""
    matrices, decayed, plain, fast = [], [], [], []
    for name, parameter in network.named_parameters():
        if name.endswith("att.w0"):
            fast.append(parameter)
        elif name.endswith(".weight") and parameter.dim() == 2:
            (matrices if name.startswith("blocks.") else decayed).append(parameter)
        else:
            plain.append(parameter)
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay, "scale": 1.0},
        {"params": plain, "weight_decay": 0.0, "scale": 1.0},
        {"params": fast, "weight_decay": 0.0, "scale": 2.0},
    ]
    rate = recipe.learning_rate
    adam = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99), eps=1e-18)
    muon = torch.optim.Muon(
        matrices, lr=rate, weight_decay=recipe.weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    return Optimisers(muon, adam)


def averaged(paths: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of several saved weights: much of what a long fall of the learning rate gives, at no cost."""
    saved = [torch.load(path, map_location="cpu", weights_only=True) for path in paths]
    return {name: torch.stack([weights[name] for weights in saved]).mean(0) for name in saved[0]}


class Trainer:
    """A network on its way from initial values to `recipe.steps`; `path` holds all that resuming needs."""

    def __init__(self, shape: Shape, recipe: Recipe, path: Path, device: str) -> None:
        self.recipe, self.path, self.device = recipe, path, device
        torch.manual_seed(recipe.seed)
        self.network = Network(shape).to(device)
        self.optimisers = optimisers_of(self.network, recipe)
        self.step = 0
        self.log: list[Progress] = []
        if path.exists():
            saved = torch.load(path, map_location=device, weights_only=True)
            self.network.load_state_dict(saved["network"])
            self.optimisers.load_state_dict(saved["optimisers"])
            self.step = int(saved["step"])
            self.log = [Progress(**line) for line in json.loads(saved["log"])]

    def compile(self) -> None:
        """Fuses each half layer with torch.compile: twice the speed on a CPU after minutes of compiling."""
        for block in self.network.blocks:
            block.att.compile(dynamic=False)  # type: ignore[union-attr]
            block.ffn.compile(dynamic=False)  # type: ignore[union-attr]

    def save(self) -> None:
        """Replaces the checkpoint in one rename."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        torch.save(
            {
                "network": self.network.state_dict(),
                "optimisers": self.optimisers.state_dict(),
                "step": self.step,
                "log": json.dumps([asdict(line) for line in self.log]),
            },
            part,
        )
        part.replace(self.path)
        weights = self.path.with_name(f"{self.path.stem}-{self.step:06d}.weights")
        torch.save({name: value.cpu() for name, value in self.network.state_dict().items()}, weights)
        for old in self.kept_weights()[: -self.recipe.averaged]:
            old.unlink()

    def kept_weights(self) -> list[Path]:
        """The weights of the last saves, oldest first."""
        return sorted(self.path.parent.glob(f"{self.path.stem}-*.weights"))

    def one_step(self) -> tuple[float, float, int]:
        """One update; returns loss, accuracy on reply tokens and the number of tokens read."""
        rows = batch(self.step, self.recipe.seed, self.recipe.rows, self.recipe.length)
        ids, weights = (x.to(self.device) for x in as_tensors(rows, self.recipe.length))
        self.optimisers.set_rate(self.recipe.rate_at(self.step))
        logits, _ = self.network(ids)
        loss, right = weighted_loss(logits, ids, weights, self.recipe.smoothing)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        self.optimisers.step()
        self.step += 1
        return float(loss.detach()), right, sum(len(row.ids) for row in rows)

    def run(self, report: Callable[[Progress], None], every: int = 10, save_every: int = 25) -> None:
        """Trains to the end of the recipe, saving now and then."""
        before = self.log[-1] if self.log else Progress(0, 0.0, 0.0, 0.0, 0, 0.0)
        started, tokens = time.monotonic() - before.elapsed_s, before.tokens
        losses: list[float] = []
        rights: list[float] = []
        while self.step < self.recipe.steps:
            loss, right, read = self.one_step()
            tokens += read
            losses.append(loss)
            rights.append(right)
            if self.step % every == 0 or self.step == self.recipe.steps:
                line = Progress(
                    self.step,
                    sum(losses) / len(losses),
                    sum(rights) / len(rights),
                    self.recipe.rate_at(self.step - 1),
                    tokens,
                    time.monotonic() - started,
                )
                self.log.append(line)
                losses, rights = [], []
                report(line)
            if self.step % save_every == 0:
                self.save()
        self.save()


def describe(network: Network) -> str:
    """One line about size."""
    return f"{parameter_count(network):,} parameters, {network.shape.layers} layers x {network.shape.width}"
