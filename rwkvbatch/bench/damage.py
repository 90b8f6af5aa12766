"""What a rounding, or another checkpoint, does to the next-token distributions on real texts.

Both models read the same tokens of every text, each from an empty state. With p the
reference's distribution after a position and q the other's, the divergence is KL(p || q) = sum p (ln p - ln q) in nats,
in fp64 from the logits (Kullback and Leibler, 1951); 0 means that nothing changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from rwkvbatch.engine.request import END_OF_TEXT
from rwkvbatch.errors import CheckpointError, UsageError
from rwkvbatch.model.base import Model, RaggedBatch
from rwkvbatch.script.records import Conversation
from rwkvbatch.stats.clustered import MeanEstimate, clustered_mean

CHUNK = 64
"""Tokens that are read in one step: their logits of both models are in memory."""

TAIL = 0.99

MESSAGES = 10
"""About as many texts are named as they are read."""

Say = Callable[[str], None]
Encode = Callable[[str], Sequence[int]]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over tokens with its 95 % interval, clustered by text; no interval with fewer than two texts."""

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, found: MeanEstimate, transform: Callable[[float], float] = float, most: float = math.inf) -> Estimate:
        """The transformed estimate, whose values lie in [0, `most`]."""
        low, high = found.interval()
        if math.isnan(low):
            return cls(transform(found.mean), None, None)
        return cls(transform(found.mean), max(0.0, transform(low)), min(most, transform(high)))


@dataclass(frozen=True)
class Worst:
    """The token with the greatest divergence: its text's id, its place among those of the text that count, from 0."""

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


@dataclass(frozen=True)
class ScoredPart:
    """Tokens that are read, at least one, and those after them that count."""

    prefix: tuple[int, ...]
    scored: tuple[int, ...]


@dataclass(frozen=True)
class ScoredText:
    """A document or a dialogue, the unit of the intervals: its parts in order, of which each is read from the start.

    What consecutive parts have in common is read once.
    """

    id: str
    parts: tuple[ScoredPart, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens that count."""
        return sum(len(part.scored) for part in self.parts)


def texts_of_documents(documents: Sequence[Conversation], encode: Encode) -> list[ScoredText]:
    """Documents (`script.documents.read_documents`) after token 0; a document's prompt is read and does not count."""
    found: list[ScoredText] = []
    for document in documents:
        turn = document.turns[0]
        part = ScoredPart((END_OF_TEXT, *encode(turn.user)), tuple(encode(turn.reference or "")))
        found.append(ScoredText(document.id, (part,)))
    return found


def damage(reference: Model, other: Model, texts: Sequence[ScoredText], say: Say = lambda _: None) -> Damage:
    """Compare two models on texts.

    Raises:
        UsageError: the models have vocabularies of different sizes, or no token counts.
        CheckpointError: logits that are not finite.
    """
    sizes = reference.spec.vocab_size, other.spec.vocab_size
    if sizes[0] != sizes[1]:
        raise UsageError(f"the models have vocabularies of {sizes[0]:,} and {sizes[1]:,} tokens and cannot be compared")
    parts: list[FloatArray] = []
    for number, text in enumerate(texts):
        if number % max(1, len(texts) // MESSAGES) == 0:
            say(f"text {number + 1:,} of {len(texts):,}, {text.num_tokens:,} tokens")
        parts.append(_of_text((reference, other), text))
    lengths = [part.shape[1] for part in parts]
    if not sum(lengths):
        raise UsageError("the texts have no tokens that count", hint="give texts that are not empty")
    divergences, same, theirs, mine = np.concatenate(parts, axis=1)
    clusters = np.repeat(np.arange(len(parts)), lengths)
    worst = int(divergences.argmax())
    starts = np.cumsum([0, *lengths])
    return Damage(
        reference=reference.spec.in_words,
        other=other.spec.in_words,
        num_documents=len(texts),
        num_tokens=len(divergences),
        divergence=Estimate.of(clustered_mean(divergences, clusters)),
        divergence_tail=float(np.quantile(divergences, TAIL)),
        worst=Worst(float(divergences[worst]), texts[clusters[worst]].id, worst - int(starts[clusters[worst]])),
        same_token=Estimate.of(clustered_mean(same, clusters), most=1.0),
        perplexity_ratio=Estimate.of(clustered_mean(mine - theirs, clusters), math.exp),
        reference_perplexity=math.exp(theirs.mean()),
        other_perplexity=math.exp(mine.mean()),
    )


def _of_text(models: tuple[Model, Model], text: ScoredText) -> FloatArray:
    """Divergence, same token (0 or 1), and both models' nll in nats, of the text's scored tokens: [4, num_tokens]."""
    readers = [_Reader(model) for model in models]
    following = [part.prefix for part in text.parts[1:]]
    found: list[FloatArray] = []
    for number, part in enumerate(text.parts):
        tokens = (*part.prefix, *part.scored)
        # Not the last token, which is not read, nor that of the next prefix, whose logits are needed.
        kept = _common(tokens[:-1], following[number][:-1]) if number < len(following) else 0
        pieces = [reader.read(tokens, kept, len(part.prefix) - 1) for reader in readers]
        for (start, theirs), (_, mine) in zip(*pieces, strict=True):
            scored = torch.tensor(tokens[start + 1 : start + 1 + len(theirs)])
            found.append(_of_rows(theirs, mine, scored, models))
    return np.concatenate(found, axis=1) if found else np.empty((4, 0))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of the longest common prefix."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


class _Reader:
    """Reads texts that begin alike with one model, each common beginning once."""

    CURRENT, KEPT = 0, 1

    def __init__(self, model: Model) -> None:
        self._model = model
        self._pool = model.make_pool(2)
        self._pool.clear(self.KEPT)
        self._kept = 0

    def read(self, tokens: Sequence[int], kept: int, first: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Pieces of the logits after each token but the last, from place `first` on: (place, [n, vocab]) in fp64.

        `tokens` begin as the last ones did, up to that call's `kept`; after `kept` of them the state is kept for the
        next call. If that lies before what was kept, the next call reads everything.
        """
        begin, self._kept = self._kept, kept
        self._pool.copy(self.KEPT, self.CURRENT)
        if kept < begin:
            self._kept = 0
            self._pool.clear(self.KEPT)
        while begin < len(tokens) - 1:
            end = min(begin + CHUNK, len(tokens) - 1)
            if begin < kept < end:
                end = kept
            batch = RaggedBatch.of([tokens[begin:end]], [self.CURRENT], every_token=True)
            logits = self._model.step(batch, self._pool)
            skipped = min(max(0, first - begin), end - begin)
            piece = logits[skipped:].detach().to("cpu", torch.float64)
            if end == kept:
                self._pool.copy(self.CURRENT, self.KEPT)
            if len(piece):
                yield begin + skipped, piece
            begin = end


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
