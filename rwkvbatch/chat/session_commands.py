"""Commands that change settings, and commands that read and write files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

from rich.table import Table
from rich.text import Text

from rwkvbatch.chat.app import Chat
from rwkvbatch.chat.runs import export
from rwkvbatch.chat.session import TURN_SETTINGS
from rwkvbatch.chat.storage import load_session, save_session
from rwkvbatch.config import PRESETS, SHORT_NAMES, Sampling, ThinkMode, full_name, preset
from rwkvbatch.errors import UsageError
from rwkvbatch.prompt.escaping import printable
from rwkvbatch.replay.layers import checked_values

SETTABLE = tuple(SHORT_NAMES.get(name, name) for name in TURN_SETTINGS)
_LISTS = ("banned_token_ids", "stop")
_OPTIONAL = ("max_seconds",)
_VALUES = {
    "think": get_args(ThinkMode),
    "order": ("top-p-first", "temperature-first"),
    "temp": ("0", "0.3", "0.7", "1.0", "1.2"),
    "top_p": ("0.1", "0.3", "0.5", "0.8", "1.0"),
    "max_seconds": ("none",),
    "ban": ("none", "0"),
    "stop": ("none",),
}


def setting_choices(_chat: Chat, before: str) -> Iterable[str]:
    """Completions of `/set`."""
    words = before.split()
    if not words:
        return (*SETTABLE, "seed")
    return _VALUES.get(words[0], ()) if len(words) == 1 else ()


def params(chat: Chat, _argument: None = None) -> None:
    session = chat.session
    table = Table(box=None, pad_edge=False, show_header=False)
    defaults = Sampling()
    for name, value in session.turn_settings().items():
        changed = name in Sampling.model_fields and getattr(defaults, name) != getattr(session.settings, name)
        label = Text(SHORT_NAMES.get(name, name), style="cyan")
        table.add_row(label, Text(printable(_plain(value)), style="bold" if changed else ""))
    opening = session.tree.opening
    spec = session.engine.model.spec
    preset_name = next((name for name, known in PRESETS.items() if known == session.settings.sampling), "none")
    for label, value in (
        ("seed", str(session.identity.seed)),
        ("preset", preset_name),
        ("system", opening.system or "none"),
        ("prelude", (opening.prelude or "none").strip()),
        ("state", opening.state or "none"),
        ("template", session.settings.template or "official"),
        ("model", f"{spec.path} ({spec.backend}, {spec.dtype}, {spec.device})"),
    ):
        table.add_row(Text(label, style="cyan"), Text(printable(value)))
    chat.view.show(table)


def set_value(chat: Chat, argument: str) -> None:
    name, _, text = argument.replace("=", " ", 1).partition(" ")
    if not name:
        params(chat)
        return
    values = _parse_setting(name, text.strip())
    if "seed" in values:
        seed(chat, values["seed"])
    else:
        _change(chat, values)


def use_preset(chat: Chat, name: str) -> None:
    _change(chat, dict(preset(name)))


def think(chat: Chat, mode: str) -> None:
    if mode:
        _change(chat, {"think": mode})
    else:
        chat.view.note(f"think {chat.session.settings.think}")


def fold(chat: Chat, state: str) -> None:
    chat.view.folded = state == "on" if state else not chat.view.folded
    chat.view.note(f"thinking parts are {'hidden' if chat.view.folded else 'shown'}")
    last = chat.session.tree.last
    if state == "off" and chat.is_terminal and last is not None:
        chat.view.replay([last])


def seed(chat: Chat, number: int | None) -> None:
    if number is not None:
        chat.session.identity = replace(chat.session.identity, seed=number)
        chat.transcript.settings(chat.session)
    chat.view.note(f"seed {chat.session.identity.seed}")


def _parse_setting(name: str, text: str) -> dict[str, Any]:
    """The validated setting of `/set NAME TEXT`, by its full name.

    Raises:
        UsageError: there is no such setting, or its value is not allowed.
    """
    full = full_name(name.lstrip("-"))
    if full not in (*TURN_SETTINGS, "seed"):
        raise UsageError(f"/set: expected one of {', '.join(SETTABLE)}, seed; got {name[:60]!r}")
    value: Any = text
    if full in _LISTS:
        value = [] if text in ("", "none") else [part.strip() for part in text.split(",")]
        if full == "stop":
            value = [part.encode().decode("unicode_escape") if part.isascii() else part for part in value]
    elif full in _OPTIONAL and text == "none":
        return {full: None}
    elif not text:
        raise UsageError(f"/set {name}: the value is missing")
    return checked_values({full: value}, lambda shown: f"/set {SHORT_NAMES.get(shown, shown)}:")


def _change(chat: Chat, values: dict[str, Any]) -> None:
    chat.session.use_settings(chat.session.settings.replace(**values))
    chat.transcript.settings(chat.session)
    shown = ", ".join(f"{SHORT_NAMES.get(name, name)} {_plain(value)}" for name, value in values.items())
    chat.view.note(f"set {shown}")


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(repr, cast("Sequence[Any]", value))) or "none"
    return "none" if value is None else str(value)


def save(chat: Chat, path: Path) -> None:
    save_session(chat.session, path)
    count = len(chat.session.tree.exchanges)
    chat.view.note(f"saved {path}: the settings and {count} exchange{'' if count == 1 else 's'}")


def load(chat: Chat, path: Path) -> None:
    """Continue the saved session, or the session of the transcript, in `path`.

    Raises:
        InputError: it cannot be used.
    """
    load_session(chat.session, path)
    chat.transcript.start(chat.session)
    tree = chat.session.tree
    chat.view.replay(tree.path())
    chat.view.note(f"loaded {path}: branch {tree.current}, turn {tree.num_turns()}")


def state(chat: Chat, argument: tuple[str, Path]) -> None:
    action, path = argument
    session = chat.session
    if action == "load":
        session.begin(state_file=path)
        chat.transcript.record(session)
        chat.view.note(f"a conversation with the initial state in {path}, on branch {session.tree.current}")
        return
    from rwkvbatch.model.states import save_state

    tokens = session.tree.history()
    if path.suffix != ".safetensors":
        path = path.with_name(path.name + ".safetensors")
    # After an initial state the tokens alone do not determine the state.
    known = [tokens] if session.tree.opening.state is None else None
    save_state(path, session.next_token().state, session.engine.model.spec, tokens=known, replace=True, private=True)
    chat.view.note(f"saved {path}: the state after {len(tokens)} tokens; rwkvbatch chat --state {path} starts with it")


def export_script(chat: Chat, path: Path) -> None:
    exported = export(chat.session, path)
    chat.view.note(f"wrote {path}; this command makes the same replies:\n  {exported.command}")
    for caveat in exported.caveats:
        chat.view.note(f"except that {caveat}")


def model(chat: Chat, argument: str) -> None:
    session = chat.session
    if argument:
        engine = chat.load_engine(str(Path(argument).expanduser()))
        session.use_engine(engine)
        session.use_settings(session.settings.replace(model=argument))
        chat.transcript.start(session)
        chat.view.note(f"{engine.model.spec.path} reads the conversation when the next message comes")
    else:
        chat.view.note(session.engine.model.spec.path)
