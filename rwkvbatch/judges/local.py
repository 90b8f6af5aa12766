"""A checkpoint as a judge: the likelihoods of the two words after the question, all questions in one batch.

Nothing is generated and no free text is read: the probability of the first word is its share of both, as of the choices
of a script's turn.
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
from rwkvbatch.judges.opinions import Opinion
from rwkvbatch.judges.questions import Ask
from rwkvbatch.prompt.templates import load_template, with_turn_end
from rwkvbatch.script.choices import probability_among

if TYPE_CHECKING:
    from rwkvbatch.engine.engine import Engine
    from rwkvbatch.model.base import Model
    from rwkvbatch.prompt.tokenizer import Tokenizer

DEFAULT_BATCH = 32
QUESTIONS_PER_ROW = 2
"""Questions held for each row of the batch, so that those which begin alike are read together."""

_log = logging.getLogger(__name__)


@dataclass
class _Open:
    """A question whose words are being scored."""

    ask: Ask
    scores: dict[int, Score] = field(default_factory=dict[int, Score])


class LocalJudge:
    """Judges with a model in this process; see `opinions.Judge`.

    Args:
        model: of any backend. tokenizer: its own. batch: the most texts that are read at a time. Changes no answer, as
            far as the model's backend promises it for replies.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer, batch: int = DEFAULT_BATCH) -> None:
        spec = model.spec
        self.name = spec.path.rpartition("/")[2] or "model"
        self.identity: Mapping[str, Any] = {
            "kind": "model",
            "weights_sha256": spec.weights_sha256,
            "dtype": spec.dtype,
            "backend": spec.backend,
            "device": spec.device.partition(":")[0],
            "tokenizer_sha256": tokenizer.sha256,
        }
        self._model = model
        self._tokenizer = tokenizer
        self._batch = batch
        self._template = load_template(with_turn_end(Prompting(), spec.weights_sha256))

    def answers(self, asks: Iterator[Ask]) -> Iterator[tuple[Ask, Opinion] | None]:
        """The opinions on all `asks`, as of `opinions.Judge`."""
        engine = self._engine()
        waiting: deque[Ask] = deque()
        active: dict[int, tuple[_Open, int]] = {}
        exhausted = False
        while True:
            while len(active) < 2 * QUESTIONS_PER_ROW * self._batch:
                ask = waiting.popleft() if waiting else None if exhausted else next(asks, None)
                if ask is None:
                    exhausted = True
                    break
                try:
                    active |= self._submit(engine, ask)
                except (RwkvBatchError, ValueError) as error:
                    yield ask, Opinion(problem=f"the judge cannot read the question: {error}")
            if not active:
                return
            try:
                results = engine.step()
            except Exception as error:  # out of memory comes as different types
                if not is_out_of_memory(error):
                    raise
                unfinished = list({id(held): held.ask for held, _ in active.values()}.values())
                active = {}
                if self._batch == 1:
                    for ask in unfinished:
                        yield ask, Opinion(problem="the judge ran out of memory")
                else:
                    self._batch = max(1, self._batch // 2)
                    _log.warning("the judge ran out of memory; it continues with a batch of %d", self._batch)
                    waiting.extendleft(reversed(unfinished))
                engine = self._engine()
                continue
            for number, result in results:
                held, word = active.pop(number)
                assert isinstance(result, Score)
                held.scores[word] = result
                if len(held.scores) == len(held.ask.question.words):
                    yield held.ask, _opinion(held)
            yield None

    def _engine(self) -> Engine:
        from rwkvbatch.engine.engine import Engine

        return Engine(self._model, tokenizer=self._tokenizer, max_batch=self._batch)

    def _submit(self, engine: Engine, ask: Ask) -> dict[int, tuple[_Open, int]]:
        encode, template = self._tokenizer.encode, self._template
        prompt = encode(template.past_turn(ask.question.text))
        held, submitted = _Open(ask), dict[int, tuple[_Open, int]]()
        for place, word in enumerate(ask.question.words):
            text = template.reply(word).removesuffix(template.closing)
            submitted[engine.submit_score(prompt, encode(text), cache=False)] = held, place
        return submitted


def _opinion(held: _Open) -> Opinion:
    sums = [math.fsum(held.scores[word].logprobs) for word in sorted(held.scores)]
    if not all(map(math.isfinite, sums)):
        return Opinion(problem="the judge's logits hold NaN or infinity")
    return Opinion(probability_among(sums, 0))
