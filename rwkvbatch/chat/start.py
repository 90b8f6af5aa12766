"""Builds a chat session from command line arguments and runs it."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rwkvbatch.chat.actions import note_probable_mistakes, show_loaded
from rwkvbatch.chat.app import Chat, View
from rwkvbatch.chat.commands import run_lines
from rwkvbatch.chat.pipe import JsonView, PlainView
from rwkvbatch.chat.runs import RunPoint, read_point, refuse_other_files, replay, settings_of
from rwkvbatch.chat.session import TURN_SETTINGS, Identity, Session
from rwkvbatch.chat.storage import Transcript, default_path, load_session, state_directory
from rwkvbatch.config import NO_ADAPTER, CellSettings, preset
from rwkvbatch.config.names import option_name
from rwkvbatch.config.sources import ResolvedSettings, naming_origins, resolve_settings
from rwkvbatch.endpoint.client import Client, ClientOptions, check_url
from rwkvbatch.endpoint.engine import EndpointEngine
from rwkvbatch.endpoint.served import (
    CLIENT_SETTINGS,
    ENDPOINT_SETTINGS,
    Endpoint,
    ServedSpec,
    check_settings,
    refuse_without,
    served_spec,
)
from rwkvbatch.engine.engine import Engine
from rwkvbatch.errors import UsageError
from rwkvbatch.files import user_path
from rwkvbatch.model.load import load_model
from rwkvbatch.model.model_files import resolve_model_path
from rwkvbatch.prompt.templates import NO_PRELUDE, load_prelude
from rwkvbatch.prompt.vocabulary import tokenizer_of

DEFAULT_PRELUDE = "api-demo-chat"
STATE_MEMORY = 2**28
MAX_AT_ONCE = 8
"""Largest number of concurrent requests to an endpoint, which `/again N` makes."""
MAX_STATES = 64
"""Number of turns that `/undo` can take back without computing the conversation again."""


@dataclass(frozen=True)
class ChatArguments:
    """The arguments of the command line.

    Attributes:
        values: by name, the settings that were given.
        transcript: file of the transcript; None for one in the user's state directory.
        resolved: `values` merged with the environment and the settings file; None to merge them with the environment.
    """

    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    transcript: Path | None = None
    no_transcript: bool = False
    load: Path | None = None
    from_run: str | None = None
    cell: str | None = None
    repeat: int = 0
    resolved: ResolvedSettings | None = None
    raw: bool = False
    json: bool = False
    quiet: bool = False


def run_chat(arguments: ChatArguments) -> bool:
    """Run a session until its end. Returns whether every line succeeded.

    Raises:
        RwkvBatchError: the session cannot start, or its transcript cannot be written.
    """
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    if arguments.raw and sys.stdout.isatty():
        raise UsageError(
            "--raw writes control characters of model text as they are, and standard output is a terminal",
            hint="leave it out, or redirect the output",
        )
    if arguments.json and (sys.stdin.isatty() or arguments.raw):
        raise UsageError(
            "--json reads messages from a pipe or a file, one a line, and excludes --raw",
            hint="for example: printf 'hi\\n' | rwkvbatch chat --json",
        )
    _use_utf8()
    if is_terminal:
        # Imported here because prompt_toolkit loads slowly and pipes do not need it.
        from rwkvbatch.chat.terminal import TerminalView, run_terminal, terminal_console

        chat = open_chat(arguments, TerminalView(terminal_console()), is_terminal=True)
        with contextlib.closing(chat.transcript):
            run_terminal(chat, state_directory() / "chat-history")
            return True
    view = (
        JsonView(sys.stdout, sys.stderr, quiet=arguments.quiet)
        if arguments.json
        else PlainView(sys.stdout, sys.stderr, raw=arguments.raw, quiet=arguments.quiet)
    )
    chat = open_chat(arguments, view, is_terminal=False)
    with contextlib.closing(chat.transcript):
        return run_lines(chat, sys.stdin, sys.stderr if sys.stdin.isatty() else None)


def open_chat(arguments: ChatArguments, view: View, *, is_terminal: bool) -> Chat:
    """Load the model, start the session, and show both."""
    if arguments.from_run is not None and arguments.load is not None:
        raise UsageError("--from and --load both say what the chat continues", hint="leave one of the two out")
    if arguments.no_transcript and arguments.transcript is not None:
        raise UsageError("--transcript and --no-transcript are both given", hint="leave one of the two out")
    point = None
    if arguments.from_run is not None:
        point = read_point(arguments.from_run, arguments.cell, arguments.repeat)
    elif arguments.cell is not None or arguments.repeat:
        option = "--repeat" if arguments.cell is None else "--cell"
        raise UsageError(f"{option} belongs to --from, which is not given")
    resolved = arguments.resolved or resolve_settings(arguments.values, environment=os.environ)
    with naming_origins(resolved.origins):
        if resolved.settings.endpoint is None:
            started = _start_local(arguments, resolved, point)
        else:
            started = _start_served(arguments, resolved)
        session, given, unfinished = started.session, started.session.settings, None
        if arguments.load is not None:  # before the transcript, which may be the same file
            unfinished = load_session(session, arguments.load)
            _use_given(session, given, resolved, arguments.load)
        path = arguments.transcript or default_path(state_directory() / "chats")
        transcript = Transcript(None if arguments.no_transcript else path)
        chat = Chat(session, view, transcript, started.load_engine, is_terminal=is_terminal)
        transcript.start(session)
        if not arguments.quiet:
            _show_model(chat, bundled=started.is_bundled)
            if point is None:
                note_probable_mistakes(chat, given.system, "--system")
        if point is not None:
            view.replay(session.tree.path())
        if arguments.load is not None:
            show_loaded(chat, arguments.load, unfinished)
        return chat


@dataclass(frozen=True)
class _Started:
    """A session with its opening.

    Attributes:
        load_engine: makes an engine with another model, for `/model`.
        is_bundled: whether the model is the bundled one.
    """

    session: Session
    load_engine: Callable[[str | None], Engine]
    is_bundled: bool = False


def _start_local(arguments: ChatArguments, resolved: ResolvedSettings, point: RunPoint | None) -> _Started:
    """A session with a model in this process, after the turns of `point`."""
    run_settings = resolved.settings
    check_settings(run_settings, resolved.named)
    refuse_without(("endpoint",), CLIENT_SETTINGS, run_settings, resolved.named)
    bundled = resolve_model_path(run_settings.model).bundled
    settings = chat_settings(resolved, bundled=bundled, point=point)
    if point is not None:
        refuse_other_files(point, settings)
    prelude = choose_prelude(settings, bundled=bundled or point is not None)

    run_vocab = None if point is None or "vocab" in resolved.named else point.vocab
    vocab = run_vocab or run_settings.vocab

    def load_engine(path: str | None) -> Engine:
        # The adapter belongs to the first model; /model loads another one without it.
        adapter = settings.adapter if path == run_settings.model else NO_ADAPTER
        model = load_model(path, settings.strategy, settings.backend, threads=run_settings.threads, adapter=adapter)
        memory = run_settings.state_memory or min(STATE_MEMORY, MAX_STATES * model.spec.state_bytes)
        tokenizer = tokenizer_of(model.spec, vocab)
        return Engine(model, tokenizer=tokenizer, max_batch=64, state_memory=max(memory, 8 * model.spec.state_bytes))

    engine = load_engine(run_settings.model)
    settings.check_vocabulary(engine.model.spec.vocab_size, "--ban")
    identity = Identity(run_settings.seed) if point is None else point.identity
    if "seed" in resolved.named:
        identity = replace(identity, seed=run_settings.seed)
    session = Session(engine, settings, identity, vocab=vocab)
    system = settings.system if point is None else point.system
    if point is not None and "system" in resolved.named and (settings.system or None) != system:
        message = f"--from: {point.directory} began with another system message than --system gives"
        raise UsageError(message, hint="leave --system out: the run's is taken")
    session.begin(system=system, prelude=prelude, state_file=settings.state)
    if point is not None:
        replay(session, point)
    return _Started(session, load_engine, bundled)


def _use_given(session: Session, settings: CellSettings, resolved: ResolvedSettings, path: Path) -> None:
    """Apply the command line's settings of replies to the session that was loaded from `path`.

    Raises:
        UsageError: an option would change how the session began.
    """
    opening = session.tree.opening
    began_with = {
        "system": (opening.system or None, settings.system or None),
        "prelude": (opening.prelude, choose_prelude(settings, bundled=True)),
        "state": (opening.state, settings.state and str(user_path(settings.state).resolve())),
        "template": (session.settings.template, settings.template),
        "bos": (session.settings.bos, settings.bos),
    }
    for name in resolved.named & began_with.keys():
        expected, value = began_with[name]
        if value != expected:
            problem = f"--load: the session in {path} began with another value than --{name} gives"
            raise UsageError(problem, hint=f"leave --{name} out: the session's is taken")
    names = resolved.explicit & set(TURN_SETTINGS)
    session.use_settings(session.settings.replace(**{name: getattr(settings, name) for name in names}))
    if "seed" in resolved.named:
        session.identity = replace(session.identity, seed=resolved.settings.seed)


def _start_served(arguments: ChatArguments, resolved: ResolvedSettings) -> _Started:
    """A session with a served model. Commands that need the states of an engine are not available.

    Raises:
        UsageError: an option needs a model in this process, see `check_settings`.
    """
    run_settings = resolved.settings
    check_settings(run_settings, resolved.named)
    if arguments.from_run is not None or arguments.load is not None:
        raise UsageError(
            "--from and --load continue a dialogue of a model in this process, and --endpoint is given",
            hint="leave one of the two out",
        )
    settings = CellSettings.parse({name: getattr(run_settings, name) for name in CellSettings.model_fields})
    endpoint = Endpoint.of(settings)
    assert endpoint is not None
    options = ClientOptions(MAX_AT_ONCE, run_settings.endpoint_timeout, run_settings.endpoint_retries)
    client = Client(check_url(endpoint.url), options)
    spec = served_spec(endpoint, client)
    engine = EndpointEngine(client, spec, tokenizer_of(spec, run_settings.vocab), extra=endpoint.extra)

    def refuse_model(path: str | None) -> Engine:
        raise UsageError(f"/model {path}: the model of this session is served", hint="leave, and use --model FILE")

    session = Session(engine, settings, Identity(run_settings.seed), vocab=run_settings.vocab)
    session.begin(system=settings.system, prelude=load_prelude(settings.prelude))
    return _Started(session, refuse_model)


def chat_settings(resolved: ResolvedSettings, *, bundled: bool, point: RunPoint | None = None) -> CellSettings:
    """The settings of a session with a model in this process: the given ones, or else the defaults for the model.

    After a run, those of the command line, or else those of the run.

    The bundled model is greedy and without penalties. Its tokens are single bytes, so that penalties, which count
    tokens, would suppress letters. Other models are sampled as in API_DEMO_CHAT.
    """
    settings = resolved.settings
    given: Set[str] = settings.model_fields_set
    if point is not None:
        defaults, given = settings_of(point), resolved.explicit
    elif bundled:
        defaults = dict(preset("greedy"))
    else:
        defaults = dict(preset("api-demo-chat" if settings.state is None else "api-demo-chat-state"))
    values = {name: getattr(settings, name) for name in CellSettings.model_fields}
    values |= {name: value for name, value in defaults.items() if name not in given}
    values |= {name: CellSettings.model_fields[name].default for name in ENDPOINT_SETTINGS}
    return CellSettings.parse(values)


def choose_prelude(settings: CellSettings, *, bundled: bool) -> str | None:
    """The text of the initial exchange; by default none for the bundled model or with an initial state."""
    default = NO_PRELUDE if bundled or settings.state is not None else DEFAULT_PRELUDE
    return load_prelude(default if settings.prelude is None else settings.prelude)


def _show_model(chat: Chat, *, bundled: bool) -> None:
    spec = chat.session.engine.model.spec
    if isinstance(spec, ServedSpec):
        chat.view.note(f"{spec.in_words}, {spec.api}")
        _show_keys(chat)
        return
    unit, scale = ("M", 1e6) if spec.num_parameters < 1e9 else ("B", 1e9)
    size = f"{spec.num_parameters / scale:.1f} {unit}"
    name = "the bundled demo model" if bundled else Path(spec.path).name
    chat.view.note(f"{name} · RWKV-{spec.generation}, {size} parameters, {spec.backend} {spec.dtype}")
    if bundled:
        sampling, opening = chat.session.settings.sampling, chat.session.tree.opening
        has_penalty = sampling.presence_penalty or sampling.frequency_penalty
        is_default = sampling.greedy and not has_penalty and not opening.prelude
        sampling_text = "greedy, without penalties and initial exchange; " if is_default else ""
        chat.view.note(f"{sampling_text}use another model with --model FILE")
    elif differing := _unlike_run(chat.session):
        chat.view.note(f"unlike `run`: {differing}; --preset default --prelude none takes run's defaults")
    _show_keys(chat)


def _unlike_run(session: Session) -> str:
    """The sampling settings that are not the defaults of `run`, as options, and the initial exchange; may be empty."""
    values: dict[str, Any] = dict(session.settings.sampling)
    options: list[str] = []
    for name, default in preset("default"):
        if (value := values[name]) != default:
            text = ",".join(map(str, value)) if isinstance(default, tuple) else str(value)
            options.append(f"{option_name(name)} {text}")
    exchange = ["an initial exchange before the first message"] if session.tree.opening.prelude else []
    return ", ".join(options + exchange)


def _show_keys(chat: Chat) -> None:
    if chat.is_terminal:
        chat.view.note("/help lists the commands · Ctrl-C stops a reply · Ctrl-D leaves")
        chat.view.gap()


def _use_utf8() -> None:
    """Make the standard streams use UTF-8 in any locale, skip a byte order mark, and escape unencodable output.

    Bytes of the input that are not UTF-8 become surrogates, which `run_lines` refuses with the line's number. Strict
    decoding would fail for all lines of a block.
    """
    for stream, encoding, errors in (
        (sys.stdin, "utf-8-sig", "surrogateescape"),
        (sys.stdout, "utf-8", "backslashreplace"),
        (sys.stderr, "utf-8", "backslashreplace"),
    ):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=encoding, errors=errors)
