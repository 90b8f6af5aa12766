"""Refuses lines of no form of a script, and says how lines of other data sets become messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, NoReturn

from rwkvbatch.errors import listed
from rwkvbatch.script.lines import SourceLine, is_array, refuse, shown
from rwkvbatch.script.native import PROMPT_KEYS

_MESSAGES = ("messages", "conversations", "conversation", "turns")

_KNOWN_FORMS = (
    "known forms have `messages` (native, OpenAI), `conversations` (ShareGPT), `conversation` (LMSYS), `turns` "
    "(MT-Bench), `text`, or `prompt` alone or with `continuation` or `choices` (plain text), or `custom_id` and `body` "
    "(OpenAI batch); see docs/scripts.md"
)


def _jq(messages: str) -> str:
    return f"jq -c '{{messages: {messages}}}'"


def _question(key: str, reply: str = "") -> str:
    answer = f', {{role: "assistant", content: {reply}}}' if reply else ""
    return _jq(f'[{{role: "user", content: {key}}}{answer}]')


_JQ_FILTERS: tuple[tuple[Callable[[Mapping[str, Any]], bool], str], ...] = (
    (lambda line: "instruction" in line, _question('([.instruction, .input] | map(values) | join("\\n"))', ".output")),
    # Conversations of TRL: a preference (`chosen`, `rejected`), or a prompt and its completion.
    (lambda line: is_array(line.get("prompt")), _jq("(.prompt + (.chosen // .completion // []))")),
    (lambda line: is_array(line.get("chosen")), _jq(".chosen")),
    (
        lambda line: all(isinstance(line.get(k), str) for k in ("prompt", "completion")),
        _question(".prompt", ".completion"),
    ),
    (lambda line: all(isinstance(line.get(k), str) for k in ("prompt", "chosen")), _question(".prompt", ".chosen")),
    (lambda line: "preferred_output" in line, _jq("(.input.messages + .preferred_output)")),
    (lambda line: "prompt" in line, _question(".prompt")),
    (lambda line: "question" in line, _question(".question")),
)
"""For each kind of other data, a function that recognises its lines and the `jq` filter that makes messages of them.
The first match counts."""


def refuse_form(line: Mapping[str, Any], source: SourceLine, _default_id: str) -> NoReturn:
    """Refuse a line of no known form; raises `ScriptError`, with a `jq` filter for lines of other data sets."""
    keys = listed([shown(key) for key in line])
    known = (*_MESSAGES, *(PROMPT_KEYS if isinstance(line.get("prompt"), str) else ()))
    for key in line.keys() - set(known):
        if matches := get_close_matches(key, known, n=1, cutoff=0.8):
            refuse(source, f"unknown key {shown(key)}", f"did you mean {matches[0]!r}?")
    hint = _KNOWN_FORMS
    jq_filter = next((jq_filter for matches, jq_filter in _JQ_FILTERS if matches(line)), None)
    if jq_filter is not None:
        hint += f"; this makes messages of such lines: {jq_filter} FILE > NEW"
    refuse(source, f"is of no known form; its keys are {keys or 'none'}", hint)
