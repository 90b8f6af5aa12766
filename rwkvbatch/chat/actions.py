"""The actions of slash commands: changing settings, reading and writing files, moving in the conversation tree."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from rich.text import Text

from rwkvbatch.chat.app import Chat, OutputFile
from rwkvbatch.chat.runs import export
from rwkvbatch.chat.session import TURN_SETTINGS
from rwkvbatch.chat.storage import Unfinished, load_session, save_session
from rwkvbatch.chat.tables import params, plain, short
from rwkvbatch.config import NO_ADAPTER, ORDERS, ThinkMode, TurnEnd, preset_settings
from rwkvbatch.config.names import SHORT_NAMES, full_name
from rwkvbatch.config.sources import checked_values
from rwkvbatch.endpoint.served import ServedSpec
from rwkvbatch.errors import UsageError, counted
from rwkvbatch.files import read_file, user_path
from rwkvbatch.model.states import save_state
from rwkvbatch.model.weights.safetensors import STATE
from rwkvbatch.prompt.escaping import printable
from rwkvbatch.script.lint import lint_system
from rwkvbatch.targets import check_target

SETTABLE = tuple(SHORT_NAMES.get(name, name) for name in TURN_SETTINGS)
_VALUES = {
    "think": get_args(ThinkMode),
    "turn_end": get_args(TurnEnd),
    "order": tuple(ORDERS),
    "temp": ("0", "0.3", "0.7", "1.0", "1.2"),
    "top_p": ("0.1", "0.3", "0.5", "0.8", "1.0"),
    "min_p": ("0", "0.05", "0.1"),
    "no_penalty": ("none", r"\x20\t0123456789"),
    "max_seconds": ("none",),
    "ban": ("none", "0"),
    "stop": ("none",),
    "reply_prefix": ("none",),
}


def setting_choices(_chat: Chat, before: str) -> Iterable[str]:
    """Completions of `/set`."""
    words = before.split()
    if not words:
        return (*SETTABLE, "seed")
    return _VALUES.get(words[0], ()) if len(words) == 1 else ()


def set_value(chat: Chat, argument: str) -> None:
    name, text = re.split(r"\s*=\s*|\s+|$", argument.strip(), maxsplit=1)
    if not name:
        params(chat)
        return
    values = _parse_setting(name, text.strip())
    if "seed" in values:
        seed(chat, values["seed"])
    else:
        _change(chat, values)


def is_setting(name: str) -> bool:
    """Whether `/set` can change the setting."""
    return full_name(name.lstrip("-")) in (*TURN_SETTINGS, "seed")


def _parse_setting(name: str, text: str) -> dict[str, Any]:
    """The validated setting of `/set NAME TEXT`, by its full name."""
    setting = full_name(name.lstrip("-"))
    if not is_setting(name):
        raise UsageError(f"/set: expected one of {', '.join(SETTABLE)}, seed; got {name[:60]!r}")
    value: Any = text
    if setting in ("banned_token_ids", "stop", "no_penalty"):
        if text in ("", "none"):
            value = []
        elif setting == "banned_token_ids":
            value = [part.strip() for part in text.split(",")]
        else:
            value = texts_of(text)
    elif setting == "max_seconds" and text == "none":
        return {setting: None}
    elif setting == "reply_prefix":
        value = "" if text in ("", "none") else text_of(text)
    elif not text:
        raise UsageError(f"/set {name}: the value is missing")
    return checked_values({setting: value}, lambda key: f"/set {SHORT_NAMES.get(key, key)}:")


_ITEM = re.compile(
    r"""\s* (?: "(?P<double>(?:[^"\\]|\\.)*)" | '(?P<single>(?:[^'\\]|\\.)*)' | (?P<plain>(?:[^,\\]|\\.|\\$)*?) )
    \s* (?P<separator> , | $ )""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|(.?))", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'", ",": ","}


def texts_of(text: str) -> list[str]:
    """The texts of a list such as `\\n, "a, b"`: separated by commas, each plain or in quotation marks, with escapes.

    Raises:
        UsageError: a quotation mark is not closed, or an escape is unknown.
    """
    texts: list[str] = []
    position = 0
    while True:
        match = _ITEM.match(text, position)
        assert match is not None  # plain text matches up to the next comma
        quoted, plain_text = match["double"] or match["single"], match["plain"]
        if plain_text and plain_text[0] in "\"'" and len(plain_text) > 1:
            raise UsageError(
                f"the quotation mark of {plain_text[:60]} is not closed",
                hint='write "a, b" for a text with a comma, and \\" for a quotation mark itself',
            )
        texts.append(_ESCAPE.sub(_unescaped, quoted or plain_text or ""))
        if not match["separator"]:
            return texts
        position = match.end()


def text_of(text: str) -> str:
    """One text such as `So, \\n` or `"So "`: plain or in quotation marks, with the escapes of `texts_of`."""
    match = _ITEM.fullmatch(text)
    if match is not None and match["plain"] is None and not match["separator"]:
        text = match["double"] or match["single"] or ""
    return _ESCAPE.sub(_unescaped, text)


def _unescaped(match: re.Match[str]) -> str:
    if code := match[1] or match[2]:
        return chr(int(code, 16))
    if match[3] not in _ESCAPED:
        raise UsageError(
            f"there is no escape {match[0]}", hint="the escapes are \\n \\t \\r \\xHH \\uHHHH \\, \\\" \\' and \\\\"
        )
    return _ESCAPED[match[3]]


def _change(chat: Chat, values: dict[str, Any]) -> None:
    """Change settings of the next replies, and show the changes."""
    chat.session.use_settings(chat.session.settings.replace(**values))
    chat.transcript.settings(chat.session)
    changes = ", ".join(f"{SHORT_NAMES.get(name, name)} {plain(value)}" for name, value in values.items())
    chat.view.note(f"set {changes}")


def use_preset(chat: Chat, name: str) -> None:
    _change(chat, preset_settings(name))


def think(chat: Chat, mode: str) -> None:
    if mode:
        _change(chat, {"think": mode})
    else:
        chat.view.note(f"think {chat.session.settings.think}")


def fold(chat: Chat, state: str) -> None:
    chat.view.folded = state == "on" if state else not chat.view.folded
    chat.view.note(f"thinking parts are {'hidden' if chat.view.folded else 'shown'}")
    if state == "off":
        _replay_last(chat)


def seed(chat: Chat, number: int | None) -> None:
    if number is not None:
        chat.session.identity = replace(chat.session.identity, seed=number)
        chat.transcript.settings(chat.session)
    chat.view.note(f"seed {chat.session.identity.seed}")


def undo(chat: Chat, count: int) -> None:
    undone = chat.session.tree.undo(count)
    chat.transcript.record(chat.session)
    chat.view.note(f"removed {counted(len(undone), 'turn')}, from {short(undone[0].user)!r} on{_kept(chat)}")


def redo(chat: Chat, _argument: None) -> None:
    cut = chat.session.redo()
    chat.transcript.record(chat.session)
    tree = chat.session.tree
    kept = f"; what this took back is on branch {cut.kept}" if cut.kept else ""
    chat.view.note(f"back at {counted(tree.num_turns(), 'turn')} of branch {tree.current}{kept}")
    _replay_last(chat)


def _kept(chat: Chat) -> str:
    """The end of a note: on which branch the turns are that the last move cut off; empty if it cut off none."""
    cut = chat.session.tree.last_cut
    return (
        f"; the earlier version is on branch {cut.kept} · /redo takes this back" if cut is not None and cut.kept else ""
    )


def retry(chat: Chat, _argument: None) -> None:
    chat.reply(chat.session.retry)
    chat.view.note(f"another reply{_kept(chat)}")
    _note_greedy(chat)


def again(chat: Chat, count: int) -> None:
    chat.view.begin_reply("")
    try:
        with chat.stoppable() as should_stop:
            alternatives = chat.session.again(count, should_stop=should_stop)
    finally:
        chat.view.end_reply(None)
    chat.transcript.record(chat.session)
    chat.view.alternatives(alternatives)
    chat.view.note("/pick N continues from reply N; until then the conversation is unchanged")
    _note_greedy(chat)


def _note_greedy(chat: Chat) -> None:
    if chat.session.settings.sampling.greedy:
        chat.view.note("greedy sampling makes the same reply each time; /set temp 1 and /set top_p 1 do not")


def pick(chat: Chat, number: int) -> None:
    chosen = chat.session.pick(number)
    chat.transcript.record(chat.session)
    chat.view.note(f"continuing from {short(chosen.reply)!r}{_kept(chat)}")


def edit(chat: Chat, _argument: None) -> None:
    last = chat.session.tree.last
    if last is None:
        hint = "Ctrl-X Ctrl-E edits the line of input"
        raise UsageError("/edit changes the last message, and there is none yet", hint=hint)
    edited = edit_text(last.user)
    if not edited.strip() or edited == last.user:
        chat.view.note("unchanged")
        return
    chat.transcript.typed(edited)
    chat.reply(partial(chat.session.edit, edited))
    chat.view.note(f"another message{_kept(chat)}")


MAX_EDITED_BYTES = 2**24


def edit_text(text: str) -> str:
    """Let the user edit `text` in `$VISUAL`, `$EDITOR` or vi. Returns the edited text."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not editor and not sys.stdin.isatty():
        raise UsageError("/edit needs a terminal or $EDITOR", hint="set $EDITOR to a program that needs no terminal")
    editor = editor or "vi"
    with tempfile.TemporaryDirectory(prefix="rwkvbatch-") as directory:
        path = Path(directory) / "message.md"
        path.touch(0o600)
        path.write_text(text, encoding="utf-8")
        try:
            status = subprocess.run([*shlex.split(editor), str(path)], check=False).returncode
            edited = read_file(path, MAX_EDITED_BYTES).decode("utf-8")
        except (OSError, ValueError) as error:
            raise UsageError(f"the editor {editor!r} cannot be used: {error}", hint="set $EDITOR") from None
    if status:
        raise UsageError(f"the editor {editor!r} failed with status {status}; the message is unchanged")
    return edited.removesuffix("\n")


def branch(chat: Chat, name: str) -> None:
    if len(name) > 60 or " " in name or not name.isprintable():
        raise UsageError(f"a branch's name must be one word of at most 60 characters, got {name[:80]!r}")
    previous = chat.session.tree.current
    new_name = chat.session.tree.branch(name or None)
    chat.transcript.record(chat.session)
    chat.view.note(f"on branch {new_name}; /switch {previous} goes back")


def switch(chat: Chat, name: str) -> None:
    tree = chat.session.tree
    tree.switch(name)
    chat.transcript.record(chat.session)
    chat.view.note(f"on branch {name}, {counted(tree.num_turns(), 'turn')}")
    _replay_last(chat)


def _replay_last(chat: Chat) -> None:
    last = chat.session.tree.last
    if chat.is_terminal and last is not None:
        chat.view.replay([last])


def system(chat: Chat, text: str) -> None:
    session = chat.session
    opening, previous = session.tree.opening, session.tree.current
    if not text:
        chat.view.show(Text(printable(opening.system or "(no system message)")))
        return
    session.begin_again(None if text == "none" else text)
    chat.transcript.record(session)
    chat.view.note(f"a new conversation, on branch {session.tree.current}; /switch {previous} goes back")
    note_probable_mistakes(chat, session.tree.opening.system, "/system")


def note_probable_mistakes(chat: Chat, system: str | None, option: str) -> None:
    """Show the lint warnings about a system message, such as text that the model may read as another role."""
    for warning in lint_system([system or ""], option):
        chat.view.note(str(warning))


def save(chat: Chat, target: OutputFile) -> None:
    chat.write(target, lambda replace: save_session(chat.session, target.path, replace=replace))
    chat.view.note(f"saved {target.path}: the settings and {counted(len(chat.session.tree.exchanges), 'exchange')}")


def load(chat: Chat, source: OutputFile) -> None:
    """Continue a saved session, or the session of a transcript."""
    path = source.path
    is_unsaved = bool(chat.session.tree.exchanges) and chat.transcript.path is None
    if is_unsaved and chat.is_terminal and not source.replace:
        question = "This session has no transcript and will be lost. Load another one?"
        if not chat.view.confirm(question):
            chat.view.note("not loaded; /save FILE saves this session")
            return
    unfinished = load_session(chat.session, path)
    chat.transcript.start(chat.session)
    show_loaded(chat, path, unfinished)


def show_loaded(chat: Chat, path: Path, unfinished: Unfinished | None) -> None:
    """Show the session that was loaded from a file."""
    tree = chat.session.tree
    chat.view.replay(tree.path())
    chat.view.note(f"loaded {path}: branch {tree.current}, turn {tree.num_turns()}")
    if unfinished is not None:
        number = unfinished.num_characters
        after = f"was cut off after {counted(number, 'character')}" if number else "had not begun"
        chat.view.note(f"not restored: {short(unfinished.message)!r}, whose reply {after}; send it again for the reply")


def state(chat: Chat, argument: tuple[str, OutputFile]) -> None:
    action, target = argument
    session, path = chat.session, target.path
    if action == "load":
        session.begin(state_file=path)
        chat.transcript.record(session)
        chat.view.note(f"a conversation with the initial state in {path}, on branch {session.tree.current}")
        return
    tokens = session.tree.history()
    if path.suffix != ".safetensors":
        path = path.with_name(path.name + ".safetensors")
    # With an initial state, the tokens alone do not determine the state.
    state_tokens = [tokens] if session.tree.opening.state is None else None

    def write(replace: bool) -> None:
        check_target(path, STATE, option="/state", replace=replace, how=f"/state save! {path} replaces it")
        current, spec = session.next_token().state, session.engine.model.spec
        assert not isinstance(spec, ServedSpec)  # `next_token` raises for a served model
        save_state(path, current, spec, tokens=state_tokens, replace=replace, private=True)

    chat.write(target, write)
    chat.view.note(
        f"saved {path}: the state after {counted(len(tokens), 'token')}; rwkvbatch chat --state {path} starts with it"
    )


def export_script(chat: Chat, target: OutputFile) -> None:
    exported = chat.write(target, lambda replace: export(chat.session, target.path, replace=replace))
    if not exported.caveats:
        chat.view.note(f"wrote {target.path}; this command makes the same replies:\n  {exported.command}")
        return
    chat.view.note(f"wrote {target.path}; this command replays it:\n  {exported.command}")
    chat.view.note("It does not make all of the same replies:")
    for caveat in exported.caveats:
        chat.view.note(f"  {caveat}")


def model(chat: Chat, argument: str) -> None:
    session = chat.session
    if not argument:
        chat.view.note(session.engine.model.spec.path)
        return
    engine = chat.load_engine(str(user_path(argument)))
    session.use_engine(engine)
    session.use_settings(session.settings.replace(model=argument, adapter=NO_ADAPTER))
    chat.transcript.start(session)
    chat.view.note(f"{engine.model.spec.path} reads the conversation when the next message comes")
