"""Commands that look inside: figures, tokens, what may come next."""

from __future__ import annotations

import math
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.table import Table
from rich.text import Text

from rwkvbatch.chat.command import Chat, Command, number_argument
from rwkvbatch.errors import UsageError
from rwkvbatch.prompt.escaping import printable

MAX_ALTERNATIVES = 64


def _undo(chat: Chat, argument: str) -> None:
    undone = chat.session.dialogue.undo(number_argument(argument, "/undo [N]", 1, 1, 10**9))
    chat.transcript.keep(chat.session)
    chat.view.note(f"took back {turns(len(undone))}, from {_short(undone[0].user)!r} on")


def _retry(chat: Chat, argument: str) -> None:
    _refuse(argument, "/retry")
    chat.reply(lambda on_text, go_on: chat.session.retry(on_text=on_text, go_on=go_on))
    _note_greedy(chat)


def _again(chat: Chat, argument: str) -> None:
    count = number_argument(argument, "/again N", 3, 1, MAX_ALTERNATIVES)
    chat.view.begin_reply("")
    try:
        with chat.stoppable() as go_on:
            made = chat.session.again(count, go_on=go_on)
    finally:
        chat.view.end_reply(None)
    chat.transcript.keep(chat.session)
    chat.view.alternatives(made)
    chat.view.note("/pick N goes on from reply N; the dialogue stands as it was until then")
    _note_greedy(chat)


def _pick(chat: Chat, argument: str) -> None:
    chosen = chat.session.pick(number_argument(argument, "/pick N", None, -(10**9), 10**9))
    chat.transcript.keep(chat.session)
    chat.view.note(f"going on from {_short(chosen.reply)!r}")


def _edit(chat: Chat, argument: str) -> None:
    _refuse(argument, "/edit")
    last = chat.session.dialogue.last
    if last is None:
        raise UsageError(
            "/edit changes the last message, and there is none yet", hint="Ctrl-X Ctrl-E edits what you type"
        )
    edited = edit_text(last.user)
    if not edited.strip() or edited == last.user:
        chat.view.note("unchanged")
        return
    chat.session.dialogue.undo()
    chat.transcript.typed(edited)
    chat.ask(edited)


def edit_text(text: str) -> str:
    """What the user's editor makes of `text`.

    Raises:
        UsageError: the editor cannot be started, or failed.
    """
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not editor and not sys.stdin.isatty():
        raise UsageError("an editor needs a terminal", hint="set $EDITOR to a program that needs none")
    editor = editor or "vi"
    with tempfile.TemporaryDirectory(prefix="rwkvbatch-") as directory:
        path = Path(directory) / "message.md"
        path.touch(0o600)
        path.write_text(text, encoding="utf-8")
        try:
            status = subprocess.run([*shlex.split(editor), str(path)], check=False).returncode
            edited = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UsageError(f"the editor {editor!r} cannot be used: {error}", hint="set $EDITOR") from None
    if status:
        raise UsageError(f"the editor {editor!r} ended with status {status}; nothing was changed")
    return edited.removesuffix("\n")


def _branch(chat: Chat, argument: str) -> None:
    name = argument or None
    if name is not None and (len(name) > 60 or not name.isprintable() or " " in name):
        raise UsageError(f"a branch's name must be one word of at most 60 characters, got {argument[:80]!r}")
    before = chat.session.dialogue.current
    made = chat.session.dialogue.branch(name)
    chat.transcript.keep(chat.session)
    chat.view.note(f"on branch {made}; /switch {before} goes back")


def _branches(chat: Chat, argument: str) -> None:
    _refuse(argument, "/branches")
    dialogue = chat.session.dialogue
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, point in dialogue.branches.items():
        last = dialogue.exchange(point)
        mark = "*" if name == dialogue.current else " "
        said = _short(last.user) if last is not None else "(nothing said yet)"
        table.add_row(
            Text(mark, style="bold cyan"),
            Text(printable(name)),
            turns(dialogue.num_turns(point)),
            Text(printable(said)),
        )
    chat.view.show(table)


def _switch(chat: Chat, argument: str) -> None:
    dialogue = chat.session.dialogue
    dialogue.switch(argument)
    chat.transcript.keep(chat.session)
    chat.view.note(f"on branch {argument}, {turns(dialogue.num_turns())}")
    if chat.is_terminal and dialogue.last is not None:
        chat.view.replay([dialogue.last])


def _system(chat: Chat, argument: str) -> None:
    session = chat.session
    opening = session.dialogue.openings[session.dialogue.head.opening]
    if not argument:
        chat.view.show(Text(printable(opening.system or "(no system message)")))
        return
    before = session.dialogue.current
    session.begin(system=None if argument == "none" else argument, prelude=opening.prelude)
    chat.transcript.keep(session)
    chat.view.note(f"a new dialogue, on branch {session.dialogue.current}; /switch {before} goes back")


def _note_greedy(chat: Chat) -> None:
    if chat.session.settings.sampling.greedy:
        chat.view.note("greedy sampling gives the same reply each time; /set temp 1 and /set top_p 1 do not")


def turns(count: int) -> str:
    """A number of turns, in words."""
    return f"{count} turn" if count == 1 else f"{count} turns"


def _short(text: str, length: int = 50) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def _refuse(argument: str, command: str) -> None:
    if argument:
        raise UsageError(f"{command} takes nothing behind it, got {argument[:60]!r}")


TREE_COMMANDS = (
    Command("undo", "[N]", "Take back the last turn, or the last N.", _undo),
    Command("retry", "", "Another reply to the last message, with another seed.", _retry),
    Command("edit", "", "Change the last message in $EDITOR and send it in place of the old one.", _edit),
    Command(
        "again",
        "N",
        "N more replies to the last message, made together and shown side by side.",
        _again,
        more="/pick N then goes on from one of them. Until then the dialogue stands as it was.",
    ),
    Command(
        "pick",
        "N",
        "Go on from reply N of /again.",
        _pick,
        choices=lambda chat, _: [str(number + 1) for number in range(len(chat.session.alternatives))],
    ),
    Command("branch", "[NAME]", "Go on under another name; the branch so far stays as it is.", _branch),
    Command("branches", "", "List the branches.", _branches),
    Command(
        "switch",
        "NAME",
        "Go to a branch.",
        _switch,
        choices=lambda chat, _: [
            name for name in chat.session.dialogue.branches if name != chat.session.dialogue.current
        ],
    ),
    Command(
        "system",
        "[TEXT|none]",
        "Show the system message, or begin a new dialogue under another one.",
        _system,
        more="The dialogue so far stays as a branch.",
    ),
)


NUM_CANDIDATES = 10
SHOWN_TOKENS = 200


def _stats(chat: Chat, argument: str) -> None:
    if argument:
        raise UsageError(f"/stats takes nothing behind it, got {argument[:60]!r}")
    session, engine = chat.session, chat.session.engine
    exchanges = session.dialogue.exchanges
    generated = sum(len(exchange.ids) for exchange in exchanges)
    seconds = sum(exchange.total_s for exchange in exchanges)
    table = Table(box=None, pad_edge=False, show_header=False)
    last = session.dialogue.last
    if last is not None:
        table.add_row(
            Text("last reply", style="cyan"),
            f"{len(last.ids)} tokens, {last.tokens_per_s:.1f} a second, first after {last.first_token_s:.3f} s",
        )
        table.add_row("", f"{last.num_read} prompt tokens read, {last.num_cached} known already")
        if last.logprobs:
            mean = sum(last.logprobs) / len(last.logprobs)
            table.add_row("", f"{-mean:z.3f} nats a token, perplexity {math.exp(min(-mean, 700)):.2f}")
    table.add_row(
        Text("branch", style="cyan"),
        f"{turns(session.dialogue.num_turns())}, {len(session.dialogue.history())} tokens",
    )
    table.add_row(
        Text("session", style="cyan"),
        f"{len(exchanges)} repl{'y' if len(exchanges) == 1 else 'ies'}, {generated} tokens in {seconds:.1f} s",
    )
    stats = engine.stats
    table.add_row(
        Text("engine", style="cyan"),
        f"{stats.num_prompt_read} prompt tokens read, {stats.num_prompt_cached} not read again",
    )
    size = engine.num_cached_states * engine.model.spec.state_bytes / 2**20
    table.add_row(Text("states", style="cyan"), f"{engine.num_cached_states} kept, {size:.1f} MiB")
    if chat.transcript.path is not None:
        table.add_row(Text("transcript", style="cyan"), Text(printable(str(chat.transcript.path))))
    chat.view.show(table)


def _tokens(chat: Chat, argument: str) -> None:
    count = number_argument(argument, "/tokens [N]", SHOWN_TOKENS, 1, 10**9)
    last = chat.session.dialogue.last
    if last is None or not last.ids:
        raise UsageError("/tokens shows the last reply, and there is none yet")
    logprobs = chat.session.logprobs(last)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "id", "probability", "logprob"):
        table.add_column(name, justify="right")
    table.add_column("text")
    for place, (token, logprob) in enumerate(zip(last.ids[:count], logprobs, strict=False)):
        table.add_row(str(place), str(token), _percent(logprob), f"{logprob:z.3f}", _token_text(chat, token))
    chat.view.show(table)
    rest = len(last.ids) - count
    if rest > 0:
        chat.view.note(f"and {rest} more; /tokens {len(last.ids)} shows them all")


def _top(chat: Chat, argument: str) -> None:
    logits = chat.session.look(argument or None).logits
    logprobs = logits.float().log_softmax(-1)
    values, ids = logprobs.topk(min(NUM_CANDIDATES, len(logprobs)))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("id", "probability", "sum"):
        table.add_column(name, justify="right")
    table.add_column("text")
    total = 0.0
    for token, logprob in zip(map(int, ids), map(float, values), strict=True):
        total += math.exp(logprob)
        table.add_row(str(token), _percent(logprob), f"{total:.1%}", _token_text(chat, token))
    chat.view.show(table)


def _percent(logprob: float) -> str:
    return f"{math.exp(logprob):.2%}"


def _token_text(chat: Chat, token: int) -> Text:
    data = chat.session.engine.tokenizer.token_bytes(token)
    if not data:
        return Text("(end of text)" if token == 0 else "(no text)", style="dim")
    try:
        return Text(repr(printable(data.decode("utf-8"), keep_newlines=False)).replace("\\\\", "\\"))
    except UnicodeDecodeError:
        return Text(" ".join(f"{byte:02x}" for byte in data), style="dim")


INSPECT_COMMANDS = (
    Command("stats", "", "Figures of the last reply, the session and the engine.", _stats),
    Command("tokens", "[N]", "The last reply's token ids and log-probabilities.", _tokens),
    Command(
        "top",
        "[MESSAGE]",
        "The likeliest next tokens: as the dialogue stands, or in reply to MESSAGE.",
        _top,
    ),
)
