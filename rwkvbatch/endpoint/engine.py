"""`EndpointEngine`: a served model behind the interface of `engine.Engine`, as the replay and the chat step it.

Threads send the requests, at most `concurrency` at a time; `step` collects what ended. A prompt is the same text (or
the same token ids) that the engine would read; with the chat interface the server's own template makes it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rwkvbatch.endpoint.client import Client, Json
from rwkvbatch.endpoint.protocol import EXTENSIONS, Answer, ServedToken, read_answer, reply_body, score_body
from rwkvbatch.endpoint.served import ServedModel, ServedSpec
from rwkvbatch.endpoint.tokens import TokenReader, stop_among, within
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
"""The longest that a step waits for an answer, so that its caller can look at signals and the clock."""
REPLY_BYTES, BYTES_PER_TOKEN = 2**20, 2**14
"""The bytes of a streamed reply, at most: the first, and the second for each of its tokens."""
NOT_SCORED = "the server does not return log-probabilities of given text (`echo` with `logprobs`)"

_log = logging.getLogger(__name__)


@dataclass
class _Job:
    """A request in a thread. `answer` is what came so far of a reply; `ended` also when nobody waits for it.

    The first `num_before` tokens of the request are those of its root.
    """

    id: int
    request: Request | None
    texts: tuple[tuple[int, ...], tuple[int, ...]]
    submitted_s: float
    ended: threading.Event = field(default_factory=threading.Event)
    answer: Answer = field(default_factory=Answer)
    num_before: int = 0
    started_s: float | None = None
    first_s: float | None = None


_Results = queue.SimpleQueue[tuple[int, Reply | Score | BaseException | str]]
"""What threads give to `step`: pieces of text, and results or what went wrong."""


class EndpointEngine:
    """Replies and scores of a served model. Results come in the order in which the answers do.

    Args:
        client: of the server.
        spec: the model there. tokenizer: counts tokens, and makes ids of texts.
        extra: further fields of each body. max_batch: the most requests at a time, if not the client's `concurrency`.
        clock: seconds, for timings.
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
        """Off once the server refused them."""
        self._client = client
        self._spec = spec
        self._extra = dict(extra or {})
        self._clock = clock
        self._jobs: dict[int, _Job] = {}
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
        """Nothing: a server does not say how far it has read."""
        return Reading()

    def add_root(self, state: Any) -> int:
        """Raises `UsageError`: a server takes no initial state."""
        raise UsageError("a served model takes no initial state", hint="leave --state out")

    def pin_prefix(self, tokens: Sequence[int], root: int = 0) -> int:
        """A root for the tokens after `root`, as `Engine.pin_prefix`; they are sent with each request."""
        number = max(self._prefixes) + 1
        self._prefixes[number] = (*self._prefixes[root], *tokens)
        return number

    def unpin_prefix(self, root: int) -> None:
        """Forget a pinned prefix."""
        self._prefixes.pop(root, None)

    def pin_state(self, tokens: Sequence[int], root: int = 0) -> None:
        """None: states are the server's own."""

    def unpin_state(self, node: Any) -> None:
        """Nothing: no state is pinned."""

    def next_logits(self, tokens: Sequence[int], root: int = 0) -> Any:
        """Raises `UsageError`: a server gives no logits."""
        raise UsageError("a served model gives neither logits nor states", hint="this needs --model FILE")

    def submit(self, request: Request) -> int:
        """Queue a request; returns its number. Raises `UsageError` for a banned id outside the vocabulary."""
        request.sampling.check_vocabulary(self.tokenizer.vocab_size)
        before = self._prefixes[request.root]
        request = replace(request, tokens=(*before, *request.tokens), root=0)
        return self._start(request, ((), ()), self._reply, len(before))

    def submit_score(
        self, prefix: Sequence[int], continuation: Sequence[int], root: int = 0, *, cache: bool = True
    ) -> int:
        """Queue the scoring of a text, as `Engine.submit_score`. The score is empty where the server gives none."""
        del cache
        if not prefix or not continuation:
            raise ValueError("scoring needs at least one token in the prefix and one in the continuation")
        return self._start(None, ((*self._prefixes[root], *prefix), tuple(continuation)), self._score)

    def cancel(self, request_id: int) -> None:
        """End a request now; the next `step` returns its reply so far, as `cancelled`."""
        job = self._jobs.get(request_id)
        if job is None:
            return
        job.ended.set()
        if job.request is not None:
            self._results.put((job.id, self._made(job, job.answer.text, (), "cancelled", None)))
        else:
            del self._jobs[request_id]

    def step(self) -> list[tuple[int, Reply | Score]]:
        """What ended; waits up to `WAIT_S` for it.

        Raises:
            WorkerError, UsageError, RequestsSpentError: no further request can succeed either, see `Client.call`.
        """
        found: list[tuple[int, Reply | Score]] = []
        wait_s = WAIT_S
        while True:
            try:
                number, result = self._results.get(timeout=wait_s)
            except queue.Empty:
                return found
            wait_s = 0.0
            if isinstance(result, str):
                self._show(number, result)
                continue
            if self._jobs.pop(number, None) is None:
                continue
            if isinstance(result, BaseException):
                raise result
            if isinstance(result, Reply):
                self.stats.num_generated += len(result.ids)
                self.stats.num_prompt_read += result.num_prompt - result.num_cached
                self.stats.num_prompt_cached += result.num_cached
            found.append((number, result))

    def _show(self, number: int, piece: str) -> None:
        job = self._jobs.get(number)
        if job is not None and job.request is not None and job.request.on_text is not None and not job.ended.is_set():
            job.request.on_text(piece)

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies to all requests, in their order."""
        numbers = [self.submit(request) for request in requests]
        results = self._run_until(numbers)
        return [result for number in numbers if isinstance(result := results[number], Reply)]

    def score(self, prefix: Sequence[int], continuation: Sequence[int], root: int = 0) -> Score:
        """The log-probabilities of `continuation` after `prefix`."""
        number = self.submit_score(prefix, continuation, root)
        result = self._run_until([number])[number]
        assert isinstance(result, Score)
        return result

    def _run_until(self, numbers: Sequence[int]) -> dict[int, Reply | Score]:
        results: dict[int, Reply | Score] = {}
        while not results.keys() >= set(numbers):
            results.update(self.step())
        return results

    def _start(
        self,
        request: Request | None,
        texts: tuple[tuple[int, ...], tuple[int, ...]],
        work: Callable[[_Job], Reply | Score | None],
        num_before: int = 0,
    ) -> int:
        job = _Job(self._next_id, request, texts, self._clock(), num_before=num_before)
        self._next_id += 1
        self._jobs[job.id] = job
        results = self._results

        def run() -> None:
            if job.ended.is_set():
                return
            try:
                result = work(job)
            except BaseException as error:  # raised again by `step`, in the caller's thread
                results.put((job.id, error))
            else:
                if result is not None:
                    results.put((job.id, result))

        self._todo.put(run)
        if self._num_threads < min(self.max_batch, len(self._jobs)):
            self._num_threads += 1
            # Daemons: a request that hangs does not keep the process.
            threading.Thread(target=_work, args=(self._todo,), name="endpoint", daemon=True).start()
        return job.id

    def _prompt(self, tokens: Sequence[int]) -> str | Sequence[int]:
        """The prompt as it is sent. A text cannot hold end of text (0), which only ids can."""
        if self._spec.api == "completions-ids":
            return tokens
        if END_OF_TEXT in tokens:
            raise EndpointError(
                "the prompt begins with token 0 (--bos), which text cannot hold: use --endpoint-api completions-ids, "
                "or --bos off and let the server add it"
            )
        return self.tokenizer.decode(tokens)

    def _reply(self, job: _Job) -> Reply | None:
        request = job.request
        assert request is not None
        job.started_s = self._clock()
        try:
            prompt = "" if self._spec.api == "chat" else self._prompt(request.tokens)
            body = reply_body(request, prompt, model=self._spec.name, api=self._spec.api, logprobs=self.asks_logprobs)
            self._warn_of_extensions(body)
            answer = self._ask(job, body, request)
            if answer is None:
                return None
            finish, stop = ("time", None) if self._timed_out(job) else answer.end(request.stop)
            tokens = self._reader.by_ids(answer.tokens, answer.text)
            if finish == "stop" and stop is None:
                stop = stop_among(tokens, answer.text, request.stop)
        except EndpointError as error:
            if self._without_logprobs(error):
                return self._reply(job)
            return self._made(job, job.answer.text, (), "error", None, self._client.words(error.message))
        return self._made(job, answer.text, tokens, finish, stop)

    def _ask(self, job: _Job, body: Json, request: Request) -> Answer | None:
        path = "chat/completions" if self._spec.api == "chat" else "completions"
        shown = 0

        def read(events: Iterator[Json]) -> Answer:
            nonlocal shown
            if shown:
                raise EndpointError("the connection failed in the middle of the reply")
            answer = job.answer = Answer()
            for event in events:
                piece = answer.take(event)
                if job.first_s is None and (piece or answer.tokens):
                    job.first_s = self._clock()
                if piece and request.on_text is not None:
                    shown += 1
                    self._results.put((job.id, piece))
                if self._timed_out(job):
                    return answer
            if answer.finish_reason is None:
                answer.end(request.stop)  # raises
            return answer

        most = REPLY_BYTES + BYTES_PER_TOKEN * request.max_tokens
        return self._client.call("POST", path, {**body, **self._extra}, read, max_bytes=most, cancelled=job.ended)

    def _timed_out(self, job: _Job) -> bool:
        limit_s = None if job.request is None else job.request.max_seconds
        started_s = job.started_s
        return limit_s is not None and started_s is not None and self._clock() - started_s >= limit_s

    def _without_logprobs(self, error: EndpointError) -> bool:
        """Whether the server refused a request for its log-probabilities; they are not asked for again."""
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

    def _made(
        self,
        job: _Job,
        text: str,
        tokens: Sequence[ServedToken],
        finish: FinishReason,
        stop: str | None,
        error: str | None = None,
    ) -> Reply:
        request, now_s, answer = job.request, self._clock(), job.answer
        assert request is not None
        if answer.prompt_tokens == len(request.tokens) + 1 and self._spec.api == "completions":
            self._warn(
                "begin",
                "the server reads one token more than the prompt has, as it would with a token 0 before it; "
                "--endpoint-api completions-ids sends what a model in this process reads",
            )
        kept = within(tokens, text + (stop or ""))
        ids = self._reader.ids(text, stop, kept)
        values = [token.logprob for token in kept if token.logprob is not None]
        closed = closed_history(self.tokenizer, request.tokens, ids, finish, stop, request.closing)
        started_s = job.submitted_s if job.started_s is None else job.started_s
        first_s = now_s if job.first_s is None else job.first_s
        return Reply(
            text=text,
            ids=ids,
            history=closed[job.num_before :],
            finish_reason=finish,
            stopped_by=stop,
            logprobs=tuple(values) if len(values) == len(kept) else (),
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

    def _score(self, job: _Job) -> Score | None:
        prefix, continuation = job.texts
        if self._spec.api == "chat" or not self.asks_logprobs:
            return self._not_scored("the chat interface gives no log-probabilities of given text")
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
            found = self._reader.continued(tokens, prefix, continuation, by_ids=not isinstance(prompt, str))
        except EndpointError as error:
            refused = error.status is not None and any(word in error.message.lower() for word in ("logprob", "echo"))
            if refused:
                return self._not_scored(NOT_SCORED)
            return Score((), 0, error=self._client.words(error.message))
        values = [token.logprob for token in found]
        if None in values:
            return Score((), 0, error="the server gives no log-probability for some tokens of the text")
        matched = sum(token.best is not None and token.logprob >= token.best for token in found if token.logprob)
        matched += sum(token.logprob == 0 for token in found)
        return Score([value for value in values if value is not None], matched)

    def _not_scored(self, why: str) -> Score:
        self._warn("score", f"{why}: references are not scored")
        return Score((), 0, unavailable=why)


def _work(todo: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (run := todo.get()) is not None:
        run()
        del run  # or the thread would keep the engine


def _stop(todo: queue.SimpleQueue[Callable[[], None] | None], num_threads: int) -> None:
    for _ in range(num_threads):
        todo.put(None)
