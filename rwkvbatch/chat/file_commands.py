"""Commands that read and write files, models among them."""

from __future__ import annotations

from pathlib import Path

from rwkvbatch.chat.command import Command
from rwkvbatch.chat.context import Chat, file_argument
from rwkvbatch.chat.export import export
from rwkvbatch.chat.files import load_session, restore, save_session
from rwkvbatch.errors import UsageError


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
    chat.view.note(
        f"saved {path}: the state after {len(tokens)} tokens; rwkvbatch chat --state {path} begins with it"
    )


def begin_with_state(chat: Chat, path: Path) -> None:
    """Start a dialogue that begins with the state in a file; the one so far stays as a branch.

    Raises:
        InputError: it is no state of this model.
    """
    from rwkvbatch.model.states import load_state
    from rwkvbatch.run.planning.digests import sha256_of_file

    session = chat.session
    state = load_state(path, session.engine.model.spec)
    session.begin(
        state=state, state_path=str(path.resolve()), state_sha256=sha256_of_file(str(path), "/state load")
    )
    chat.transcript.keep(session)
    chat.view.note(
        f"a new dialogue that begins with the state in {path}, on branch {session.dialogue.current}"
    )


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


COMMANDS = (
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
