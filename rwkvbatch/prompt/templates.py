"""Prompt templates: cleaning, RWKV's official template, thinking modes, preludes.

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
from pathlib import Path
from typing import TypeVar

from rwkvbatch.config import Prompting, ReplyPrompt, ThinkMode
from rwkvbatch.errors import UsageError
from rwkvbatch.files import read_text

AnyReplyPrompt = TypeVar("AnyReplyPrompt", bound=ReplyPrompt)

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

BUNDLED_SHA256 = "390e982f9c02ee1a2bf1b8dec070c2490e44c74f8d325faa1232e657609e6f1a"
"""The hash of the bundled model's file. The model was trained to end a reply without thinking with a blank line."""


def with_turn_end(settings: AnyReplyPrompt, weights_sha256: str) -> AnyReplyPrompt:
    """`settings` with `turn_end` `auto` replaced: by `blank-line` if the model was trained so, else by `next-role`."""
    if settings.turn_end != "auto":
        return settings
    is_blank_line = weights_sha256 == BUNDLED_SHA256 and settings.think == "off"
    return settings.replace(turn_end="blank-line" if is_blank_line else "next-role")


PRELUDES: Mapping[str, str] = {
    "api-demo-chat": (
        "User: hi\n\n"
        "Assistant: Hi. I am your assistant and I will provide expert full response in full details. "
        "Please feel free to ask any question and I will always answer it.\n\n"
    )
}
"""The initial exchanges that `--prelude` accepts by name."""

MAX_PRELUDE_BYTES = 1_000_000


def load_prelude(name_or_path: str) -> str:
    """The text of a prelude: one of `PRELUDES`, or the content of a file.

    Raises:
        UsageError: the file cannot be read as UTF-8 text, or is larger than `MAX_PRELUDE_BYTES`.
    """
    if name_or_path in PRELUDES:
        return PRELUDES[name_or_path]
    try:
        return read_text(name_or_path, MAX_PRELUDE_BYTES)
    except ValueError as error:
        hint = f"name a text file, or one of {', '.join(PRELUDES)}"
        raise UsageError(f"--prelude {name_or_path}: {error}", hint=hint) from None


def prelude_text(prelude: str | None, closing: str) -> str:
    """A prelude with `\\n` line ends and without outer white space, followed by the closing text once."""
    text = re.sub(LINE_END, "\n", prelude or "").strip()
    return text.removesuffix(closing.strip()).rstrip() + closing if text else ""


BLANK_LINE = "\n\n"


class PromptTemplate(ABC):
    """A template of segments. The prompt is their concatenation, with nothing added in between.

    Attributes:
        think: the thinking mode.
        reply_prefix: text that every generated reply begins with.
        closing: the text that closes a turn; fed to the model after a reply that did not end with it.
        stops: texts that end a reply, besides token 0. With `turn_end` `next-role` (or `auto`), the `stops` passed to
            the constructor.

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
    def begun(self) -> str:
        """The beginning of a generated reply that the prompt contains: the thinking mode's text and `reply_prefix`.

        A prefix follows a space, as every reply does, unless it begins with white space itself. After the empty
        thinking part of a `fake` mode, the closing tag is completed and a newline added first.
        """
        opening, prefix = THINK_OPENINGS[self.think], self.reply_prefix
        if opening and prefix:
            return f"{opening}>\n{prefix.lstrip()}"
        return opening + (f" {prefix}" if prefix and not prefix[0].isspace() else prefix)

    def opening(self, system: str | None, prelude: str | None) -> str:
        """The text before the first turn; may be empty."""
        cleaned = clean(system or "")
        return (self._system(cleaned) if cleaned else "") + prelude_text(prelude, self.closing)

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
        return (self.begun + text).strip()

    def given_reply(self, text: str) -> tuple[str, str]:
        """`reply(text)` in two parts: up to the end of `reply_prefix`, which the model need not predict, and the rest.

        The first part is empty if the reply does not begin with the prefix.
        """
        segment, prefix = self.reply(text), self.reply_prefix.strip()
        start = segment.find(prefix) + len(prefix) if prefix and segment.lstrip().startswith(prefix) else 0
        return segment[:start], segment[start:]


class OfficialTemplate(PromptTemplate):
    """RWKV's own format: `System: s`, `User: x` and `Assistant: y`, each followed by a blank line."""

    def __init__(self, settings: ReplyPrompt | None = None) -> None:
        super().__init__(settings or ReplyPrompt(), BLANK_LINE, ("\nUser:",))

    def _system(self, text: str) -> str:
        return f"System: {text}\n\n"

    def turn(self, user: str) -> str:
        return f"User: {clean(user)}{THINK_REQUESTS.get(self.think, '')}\n\nAssistant:{self.begun}"

    def past_turn(self, user: str) -> str:
        return f"User: {clean(user)}\n\nAssistant:"

    def reply(self, text: str) -> str:
        return f" {self._clean_reply(text)}\n\n"


TEMPLATES: Mapping[str, str] = {name: str(Path(__file__).with_name(f"{name}.jinja")) for name in ("bot", "markdown")}
"""The paths of the bundled template files, by the names that `--template` accepts for them."""


def template_path(name_or_path: str) -> str:
    """The path of a template file: that of one of `TEMPLATES`, or `name_or_path` itself."""
    return TEMPLATES.get(name_or_path, name_or_path)


def load_template(prompting: Prompting) -> PromptTemplate:
    """The template that `prompting` names.

    Raises:
        TemplateError: the template file cannot be read, or is not a prompt template (file and line).
        UsageError: a reply prefix together with a thinking mode in which the reply begins with thinking.
    """
    if prompting.template is None:
        return OfficialTemplate(prompting)
    from rwkvbatch.prompt.jinja import read_template

    return read_template(template_path(prompting.template), prompting)
