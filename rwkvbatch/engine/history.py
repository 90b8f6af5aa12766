"""What a reply leaves for the next turn to follow; the engine and a resumed run use the same rule."""

from __future__ import annotations

from collections.abc import Sequence

from rwkvbatch.engine.request import Finish
from rwkvbatch.text.tokenizer import Tokenizer


def closed_history(
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    reply: Sequence[int],
    finish: Finish,
    stopped_by: str | None,
    closing: str,
) -> tuple[int, ...]:
    """The tokens that the next turn's prompt follows.

    Args:
        prompt: all tokens that the reply followed.
        reply: the reply's tokens, without end of text.
        stopped_by: the stop text, when `finish` is `stop`.
        closing: the text that closes a turn.

    Returns:
        `prompt` + `reply` when the reply closed itself; else with `closing` added, and without the tokens of a
        stop text other than `closing` and the line ends before it.
    """
    if finish == "stop" and stopped_by == closing:
        return (*prompt, *reply)
    kept = tuple(reply)
    if finish == "stop" and stopped_by:
        kept = _before_stop(tokenizer, kept, stopped_by)
    return (*prompt, *kept, *tokenizer.encode(closing))


def _before_stop(tokenizer: Tokenizer, reply: tuple[int, ...], stopped_by: str) -> tuple[int, ...]:
    text = tokenizer.decode_bytes(reply)
    text = text[: text.find(stopped_by.encode())].rstrip(b"\n")
    whole, length = 0, 0
    for token in reply:
        size = len(tokenizer.token_bytes(token))
        if length + size > len(text):
            break
        whole, length = whole + 1, length + size
    rest = text[length:].decode("utf-8", errors="ignore")
    return (*reply[:whole], *tokenizer.encode(rest))
