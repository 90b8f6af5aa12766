"""Which form a line of a script has. Recognised line by line, so a file may mix them.

| form         | recognised by                          | unknown keys                                  |
|--------------|----------------------------------------|-----------------------------------------------|
| OpenAI batch | `custom_id` or `body`                  | ignored, unless they look like a misspelt one |
| ShareGPT     | `conversations`                        | the same                                      |
| MT-Bench     | `turns` or `question_id`               | the same                                      |
| OpenAI chat  | `messages` in the ways of its requests | the same                                      |
| native       | everything else                        | an error                                      |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, NoReturn

from pydantic import BeforeValidator, Field

from rwkvbatch.script.native import (
    OPENAI_PARAM_NAMES,
    Message,
    Role,
    Shape,
    from_openai,
    read_id,
    read_native,
    read_tags,
    to_dialogue,
)
from rwkvbatch.script.records import Conversation, SourceLine, Turn
from rwkvbatch.script.source import is_array, is_object, refuse, shown, type_name

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
}
_CHANGING_FIELDS = ("tools", "functions", "tool_choice", "function_call", "logit_bias", "response_format")
"""Fields of a request that change its reply and that have no counterpart here."""


WITHOUT_FIRST_REPLY = (
    'jq -c \'.conversations |= map(select(.from == "system")) + '
    'until(length == 0 or (.[0].from | IN("human", "user")); .[1:])\''
)
"""Leaves out what comes before the first question, but for the system message."""


class _Lenient(Shape):
    lenient: ClassVar[bool] = True


def _id_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


_LooseId = Annotated[str | None, BeforeValidator(_id_text)]


class _OpenAiMessage(_Lenient):
    role: str
    content: Any = None


class _OpenAi(_Lenient):
    also_known: ClassVar[frozenset[str]] = OPENAI_PARAM_NAMES
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


def read_openai(line: Mapping[str, Any], source: SourceLine, default_id: str) -> Conversation:
    """A line with OpenAI chat messages and, where they stand beside them, sampling fields.

    Raises:
        ScriptError: a wrong value, or something that has no counterpart here (tools, images).
    """
    return _from_request(line, source, default_id, "")


def read_openai_batch(line: Mapping[str, Any], source: SourceLine, default_id: str) -> Conversation:
    """A request of OpenAI's batch interface; `custom_id` is the conversation's id.

    Raises:
        ScriptError: as `read_openai`, or not a chat request.
    """
    raw = _OpenAiBatch.read(line, source)
    if raw.url is not None and not raw.url.endswith("/chat/completions"):
        refuse(
            source,
            f"url: must be of chat completions, got {shown(raw.url)}",
            "only chat requests can be replayed",
        )
    return _from_request(raw.body, source, read_id(raw.custom_id, default_id, source, "custom_id"), "body")


def read_sharegpt(line: Mapping[str, Any], source: SourceLine, default_id: str) -> Conversation:
    """A ShareGPT conversation: `from` is human or gpt (or user, assistant, system), the text is `value`.

    Raises:
        ScriptError: a wrong value, or an order of messages that cannot be replayed.
    """
    raw = _ShareGpt.read(line, source)
    messages = [Message("system", raw.system, "system")] if raw.system else []
    for at, item in enumerate(raw.conversations):
        where = f"conversations[{at}]"
        message = _ShareGptMessage.read(item, source, where)
        role = _role(message.role, source, f"{where}.from")
        if role == "assistant" and all(earlier.role == "system" for earlier in messages):
            _refuse_first_reply(message.role, source, where)
        messages.append(Message(role, message.value, where))
    dialogue = to_dialogue(messages, source)
    return Conversation(read_id(raw.id, default_id, source), dialogue.system, dialogue.turns, (), {}, source)


def _refuse_first_reply(name: str, source: SourceLine, where: str) -> NoReturn:
    """Conversations that were cut out of longer ones begin with a reply."""
    refuse(
        source,
        f"{where}: {shown(name)} comes before any question, so there is nothing that it replies to",
        f"leave it out; this does that in all lines: {WITHOUT_FIRST_REPLY} FILE > NEW",
    )


def read_mt_bench(line: Mapping[str, Any], source: SourceLine, default_id: str) -> Conversation:
    """An MT-Bench question: its turns, its references where they are not empty, its category as a tag.

    Raises:
        ScriptError: a wrong value, no turn, or more references than turns.
    """
    raw = _MtBench.read(line, source)
    references = raw.reference or []
    if not raw.turns:
        refuse(source, "turns: is empty, so there is nothing to reply to")
    if len(references) > len(raw.turns):
        refuse(source, f"reference: has {len(references)} texts for {len(raw.turns)} turns")
    padded = [*references, *[None] * (len(raw.turns) - len(references))]
    turns = tuple(Turn(user, reference or None) for user, reference in zip(raw.turns, padded, strict=True))
    tags = read_tags([raw.category], source) if raw.category else ()
    return Conversation(read_id(raw.question_id, default_id, source, "question_id"), None, turns, tags, {}, source)


def _from_request(request: Mapping[str, Any], source: SourceLine, conversation_id: str, where: str) -> Conversation:
    prefix = f"{where}." if where else ""
    raw = _OpenAi.read(request, source, where)
    for name in _CHANGING_FIELDS:
        if request.get(name) not in (None, [], {}, "none", "auto", {"type": "text"}):
            refuse(source, f"{prefix}{name}: has no counterpart here", "remove it from the line")
    if request.get("n") not in (None, 1):
        refuse(
            source,
            f"{prefix}n: must be 1, got {shown(request['n'])}",
            "several replies to a turn: `--repeats`",
        )
    messages = [_read_message(item, source, f"{prefix}messages[{at}]") for at, item in enumerate(raw.messages)]
    dialogue = to_dialogue(messages, source)
    params = from_openai(request, source, where or "line")
    return Conversation(conversation_id, dialogue.system, dialogue.turns, (), params, source)


def _read_message(item: Any, source: SourceLine, where: str) -> Message:
    raw = _OpenAiMessage.read(item, source, where)
    return Message(_role(raw.role, source, f"{where}.role"), _content(raw.content, source, where), where)


def _role(name: str, source: SourceLine, where: str) -> Role:
    role = _ROLES.get(name)
    if role is None:
        refuse(
            source,
            f"{where}: must be one of {', '.join(_ROLES)}, got {shown(name)}",
            "tool messages cannot be replayed",
        )
    return role


def _content(content: Any, source: SourceLine, where: str) -> str:
    if isinstance(content, str):
        return content
    if not is_array(content):
        refuse(source, f"{where}.content: must be a string or an array of text parts, got {type_name(content)}")
    texts: list[str] = []
    for at, part in enumerate(content):
        text = part.get("text") if is_object(part) else None
        if not isinstance(text, str):
            refuse(
                source,
                f"{where}.content[{at}]: must be a text part",
                "images, sounds and files cannot be replayed",
            )
        texts.append(text)
    return "\n".join(texts)


ReadForm = Callable[[Mapping[str, Any], SourceLine, str], Conversation]

_NATIVE_KEYS = frozenset({"id", "tags", "params", "expect"})
_OPENAI_KEYS = OPENAI_PARAM_NAMES | {
    "model",
    "tools",
    "functions",
    "stream",
    "user",
    "metadata",
    "n",
    "parallel_tool_calls",
}


def form_of(line: Mapping[str, Any]) -> ReadForm:
    """What reads this line."""
    if "custom_id" in line or "body" in line:
        return read_openai_batch
    if "conversations" in line:
        return read_sharegpt
    if "turns" in line or "question_id" in line:
        return read_mt_bench
    return read_openai if _is_openai(line) else read_native


def read_conversation(line: Mapping[str, Any], source: SourceLine, default_id: str) -> Conversation:
    """The conversation of one line, in whatever form.

    Args:
        default_id: the id if the line gives none.

    Raises:
        ScriptError: the line is of no form that can be replayed.
    """
    return form_of(line)(line, source, default_id)


def _is_openai(line: Mapping[str, Any]) -> bool:
    messages = line.get("messages")
    if not is_array(messages) or not _NATIVE_KEYS.isdisjoint(line):
        return False
    plain = [message for message in messages if is_object(message)]
    if any("expect" in message or "params" in message for message in plain):
        return False
    return not _OPENAI_KEYS.isdisjoint(line) or any(
        not isinstance(message.get("content"), str)
        or message.get("role") not in ("system", "user", "assistant")
        or not message.keys() <= {"role", "content"}
        for message in plain
    )
