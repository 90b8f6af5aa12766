"""What is made out of a request's logits: a reply, token by token, or the score of a given text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import eq

from rwkvbatch.engine.history import closed_history
from rwkvbatch.engine.request import END_OF_TEXT, Finish, Reply, ReplyTiming, Request, Score
from rwkvbatch.engine.sampling import Penalties, SampleRow
from rwkvbatch.engine.scheduler import Chunk, Reading
from rwkvbatch.text.decoding import TextStream
from rwkvbatch.text.tokenizer import Tokenizer


class Generation:
    """A reply under way.

    Attributes:
        fallback: slot and length of the state before the token in which a possible stop text began. When it was one,
            and is not part of the history, the next turn goes on from there.
    """

    def __init__(self, request: Request, reading: Reading, tokenizer: Tokenizer, now_s: float) -> None:
        self.request = request
        self.reading = reading
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.fallback: tuple[int, int] | None = None
        self._tokenizer = tokenizer
        self._stream = TextStream(tokenizer, request.stop)
        self._penalties = Penalties(request.sampling)
        self._noise_key = request.noise.philox_key
        self._submitted_s = now_s
        self._started_s: float | None = None
        self._first_logits_s: float | None = None

    @property
    def wants_fallback(self) -> bool:
        """Whether some stop text would not be part of the history."""
        return any(stop != self.request.closing for stop in self.request.stop)

    @property
    def holds_back(self) -> bool:
        """Whether the text so far ends in what may become a stop text."""
        return bool(self._stream.held)

    def is_overdue(self, now_s: float) -> bool:
        limit_s, started_s = self.request.max_seconds, self._started_s
        return limit_s is not None and started_s is not None and now_s - started_s >= limit_s

    def begin(self, now_s: float) -> None:
        """The first of its rows is about to be read."""
        if self._started_s is None:
            self._started_s = now_s

    def sample_row(self) -> SampleRow:
        return SampleRow(
            sampling=self.request.sampling,
            penalties=self._penalties,
            noise_key=self._noise_key,
            turn=self.request.noise.turn,
            step=len(self.ids),
        )

    def take(self, token: int, logprob: float, now_s: float) -> Finish | None:
        """Add a sampled token; says how the reply ended, if it did. A token of -1 means that none could be chosen."""
        if self._first_logits_s is None:
            self._first_logits_s = now_s
        if token < 0:
            return "error"
        if token == END_OF_TEXT:
            return "eos"
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.reading.tokens.append(token)
        self._penalties.count(token)
        self._emit(self._stream.push(token))
        if self._stream.stopped_by is not None:
            return "stop"
        return "length" if len(self.ids) >= self.request.max_tokens else None

    def reply(self, finish: Finish, now_s: float, error: str | None = None) -> Reply:
        """The finished reply."""
        self._emit(self._stream.finish())
        stopped_by = self._stream.stopped_by if finish == "stop" else None
        prompt = self.request.tokens
        started_s = now_s if self._started_s is None else self._started_s
        first_s = now_s if self._first_logits_s is None else self._first_logits_s
        return Reply(
            text=self._stream.text,
            ids=tuple(self.ids),
            history=closed_history(
                self._tokenizer, prompt, self.ids, finish, stopped_by, self.request.closing
            ),
            finish=finish,
            stopped_by=stopped_by,
            logprobs=tuple(self.logprobs),
            num_prompt=self.reading.num_prompt,
            num_cached=min(self.reading.num_cached, self.reading.num_prompt),
            timing=ReplyTiming(
                queued_s=started_s - self._submitted_s,
                prefill_s=first_s - started_s,
                first_token_s=first_s - self._submitted_s,
                total_s=now_s - self._submitted_s,
            ),
            error=error,
        )

    def _emit(self, text: str) -> None:
        if text and self.request.on_text is not None:
            self.request.on_text(text)


@dataclass
class Scoring:
    """The log-probabilities of `continuation` after a prefix, as far as they are known.

    Attributes:
        first_output: the position of the prefix's last token, after which the first of the continuation comes.
    """

    reading: Reading
    continuation: tuple[int, ...]
    first_output: int
    logprobs: list[float] = field(default_factory=list[float])
    num_matched: int = 0

    @property
    def is_complete(self) -> bool:
        return len(self.logprobs) == len(self.continuation)

    def given(self, chunk: Chunk) -> tuple[int, ...]:
        """The tokens of the continuation that come after rows of `chunk`, one after each of its last rows."""
        start, stop = chunk.start - self.first_output, chunk.stop - self.first_output
        return self.continuation[max(0, start) : max(0, stop)]

    def take(self, given: Sequence[int], likeliest: Sequence[int], logprobs: Sequence[float]) -> None:
        """Add what was found about the next tokens, `given`."""
        self.logprobs.extend(logprobs)
        self.num_matched += sum(map(eq, likeliest, given))

    def start_over(self) -> None:
        """Forget what is known: the text is read again from its beginning."""
        self.logprobs.clear()
        self.num_matched = 0

    def score(self) -> Score:
        return Score(tuple(self.logprobs), self.num_matched)


Job = Generation | Scoring
