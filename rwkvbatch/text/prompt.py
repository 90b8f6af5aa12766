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

from dataclasses import dataclass
from typing import Protocol

from rwkvbatch.config import Prompting, ThinkMode
from rwkvbatch.text.cleaning import clean
from rwkvbatch.text.preludes import prelude_text
from rwkvbatch.text.thinking import THINK_OPENINGS, THINK_WISHES, with_thinking


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
        return (
            f"User: {clean(user)}{THINK_WISHES.get(self.think, '')}\n\nAssistant:{THINK_OPENINGS[self.think]}"
        )

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
    from rwkvbatch.text.jinja import read_template

    return read_template(prompting.template, prompting.think)
