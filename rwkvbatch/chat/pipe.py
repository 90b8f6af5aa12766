"""What pipes and files get: replies on standard output, as text or as JSON, all else on standard error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.text import Text

from rwkvbatch.chat.terminal import end_note, uncut
from rwkvbatch.chat.tree import Exchange
from rwkvbatch.errors import RwkvBatchError
from rwkvbatch.prompt.escaping import printable, printable_json


class PlainView:
    """Pipes and files: replies alone on `out`, all else on `err`.

    Args:
        raw: model text as it is, control characters included; only where `out` is no terminal.
    """

    def __init__(self, out: TextIO, err: TextIO, *, raw: bool = False, quiet: bool = False) -> None:
        self.folded = False
        self._out = out
        self._raw = raw
        self._begun = ""
        self._quiet = quiet
        self._shown = 0
        self._text = ""
        self._answers = Console(file=out, no_color=True, width=100, highlight=False, soft_wrap=True)
        self._talk = Console(file=err, no_color=True, width=100, highlight=False, soft_wrap=True)

    def begin_reply(self, begun: str) -> None:
        self._text = begun.lstrip()
        self._shown = 0

    def piece(self, text: str) -> None:
        self._text += text
        self._write()

    def tick(self) -> None: ...
    def gap(self) -> None: ...

    def end_reply(self, exchange: Exchange | None) -> None:
        if exchange is None:
            # What has come so far of a reply that failed stands in a line of its own.
            self._out.write("\n" if self._shown else "")
            return
        self._write()
        self._out.write("\n")
        self._out.flush()
        if exchange.finish_reason not in ("stop", "eos"):
            self.note(end_note(exchange))

    def note(self, text: str) -> None:
        if not self._quiet:
            self._talk.print(Text(printable(text)))

    def problem(self, error: RwkvBatchError) -> None:
        self._talk.print(Text(printable(f"rwkvbatch: {error.message}")))
        if error.hint:
            self._talk.print(Text(printable(f"  {error.hint}")))

    def show(self, content: RenderableType) -> None:
        with self._answers.capture() as capture:
            self._answers.print(uncut(content))
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
        # The ends are stripped, so what may be the end is held back.
        text = self._text.lstrip()
        whole = text.rstrip()
        self._out.write(self._safe(whole[self._shown :]))
        self._shown = max(self._shown, len(whole))
        self._out.flush()

    def _safe(self, text: str) -> str:
        return text if self._raw else printable(text)


class JsonView(PlainView):
    """Pipes that are read by programs: one JSON object a reply on `out`, answers to commands with the talk on `err`."""

    def __init__(self, out: TextIO, err: TextIO, *, quiet: bool = False) -> None:
        super().__init__(err, err, quiet=quiet)
        self._objects = out

    def begin_reply(self, begun: str) -> None: ...
    def piece(self, text: str) -> None: ...

    def end_reply(self, exchange: Exchange | None) -> None:
        if exchange is not None:
            self.alternatives([exchange])

    def alternatives(self, exchanges: Sequence[Exchange]) -> None:
        for exchange in exchanges:
            self._objects.write(printable_json(json.dumps(as_record(exchange), ensure_ascii=False)) + "\n")
        self._objects.flush()


def as_record(exchange: Exchange) -> dict[str, Any]:
    """A reply, JSON-ready, under the names that the rows of a run have."""
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
