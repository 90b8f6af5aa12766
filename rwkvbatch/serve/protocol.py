"""Parses the requests of clients: checks their fields, merges their settings with the server's, and applies limits.

Settings of this program (`top_k`, `min_p`, `think`, ...) are fields of the same object as OpenAI's, as in vLLM's
server.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, cast

from pydantic import ValidationError

from rwkvbatch.config import CellSettings, SamplingParams, ThinkMode
from rwkvbatch.config.names import full_name
from rwkvbatch.config.prompting import OPEN_THINKING
from rwkvbatch.config.setting import allowed_values, as_requirement
from rwkvbatch.errors import RwkvBatchError, UsageError, shown_value
from rwkvbatch.serve.fields import (
    CHAT_ONLY,
    IGNORED,
    MAX_EXEMPT,
    MAX_PREFIX_CHARACTERS,
    MAX_STOP_CHARACTERS,
    MAX_STOPS,
    NEUTRAL,
    OWN_FIELDS,
    SHOWN_NAME,
    THINK_OF_EFFORT,
    ChatFields,
    CompletionFields,
    RequestError,
    hint_for,
    unknown_field,
)


@dataclass(frozen=True)
class Limits:
    """Limits of a request."""

    max_prompt_tokens: int
    max_reply_tokens: int

    @property
    def max_model_len(self) -> int:
        """The tokens of a prompt and its reply, by the name that vLLM's server has for their limit."""
        return self.max_prompt_tokens + self.max_reply_tokens

    def as_dict(self) -> dict[str, int]:
        """The limits that `endpoint.served.RequestLimits` reads."""
        return {
            "max_tokens": self.max_reply_tokens,
            "prompt_tokens": self.max_prompt_tokens,
            "stop": MAX_STOPS,
            "stop_characters": MAX_STOP_CHARACTERS,
            "no_penalty": MAX_EXEMPT,
        }

    def allowed_length(self, lowest: int) -> str:
        """The values that a request's `max_tokens` may have."""
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
        logit_bias: by token id, a number that is added to its logit. Banned tokens are in `params`.
    """

    fields: ChatFields | CompletionFields
    settings: CellSettings
    params: SamplingParams
    max_tokens: int
    num_top: int | None
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])


_CacheKey = tuple[str, str, Any]
"""Name, type and value of a setting. Without the type, 1, 1.0 and true would be the same key."""


class ServerSettings:
    """Merges the settings of requests with the server's defaults.

    Args:
        top_p_given: whether the server was started with a `top_p`. Otherwise a request that sets `temperature` and no
            `top_p` gets 1, as in OpenAI's API: the default, which is for RWKV's chats, keeps so few tokens that a
            temperature would change little.
    """

    def __init__(self, defaults: CellSettings, *, top_p_given: bool = False) -> None:
        self.defaults = defaults
        self._top_p_given = top_p_given
        # Most clients always send the same few numbers, and validating them takes longer than parsing all other fields.
        self._cached_merge = lru_cache(maxsize=256)(self._merge)

    def with_values(self, values: Mapping[str, Any], max_tokens: int) -> tuple[CellSettings, SamplingParams]:
        """The defaults overridden by `values`, and the parameters of a reply with them, without a seed.

        Raises:
            UsageError: a setting is out of range.
        """
        if "temperature" in values and "top_p" not in values and not self._top_p_given:
            values = {**values, "top_p": 1.0}
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
    if kind is ChatFields:
        _set_think(values, server.defaults)
    for name in [name for name in values if name in NEUTRAL and name not in kind.model_fields]:
        if (value := values.pop(name)) not in NEUTRAL[name]:
            problem = f"{name}: this server does not support it, got {shown_value(value)}"
            raise RequestError(problem, param=name, hint=hint_for(name))
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
    bias = _logit_bias(fields.logit_bias)
    if banned := [token for token, value in bias.items() if value == BAN]:
        # A new one, because a copy would keep the cached `sampling`.
        values: dict[str, Any] = {**params.model_dump(), "banned_token_ids": (*params.banned_token_ids, *banned)}
        params = SamplingParams(**values)
    if fields.seed is not None:
        seed = fields.seed
    elif seed is None:
        seed = secrets.randbelow(2**32)
    params = params.model_copy(update={"seed": seed})
    added = {token: value for token, value in bias.items() if value not in (0, BAN)}
    return ParsedRequest(fields, settings, params, max_tokens, _num_top(fields), added)


def as_request_error(error: RwkvBatchError, fields: Iterable[str]) -> RequestError:
    """An error of the library for a client: with fields instead of options, and without the hint.

    Args:
        fields: names of fields; the first one in the message becomes the error's `param`.
    """
    message = re.sub(r"--([a-z][a-z-]*)", lambda match: full_name(match[1]), error.message)
    words = re.findall(r"[a-z_]+", message)
    return RequestError(message, param=next((word for word in words if word in set(fields)), None))


def _set_think(values: dict[str, Any], defaults: CellSettings) -> None:
    """Replace `reasoning_effort`, and `enable_thinking` of `chat_template_kwargs`, by `think`.

    Without thinking, the server's mode is kept if it is one without thinking, such as `fake`.
    """
    modes: dict[str, ThinkMode] = {}
    if (effort := values.pop("reasoning_effort", None)) is not None:
        if not isinstance(effort, str) or effort not in THINK_OF_EFFORT:
            problem = f"reasoning_effort: must be one of {', '.join(THINK_OF_EFFORT)}; got {shown_value(effort)}"
            raise RequestError(problem, param="reasoning_effort")
        modes["reasoning_effort"] = THINK_OF_EFFORT[effort]
    match values.get("chat_template_kwargs"):
        case {"enable_thinking": bool(is_on), **others} if not others:
            del values["chat_template_kwargs"]
            is_kept = is_on and defaults.think in OPEN_THINKING
            modes["chat_template_kwargs"] = defaults.think if is_kept else "on" if is_on else "off"
        case _:
            pass
    for name, mode in modes.items():
        if len(modes) > 1 or "think" in values:
            raise RequestError(f"{name}: give one of {', '.join((*modes, 'think'))}", param=name)
        values["think"] = defaults.think if mode == "off" and defaults.think not in OPEN_THINKING else mode


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


BAN = -100.0
"""The bias that bans a token, as in OpenAI's API. The largest one, 100, is added like all others."""


def _logit_bias(raw: Mapping[str, Any]) -> dict[int, float]:
    """By token id below 2^31, the bias; raises `RequestError` unless each is a number in [-100, 100]."""
    biases: dict[int, float] = {}
    for name, value in raw.items():
        if re.fullmatch(r"0|[1-9][0-9]{0,9}", name) is None or int(name) >= 2**31:
            problem = f"logit_bias: its keys must be token ids, got {shown_value(name)}"
            raise RequestError(problem, param="logit_bias")
        if isinstance(value, bool) or not isinstance(value, int | float) or not BAN <= value <= -BAN:
            problem = f"logit_bias: the bias of token {name} must be a number in [-100, 100], got {shown_value(value)}"
            raise RequestError(problem, param="logit_bias")
        biases[int(name)] = float(value)
    return biases


def _check_sizes(values: Mapping[str, Any]) -> None:
    """Refuse values that would delay all other clients: searching exempt tokens takes time for each text."""
    exempt, prefix = values.get("no_penalty", ()), values.get("reply_prefix", "")
    if isinstance(exempt, list) and len(cast("list[object]", exempt)) > MAX_EXEMPT:
        raise RequestError(f"no_penalty: must be at most {MAX_EXEMPT} texts", param="no_penalty")
    if isinstance(prefix, str) and len(prefix) > MAX_PREFIX_CHARACTERS:
        problem = f"must be at most {MAX_PREFIX_CHARACTERS} characters, got {len(prefix)}"
        raise RequestError(f"reply_prefix: {problem}", param="reply_prefix")


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
