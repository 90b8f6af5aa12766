"""What people see: replies as they come, notes, tables. The kind for terminals; those for pipes are in `plain_view`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Protocol

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rwkvbatch.chat.live import (
    ChatMarkdown,
    LiveText,
    MarkdownSource,
    ThinkingSource,
    split_thinking,
    thinking_text,
)
from rwkvbatch.chat.tree import Exchange
from rwkvbatch.errors import RwkvBatchError
from rwkvbatch.prompt.escaping import printable

FRAME_S = 1 / 30
MIN_COLUMN_WIDTH = 36
"""Alternatives are shown side by side where each has so many columns."""

_ENDS = {
    "length": "stopped at {tokens} tokens · /set max_tokens N allows more",
    "time": "stopped by the time limit",
    "cancelled": "stopped",
    "eos": "",
    "stop": "",
}


class View(Protocol):
    """Where a session's words go."""

    folded: bool
    """Whether thinking parts are hidden."""

    def begin_reply(self, begun: str) -> None:
        """A reply is about to come; `begun` is the part of it that the prompt gave."""
        ...

    def piece(self, text: str) -> None: ...
    def tick(self) -> None:
        """The model has made a step."""
        ...

    def end_reply(self, exchange: Exchange | None) -> None:
        """The reply is complete, or (None) will never be."""
        ...

    def gap(self) -> None:
        """An empty row where people look for one, unless there is one."""
        ...

    def note(self, text: str) -> None: ...
    def problem(self, error: RwkvBatchError) -> None: ...
    def show(self, content: RenderableType) -> None:
        """The answer to a command."""
        ...

    def replay(self, exchanges: Sequence[Exchange]) -> None:
        """What was said before, again."""
        ...

    def alternatives(self, exchanges: Sequence[Exchange]) -> None: ...


class TerminalView:
    """A terminal of any size, with or without colour."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.folded = False
        self._text = ""
        self._thinking: LiveText | None = None
        self._answer: LiveText | None = None
        self._waiting: LiveText | None = None
        self._num_shown = [0, 0]
        self._num_tokens = 0
        self._active = self._gap = False
        self._begun_s = self._last_frame_s = 0.0
        self._dirty = False

    def begin_reply(self, begun: str) -> None:
        self._text = begun.lstrip()
        self._thinking = self._answer = self._waiting = None
        self._num_shown = [0, 0]
        self._num_tokens = 0
        self._active = True
        self._begun_s = time.monotonic()
        self._last_frame_s = 0.0
        self._dirty = True

    def piece(self, text: str) -> None:
        self._text += printable(text)
        self._num_tokens = max(self._num_tokens, 1)
        self._dirty = True
        self._draw_frame()

    def tick(self) -> None:
        if self._active:
            self._num_tokens += self._num_tokens > 0
            self._draw_frame()

    def _draw_frame(self) -> None:
        now_s = time.monotonic()
        if now_s - self._last_frame_s >= FRAME_S and (self._dirty or now_s - self._last_frame_s >= 0.5):
            self._draw(self._status(now_s))
            # Taken after drawing: on a slow line the reply, not the drawing, gets the time.
            self._last_frame_s = time.monotonic()
            self._dirty = False

    def end_reply(self, exchange: Exchange | None) -> None:
        self._draw(None)
        self._active = False
        if self._answer is not None:
            self._answer.finish()
        elif self._thinking is not None:
            self._thinking.finish()
        if exchange is None:
            return
        if not exchange.reply:
            self.console.print(Text("(an empty reply)", style="dim"))
        end = end_note(exchange)
        if end:
            self.console.print(Text(f"[{end}]", style="yellow"))
        self._end_with_gap()

    def gap(self) -> None:
        if not self._gap:
            self._end_with_gap()

    def _end_with_gap(self) -> None:
        self.console.print()
        self._gap = True

    def note(self, text: str) -> None:
        self._gap = False
        self.console.print(Text(printable(text), style="dim"))

    def problem(self, error: RwkvBatchError) -> None:
        self._gap = False
        self.console.print(Text(printable(error.message), style="red"))
        if error.hint:
            self.console.print(Text(printable(error.hint), style="dim"))

    def show(self, content: RenderableType) -> None:
        self._gap = False
        self.console.print(uncut(content))

    def replay(self, exchanges: Sequence[Exchange]) -> None:
        for exchange in exchanges:
            self.console.print(Text.assemble(("› ", "bold cyan"), (printable(exchange.user), "bold")))
            self.console.print(self._reply(exchange))
            self._end_with_gap()

    def alternatives(self, exchanges: Sequence[Exchange]) -> None:
        width = self.console.width
        side_by_side = width // max(len(exchanges), 1) >= MIN_COLUMN_WIDTH
        grid = Table.grid(expand=True, padding=(0, 2))
        cells: list[RenderableType] = []
        for number, exchange in enumerate(exchanges, start=1):
            title = Text.assemble((f"{number}", "bold cyan"), (f"  {_figures(exchange)}", "dim"))
            cell = Table.grid(expand=True)
            cell.add_row(title)
            cell.add_row(self._reply(exchange))
            cells.append(cell)
        for _ in range(len(cells) if side_by_side else 1):
            grid.add_column(ratio=1)
        if side_by_side:
            grid.add_row(*cells)
        else:
            for cell in cells:
                grid.add_row(cell)
                grid.add_row("")
        self.console.print(grid)

    def _reply(self, exchange: Exchange) -> RenderableType:
        thought, answer = split_thinking(exchange.reply)
        body = Table.grid()
        if thought is not None and not self.folded:
            body.add_row(thinking_text(thought.strip()))
        elif thought is not None:
            body.add_row(_folded(thought))
        body.add_row(ChatMarkdown(printable(answer.strip())))
        return Padding(body, 0)

    def _draw(self, status: Text | None) -> None:
        thought, answer = split_thinking(self._text)
        if thought is not None and self._answer is None:
            if self._thinking is None:
                self._thinking = LiveText(self.console, ThinkingSource())
            if not self.folded:
                self._push(self._thinking, 0, thought.strip("\n") if answer else thought.lstrip("\n"))
        answer = answer.lstrip()
        if status is None:
            answer = answer.rstrip()
        if answer:
            if self._answer is None:
                self._close_thinking(thought)
                self._answer = LiveText(self.console, MarkdownSource())
            self._push(self._answer, 1, answer)
        live = self._answer or self._thinking
        if live is None:
            # Only the status is there to be seen.
            live = self._waiting = self._waiting or LiveText(self.console, ThinkingSource())
        elif self._waiting is not None:
            self._waiting.draw()
            self._waiting = None
        live.draw(status)

    def _push(self, live: LiveText, which: int, text: str) -> None:
        live.push(text[self._num_shown[which] :])
        self._num_shown[which] = max(len(text), self._num_shown[which])

    def _close_thinking(self, thought: str | None) -> None:
        if self._thinking is None:
            return
        if self.folded and thought and thought.strip():
            self._thinking.draw(_folded(thought))
        else:
            self._thinking.draw()
        self._thinking.finish_as_drawn()

    def _status(self, now_s: float) -> Text:
        seconds = now_s - self._begun_s
        if not self._num_tokens:
            return Text(f"working · {seconds:.1f} s · Ctrl-C stops", style="dim")
        doing = "thinking" if self._answer is None and self._thinking is not None else "writing"
        speed = f" · {self._num_tokens / seconds:.0f}/s" if seconds > 0.2 else ""
        return Text(f"{doing} · {self._num_tokens} tokens{speed} · Ctrl-C stops", style="dim")


def terminal_console() -> Console:
    """The console of standard output; `NO_COLOR` is obeyed."""
    return Console(file=sys.stdout, highlight=False, emoji=False, markup=False)


def uncut(content: RenderableType) -> RenderableType:
    """The same; what is too wide for its column of a table is folded, not cut off."""
    for column in content.columns if isinstance(content, Table) else ():
        column.overflow = "fold"
    return content


def end_note(exchange: Exchange) -> str:
    """How the reply ended, when it is worth saying."""
    return _ENDS.get(exchange.finish_reason, exchange.finish_reason).format(tokens=len(exchange.ids))


def _figures(exchange: Exchange) -> str:
    return f"{len(exchange.ids)} tokens · {exchange.tokens_per_s:.0f}/s · seed {exchange.seed}"


def _folded(thought: str) -> Text:
    return Text(f"▸ {len(thought.split())} words of thinking · /fold off", style="dim italic")
