"""Makes the turns of a conversation from its messages, for all forms of scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rwkvbatch.errors import listed
from rwkvbatch.script.checks import parse_checks
from rwkvbatch.script.choices import MAX_CHOICES, MIN_CHOICES, Choice, find_choice
from rwkvbatch.script.lines import SourceLine, is_array, is_object, refuse, shown, type_name
from rwkvbatch.script.records import Conversation, Probe, Turn
from rwkvbatch.script.shape import Shape, parse_params
from rwkvbatch.script.tools import RESULT_PREFIX, calls_text, read_calls

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Message:
    """One message of any form, with unparsed values of the keys about the reply.

    A message of the role `tool` is the result of a call. The content of an assistant message with `tool_calls` is the
    text before the calls.

    Attributes:
        where: name of the message in errors, such as `messages[2]`.
        reply_prefix: the setting of this name, which may also be in `params`.
    """

    role: Role
    content: str
    where: str
    expect: Any = None
    params: Mapping[str, Any] | None = None
    reply_prefix: str | None = None
    choices: Any = None
    generate: bool | None = None
    probes: Any = None
    tool_calls: Any = None
    tool_call_id: str | None = None


REPLY_KEYS = frozenset({"expect", "params", "reply_prefix", "choices", "generate", "probes"})
"""Keys of a user or tool message that are about the reply to it."""


@dataclass(frozen=True)
class Dialogue:
    """The messages of a conversation: fields of `Conversation`."""

    system: str | None
    greeting: str | None
    turns: tuple[Turn, ...]

    def conversation(
        self, name: str, source: SourceLine, params: Mapping[str, Any] | None = None, tools: Any = ()
    ) -> Conversation:
        """The conversation with this id, without tags."""
        return Conversation(name, self.system, self.turns, (), params or {}, source, tools, self.greeting)


def to_dialogue(
    messages: Sequence[Message], source: SourceLine, probes: Any = None, reply_prefix: str | None = None
) -> Dialogue:
    """The system message, if any, and the turns: those of the dialogue, then the probes.

    An assistant message before the first user message is given, and nothing replies to it. Every user message begins a
    turn; an assistant message right after it is the turn's reference. A user message that is followed by another one is
    a turn without a reference. Consecutive tool messages are one turn.

    Args:
        probes: the conversation's own probes, which are asked after every turn.
        reply_prefix: the beginning of every reply (where tools are called), unless its message has a `reply_prefix`, or
            its reference begins otherwise.
    """
    system: str | None = None
    greeting: str | None = None
    turns: list[Turn] = []
    unread_probes: list[tuple[int, Any, str]] = []
    for index, message in enumerate(tools_as_text(messages, source)):
        where = message.where
        if message.role != "user":
            for key in sorted(REPLY_KEYS):
                if getattr(message, key) is not None:
                    refuse(source, f"{where}: `{key}` must be in the user message that asks for the reply", "move it")
        if message.role == "system":
            if index:
                refuse(source, f"{where}: a system message may only be the first", "join it with the first message")
            system = message.content
        elif message.role == "user":
            if message.probes is not None:
                unread_probes.append((len(turns), message.probes, f"{where}.probes"))
            turns.append(_turn(message, source))
        elif not turns and greeting is None:
            if not message.content.strip():
                refuse(source, f"{where}: is empty, and nothing precedes it but a system message", "remove it")
            greeting = message.content
        elif not turns or turns[-1].reference is not None:
            refuse(source, f"{where}: two assistant messages in a row", "join them, or put a user message between")
        else:
            turns[-1] = replace(turns[-1], reference=message.content)
    if not turns:
        refuse(source, "has no user message, so there is nothing to reply to", "add a message of role user")
    if reply_prefix is not None:
        turns = [_with_reply_prefix(turn, reply_prefix) for turn in turns]
    for number, turn in enumerate(turns):
        check_needs(turn, source, f"turn {number}")
    if probes is not None:
        unread_probes += [(number, probes, "probes") for number in range(len(turns))]
    turns += _read_probes(unread_probes, len(turns), system is not None, source)
    return Dialogue(system, greeting, tuple(turns))


def tools_as_text(messages: Sequence[Message], source: SourceLine) -> list[Message]:
    """The messages, with tool calls as text of the reply and consecutive results as one user message."""
    texts: list[Message] = []
    call_ids: tuple[str | None, ...] = ()
    results: list[Message] = []

    def call_index(result: Message) -> int:
        return call_ids.index(result.tool_call_id) if result.tool_call_id in call_ids else 0

    def end_results() -> None:
        if results:
            # In the order of the calls: the text has no ids, so only the order tells results apart.
            content = RESULT_PREFIX + "\n".join(result.content for result in sorted(results, key=call_index))
            texts.append(replace(results[-1], role="user", content=content, tool_call_id=None))
            results.clear()

    for message in messages:
        where = message.where
        if message.tool_calls is not None and message.role != "assistant":
            refuse(source, f"{where}.tool_calls: must be in an assistant message", "move it")
        if message.role != "tool":
            end_results()
            if message.tool_calls is not None:
                if not any(earlier.role == "user" for earlier in texts):
                    problem = f"{where}: an assistant message that calls tools needs a user message before it"
                    refuse(source, problem, "begin with a user message")
                calls, call_ids = read_calls(message.tool_calls, source, f"{where}.tool_calls")
                text = "\n".join(filter(None, (message.content.strip(), calls_text(calls))))
                message = replace(message, content=text, tool_calls=None)
            elif message.role == "assistant":
                call_ids = ()
            texts.append(message)
            continue
        if not any(earlier.role == "user" for earlier in texts):
            refuse(source, f"{where}: a tool message is the result of a call, and there is none before it", "move it")
        if message.tool_call_id is not None and any(call_ids) and message.tool_call_id not in call_ids:
            known = ", ".join(shown(name) for name in call_ids if name)
            refuse(
                source,
                f"{where}.tool_call_id: {shown(message.tool_call_id)} does not match an earlier call",
                f"it is {known}",
            )
        if results and any(getattr(results[-1], key) is not None for key in REPLY_KEYS):
            hint = "the reply comes after all of them: move it to the last one"
            refuse(source, f"{results[-1].where}: asks for a reply, and another tool message follows", hint)
        results.append(message)
    end_results()
    return texts


def _with_reply_prefix(turn: Turn, reply_prefix: str) -> Turn:
    """The turn with a `reply_prefix`, which is empty if its reference begins otherwise.

    Turns that have their own prefix or choices stay as they are.
    """
    if "reply_prefix" in turn.params or turn.choices:
        return turn
    if turn.reference is not None and not turn.reference.startswith(reply_prefix):
        reply_prefix = ""
    return replace(turn, params={**turn.params, "reply_prefix": reply_prefix})


def _turn(message: Message, source: SourceLine) -> Turn:
    """The turn that a user message begins."""
    where = message.where
    checks = () if message.expect is None else parse_checks(message.expect, source, f"{where}.expect")
    params = _turn_params(message, source)
    choices = () if message.choices is None else parse_choices(message.choices, source, f"{where}.choices")
    if message.generate is not None and not choices:
        refuse(source, f"{where}: `generate` belongs to `choices`, and there are none", "leave it out")
    return Turn(message.content, None, checks, params, choices, generate=not choices or bool(message.generate))


def check_needs(turn: Turn, source: SourceLine, where: str) -> None:
    """Refuse checks that need a reference or choices which the turn does not have."""
    names = [choice.name for choice in turn.choices]
    for check in turn.checks:
        if check.needs_reference and turn.reference is None:
            hint = "add the assistant message that the reply is compared with"
            refuse(source, f"{where}: the check {check.kind!r} needs a reference reply", hint)
        for choice in check.choices:
            if not names:
                hint = 'add `"choices": ["...", "..."]` to the user message'
                refuse(source, f"{where}: the check {check.kind!r} needs choices", hint)
            named = names[choice] if isinstance(choice, int) and 0 <= choice < len(names) else None
            if named is not None and named != str(choice) and str(choice) in names:
                what = f"the check {check.kind!r} has {choice}, the index of one choice and the name of another"
                refuse(source, f"{where}: {what}", f'write "{choice}" or {shown(named)}')
            try:
                find_choice(names, choice)
            except KeyError:
                hint = (
                    f"they are {listed([shown(name) for name in names])}; an index counts from 0, to {len(names) - 1}"
                )
                refuse(source, f"{where}: the check {check.kind!r} names no choice of the turn: {shown(choice)}", hint)


def parse_choices(raw: Any, source: SourceLine, where: str = "choices") -> tuple[Choice, ...]:
    """The `choices` of a message: an array of texts, which are also the names, or an object with names and texts."""
    if is_object(raw):
        pairs = list(raw.items())
    elif is_array(raw):
        pairs = [(text.strip() if isinstance(text, str) else "", text) for text in raw]
    else:
        hint = 'write ["Paris", "Rome"], or {"A": "Paris", "B": "Rome"}'
        refuse(
            source, f"{where}: must be an array of texts or an object of names and texts, got {type_name(raw)}", hint
        )
    if not MIN_CHOICES <= len(pairs) <= MAX_CHOICES:
        refuse(source, f"{where}: must be {MIN_CHOICES} to {MAX_CHOICES:,} choices, got {len(pairs):,}")
    texts: dict[str, str] = {}  # by text, the item that has it
    for index, (name, text) in enumerate(pairs):
        item = f"{where}[{index}]" if is_array(raw) else f"{where}.{shown(name)}"
        if not isinstance(text, str):
            refuse(source, f"{item}: must be a text, got {type_name(text)}")
        if not text.strip():
            refuse(source, f"{item}: is empty, so it has no likelihood", "remove it, or write what the reply would be")
        if not name.strip():
            refuse(source, f"{item}: its name is empty", "name it, such as A")
        if (other := texts.setdefault(" ".join(text.split()), item)) != item:
            refuse(source, f"{item}: is the same text as {other}", "remove one of the two")
    return tuple(Choice(name, text) for name, text in pairs)


class _Probe(Shape):
    content: str
    expect: Any = None
    params: dict[str, Any] | None = None
    choices: Any = None
    generate: bool | None = None
    reply_prefix: str | None = None
    reference: str | None = None
    since: int | Literal["system"] = 0


def _read_probes(
    unread: Sequence[tuple[int, Any, str]], num_turns: int, has_system: bool, source: SourceLine
) -> list[Turn]:
    """The turns of probes in the order of the dialogue. The conversation's own are asked after each turn from `since`.

    Args:
        unread: the index of the turn after which probes are asked, the JSON array of these, and its name in errors.
    """
    probe_turns: list[Turn] = []
    num_probes = dict.fromkeys(range(num_turns), 0)
    for after, raw, where in sorted(unread, key=lambda item: item[0]):
        if not is_array(raw) or not raw:
            got = "none" if is_array(raw) else type_name(raw)
            refuse(
                source, f"{where}: must be an array of probes, got {got}", 'write [{"content": "...", "expect": ...}]'
            )
        for index, item in enumerate(raw):
            name = f"{where}[{index}]"
            probe = _Probe.read(item, source, name)
            if probe.since == "system" and not has_system:
                refuse(source, f"{name}.since: there is no system message", "name the turn that says it, from 0 up")
            since = -1 if probe.since == "system" else probe.since
            latest = num_turns - 1 if where == "probes" else after
            if not -1 <= since <= latest or probe.since == -1:
                hint = "turns count from 0; since is the turn that says what the probe asks about"
                refuse(source, f'{name}.since: must be a turn from 0 to {latest}, or "system"; got {since}', hint)
            if since > after:
                continue
            of_reply = (probe.expect, probe.params, probe.reply_prefix, probe.choices, probe.generate)
            turn = _turn(Message("user", probe.content, name, *of_reply), source)
            turn = replace(turn, reference=probe.reference, probe=Probe(after, num_probes[after], since))
            check_needs(turn, source, name)
            probe_turns.append(turn)
            num_probes[after] += 1
    return probe_turns


def _turn_params(message: Message, source: SourceLine) -> Mapping[str, Any]:
    """The params of the reply to a user message, including its `reply_prefix`."""
    where = f"{message.where}.params"
    params = parse_params(message.params or {}, source, where)
    if "bos" in params:
        refuse(source, f"{where}.bos: token 0 is read before the conversation", "move it to the conversation's params")
    if message.reply_prefix is None:
        return params
    if "reply_prefix" in params:
        refuse(
            source,
            f"{message.where}: has reply_prefix both next to its content and in its params",
            "keep one of the two",
        )
    return {**params, "reply_prefix": message.reply_prefix}
