"""Commands that move in the tree of exchanges, and commands that show statistics, tokens and probabilities."""

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

from rwkvbatch.chat.app import Chat
from rwkvbatch.errors import UsageError
from rwkvbatch.prompt.escaping import printable

NUM_CANDIDATES = 10


def undo(chat: Chat, count: int) -> None:
    undone = chat.session.tree.undo(count)
    chat.transcript.record(chat.session)
    chat.view.note(f"removed {_turns(len(undone))}, from {_short(undone[0].user)!r} on")


def retry(chat: Chat, _argument: None) -> None:
    chat.reply(chat.session.retry)
    _note_greedy(chat)


def again(chat: Chat, count: int) -> None:
    chat.view.begin_reply("")
    try:
        with chat.stoppable() as should_stop:
            made = chat.session.again(count, should_stop=should_stop)
    finally:
        chat.view.end_reply(None)
    chat.transcript.record(chat.session)
    chat.view.alternatives(made)
    chat.view.note("/pick N continues from reply N; until then the conversation is unchanged")
    _note_greedy(chat)


def pick(chat: Chat, number: int) -> None:
    chosen = chat.session.pick(number)
    chat.transcript.record(chat.session)
    chat.view.note(f"continuing from {_short(chosen.reply)!r}")


def edit(chat: Chat, _argument: None) -> None:
    last = chat.session.tree.last
    if last is None:
        raise UsageError(
            "/edit changes the last message, and there is none yet", hint="Ctrl-X Ctrl-E edits the line of input"
        )
    edited = edit_text(last.user)
    if not edited.strip() or edited == last.user:
        chat.view.note("unchanged")
        return
    chat.session.tree.undo()
    chat.transcript.typed(edited)
    chat.ask(edited)


def edit_text(text: str) -> str:
    """`text` after the user has edited it.

    Raises:
        UsageError: the editor cannot be started, or failed.
    """
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
            edited = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UsageError(f"the editor {editor!r} cannot be used: {error}", hint="set $EDITOR") from None
    if status:
        raise UsageError(f"the editor {editor!r} failed with status {status}; the message is unchanged")
    return edited.removesuffix("\n")


def branch(chat: Chat, name: str) -> None:
    if len(name) > 60 or " " in name or not name.isprintable():
        raise UsageError(f"a branch's name must be one word of at most 60 characters, got {name[:80]!r}")
    previous = chat.session.tree.current
    made = chat.session.tree.branch(name or None)
    chat.transcript.record(chat.session)
    chat.view.note(f"on branch {made}; /switch {previous} goes back")


def branches(chat: Chat, _argument: None) -> None:
    tree = chat.session.tree
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, position in tree.branches.items():
        last = tree.exchange(position)
        table.add_row(
            Text("*" if name == tree.current else " ", style="bold cyan"),
            Text(printable(name)),
            _turns(tree.num_turns(position)),
            Text(printable("(empty)" if last is None else _short(last.user))),
        )
    chat.view.show(table)


def switch(chat: Chat, name: str) -> None:
    tree = chat.session.tree
    tree.switch(name)
    chat.transcript.record(chat.session)
    chat.view.note(f"on branch {name}, {_turns(tree.num_turns())}")
    if chat.is_terminal and tree.last is not None:
        chat.view.replay([tree.last])


def system(chat: Chat, text: str) -> None:
    session = chat.session
    opening, previous = session.tree.opening, session.tree.current
    if not text:
        chat.view.show(Text(printable(opening.system or "(no system message)")))
        return
    session.begin(system=None if text == "none" else text, prelude=opening.prelude)
    chat.transcript.record(session)
    chat.view.note(f"a new conversation, on branch {session.tree.current}; /switch {previous} goes back")


def _note_greedy(chat: Chat) -> None:
    if chat.session.settings.sampling.greedy:
        chat.view.note("greedy sampling makes the same reply each time; /set temp 1 and /set top_p 1 do not")


def _turns(count: int) -> str:
    return f"{count} turn" if count == 1 else f"{count} turns"


def _short(text: str, length: int = 50) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def stats(chat: Chat, _argument: None) -> None:
    session, engine = chat.session, chat.session.engine
    exchanges, last = session.tree.exchanges, session.tree.last
    rows: list[tuple[str, str]] = []
    if last is not None:
        rows += [
            ("last reply", f"{len(last.ids)} tokens, {last.tokens_per_s:.1f} tokens/s"),
            ("", f"first token after {last.first_token_s:.3f} s"),
            ("", f"{last.num_read} prompt tokens read, {last.num_cached} cached"),
        ]
        if last.logprobs:
            mean = sum(last.logprobs) / len(last.logprobs)
            rows.append(("", f"{-mean:z.3f} nats per token, perplexity {math.exp(min(-mean, 700)):.2f}"))
    generated = sum(len(exchange.ids) for exchange in exchanges)
    seconds = sum(exchange.total_s for exchange in exchanges)
    replies = f"{len(exchanges)} repl{'y' if len(exchanges) == 1 else 'ies'}"
    size = engine.num_cached_states * engine.model.spec.state_bytes / 2**20
    rows += [
        ("branch", f"{_turns(session.tree.num_turns())}, {len(session.tree.history())} tokens"),
        ("session", f"{replies}, {generated} tokens in {seconds:.1f} s"),
        ("engine", f"{engine.stats.num_prompt_read} prompt tokens read, {engine.stats.num_prompt_cached} cached"),
        ("states", f"{engine.num_cached_states} cached, {size:.1f} MiB"),
    ]
    if chat.transcript.path is not None:
        rows.append(("transcript", printable(str(chat.transcript.path))))
    table = Table(box=None, pad_edge=False, show_header=False)
    for label, text in rows:
        table.add_row(Text(label, style="cyan"), Text(text))
    chat.view.show(table)


def tokens(chat: Chat, count: int) -> None:
    last = chat.session.tree.last
    if last is None or not last.ids:
        raise UsageError("/tokens shows the last reply, and there is none yet")
    logprobs = chat.session.logprobs(last)
    table = _token_table("", "id", "probability", "logprob")
    for index, (token, logprob) in enumerate(zip(last.ids[:count], logprobs, strict=False)):
        table.add_row(str(index), str(token), _percent(logprob), f"{logprob:z.3f}", _token_text(chat, token))
    chat.view.show(table)
    rest = len(last.ids) - count
    if rest > 0:
        chat.view.note(f"and {rest} more; /tokens {len(last.ids)} shows all of them")


def top(chat: Chat, message: str) -> None:
    logprobs = chat.session.next_token(message or None).logits.float().log_softmax(-1)
    values, ids = logprobs.topk(min(NUM_CANDIDATES, len(logprobs)))
    table = _token_table("id", "probability", "sum")
    total = 0.0
    for token, logprob in zip(map(int, ids), map(float, values), strict=True):
        total += math.exp(logprob)
        table.add_row(str(token), _percent(logprob), f"{total:.1%}", _token_text(chat, token))
    chat.view.show(table)


def _token_table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in columns:
        table.add_column(name, justify="right")
    table.add_column("text")
    return table


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
