"""How turns become text: cleaning, RWKV's official template, thinking modes, the blank line that closes a turn.

Each segment (opening, turn, reference reply, closing) is encoded on its own and the token ids are concatenated, so
that a history never has to be encoded again. The texts are those of ChatRWKV's `API_DEMO_CHAT.py` and of the RWKV-7
model cards.

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

# Any carriage returns before a line end belong to it. Beginning only where a run of them begins keeps this linear.
LINE_END = r"(?<!\r)\r*\n"
_LINE_ENDS = re.compile(f"(?:{LINE_END})+")


def clean(text: str) -> str:
    """Content as it may stand in a prompt: `\\r\\n` is `\\n`, no empty lines inside, no space at the ends."""
    return _LINE_ENDS.sub("\n", text).strip()


THINK_OPENINGS: Mapping[ThinkMode, str] = {
    "off": "",
    "on": " <think",
    "short": " <think",
    "long": " <think",
    "fake": " <think>\n</think",
}
"""What a prompt puts behind `Assistant:` in each thinking mode."""

THINK_WISHES: Mapping[ThinkMode, str] = {"short": " think a bit", "long": " think a lot"}
"""What a user's text ends in to ask for little or much of it."""


def with_thinking(begun: str, text: str) -> str:
    """A generated reply, stripped, behind the thinking part that its prompt had `begun`."""
    return (begun + text).strip()


PRELUDES: Mapping[str, str] = {
    "api-demo-chat": (
        "User: hi\n\n"
        "Assistant: Hi. I am your assistant and I will provide expert full response in full details. "
        "Please feel free to ask any question and I will always answer it.\n\n"
    ),
}
"""Initial exchanges by the name that `--prelude` takes; each is the text itself."""

MAX_PRELUDE_BYTES = 1_000_000


def load_prelude(name_or_path: str) -> str:
    """The text of a prelude: one of `PRELUDES` by its name, else a file's content.

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
    """A prelude with `\\n` line ends, no space at its ends, and the closing text behind it."""
    text = re.sub(LINE_END, "\n", prelude or "").strip()
    return text.removesuffix(closing.strip()).rstrip() + closing if text else ""


class PromptTemplate(Protocol):
    """What the driver needs of a template. All texts are final: nothing is added between segments."""

    @property
    def closing(self) -> str:
        """What closes a turn; fed after a reply that ended otherwise than by it."""
        ...

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end a reply, besides token 0."""
        ...

    def opening(self, system: str | None, prelude: str | None) -> str:
        """What is read before the first turn; may be empty."""
        ...

    def turn(self, user: str) -> str:
        """A user message and the beginning of the reply to be generated."""
        ...

    def past_turn(self, user: str) -> str:
        """A user message whose reply is given (a reference): `turn` without any thinking."""
        ...

    def reply(self, text: str) -> str:
        """A given reply as it follows `past_turn`, with the closing text."""
        ...

    def shown_reply(self, text: str) -> str:
        """A generated reply as people see it: stripped, with the thinking part that the prompt began put back."""
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
        return f"User: {clean(user)}{THINK_WISHES.get(self.think, '')}\n\nAssistant:{THINK_OPENINGS[self.think]}"

    def past_turn(self, user: str) -> str:
        return f"User: {clean(user)}\n\nAssistant:"

    def reply(self, text: str) -> str:
        return f" {clean(text)}\n\n"

    def shown_reply(self, text: str) -> str:
        return with_thinking(THINK_OPENINGS[self.think], text)


def load_template(prompting: Prompting) -> PromptTemplate:
    """The template that `prompting` asks for.

    Raises:
        TemplateError: the template file cannot be read, or is no prompt template (file and line).
    """
    if prompting.template is None:
        return OfficialTemplate(prompting.think)
    from rwkvbatch.prompt.jinja import read_template

    return read_template(prompting.template, prompting.think)
