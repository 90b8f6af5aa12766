"""A served model as a judge, which answers in chat completions of an OpenAI-compatible server.

With log-probabilities (`logprobs`, `top_logprobs`), the two words are looked up among the alternatives of the answer's
first token. If both together have at least half of its probability, the probability of the first word is its share of
theirs. Without log-probabilities, the answer's text must be one of the two words, ignoring case, quotation marks and a
full stop; any other text is not an answer.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from rwkvbatch.endpoint.client import Client, Json
from rwkvbatch.endpoint.protocol import Answer
from rwkvbatch.errors import EndpointError, RequestsSpentError, RwkvBatchError, UsageError, WorkerError
from rwkvbatch.judges.answers import STOPPED, JudgeAnswer, Seed
from rwkvbatch.judges.questions import Question, VoteRequest

MAX_TOKENS = 16
"""The most tokens of an answer; a field of `--judge-body` overrides it, for models that think first."""
NUM_TOP = 20
MAX_ANSWER_BYTES = 2**22
MIN_PROBABILITY_MASS = 0.5
"""The smallest probability of both words together, among a token's alternatives, from which a share is computed."""
TOLERANCE = 0.01
"""If the probability is this close to 0.5, the answer may be the less likely word, because servers round."""
HEARTBEAT_S = 0.1

_IGNORED_AROUND_WORD = " \t\r\n.!*_`\"'“”‘’「」[](){}"
_FATAL = (UsageError, WorkerError, RequestsSpentError)
"""Errors after which no further request can succeed."""


class ServedJudge:
    """Judges with the model of a server; see `answers.Judge`.

    Args:
        client: the server's client.
        model: the model's name on the server.
        extra: additional fields of each request.
    """

    def __init__(self, client: Client, model: str, extra: Json | None = None) -> None:
        self.name = client.words(model)
        self.identity: Mapping[str, Any] = {
            "kind": "served",
            "url": client.url,
            "model": model,
            "body": dict(extra or {}),
        }
        self._client = client
        self._model = model
        self._extra = dict(extra or {})
        self._asks_logprobs = True
        self._gives_probabilities: bool | None = None
        self._fatal: str | None = None
        self._cancelled = threading.Event()

    def answers(self, requests: Iterator[VoteRequest]) -> Iterator[tuple[VoteRequest, JudgeAnswer] | None]:
        """See `answers.Judge.answers`; threads answer several questions concurrently."""
        todo: queue.SimpleQueue[VoteRequest | None] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[VoteRequest, JudgeAnswer] | BaseException] = queue.SimpleQueue()
        concurrency, num_active, num_threads, exhausted = self._client.options.concurrency, 0, 0, False
        self._cancelled = threading.Event()
        try:
            while True:
                while num_active < 2 * concurrency and not exhausted:
                    request = next(requests, None)
                    if request is None:
                        exhausted = True
                    elif self._fatal is not None:
                        yield request, JudgeAnswer(problem=self._fatal)
                    else:
                        todo.put(request)
                        num_active += 1
                        if num_threads < min(concurrency, num_active):
                            num_threads += 1
                            # A daemon thread does not keep the process alive if its request hangs.
                            threading.Thread(target=self._work, args=(todo, done), name="judge", daemon=True).start()
                if not num_active:
                    return
                try:
                    result = done.get(timeout=HEARTBEAT_S)
                except queue.Empty:
                    yield None
                    continue
                num_active -= 1
                if isinstance(result, BaseException):
                    raise result
                yield result
        finally:
            self._cancelled.set()
            for _ in range(num_threads):
                todo.put(None)

    def _work(
        self,
        todo: queue.SimpleQueue[VoteRequest | None],
        done: queue.SimpleQueue[tuple[VoteRequest, JudgeAnswer] | BaseException],
    ) -> None:
        while (request := todo.get()) is not None:
            try:
                done.put((request, self._answer(request)))
            except BaseException as error:  # `answers` raises it again in the caller's thread
                done.put(error)

    def _answer(self, request: VoteRequest) -> JudgeAnswer:
        votes: dict[Seed, bool] = {}
        try:
            seeds = [seed for seed in request.seeds if seed is not None]
            if not seeds or self._gives_probabilities is not False:
                result = self._ask_once(request.question, None)
                if isinstance(result, JudgeAnswer):
                    return result
                if not seeds:
                    return JudgeAnswer(votes={None: result})
            for seed in seeds:
                result = self._ask_once(request.question, seed)
                if isinstance(result, JudgeAnswer):
                    return JudgeAnswer(votes=votes, problem=result.problem)
                votes[seed] = result
        except _FATAL as error:
            self._fatal = self._client.words(error.message)
            return JudgeAnswer(votes=votes, problem=self._fatal)
        except RwkvBatchError as error:
            return JudgeAnswer(votes=votes, problem=self._client.words(error.message))
        return JudgeAnswer(votes=votes)

    def _ask_once(self, question: Question, seed: Seed) -> bool | JudgeAnswer:
        """Ask a question once, with a sampled answer under a seed, or the likeliest answer for None.

        Returns:
            Whether the answer is the first word; or an answer with a probability (only without a seed), or a problem.
        """
        if self._fatal is not None:
            return JudgeAnswer(problem=self._fatal)
        wants_logprobs = seed is None and self._asks_logprobs
        try:
            answer = self._call(question, seed, wants_logprobs=wants_logprobs)
        except EndpointError as error:
            if not (wants_logprobs and error.status is not None and "logprob" in error.message.lower()):
                raise
            self._asks_logprobs = False
            answer = self._call(question, seed, wants_logprobs=False)
        if answer is None:
            return JudgeAnswer(problem=STOPPED)
        text, tokens = answer
        is_first = read_word(text, question.words)
        if is_first is None:
            return JudgeAnswer(problem=f"the judge's answer is neither {' nor '.join(question.words)}: {_short(text)}")
        probability = read_probability(tokens, question.words) if seed is None and "</think>" not in text else None
        if seed is None:
            self._gives_probabilities = probability is not None
        if probability is None:
            return is_first
        if is_first != (probability > 0.5) and abs(probability - 0.5) > TOLERANCE:
            return JudgeAnswer(
                problem=f"the judge's answer {_short(text)} is not the likelier word by its log-probabilities"
            )
        return JudgeAnswer(probability)

    def _call(
        self, question: Question, seed: Seed, *, wants_logprobs: bool
    ) -> tuple[str, Sequence[Mapping[str, Any]]] | None:
        """The answer's text, and its tokens with alternatives; None if the judge was stopped."""
        sampling = {"temperature": 0.0} if seed is None else {"temperature": 1.0, "top_p": 1.0, "seed": seed}
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": question.text}],
            "max_tokens": MAX_TOKENS,
            **sampling,
            **({"logprobs": True, "top_logprobs": NUM_TOP} if wants_logprobs else {}),
            **self._extra,
        }

        def read(events: Iterator[Json]) -> tuple[str, Sequence[Mapping[str, Any]]]:
            answer, tokens = Answer(), list[Mapping[str, Any]]()
            for event in events:
                answer.take(event)
                tokens += _tokens_with_alternatives(event)
            reason, _ = answer.end(())
            if reason == "length" and read_word(answer.text, question.words) is None:
                raise EndpointError(f"the judge's answer was cut off at its limit of tokens: {_short(answer.text)}")
            return answer.text, tokens

        return self._client.call(
            "POST", "chat/completions", body, read, max_bytes=MAX_ANSWER_BYTES, cancelled=self._cancelled
        )


def read_word(text: str, words: tuple[str, str]) -> bool | None:
    """Whether a text, without its thinking part, is the first of two words; None if it is neither of them.

    >>> read_word("**Yes.**", ("Yes", "No"))
    True
    >>> read_word("Not at all", ("Yes", "No")) is None
    True
    """
    answer = text.rpartition("</think>")[2].strip(_IGNORED_AROUND_WORD).casefold()
    first, second = (word.casefold() for word in words)
    if answer not in (first, second):
        return None
    return answer == first


def read_probability(tokens: Sequence[Mapping[str, Any]], words: tuple[str, str]) -> float | None:
    """The first word's share of the probability of both words, among the alternatives of the first non-blank token.

    Args:
        tokens: each token of the answer with its `token` and `top_logprobs`, as in OpenAI's API.

    Returns:
        None if there are no alternatives, or if the two words together have less than `MIN_PROBABILITY_MASS`.
    """
    first = next((token for token in tokens if str(token.get("token", "")).strip(_IGNORED_AROUND_WORD)), None)
    if first is None:
        return None
    masses = [0.0, 0.0]
    folded_words = [word.casefold() for word in words]
    seen = set[str]()
    for alternative in cast("list[Any]", first["top_logprobs"]):
        match alternative:
            case {"token": str(text), "logprob": int() | float() as logprob} if text not in seen:
                seen.add(text)
                word = text.strip(_IGNORED_AROUND_WORD).casefold()
                if word in folded_words and not isinstance(logprob, bool) and logprob <= 1e-3:
                    masses[folded_words.index(word)] += math.exp(max(logprob, -700.0))
            case _:
                pass
    total = sum(masses)
    return masses[0] / total if MIN_PROBABILITY_MASS <= total <= 1.01 else None


def _tokens_with_alternatives(event: Json) -> list[Mapping[str, Any]]:
    tokens: list[Mapping[str, Any]] = []
    match event:
        case {"choices": [{"logprobs": {"content": [*content]}}, *_]}:
            for token in content:
                match token:
                    case {"token": str(), "top_logprobs": [*_]}:
                        tokens.append(cast("dict[str, Any]", token))
                    case _:
                        pass
        case _:
            pass
    return tokens


def _short(text: str) -> str:
    from rwkvbatch.prompt.escaping import printable

    shown = printable(text[:200], keep_newlines=False)
    return f"'{shown if len(shown) <= 80 else shown[:80] + '…'}'"
