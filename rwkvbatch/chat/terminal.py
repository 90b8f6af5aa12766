"""The front end for terminals: an input line with completion, and replies drawn while they are generated."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application.current import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition, is_searching
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from rwkvbatch.chat.app import Chat, end_note, without_truncation
from rwkvbatch.chat.commands import COMMANDS, handle_line
from rwkvbatch.chat.live import MARKDOWN, THINKING, ChatMarkdown, LiveText, split_thinking, thinking_text
from rwkvbatch.chat.storage import open_private
from rwkvbatch.chat.tree import Exchange
from rwkvbatch.errors import RwkvBatchError, counted
from rwkvbatch.prompt.escaping import CONTEXT, printable

FRAME_S = 1 / 30
STATUS_S = 0.5
"""Longest time between two drawings of the status row while a reply is generated."""

_THINKING_MARK, _ANSWER_MARK = "[thinking]", "[answer]"

MIN_COLUMN_WIDTH = 36
"""Smallest width of an alternative for showing the alternatives side by side."""

STYLE = Style.from_dict(
    {"mark": "bold ansicyan", "bottom-toolbar": "noreverse ansibrightblack", "completion-menu": "noinherit"}
)


class TerminalView:
    """Shows a session on a terminal of any size, with or without colour."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.folded = False
        self._active = self._gap = False
        self._last_frame_s = 0.0

    def begin_reply(self, reply_start: str) -> None:
        self._text = printable(reply_start.lstrip())
        self._thinking: LiveText | None = None
        self._answer: LiveText | None = None
        self._waiting: LiveText | None = None
        self._num_tokens = 0
        self._active = self._dirty = True
        self._begun_s = time.monotonic()
        self._last_frame_s = 0.0

    def piece(self, text: str) -> None:
        self._text += printable(text, before=self._text[-CONTEXT:])
        self._num_tokens = max(self._num_tokens, 1)
        self._dirty = True
        self._draw_frame()

    def tick(self) -> None:
        if self._active:
            self._num_tokens += self._num_tokens > 0
            self._draw_frame()

    def _draw_frame(self) -> None:
        now_s = time.monotonic()
        if now_s - self._last_frame_s >= FRAME_S and (self._dirty or now_s - self._last_frame_s >= STATUS_S):
            self._draw(self._status(now_s))
            # Measured after drawing, so that on a slow connection drawing does not take the time of the reply.
            self._last_frame_s = time.monotonic()
            self._dirty = False

    def end_reply(self, exchange: Exchange | None) -> None:
        self._draw(None)
        self._active = False
        if live := self._answer or self._thinking:
            live.finish()
        if exchange is None:
            return
        if not exchange.reply:
            self.console.print(Text("(an empty reply)", style="dim"))
        if end := end_note(exchange):
            self.console.print(Text(f"[{end}]", style="yellow"))
        self._end_with_gap()

    def gap(self) -> None:
        if not self._gap:
            self._end_with_gap()

    def _end_with_gap(self) -> None:
        self.console.print()
        self._gap = True

    def note(self, text: str) -> None:
        self.show(Text(printable(text), style="dim"))

    def problem(self, error: RwkvBatchError) -> None:
        self.show(Text(printable(error.message), style="red"))
        if error.hint:
            self.note(error.hint)

    def confirm(self, question: str) -> bool:
        self._gap = False
        self.console.print(Text(f"{printable(question, keep_newlines=False)} [y/N] "), end="", soft_wrap=True)
        try:
            return input().strip().lower() in ("y", "yes")
        except EOFError:
            return False

    def show(self, content: RenderableType) -> None:
        self._gap = False
        self.console.print(without_truncation(content))

    @property
    def _is_plain(self) -> bool:
        """Whether the console has no styles, which distinguish the thinking part from the answer."""
        return self.console.no_color or self.console.color_system is None

    def replay(self, exchanges: Sequence[Exchange]) -> None:
        for exchange in exchanges:
            self.console.print(Text.assemble(("› ", "bold cyan"), (printable(exchange.user), "bold")))
            self.console.print(self._reply(exchange))
            self._end_with_gap()

    def alternatives(self, exchanges: Sequence[Exchange]) -> None:
        cells: list[RenderableType] = []
        for number, exchange in enumerate(exchanges, start=1):
            figures = f"  {counted(len(exchange.ids), 'token')} · {exchange.tokens_per_s:.0f}/s · seed {exchange.seed}"
            cells.append(Group(Text.assemble((str(number), "bold cyan"), (figures, "dim")), self._reply(exchange)))
        if self.console.width // max(len(cells), 1) < MIN_COLUMN_WIDTH:
            for cell in cells:
                self.console.print(cell, "")
            return
        grid = Table.grid(expand=True, padding=(0, 2))
        for _ in cells:
            grid.add_column(ratio=1)
        grid.add_row(*cells)
        self.console.print(grid)

    def _reply(self, exchange: Exchange) -> RenderableType:
        thought, answer = split_thinking(exchange.reply)
        rendered_answer = ChatMarkdown(printable(answer.strip()))
        if thought is None:
            return rendered_answer
        marks = (_THINKING_MARK, _ANSWER_MARK) if self._is_plain and not self.folded else ()
        rendered_thought = _folded(thought) if self.folded else thinking_text(thought.strip())
        return Group(*map(Text, marks[:1]), rendered_thought, *map(Text, marks[1:]), rendered_answer)

    def _draw(self, status: Text | None) -> None:
        """Draw the new text of the reply; `status` is None at its end."""
        thought, answer = split_thinking(self._text)
        if thought is not None and self._answer is None:
            if self._thinking is None:
                self._thinking = LiveText(self.console, THINKING)
                if self._is_plain and not self.folded:
                    self._mark(_THINKING_MARK)
            if not self.folded:
                visible = thought.strip("\n") if answer else thought.lstrip("\n")
                self._thinking.push(visible[self._thinking.num_pushed :])
        answer = answer.lstrip()
        if status is None:
            answer = answer.rstrip()
        if answer:
            if self._answer is None:
                if self._thinking is not None:
                    self._end_waiting()
                    self._thinking.draw(_folded(thought) if self.folded and thought and thought.strip() else None)
                    self._thinking.finish(draw=False)
                    if self._is_plain and not self.folded:
                        self._mark(_ANSWER_MARK)
                self._answer = LiveText(self.console, MARKDOWN)
            self._answer.push(answer[self._answer.num_pushed :])
        live = self._answer or self._thinking
        if live is None:
            # There is no text yet, only the status.
            live = self._waiting = self._waiting or LiveText(self.console, THINKING)
        else:
            self._end_waiting()
        live.draw(status)

    def _mark(self, mark: str) -> None:
        self._end_waiting()
        self.console.print(Text(mark))

    def _end_waiting(self) -> None:
        """Clear the row of a status without text."""
        if self._waiting is not None:
            self._waiting.draw()
            self._waiting = None

    def _status(self, now_s: float) -> Text:
        seconds = now_s - self._begun_s
        if not self._num_tokens:
            return Text(f"working · {seconds:.1f} s · Ctrl-C stops", style="dim")
        activity = "thinking" if self._answer is None and self._thinking is not None else "writing"
        speed = f" · {self._num_tokens / seconds:.0f}/s" if seconds > 0.2 else ""
        return Text(f"{activity} · {counted(self._num_tokens, 'token')}{speed} · Ctrl-C stops", style="dim")


def terminal_console() -> Console:
    """The console of standard output, which obeys `NO_COLOR`."""
    return Console(file=sys.stdout, highlight=False, emoji=False, markup=False)


def _folded(thought: str) -> Text:
    return Text(f"▸ {len(thought.split())} words of thinking · /fold off", style="dim italic")


class CommandCompleter(Completer):
    """Completes commands, their arguments, and file names."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        line = document.text_before_cursor
        if not line.startswith("/") or "\n" in line:
            return
        name, space, argument = line[1:].partition(" ")
        if not space:
            for command in COMMANDS.values():
                if command.name.startswith(name):
                    yield Completion(f"/{command.name}", -len(line), display=command.usage, display_meta=command.help)
            return
        if name not in COMMANDS:
            return
        expected = COMMANDS[name].argument
        before, _, word = argument.rpartition(" ")
        choices = list(expected.choices(self._chat, before))
        yield from (Completion(choice, -len(word)) for choice in choices if choice.startswith(word))
        if expected.is_file and not choices:
            yield from self._paths.get_completions(Document(word, len(word)), complete_event)


def line_input(chat: Chat, history_path: Path) -> PromptSession[str]:
    """The input line, with a status row below it and a history that is stored in a file."""

    return PromptSession(
        FormattedText([("class:mark", "› ")]),
        history=_history(history_path),
        completer=CommandCompleter(chat),
        complete_while_typing=Condition(lambda: get_app().current_buffer.text.startswith("/")),
        key_bindings=_keys(),
        multiline=True,
        prompt_continuation="  ",
        bottom_toolbar=lambda: [("", status_line(chat, get_app().output.get_size().columns))],
        enable_open_in_editor=True,
        enable_suspend=True,
        tempfile_suffix=".md",
        style=STYLE,
        reserve_space_for_menu=6,
    )


def _history(path: Path) -> History:
    try:
        os.close(open_private(path))
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter", filter=~is_searching)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state is not None and buffer.complete_state.current_completion is not None:
            buffer.complete_state = None
        buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def status_line(chat: Chat, columns: int) -> str:
    """The status row below the input line; on a narrow terminal, the last parts are omitted."""
    session, settings, last = chat.session, chat.session.settings, chat.session.tree.last
    parts = [session.tree.current, f"turn {session.tree.num_turns() + 1}"]
    if last is not None:
        speed = [f"{last.tokens_per_s:.0f}/s"] if last.tokens_per_s else []
        parts += [counted(len(last.ids), "token"), *speed, f"first {last.first_token_s * 1000:.0f} ms"]
    parts.append("greedy" if settings.sampling.greedy else f"temp {settings.temperature:g} top_p {settings.top_p:g}")
    if settings.think != "off":
        parts.append(f"think {settings.think}")
    parts += [f"seed {session.identity.seed}", Path(session.engine.model.spec.path).stem]
    lines_that_fit = [line for line in accumulate(parts, "{} · {}".format) if len(line) < columns]
    return printable(lines_that_fit[-1] if lines_that_fit else "", keep_newlines=False)


def run_terminal(chat: Chat, history_path: Path) -> None:
    """Read and execute lines until Ctrl-D or `/quit`."""
    session = line_input(chat, history_path)
    while not chat.left:
        try:
            line = session.prompt()
        except KeyboardInterrupt:
            chat.view.note("Ctrl-D leaves")
            continue
        except EOFError:
            break
        try:
            handle_line(chat, line)
        except KeyboardInterrupt:
            chat.view.note("stopped")
        chat.view.gap()
