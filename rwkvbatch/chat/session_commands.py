"""Commands that read and write files, models among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

from rich.table import Table
from rich.text import Text

from rwkvbatch.chat.command import Chat, Command, file_argument, number_argument
from rwkvbatch.chat.runs import export
from rwkvbatch.chat.session import KEPT_SETTINGS, SEED_LIMIT
from rwkvbatch.chat.storage import load_session, restore, save_session
from rwkvbatch.config import ALIASES, PRESETS, SHORT_NAMES, Sampling, ThinkMode, preset
from rwkvbatch.errors import UsageError
from rwkvbatch.prompt.escaping import printable
from rwkvbatch.replay.settings import checked_values

SETTABLE = tuple(SHORT_NAMES.get(name, name) for name in KEPT_SETTINGS)
_LISTS = ("banned_token_ids", "stop")
_OPTIONAL = ("max_seconds",)


def parse_setting(name: str, text: str) -> dict[str, Any]:
    """The validated setting that `/set NAME TEXT` asks for, by its full name.

    Raises:
        UsageError: there is no such setting, or it cannot be that.
    """
    key = name.lstrip("-").replace("-", "_")
    full = ALIASES.get(key, key)
    if full not in KEPT_SETTINGS:
        raise UsageError(f"/set needs one of {', '.join(SETTABLE)}, seed; got {name[:60]!r}")
    value: Any = text
    if full in _LISTS:
        value = [] if text in ("", "none") else [part.strip() for part in text.split(",")]
        if full == "stop":
            value = [part.encode().decode("unicode_escape") if part.isascii() else part for part in value]
    elif full in _OPTIONAL and text == "none":
        return {full: None}
    elif not text:
        raise UsageError(f"/set {name} needs a value")
    return checked_values({full: value}, lambda shown: f"/set {SHORT_NAMES.get(shown, shown)}:")


def show_settings(chat: Chat) -> Table:
    """All settings of the next reply."""
    session = chat.session
    table = Table(box=None, pad_edge=False, show_header=False)
    defaults = Sampling()
    for name, value in session.kept_settings().items():
        shown = _plain(value)
        changed = name in Sampling.model_fields and getattr(defaults, name) != getattr(session.settings, name)
        label = SHORT_NAMES.get(name, name)
        table.add_row(Text(label, style="cyan"), Text(printable(shown), style="bold" if changed else ""))
    opening = session.dialogue.openings[session.dialogue.head.opening]
    spec = session.engine.model.spec
    for label, value in (
        ("seed", str(session.identity.seed)),
        ("preset", _preset_name(session.settings.sampling) or "(none of them)"),
        ("system", opening.system or "none"),
        ("prelude", (opening.prelude or "none").strip()),
        ("state", opening.state or "none"),
        ("template", session.settings.template or "official"),
        ("model", f"{spec.path} ({spec.backend}, {spec.dtype}, {spec.device})"),
    ):
        table.add_row(Text(label, style="cyan"), Text(printable(value)))
    return table


def _params(chat: Chat, argument: str) -> None:
    if argument:
        raise UsageError("/params takes nothing behind it", hint="/set NAME VALUE changes a setting")
    chat.view.show(show_settings(chat))


def _set(chat: Chat, argument: str) -> None:
    name, _, text = argument.replace("=", " ", 1).partition(" ")
    if not name:
        chat.view.show(show_settings(chat))
        return
    if name == "seed":
        _seed(chat, text.strip())
        return
    _change(chat, parse_setting(name, text.strip()))


def _change(chat: Chat, values: dict[str, Any]) -> None:
    chat.session.use_settings(chat.session.settings.replace(**values))
    chat.keep_settings()
    shown = ", ".join(f"{SHORT_NAMES.get(name, name)} {_plain(value)}" for name, value in values.items())
    chat.view.note(f"from now on: {shown}")


def _preset(chat: Chat, argument: str) -> None:
    if argument not in PRESETS:
        raise UsageError(f"/preset needs one of {', '.join(PRESETS)}; got {argument[:60]!r}")
    _change(chat, dict(preset(argument)))


def _think(chat: Chat, argument: str) -> None:
    if not argument:
        chat.view.note(f"think {chat.session.settings.think}")
        return
    if argument not in get_args(ThinkMode):
        raise UsageError(f"/think needs one of {', '.join(get_args(ThinkMode))}; got {argument[:60]!r}")
    _change(chat, {"think": argument})


def _fold(chat: Chat, argument: str) -> None:
    if argument not in ("", "on", "off"):
        raise UsageError(f"/fold needs on or off, got {argument[:60]!r}")
    chat.view.folded = not chat.view.folded if not argument else argument == "on"
    chat.view.note(f"thinking parts are {'hidden' if chat.view.folded else 'shown'}")
    last = chat.session.dialogue.last
    if argument == "off" and chat.is_terminal and last is not None:
        chat.view.replay([last])


def _seed(chat: Chat, argument: str) -> None:
    if argument:
        seed = number_argument(argument, "/seed N", None, 0, SEED_LIMIT - 1)
        chat.session.identity = replace(chat.session.identity, seed=seed)
        chat.keep_settings()
    chat.view.note(f"seed {chat.session.identity.seed}")


def _preset_name(sampling: Sampling) -> str | None:
    return next((name for name, known in PRESETS.items() if known == sampling), None)


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(repr, cast("Sequence[Any]", value))) or "none"
    return "none" if value is None else str(value)


def _setting_choices(_chat: Chat, before: str) -> Iterable[str]:
    words = before.split()
    if not words:
        return (*SETTABLE, "seed")
    return (
        {
            "think": get_args(ThinkMode),
            "order": ("top-p-first", "temperature-first"),
            "temp": ("0", "0.3", "0.7", "1.0", "1.2"),
            "top_p": ("0.1", "0.3", "0.5", "0.8", "1.0"),
            "max_seconds": ("none",),
            "ban": ("none", "0"),
            "stop": ("none",),
        }.get(words[0], ())
        if len(words) == 1
        else ()
    )


SETTINGS_COMMANDS = (
    Command("params", "", "Show all settings.", _params),
    Command(
        "set",
        "NAME VALUE",
        "Change a setting of the replies to come, such as /set temp 0.7.",
        _set,
        more=f"Settings: {', '.join(SETTABLE)}, seed. Lists (ban, stop) are separated by commas.",
        choices=_setting_choices,
    ),
    Command(
        "preset",
        "NAME",
        "Take a known-good combination of sampling settings.",
        _preset,
        choices=lambda _chat, before: () if before else tuple(PRESETS),
    ),
    Command(
        "think",
        "[MODE]",
        "Thinking mode: off, on, fake, short, long.",
        _think,
        choices=lambda _chat, before: () if before else get_args(ThinkMode),
    ),
    Command(
        "fold",
        "[on|off]",
        "Hide or show thinking parts.",
        _fold,
        choices=lambda _chat, before: () if before else ("on", "off"),
    ),
    Command("seed", "[N]", "Show or change the seed of all randomness.", _seed),
)


def _save(chat: Chat, argument: str) -> None:
    path = file_argument(argument, "/save FILE")
    save_session(chat.session, path)
    chat.view.note(f"saved {path}: all {len(chat.session.dialogue.exchanges)} exchanges and the settings")


def _load(chat: Chat, argument: str) -> None:
    path = file_argument(argument, "/load FILE")
    load_into(chat, path)


def load_into(chat: Chat, path: Path) -> None:
    """Go on with the saved session, or the transcript, in `path`.

    Raises:
        InputError: it cannot be used.
    """
    restore(chat.session, load_session(path, chat.session.engine.model.spec))
    chat.restart_transcript()
    dialogue = chat.session.dialogue
    chat.view.replay(dialogue.path())
    chat.view.note(f"loaded {path}: branch {dialogue.current}, turn {dialogue.num_turns()}")


def _state(chat: Chat, argument: str) -> None:
    what, _, name = argument.partition(" ")
    if what == "save":
        path = file_argument(name.strip(), "/state save FILE")
        _save_state(chat, path)
    elif what == "load":
        begin_with_state(chat, file_argument(name.strip(), "/state load FILE"))
    else:
        raise UsageError(f"/state needs save FILE or load FILE, got {argument[:60]!r}")


def _save_state(chat: Chat, path: Path) -> None:
    from rwkvbatch.model.states import save_state

    session = chat.session
    tokens = session.dialogue.history()
    state = session.look().state
    if path.suffix != ".safetensors":
        path = path.with_name(path.name + ".safetensors")
    # The tokens alone do not say what a state has read when it began with another one.
    known = [tokens] if session.root() == 0 else None
    save_state(path, state, session.engine.model.spec, tokens=known, replace=True, private=True)
    chat.view.note(f"saved {path}: the state after {len(tokens)} tokens; rwkvbatch chat --state {path} begins with it")


def begin_with_state(chat: Chat, path: Path) -> None:
    """Start a dialogue that begins with the state in a file; the one so far stays as a branch.

    Raises:
        InputError: it is no state of this model.
    """
    from rwkvbatch.model.states import load_state
    from rwkvbatch.replay.identity import sha256_of_file

    session = chat.session
    state = load_state(path, session.engine.model.spec)
    session.begin(state=state, state_path=str(path.resolve()), state_sha256=sha256_of_file(str(path), "/state load"))
    chat.transcript.keep(session)
    chat.view.note(f"a new dialogue that begins with the state in {path}, on branch {session.dialogue.current}")


def _export(chat: Chat, argument: str) -> None:
    path = file_argument(argument, "/export FILE.jsonl")
    done = export(chat.session, path)
    chat.view.note(f"wrote {path}; the same replies come from\n  {done.command}")
    for caveat in done.caveats:
        chat.view.note(f"but: {caveat}")


def _model(chat: Chat, argument: str) -> None:
    if not argument:
        chat.view.note(chat.session.engine.model.spec.path)
        return
    session = chat.session
    engine = chat.load_engine(str(Path(argument).expanduser()))
    session.use_engine(engine)
    session.use_settings(session.settings.replace(model=argument))
    chat.restart_transcript()
    chat.view.note(f"{engine.model.spec.path}: it reads the dialogue so far when the next message comes")


FILE_COMMANDS = (
    Command("save", "FILE", "Save the session: all branches and the settings.", _save, takes_file=True),
    Command(
        "load",
        "FILE",
        "Go on with a saved session, or with the transcript of one that broke off.",
        _load,
        takes_file=True,
    ),
    Command(
        "state",
        "save|load FILE",
        "Save the model's state as it stands, or begin a new dialogue with a saved one.",
        _state,
        more="Files are .safetensors; load also takes state-tuned .pth files.",
        choices=lambda _chat, before: () if before else ("save", "load"),
        takes_file=True,
    ),
    Command(
        "export",
        "FILE.jsonl",
        "Write this branch as a script that `rwkvbatch run` replays to the same replies.",
        _export,
        takes_file=True,
    ),
    Command(
        "model",
        "PATH",
        "Go on with another model, which reads the dialogue again.",
        _model,
        takes_file=True,
    ),
)
