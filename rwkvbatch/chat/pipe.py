"""The front end for pipes and files, which writes a reply for each line of input, as text or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.text import Text

from rwkvbatch.chat.app import end_note, without_truncation
from rwkvbatch.chat.tree import Exchange
from rwkvbatch.errors import RwkvBatchError
from rwkvbatch.prompt.escaping import CONTEXT, printable, printable_json, without_hidden


class PlainView:
    """Writes replies and the output of commands to `out`, messages of the program to `err`.

    Args:
        raw: write model text unchanged, except for DEL, 8-bit and bidirectional controls; `out` must not be a terminal.
        quiet: write only errors to `err`.
    """

    def __init__(self, out: TextIO, err: TextIO, *, raw: bool = False, quiet: bool = False) -> None:
        self.folded = False
        self._out = out
        self._raw = raw
        self._quiet = quiet
        self._num_shown = 0
        self._text = ""
        self._output = Console(file=out, no_color=True, width=100, highlight=False, soft_wrap=True)
        self._messages = Console(file=err, no_color=True, width=100, highlight=False, soft_wrap=True)

    def begin_reply(self, reply_start: str) -> None:
        self._text = reply_start.lstrip()
        self._num_shown = 0

    def piece(self, text: str) -> None:
        self._text += text
        self._write()

    def tick(self) -> None: ...
    def gap(self) -> None: ...

    def end_reply(self, exchange: Exchange | None) -> None:
        if exchange is None:
            # The reply failed; its text so far gets a line end.
            self._out.write("\n" if self._num_shown else "")
            return
        self._write()
        self._out.write("\n")
        self._out.flush()
        if end := end_note(exchange):
            self.note(end)

    def note(self, text: str) -> None:
        if not self._quiet:
            self._messages.print(Text(printable(text)))

    def problem(self, error: RwkvBatchError) -> None:
        self._messages.print(Text(printable(f"rwkvbatch: {error.message}")))
        if error.hint:
            self._messages.print(Text(printable(f"  {error.hint}")))

    def confirm(self, question: str) -> bool:
        return False

    def show(self, content: RenderableType) -> None:
        with self._output.capture() as capture:
            self._output.print(without_truncation(content))
        self._out.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))
        self._out.flush()

    def replay(self, exchanges: Sequence[Exchange]) -> None:
        for exchange in exchanges:
            self.note(f"> {exchange.user}\n{exchange.reply}\n")

    def alternatives(self, exchanges: Sequence[Exchange]) -> None:
        for number, exchange in enumerate(exchanges, start=1):
            self._out.write(f"[{number}] {self._safe(exchange.reply)}\n")
        self._out.flush()

    def _write(self) -> None:
        # Replies are stripped, so trailing white space is written only when more text follows it.
        stripped = self._text.strip()
        self._out.write(self._safe(stripped[self._num_shown :], before=stripped[: self._num_shown]))
        self._num_shown = max(self._num_shown, len(stripped))
        self._out.flush()

    def _safe(self, text: str, before: str = "") -> str:
        return without_hidden(text) if self._raw else printable(text, before=before[-CONTEXT:])


class JsonView(PlainView):
    """Writes one JSON object per reply to `out`, everything else to `err`."""

    def __init__(self, out: TextIO, err: TextIO, *, quiet: bool = False) -> None:
        super().__init__(err, err, quiet=quiet)
        self._replies = out

    def begin_reply(self, reply_start: str) -> None: ...
    def piece(self, text: str) -> None: ...

    def end_reply(self, exchange: Exchange | None) -> None:
        if exchange is not None:
            self.alternatives([exchange])

    def alternatives(self, exchanges: Sequence[Exchange]) -> None:
        for exchange in exchanges:
            self._replies.write(printable_json(json.dumps(as_record(exchange), ensure_ascii=False)) + "\n")
        self._replies.flush()


def as_record(exchange: Exchange) -> dict[str, Any]:
    """A reply as JSON values, with the keys of a run's rows."""
    total = sum(exchange.logprobs)
    num_tokens = len(exchange.ids)
    return {
        "turn": exchange.turn,
        "seed": exchange.seed,
        "prompt": exchange.user,
        "reply": exchange.reply,
        "reply_ids": exchange.ids,
        "finish_reason": exchange.finish_reason,
        "stopped_by": exchange.stopped_by,
        "tokens": {"prompt": exchange.num_read + exchange.num_cached, "reply": num_tokens},
        "logprob": {"mean": total / num_tokens if num_tokens else None, "sum": total},
        "timing": {
            "first_token_s": round(exchange.first_token_s, 6),
            "total_s": round(exchange.total_s, 6),
            "tokens_per_s": round(exchange.tokens_per_s, 3),
            "cached_tokens": exchange.num_cached,
        },
    }
