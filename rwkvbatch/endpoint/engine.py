"""`EndpointEngine`: a served model with the interface of `engine.Engine` that replay and chat use.

Threads send the requests, at most `concurrency` at a time; `step` returns the results. A prompt is the same text (or
the same token ids) as for an engine; with the chat interface, the server's own template makes the prompt.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from rwkvbatch.endpoint.client import Client, Json
from rwkvbatch.endpoint.requests import ReplyJob, Requests, ScoreJob
from rwkvbatch.endpoint.served import ServedModel, ServedSpec
from rwkvbatch.engine.request import EngineStats, PrefillProgress, Reply, Request, Score
from rwkvbatch.errors import UsageError
from rwkvbatch.prompt.tokenizer import Tokenizer

WAIT_S = 0.1
"""Longest time that a step waits for a result, after which its caller can check signals and the clock."""

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
        self.stats = EngineStats()
        self.max_batch = max_batch or client.options.concurrency
        self._spec = spec
        self._clock = clock
        self._jobs: dict[int, ReplyJob | ScoreJob] = {}
        self._next_id = 0
        self._prefixes: dict[int, tuple[int, ...]] = {0: ()}
        self._todo: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        results = self._results = _Results()
        self._requests = Requests(
            client, spec, tokenizer, dict(extra or {}), clock, lambda job_id, piece: results.put((job_id, piece))
        )
        self._num_threads = 0
        weakref.finalize(self, _stop, self._todo, self.max_batch)

    def __repr__(self) -> str:
        return f"<EndpointEngine of {self._spec.in_words}: {len(self._jobs)} unfinished>"

    @property
    def busy(self) -> bool:
        return bool(self._jobs) or not self._results.empty()

    @property
    def prefill(self) -> PrefillProgress:
        """Always empty, because a server does not report the progress of a prompt."""
        return PrefillProgress()

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
        job = ReplyJob(self._new_id(), request, len(prefix), self._clock())
        return self._start(job, partial(self._requests.reply, job))

    def submit_score(
        self, prefix: Sequence[int], continuation: Sequence[int], root: int = 0, *, cache: bool = True
    ) -> int:
        """Queue the scoring of a text, as in `Engine.submit_score`. The score is empty if the server gives none."""
        del cache
        if not prefix or not continuation:
            raise ValueError("scoring needs at least one token in the prefix and one in the continuation")
        job = ScoreJob(self._new_id(), (*self._prefixes[root], *prefix), tuple(continuation))
        return self._start(job, partial(self._requests.score, job))

    def cancel(self, request_id: int) -> None:
        """End a request now; the next `step` returns its reply so far, as `cancelled`."""
        job = self._jobs.get(request_id)
        if job is None:
            return
        job.ended.set()
        if isinstance(job, ReplyJob):
            self._results.put((job.id, self._requests.made_reply(job, job.answer.text, (), "cancelled", None)))
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
        if isinstance(job, ReplyJob) and job.request.on_text is not None and not job.ended.is_set():
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

    def _start(self, job: ReplyJob | ScoreJob, work: Callable[[], Reply | Score | None]) -> int:
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


def _work(todo: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (run := todo.get()) is not None:
        run()
        del run  # otherwise the thread would keep a reference to the engine


def _stop(todo: queue.SimpleQueue[Callable[[], None] | None], num_threads: int) -> None:
    for _ in range(num_threads):
        todo.put(None)
