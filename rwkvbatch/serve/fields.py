"""Fields of the requests of clients: those of OpenAI's two interfaces, and those of other servers that are known here.

Field names and meanings: OpenAI's API reference, "Create chat completion" and "Create completion".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

import orjson
from pydantic import BaseModel, ConfigDict, Field

from rwkvbatch.config import DialoguePrompt, Sampling, ThinkMode
from rwkvbatch.errors import UsageError
from rwkvbatch.prompt.escaping import printable
from rwkvbatch.script.forms import NEUTRAL_FIELDS, REFUSED_FIELDS
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
    {
        *("user", "metadata", "store", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
        *("service_tier", "request_id", "priority", "cache_salt", "cache_prompt", "id_slot", "timings_per_token"),
    }
)
"""Fields that do not affect a reply."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **REFUSED_FIELDS,
    **NEUTRAL_FIELDS,
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "documents": ([],),
    # Fields of llama.cpp's server.
    "repeat_penalty": (1,),
    "typical_p": (1,),
    "mirostat": (0,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
    "dynatemp_range": (0,),
    "top_n_sigma": (-1,),
    "n_probs": (0,),
    "grammar": ("",),
    "return_progress": (False,),
}
"""By field, the values that change nothing, also in batch files. Other values are refused."""

THINK_OF_EFFORT: Mapping[str, ThinkMode] = {
    "none": "off",
    "minimal": "short",
    "low": "short",
    "medium": "on",
    "high": "long",
    "xhigh": "long",
}
"""The thinking mode of a chat by `reasoning_effort`, OpenAI's field."""

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
    logit_bias: dict[str, Any] = {}


class ChatFields(_Fields):
    """The body of `/v1/chat/completions`, without settings."""

    messages: list[dict[str, Any]] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = None
    tools: list[Any] = []
    tool_choice: Any = "auto"
    parallel_tool_calls: bool = True
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_TOP)


class CompletionFields(_Fields):
    """The body of `/v1/completions`, without settings."""

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP)
    best_of: int | None = None


def unknown_field(name: str) -> RequestError:
    """The error about a field that this server does not know."""
    shown = name[:SHOWN_NAME]
    return RequestError(f"{shown}: unknown field", param=shown, code="unknown_parameter", hint=hint_for(name))


def hint_for(name: str) -> str:
    """The field to send instead of another server's; empty if there is no counterpart."""
    return (
        f"the field think of chats sets the thinking mode: {', '.join(get_args(ThinkMode))}"
        if name in _THINKING
        else ""
    )


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


def decoded(body: bytes) -> object:
    """The JSON value of a request's body.

    Raises:
        RequestError: it is not JSON, or it has content on which JSON readers disagree: a key twice in one object, a
            number beyond the range of floats, or an unpaired surrogate.
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
    """The reason why orjson refused the body."""
    try:
        json.loads(body, parse_int=str)
        load_strictly(body.decode(), finite_float)
    except NotStrictError as problem:
        return f"cannot be read: {problem}; {problem.hint}"
    except (ValueError, RecursionError):
        return f"is not JSON: {error}"
    return f"cannot be read: {error}"
