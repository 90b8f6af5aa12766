"""Readers of all forms of lines. Each line is recognised on its own, so a file may mix forms.

| form         | recognised by                          | unknown keys                             |
|--------------|----------------------------------------|------------------------------------------|
| OpenAI batch | `custom_id` or `body`                  | ignored, unless they resemble a known key |
| ShareGPT     | `conversations`                        | the same                                 |
| LMSYS        | `conversation`                         | the same                                 |
| MT-Bench     | `turns` or `question_id`               | the same                                 |
| OpenAI chat  | `messages`, and keys or contents that the native form lacks | the same            |
| plain text   | `text`, `continuation`, or `prompt`, with `choices` or alone | an error            |
| native       | `messages`                             | an error                                 |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from rwkvbatch.config import DialoguePrompt
from rwkvbatch.errors import counted
from rwkvbatch.script.lines import SourceLine, is_array, is_object, refuse, shown, type_name
from rwkvbatch.script.messages import REPLY_KEYS, Message, Role, to_dialogue
from rwkvbatch.script.native import is_plain_text, is_prompt, read_native, read_plain_text, read_tooling
from rwkvbatch.script.other_data import refuse_form
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
    "top_k",
    "min_p",
    "penalty_decay",
    "no_penalty",
    "banned_token_ids",
)
"""Sampling fields: OpenAI's, and those that other servers and `rwkvbatch serve` add."""

_REQUEST_PARAMS = (*_OPENAI_PARAMS, "order", "max_seconds", *DialoguePrompt.model_fields)
"""Fields of a batch request that become params; data sets may have other things under the last of these names."""

_REFUSED_MESSAGE_KEYS = ("audio", "refusal")
"""Content of a message that this program cannot replay; a line that has it is refused."""

REFUSED_FIELDS: Mapping[str, tuple[Any, ...]] = {
    "logit_bias": ({}, []),
    "response_format": ({}, {"type": "text"}),
    "repetition_penalty": (1,),
    # Fields of vLLM's server, which its clients send with the values that mean the same as none.
    "length_penalty": (1,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "use_beam_search": (False,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    # Fields of completions.
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
}
"""Settings of a request that change the reply and that this program does not have, with the values that change nothing;
a line that has another value is refused."""

NEUTRAL_FIELDS: Mapping[str, tuple[Any, ...]] = {
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template_kwargs": ({},),
    "modalities": (["text"],),
}
"""By field of a request that is ignored, the values that change nothing; others are named as ignored."""


class _Lenient(Shape):
    lenient: ClassVar[bool] = True


_LooseId = Annotated[str | None, BeforeValidator(lambda value: str(value) if type(value) is int else value)]


class _OpenAiMessage(_Lenient):
    also_known: ClassVar[frozenset[str]] = REPLY_KEYS | {"tool_calls", "function_call", "tool_call_id", "name"}
    role: str
    content: Any = None


_TOOL_KEYS = frozenset({"tools", "tool_choice", "functions", "function_call"})
_NATIVE_KEYS = frozenset({"tags", "params", "expect", "probes"})


class _OpenAi(_Lenient):
    also_known: ClassVar[frozenset[str]] = _NATIVE_KEYS | _TOOL_KEYS | {*_OPENAI_PARAMS, "defaults"}
    messages: list[Any]
    id: _LooseId = None


class _OpenAiCompletion(_Lenient):
    also_known: ClassVar[frozenset[str]] = _NATIVE_KEYS | {*_OPENAI_PARAMS}
    prompt: Any


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
    if raw.url is not None and not raw.url.endswith("/completions"):
        hint = "only requests for chats and completions can be replayed"
        refuse(source, f"url: must be of chat completions or completions, got {shown(raw.url)}", hint)
    name = read_id(raw.custom_id, default_id, source, "custom_id")
    read = _read_openai_completion if _is_completion(line) else _read_openai_chat
    return read(raw.body, source, name, "body")


def _is_completion(line: Mapping[str, Any]) -> bool:
    """Whether a batch request continues a text; without a `url`, the content of the body decides."""
    url, body = line.get("url"), line.get("body")
    if isinstance(url, str):
        return not url.endswith("/chat/completions")
    return is_object(body) and "prompt" in body and "messages" not in body


def _read_openai_completion(request: Mapping[str, Any], source: SourceLine, name: str, where: str) -> Conversation:
    """The body of a request of OpenAI's completions: a prompt without a template."""
    prompt = _OpenAiCompletion.read(request, source, where).prompt
    if is_array(prompt) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        hint = "token ids cannot be replayed, and several prompts are several lines"
        refuse(source, f"{where}.prompt: must be one text, got {type_name(prompt)}", hint)
    params = _request_params(request, source, where)
    return Conversation(name, None, (Turn(prompt, plain=True),), (), params, source)


_SHAREGPT_TOOL_ROLES = ("function_call", "function_response", "observation", "tool_call", "tool_response")
_NO_TOOLS_HINT = "tool calls of this form have no common notation; write them as OpenAI messages"


def _refuse_tools(line: Mapping[str, Any], source: SourceLine) -> None:
    """Refuse a line with `tools`, a list or its JSON text; the prompt would not contain them."""
    tools = line.get("tools")
    if tools and not (isinstance(tools, str) and tools.strip() in ("", "[]", "null")):
        refuse(source, f"tools: cannot be read in this form, got {shown(tools)}", _NO_TOOLS_HINT)


def _read_sharegpt(line: Mapping[str, Any], source: SourceLine, default_id: str) -> Conversation:
    raw = _ShareGpt.read(line, source)
    _refuse_tools(line, source)
    messages = [Message("system", raw.system, "system")] if raw.system else []
    for index, item in enumerate(raw.conversations):
        where = f"conversations[{index}]"
        if is_object(item) and "role" in item and "from" not in item:
            messages.append(_openai_message(item, source, where))
            continue
        message = _ShareGptMessage.read(item, source, where)
        role = _ROLES.get(message.role)
        if role is None or role == "tool":
            known = ", ".join(name for name, role in _ROLES.items() if role != "tool")
            hint = _NO_TOOLS_HINT if role == "tool" or message.role in _SHAREGPT_TOOL_ROLES else None
            refuse(source, f"{where}.from: must be one of {known}, got {shown(message.role)}", hint)
        messages.append(Message(role, message.value, where))
    return to_dialogue(messages, source).conversation(read_id(raw.id, default_id, source), source)


def _read_lmsys(line: Mapping[str, Any], source: SourceLine, default_id: str) -> Conversation:
    """The form of LMSYS-Chat-1M and WildChat: https://huggingface.co/datasets/lmsys/lmsys-chat-1m."""
    raw = _Lmsys.read(line, source)
    _refuse_tools(line, source)
    messages = [_openai_message(item, source, f"conversation[{n}]") for n, item in enumerate(raw.conversation)]
    ids = {"id": raw.id, "conversation_id": raw.conversation_id, "conversation_hash": raw.conversation_hash}
    key = next((key for key, value in ids.items() if value is not None), "id")
    return to_dialogue(messages, source).conversation(read_id(ids[key], default_id, source, key), source)


def _read_mt_bench(line: Mapping[str, Any], source: SourceLine, default_id: str) -> Conversation:
    """A line of MT-Bench. Empty references are omitted; the category becomes a tag."""
    raw = _MtBench.read(line, source)
    references = raw.reference or []
    if not raw.turns:
        refuse(source, "turns: is empty, so there is nothing to reply to")
    if len(references) > len(raw.turns):
        refuse(source, f"reference: has {counted(len(references), 'text')} for {counted(len(raw.turns), 'turn')}")
    turns = tuple(Turn(user, reference or None) for user, reference in zip_longest(raw.turns, references))
    tags = read_tags([raw.category], source) if raw.category else ()
    # FastChat's gen_model_answer.py uses `required_temperature` in the same way.
    temperature = {} if raw.required_temperature is None else {"temperature": raw.required_temperature}
    params = parse_params(temperature, source, "required_temperature")
    return Conversation(read_id(raw.question_id, default_id, source, "question_id"), None, turns, tags, params, source)


def _read_openai_chat(request: Mapping[str, Any], source: SourceLine, default_id: str, where: str = "") -> Conversation:
    prefix = f"{where}." if where else ""
    raw = _OpenAi.read(request, source, where)
    params = _request_params(request, source, where)
    messages: list[Message] = []
    for index, item in enumerate(raw.messages):
        messages.append(_openai_message(item, source, f"{prefix}messages[{index}]"))
    # The id of a batch request is its `custom_id`, which is `default_id` here.
    name = default_id if where else read_id(raw.id, default_id, source)
    tools, reply_prefix = _openai_tools(request, source, prefix)
    return to_dialogue(messages, source, reply_prefix=reply_prefix).conversation(name, source, params, tools)


def _request_params(request: Mapping[str, Any], source: SourceLine, where: str) -> Mapping[str, Any]:
    """The params of a request, in the body of a batch request or beside messages.

    Refuses fields that change the reply and have no counterpart here.
    """
    prefix = f"{where}." if where else ""
    for name in sorted(_NATIVE_KEYS & request.keys()):
        refuse(
            source,
            f"{prefix}{name}: belongs to the native form, and this line has another one",
            "remove one of the two",
        )
    for name, neutral in REFUSED_FIELDS.items():
        if not _is_neutral(request.get(name), neutral):
            refuse(source, f"{prefix}{name}: has no counterpart here", "remove it from the line")
    if request.get("n") not in (None, 1):
        refuse(source, f"{prefix}n: must be 1, got {shown(request['n'])}", "use `--repeats` for several replies")
    names = _REQUEST_PARAMS if where else _OPENAI_PARAMS
    raw_params = {name: request[name] for name in names if request.get(name) is not None}
    if "max_completion_tokens" in raw_params:
        raw_params["max_tokens"] = raw_params.pop("max_completion_tokens")
    if isinstance(raw_params.get("stop"), str):
        raw_params["stop"] = [raw_params["stop"]]
    if type(top_k := raw_params.get("top_k")) is int and top_k == -1:
        raw_params["top_k"] = 0  # vLLM's number for all tokens
    if where and "temperature" in raw_params:
        raw_params.setdefault("top_p", 1.0)  # as in OpenAI's API, and in `rwkvbatch serve`
    return parse_params(raw_params, source, where or "line")


def _is_neutral(value: Any, neutral: tuple[Any, ...]) -> bool:
    """Whether a value of a request changes nothing: null, or one of the `neutral` ones, of which `true` is not 1."""
    is_truth = isinstance(value, bool)
    return value is None or any(value == other and is_truth == isinstance(other, bool) for other in neutral)


def _openai_tools(
    request: Mapping[str, Any], source: SourceLine, prefix: str
) -> tuple[tuple[Mapping[str, Any], ...], str | None]:
    """The result of `read_tooling`; `functions` and `function_call` are former names of `tools` and `tool_choice`."""
    keys = ("functions", "function_call") if request.get("functions") is not None else ("tools", "tool_choice")
    for former, current in (("functions", "tools"), ("function_call", "tool_choice")):
        if request.get(former) not in (None, "none", "auto") and request.get(current) is not None:
            problem = f"{prefix}{former}: is the former name of {current}, which is also given"
            refuse(source, problem, "remove one of the two")
    return read_tooling(request.get(keys[0]), request.get(keys[1]), source, prefix, keys)


def _openai_message(item: Any, source: SourceLine, where: str) -> Message:
    read = _OpenAiMessage.read(item, source, where)
    for name in _REFUSED_MESSAGE_KEYS:
        if item.get(name) not in (None, [], {}, ""):
            refuse(source, f"{where}.{name}: cannot be replayed", "remove it, or leave the conversation out")
    calls = item.get("tool_calls") or None
    if (function_call := item.get("function_call")) is not None:
        if calls is not None:
            refuse(source, f"{where}.function_call: is the former name of tool_calls, which is also given", "remove it")
        calls = [function_call]
    if "content" not in item and calls is None:
        refuse(source, f"{where}.content: is missing")
    role = _role(read.role, source, f"{where}.role")
    content = "" if calls is not None and read.content is None else _content(read.content, source, where)
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
    for index, part in enumerate(content):
        if not is_object(part) or not isinstance(part.get("text"), str):
            hint = "images, sounds and files cannot be replayed"
            part_type = part.get("type") if is_object(part) else None
            got = f"an object of the type {shown(part_type)}" if isinstance(part_type, str) else type_name(part)
            refuse(source, f"{where}.content[{index}]: must be a text part, got {got}", hint)
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
"""Keys of requests that are ignored without a warning, because they do not change the reply."""


def read_conversation(line: Mapping[str, Any], source: SourceLine, default_id: str) -> Conversation:
    """The conversation of one line of any form.

    Args:
        default_id: the id if the line has none.

    Raises:
        ScriptError: the line cannot be replayed.
    """
    return _reader(line)(line, source, default_id)


def _reader(line: Mapping[str, Any]) -> Callable[..., Conversation]:
    """The function that reads lines of the form of `line`."""
    return next(read for matches, read in _FORMS if matches(line))


def _is_openai(line: Mapping[str, Any]) -> bool:
    messages = line.get("messages")
    if not is_array(messages) or not _NATIVE_KEYS.isdisjoint(line):
        return False
    objects = [message for message in messages if is_object(message)]
    if any(not REPLY_KEYS.isdisjoint(message) for message in objects):
        return False
    if "id" in line and not line.keys().isdisjoint(_OPENAI_PARAMS):
        return False  # a native line, whose reader says that settings belong into `params`
    return not line.keys() <= {"messages", "id"} or any(
        not isinstance(message.get("content"), str)
        or message.get("role") not in ("system", "user", "assistant")
        or not message.keys() <= {"role", "content"}
        for message in objects
    )


def ignored_keys(line: Mapping[str, Any]) -> set[str]:
    """The keys of a line, which `read_conversation` accepts, and of its messages that its form's reader ignores."""
    read, ignored, extra = _reader(line), set[str](), frozenset[str]()
    if read is _read_openai_batch:
        ignored, extra = line.keys() - _OpenAiBatch.known_keys() - {"method"}, frozenset(_REQUEST_PARAMS)
        read, line = _read_openai_completion if _is_completion(line) else _read_openai_chat, line["body"]
    if read not in _KNOWN_KEYS:
        return set()
    known, messages_key = _KNOWN_KEYS[read]
    ignored |= line.keys() - known - extra
    if read in (_read_openai_chat, _read_openai_completion):
        ignored -= {
            name for name, neutral in NEUTRAL_FIELDS.items() if name in line and _is_neutral(line[name], neutral)
        }
    for item in line[messages_key] if messages_key else ():
        if is_object(item):
            # A name in a tool message identifies the tool. In other messages it names a person and is not read.
            name = frozenset[str]() if item.get("role") in _ROLE_NAMES["tool"] else {"name"}
            known_here = _KNOWN_IN_SHAREGPT if "from" in item else _KNOWN_IN_MESSAGES - name
            ignored |= {f"messages[].{key}" for key in item if key not in known_here}
    return ignored


_FORMS: Sequence[tuple[Callable[[Mapping[str, Any]], bool], Callable[..., Conversation]]] = (
    (lambda line: "custom_id" in line or "body" in line, _read_openai_batch),
    (lambda line: "conversations" in line, _read_sharegpt),
    (lambda line: "conversation" in line and "messages" not in line, _read_lmsys),
    (lambda line: "turns" in line or "question_id" in line, _read_mt_bench),
    (_is_openai, _read_openai_chat),
    (
        lambda line: (
            is_plain_text(line) and (is_prompt(line) or not line.keys().isdisjoint(("text", "continuation", "choices")))
        ),
        read_plain_text,
    ),
    (lambda line: "messages" not in line and not line.keys() <= _NATIVE_KEYS | {"id"}, refuse_form),
    (lambda _: True, read_native),
)
"""For each form, a function that recognises a line and one that reads it. The first match counts."""

_KNOWN_KEYS: Mapping[Callable[..., Conversation], tuple[frozenset[str], str]] = {
    _read_openai_chat: (_OpenAi.known_keys() | {*REFUSED_FIELDS} | _WITHOUT_EFFECT, "messages"),
    _read_openai_completion: (_OpenAiCompletion.known_keys() | {*REFUSED_FIELDS} | _WITHOUT_EFFECT, ""),
    _read_sharegpt: (_ShareGpt.known_keys() | {"tools"} | _WITHOUT_EFFECT, "conversations"),
    _read_lmsys: (_Lmsys.known_keys() | {"tools"} | _WITHOUT_EFFECT, "conversation"),
    _read_mt_bench: (_MtBench.known_keys() | _WITHOUT_EFFECT, "turns"),
}
"""By reader of a form in which other keys are ignored, the keys that it reads or whose values change nothing, and the
key of the messages, if it has any."""

_KNOWN_IN_MESSAGES = (_OpenAiMessage.known_keys() | {*_REFUSED_MESSAGE_KEYS}) - REPLY_KEYS
_KNOWN_IN_SHAREGPT = _ShareGptMessage.known_keys() | {"role"}
