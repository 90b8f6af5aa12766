"""Parses the requests of clients: the fields of OpenAI's two interfaces, this program's settings, and their limits.

Field names and meanings: OpenAI's API reference, "Create chat completion" and "Create completion". Settings of this
program (`top_k`, `min_p`, `think`, ...) are further fields of the same object, as in vLLM's server.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, cast, get_args

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rwkvbatch.config import CellSettings, DialoguePrompt, Sampling, SamplingParams, ThinkMode
from rwkvbatch.config.names import full_name
from rwkvbatch.config.setting import allowed_values, as_requirement
from rwkvbatch.errors import RwkvBatchError, UsageError, shown_value
from rwkvbatch.prompt.escaping import printable
from rwkvbatch.script.lines import NotStrictError, finite_float, load_strictly

MAX_STOPS = 32
MAX_STOP_CHARACTERS = 256
MAX_EXEMPT = 8
MAX_PREFIX_CHARACTERS = 10_000
MAX_REPLIES = 128
"""Largest number of replies to one HTTP request (prompts times `n`)."""
MAX_TOP = 20
MAX_MESSAGES = 10_000
ROOT_FIELD = "initial_state"
SHOWN_NAME = 80
"""Largest number of characters of a client's text that an error quotes."""

OWN_FIELDS = (*Sampling.model_fields, "max_seconds", *DialoguePrompt.model_fields)
"""Settings of this program that a request may give as fields."""
CHAT_ONLY = ("think", "turn_end", "reply_prefix")
"""Those of `OWN_FIELDS` that only chat requests may give."""

IGNORED = frozenset(
    {"user", "metadata", "store", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier"}
)
"""Fields that do not affect a reply."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
    "suffix": ("",),
    "repetition_penalty": (1, 1.0),
    # Fields of vLLM's server, which its clients send with the values that mean the same as none.
    "length_penalty": (1, 1.0),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "use_beam_search": (False,),
    "skip_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template_kwargs": ({},),
}
"""By field, the values that change nothing. Other values are refused."""

_THINKING = ("chat_template_kwargs", "enable_thinking", "reasoning", "reasoning_effort", "thinking")
"""Fields of other servers that set how a model thinks."""


class RequestError(UsageError):
    """A request that cannot be served.

    Attributes:
        param: the field that is wrong, if it is known.
        status: the HTTP status.
        code: OpenAI's error code, if there is one.
    """

    def __init__(
        self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None, hint: str = ""
    ) -> None:
        # Both may quote the client, and may be written to logs.
        super().__init__(printable(message, keep_newlines=False), hint=hint or None)
        self.param = None if param is None else printable(param, keep_newlines=False)
        self.status = status
        self.code = code


class _StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool = False
    include_obfuscation: bool = False


class _Fields(BaseModel):
    """The fields that both interfaces have, without settings. A null is treated as a missing field."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str = Field(min_length=1)
    n: int = Field(1, ge=1, le=MAX_REPLIES)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stream: bool = False
    stream_options: _StreamOptions = Field(default_factory=_StreamOptions)
    stop: str | list[str] = []
    max_tokens: int | None = None
    initial_state: str | None = None


class ChatFields(_Fields):
    """The body of `/v1/chat/completions`, without settings."""

    messages: list[dict[str, Any]] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_TOP)


class CompletionFields(_Fields):
    """The body of `/v1/completions`, without settings."""

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP)
    best_of: int | None = None


@dataclass(frozen=True)
class Limits:
    """Limits of a request."""

    max_prompt_tokens: int
    max_reply_tokens: int

    @property
    def max_model_len(self) -> int:
        """The tokens of a prompt and its reply, by the name that vLLM's server has for their limit."""
        return self.max_prompt_tokens + self.max_reply_tokens

    def allowed_length(self, lowest: int) -> str:
        """What a request's `max_tokens` must be."""
        return f"must be a whole number in [{lowest}, {self.max_reply_tokens}]"


@dataclass(frozen=True)
class ParsedRequest:
    """A validated request with complete settings.

    Attributes:
        fields: the fields of the interface.
        settings: the server's settings, overridden by the request's.
        params: sampling and stopping of the replies.
        max_tokens: largest number of tokens of a reply; 0 only scores the prompt (completions).
        num_top: number of the likeliest tokens to report; None for no log-probabilities.
    """

    fields: ChatFields | CompletionFields
    settings: CellSettings
    params: SamplingParams
    max_tokens: int
    num_top: int | None


_CacheKey = tuple[str, str, Any]
"""Name, type and value of a setting. Without the type, 1, 1.0 and true would be the same key."""


class ServerSettings:
    """Merges the settings of requests with the server's defaults."""

    def __init__(self, defaults: CellSettings) -> None:
        self.defaults = defaults
        # Most clients always send the same few numbers, and validating them takes longer than parsing all other fields.
        self._cached_merge = lru_cache(maxsize=256)(self._merge)

    def with_values(self, values: Mapping[str, Any], max_tokens: int) -> tuple[CellSettings, SamplingParams]:
        """The defaults overridden by `values`, and the parameters of a reply with them, without a seed.

        Raises:
            UsageError: a setting is out of range.
        """
        is_small = all(
            isinstance(value, int | float) or (isinstance(value, str) and len(value) < 64) for value in values.values()
        )
        key: tuple[_CacheKey, ...] = tuple((name, type(value).__name__, value) for name, value in values.items())
        return self._cached_merge(key, max_tokens) if is_small else self._merge(key, max_tokens)

    def _merge(self, values: tuple[_CacheKey, ...], max_tokens: int) -> tuple[CellSettings, SamplingParams]:
        checked = CellSettings.parse({name: value for name, _, value in values})
        settings = self.defaults.replace(**{name: getattr(checked, name) for name, _, _ in values})
        settings.check_reply_prefix()
        param_values: dict[str, Any] = {
            name: getattr(settings, name) for name in SamplingParams.model_fields if name != "seed"
        }
        param_values["max_tokens"] = max_tokens
        params = SamplingParams(**param_values)
        _ = params.sampling  # a cached property, which copies with another seed keep
        return settings, params


def decoded(body: bytes) -> object:
    """The JSON value of a request's body.

    Raises:
        RequestError: it is not JSON, or it has content on which JSON readers disagree: a key twice in one object, a
            number beyond the range of floats, half of a surrogate pair.
    """
    try:
        value: object = orjson.loads(body)
        load_strictly(body.decode(), int)
    except orjson.JSONDecodeError as error:  # one error for what is not JSON and for what orjson does not hold
        raise RequestError(f"the body {_reading_problem(body, error)}") from None
    except NotStrictError as problem:
        raise RequestError(f"the body cannot be read: {problem}; {problem.hint}") from None
    except RecursionError:
        raise RequestError("the body cannot be read: it is nested too deeply") from None
    return value


def _reading_problem(body: bytes, error: orjson.JSONDecodeError) -> str:
    """Why orjson refused the body."""
    try:
        json.loads(body, parse_int=str)
        load_strictly(body.decode(), finite_float)
    except NotStrictError as problem:
        return f"cannot be read: {problem}; {problem.hint}"
    except (ValueError, RecursionError):
        return f"is not JSON: {error}"
    return f"cannot be read: {error}"


def parse_request(
    body: object, kind: type[ChatFields | CompletionFields], server: ServerSettings, seed: int | None, limits: Limits
) -> ParsedRequest:
    """The request in a decoded JSON body, with the server's settings as defaults.

    Args:
        kind: the interface.
        seed: seed of a request without one; None draws it at random.

    Raises:
        RequestError: a field is unknown, has the wrong type, or is out of range.
    """
    if not isinstance(body, dict):
        raise RequestError(f"the body must be a JSON object, got {shown_value(body)}")
    values = {name: value for name, value in cast("dict[str, Any]", body).items() if value is not None}
    for name in [name for name in values if name in IGNORED]:
        del values[name]
    for name in [name for name in values if name in NEUTRAL and name not in kind.model_fields]:
        if (value := values.pop(name)) not in NEUTRAL[name]:
            problem = f"{name}: this server does not support it, got {shown_value(value)}"
            raise RequestError(problem, param=name, hint=_hint_for(name))
    own = {name: values.pop(name) for name in OWN_FIELDS if name in values and _is_setting(name, kind)}
    fields = _fields(values, kind, limits)
    stops = _stops(fields.stop)
    max_tokens = _max_tokens(fields, server.defaults, limits)
    for name, value in own.items():
        _check_number(name, value)
    _check_sizes(own)
    # Only values that the client sent, so that errors do not quote others.
    sent: dict[str, Any] = {**own, **({"stop": stops} if "stop" in fields.model_fields_set else {})}
    try:
        settings, params = server.with_values(sent, max(max_tokens, 1))
    except UsageError as error:
        raise as_request_error(error, sent) from None
    if fields.seed is not None:
        seed = fields.seed
    elif seed is None:
        seed = secrets.randbelow(2**32)
    params = params.model_copy(update={"seed": seed})
    return ParsedRequest(fields, settings, params, max_tokens, _num_top(fields))


def as_request_error(error: RwkvBatchError, fields: Iterable[str]) -> RequestError:
    """An error of the library for a client: with fields instead of options, and without the hint.

    Args:
        fields: names of fields; the first one in the message becomes the error's `param`.
    """
    message = re.sub(r"--([a-z][a-z-]*)", lambda match: full_name(match[1]), error.message)
    words = re.findall(r"[a-z_]+", message)
    return RequestError(message, param=next((word for word in words if word in set(fields)), None))


def _is_setting(name: str, kind: type[ChatFields | CompletionFields]) -> bool:
    return kind is ChatFields or name not in CHAT_ONLY


def _fields(
    values: Mapping[str, Any], kind: type[ChatFields | CompletionFields], limits: Limits
) -> ChatFields | CompletionFields:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        item = error.errors()[0]
        name = str(item["loc"][0])[:SHOWN_NAME] if item["loc"] else None
        place = ".".join(str(part)[:SHOWN_NAME] for part in item["loc"][:3])
        if item["type"] == "extra_forbidden":
            raise unknown_field(place) from None
        if item["type"] == "missing":
            where = "; GET /v1/models names the served model" if place == "model" else ""
            raise RequestError(f"{place}: is required{where}", param=name) from None
        allowed = as_requirement(item["msg"])
        if name in ("max_tokens", "max_completion_tokens") and len(item["loc"]) == 1:
            allowed = limits.allowed_length(0 if kind is CompletionFields and values.get("echo") is True else 1)
        elif name is not None and len(item["loc"]) == 1:
            allowed = allowed_values(kind, name, item["msg"])
        raise RequestError(f"{place}: {allowed}, got {shown_value(item['input'])}", param=name) from None


def _check_number(name: str, value: object) -> None:
    """Refuse strings and booleans for a setting that is a number; the settings would convert them."""
    allowed = _allowed(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if allowed.startswith(("must be a number", "must be a whole number")) and not is_number:
        raise RequestError(f"{name}: {allowed}, got {shown_value(value)}", param=name)


@cache
def _allowed(name: str) -> str:
    return allowed_values(CellSettings, name, "")


def _check_sizes(values: Mapping[str, Any]) -> None:
    """Refuse values that would delay all other clients: searching exempt tokens takes time for each text."""
    exempt, prefix = values.get("no_penalty", ()), values.get("reply_prefix", "")
    if isinstance(exempt, list) and len(cast("list[object]", exempt)) > MAX_EXEMPT:
        raise RequestError(f"no_penalty: must be at most {MAX_EXEMPT} texts", param="no_penalty")
    if isinstance(prefix, str) and len(prefix) > MAX_PREFIX_CHARACTERS:
        problem = f"must be at most {MAX_PREFIX_CHARACTERS} characters, got {len(prefix)}"
        raise RequestError(f"reply_prefix: {problem}", param="reply_prefix")


def unknown_field(name: str) -> RequestError:
    """The error about a field that this server does not know."""
    shown = name[:SHOWN_NAME]
    return RequestError(f"{shown}: unknown field", param=shown, code="unknown_parameter", hint=_hint_for(name))


def _hint_for(name: str) -> str:
    """What to send instead of a field of another server; empty if there is nothing."""
    return (
        f"the field think of chats sets the thinking mode: {', '.join(get_args(ThinkMode))}"
        if name in _THINKING
        else ""
    )


def _stops(stop: str | list[str]) -> list[str]:
    stops = [stop] if isinstance(stop, str) else stop
    if len(stops) > MAX_STOPS:
        raise RequestError(f"stop: must be at most {MAX_STOPS} texts, got {len(stops)}", param="stop")
    for text in stops:
        if not 1 <= len(text) <= MAX_STOP_CHARACTERS:
            problem = f"must be texts of 1 to {MAX_STOP_CHARACTERS} characters, got one of {len(text)}"
            raise RequestError(f"stop: {problem}", param="stop")
    return stops


def _max_tokens(fields: ChatFields | CompletionFields, defaults: CellSettings, limits: Limits) -> int:
    name, value = "max_tokens", fields.max_tokens
    if isinstance(fields, ChatFields) and fields.max_completion_tokens is not None:
        if value is not None and value != fields.max_completion_tokens:
            raise RequestError("max_tokens and max_completion_tokens differ", param="max_completion_tokens")
        name, value = "max_completion_tokens", fields.max_completion_tokens
    if value is None:
        return min(defaults.max_tokens, limits.max_reply_tokens)
    is_completion = isinstance(fields, CompletionFields)
    lowest = 0 if is_completion and fields.echo else 1
    if not lowest <= value <= limits.max_reply_tokens:
        hint = "echo allows 0" if is_completion and lowest else ""
        raise RequestError(f"{name}: {limits.allowed_length(lowest)}, got {shown_value(value)}", param=name, hint=hint)
    return value


def _num_top(fields: ChatFields | CompletionFields) -> int | None:
    if isinstance(fields, CompletionFields):
        if fields.best_of not in (None, fields.n):
            raise RequestError(f"best_of: must be n, which is {fields.n}; got {fields.best_of}", param="best_of")
        return fields.logprobs
    if fields.top_logprobs and not fields.logprobs:
        raise RequestError("top_logprobs: needs logprobs to be true", param="top_logprobs")
    return fields.top_logprobs if fields.logprobs else None


def prompts_of(fields: CompletionFields) -> list[str | Sequence[int]]:
    """The prompts of a completion request, one or several; raises `RequestError`."""
    prompt = fields.prompt
    if isinstance(prompt, str):
        prompts: list[str | Sequence[int]] = [prompt]
    elif prompt and isinstance(prompt[0], int):
        prompts = [cast("list[int]", prompt)]
    else:
        prompts = list(cast("list[str] | list[list[int]]", prompt))
    if not 1 <= len(prompts) * fields.n <= MAX_REPLIES:
        problem = f"prompts times n must be 1 to {MAX_REPLIES}"
        raise RequestError(f"prompt: {problem}, got {len(prompts)} times {fields.n}", param="prompt")
    return prompts


def messages_of(fields: ChatFields) -> list[dict[str, str]]:
    """The roles and texts of the messages. The role `developer` becomes `system`; text parts are joined.

    Raises:
        RequestError: a message has other content than a role and a text.
    """
    return [_message(number, message) for number, message in enumerate(fields.messages)]


def _message(number: int, message: Mapping[str, Any]) -> dict[str, str]:
    where = f"messages.{number}"
    for name, value in message.items():
        if name not in ("role", "content") and value not in (None, []):
            raise RequestError(f"{where}.{name[:SHOWN_NAME]}: this server does not support it", param="messages")
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "developer", "user", "assistant"):
        problem = "must be system, developer, user or assistant"
        raise RequestError(f"{where}.role: {problem}, got {shown_value(role)}", param="messages")
    if isinstance(content, list) and content:
        content = "".join(_part(where, part) for part in cast("list[object]", content))
    if not isinstance(content, str):
        found = "null" if content is None else shown_value(content)  # pyright: ignore[reportUnknownArgumentType]
        found = found if "content" in message else "none"
        raise RequestError(f"{where}.content: must be text, or a list of text parts; got {found}", param="messages")
    return {"role": "system" if role == "developer" else role, "content": content}


def _part(where: str, part: object) -> str:
    match part:
        case {"type": "text", "text": str(text)}:
            return text
        case _:
            raise RequestError(f"{where}.content: only text parts, got {shown_value(part)}", param="messages")
