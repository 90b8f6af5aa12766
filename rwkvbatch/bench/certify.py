"""Comparison of a served model with the network in a file, by greedy replies and log-probabilities.

The local model replays a script greedily; its dialogues are the prompts for both sides. The local model then scores
the server's greedy reply to each prompt: it gives each token a log-probability after the server's own preceding tokens,
so that one different token does not affect the tokens after it. There are two figures:

- the gap: |server's log-probability - local log-probability| of each token of the server's reply, in nats;
- the agreement: the share of the server's tokens that are also the local model's greedy choice. Rounding changes a
  greedy choice only if two tokens are about equally likely.

The same prompts are sent one at a time, once more one at a time, and all at once; the three answers are compared bit
for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import orjson

from rwkvbatch.config import EndpointApi, RunSettings, ScriptLimits
from rwkvbatch.endpoint.client import Client, ClientOptions, OptionNames, check_url
from rwkvbatch.endpoint.engine import EndpointEngine
from rwkvbatch.endpoint.served import Endpoint, served_spec
from rwkvbatch.engine.engine import Engine
from rwkvbatch.engine.request import END_OF_TEXT, Reply, Request
from rwkvbatch.errors import UnreachableError, UsageError, WorkerError, counted
from rwkvbatch.model.load import load_model
from rwkvbatch.prompt.vocabulary import tokenizer_of
from rwkvbatch.replay.api import run
from rwkvbatch.replay.worker.conversation import ConversationReplay
from rwkvbatch.replay.worker.prompts import PromptEncoder

Verdict = Literal["same", "rounded", "damaged"]
Notify = Callable[[str], None]

SAME_GAP = 1e-3
"""The largest gap of any token that counts as equal: printing 4 digits and another order of sums cause this much."""
ROUNDED_GAP, ROUNDED_AGREEMENT = 0.1, 0.95
"""The largest mean gap, and the smallest agreement, of a rounded network; docs/endpoints.md has measurements."""
MIN_TOKENS = 50
"""The fewest tokens for a verdict."""

PROMPTS = (
    ("My name is Ada and I live in Oslo.", "What is my name, and where do I live?"),
    ("Write a short story about a lighthouse.", "Continue it."),
    ("What is the capital of France?",),
    ("List five colours.", "Which of them is the colour of grass?"),
    ("Explain in one sentence why the sky is blue.",),
    ("Translate into English: Guten Morgen, wie geht es dir?",),
    ("Count from one to ten.",),
    ("Write a function in Python that adds two numbers.", "Now one that multiplies them."),
)
"""The user messages of the conversations that are replayed if no script is given."""


@dataclass(frozen=True)
class Certificate:
    """The result of a comparison.

    Attributes:
        num_replies, num_tokens: numbers of compared replies and tokens.
        num_scored: number of tokens with log-probabilities on both sides.
        mean_gap, largest_gap: gaps of the scored tokens, in nats; None without scored tokens.
        agreement: share of the server's tokens that are the local model's greedy choice.
        same_replies: number of replies with the same text on both sides.
        repeated, under_load: number of replies that were equal, including log-probabilities, when sent once more, and
            when sent all at once.
        at_once: number of concurrent prompts of `under_load`.
        begins_with_0: whether the server reads token 0 (end of text) before a prompt; the local model then does too.
        worst: the token with the largest gap, in words; None without scored tokens.
    """

    verdict: Verdict
    model: str
    server: str
    api: EndpointApi
    num_replies: int
    num_tokens: int
    num_scored: int
    mean_gap: float | None
    largest_gap: float | None
    agreement: float
    same_replies: int
    repeated: int
    under_load: int
    at_once: int
    begins_with_0: bool
    worst: str | None

    as_dict = asdict


@dataclass(frozen=True)
class CertifyOptions:
    """Options of a comparison: `script` (None for `PROMPTS`), and settings with the same names as those of a run."""

    script: Path | None = None
    script_limits: ScriptLimits = field(default_factory=ScriptLimits)
    endpoint_model: str | None = None
    endpoint_api: EndpointApi = "completions-ids"
    model: str | None = None
    strategy: str = "auto"
    backend: str = "auto"
    vocab: str | None = None
    max_tokens: int = 48
    limit: int | None = None
    concurrency: int = 16
    timeout_s: float = 600.0
    retries: int = 5


def certify(url: str, options: CertifyOptions, notify: Notify = lambda _: None) -> Certificate:
    """Compare the model that `url` serves with the one in a file.

    Raises:
        UsageError: an unknown model, the chat interface, or replies with too few tokens for a verdict.
        UnreachableError: the server cannot be reached, or does not answer a prompt.
        CheckpointError, ScriptError: the model or the script cannot be read.
    """
    if options.endpoint_api == "chat":
        raise UsageError("certify compares the same prompts, and with --endpoint-api chat the server makes them")
    names = OptionNames("URL")
    endpoint = Endpoint(check_url(url, names), options.endpoint_model or "", options.endpoint_api, "")
    client = Client(endpoint.url, ClientOptions(options.concurrency, options.timeout_s, options.retries, names))
    spec = served_spec(endpoint, client)
    model = load_model(options.model, options.strategy, options.backend)
    tokenizer = tokenizer_of(model.spec, options.vocab)
    engine = Engine(model, tokenizer=tokenizer)
    requests = _requests(engine, options)
    notify(f"{len(requests)} prompts of {model.spec.in_words}")

    def ask(at_once: int) -> list[Reply]:
        notify(f"asking {spec.in_words}, {at_once} at a time")
        served = EndpointEngine(client, spec, tokenizer, max_batch=at_once)
        try:
            replies = served.generate(requests)
        except WorkerError as error:
            raise UnreachableError(f"{names.url} {error.message}", hint=error.hint) from None
        failed = next((reply for reply in replies if reply.error), None)
        if failed is not None:
            raise UnreachableError(f"{endpoint.url} did not answer a prompt: {failed.error}")
        return replies

    alone, again = ask(1), ask(1)
    at_once = min(options.concurrency, len(requests))
    loaded = ask(at_once)
    # A server may prepend the vocabulary's beginning-of-text token, which is end of text (0) in RWKV's vocabulary.
    begins_with_0 = all(
        reply.num_prompt == len(request.tokens) + 1 for request, reply in zip(requests, alone, strict=True)
    )
    if begins_with_0:
        requests = [replace(request, tokens=(END_OF_TEXT, *request.tokens)) for request in requests]
    local = engine.generate(requests)
    compared = _compared(engine, requests, alone)
    return Certificate(
        verdict=verdict_of(compared.mean_gap, compared.largest_gap, compared.agreement),
        model=model.spec.in_words,
        server=spec.in_words,
        api=spec.api,
        num_replies=len(requests),
        num_tokens=compared.num_tokens,
        num_scored=len(compared.gaps),
        mean_gap=compared.mean_gap,
        largest_gap=compared.largest_gap,
        agreement=compared.agreement,
        same_replies=sum(ours.text == theirs.text for ours, theirs in zip(local, alone, strict=True)),
        repeated=_num_equal(alone, again),
        under_load=_num_equal(alone, loaded),
        at_once=at_once,
        begins_with_0=begins_with_0,
        worst=compared.worst,
    )


def _requests(engine: Engine, options: CertifyOptions) -> list[Request]:
    """The prompts of a script's turns, each after the local model's greedy replies."""
    settings: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "max_tokens": options.max_tokens}
    settings |= {"turn_end": "next-role", "limit": options.limit, "vocab": options.vocab}
    settings |= options.script_limits.model_dump()
    with TemporaryDirectory(prefix="rwkvbatch-certify-") as folder:
        script = options.script
        if script is None:
            script = Path(folder) / "prompts.jsonl"
            lines = [
                orjson.dumps({"id": str(number), "messages": [{"role": "user", "content": text} for text in texts]})
                for number, texts in enumerate(PROMPTS)
            ]
            script.write_bytes(b"\n".join(lines))
        result = run(script, model=engine.model, **settings)
    rows = {row.key: row for row in result.rows()}
    encoder = PromptEncoder(engine.tokenizer, None, None, engine.model.spec.weights_sha256)
    requests: list[Request] = []
    for number in range(result.plan.num_tasks):
        task = result.plan.task(number)
        replay = ConversationReplay(task, encoder)
        while not replay.over:
            row = rows[task.key(replay.turn)]
            if row.error is not None:
                break
            if task.conversation.turns[replay.turn].generate:
                requests.append(replay.request())
            replay.skip_turn(row)
    if not requests:
        raise UsageError("the script asks for no reply that could be compared")
    return requests


@dataclass(frozen=True)
class _Compared:
    """A server's replies, read token by token by the model in this process.

    Attributes:
        num_matched: number of tokens that are the greedy ones here too.
        gaps: by token, the difference of the log-probabilities, where the server gives them.
        worst: the token with the largest gap, in words.
    """

    num_tokens: int
    num_matched: int
    gaps: list[float]
    worst: str | None

    @property
    def agreement(self) -> float:
        return self.num_matched / self.num_tokens

    @property
    def mean_gap(self) -> float | None:
        return math.fsum(self.gaps) / len(self.gaps) if self.gaps else None

    @property
    def largest_gap(self) -> float | None:
        return max(self.gaps, default=None)


def _compared(engine: Engine, requests: Sequence[Request], replies: Sequence[Reply]) -> _Compared:
    """Compare a server's replies with the model of `engine`; raises `UsageError` if they have too few tokens."""
    gaps: list[float] = []
    num_tokens = num_matched = 0
    worst: tuple[float, str] | None = None
    for request, reply in zip(requests, replies, strict=True):
        if not reply.ids:
            continue
        score = engine.score(request.tokens, reply.ids)
        num_tokens += len(reply.ids)
        num_matched += score.num_matched
        if len(reply.logprobs) != len(reply.ids):
            continue
        reply_gaps = [abs(ours - theirs) for ours, theirs in zip(score.logprobs, reply.logprobs, strict=True)]
        gaps += [gap if math.isfinite(gap) else math.inf for gap in reply_gaps]
        if worst is None or max(reply_gaps) > worst[0]:
            index = reply_gaps.index(max(reply_gaps))
            token = engine.tokenizer.decode([reply.ids[index]])
            ours, theirs = score.logprobs[index], reply.logprobs[index]
            text = f"token {index + 1} of a reply, {token!r}: {theirs:.3f} there, {ours:.3f} here"
            worst = max(reply_gaps), text
    if num_tokens < MIN_TOKENS:
        raise UsageError(
            f"the server's replies have {counted(num_tokens, 'token')}, and a verdict takes at least {MIN_TOKENS}",
            hint="give a longer --script, or more --max-tokens",
        )
    return _Compared(num_tokens, num_matched, gaps, None if worst is None else worst[1])


def verdict_of(mean_gap: float | None, largest_gap: float | None, agreement: float) -> Verdict:
    """The verdict from the figures of a `Certificate`; without log-probabilities, the agreement alone decides.

    >>> verdict_of(0.0, 0.0, 1.0), verdict_of(0.01, 0.3, 0.99), verdict_of(2.5, 11.0, 0.1)
    ('same', 'rounded', 'damaged')
    """
    if agreement == 1 and (largest_gap is None or largest_gap <= SAME_GAP):
        return "same"
    if agreement >= ROUNDED_AGREEMENT and (mean_gap is None or mean_gap <= ROUNDED_GAP):
        return "rounded"
    return "damaged"


def _num_equal(first: Sequence[Reply], second: Sequence[Reply]) -> int:
    return sum(a.text == b.text and a.logprobs == b.logprobs for a, b in zip(first, second, strict=True))


def options_of(settings: RunSettings, script: Path | None) -> CertifyOptions:
    """The options of a comparison from the settings of a command line."""
    fields_set = settings.model_fields_set
    api = settings.endpoint_api if "endpoint_api" in fields_set else CertifyOptions.endpoint_api
    return CertifyOptions(
        script=script,
        script_limits=settings.script_limits,
        endpoint_model=settings.endpoint_model,
        endpoint_api=cast("EndpointApi", api),
        model=settings.model,
        strategy=settings.strategy,
        backend=settings.backend,
        vocab=settings.vocab,
        max_tokens=settings.max_tokens if "max_tokens" in fields_set else CertifyOptions.max_tokens,
        limit=settings.limit,
        concurrency=settings.concurrency if "concurrency" in fields_set else CertifyOptions.concurrency,
        timeout_s=settings.endpoint_timeout,
        retries=settings.endpoint_retries,
    )
