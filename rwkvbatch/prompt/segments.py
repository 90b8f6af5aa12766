"""The segments of a prompt: cleaning, thinking modes and the base class of templates.

Each segment (opening, turn, reference reply, closing) is encoded on its own and the token ids are concatenated, so
that a history is never encoded again. The texts are those of ChatRWKV's `API_DEMO_CHAT.py` and of the RWKV-7 model
cards.

| `--think`      | the prompt's end                                  |
|----------------|---------------------------------------------------|
| `off`          | `User: x`, blank line, `Assistant:`               |
| `on`           | ... `Assistant: <think`                           |
| `short`        | `User: x think a bit` ... `Assistant: <think`     |
| `long`         | `User: x think a lot` ... `Assistant: <think`     |
| `on-parens`    | `User: x (think)` ... `Assistant: <think`         |
| `short-parens` | `User: x (think a bit)` ... `Assistant: <think`   |
| `long-parens`  | `User: x (think a lot)` ... `Assistant: <think`   |
| `fake`         | ... `Assistant: <think>`, newline, `</think`      |
| `fake-oneline` | ... `Assistant: <think></think`                   |

The forms with parentheses and `fake-oneline` are those of RWKV-LM's `RWKV-v7/RWKV7-G1x-templates.txt` since 2026-04-18;
it cleans System and User messages only.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import copy
from typing import Self

from rwkvbatch.config import ReplyPrompt, ThinkMode
from rwkvbatch.config.prompting import OPEN_THINKING
from rwkvbatch.errors import UsageError

# A line end includes carriage returns before it. Matching only from the start of such a run keeps this linear.
LINE_END = r"(?<!\r)\r*\n"
_LINE_ENDS = re.compile(f"(?:{LINE_END})+")


def clean(text: str) -> str:
    """Content for a prompt: `\\r\\n` becomes `\\n`, empty lines and outer white space are removed."""
    return _LINE_ENDS.sub("\n", text).strip()


def clean_reply(text: str) -> str:
    """A reference reply for a prompt: `\\r\\n` becomes `\\n`, outer white space is removed; empty lines are kept."""
    return re.sub(LINE_END, "\n", text).strip()


THINK_OPENINGS: Mapping[ThinkMode, str] = {
    "off": "",
    "on": " <think",
    "short": " <think",
    "long": " <think",
    "fake": " <think>\n</think",
    "on-parens": " <think",
    "short-parens": " <think",
    "long-parens": " <think",
    "fake-oneline": " <think></think",
}
"""The text after `Assistant:` in each thinking mode."""

THINK_REQUESTS: Mapping[ThinkMode, str] = {
    "short": " think a bit",
    "long": " think a lot",
    "on-parens": " (think)",
    "short-parens": " (think a bit)",
    "long-parens": " (think a lot)",
}
"""What is appended to the user's text to request thinking, by thinking mode."""


def prelude_text(prelude: str | None, closing: str) -> str:
    """A prelude with `\\n` line ends and without outer white space, followed by the closing text once."""
    text = re.sub(LINE_END, "\n", prelude or "").strip()
    return text.removesuffix(closing.strip()).rstrip() + closing if text else ""


BLANK_LINE = "\n\n"

NO_GREETING = (
    "an assistant message has no user message before it, which a template file cannot write: its macro `user` makes "
    "the user's message and the beginning of the reply together"
)
NO_GREETING_HINT = "remove the message, or leave --template out"


class PromptTemplate(ABC):
    """A template of segments. The prompt is their concatenation, with nothing added in between.

    Attributes:
        think: the thinking mode.
        reply_prefix: text that every generated reply begins with.
        closing: the text that closes a turn; fed to the model after a reply that did not end with it.
        stops: texts that end a reply, in addition to token 0. With `turn_end` `next-role` (or `auto`), the `stops`
            passed to the constructor.

    Raises:
        UsageError: a reply prefix together with a thinking mode in which the reply begins with thinking.
    """

    def __init__(self, settings: ReplyPrompt, closing: str, stops: tuple[str, ...]) -> None:
        settings.check_reply_prefix()
        # A blank line would end the reply, so a reference reply must not contain one either.
        self._clean_reply = clean if settings.turn_end == "blank-line" else clean_reply
        self.think: ThinkMode = settings.think
        self.reply_prefix = settings.reply_prefix.replace("\r\n", "\n")
        self.closing = closing
        self.stops = {"blank-line": (BLANK_LINE,), "end-of-text": ()}.get(settings.turn_end, stops)

    @property
    def reply_start(self) -> str:
        """The beginning of a generated reply that the prompt contains: the thinking mode's text and `reply_prefix`.

        A prefix follows a space, as every reply does, unless it begins with white space itself. After the empty
        thinking part of a `fake` mode, the closing tag is completed and a newline added first.
        """
        opening, prefix = THINK_OPENINGS[self.think], self.reply_prefix
        if opening and prefix:
            return f"{opening}>\n{prefix.lstrip()}"
        return opening + (f" {prefix}" if prefix and not prefix[0].isspace() else prefix)

    def opening(self, system: str | None, prelude: str | None, greeting: str | None = None) -> str:
        """The text before the first turn; may be empty.

        Args:
            greeting: an assistant message without a user message before it.

        Raises:
            UsageError: the template cannot write a greeting.
        """
        text = self.system(system or "") + prelude_text(prelude, self.closing)
        return text if greeting is None else text + self.greeting(greeting)

    def system(self, text: str) -> str:
        """A system message; empty if it has no text."""
        cleaned = clean(text)
        return self._system(cleaned) if cleaned else ""

    def continuing(self, prefix: str) -> Self:
        """This template for a reply that `prefix`, the last message of a conversation, begins.

        Raises:
            UsageError: there is a `reply_prefix` too, or the thinking mode begins the reply with thinking.
        """
        if self.reply_prefix:
            raise UsageError(
                "reply_prefix and an assistant message at the end both begin the reply", hint="give one of them"
            )
        if self.think in OPEN_THINKING:
            problem = "an assistant message at the end begins the reply"
            raise UsageError(
                f"{problem}, and with think {self.think} the reply begins with thinking", hint="leave think out"
            )
        continuing = copy(self)
        continuing.reply_prefix = prefix.replace("\r\n", "\n")
        return continuing

    def greeting(self, text: str) -> str:
        """An assistant message without a user message before it.

        Raises:
            UsageError: the template cannot write one.
        """
        raise UsageError(NO_GREETING, hint=NO_GREETING_HINT)

    @abstractmethod
    def _system(self, text: str) -> str: ...

    @abstractmethod
    def turn(self, user: str) -> str:
        """A user message and the beginning of the generated reply."""

    @abstractmethod
    def past_turn(self, user: str) -> str:
        """A user message that a reference reply follows: `turn` without thinking and without `reply_prefix`."""

    @abstractmethod
    def reply(self, text: str) -> str:
        """A reference reply as it follows `past_turn`, with the closing text."""

    def shown_reply(self, text: str) -> str:
        """A generated reply for display: with the part of it that the prompt contains, and stripped."""
        return (self.reply_start + text).strip()

    def given_reply(self, text: str) -> tuple[str, str]:
        """`reply(text)` in two parts: up to the end of `reply_prefix`, which the model need not predict, and the rest.

        The first part is empty if the reply does not begin with the prefix.
        """
        segment, prefix = self.reply(text), self.reply_prefix.strip()
        start = segment.find(prefix) + len(prefix) if prefix and segment.lstrip().startswith(prefix) else 0
        return segment[:start], segment[start:]
