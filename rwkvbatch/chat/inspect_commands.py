"""Commands that look inside: figures, tokens, what may come next."""

from __future__ import annotations

import math

from rich.table import Table
from rich.text import Text

from rwkvbatch.chat.command import Command, number_argument
from rwkvbatch.chat.context import Chat
from rwkvbatch.chat.dialogue_commands import turns
from rwkvbatch.errors import UsageError
from rwkvbatch.text.safe import printable

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
    size = engine.num_states_kept * engine.model.spec.state_bytes / 2**20
    table.add_row(Text("states", style="cyan"), f"{engine.num_states_kept} kept, {size:.1f} MiB")
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


COMMANDS = (
    Command("stats", "", "Figures of the last reply, the session and the engine.", _stats),
    Command("tokens", "[N]", "The last reply's token ids and log-probabilities.", _tokens),
    Command(
        "top",
        "[MESSAGE]",
        "The likeliest next tokens: as the dialogue stands, or in reply to MESSAGE.",
        _top,
    ),
)
