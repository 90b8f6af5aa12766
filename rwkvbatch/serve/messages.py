"""Converts the messages and tools of a chat request to roles and texts, and replies to tool calls.

Tools, calls and results have the texts that scripts give them, see `script.tools`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from rwkvbatch.errors import ScriptError, shown_value
from rwkvbatch.script.lines import SourceLine
from rwkvbatch.script.messages import Message, tools_as_text
from rwkvbatch.script.tools import Call, calls_in, compact, read_choice, read_tools, with_tools
from rwkvbatch.serve.fields import SHOWN_NAME, ChatFields, RequestError

_SOURCE = SourceLine("request", 1)
_ids = random.Random()
"""Generator of the ids of calls, which are not secret."""


@dataclass(frozen=True)
class ToolUse:
    """The tools that a reply may call.

    Attributes:
        names: names of the functions; none if the reply may call none.
        reply_prefix: beginning of a reply that must be a call; None if the model decides.
    """

    names: frozenset[str] = frozenset()
    reply_prefix: str | None = None
    is_parallel: bool = True

    def calls(self, text: str) -> list[dict[str, Any]]:
        """The `tool_calls` of a complete reply; empty if it makes none, or one of no tool."""
        calls = calls_in(text[call_start(text) :]) if self.names else ()
        if isinstance(calls, str) or not self.names.issuperset(call.name for call in calls):
            return []
        return [_call_object(call) for call in (calls if self.is_parallel else calls[:1])]

    def without_call(self, text: str) -> str:
        """The content of a stripped reply without calls: what follows the beginning that the reply had to have.

        A bare fence, or the first half of a call that the model did not write, would look like its own text.
        """
        if self.reply_prefix is None:
            return text
        start = call_start(text)
        return (text[:start] + text[start:].removeprefix(self.reply_prefix).lstrip()).strip()


def _call_object(call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": compact(call.arguments)}
    return {"id": f"call_{_ids.getrandbits(96):024x}", "type": "function", "function": function}


_THINKING, _END_OF_THINKING, _FENCE = "<think", "</think>", "```"


def call_start(text: str) -> int:
    """The index in a stripped reply, or in its beginning, from which it may be tool calls.

    The thinking part of a reply makes no calls, whatever it quotes.
    """
    answer = 0
    if text.startswith(_THINKING):
        end = text.find(_END_OF_THINKING)
        if end < 0:
            return len(text)
        answer = len(text) - len(text[end + len(_END_OF_THINKING) :].lstrip())
    if text.startswith(("{", "["), answer):
        return answer
    start = text.find(_FENCE, answer)
    return start if start >= 0 else len(text.rstrip("`"))


def text_around_calls(text: str) -> tuple[str, str]:
    """The text before and after the calls of a stripped reply that makes some."""
    start = call_start(text)
    before, after = text[:start].rstrip(), ""
    if text.startswith(_FENCE, start):
        after = text[start:].partition(f"\n{_FENCE}")[2].strip()
    return before, f"\n{after}" if before and after else after


def conversation_of(fields: ChatFields) -> tuple[list[dict[str, str]], ToolUse]:
    """The roles and texts of the messages, and the tools of the reply.

    The role `developer` becomes `system`; text parts are joined.

    Raises:
        RequestError: a message has other content than a role, a text and tool calls, a tool is not a function, or the
            last message is an assistant message and cannot begin the reply.
    """
    _check_end(fields)
    messages = [_message(number, message) for number, message in enumerate(fields.messages)]
    try:
        tools = read_tools(fields.tools, _SOURCE, "tools")
        prefix = read_choice(fields.tool_choice, tools, _SOURCE, "tool_choice")
        messages = tools_as_text(messages, _SOURCE)
    except ScriptError as error:
        # Without the place in a script that the message begins with.
        problem = error.message.removeprefix(f"{_SOURCE.path}:{_SOURCE.line}: ")
        param = next((name for name in ("tool_choice", "tools") if problem.startswith(name)), "messages")
        raise RequestError(problem, param=param, hint=error.hint or "") from None
    plain: list[dict[str, str]] = [{"role": message.role, "content": message.content} for message in messages]
    if prefix is None:
        return plain, ToolUse()
    has_system = plain[0]["role"] == "system"
    system = with_tools(plain[0]["content"] if has_system else None, tools) or ""
    use = ToolUse(
        frozenset(tool["name"] for tool in tools),
        None if fields.tool_choice == "auto" else prefix,
        fields.parallel_tool_calls,
    )
    return [{"role": "system", "content": system}, *plain[has_system:]], use


def _check_end(fields: ChatFields) -> None:
    """Check the fields of vLLM's server that say whether the reply continues the last message.

    Without them it continues an assistant message, as in llama.cpp's server.

    Raises:
        RequestError: the fields contradict each other, or the last message.
    """
    last, is_new, is_continued = fields.messages[-1], fields.add_generation_prompt, fields.continue_final_message
    if is_new and is_continued:
        problem = "add_generation_prompt and continue_final_message: give one of them"
        raise RequestError(problem, param="continue_final_message")
    if last.get("role") != "assistant":
        if is_continued:
            problem = "continue_final_message: the last message must be an assistant message"
            raise RequestError(problem, param="continue_final_message")
        if is_new is False:
            problem = "add_generation_prompt: must be true unless the last message is an assistant message"
            raise RequestError(problem, param="add_generation_prompt")
        return
    if is_new or is_continued is False:
        name = "add_generation_prompt" if is_new else "continue_final_message"
        problem = "the last message is an assistant message, which the reply continues; a second reply is not supported"
        raise RequestError(f"{name}: {problem}", param=name)
    if last.get("tool_calls"):
        where = f"messages.{len(fields.messages) - 1}.tool_calls"
        raise RequestError(f"{where}: calls at the end need their results after them", param="messages")


_ROLES = ("system", "developer", "user", "assistant", "tool")


def _message(number: int, message: Mapping[str, Any]) -> Message:
    where = f"messages.{number}"
    role, content, calls = message.get("role"), message.get("content"), message.get("tool_calls") or None
    known = {"role", "content", *(("tool_calls",) if role == "assistant" else ())}
    known |= {"tool_call_id", "name"} if role == "tool" else set()
    for name, value in message.items():
        if name not in known and value not in (None, []):
            raise RequestError(f"{where}.{name[:SHOWN_NAME]}: this server does not support it", param="messages")
    if role not in _ROLES:
        problem = "must be system, developer, user, assistant or tool"
        raise RequestError(f"{where}.role: {problem}, got {shown_value(role)}", param="messages")
    if isinstance(content, list) and content:
        content = "".join(_part(where, part) for part in cast("list[object]", content))
    if content is None and calls is not None:
        content = ""
    if not isinstance(content, str):
        found = "null" if content is None else shown_value(content)  # pyright: ignore[reportUnknownArgumentType]
        found = found if "content" in message else "none"
        raise RequestError(f"{where}.content: must be text, or a list of text parts; got {found}", param="messages")
    call_id = message.get("tool_call_id")
    if not isinstance(call_id, str | None):
        raise RequestError(f"{where}.tool_call_id: must be text, got {shown_value(call_id)}", param="messages")
    known_role = "system" if role == "developer" else role
    return Message(known_role, content, where, tool_calls=calls, tool_call_id=call_id)


def _part(where: str, part: object) -> str:
    match part:
        case {"type": "text", "text": str(text)}:
            return text
        case _:
            raise RequestError(f"{where}.content: only text parts, got {shown_value(part)}", param="messages")
