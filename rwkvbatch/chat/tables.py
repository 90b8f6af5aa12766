"""Slash commands that show a table of settings, branches, statistics, tokens or probabilities."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, cast

from rich.table import Table
from rich.text import Text

from rwkvbatch.chat.app import Chat
from rwkvbatch.config import PRESETS, Sampling
from rwkvbatch.config.names import SHORT_NAMES
from rwkvbatch.errors import UsageError, counted, shortened
from rwkvbatch.prompt.escaping import printable
from rwkvbatch.replay.progress import duration
from rwkvbatch.results.summary import OVERFLOW

NUM_CANDIDATES = 10


def params(chat: Chat, _argument: None = None) -> None:
    session, defaults = chat.session, Sampling()
    table = _table()
    for name, value in session.turn_settings().items():
        is_changed = name in Sampling.model_fields and getattr(defaults, name) != getattr(session.settings, name)
        label = Text(SHORT_NAMES.get(name, name), style="cyan")
        table.add_row(label, Text(printable(plain(value)), style="bold" if is_changed else ""))
    opening, spec = session.tree.opening, session.engine.model.spec
    _add_rows(
        table,
        seed=str(session.identity.seed),
        preset=next((name for name, known in PRESETS.items() if known == session.settings.sampling), "none"),
        system=opening.system or "none",
        prelude=(opening.prelude or "none").strip(),
        state=opening.state or "none",
        template=session.settings.template or "official",
        model=f"{spec.path} ({spec.dtype} on {spec.device}, backend {spec.backend})",
    )
    chat.view.show(table)


def branches(chat: Chat, _argument: None) -> None:
    tree, table = chat.session.tree, _table()
    for name, position in tree.branches.items():
        last = tree.exchange(position)
        table.add_row(
            Text("*" if name == tree.current else " ", style="bold cyan"),
            Text(printable(name)),
            counted(tree.num_turns(position), "turn"),
            Text(printable("(empty)" if last is None else short(last.user))),
        )
    chat.view.show(table)


def stats(chat: Chat, _argument: None) -> None:
    session, engine, table = chat.session, chat.session.engine, _table()
    exchanges, last = session.tree.exchanges, session.tree.last
    if last is not None:
        figures = [
            f"{counted(len(last.ids), 'token')}, {last.tokens_per_s:.1f} tokens/s",
            f"first token after {last.first_token_s:.3f} s",
            f"{last.num_read} prompt tokens read, {last.num_cached} cached",
        ]
        if last.logprobs:
            nll = -sum(last.logprobs) / len(last.logprobs)
            perplexity = OVERFLOW if nll > math.log(sys.float_info.max) else f"{math.exp(nll):.2f}"
            figures.append(f"{nll:z.3f} nats per token, perplexity {perplexity}")
        _add_rows(table, **{"last reply": "\n".join(figures)})
    replies = f"{len(exchanges)} repl{'y' if len(exchanges) == 1 else 'ies'}"
    num_generated, total_s = sum(len(e.ids) for e in exchanges), sum(e.total_s for e in exchanges)
    states_mib = engine.num_cached_states * engine.model.spec.state_bytes / 2**20
    _add_rows(
        table,
        branch=f"{counted(session.tree.num_turns(), 'turn')}, {counted(len(session.tree.history()), 'token')}",
        session=f"{replies}, {counted(num_generated, 'token')} in {duration(total_s)}",
        engine=f"{engine.stats.num_prompt_read} prompt tokens read, {engine.stats.num_prompt_cached} cached",
        states=f"{engine.num_cached_states} cached, {states_mib:.1f} MiB",
    )
    if chat.transcript.path is not None:
        _add_rows(table, transcript=str(chat.transcript.path))
    chat.view.show(table)


def tokens(chat: Chat, count: int) -> None:
    last = chat.session.tree.last
    if last is None or not last.ids:
        raise UsageError("/tokens shows the last reply, and there is none yet")
    logprobs = chat.session.logprobs(last)
    is_scored = len(logprobs) == len(last.ids)
    table = _token_table("", "id", *(("probability", "logprob") if is_scored else ()))
    for index, token in enumerate(last.ids[:count]):
        numbers = (f"{math.exp(logprobs[index]):.2%}", f"{logprobs[index]:z.3f}") if is_scored else ()
        table.add_row(str(index), str(token), *numbers, _token_text(chat, token))
    chat.view.show(table)
    if not is_scored:
        chat.view.note("the server gives no log-probabilities of these tokens")
    num_hidden = len(last.ids) - count
    if num_hidden > 0:
        chat.view.note(f"and {num_hidden} more; /tokens {len(last.ids)} shows all of them")


def top(chat: Chat, message: str) -> None:
    probabilities = chat.session.next_token(message or None).logits.float().softmax(-1)
    values, ids = probabilities.topk(min(NUM_CANDIDATES, len(probabilities)))
    table = _token_table("id", "probability", "sum")
    for token, value, total in zip(map(int, ids), map(float, values), map(float, values.cumsum(0)), strict=True):
        table.add_row(str(token), f"{value:.2%}", f"{total:.1%}", _token_text(chat, token))
    chat.view.show(table)


def _token_table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in columns:
        table.add_column(name, justify="right")
    table.add_column("text")
    return table


def _token_text(chat: Chat, token: int) -> Text:
    data = chat.session.engine.tokenizer.token_bytes(token)
    if not data:
        return Text("(end of text)" if token == 0 else "(no text)", style="dim")
    try:
        return Text(repr(printable(data.decode("utf-8"), keep_newlines=False)).replace("\\\\", "\\"))
    except UnicodeDecodeError:
        return Text(" ".join(f"{byte:02x}" for byte in data), style="dim")


def _table() -> Table:
    return Table(box=None, pad_edge=False, show_header=False)


def _add_rows(table: Table, **texts: str) -> None:
    """Add a row for each of `texts`, with its label."""
    for label, text in texts.items():
        table.add_row(Text(label, style="cyan"), Text(printable(text)))


def plain(value: Any) -> str:
    """The value of a setting as text."""
    if isinstance(value, list | tuple):
        return ",".join(map(repr, cast("Sequence[Any]", value))) or "none"
    return "none" if value is None or value == "" else str(value)


def short(text: str, length: int = 50) -> str:
    """`text` on one line, cut to `length` characters."""
    line = " ".join(text.split())
    return shortened(line, length)
