"""A local checkpoint as a judge, which compares the likelihoods of the two words after the question.

It generates no text. The probability of the first word is its share of the likelihoods of both words, as for the
choices of a script's turn.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rwkvbatch.config import Prompting
from rwkvbatch.engine.request import Score
from rwkvbatch.errors import RwkvBatchError, is_out_of_memory
from rwkvbatch.judges.answers import JudgeAnswer
from rwkvbatch.judges.questions import VoteRequest
from rwkvbatch.prompt.templates import load_template
from rwkvbatch.script.choices import probability_among

if TYPE_CHECKING:
    from rwkvbatch.engine.engine import Engine
    from rwkvbatch.model.base import Model
    from rwkvbatch.prompt.tokenizer import Tokenizer

DEFAULT_BATCH = 32
QUESTIONS_PER_ROW = 2
"""Questions in the engine for each row of the batch, so that questions with a common prefix are prefilled together."""

_log = logging.getLogger(__name__)


@dataclass
class _Scoring:
    """A question whose words are being scored; `scores` are by the word's index."""

    request: VoteRequest
    scores: dict[int, Score] = field(default_factory=dict[int, Score])


class LocalJudge:
    """Judges with a model in this process; see `answers.Judge`.

    Args:
        model: a model of any backend.
        tokenizer: the model's tokenizer.
        batch: the largest number of texts in a batch. It changes no answer, if the model's backend guarantees that for
            replies.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer, batch: int = DEFAULT_BATCH) -> None:
        from rwkvbatch.model.ops import rounding_rules  # imports torch

        spec = model.spec
        self.name = spec.path.rpartition("/")[2] or "model"
        self.identity: Mapping[str, Any] = {
            "kind": "model",
            "weights_sha256": spec.weights_sha256,
            "dtype": spec.dtype,
            **rounding_rules(spec.dtype),
            "backend": spec.backend,
            "device": spec.device.partition(":")[0],
            "tokenizer_sha256": tokenizer.sha256,
        }
        self._model = model
        self._tokenizer = tokenizer
        self._batch = batch
        self._template = load_template(Prompting(), spec.weights_sha256)

    def answers(self, requests: Iterator[VoteRequest]) -> Iterator[tuple[VoteRequest, JudgeAnswer] | None]:
        """See `answers.Judge.answers`."""
        engine = self._engine()
        retries: deque[VoteRequest] = deque()  # questions to ask again after running out of memory
        active: dict[int, tuple[_Scoring, int]] = {}  # by request number: the question, and the index of its word
        while True:
            while len(active) < 2 * QUESTIONS_PER_ROW * self._batch:
                request = retries.popleft() if retries else next(requests, None)
                if request is None:
                    break
                try:
                    active |= self._submit(engine, request)
                except (RwkvBatchError, ValueError) as error:
                    yield request, JudgeAnswer(problem=f"the judge cannot read the question: {error}")
            if not active:
                return
            try:
                results = engine.step()
            except Exception as error:  # running out of memory raises different types
                if not is_out_of_memory(error):
                    raise
                unfinished = list({id(scoring): scoring.request for scoring, _ in active.values()}.values())
                active = {}
                if self._batch == 1:
                    for request in unfinished:
                        yield request, JudgeAnswer(problem="the judge ran out of memory")
                else:
                    self._batch = max(1, self._batch // 2)
                    _log.warning("the judge ran out of memory; it continues with a batch of %d", self._batch)
                    retries.extendleft(reversed(unfinished))
                engine = self._engine()
                continue
            for number, result in results:
                scoring, word_index = active.pop(number)
                assert isinstance(result, Score)
                scoring.scores[word_index] = result
                if len(scoring.scores) == len(scoring.request.question.words):
                    yield scoring.request, _answer(scoring)
            yield None

    def _engine(self) -> Engine:
        from rwkvbatch.engine.engine import Engine

        return Engine(self._model, tokenizer=self._tokenizer, max_batch=self._batch)

    def _submit(self, engine: Engine, request: VoteRequest) -> dict[int, tuple[_Scoring, int]]:
        """Submit one request for each word of a question; returns entries of `active` in `answers`."""
        encode, template = self._tokenizer.encode, self._template
        prompt = encode(template.past_turn(request.question.text))
        scoring, submitted = _Scoring(request), dict[int, tuple[_Scoring, int]]()
        for word_index, word in enumerate(request.question.words):
            text = template.reply(word).removesuffix(template.closing)
            submitted[engine.submit_score(prompt, encode(text), cache=False)] = scoring, word_index
        return submitted


def _answer(scoring: _Scoring) -> JudgeAnswer:
    logprobs = [math.fsum(scoring.scores[word_index].logprobs) for word_index in sorted(scoring.scores)]
    if not all(map(math.isfinite, logprobs)):
        return JudgeAnswer(problem="the judge's logits contain NaN or infinity")
    return JudgeAnswer(probability_among(logprobs, 0))
