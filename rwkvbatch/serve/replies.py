"""From a request's body to engine requests, and from their results to the response."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from rwkvbatch.engine.request import END_OF_TEXT, Reply, Score, TokenDetails
from rwkvbatch.engine.sampling import exempt_tokens
from rwkvbatch.errors import NonFiniteLogitsError, RwkvBatchError
from rwkvbatch.model.base import ModelSpec
from rwkvbatch.prepared import PreparedPrompt, PromptBuilder
from rwkvbatch.prompt.tokenizer import Tokenizer
from rwkvbatch.serve.answers import Head, TextOffsets, TokenNames, finish_reason, usage
from rwkvbatch.serve.batcher import ScoreRequest, Work
from rwkvbatch.serve.protocol import (
    OWN_FIELDS,
    ROOT_FIELD,
    SHOWN_NAME,
    Asked,
    ChatFields,
    CompletionFields,
    Limits,
    RequestError,
    ServerSettings,
    ask,
    in_fields,
    messages_of,
    prompts_of,
)


@dataclass(frozen=True)
class Served:
    """What a server serves.

    Attributes:
        name: the model's, for clients. created: when it was loaded, seconds since 1970.
        settings: of requests. prelude: text before the first message.
        roots: the engine's root of each initial state, by name; `none` is the zero state.
        root: of requests that name no initial state.
        seed: for requests without one; None draws one for each.
        fingerprint: of the weights, the backend and the program's version.
    """

    spec: ModelSpec
    tokenizer: Tokenizer
    name: str
    created: int
    settings: ServerSettings
    prelude: str | None
    roots: Mapping[str, int]
    root: int
    seed: int | None
    limits: Limits
    fingerprint: str


@dataclass(frozen=True)
class Choice:
    """One choice of the response: where the results of its engine requests are, if it has them."""

    index: int
    prompt: PreparedPrompt
    reply_at: int | None
    score_at: int | None

    def reply(self, results: Sequence[Reply | Score | None]) -> Reply | None:
        """Its reply, if it is there; raises `NonFiniteLogitsError`."""
        found = None if self.reply_at is None else results[self.reply_at]
        if not isinstance(found, Reply):
            return None
        if found.finish_reason == "error" or not all(map(math.isfinite, found.logprobs)):
            raise NonFiniteLogitsError(found.error or "a log-probability is NaN or infinite")
        return found

    def score(self, results: Sequence[Reply | Score | None]) -> Score | None:
        """The prompt's score, if it is there; raises `NonFiniteLogitsError`."""
        found = None if self.score_at is None else results[self.score_at]
        if not isinstance(found, Score):
            return None
        if not all(map(math.isfinite, found.logprobs)):
            raise NonFiniteLogitsError("a log-probability of the prompt is NaN or infinite")
        return found

    def is_over(self, results: Sequence[Reply | Score | None]) -> bool:
        return all(at is None or results[at] is not None for at in (self.reply_at, self.score_at))


@dataclass
class Job:
    """One HTTP request as engine requests, and how their results become its response."""

    served: Served
    names: TokenNames
    asked: Asked
    head: Head = field(init=False)
    works: list[Work] = field(default_factory=list[Work])
    choices: list[Choice] = field(default_factory=list[Choice])
    num_prompt: int = 0

    def __post_init__(self) -> None:
        kind = "text_completion" if not self.is_chat else "chat.completion"
        kind += ".chunk" if self.is_chat and self.asked.fields.stream else ""
        self.head = Head.of(kind, self.served.name, self.served.fingerprint)

    @property
    def is_chat(self) -> bool:
        return isinstance(self.asked.fields, ChatFields)

    @property
    def headers(self) -> dict[str, str]:
        """The seed, and whether the same request gets the same replies whatever else is served."""
        spec = self.served.spec
        reproducible = "bitwise" if spec.bitwise else f"no; backend {spec.backend} on {spec.device}"
        if self.asked.params.max_seconds is not None:
            reproducible = "no; max_seconds"
        return {"x-rwkvbatch-seed": str(self.asked.params.seed), "x-rwkvbatch-reproducible": reproducible}

    def add(self, prompt: PreparedPrompt, root: int) -> None:
        """Add a prompt: its score if that is wanted, and its replies."""
        limit = self.served.limits.max_prompt_tokens
        if len(prompt.tokens) > limit:
            raise RequestError(
                f"{prompt.name} has {len(prompt.tokens):,} tokens; this server reads at most {limit:,}",
                param="messages" if self.is_chat else "prompt",
                code="context_length_exceeded",
            )
        asked, score_at = self.asked, None
        self.num_prompt += len(prompt.tokens)
        if self.echoes and asked.num_top is not None and len(prompt.tokens) > 1:
            score_at = len(self.works)
            self.works.append(ScoreRequest(prompt.tokens[:1], prompt.tokens[1:], root, asked.num_top))
        request = replace(prompt.request(asked.params, root), num_top=asked.num_top)
        for repeat in range(asked.fields.n):
            reply_at = None
            if asked.max_tokens:
                reply_at = len(self.works)
                self.works.append(replace(request, noise=replace(request.noise, repeat=repeat)))
            self.choices.append(Choice(len(self.choices), prompt, reply_at, score_at))

    def body(self, results: Sequence[Reply | Score | None]) -> dict[str, Any]:
        """The response that is not streamed.

        Raises:
            NonFiniteLogitsError: no token could be chosen, or a log-probability is not finite.
        """
        choices: list[dict[str, Any]] = []
        for choice in self.choices:
            reply = choice.reply(results)
            text = "" if reply is None else choice.prompt.shown(reply.text)
            content = self.echo(choice) + text
            message = {"role": "assistant", "content": content, "refusal": None}
            part = {"message": message} if self.is_chat else {"text": content}
            details = [*self.prompt_details(choice, choice.score(results)), *(() if reply is None else reply.details)]
            logprobs = self.logprobs(TextOffsets(self.names), details)
            choices.append({"index": choice.index, **part, "logprobs": logprobs, **self.end(choice, results)})
        return self.head.object(choices, usage=self.usage(results), seed=self.asked.params.seed)

    @property
    def echoes(self) -> bool:
        return isinstance(self.asked.fields, CompletionFields) and self.asked.fields.echo

    def echo(self, choice: Choice) -> str:
        """The prompt's text where it is wanted; token 0 has none."""
        if not self.echoes:
            return ""
        text = choice.prompt.text
        if text is not None:
            return text
        return self.served.tokenizer.decode(choice.prompt.tokens[int(choice.prompt.bos) :])

    def logprobs(self, offsets: TextOffsets, details: Sequence[TokenDetails | int]) -> dict[str, Any] | None:
        """Log-probabilities of some tokens, if they are wanted; `offsets` counts those of a completion."""
        if self.asked.num_top is None:
            return None
        if self.is_chat:
            return self.names.chat_logprobs([each for each in details if isinstance(each, TokenDetails)])
        return self.names.completion_logprobs(details, offsets)

    def end(self, choice: Choice, results: Sequence[Reply | Score | None]) -> dict[str, Any]:
        """Why a choice ended; raises `NonFiniteLogitsError`."""
        reply = choice.reply(results)
        choice.score(results)
        if reply is None:  # a prompt without a reply ends where it was asked to: after 0 tokens
            return {"finish_reason": "length", "stop_reason": None}
        # The end of a chat's turn is the template's, and not a stop text of the client's.
        stopped_by = reply.stopped_by if reply.stopped_by in self.asked.params.stop else None
        return {"finish_reason": finish_reason(reply), "stop_reason": stopped_by}

    def prompt_details(self, choice: Choice, score: Score | None) -> list[TokenDetails | int]:
        """Of the tokens of an echoed prompt; token 0 that was read before a text is not among them."""
        if not self.echoes:
            return []
        first: list[int] = [] if choice.prompt.bos else list(choice.prompt.tokens[:1])
        return [*first, *(() if score is None else score.details)]

    def usage(self, results: Sequence[Reply | Score | None]) -> dict[str, Any]:
        return usage(self.num_prompt, [result for result in results if isinstance(result, Reply)])


def prepare(
    body: bytes, kind: type[ChatFields | CompletionFields], served: Served, builder: PromptBuilder, names: TokenNames
) -> Job:
    """The job of a request's body.

    Raises:
        RequestError: what cannot be served, and why.
    """
    try:
        decoded: object = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    asked = ask(decoded, kind, served.settings, served.seed, served.limits)
    fields, settings = asked.fields, asked.settings
    if fields.model != served.name:
        problem = f"model: {fields.model[:SHOWN_NAME]!r} is not served here, {served.name!r} is"
        raise RequestError(problem, param="model", status=404, code="model_not_found")
    job = Job(served, names, asked)
    # Kept for the engine, whose thread must not look through the vocabulary.
    exempt_tokens(served.tokenizer, asked.params.no_penalty)
    try:
        asked.params.sampling.check_vocabulary(served.spec.vocab_size)
        root = _root(fields.initial_state, served)
        # A client that has a template of its own sends text: nothing is read before it unless it says so.
        bos = settings.begins_with_bos()
        if isinstance(fields, ChatFields):
            form = builder.template(settings.think, settings.turn_end, settings.reply_prefix, settings.template)
            job.add(builder.conversation(messages_of(fields), form, served.prelude, "messages", bos), root)
        else:
            for number, prompt in enumerate(prompts_of(fields)):
                # lm-evaluation-harness scores whole texts after the end of text, which is not read twice.
                begun = not isinstance(prompt, str) and list(prompt[:1]) == [END_OF_TEXT]
                job.add(builder.prompt(prompt, f"prompt {number}", bos and not begun), root)
    except RequestError:
        raise
    except RwkvBatchError as error:
        raise in_fields(error, (*fields.model_fields_set, *OWN_FIELDS)) from None
    return job


def _root(name: str | None, served: Served) -> int:
    if name is None:
        return served.root
    if name not in served.roots:
        known = ", ".join(served.roots)
        raise RequestError(f"{ROOT_FIELD}: must be one of {known}; got {name[:SHOWN_NAME]!r}", param=ROOT_FIELD)
    return served.roots[name]
