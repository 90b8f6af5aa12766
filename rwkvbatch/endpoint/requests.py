"""`Requests`: asks a server for one reply or one score, and makes the engine's results of its answers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from rwkvbatch.endpoint.client import Client, Json
from rwkvbatch.endpoint.protocol import EXTENSIONS, Answer, ServedToken, read_answer, reply_body, score_body
from rwkvbatch.endpoint.served import ServedSpec
from rwkvbatch.endpoint.tokens import TokenReader, ends_with_end_of_text, stop_among, within
from rwkvbatch.engine.request import END_OF_TEXT, FinishReason, Reply, ReplyTiming, Request, Score, closed_history
from rwkvbatch.errors import EndpointError
from rwkvbatch.prompt.tokenizer import Tokenizer

REPLY_BYTES, BYTES_PER_TOKEN = 2**20, 2**14
"""Size limit of a streamed reply: a constant, and a number for each of its tokens."""
NOT_SCORED = "the server does not return log-probabilities of given text (`echo` with `logprobs`)"

_log = logging.getLogger(__name__)


@dataclass
class ReplyJob:
    """A request for a reply that a thread sends.

    Attributes:
        num_before: number of tokens of the request's root, which are its first ones.
        ended: set when the request has ended or was cancelled.
        answer: the part of the answer that has arrived.
        started_s: time at which a thread started the request.
        first_s: time of the first piece of text.
    """

    id: int
    request: Request
    num_before: int
    submitted_s: float
    ended: threading.Event = field(default_factory=threading.Event)
    answer: Answer = field(default_factory=Answer)
    started_s: float | None = None
    first_s: float | None = None


@dataclass
class ScoreJob:
    """A text that a thread has scored: `continuation` after `prefix`; `ended` as in `ReplyJob`."""

    id: int
    prefix: tuple[int, ...]
    continuation: tuple[int, ...]
    ended: threading.Event = field(default_factory=threading.Event)


class Requests:
    """Requests to one server. Its methods may be called from any thread.

    Args:
        client: client of the server.
        spec: description of the model.
        tokenizer: counts tokens, and makes ids of texts.
        extra: further fields of each request's body.
        clock: gives the time in seconds.
        forward: called with the id of a request and a piece of its reply, if the request has `on_text`.

    Attributes:
        asks_logprobs: whether log-probabilities are requested; False after the server refused them.
    """

    def __init__(
        self,
        client: Client,
        spec: ServedSpec,
        tokenizer: Tokenizer,
        extra: Json,
        clock: Callable[[], float],
        forward: Callable[[int, str], None],
    ) -> None:
        self.asks_logprobs = True
        self._client = client
        self._spec = spec
        self._tokenizer = tokenizer
        self._reader = TokenReader(tokenizer)
        self._extra = extra
        self._clock = clock
        self._forward = forward
        self._warned: set[str] = set()

    def _prompt(self, tokens: Sequence[int]) -> str | Sequence[int]:
        """The prompt as it is sent: token ids, or text, which cannot represent token 0."""
        if self._spec.takes_ids(self._tokenizer):
            return tokens
        if END_OF_TEXT in tokens:
            raise EndpointError(
                "the prompt begins with token 0 (--bos), which text cannot represent: "
                "use --endpoint-api completions-ids, or --bos off and let the server add it"
            )
        return self._tokenizer.decode(tokens)

    def reply(self, job: ReplyJob) -> Reply | None:
        """Send a request for a reply; None if it was cancelled. Runs in a thread."""
        request = job.request
        job.started_s = self._clock()
        try:
            prompt = "" if self._spec.api == "chat" else self._prompt(request.tokens)
            body = reply_body(
                request,
                prompt,
                model=self._spec.name,
                api=self._spec.api,
                logprobs=self.asks_logprobs,
                all_known=self._spec.own is not None,
            )
            if self._spec.own is None:
                self._warn_of_extensions(body)
            answer = self._ask(job, body)
            if answer is None:
                return None
            finish, stop = ("time", None) if self._timed_out(job) else self._end(answer, request)
            tokens = self._reader.by_ids(answer.tokens, answer.text)
            if finish == "stop" and stop is None:
                stop = stop_among(tokens, answer.text, request.stop)
                if stop is None and ends_with_end_of_text(tokens):
                    finish = "eos"
        except EndpointError as error:
            if self._stop_asking_logprobs(error):
                return self.reply(job)
            return self.made_reply(job, job.answer.text, (), "error", None, self._client.words(error.message))
        return self.made_reply(job, answer.text, tokens, finish, stop)

    def _end(self, answer: Answer, request: Request) -> tuple[FinishReason, str | None]:
        """As `Answer.end`."""
        return answer.end(request.stop, by_server_template=self._spec.api == "chat")

    def _ask(self, job: ReplyJob, body: Json) -> Answer | None:
        request = job.request
        path = "chat/completions" if self._spec.api == "chat" else "completions"
        num_forwarded = 0

        def read(events: Iterator[Json]) -> Answer:
            nonlocal num_forwarded
            if num_forwarded:  # text that was forwarded cannot be taken back for another attempt
                raise EndpointError("the connection failed in the middle of the reply")
            answer = job.answer = Answer()
            for event in events:
                piece = answer.take(event)
                if job.first_s is None and (piece or answer.tokens):
                    job.first_s = self._clock()
                if piece and request.on_text is not None:
                    num_forwarded += 1
                    self._forward(job.id, piece)
                if self._timed_out(job):
                    return answer
            if answer.finish_reason is None:
                self._end(answer, request)  # raises
            return answer

        max_bytes = REPLY_BYTES + BYTES_PER_TOKEN * request.max_tokens
        return self._client.call("POST", path, {**body, **self._extra}, read, max_bytes=max_bytes, cancelled=job.ended)

    def _timed_out(self, job: ReplyJob) -> bool:
        limit_s, started_s = job.request.max_seconds, job.started_s
        return limit_s is not None and started_s is not None and self._clock() - started_s >= limit_s

    def _stop_asking_logprobs(self, error: EndpointError) -> bool:
        """Whether the server refused a request because of log-probabilities; later requests do not ask for them."""
        if error.status is None or not self.asks_logprobs or "logprob" not in error.message.lower():
            return False
        self.asks_logprobs = False
        self._warn("logprobs", "the server refuses log-probabilities; the rows have none")
        return True

    def _warn_of_extensions(self, body: Json) -> None:
        for name in sorted(set(body) & EXTENSIONS):
            self._warn(name, f"{name}: not a field of OpenAI's API; a server that does not know it silently ignores it")

    def _warn(self, key: str, text: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            _log.warning("%s: %s", self._spec.in_words, text)

    def made_reply(
        self,
        job: ReplyJob,
        text: str,
        tokens: Sequence[ServedToken],
        finish: FinishReason,
        stop: str | None,
        error: str | None = None,
    ) -> Reply:
        request, now_s, answer = job.request, self._clock(), job.answer
        if answer.prompt_tokens == len(request.tokens) + 1 and self._spec.api == "completions":
            self._warn(
                "begin",
                "the server reads one token more than the prompt has, as it would with a token 0 before it; "
                "--endpoint-api completions-ids sends what a model in this process reads",
            )
        reply_tokens = within(tokens, text + (stop or ""))
        ids = self._reader.ids(text, stop, reply_tokens)
        logprobs = tuple(token.logprob for token in reply_tokens if token.logprob is not None)
        history = closed_history(self._tokenizer, request.tokens, ids, finish, stop, request.closing)
        started_s = job.submitted_s if job.started_s is None else job.started_s
        first_s = now_s if job.first_s is None else job.first_s
        return Reply(
            text=text,
            ids=ids,
            history=history[job.num_before :],
            finish_reason=finish,
            stopped_by=stop,
            logprobs=logprobs if len(logprobs) == len(reply_tokens) else (),
            num_prompt=len(request.tokens) if answer.prompt_tokens is None else answer.prompt_tokens,
            num_cached=answer.cached_tokens,
            timing=ReplyTiming(
                queued_s=started_s - job.submitted_s,
                prefill_s=first_s - started_s,
                first_token_s=first_s - job.submitted_s,
                total_s=now_s - job.submitted_s,
            ),
            error=error,
        )

    def score(self, job: ScoreJob) -> Score | None:
        """Send a request for the score of a text; None if it was cancelled. Runs in a thread."""
        prefix, continuation = job.prefix, job.continuation
        if self._spec.api == "chat":
            return self._not_scored("the chat interface gives no log-probabilities of given text")
        if not self.asks_logprobs:
            return self._not_scored(NOT_SCORED)
        try:
            prompt = self._prompt((*prefix, *continuation))
            body = score_body(prompt, model=self._spec.name, all_known=self._spec.own is not None)
            answer = self._client.call(
                "POST",
                "completions",
                {**body, **self._extra},
                read_answer,
                max_bytes=REPLY_BYTES + BYTES_PER_TOKEN * (len(prefix) + len(continuation)),
                cancelled=job.ended,
            )
            if answer is None:
                return None
            tokens = answer.tokens
            if len(tokens) < 3 or len(answer.text.encode()) < len(self._tokenizer.decode_bytes(continuation)):
                return self._not_scored(NOT_SCORED)
            scored = self._reader.continued(tokens, prefix, continuation, by_ids=not isinstance(prompt, str))
        except EndpointError as error:
            is_refused = error.status is not None and any(word in error.message.lower() for word in ("logprob", "echo"))
            if is_refused:
                return self._not_scored(NOT_SCORED)
            return Score((), 0, error=self._client.words(error.message))
        logprobs = [token.logprob for token in scored]
        if None in logprobs:
            return Score((), 0, error="the server gives no log-probability for some tokens of the text")
        num_matched = sum(token.best is not None and token.logprob >= token.best for token in scored if token.logprob)
        num_matched += sum(token.logprob == 0 for token in scored)
        return Score([logprob for logprob in logprobs if logprob is not None], num_matched)

    def _not_scored(self, reason: str) -> Score:
        self._warn("score", f"{reason}: references are not scored")
        return Score((), 0, unavailable=reason)
