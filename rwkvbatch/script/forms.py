"""The forms of lines. Each line is recognised on its own, so a file may mix forms.

| form         | recognised by                          | unknown keys                             |
|--------------|----------------------------------------|------------------------------------------|
| OpenAI batch | `custom_id` or `body`                  | ignored, unless they resemble a known key |
| ShareGPT     | `conversations`                        | the same                                 |
| LMSYS        | `conversation`                         | the same                                 |
| MT-Bench     | `turns` or `question_id`               | the same                                 |
| OpenAI chat  | `messages`, and keys or contents that the native form has not | the same          |
| plain text   | `text`, `continuation`, or `prompt` and `choices` | an error                       |
| native       | `messages`                             | an error                                 |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from itertools import zip_longest
from typing import Annotated, Any, ClassVar, NoReturn

from pydantic import BeforeValidator, Field

from rwkvbatch.errors import counted
from rwkvbatch.script.lines import SourceLine, is_array, is_object, refuse, shown, type_name
from rwkvbatch.script.messages import OF_THE_REPLY, Message, Role, to_turns
from rwkvbatch.script.native import is_plain_text, read_native, read_plain_text, read_tooling
from rwkvbatch.script.records import Conversation, Turn
from rwkvbatch.script.shape import Shape, parse_params, read_id, read_tags

_ROLE_NAMES: Mapping[Role, tuple[str, ...]] = {
    "system": ("system", "developer"),
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "chatgpt", "bing", "bard", "model"),
    "tool": ("tool", "function"),
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
_NOT_REPLAYED = ("audio", "refusal")
"""Fields of a message that are a part of it and have no counterpart here."""

_CHANGING_FIELDS = ("logit_bias", "response_format")
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
    also_known: ClassVar[frozenset[str]] = OF_THE_REPLY | {"tool_calls", "function_call", "tool_call_id", "name"}
    role: str
    content: Any = None


_TOOL_KEYS = frozenset({"tools", "tool_choice", "functions", "function_call"})
_NATIVE_KEYS = frozenset({"tags", "params", "expect", "probes"})


class _OpenAi(_Lenient):
    also_known: ClassVar[frozenset[str]] = _NATIVE_KEYS | _TOOL_KEYS | {*_OPENAI_PARAMS, "defaults"}
    messages: list[Any]
    id: _LooseId = None


class _OpenAiBatch(_Lenient):
    custom_id: str | None = None
    url: str | None = None
    body: dict[str, Any]


class _ShareGptMessage(_Lenient):
    role: str = Field(alias="from")
    value: str


class _ShareGpt(_Lenient):
    also_known: ClassVar[frozenset[str]] = frozenset({"conversation_id"})
    conversations: list[Any]
    id: _LooseId = None
    system: str | None = None


class _Lmsys(_Lenient):
    conversation: list[Any]
    conversation_id: _LooseId = None
    conversation_hash: _LooseId = None
    id: _LooseId = None


class _MtBench(_Lenient):
    turns: list[str]
    question_id: _LooseId = None
    category: str | None = None
    reference: list[str | None] | None = None
    required_temperature: float | int | None = None


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
        if is_object(item) and "role" in item and "from" not in item:
            messages.append(_openai_message(item, source, where))
            continue
        message = _ShareGptMessage.read(item, source, where)
        role = _role(message.role, source, f"{where}.from")
        if role == "tool":
            hint = "tool calls of this form have no common notation; write them as OpenAI messages"
            known = ", ".join(name for name, role in _ROLES.items() if role != "tool")
            refuse(source, f"{where}.from: must be one of {known}, got {shown(message.role)}", hint)
        if role == "assistant" and all(earlier.role == "system" for earlier in messages):
            # Conversations that were cut out of longer ones begin with a reply.
            refuse(
                source,
                f"{where}: {shown(message.role)} comes before any question, so there is nothing that it replies to",
                f"remove it; this does that in all lines: {WITHOUT_FIRST_REPLY} FILE > NEW",
            )
        messages.append(Message(role, message.value, where))
    return Conversation(read_id(raw.id, default_id, source), *to_turns(messages, source), (), {}, source)


def _read_lmsys(line: Mapping[str, Any], source: SourceLine, default_id: str) -> Conversation:
    """The form of LMSYS-Chat-1M and WildChat: https://huggingface.co/datasets/lmsys/lmsys-chat-1m."""
    raw = _Lmsys.read(line, source)
    messages = [_openai_message(item, source, f"conversation[{at}]") for at, item in enumerate(raw.conversation)]
    names = {"id": raw.id, "conversation_id": raw.conversation_id, "conversation_hash": raw.conversation_hash}
    key = next((key for key, value in names.items() if value is not None), "id")
    return Conversation(read_id(names[key], default_id, source, key), *to_turns(messages, source), (), {}, source)


def _read_mt_bench(line: Mapping[str, Any], source: SourceLine, default_id: str) -> Conversation:
    """References where they are not empty; the category becomes a tag."""
    raw = _MtBench.read(line, source)
    references = raw.reference or []
    if not raw.turns:
        refuse(source, "turns: is empty, so there is nothing to reply to")
    if len(references) > len(raw.turns):
        refuse(source, f"reference: has {counted(len(references), 'text')} for {counted(len(raw.turns), 'turn')}")
    turns = tuple(Turn(user, reference or None) for user, reference in zip_longest(raw.turns, references))
    tags = read_tags([raw.category], source) if raw.category else ()
    # The question's own temperature, as FastChat's gen_model_answer.py uses it.
    own = {} if raw.required_temperature is None else {"temperature": raw.required_temperature}
    params = parse_params(own, source, "required_temperature")
    return Conversation(read_id(raw.question_id, default_id, source, "question_id"), None, turns, tags, params, source)


def _read_openai_chat(request: Mapping[str, Any], source: SourceLine, default_id: str, where: str = "") -> Conversation:
    prefix = f"{where}." if where else ""
    raw = _OpenAi.read(request, source, where)
    for name in sorted(_NATIVE_KEYS & request.keys()):
        refuse(
            source,
            f"{prefix}{name}: belongs to the native form, and this line has another one",
            "remove one of the two",
        )
    for name in _CHANGING_FIELDS:
        if request.get(name) not in (None, [], {}, "none", "auto", {"type": "text"}):
            refuse(source, f"{prefix}{name}: has no counterpart here", "remove it from the line")
    if request.get("n") not in (None, 1):
        refuse(source, f"{prefix}n: must be 1, got {shown(request['n'])}", "use `--repeats` for several replies")
    messages: list[Message] = []
    for at, item in enumerate(raw.messages):
        messages.append(_openai_message(item, source, f"{prefix}messages[{at}]"))
    params = {name: request[name] for name in _OPENAI_PARAMS if request.get(name) is not None}
    if "max_completion_tokens" in params:
        params["max_tokens"] = params.pop("max_completion_tokens")
    if isinstance(params.get("stop"), str):
        params["stop"] = [params["stop"]]
    parsed = parse_params(params, source, where or "line")
    # The id of a batch request is its `custom_id`.
    name = default_id if where else read_id(raw.id, default_id, source)
    tools, begins = _openai_tools(request, source, prefix)
    return Conversation(name, *to_turns(messages, source, begins=begins), (), parsed, source, tools)


def _openai_tools(
    request: Mapping[str, Any], source: SourceLine, prefix: str
) -> tuple[tuple[Mapping[str, Any], ...], str | None]:
    """As `read_tooling`; `functions` and `function_call` are the former names of `tools` and `tool_choice`."""
    keys = ("functions", "function_call") if request.get("functions") is not None else ("tools", "tool_choice")
    for former, now in (("functions", "tools"), ("function_call", "tool_choice")):
        if request.get(former) not in (None, "none", "auto") and request.get(now) is not None:
            refuse(
                source, f"{prefix}{former}: is the former name of {now}, which is there too", "remove one of the two"
            )
    return read_tooling(request.get(keys[0]), request.get(keys[1]), source, prefix, keys)


def _openai_message(item: Any, source: SourceLine, where: str) -> Message:
    one = _OpenAiMessage.read(item, source, where)
    for name in _NOT_REPLAYED:
        if item.get(name) not in (None, [], {}, ""):
            refuse(
                source, f"{where}.{name}: cannot be replayed", "remove it, or leave the conversation out (--skip-bad)"
            )
    calls = item.get("tool_calls") or None
    if (former := item.get("function_call")) is not None:
        if calls is not None:
            refuse(source, f"{where}.function_call: is the former name of tool_calls, which is there too", "remove it")
        calls = [former]
    if "content" not in item and calls is None:
        refuse(source, f"{where}.content: is missing")
    role = _role(one.role, source, f"{where}.role")
    content = "" if calls is not None and one.content is None else _content(one.content, source, where)
    tool_call_id = item.get("tool_call_id")
    if not isinstance(tool_call_id, str | None):
        refuse(source, f"{where}.tool_call_id: must be a string, got {type_name(tool_call_id)}")
    return Message(role, content, where, tool_calls=calls, tool_call_id=tool_call_id)


def _role(name: str, source: SourceLine, where: str) -> Role:
    role = _ROLES.get(name)
    if role is None:
        refuse(source, f"{where}: must be one of {', '.join(_ROLES)}, got {shown(name)}")
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
            found = part.get("type") if is_object(part) else None
            what = f"an object of the type {shown(found)}" if isinstance(found, str) else type_name(part)
            refuse(source, f"{where}.content[{at}]: must be a text part, got {what}", hint)
        texts.append(part["text"])
    return "\n".join(texts)


_WITHOUT_EFFECT = frozenset(
    {
        "model",
        "stream",
        "stream_options",
        "user",
        "metadata",
        "n",
        "parallel_tool_calls",
        "store",
        "service_tier",
        "method",
    }
)
"""Keys of requests that are ignored without a note: they are about how a server works, not about what it replies."""


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
    if "id" in line and not line.keys().isdisjoint(_OPENAI_PARAMS):
        return False  # a native line, whose settings belong into its `params`
    return not line.keys() <= {"messages", "id"} or any(
        not isinstance(message.get("content"), str)
        or message.get("role") not in ("system", "user", "assistant")
        or not message.keys() <= {"role", "content"}
        for message in plain
    )


_MESSAGES = ("messages", "conversations", "conversation", "turns")
_CONVERTED = {
    "instruction": 'jq -c \'{messages: [{role: "user", content: ([.instruction, .input] | map(values) | join("\\n"))}, '
    '{role: "assistant", content: .output}]}\'',
    "prompt": "jq -c '{messages: [{role: \"user\", content: .prompt}]}'",
    "question": "jq -c '{messages: [{role: \"user\", content: .question}]}'",
}
"""Keys of other data sets, and the filter that makes messages of their lines."""


def _refuse_form(line: Mapping[str, Any], source: SourceLine, _default_id: str) -> NoReturn:
    keys = ", ".join(map(shown, list(line)[:8])) + (", ..." if len(line) > 8 else "")
    for key in line:
        if close := get_close_matches(key, _MESSAGES, n=1, cutoff=0.8):
            refuse(source, f"unknown key {shown(key)}", f"did you mean {close[0]!r}?")
    known = (
        "known forms have `messages` (native, OpenAI), `conversations` (ShareGPT), `conversation` (LMSYS), "
        "`turns` (MT-Bench), `text` or `prompt` and `continuation` (plain text)"
    )
    filters = [
        f"; this makes messages of such lines: {made} FILE > NEW" for key, made in _CONVERTED.items() if key in line
    ]
    hint = f"{known} or `custom_id` and `body` (OpenAI batch); see docs/scripts.md{filters[0] if filters else ''}"
    refuse(source, f"is of no known form; its keys are {keys or 'none'}", hint)


def ignored_keys(line: Mapping[str, Any]) -> set[str]:
    """The keys of a line of a known form, and of its messages, that are read by nobody."""
    body: Any = line.get("body", line)
    if not is_object(body):
        return set()
    messages: list[Any] | None = next((body[key] for key in _MESSAGES if is_array(body.get(key))), None)
    if messages is None:
        return set()
    known = _OpenAi.known_keys() | _ShareGpt.known_keys() | _Lmsys.known_keys() | _MtBench.known_keys()
    known |= _OpenAiBatch.known_keys() | set(_CHANGING_FIELDS) | _WITHOUT_EFFECT
    in_messages = _OpenAiMessage.known_keys() | _ShareGptMessage.known_keys() | OF_THE_REPLY | set(_NOT_REPLAYED)
    found = {key for key in (*line, *body) if key not in known}
    of_tools = set(_ROLE_NAMES["tool"])
    for item in messages:
        if is_object(item):
            # The name of a tool says whose result it is; that of a person is not shown to the model.
            of_role = in_messages if item.get("role") in of_tools else in_messages - {"name"}
            found |= {f"messages[].{key}" for key in item if key not in of_role}
    return found


_FORMS: Sequence[tuple[Callable[[Mapping[str, Any]], bool], Callable[..., Conversation]]] = (
    (lambda line: "custom_id" in line or "body" in line, _read_openai_batch),
    (lambda line: "conversations" in line, _read_sharegpt),
    (lambda line: "conversation" in line and "messages" not in line, _read_lmsys),
    (lambda line: "turns" in line or "question_id" in line, _read_mt_bench),
    (_is_openai, _read_openai_chat),
    (
        lambda line: is_plain_text(line) and not line.keys().isdisjoint(("text", "continuation", "choices")),
        read_plain_text,
    ),
    (lambda line: "messages" not in line and not line.keys() <= _NATIVE_KEYS | {"id"}, _refuse_form),
    (lambda _: True, read_native),
)
"""How each form is recognised, and what reads it; the first match wins."""
