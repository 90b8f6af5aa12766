"""Roles and messages to turns: the one order of messages that can be replayed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rwkvbatch.script.checks import parse_checks
from rwkvbatch.script.params import parse_params
from rwkvbatch.script.records import Check, SourceLine, Turn
from rwkvbatch.script.source import refuse

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One message of any form. `expect` and `params` are raw: they are parsed when the turn is complete.

    `where` names the message in its line, such as `messages[2]`.
    """

    role: Role
    content: str
    where: str
    expect: Any = None
    params: Any = None


@dataclass(frozen=True)
class Dialogue:
    """What a list of messages says."""

    system: str | None
    turns: tuple[Turn, ...]


def to_dialogue(messages: Sequence[Message], source: SourceLine) -> Dialogue:
    """Every user message becomes a turn; an assistant message right after it is the turn's reference.

    Two user messages in a row are two turns of which the first has no reference.

    Raises:
        ScriptError: no user message, a system message that is not the first, an assistant message with no user message
            before it, two assistant messages in a row, a wrong check, or one that needs a reference its turn lacks.
    """
    system: str | None = None
    turns: list[Turn] = []
    for at, message in enumerate(messages):
        if message.role != "user" and message.expect is not None:
            refuse(
                source,
                f"{message.where}: `expect` belongs to the user message that asks for the reply",
                "move it there",
            )
        if message.role != "user" and message.params is not None:
            refuse(
                source,
                f"{message.where}: `params` belong to the user message that asks for the reply",
                "move them there",
            )
        if message.role == "system":
            if at:
                refuse(
                    source,
                    f"{message.where}: a system message may only be the first",
                    "join it with the first message",
                )
            system = message.content
        elif message.role == "user":
            checks = (
                ()
                if message.expect is None
                else parse_checks(message.expect, source, f"{message.where}.expect")
            )
            params: Mapping[str, Any] = (
                {}
                if message.params is None
                else parse_params(message.params, source, f"{message.where}.params")
            )
            turns.append(Turn(message.content, None, checks, params))
        elif not turns:
            hint = "begin with a user message, or give an initial exchange with `--prelude`"
            refuse(source, f"{message.where}: an assistant message needs a user message before it", hint)
        elif turns[-1].reference is not None:
            refuse(
                source,
                f"{message.where}: two assistant messages in a row",
                "join them, or put a user message between",
            )
        else:
            turns[-1] = replace(turns[-1], reference=message.content)
    if not turns:
        refuse(source, "has no user message, so there is nothing to reply to", "add a message of role user")
    for number, turn in enumerate(turns):
        for check in turn.checks:
            if check.needs_reference and turn.reference is None:
                hint = "add the assistant message that the reply is to be like"
                refuse(source, f"turn {number}: the check {check.kind!r} needs a reference reply", hint)
    return Dialogue(system, tuple(turns))


def with_checks(turns: Iterable[Turn], shared: Sequence[Check]) -> tuple[Turn, ...]:
    """The turns, each with the `shared` checks (of its conversation or file) behind its own.

    A shared check that compares with the reference is left out where a turn has none.
    """
    if not shared:
        return tuple(turns)
    return tuple(
        replace(
            turn,
            checks=(
                *turn.checks,
                *(c for c in shared if turn.reference is not None or not c.needs_reference),
            ),
        )
        for turn in turns
    )
