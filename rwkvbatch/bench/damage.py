"""What a rounding, or another checkpoint, does to the next-token distributions on real texts.

Both models read the same tokens of every document, each from an empty state, with token 0 before it. With p the
reference's distribution after a position and q the other's, the divergence is KL(p || q) = sum p (ln p - ln q) in nats,
in fp64 from the logits (Kullback and Leibler, 1951); 0 means that nothing changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from rwkvbatch.errors import CheckpointError, UsageError
from rwkvbatch.model.base import Model, RaggedBatch
from rwkvbatch.script.records import Conversation
from rwkvbatch.stats.clustered import MeanEstimate, clustered_mean

CHUNK = 64
"""Tokens that are read in one step: their logits of both models are in memory."""

TAIL = 0.99

Say = Callable[[str], None]
Encode = Callable[[str], Sequence[int]]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over tokens with its 95 % interval, clustered by document; no interval with fewer than two documents."""

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, found: MeanEstimate, transform: Callable[[float], float] = float) -> Estimate:
        low, high = found.interval()
        if math.isnan(low):
            return cls(transform(found.mean), None, None)
        return cls(transform(found.mean), transform(low), transform(high))


@dataclass(frozen=True)
class Worst:
    """The token with the greatest divergence: its document's id, its place among the document's tokens, from 0."""

    divergence: float
    document: str
    position: int


@dataclass(frozen=True)
class Damage:
    """The comparison of two models on texts.

    Attributes:
        reference, other: name, strategy and precision of each, in words.
        divergence: mean of KL(reference || other), nats a token.
        divergence_tail: its 99th percentile.
        same_token: share of tokens before which both find the same token the likeliest.
        perplexity_ratio: the other's perplexity over the reference's.
        reference_perplexity, other_perplexity: over all tokens.
    """

    reference: str
    other: str
    num_documents: int
    num_tokens: int
    divergence: Estimate
    divergence_tail: float
    worst: Worst
    same_token: Estimate
    perplexity_ratio: Estimate
    reference_perplexity: float
    other_perplexity: float


def damage(
    reference: Model, other: Model, documents: Sequence[Conversation], encode: Encode, say: Say = lambda _: None
) -> Damage:
    """Compare two models on documents (`script.documents.read_documents`).

    A document's prompt, if it has one, is read and not counted.

    Raises:
        UsageError: the models have vocabularies of different sizes, or the documents have no token.
        CheckpointError: logits that are not finite.
    """
    sizes = reference.spec.vocab_size, other.spec.vocab_size
    if sizes[0] != sizes[1]:
        raise UsageError(f"the models have vocabularies of {sizes[0]:,} and {sizes[1]:,} tokens and cannot be compared")
    parts: list[FloatArray] = []
    for number, document in enumerate(documents):
        turn = document.turns[0]
        before, text = list(encode(turn.user)), list(encode(turn.reference or ""))
        say(f"document {number + 1:,} of {len(documents):,}, {len(text):,} tokens")
        parts.append(_of_document(reference, other, [0, *before, *text], len(text)))
    lengths = [part.shape[1] for part in parts]
    if not sum(lengths):
        raise UsageError("the documents have no tokens", hint="give texts that are not empty")
    divergences, same, theirs, mine = np.concatenate(parts, axis=1)
    clusters = np.repeat(np.arange(len(parts)), lengths)
    worst = int(divergences.argmax())
    starts = np.cumsum([0, *lengths])
    return Damage(
        reference=reference.spec.in_words,
        other=other.spec.in_words,
        num_documents=len(documents),
        num_tokens=len(divergences),
        divergence=Estimate.of(clustered_mean(divergences, clusters)),
        divergence_tail=float(np.quantile(divergences, TAIL)),
        worst=Worst(float(divergences[worst]), documents[clusters[worst]].id, worst - int(starts[clusters[worst]])),
        same_token=Estimate.of(clustered_mean(same, clusters)),
        perplexity_ratio=Estimate.of(clustered_mean(mine - theirs, clusters), math.exp),
        reference_perplexity=math.exp(theirs.mean()),
        other_perplexity=math.exp(mine.mean()),
    )


def _of_document(reference: Model, other: Model, tokens: Sequence[int], counted: int) -> FloatArray:
    """Divergence, same token (0 or 1), and both models' nll in nats, of the last `counted` tokens: [4, counted]."""
    pools = [model.make_pool(1) for model in (reference, other)]
    for pool in pools:
        pool.clear(0)
    found: list[FloatArray] = []
    first = len(tokens) - counted  # the first token that counts; the one before it predicts it
    for begin in range(0, len(tokens) - 1, CHUNK):
        read, following = tokens[begin : begin + CHUNK], tokens[begin + 1 : begin + CHUNK + 1]
        batch = RaggedBatch.of([read], [0], every_token=True)
        logits = [
            model.step(batch, pool).detach().to("cpu", torch.float64)
            for model, pool in zip((reference, other), pools, strict=True)
        ]
        kept = slice(max(0, first - 1 - begin), len(following))
        if kept.start < kept.stop:
            theirs, mine = (each[kept] for each in logits)
            found.append(_of_rows(theirs, mine, torch.tensor(following[kept]), (reference, other)))
    return np.concatenate(found, axis=1) if found else np.empty((4, 0))


def _of_rows(
    theirs: torch.Tensor, mine: torch.Tensor, following: torch.Tensor, models: tuple[Model, Model]
) -> FloatArray:
    for logits, model in zip((theirs, mine), models, strict=True):
        if not bool(torch.isfinite(logits).all()):
            raise CheckpointError(
                f"{model.spec.in_words} gives logits that are not finite",
                path=model.spec.path,
                hint="rwkvbatch model verify compares it with the reference operations",
            )
    p, q = theirs.log_softmax(1), mine.log_softmax(1)
    # Rounding may leave a tiny negative number where the two are the same.
    divergence = (p.exp() * (p - q)).sum(1).clamp(min=0)
    same = (theirs.argmax(1) == mine.argmax(1)).double()
    nll = [-each.gather(1, following[:, None]).squeeze(1) for each in (p, q)]
    return torch.stack([divergence, same, *nll]).numpy()
