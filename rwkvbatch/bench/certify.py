"""Whether a served model is the network in a file: greedy replies and log-probabilities of a script, paired.

The model in this process replays the script greedily; its dialogues are the prompts of both sides. The server's greedy
reply to each prompt is then read by the model in this process, which gives every token of it a log-probability under
the same tokens before it, so that one different token does not spoil those after it. Compared are:

- the gap: |server's log-probability - ours| of each token of the server's reply, in nats;
- the agreement: the share of the server's tokens that are ours too at their place. Rounding changes a greedy choice
  only where two tokens are about as likely.

The same prompts are sent one at a time, once more, and all at once, and the answers compared bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import orjson

from rwkvbatch.config import EndpointApi, RunSettings
from rwkvbatch.endpoint.client import Client, ClientOptions, OptionNames, check_url
from rwkvbatch.endpoint.engine import EndpointEngine
from rwkvbatch.endpoint.served import Endpoint, ServedSpec, served_spec
from rwkvbatch.engine.engine import Engine
from rwkvbatch.engine.request import END_OF_TEXT, Reply, Request
from rwkvbatch.errors import RowError, UsageError, counted
from rwkvbatch.model.load import load_model
from rwkvbatch.prompt.vocabulary import tokenizer_of
from rwkvbatch.replay.api import run
from rwkvbatch.replay.conversation import ConversationReplay
from rwkvbatch.replay.prompts import PromptEncoder

Verdict = Literal["same", "rounded", "damaged"]
Say = Callable[[str], None]

SAME_GAP = 1e-3
"""The largest gap of any token that is not called rounding: what printing 4 digits and another order of sums make."""
ROUNDED_GAP, ROUNDED_AGREEMENT = 0.1, 0.95
"""The largest mean gap, and the least agreement, of a network that is only rounded; docs/endpoints.md has figures."""
MIN_TOKENS = 50
"""Fewer tokens decide nothing."""

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
"""Conversations that are replayed without a script."""


@dataclass(frozen=True)
class Certificate:
    """What a comparison came to.

    Attributes:
        num_replies, num_tokens: compared. num_scored: tokens with log-probabilities on both sides.
        mean_gap, largest_gap: in nats, over `num_scored`; None without any.
        agreement: share of the server's tokens that are the greedy choice here.
        same_replies: replies that are the same text as here.
        repeated, under_load: replies that were the same, log-probabilities included, when asked once more alone, and
            all at once.
        at_once: how many that were.
        begins_with_0: the server reads token 0 (end of text) before a prompt, and so does the model here then.
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
    """How to compare. `script` None takes `PROMPTS`; the other fields are as the settings of a run call them."""

    script: Path | None = None
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


def certify(url: str, options: CertifyOptions, say: Say = lambda _: None) -> Certificate:
    """Compare the model that `url` serves with the one in a file.

    Raises:
        UsageError: no such server or model, the chat interface, or a script with too few tokens to decide anything.
        RowError: the server did not answer a prompt.
        CheckpointError, ScriptError, WorkerError: as loading, reading and `Client.call`.
    """
    if options.endpoint_api == "chat":
        raise UsageError("certify compares the same prompts, and with --endpoint-api chat the server makes them")
    endpoint = Endpoint(check_url(url, OptionNames("URL")), options.endpoint_model or "", options.endpoint_api, "")
    client = Client(endpoint.url, ClientOptions(options.concurrency, options.timeout_s, options.retries))
    spec = served_spec(endpoint, client)
    model = load_model(options.model, options.strategy, options.backend)
    tokenizer = tokenizer_of(model.spec, options.vocab)
    engine = Engine(model, tokenizer=tokenizer)
    requests = _requests(engine, options)
    say(f"{len(requests)} prompts of {model.spec.in_words}")

    def ask(at_once: int) -> list[Reply]:
        say(f"asking {spec.in_words}, {at_once} at a time")
        served = EndpointEngine(client, spec, tokenizer, max_batch=at_once)
        replies = served.generate(requests)
        failed = next((reply for reply in replies if reply.error), None)
        if failed is not None:
            raise RowError(f"{endpoint.url} did not answer a prompt: {failed.error}")
        return replies

    alone, again = ask(1), ask(1)
    at_once = min(options.concurrency, len(requests))
    loaded = ask(at_once)
    # A server may add the vocabulary's token for the beginning, which is end of text (0) in RWKV's.
    begins = all(reply.num_prompt == len(request.tokens) + 1 for request, reply in zip(requests, alone, strict=True))
    if begins:
        requests = [replace(request, tokens=(END_OF_TEXT, *request.tokens)) for request in requests]
    here = engine.generate(requests)
    return _compared(engine, requests, here, (alone, again, loaded), spec, at_once, begins_with_0=begins)


def _requests(engine: Engine, options: CertifyOptions) -> list[Request]:
    """The prompts of a script's turns, each after this model's own greedy replies."""
    settings: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "max_tokens": options.max_tokens}
    settings |= {"turn_end": "next-role", "limit": options.limit, "vocab": options.vocab}
    with TemporaryDirectory(prefix="rwkvbatch-certify-") as folder:
        script = options.script
        if script is None:
            script = Path(folder) / "prompts.jsonl"
            turns = [[{"role": "user", "content": text} for text in each] for each in PROMPTS]
            lines = [orjson.dumps({"id": str(n), "messages": messages}) for n, messages in enumerate(turns)]
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


def _compared(
    engine: Engine,
    requests: Sequence[Request],
    here: Sequence[Reply],
    served: tuple[Sequence[Reply], Sequence[Reply], Sequence[Reply]],
    spec: ServedSpec,
    at_once: int,
    *,
    begins_with_0: bool,
) -> Certificate:
    alone, again, loaded = served
    gaps: list[float] = []
    num_tokens = num_matched = 0
    worst: tuple[float, str] | None = None
    for request, reply in zip(requests, alone, strict=True):
        if not reply.ids:
            continue
        score = engine.score(request.tokens, reply.ids)
        num_tokens += len(reply.ids)
        num_matched += score.num_matched
        if len(reply.logprobs) != len(reply.ids):
            continue
        own = [abs(ours - theirs) for ours, theirs in zip(score.logprobs, reply.logprobs, strict=True)]
        gaps += [gap if math.isfinite(gap) else math.inf for gap in own]
        if worst is None or max(own) > worst[0]:
            place = own.index(max(own))
            token = engine.tokenizer.decode([reply.ids[place]])
            ours, theirs = score.logprobs[place], reply.logprobs[place]
            worst = max(own), f"token {place + 1} of a reply, {token!r}: {theirs:.3f} there, {ours:.3f} here"
    if num_tokens < MIN_TOKENS:
        raise UsageError(
            f"the server's replies have {counted(num_tokens, 'token')}, and a verdict takes at least {MIN_TOKENS}",
            hint="give a longer --script, or more --max-tokens",
        )
    agreement = num_matched / num_tokens
    mean = math.fsum(gaps) / len(gaps) if gaps else None
    largest = max(gaps, default=None)
    same_replies = sum(ours.text == theirs.text for ours, theirs in zip(here, alone, strict=True))
    return Certificate(
        verdict=verdict_of(mean, largest, agreement),
        model=engine.model.spec.in_words,
        server=spec.in_words,
        api=spec.api,
        num_replies=len(requests),
        num_tokens=num_tokens,
        num_scored=len(gaps),
        mean_gap=mean,
        largest_gap=largest,
        agreement=agreement,
        same_replies=same_replies,
        repeated=_num_equal(alone, again),
        under_load=_num_equal(alone, loaded),
        at_once=at_once,
        begins_with_0=begins_with_0,
        worst=None if worst is None else worst[1],
    )


def verdict_of(mean_gap: float | None, largest_gap: float | None, agreement: float) -> Verdict:
    """The verdict on the figures of a `Certificate`. Without log-probabilities the agreement alone decides.

    >>> verdict_of(0.0, 0.0, 1.0), verdict_of(0.01, 0.3, 0.99), verdict_of(2.5, 11.0, 0.1)
    ('same', 'rounded', 'damaged')
    """
    if agreement == 1 and (largest_gap is None or largest_gap <= SAME_GAP):
        return "same"
    if agreement >= ROUNDED_AGREEMENT and (mean_gap is None or mean_gap <= ROUNDED_GAP):
        return "rounded"
    return "damaged"


def _num_equal(one: Sequence[Reply], other: Sequence[Reply]) -> int:
    return sum(a.text == b.text and a.logprobs == b.logprobs for a, b in zip(one, other, strict=True))


def options_of(settings: RunSettings, script: Path | None) -> CertifyOptions:
    """The options among the settings of a command line."""
    given = settings.model_fields_set
    api = settings.endpoint_api if "endpoint_api" in given else CertifyOptions.endpoint_api
    return CertifyOptions(
        script=script,
        endpoint_model=settings.endpoint_model,
        endpoint_api=cast("EndpointApi", api),
        model=settings.model,
        strategy=settings.strategy,
        backend=settings.backend,
        vocab=settings.vocab,
        max_tokens=settings.max_tokens if "max_tokens" in given else CertifyOptions.max_tokens,
        limit=settings.limit,
        concurrency=settings.concurrency if "concurrency" in given else CertifyOptions.concurrency,
        timeout_s=settings.endpoint_timeout,
        retries=settings.endpoint_retries,
    )
