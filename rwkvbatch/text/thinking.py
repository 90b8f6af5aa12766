"""The thinking modes of RWKV-7's model cards: what they put into a prompt, and how such a reply is shown."""

from __future__ import annotations

from collections.abc import Mapping

from rwkvbatch.config import ThinkMode

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
