"""Tool calls of scripts: converts OpenAI's `tools`, `tool_calls` and `tool` messages to the texts of RWKV-7 G1 models.

The texts follow RWKV-LM's `RWKV-v7/RWKV7-G1x-templates.txt` (2026-07-18):

    System: Tools:
    [
    {"name":"find_slots","description":"Find free slots","arguments":{"date":{"type":"string"}}}
    ]
    Return only a JSON function call.

    User: Find a slot on 2026-05-08.

    Assistant: ```json
    {"name":"find_slots","arguments":{"date":"2026-05-08"}}
    ```

    User: Function output:
    {"free_slots":[]}

    Assistant: ```json

OpenAI's fields: https://platform.openai.com/docs/api-reference/chat/create. The templates file does not cover these
cases, which are written in a similar way: several calls are an array with one call a line; several results follow each
other on lines of their own; parameters that the short form would lose (`$defs`, a `required` with only some of them)
stay with the tool.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rwkvbatch.errors import listed, parsing_problem
from rwkvbatch.script.lines import (
    SourceLine,
    finite_float,
    is_array,
    is_object,
    load_strictly,
    refuse,
    shown,
    type_name,
)

CALL_PREFIX = "```json"
"""Beginning of a reply where tools may be called."""

RESULT_PREFIX = "Function output:\n"
MAX_TOOLS = 1000
_PLAIN_SCHEMA = frozenset({"type", "properties", "required", "additionalProperties", "$schema", "title", "description"})
"""Keywords of a parameter schema that the short form can express, as far as a call needs them."""


@dataclass(frozen=True)
class Call:
    """A call: the function's name, and its arguments as JSON values."""

    name: str
    arguments: Mapping[str, Any]

    @property
    def text(self) -> str:
        return compact({"name": self.name, "arguments": self.arguments})


def compact(value: Any) -> str:
    """JSON on one line without spaces, as the templates file writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def tools_text(tools: Sequence[Mapping[str, Any]]) -> str:
    """The end of a system message, which lists `tools` (as returned by `read_tools`)."""
    lines = ",\n".join(compact(_short_form(tool)) for tool in tools)
    return f"Tools:\n[\n{lines}\n]\nReturn only a JSON function call."


def with_tools(system: str | None, tools: Sequence[Mapping[str, Any]]) -> str | None:
    """A system message followed by the list of tools, if there are any."""
    return "\n".join(filter(None, (system, tools_text(tools)))) if tools else system


def _short_form(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as the system message lists it."""
    schema: Mapping[str, Any] = tool.get("parameters") or {}
    shown_tool: dict[str, Any] = {key: tool[key] for key in ("name", "description") if tool.get(key)}
    if not _PLAIN_SCHEMA.issuperset(schema):
        return {**shown_tool, "parameters": schema}
    properties, required = schema.get("properties", {}), schema.get("required", [])
    shown_tool["arguments"] = properties
    if required and set(required) != set(properties):
        shown_tool["required"] = required
    return shown_tool


def calls_text(calls: Sequence[Call]) -> str:
    """The reply that makes `calls`."""
    lines = calls[0].text if len(calls) == 1 else "[\n" + ",\n".join(call.text for call in calls) + "\n]"
    return f"{CALL_PREFIX}\n{lines}\n```"


def read_tools(raw: Any, source: SourceLine, where: str) -> tuple[Mapping[str, Any], ...]:
    """The functions of a `tools` array, each an object of `name`, `description` and `parameters` (a JSON Schema)."""
    if not is_array(raw):
        refuse(source, f"{where}: must be an array of tools, got {type_name(raw)}")
    if len(raw) > MAX_TOOLS:
        refuse(source, f"{where}: must be at most {MAX_TOOLS:,} tools, got {len(raw):,}")
    tools: dict[str, Mapping[str, Any]] = {}
    for index, item in enumerate(raw):
        tool = _read_tool(item, source, f"{where}[{index}]")
        if tool["name"] in tools:
            refuse(source, f"{where}[{index}]: a second tool is called {shown(tool['name'])}", "rename one of the two")
        tools[tool["name"]] = tool
    return tuple(tools.values())


def _read_tool(item: Any, source: SourceLine, where: str) -> Mapping[str, Any]:
    if not is_object(item):
        refuse(source, f"{where}: must be an object, got {type_name(item)}")
    if item.get("type", "function") != "function":
        hint = "only functions can be called; remove the others"
        refuse(source, f'{where}.type: must be "function", got {shown(item["type"])}', hint)
    inner = f"{where}.function" if "function" in item else where
    function = item.get("function", item)
    if not is_object(function):
        refuse(source, f"{inner}: must be an object, got {type_name(function)}")
    name, description, schema = (function.get(key) for key in ("name", "description", "parameters"))
    if not isinstance(name, str) or not name.strip():
        refuse(source, f"{inner}.name: must be the function's name, got {shown(name)}")
    if not isinstance(description, str | None):
        refuse(source, f"{inner}.description: must be a string, got {type_name(description)}")
    if schema is not None and not is_object(schema):
        refuse(source, f"{inner}.parameters: must be a JSON Schema, got {type_name(schema)}")
    for key, kind, is_kind in (("properties", "an object", is_object), ("required", "an array", is_array)):
        if schema and key in schema and not is_kind(schema[key]):
            refuse(source, f"{inner}.parameters.{key}: must be {kind}, got {type_name(schema[key])}")
    if schema and not all(isinstance(argument, str) for argument in schema.get("required", ())):
        refuse(source, f"{inner}.parameters.required: must be names of arguments, got {shown(schema['required'])}")
    tool = {"name": name, "description": description, "parameters": schema}
    return {key: value for key, value in tool.items() if value not in (None, "")}


def read_choice(raw: Any, tools: Sequence[Mapping[str, Any]], source: SourceLine, where: str) -> str | None:
    """The beginning of replies according to a `tool_choice`; None if no tools are listed (`none`, or no tools)."""
    if not tools:
        if raw not in (None, "none", "auto"):
            refuse(source, f"{where}: needs `tools`, and there are none", "add them, or leave it out")
        return None
    if raw == "none":
        return None
    if raw in (None, "auto", "required"):
        return CALL_PREFIX
    match raw:
        case {"function": {"name": str(name)}} | {"name": str(name)}:
            if name not in (tool["name"] for tool in tools):
                refuse(source, f"{where}: names no tool: {shown(name)}", f"they are {_names(tools)}")
        case _:
            hint = 'write "auto", "required", "none" or {"type": "function", "function": {"name": "..."}}'
            refuse(source, f"{where}: is not a choice of a tool: {shown(raw)}", hint)
    return f"{CALL_PREFIX}\n" + '{"name":' + compact(name) + ',"arguments":'


def _names(tools: Sequence[Mapping[str, Any]]) -> str:
    return listed([tool["name"] for tool in tools])


def read_calls(raw: Any, source: SourceLine, where: str) -> tuple[tuple[Call, ...], tuple[str | None, ...]]:
    """The calls of an assistant message's `tool_calls`, at least one, and their ids."""
    if not is_array(raw) or not raw:
        refuse(source, f"{where}: must be an array of calls, got {type_name(raw) if raw != [] else 'none'}")
    calls: list[Call] = []
    ids: list[str | None] = []
    for index, item in enumerate(raw):
        name = f"{where}[{index}]"
        if not is_object(item) or not is_object(item.get("function", item)):
            refuse(source, f"{name}: must be an object with a `function`, got {shown(item)}")
        if item.get("type", "function") != "function":
            refuse(source, f'{name}.type: must be "function", got {shown(item["type"])}')
        inner = f"{name}.function" if "function" in item else name
        calls.append(read_call(item.get("function", item), source, inner))
        ids.append(item["id"] if isinstance(item.get("id"), str) else None)
    return tuple(calls), tuple(ids)


def read_call(raw: Mapping[str, Any], source: SourceLine, where: str) -> Call:
    """A call with `name`, and with `arguments` that are an object or the JSON text of one."""
    name = raw.get("name")
    arguments: Any = raw.get("arguments", {})
    if not isinstance(name, str) or not name:
        refuse(source, f"{where}.name: must be the function's name, got {shown(name)}")
    if isinstance(arguments, str):
        try:
            arguments = strict_json(arguments) if arguments.strip() else {}
        except ValueError as error:
            refuse(source, f"{where}.arguments: is not JSON ({parsing_problem(error)}): {shown(arguments)}")
    if not is_object(arguments):
        refuse(source, f"{where}.arguments: must be an object, or JSON of one, got {type_name(arguments)}")
    return Call(name, arguments)


def strict_json(text: str) -> Any:
    """As `interoperable_json`, with `ValueError` also for text that is nested too deeply."""
    try:
        return interoperable_json(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def interoperable_json(text: str) -> Any:
    """The JSON value of `text`, without content that JSON readers read differently or refuse.

    RFC 8259 names this content (sections 4, 6 and 8.2) and I-JSON (RFC 7493, section 2) excludes it: a key twice in one
    object, a number beyond the range of doubles, and an unpaired surrogate. NaN and Infinity, which Python reads by
    default, are not JSON.

    Raises:
        ValueError: the text is not JSON, or has such content.
        RecursionError: the text is nested too deeply.
    """
    value = load_strictly(text, _finite_int)
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("unpaired surrogate") from None
    return value


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


def _finite_int(digits: str) -> int:
    number = int(digits)
    finite_float(digits)
    return number


def calls_in(text: str) -> tuple[Call, ...] | str:
    """The calls that an answer makes, `()` if it is text without JSON, or a description of what is wrong with them.

    A call is an object with `name` and optional `arguments`. The answer has a call or an array of calls, either as its
    whole text or in one fenced block with any text around it. A block that a stop text cut is read to the end of the
    answer.
    """
    text = text.strip()
    label = ""
    is_fenced = not text.startswith(("{", "["))
    if is_fenced:
        _, fence, after_fence = text.partition("```")
        label, _, inside = after_fence.partition("\n")
        label = label.strip().lower()
        if not fence or label not in ("", "json"):
            return ()
        text, _, after_block = inside.partition("\n```")
        if "```" in after_block:
            return "has more than one fenced block"
    try:
        value = strict_json(text)
    except ValueError as error:
        return () if is_fenced and not label else f"not JSON ({parsing_problem(error)})"
    items: list[Any] = value if is_array(value) else [value]
    calls: list[Call] = []
    for item in items:
        if not is_object(item) or not isinstance(item.get("name"), str):
            return "is not a call: expected an object with a `name` and `arguments`"
        arguments: Any = item.get("arguments", {})
        if not is_object(arguments):
            return f"has arguments that are {type_name(arguments)}, not an object"
        if further := sorted(item.keys() - {"name", "arguments"}):
            return f"is not a call: it has the key {further[0]!r}"
        calls.append(Call(item["name"], arguments))
    return tuple(calls)
