"""Settings of prompts: the template, the thinking mode, and how a reply begins and where it ends."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from rwkvbatch.config.setting import Settings, setting
from rwkvbatch.errors import UsageError, shown_value

ThinkMode = Literal["off", "on", "fake", "short", "long", "on-parens", "short-parens", "long-parens", "fake-oneline"]
TurnEnd = Literal["auto", "next-role", "blank-line", "end-of-text"]
Switch = Literal["auto", "on", "off"]


def _switch(value: object) -> object:
    """Convert true and false, as in a TOML file or a script, to `on` and `off`."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class ReplyPrompt(Settings):
    """The beginning of a reply in the prompt, and its end. The `params` of a conversation or a turn may change these.

    - `turn_end`: `next-role` is a line that begins with `User:` (the template's stop texts), `blank-line` the first
      blank line (as in ChatRWKV's API_DEMO_CHAT.py), `end-of-text` only token 0, which ends a reply in all cases.
    - `reply_prefix`: the first text of the reply. It is read with the prompt, shown as a part of the reply, and not
      scored.
    """

    think: ThinkMode = setting(
        "off", "Thinking: off, on, fake, short, long, and newer forms (docs/prompts.md).", "MODE", "Prompt"
    )
    turn_end: TurnEnd = setting(
        "auto",
        "What ends a reply: next-role, blank-line, end-of-text; auto is next-role (blank-line for the bundled model).",
        "NAME",
        "End of a reply",
    )
    reply_prefix: str = setting("", "Text that every reply begins with.", "TEXT", "Prompt", text=True)

    def check_reply_prefix(self) -> None:
        """Check that the prefix begins the answer.

        Raises:
            UsageError: there is a prefix, but in this thinking mode the reply begins with thinking.
        """
        if self.reply_prefix and self.think in OPEN_THINKING:
            raise UsageError(
                f"--reply-prefix begins the answer, and with --think {self.think} the reply begins with thinking; "
                f"got {shown_value(self.reply_prefix)}",
                hint="use --think off or --think fake, or leave the prefix out",
            )


OPEN_THINKING: frozenset[ThinkMode] = frozenset({"on", "short", "long", "on-parens", "short-parens", "long-parens"})
"""The thinking modes in which the model writes the thinking part."""


class DialoguePrompt(ReplyPrompt):
    """`ReplyPrompt`, and whether token 0 (end of text) is read before everything else.

    `bos` `auto` is off with a chat template (ChatRWKV's API_DEMO_CHAT.py does not read token 0) and on for plain text
    (RWKV-LM's `rwkv_mmlu_eval.py` and the authors' other evaluations begin with token 0).
    """

    bos: Annotated[Switch, BeforeValidator(_switch)] = setting(
        "auto", "Token 0 before the first token: on, off; auto is off for chats, on for plain text.", "MODE", "Prompt"
    )

    def begins_with_bos(self, *, plain_text: bool = False) -> bool:
        """Whether token 0 is read first.

        Args:
            plain_text: whether the prompt is made without a chat template.
        """
        return plain_text if self.bos == "auto" else self.bos == "on"


class Prompting(ReplyPrompt):
    """The settings from which a prompt template is loaded."""

    template: str | None = setting(
        None, "Jinja2 template in place of RWKV's official one: a file, bot or markdown.", "FILE", "Prompt"
    )

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, name) for name in type(self).model_fields))
