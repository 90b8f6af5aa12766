"""`EndpointEngine`: a served model with the interface of `engine.Engine` that replay and chat use.

Threads send the requests, at most `concurrency` at a time; `step` returns the results. A prompt is the same text (or
the same token ids) as for an engine; with the chat interface, the server's own template makes the prompt.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from rwkvbatch.endpoint.client import Client, Json
from rwkvbatch.endpoint.protocol import EXTENSIONS, Answer, ServedToken, read_answer, reply_body, score_body
from rwkvbatch.endpoint.served import ServedModel, ServedSpec
from rwkvbatch.endpoint.tokens import TokenReader, ends_with_end_of_text, stop_among, within
from rwkvbatch.engine.request import (
    END_OF_TEXT,
    EngineStats,
    FinishReason,
    Reading,
    Reply,
    ReplyTiming,
    Request,
    Score,
    closed_history,
)
from rwkvbatch.errors import EndpointError, UsageError
from rwkvbatch.prompt.tokenizer import Tokenizer

WAIT_S = 0.1
"""Longest time that a step waits for a result, after which its caller can check signals and the clock."""
REPLY_BYTES, BYTES_PER_TOKEN = 2**20, 2**14
"""Size limit of a streamed reply: a constant, and a number for each of its tokens."""
NOT_SCORED = "the server does not return log-probabilities of given text (`echo` with `logprobs`)"

_log = logging.getLogger(__name__)


@dataclass
class _ReplyJob:
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
class _ScoreJob:
    """A text that a thread has scored: `continuation` after `prefix`; `ended` as in `_ReplyJob`."""

    id: int
    prefix: tuple[int, ...]
    continuation: tuple[int, ...]
    ended: threading.Event = field(default_factory=threading.Event)


_Results = queue.SimpleQueue[tuple[int, Reply | Score | BaseException | str]]
"""Messages from the threads to `step`: by request id, a piece of text, a result, or an exception."""


class EndpointEngine:
    """Replies and scores of a served model. Results come in the order in which the server answers.

    Args:
        client: client of the server.
        spec: description of the model.
        tokenizer: counts tokens, and makes ids of texts.
        extra: further fields of each request's body.
        max_batch: largest number of concurrent requests; by default the client's `concurrency`.
        clock: gives the time in seconds.

    Attributes:
        asks_logprobs: whether log-probabilities are requested; False after the server refused them.
    """

    num_cached_states = 0

    def __init__(
        self,
        client: Client,
        spec: ServedSpec,
        tokenizer: Tokenizer,
        *,
        extra: Json | None = None,
        max_batch: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model = ServedModel(spec)
        self.tokenizer = tokenizer
        self._reader = TokenReader(tokenizer)
        self.stats = EngineStats()
        self.max_batch = max_batch or client.options.concurrency
        self.asks_logprobs = True
        self._client = client
        self._spec = spec
        self._extra = dict(extra or {})
        self._clock = clock
        self._jobs: dict[int, _ReplyJob | _ScoreJob] = {}
        self._next_id = 0
        self._prefixes: dict[int, tuple[int, ...]] = {0: ()}
        self._warned: set[str] = set()
        self._todo: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._results: _Results = queue.SimpleQueue()
        self._num_threads = 0
        weakref.finalize(self, _stop, self._todo, self.max_batch)

    def __repr__(self) -> str:
        return f"<EndpointEngine of {self._spec.in_words}: {len(self._jobs)} unfinished>"

    @property
    def busy(self) -> bool:
        return bool(self._jobs) or not self._results.empty()

    @property
    def reading(self) -> Reading:
        """Always empty, because a server does not report the progress of a prompt."""
        return Reading()

    def add_root(self, state: Any) -> int:
        """Raise `UsageError`, because a server takes no initial state."""
        raise UsageError("a served model takes no initial state", hint="leave --state out")

    def pin_prefix(self, tokens: Sequence[int], root: int = 0) -> int:
        """A root for `tokens` after `root`, as in `Engine.pin_prefix`. Its tokens are sent with each request."""
        number = max(self._prefixes) + 1
        self._prefixes[number] = (*self._prefixes[root], *tokens)
        return number

    def unpin_prefix(self, root: int) -> None:
        """Forget a pinned prefix."""
        self._prefixes.pop(root, None)

    def pin_state(self, tokens: Sequence[int], root: int = 0) -> None:
        """Do nothing, because the server manages states."""

    def unpin_state(self, node: Any) -> None:
        """Do nothing, because no state is pinned."""

    def next_logits(self, tokens: Sequence[int], root: int = 0) -> Any:
        """Raise `UsageError`, because a server gives no logits."""
        raise UsageError("a served model gives neither logits nor states", hint="this needs --model FILE")

    def submit(self, request: Request) -> int:
        """Queue a request. Returns its id. Raises `UsageError` for a banned token id outside the vocabulary."""
        request.sampling.check_vocabulary(self.tokenizer.vocab_size)
        prefix = self._prefixes[request.root]
        request = replace(request, tokens=(*prefix, *request.tokens), root=0)
        job = _ReplyJob(self._new_id(), request, len(prefix), self._clock())
        return self._start(job, partial(self._reply, job))

    def submit_score(
        self, prefix: Sequence[int], continuation: Sequence[int], root: int = 0, *, cache: bool = True
    ) -> int:
        """Queue the scoring of a text, as in `Engine.submit_score`. The score is empty if the server gives none."""
        del cache
        if not prefix or not continuation:
            raise ValueError("scoring needs at least one token in the prefix and one in the continuation")
        job = _ScoreJob(self._new_id(), (*self._prefixes[root], *prefix), tuple(continuation))
        return self._start(job, partial(self._score, job))

    def cancel(self, request_id: int) -> None:
        """End a request now; the next `step` returns its reply so far, as `cancelled`."""
        job = self._jobs.get(request_id)
        if job is None:
            return
        job.ended.set()
        if isinstance(job, _ReplyJob):
            self._results.put((job.id, self._make_reply(job, job.answer.text, (), "cancelled", None)))
        else:
            del self._jobs[request_id]

    def step(self) -> list[tuple[int, Reply | Score]]:
        """The new results, by request id; waits up to `WAIT_S` for the first one.

        Raises:
            WorkerError, UsageError, RequestsSpentError: all further requests would fail too, see `Client.call`.
        """
        finished: list[tuple[int, Reply | Score]] = []
        wait_s = WAIT_S
        while True:
            try:
                request_id, result = self._results.get(timeout=wait_s)
            except queue.Empty:
                return finished
            wait_s = 0.0
            if isinstance(result, str):
                self._forward_text(request_id, result)
                continue
            if self._jobs.pop(request_id, None) is None:
                continue
            if isinstance(result, BaseException):
                raise result
            if isinstance(result, Reply):
                self.stats.num_generated += len(result.ids)
                self.stats.num_prompt_read += result.num_prompt - result.num_cached
                self.stats.num_prompt_cached += result.num_cached
            finished.append((request_id, result))

    def _forward_text(self, request_id: int, piece: str) -> None:
        job = self._jobs.get(request_id)
        if isinstance(job, _ReplyJob) and job.request.on_text is not None and not job.ended.is_set():
            job.request.on_text(piece)

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies to all requests, in their order."""
        request_ids = [self.submit(request) for request in requests]
        results = self._run_until_finished(request_ids)
        return [result for request_id in request_ids if isinstance(result := results[request_id], Reply)]

    def score(self, prefix: Sequence[int], continuation: Sequence[int], root: int = 0) -> Score:
        """The log-probabilities of `continuation` after `prefix`."""
        request_id = self.submit_score(prefix, continuation, root)
        result = self._run_until_finished([request_id])[request_id]
        assert isinstance(result, Score)
        return result

    def _run_until_finished(self, request_ids: Sequence[int]) -> dict[int, Reply | Score]:
        results: dict[int, Reply | Score] = {}
        while not results.keys() >= set(request_ids):
            results.update(self.step())
        return results

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def _start(self, job: _ReplyJob | _ScoreJob, work: Callable[[], Reply | Score | None]) -> int:
        """Queue `work`, which sends the request of `job`. Returns the job's id."""
        self._jobs[job.id] = job
        results = self._results

        def run() -> None:
            if job.ended.is_set():
                return
            try:
                result = work()
            except BaseException as error:  # `step` raises it in the caller's thread
                results.put((job.id, error))
            else:
                if result is not None:
                    results.put((job.id, result))

        self._todo.put(run)
        if self._num_threads < min(self.max_batch, len(self._jobs)):
            self._num_threads += 1
            # Daemon threads, so that a hanging request does not keep the process alive.
            threading.Thread(target=_work, args=(self._todo,), name="endpoint", daemon=True).start()
        return job.id

    def _prompt(self, tokens: Sequence[int]) -> str | Sequence[int]:
        """The prompt as it is sent: token ids, or text, in which token 0 cannot be written."""
        if self._spec.api == "completions-ids":
            return tokens
        if END_OF_TEXT in tokens:
            raise EndpointError(
                "the prompt begins with token 0 (--bos), which text cannot hold: use --endpoint-api completions-ids, "
                "or --bos off and let the server add it"
            )
        return self.tokenizer.decode(tokens)

    def _reply(self, job: _ReplyJob) -> Reply | None:
        """Send a request for a reply; None if it was cancelled. Runs in a thread."""
        request = job.request
        job.started_s = self._clock()
        try:
            prompt = "" if self._spec.api == "chat" else self._prompt(request.tokens)
            body = reply_body(request, prompt, model=self._spec.name, api=self._spec.api, logprobs=self.asks_logprobs)
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
                return self._reply(job)
            return self._make_reply(job, job.answer.text, (), "error", None, self._client.words(error.message))
        return self._make_reply(job, answer.text, tokens, finish, stop)

    def _end(self, answer: Answer, request: Request) -> tuple[FinishReason, str | None]:
        """As `Answer.end`."""
        return answer.end(request.stop, by_server_template=self._spec.api == "chat")

    def _ask(self, job: _ReplyJob, body: Json) -> Answer | None:
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
                    self._results.put((job.id, piece))
                if self._timed_out(job):
                    return answer
            if answer.finish_reason is None:
                self._end(answer, request)  # raises
            return answer

        max_bytes = REPLY_BYTES + BYTES_PER_TOKEN * request.max_tokens
        return self._client.call("POST", path, {**body, **self._extra}, read, max_bytes=max_bytes, cancelled=job.ended)

    def _timed_out(self, job: _ReplyJob) -> bool:
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
            self._warn(
                name, f"{name}: no field of OpenAI's API; a server that does not know it ignores it without a word"
            )

    def _warn(self, key: str, text: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            _log.warning("%s: %s", self._spec.in_words, text)

    def _make_reply(
        self,
        job: _ReplyJob,
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
        history = closed_history(self.tokenizer, request.tokens, ids, finish, stop, request.closing)
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

    def _score(self, job: _ScoreJob) -> Score | None:
        """Send a request for the score of a text; None if it was cancelled. Runs in a thread."""
        prefix, continuation = job.prefix, job.continuation
        if self._spec.api == "chat":
            return self._not_scored("the chat interface gives no log-probabilities of given text")
        if not self.asks_logprobs:
            return self._not_scored(NOT_SCORED)
        try:
            prompt = self._prompt((*prefix, *continuation))
            answer = self._client.call(
                "POST",
                "completions",
                {**score_body(prompt, model=self._spec.name), **self._extra},
                read_answer,
                max_bytes=REPLY_BYTES + BYTES_PER_TOKEN * (len(prefix) + len(continuation)),
                cancelled=job.ended,
            )
            if answer is None:
                return None
            tokens = answer.tokens
            if len(tokens) < 3 or len(answer.text.encode()) < len(self.tokenizer.decode_bytes(continuation)):
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


def _work(todo: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (run := todo.get()) is not None:
        run()
        del run  # otherwise the thread would keep a reference to the engine


def _stop(todo: queue.SimpleQueue[Callable[[], None] | None], num_threads: int) -> None:
    for _ in range(num_threads):
        todo.put(None)
