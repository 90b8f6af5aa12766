"""Prompt templates: cleaning, RWKV's official template, thinking modes, preludes.

Each segment (opening, turn, reference reply, closing) is encoded on its own and the token ids are concatenated, so
that a history is never encoded again. The texts are those of ChatRWKV's `API_DEMO_CHAT.py` and of the RWKV-7 model
cards.

| `--think` | the prompt's end                              | a reply ends on     |
|-----------|-----------------------------------------------|---------------------|
| `off`     | `User: x`, blank line, `Assistant:`           | a blank line        |
| `on`      | ... `Assistant: <think`                       | newline and `User:` |
| `short`   | `User: x think a bit` ... `Assistant: <think` | newline and `User:` |
| `long`    | `User: x think a lot` ... `Assistant: <think` | newline and `User:` |
| `fake`    | ... `Assistant: <think`, newline, `</think`   | newline and `User:` |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rwkvbatch.config import CellSettings, Prompting, ThinkMode
from rwkvbatch.errors import UsageError

# A line end includes carriage returns before it. Matching only from the start of such a run keeps this linear.
LINE_END = r"(?<!\r)\r*\n"
_LINE_ENDS = re.compile(f"(?:{LINE_END})+")


def clean(text: str) -> str:
    """Content for a prompt: `\\r\\n` becomes `\\n`, empty lines and outer white space are removed."""
    return _LINE_ENDS.sub("\n", text).strip()


THINK_OPENINGS: Mapping[ThinkMode, str] = {
    "off": "",
    "on": " <think",
    "short": " <think",
    "long": " <think",
    "fake": " <think>\n</think",
}
"""The text after `Assistant:` in each thinking mode."""

THINK_REQUESTS: Mapping[ThinkMode, str] = {"short": " think a bit", "long": " think a lot"}
"""The end of a user's text that asks for little or much thinking."""


def with_thinking(begun: str, text: str) -> str:
    """A generated reply after the beginning of its thinking part, `begun`, in the prompt; stripped."""
    return (begun + text).strip()


PRELUDES: Mapping[str, str] = {
    "api-demo-chat": (
        "User: hi\n\n"
        "Assistant: Hi. I am your assistant and I will provide expert full response in full details. "
        "Please feel free to ask any question and I will always answer it.\n\n"
    )
}
"""Texts of initial exchanges, by their names for `--prelude`."""

MAX_PRELUDE_BYTES = 1_000_000


def load_prelude(name_or_path: str) -> str:
    """The text of a prelude: one of `PRELUDES`, or the content of a file.

    Raises:
        UsageError: the file cannot be read as UTF-8 text, or is larger than `MAX_PRELUDE_BYTES`.
    """
    if name_or_path in PRELUDES:
        return PRELUDES[name_or_path]
    hint = f"name a text file, or one of {', '.join(PRELUDES)}"
    try:
        with Path(name_or_path).open("rb") as file:
            data = file.read(MAX_PRELUDE_BYTES + 1)
        text = data.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UsageError(f"--prelude {name_or_path}: cannot be read: {reason}", hint=hint) from None
    if len(data) > MAX_PRELUDE_BYTES:
        raise UsageError(f"--prelude {name_or_path}: larger than {MAX_PRELUDE_BYTES} bytes", hint=hint)
    return text


def prompting_of(settings: CellSettings) -> Prompting:
    """How turns become text under `settings`; reads the prelude's file.

    Raises:
        UsageError: as `load_prelude`.
    """
    text = None if settings.prelude is None else load_prelude(settings.prelude)
    return Prompting(think=settings.think, history=settings.history, template=settings.template, prelude=text)


def prelude_text(prelude: str | None, closing: str) -> str:
    """A prelude with `\\n` line ends, without outer white space, followed by the closing text."""
    text = re.sub(LINE_END, "\n", prelude or "").strip()
    return text.removesuffix(closing.strip()).rstrip() + closing if text else ""


class PromptTemplate(Protocol):
    """A template of segments. Nothing is added between their texts."""

    @property
    def closing(self) -> str:
        """The text that closes a turn; read after a reply that did not end with it."""
        ...

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end a reply, besides token 0."""
        ...

    def opening(self, system: str | None, prelude: str | None) -> str:
        """The text before the first turn; may be empty."""
        ...

    def turn(self, user: str) -> str:
        """A user message and the beginning of the generated reply."""
        ...

    def past_turn(self, user: str) -> str:
        """A user message whose reply is given (a reference): `turn` without any thinking."""
        ...

    def reply(self, text: str) -> str:
        """A given reply as it follows `past_turn`, with the closing text."""
        ...

    def shown_reply(self, text: str) -> str:
        """A generated reply as displayed: stripped, with the beginning of the thinking part from the prompt."""
        ...


@dataclass(frozen=True)
class OfficialTemplate:
    """`System: s`, `User: x`, `Assistant:`, a blank line after each."""

    think: ThinkMode = "off"

    @property
    def closing(self) -> str:
        return "\n\n"

    @property
    def stops(self) -> tuple[str, ...]:
        return ("\n\n",) if self.think == "off" else ("\nUser:",)

    def opening(self, system: str | None, prelude: str | None) -> str:
        cleaned = clean(system or "")
        return (f"System: {cleaned}\n\n" if cleaned else "") + prelude_text(prelude, self.closing)

    def turn(self, user: str) -> str:
        return f"User: {clean(user)}{THINK_REQUESTS.get(self.think, '')}\n\nAssistant:{THINK_OPENINGS[self.think]}"

    def past_turn(self, user: str) -> str:
        return f"User: {clean(user)}\n\nAssistant:"

    def reply(self, text: str) -> str:
        return f" {clean(text)}\n\n"

    def shown_reply(self, text: str) -> str:
        return with_thinking(THINK_OPENINGS[self.think], text)


def load_template(prompting: Prompting) -> PromptTemplate:
    """The template that `prompting` names.

    Raises:
        TemplateError: the template file cannot be read, or is not a prompt template (file and line).
    """
    if prompting.template is None:
        return OfficialTemplate(prompting.think)
    from rwkvbatch.prompt.jinja import read_template

    return read_template(prompting.template, prompting.think)
