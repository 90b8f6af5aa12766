"""A served model as a judge: chat completions of an OpenAI-compatible server, and how its answers are read.

With log-probabilities (`logprobs`, `top_logprobs`) the probability of the first word is its share of both among the
alternatives of the answer's first token, if they have at least half of its probability. Without them the answer's text
must be one of the two words, apart from case, quotation marks and a stop; any other text is no answer.
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
from rwkvbatch.judges.opinions import Opinion, Seed
from rwkvbatch.judges.questions import Ask, Question

MAX_TOKENS = 16
"""Tokens of an answer, at most; a field of `--judge-body` takes its place, for models that think first."""
NUM_TOP = 20
MAX_ANSWER_BYTES = 2**22
LEAST_MASS = 0.5
"""Of the two words among the alternatives of a token, for a probability to be read there."""
TOLERANCE = 0.01
"""Of a probability near one half: the answer may then be the other word, as servers round."""
HEARTBEAT_S = 0.1

_AROUND = " \t\r\n.!*_`\"'“”‘’「」[](){}"
_FATAL = (UsageError, WorkerError, RequestsSpentError)
"""After these no further request can succeed either."""


class ServedJudge:
    """Judges with the model of a server; see `opinions.Judge`.

    Args:
        client: of the server. model: its name there. extra: further fields of each request.
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

    def answers(self, asks: Iterator[Ask]) -> Iterator[tuple[Ask, Opinion] | None]:
        """The opinions on all `asks`, as of `opinions.Judge`; a few at a time are under way, in threads."""
        todo: queue.SimpleQueue[Ask | None] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[Ask, Opinion] | BaseException] = queue.SimpleQueue()
        most, active, threads, exhausted = self._client.options.concurrency, 0, 0, False
        self._cancelled = threading.Event()
        try:
            while True:
                while active < 2 * most and not exhausted:
                    ask = next(asks, None)
                    if ask is None:
                        exhausted = True
                    elif self._fatal is not None:
                        yield ask, Opinion(problem=self._fatal)
                    else:
                        todo.put(ask)
                        active += 1
                        if threads < min(most, active):
                            threads += 1
                            # Daemons: a request that hangs does not keep the process.
                            threading.Thread(target=self._work, args=(todo, done), name="judge", daemon=True).start()
                if not active:
                    return
                try:
                    result = done.get(timeout=HEARTBEAT_S)
                except queue.Empty:
                    yield None
                    continue
                active -= 1
                if isinstance(result, BaseException):
                    raise result
                yield result
        finally:
            self._cancelled.set()
            for _ in range(threads):
                todo.put(None)

    def _work(
        self, todo: queue.SimpleQueue[Ask | None], done: queue.SimpleQueue[tuple[Ask, Opinion] | BaseException]
    ) -> None:
        while (ask := todo.get()) is not None:
            try:
                done.put((ask, self._opinion(ask)))
            except BaseException as error:  # raised again by `answers`, in the caller's thread
                done.put(error)

    def _opinion(self, ask: Ask) -> Opinion:
        votes: dict[Seed, bool] = {}
        try:
            sampled = [seed for seed in ask.seeds if seed is not None]
            if not sampled or self._gives_probabilities is not False:
                found = self._asked(ask.question, None)
                if isinstance(found, Opinion):
                    return found
                if not sampled:
                    return Opinion(votes={None: found})
            for seed in sampled:
                found = self._asked(ask.question, seed)
                if isinstance(found, Opinion):
                    return Opinion(votes=votes, problem=found.problem)
                votes[seed] = found
        except _FATAL as error:
            self._fatal = self._client.words(error.message)
            return Opinion(votes=votes, problem=self._fatal)
        except RwkvBatchError as error:
            return Opinion(votes=votes, problem=self._client.words(error.message))
        return Opinion(votes=votes)

    def _asked(self, question: Question, seed: Seed) -> bool | Opinion:
        """The word that the server answers with, or without a seed its probability; an opinion with a problem."""
        if self._fatal is not None:
            return Opinion(problem=self._fatal)
        wants_logprobs = seed is None and self._asks_logprobs
        try:
            answer = self._call(question, seed, wants_logprobs=wants_logprobs)
        except EndpointError as error:
            if not (wants_logprobs and error.status is not None and "logprob" in error.message.lower()):
                raise
            self._asks_logprobs = False
            answer = self._call(question, seed, wants_logprobs=False)
        if answer is None:
            return Opinion(problem="the judge was stopped before it answered")
        text, tops = answer
        word = read_word(text, question.words)
        if word is None:
            return Opinion(problem=f"the judge's answer is neither {' nor '.join(question.words)}: {_short(text)}")
        probability = read_probability(tops, question.words) if seed is None and "</think>" not in text else None
        if seed is None:
            self._gives_probabilities = probability is not None
        if probability is None:
            return word
        if word != (probability > 0.5) and abs(probability - 0.5) > TOLERANCE:
            return Opinion(
                problem=f"the judge's answer {_short(text)} is not the likelier word by its log-probabilities"
            )
        return Opinion(probability)

    def _call(
        self, question: Question, seed: Seed, *, wants_logprobs: bool
    ) -> tuple[str, Sequence[Mapping[str, Any]]] | None:
        sampled = {"temperature": 0.0} if seed is None else {"temperature": 1.0, "top_p": 1.0, "seed": seed}
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": question.text}],
            "max_tokens": MAX_TOKENS,
            **sampled,
            **({"logprobs": True, "top_logprobs": NUM_TOP} if wants_logprobs else {}),
            **self._extra,
        }

        def read(events: Iterator[Json]) -> tuple[str, Sequence[Mapping[str, Any]]]:
            answer, tops = Answer(), list[Mapping[str, Any]]()
            for event in events:
                answer.take(event)
                tops += _tops(event)
            reason, _ = answer.end(())
            if reason == "length" and read_word(answer.text, question.words) is None:
                raise EndpointError(f"the judge's answer was cut off at its limit of tokens: {_short(answer.text)}")
            return answer.text, tops

        return self._client.call(
            "POST", "chat/completions", body, read, max_bytes=MAX_ANSWER_BYTES, cancelled=self._cancelled
        )


def read_word(text: str, words: tuple[str, str]) -> bool | None:
    """Whether a text, without its thinking part, is the first of two words or the second; None if it is neither.

    >>> read_word("**Yes.**", ("Yes", "No"))
    True
    >>> read_word("Not at all", ("Yes", "No")) is None
    True
    """
    said = text.rpartition("</think>")[2].strip(_AROUND).casefold()
    first, second = (word.casefold() for word in words)
    return True if said == first else False if said == second else None


def read_probability(tops: Sequence[Mapping[str, Any]], words: tuple[str, str]) -> float | None:
    """The share of the first word among the alternatives of an answer's first token that is not blank.

    Args:
        tops: of each token its `token` and `top_logprobs`, as OpenAI's API has them.

    Returns:
        None where there are no alternatives, or the two words have less than `LEAST_MASS` together.
    """
    first = next((each for each in tops if str(each.get("token", "")).strip(_AROUND)), None)
    if first is None:
        return None
    masses = [0.0, 0.0]
    named = [word.casefold() for word in words]
    seen = set[str]()
    for each in cast("list[Any]", first["top_logprobs"]):
        match each:
            case {"token": str(token), "logprob": int() | float() as logprob} if token not in seen:
                seen.add(token)
                word = token.strip(_AROUND).casefold()
                if word in named and not isinstance(logprob, bool) and logprob <= 1e-3:
                    masses[named.index(word)] += math.exp(max(logprob, -700.0))
            case _:
                pass
    total = sum(masses)
    return masses[0] / total if LEAST_MASS <= total <= 1.01 else None


def _tops(event: Json) -> list[Mapping[str, Any]]:
    """The tokens of an event that have alternatives."""
    found: list[Mapping[str, Any]] = []
    match event:
        case {"choices": [{"logprobs": {"content": [*content]}}, *_]}:
            for each in content:
                match each:
                    case {"token": str(), "top_logprobs": [*_]}:
                        found.append(cast("dict[str, Any]", each))
                    case _:
                        pass
        case _:
            pass
    return found


def _short(text: str) -> str:
    from rwkvbatch.prompt.escaping import printable

    shown = printable(text[:200], keep_newlines=False)
    return repr(shown if len(shown) <= 80 else shown[:80] + "…")
