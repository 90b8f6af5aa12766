"""From the command line's wishes to a running session."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvbatch.chat.command import Chat
from rwkvbatch.chat.session import Identity, Session
from rwkvbatch.chat.storage import Transcript, default_path, describe, state_directory
from rwkvbatch.chat.terminal import TerminalView, View, terminal_console
from rwkvbatch.config import CellSettings, RunSettings, preset
from rwkvbatch.engine.engine import Engine
from rwkvbatch.errors import UsageError
from rwkvbatch.prompt.templates import load_prelude
from rwkvbatch.replay.layers import layer_settings, naming_origins

if TYPE_CHECKING:
    from rwkvbatch.chat.runs import RunPoint

NO_PRELUDE = "none"
DEFAULT_PRELUDE = "api-demo-chat"
STATE_MEMORY = 2**28
MAX_STATES = 64
"""Undoing goes back over so many turns at once; what lies further back is read again."""


@dataclass(frozen=True)
class ChatArguments:
    """What the command line gave.

    Attributes:
        values: settings by their names, only those given.
        transcript: a file; None for one in the user's state directory.
    """

    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    system: str | None = None
    transcript: Path | None = None
    no_transcript: bool = False
    load: Path | None = None
    from_run: str | None = None
    cell: str | None = None
    repeat: int = 0
    config: Path | None = None
    raw: bool = False
    json: bool = False
    quiet: bool = False


def run_chat(arguments: ChatArguments) -> bool:
    """Talk until the end; whether all went well.

    Raises:
        RwkvBatchError: the session cannot begin, or its transcript cannot be written.
    """
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    if arguments.raw and sys.stdout.isatty():
        raise UsageError(
            "--raw is for pipes and files: model text may hold sequences that act upon a terminal",
            hint="leave it out, or send the output somewhere else",
        )
    if arguments.json and (sys.stdin.isatty() or arguments.raw):
        raise UsageError(
            "--json is for messages that come from a pipe or a file, one a line, and needs no --raw",
            hint="for example: printf 'hi\\n' | rwkvbatch chat --json",
        )
    _let_text_pass()
    chat = open_chat(arguments, _view(arguments, is_terminal=is_terminal), is_terminal=is_terminal)
    from rwkvbatch.chat import loop

    try:
        if is_terminal:
            loop.talk(chat, state_directory() / "chat-history")
            return True
        return loop.talk_plainly(chat, sys.stdin, loop.plain_prompt(sys.stderr))
    finally:
        chat.transcript.close()


def open_chat(arguments: ChatArguments, view: View, *, is_terminal: bool) -> Chat:
    """Load what is asked for, and say what it is.

    Raises:
        RwkvBatchError: something of it cannot be used.
    """
    point = None
    if arguments.from_run is not None:
        from rwkvbatch.chat.runs import read_point

        point = read_point(arguments.from_run, arguments.cell, arguments.repeat)
    layered = layer_settings(arguments.values, environment=os.environ, config=arguments.config)
    with naming_origins(layered.origins):
        return _open_chat(arguments, layered.settings, point, view, is_terminal=is_terminal)


def _open_chat(
    arguments: ChatArguments,
    run_settings: RunSettings,
    point: RunPoint | None,
    view: View,
    *,
    is_terminal: bool,
) -> Chat:
    from rwkvbatch.model.load import load_model, resolve_model_path

    bundled = resolve_model_path(run_settings.model).bundled
    settings = chat_settings(run_settings, bundled=bundled, point=point)
    prelude = choose_prelude(settings, bundled=bundled or point is not None)

    def load_engine(path: str | None) -> Engine:
        model = load_model(path, settings.strategy, settings.backend, threads=run_settings.threads)
        memory = run_settings.state_memory or min(STATE_MEMORY, MAX_STATES * model.spec.state_bytes)
        return Engine(model, max_batch=64, state_memory=max(memory, 8 * model.spec.state_bytes))

    engine = load_engine(run_settings.model)
    settings.check_vocabulary(engine.model.spec.vocab_size, "--ban")
    identity = Identity(seed=run_settings.seed)
    if point is not None:
        row = point.rows[-1]
        identity = Identity(row.seed, row.conversation, row.repeat)
    session = Session(engine, settings, identity)
    _begin(session, arguments, settings, prelude, point)
    transcript = Transcript(_transcript_path(arguments))
    chat = Chat(session, view, transcript, load_engine, is_terminal=is_terminal)
    transcript.start(session, describe(session))
    if not arguments.quiet:
        _greet(chat, bundled=bundled)
    if point is not None:
        view.replay(session.dialogue.path())
    if arguments.load is not None:
        from rwkvbatch.chat.session_commands import load_into

        load_into(chat, arguments.load)
    return chat


def chat_settings(settings: RunSettings, *, bundled: bool, point: RunPoint | None = None) -> CellSettings:
    """The settings of a session: what was given, over what fits the model.

    A user's model is sampled as API_DEMO_CHAT does. Its penalties count tokens, and the bundled model's are
    single bytes, so they would keep it from writing the same letter twice: it is greedy and without penalties.
    """
    if bundled:
        fitting = preset("greedy")
    else:
        fitting = preset("api-demo-chat" if settings.state is None else "api-demo-chat-state")
    values = {name: getattr(settings, name) for name in CellSettings.model_fields}
    defaults: dict[str, Any] = dict(fitting)
    if point is not None:
        from rwkvbatch.chat.runs import settings_of

        defaults = settings_of(point)
    given = settings.model_fields_set
    values |= {name: value for name, value in defaults.items() if name not in given}
    return CellSettings.parse(values)


def choose_prelude(settings: CellSettings, *, bundled: bool) -> str | None:
    """The initial exchange's text: on by default, but not where the model or an initial state has no use for it.

    Raises:
        UsageError: its file cannot be read.
    """
    chosen = settings.prelude
    if chosen is None:
        chosen = NO_PRELUDE if bundled or settings.state is not None else DEFAULT_PRELUDE
    if chosen == NO_PRELUDE:
        return None
    return load_prelude(chosen)


def _begin(
    session: Session,
    arguments: ChatArguments,
    settings: CellSettings,
    prelude: str | None,
    point: RunPoint | None,
) -> None:
    system = arguments.system if point is None else point.system
    if settings.state is None:
        session.begin(system=system, prelude=prelude)
    else:
        from rwkvbatch.model.states import load_state
        from rwkvbatch.replay.identity import sha256_of_file

        session.begin(
            system=system,
            prelude=prelude,
            state=load_state(settings.state, session.engine.model.spec),
            state_path=str(Path(settings.state).resolve()),
            state_sha256=sha256_of_file(settings.state, "--state"),
        )
    if point is not None:
        from rwkvbatch.chat.runs import replay

        replay(session, point)


def _greet(chat: Chat, *, bundled: bool) -> None:
    session = chat.session
    spec = session.engine.model.spec
    size = f"{spec.num_parameters / 1e6:.1f} M" if spec.num_parameters < 1e9 else f"{spec.num_parameters / 1e9:.1f} B"
    name = "the bundled demo model" if bundled else Path(spec.path).name
    chat.view.note(f"{name} · RWKV-{spec.generation}, {size} parameters, {spec.backend} {spec.dtype}")
    if bundled:
        chat.view.note("a tiny one: greedy, no penalties, no initial exchange; yours with --model FILE")
    if chat.is_terminal:
        chat.view.note("/help lists the commands · Ctrl-C stops a reply · Ctrl-D leaves")
        chat.view.gap()


def _view(arguments: ChatArguments, *, is_terminal: bool) -> View:
    if is_terminal:
        return TerminalView(terminal_console())
    from rwkvbatch.chat.pipe import JsonView, PlainView

    if arguments.json:
        return JsonView(sys.stdout, sys.stderr, quiet=arguments.quiet)
    return PlainView(sys.stdout, sys.stderr, raw=arguments.raw, quiet=arguments.quiet)


def _transcript_path(arguments: ChatArguments) -> Path | None:
    if arguments.no_transcript:
        return None
    return arguments.transcript or default_path(state_directory() / "chats")


def _let_text_pass() -> None:
    """Read and write UTF-8 whatever the locale; what is no UTF-8 never ends the session."""
    for stream, errors in (
        (sys.stdin, "replace"),
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
    ):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=errors)
