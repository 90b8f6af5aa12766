"""Comparison of the next-token distributions of two models on texts, such as a checkpoint and its quantization.

Both models read the same tokens of every text, from an empty state. Let p be the reference's distribution of the next
token and q the other model's. The divergence is KL(p || q) = sum p (ln p - ln q) in nats (Kullback and Leibler, 1951),
in fp64 from the logits; it is 0 if the distributions are equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from rwkvbatch.comparison.metrics.declarations import exponential
from rwkvbatch.engine.request import END_OF_TEXT
from rwkvbatch.errors import CheckpointError, UsageError
from rwkvbatch.model.base import Model, RaggedBatch
from rwkvbatch.script.records import Conversation
from rwkvbatch.stats.clustered import MeanEstimate, clustered_mean

CHUNK = 64
"""Tokens per step; the logits of both models for one step are in memory."""

TAIL = 0.99
"""The quantile of `Damage.divergence_tail`."""

MESSAGES = 10
"""The approximate number of progress messages."""

Notify = Callable[[str], None]
Encode = Callable[[str], Sequence[int]]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over tokens with its 95 % interval, clustered by text; no interval for fewer than two texts."""

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(
        cls, estimate: MeanEstimate, transform: Callable[[float], float] = float, highest: float = math.inf
    ) -> Estimate:
        """`transform` of the mean and of the interval's ends, which are clipped to [0, `highest`]."""
        low, high = estimate.interval()
        if math.isnan(low):
            return cls(transform(estimate.mean), None, None)
        return cls(transform(estimate.mean), max(0.0, transform(low)), min(highest, transform(high)))


@dataclass(frozen=True)
class WorstToken:
    """The token with the largest divergence: the id of its text, and its index among the text's scored tokens."""

    divergence: float
    document: str
    position: int


@dataclass(frozen=True)
class Damage:
    """The comparison of two models on texts.

    Attributes:
        reference, other: name, strategy and precision of the models, in words.
        num_documents, num_tokens: numbers of texts and of scored tokens.
        divergence: mean of KL(reference || other) in nats per token.
        divergence_tail: its 99th percentile.
        worst: the token with the largest divergence.
        same_token: share of positions at which both models have the same likeliest token.
        perplexity_ratio: the other model's perplexity divided by the reference's.
        reference_perplexity, other_perplexity: perplexities over all tokens; infinite beyond a float's range.
    """

    reference: str
    other: str
    num_documents: int
    num_tokens: int
    divergence: Estimate
    divergence_tail: float
    worst: WorstToken
    same_token: Estimate
    perplexity_ratio: Estimate
    reference_perplexity: float
    other_perplexity: float


@dataclass(frozen=True)
class ScoredPart:
    """Tokens of a prefix (at least one), and the tokens after it, which are scored."""

    prefix: tuple[int, ...]
    scored: tuple[int, ...]


@dataclass(frozen=True)
class ScoredText:
    """A document or a dialogue, which is the cluster of the intervals.

    Each part is a sequence from the start of the text. A common prefix of consecutive parts is read once.
    """

    id: str
    parts: tuple[ScoredPart, ...]

    @property
    def num_tokens(self) -> int:
        """Number of scored tokens."""
        return sum(len(part.scored) for part in self.parts)


def texts_of_documents(documents: Sequence[Conversation], encode: Encode) -> list[ScoredText]:
    """Documents (`script.documents.read_documents`) after token 0; a document's prompt is not scored."""
    texts: list[ScoredText] = []
    for document in documents:
        turn = document.turns[0]
        part = ScoredPart((END_OF_TEXT, *encode(turn.user)), tuple(encode(turn.reference or "")))
        texts.append(ScoredText(document.id, (part,)))
    return texts


def damage(reference: Model, other: Model, texts: Sequence[ScoredText], notify: Notify = lambda _: None) -> Damage:
    """Compare two models on texts.

    Raises:
        UsageError: the models have vocabularies of different sizes, or the texts have no scored tokens.
        CheckpointError: a model gives logits that are not finite.
    """
    sizes = reference.spec.vocab_size, other.spec.vocab_size
    if sizes[0] != sizes[1]:
        raise UsageError(f"the models have vocabularies of {sizes[0]:,} and {sizes[1]:,} tokens and cannot be compared")
    figures: list[FloatArray] = []
    for number, text in enumerate(texts):
        if number % max(1, len(texts) // MESSAGES) == 0:
            notify(f"text {number + 1:,} of {len(texts):,}, {text.num_tokens:,} tokens")
        figures.append(_text_figures((reference, other), text))
    lengths = [text_figures.shape[1] for text_figures in figures]
    if not sum(lengths):
        raise UsageError("the texts have no tokens that count", hint="give texts that are not empty")
    divergences, same, reference_nll, other_nll = np.concatenate(figures, axis=1)
    clusters = np.repeat(np.arange(len(figures)), lengths)
    worst = int(divergences.argmax())
    starts = np.cumsum([0, *lengths])
    return Damage(
        reference=reference.spec.in_words,
        other=other.spec.in_words,
        num_documents=len(texts),
        num_tokens=len(divergences),
        divergence=Estimate.of(clustered_mean(divergences, clusters)),
        divergence_tail=float(np.quantile(divergences, TAIL)),
        worst=WorstToken(float(divergences[worst]), texts[clusters[worst]].id, worst - int(starts[clusters[worst]])),
        same_token=Estimate.of(clustered_mean(same, clusters), highest=1.0),
        perplexity_ratio=Estimate.of(clustered_mean(other_nll - reference_nll, clusters), exponential),
        reference_perplexity=exponential(reference_nll.mean()),
        other_perplexity=exponential(other_nll.mean()),
    )


def _text_figures(models: tuple[Model, Model], text: ScoredText) -> FloatArray:
    """`[4, num_tokens]` divergence, same token (0 or 1), and both models' nll in nats, of the text's scored tokens."""
    readers = [_Reader(model) for model in models]
    next_prefixes = [part.prefix for part in text.parts[1:]]
    chunks: list[FloatArray] = []
    for number, part in enumerate(text.parts):
        tokens = (*part.prefix, *part.scored)
        # The last token of this part is not read. That of the next prefix must be read again, for its logits.
        shared = _common_length(tokens[:-1], next_prefixes[number][:-1]) if number < len(next_prefixes) else 0
        logits = [reader.read(tokens, shared, len(part.prefix) - 1) for reader in readers]
        for (start, reference_logits), (_, other_logits) in zip(*logits, strict=True):
            next_tokens = torch.tensor(tokens[start + 1 : start + 1 + len(reference_logits)])
            chunks.append(_token_figures(reference_logits, other_logits, next_tokens, models))
    return np.concatenate(chunks, axis=1) if chunks else np.empty((4, 0))


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """The length of the longest common prefix."""
    pairs = zip(first, second, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


class _Reader:
    """Reads sequences with one model, and a prefix that consecutive sequences share only once."""

    CURRENT, SHARED = 0, 1
    """Slots of the pool: the state of the sequence being read, and the state after the shared prefix."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._pool = model.make_pool(2)
        self._pool.clear(self.SHARED)
        self._num_shared = 0

    def read(self, tokens: Sequence[int], num_shared: int, first: int) -> Iterator[tuple[int, torch.Tensor]]:
        """The logits after each token but the last, from index `first` on, in chunks: (index, [n, vocab]) in fp64.

        Args:
            tokens: begin with the shared prefix of the previous call.
            num_shared: length of the prefix that is shared with the next call. If it is shorter than the previous one,
                its state is not available, and the next call reads everything.
        """
        begin, self._num_shared = self._num_shared, num_shared
        self._pool.copy(self.SHARED, self.CURRENT)
        if num_shared < begin:
            self._num_shared = 0
            self._pool.clear(self.SHARED)
        while begin < len(tokens) - 1:
            end = min(begin + CHUNK, len(tokens) - 1)
            if begin < num_shared < end:
                end = num_shared
            batch = RaggedBatch.of([tokens[begin:end]], [self.CURRENT], every_token=True)
            logits = self._model.step(batch, self._pool)
            num_skipped = min(max(0, first - begin), end - begin)
            chunk = logits[num_skipped:].detach().to("cpu", torch.float64)
            if end == num_shared:
                self._pool.copy(self.CURRENT, self.SHARED)
            if len(chunk):
                yield begin + num_skipped, chunk
            begin = end


def _token_figures(
    reference_logits: torch.Tensor, other_logits: torch.Tensor, next_tokens: torch.Tensor, models: tuple[Model, Model]
) -> FloatArray:
    """As `_text_figures`, from logits `[n, vocab]` and the `next_tokens` `[n]` after them."""
    for logits, model in zip((reference_logits, other_logits), models, strict=True):
        if not bool(torch.isfinite(logits).all()):
            raise CheckpointError(
                f"{model.spec.in_words} gives logits that are not finite",
                path=model.spec.path,
                hint="rwkvbatch model verify compares it with the reference operations",
            )
    log_p, log_q = reference_logits.log_softmax(1), other_logits.log_softmax(1)
    # Rounding may leave a tiny negative number for equal distributions.
    divergence = (log_p.exp() * (log_p - log_q)).sum(1).clamp(min=0)
    same = (reference_logits.argmax(1) == other_logits.argmax(1)).double()
    nll = [-logprobs.gather(1, next_tokens[:, None]).squeeze(1) for logprobs in (log_p, log_q)]
    return torch.stack([divergence, same, *nll]).numpy()
