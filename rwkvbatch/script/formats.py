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
from typing import Any

from rwkvbatch.script.foreign import read_mt_bench, read_openai, read_openai_batch, read_sharegpt
from rwkvbatch.script.native import read_native
from rwkvbatch.script.params import OPENAI_PARAM_NAMES
from rwkvbatch.script.records import Conversation, SourceLine
from rwkvbatch.script.source import is_array, is_object

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
