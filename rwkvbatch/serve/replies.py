"""Converts the body of an HTTP request to engine requests, and their results to the response."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rwkvbatch.config import CellSettings
from rwkvbatch.config.prompting import OPEN_THINKING
from rwkvbatch.engine.request import END_OF_TEXT, Reply, Score, TokenDetails
from rwkvbatch.engine.sampling import exempt_tokens
from rwkvbatch.errors import NonFiniteLogitsError, RwkvBatchError, listed
from rwkvbatch.model.base import ModelSpec
from rwkvbatch.prepared import PreparedPrompt, PromptBuilder
from rwkvbatch.prompt.tokenizer import Tokenizer
from rwkvbatch.serve import protocol
from rwkvbatch.serve.answers import Head, TextOffsets, TokenNames, finish_reason, usage
from rwkvbatch.serve.batcher import ScoreRequest, Work
from rwkvbatch.serve.fields import (
    OWN_FIELDS,
    ROOT_FIELD,
    SHOWN_NAME,
    ChatFields,
    CompletionFields,
    RequestError,
    decoded,
    prompts_of,
)
from rwkvbatch.serve.messages import ToolUse, conversation_of, text_around_calls


@dataclass(frozen=True)
class Served:
    """The served model and the server's settings.

    Attributes:
        name: the model's name for clients.
        created: time at which the model was loaded, in seconds since 1970.
        settings: the settings of requests.
        prelude: text before the first message.
        roots: by name, the engine's root of each initial state; `none` is the zero state.
        root: root of requests that do not name an initial state.
        seed: seed of requests without one; None draws a seed for each.
        fingerprint: identifies the weights, the backend and the program's version.
    """

    spec: ModelSpec
    tokenizer: Tokenizer
    name: str
    created: int
    settings: protocol.ServerSettings
    prelude: str | None
    roots: Mapping[str, int]
    root: int
    seed: int | None
    limits: protocol.Limits
    fingerprint: str


@dataclass(frozen=True)
class Choice:
    """One choice of the response.

    Attributes:
        index: index among the choices.
        reply_at: index of the engine request for its reply; None if none is generated.
        score_at: index of the engine request that scores its prompt; None if it is not scored.
    """

    index: int
    prompt: PreparedPrompt
    reply_at: int | None
    score_at: int | None

    def reply(self, results: Sequence[Reply | Score | None]) -> Reply | None:
        """The reply, None if there is none yet; raises `NonFiniteLogitsError`."""
        reply = None if self.reply_at is None else results[self.reply_at]
        if not isinstance(reply, Reply):
            return None
        if reply.finish_reason == "error" or not all(map(math.isfinite, reply.logprobs)):
            raise NonFiniteLogitsError(reply.error or "a log-probability is NaN or infinite")
        return reply

    def score(self, results: Sequence[Reply | Score | None]) -> Score | None:
        """The prompt's score, None if there is none yet; raises `NonFiniteLogitsError`."""
        score = None if self.score_at is None else results[self.score_at]
        if not isinstance(score, Score):
            return None
        if not all(map(math.isfinite, score.logprobs)):
            raise NonFiniteLogitsError("a log-probability of the prompt is NaN or infinite")
        return score

    def is_over(self, results: Sequence[Reply | Score | None]) -> bool:
        return all(index is None or results[index] is not None for index in (self.reply_at, self.score_at))


@dataclass
class Job:
    """One HTTP request: its engine requests, and the conversion of their results to the response.

    Attributes:
        works: the engine requests.
        num_prompt: number of tokens of all prompts.
        tools: the tools that replies may call.
    """

    served: Served
    names: TokenNames
    parsed: protocol.ParsedRequest
    head: Head = field(init=False)
    works: list[Work] = field(default_factory=list[Work])
    choices: list[Choice] = field(default_factory=list[Choice])
    num_prompt: int = 0
    tools: ToolUse = field(default_factory=ToolUse)

    def __post_init__(self) -> None:
        kind = "text_completion" if not self.is_chat else "chat.completion"
        kind += ".chunk" if self.is_chat and self.parsed.fields.stream else ""
        self.head = Head.of(kind, self.served.name, self.served.fingerprint)

    @property
    def is_chat(self) -> bool:
        return isinstance(self.parsed.fields, ChatFields)

    @property
    def headers(self) -> dict[str, str]:
        """Headers with the seed, and whether replies are independent of the other requests that are served."""
        spec = self.served.spec
        reproducible = "bitwise" if spec.bitwise else f"no; backend {spec.backend} on {spec.device}"
        if self.parsed.params.max_seconds is not None:
            reproducible = "no; max_seconds"
        return {"x-rwkvbatch-seed": str(self.parsed.params.seed), "x-rwkvbatch-reproducible": reproducible}

    def add(self, prompt: PreparedPrompt, root: int) -> None:
        """Add the engine requests and the choices of a prompt; raises `RequestError` if it is too long."""
        limit = self.served.limits.max_prompt_tokens
        if len(prompt.tokens) > limit:
            raise RequestError(
                f"{prompt.name} has {len(prompt.tokens):,} tokens; this server reads at most {limit:,}",
                param="messages" if self.is_chat else "prompt",
                code="context_length_exceeded",
            )
        parsed, score_at = self.parsed, None
        self.num_prompt += len(prompt.tokens)
        if self.echoes and parsed.num_top is not None and len(prompt.tokens) > 1:
            score_at = len(self.works)
            self.works.append(ScoreRequest(prompt.tokens[:1], prompt.tokens[1:], root, parsed.num_top))
        request = prompt.request(parsed.params, root)
        request = replace(request, num_top=parsed.num_top, logit_bias=parsed.logit_bias)
        for repeat in range(parsed.fields.n):
            reply_at = None
            if parsed.max_tokens:
                reply_at = len(self.works)
                self.works.append(replace(request, noise=replace(request.noise, repeat=repeat)))
            self.choices.append(Choice(len(self.choices), prompt, reply_at, score_at))

    def body(self, results: Sequence[Reply | Score | None]) -> dict[str, Any]:
        """The body of a response that is not streamed.

        Raises:
            NonFiniteLogitsError: no token could be chosen, or a log-probability is not finite.
        """
        choices: list[dict[str, Any]] = []
        for choice in self.choices:
            reply = choice.reply(results)
            text = "" if reply is None else choice.prompt.shown(reply.text)
            content = self.echo(choice) + text
            message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
            if calls := self.calls(choice, results):
                message |= {"content": "".join(text_around_calls(content)) or None, "tool_calls": calls}
            elif self.tools.reply_prefix is not None:
                message["content"] = self.tools.without_call(content)
            part = {"message": message} if self.is_chat else {"text": content}
            details = [*self.prompt_details(choice, choice.score(results)), *(() if reply is None else reply.details)]
            logprobs = self.logprobs(TextOffsets(self.names), details)
            end = self.end(choice, results, has_calls="tool_calls" in message)
            choices.append({"index": choice.index, **part, "logprobs": logprobs, **end})
        return self.head.object(choices, usage=self.usage(results), seed=self.parsed.params.seed)

    @property
    def echoes(self) -> bool:
        return isinstance(self.parsed.fields, CompletionFields) and self.parsed.fields.echo

    def echo(self, choice: Choice) -> str:
        """The prompt's text if the request asks for it, otherwise an empty text. Token 0 has no text."""
        if not self.echoes:
            return ""
        text = choice.prompt.text
        if text is not None:
            return text
        return self.served.tokenizer.decode(choice.prompt.tokens[int(choice.prompt.bos) :])

    def logprobs(self, offsets: TextOffsets, details: Sequence[TokenDetails | int]) -> dict[str, Any] | None:
        """The `logprobs` object of some tokens; None if the request does not ask for it.

        Args:
            offsets: counts the text offsets of a completion's tokens.
        """
        if self.parsed.num_top is None:
            return None
        if self.is_chat:
            return self.names.chat_logprobs([token for token in details if isinstance(token, TokenDetails)])
        return self.names.completion_logprobs(details, offsets)

    def calls(self, choice: Choice, results: Sequence[Reply | Score | None]) -> list[dict[str, Any]]:
        """The `tool_calls` of a choice that is over, each call with a new id."""
        reply = choice.reply(results)
        return [] if reply is None else self.tools.calls(choice.prompt.shown(reply.text))

    def end(
        self, choice: Choice, results: Sequence[Reply | Score | None], *, has_calls: bool = False
    ) -> dict[str, Any]:
        """The fields of a choice about its end; raises `NonFiniteLogitsError`."""
        reply = choice.reply(results)
        choice.score(results)
        if reply is None:  # `max_tokens` is 0
            return {"finish_reason": "length", "stop_reason": None}
        # Only a stop text of the client is reported, not the template's end of a turn.
        stopped_by = reply.stopped_by if reply.stopped_by in self.parsed.params.stop else None
        return {"finish_reason": "tool_calls" if has_calls else finish_reason(reply), "stop_reason": stopped_by}

    def prompt_details(self, choice: Choice, score: Score | None) -> list[TokenDetails | int]:
        """The details of the tokens of an echoed prompt, without a token 0 that the server put before it."""
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
        RequestError: the request cannot be served.
    """
    parsed = protocol.parse_request(decoded(body), kind, served.settings, served.seed, served.limits)
    fields, settings = parsed.fields, parsed.settings
    if fields.model != served.name:
        problem = f"model: {fields.model[:SHOWN_NAME]!r} is not served here, {served.name!r} is"
        raise RequestError(problem, param="model", status=404, code="model_not_found")
    job = Job(served, names, parsed)
    # Fills a cache here, so that the engine's thread does not search the vocabulary.
    exempt_tokens(served.tokenizer, parsed.params.no_penalty)
    try:
        vocab_size = served.spec.vocab_size
        if unknown := sorted({int(token) for token in fields.logit_bias if int(token) >= vocab_size}):
            problem = f"the model's vocabulary has {vocab_size:,} token ids, 0 to {vocab_size - 1}"
            raise RequestError(f"logit_bias: {problem}; got {listed(unknown, 5)}", param="logit_bias")
        parsed.params.sampling.check_vocabulary(vocab_size)
        root = _root(fields.initial_state, served)
        # Clients with a template of their own send text, so token 0 is put before it only if the settings say so.
        bos = settings.begins_with_bos()
        if isinstance(fields, ChatFields):
            messages, job.tools = conversation_of(fields)
            begins_reply = messages[-1]["role"] == "assistant" and messages[-1]["content"].strip() != ""
            if job.tools.reply_prefix is not None:
                _check_call_begins(settings, served.settings.defaults, has_message=begins_reply)
            reply_prefix = job.tools.reply_prefix or settings.reply_prefix
            if begins_reply and reply_prefix == served.settings.defaults.reply_prefix:
                reply_prefix = ""  # the default gives way to the message that begins the reply
            template = builder.template(settings.think, settings.turn_end, reply_prefix, settings.template)
            job.add(builder.conversation(messages, template, served.prelude, "messages", bos), root)
        else:
            for number, prompt in enumerate(prompts_of(fields)):
                # lm-evaluation-harness sends whole texts with a token 0 of their own, which is not doubled.
                has_bos = not isinstance(prompt, str) and list(prompt[:1]) == [END_OF_TEXT]
                job.add(builder.prompt(prompt, f"prompt {number}", bos and not has_bos), root)
    except RequestError:
        raise
    except RwkvBatchError as error:
        raise protocol.as_request_error(error, (*fields.model_fields_set, *OWN_FIELDS)) from None
    return job


def _check_call_begins(settings: CellSettings, defaults: CellSettings, *, has_message: bool) -> None:
    """Refuse other beginnings of a reply that must begin with a call; a prefix of the server's default gives way.

    Args:
        has_message: whether an assistant message at the end begins the reply.
    """
    if has_message:
        problem = "tool_choice: the assistant message at the end begins the reply already"
        raise RequestError(problem, param="tool_choice", hint="remove the message, or use tool_choice auto")
    if settings.think in OPEN_THINKING:
        problem = f"tool_choice: the reply must begin with a call, and with think {settings.think} begins with thinking"
        raise RequestError(problem, param="tool_choice", hint="use reasoning_effort: none")
    if settings.reply_prefix not in ("", defaults.reply_prefix):
        problem = "tool_choice and reply_prefix: both begin the reply, give one of them"
        raise RequestError(problem, param="reply_prefix")


def _root(name: str | None, served: Served) -> int:
    if name is None:
        return served.root
    if name not in served.roots:
        known = ", ".join(served.roots)
        raise RequestError(f"{ROOT_FIELD}: must be one of {known}; got {name[:SHOWN_NAME]!r}", param=ROOT_FIELD)
    return served.roots[name]
