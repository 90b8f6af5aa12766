"""The forms of lines. Each line is recognised on its own, so a file may mix forms.

| form         | recognised by                          | unknown keys                             |
|--------------|----------------------------------------|------------------------------------------|
| OpenAI batch | `custom_id` or `body`                  | ignored, unless they resemble a known key |
| ShareGPT     | `conversations`                        | the same                                 |
| MT-Bench     | `turns` or `question_id`               | the same                                 |
| OpenAI chat  | `messages`, and keys or contents of its requests | the same                       |
| plain text   | `text`, or `continuation`              | an error                                 |
| native       | everything else                        | an error                                 |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from rwkvbatch.script.native import (
    OF_THE_REPLY,
    Message,
    Role,
    Shape,
    is_plain_text,
    parse_params,
    read_id,
    read_native,
    read_plain_text,
    read_tags,
    to_turns,
)
from rwkvbatch.script.records import Conversation, SourceLine, Turn, is_array, is_object, refuse, shown, type_name

_ROLE_NAMES: Mapping[Role, tuple[str, ...]] = {
    "system": ("system", "developer"),
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "chatgpt", "bing", "bard", "model"),
}
_ROLES: Mapping[str, Role] = {name: role for role, names in _ROLE_NAMES.items() for name in names}
_OPENAI_PARAMS = (
    "temperature",
    "top_p",
    "max_tokens",
    "max_completion_tokens",
    "seed",
    "stop",
    "presence_penalty",
    "frequency_penalty",
)
_CHANGING_FIELDS = ("tools", "functions", "tool_choice", "function_call", "logit_bias", "response_format")
"""Fields of a request that change its reply and have no counterpart here."""


WITHOUT_FIRST_REPLY = (
    'jq -c \'.conversations |= map(select(.from == "system")) + '
    'until(length == 0 or (.[0].from | IN("human", "user")); .[1:])\''
)
"""A filter that removes what comes before the first question, except the system message."""


class _Lenient(Shape):
    lenient: ClassVar[bool] = True


_LooseId = Annotated[str | None, BeforeValidator(lambda value: str(value) if type(value) is int else value)]


class _OpenAiMessage(_Lenient):
    role: str
    content: Any = None


class _OpenAi(_Lenient):
    also_known: ClassVar[frozenset[str]] = frozenset(_OPENAI_PARAMS)
    messages: list[Any]


class _OpenAiBatch(_Lenient):
    custom_id: str | None = None
    url: str | None = None
    body: dict[str, Any]


class _ShareGptMessage(_Lenient):
    role: str = Field(alias="from")
    value: str


class _ShareGpt(_Lenient):
    conversations: list[Any]
    id: _LooseId = None
    system: str | None = None


class _MtBench(_Lenient):
    turns: list[str]
    question_id: _LooseId = None
    category: str | None = None
    reference: list[str | None] | None = None


def _read_openai_batch(line: Mapping[str, Any], source: SourceLine, default_id: str) -> Conversation:
    raw = _OpenAiBatch.read(line, source)
    if raw.url is not None and not raw.url.endswith("/chat/completions"):
        hint = "only chat requests can be replayed"
        refuse(source, f"url: must be of chat completions, got {shown(raw.url)}", hint)
    return _read_openai_chat(raw.body, source, read_id(raw.custom_id, default_id, source, "custom_id"), "body")


def _read_sharegpt(line: Mapping[str, Any], source: SourceLine, default_id: str) -> Conversation:
    raw = _ShareGpt.read(line, source)
    messages = [Message("system", raw.system, "system")] if raw.system else []
    for at, item in enumerate(raw.conversations):
        where = f"conversations[{at}]"
        message = _ShareGptMessage.read(item, source, where)
        role = _role(message.role, source, f"{where}.from")
        if role == "assistant" and all(earlier.role == "system" for earlier in messages):
            # Conversations that were cut out of longer ones begin with a reply.
            refuse(
                source,
                f"{where}: {shown(message.role)} comes before any question, so there is nothing that it replies to",
                f"remove it; this does that in all lines: {WITHOUT_FIRST_REPLY} FILE > NEW",
            )
        messages.append(Message(role, message.value, where))
    return Conversation(read_id(raw.id, default_id, source), *to_turns(messages, source), (), {}, source)


def _read_mt_bench(line: Mapping[str, Any], source: SourceLine, default_id: str) -> Conversation:
    """References where they are not empty; the category becomes a tag."""
    raw = _MtBench.read(line, source)
    references = raw.reference or []
    if not raw.turns:
        refuse(source, "turns: is empty, so there is nothing to reply to")
    if len(references) > len(raw.turns):
        refuse(source, f"reference: has {len(references)} texts for {len(raw.turns)} turns")
    turns = tuple(Turn(user, reference or None) for user, reference in zip_longest(raw.turns, references))
    tags = read_tags([raw.category], source) if raw.category else ()
    return Conversation(read_id(raw.question_id, default_id, source, "question_id"), None, turns, tags, {}, source)


def _read_openai_chat(
    request: Mapping[str, Any], source: SourceLine, conversation_id: str, where: str = ""
) -> Conversation:
    prefix = f"{where}." if where else ""
    raw = _OpenAi.read(request, source, where)
    for name in _CHANGING_FIELDS:
        if request.get(name) not in (None, [], {}, "none", "auto", {"type": "text"}):
            refuse(source, f"{prefix}{name}: has no counterpart here", "remove it from the line")
    if request.get("n") not in (None, 1):
        refuse(source, f"{prefix}n: must be 1, got {shown(request['n'])}", "use `--repeats` for several replies")
    messages: list[Message] = []
    for at, item in enumerate(raw.messages):
        place = f"{prefix}messages[{at}]"
        one = _OpenAiMessage.read(item, source, place)
        messages.append(Message(_role(one.role, source, f"{place}.role"), _content(one.content, source, place), place))
    params = {name: request[name] for name in _OPENAI_PARAMS if request.get(name) is not None}
    if "max_completion_tokens" in params:
        params["max_tokens"] = params.pop("max_completion_tokens")
    if isinstance(params.get("stop"), str):
        params["stop"] = [params["stop"]]
    parsed = parse_params(params, source, where or "line")
    return Conversation(conversation_id, *to_turns(messages, source), (), parsed, source)


def _role(name: str, source: SourceLine, where: str) -> Role:
    role = _ROLES.get(name)
    if role is None:
        hint = "tool messages cannot be replayed"
        refuse(source, f"{where}: must be one of {', '.join(_ROLES)}, got {shown(name)}", hint)
    return role


def _content(content: Any, source: SourceLine, where: str) -> str:
    if isinstance(content, str):
        return content
    if not is_array(content):
        refuse(source, f"{where}.content: must be a string or an array of text parts, got {type_name(content)}")
    texts: list[str] = []
    for at, part in enumerate(content):
        if not is_object(part) or not isinstance(part.get("text"), str):
            hint = "images, sounds and files cannot be replayed"
            refuse(source, f"{where}.content[{at}]: must be a text part", hint)
        texts.append(part["text"])
    return "\n".join(texts)


_NATIVE_KEYS = frozenset({"id", "tags", "params", "expect", "probes"})

_OPENAI_KEYS = frozenset(_OPENAI_PARAMS) | {
    "model", "tools", "functions", "stream", "user", "metadata", "n", "parallel_tool_calls"
}  # fmt: skip


def read_conversation(line: Mapping[str, Any], source: SourceLine, default_id: str) -> Conversation:
    """The conversation of one line of any form.

    Args:
        default_id: the id if the line has none.

    Raises:
        ScriptError: the line cannot be replayed.
    """
    read = next(read for matches, read in _FORMS if matches(line))
    return read(line, source, default_id)


def _is_openai(line: Mapping[str, Any]) -> bool:
    messages = line.get("messages")
    if not is_array(messages) or not _NATIVE_KEYS.isdisjoint(line):
        return False
    plain = [message for message in messages if is_object(message)]
    if any(not OF_THE_REPLY.isdisjoint(message) for message in plain):
        return False
    return not _OPENAI_KEYS.isdisjoint(line) or any(
        not isinstance(message.get("content"), str)
        or message.get("role") not in ("system", "user", "assistant")
        or not message.keys() <= {"role", "content"}
        for message in plain
    )


_FORMS: Sequence[tuple[Callable[[Mapping[str, Any]], bool], Callable[..., Conversation]]] = (
    (lambda line: "custom_id" in line or "body" in line, _read_openai_batch),
    (lambda line: "conversations" in line, _read_sharegpt),
    (lambda line: "turns" in line or "question_id" in line, _read_mt_bench),
    (_is_openai, _read_openai_chat),
    (is_plain_text, read_plain_text),
    (lambda _: True, read_native),
)
"""How each form is recognised, and what reads it; the first match wins."""
