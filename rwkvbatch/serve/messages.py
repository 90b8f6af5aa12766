"""Converts the messages of a chat request to roles and texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from rwkvbatch.errors import shown_value
from rwkvbatch.serve.fields import SHOWN_NAME, ChatFields, RequestError


def messages_of(fields: ChatFields) -> list[dict[str, str]]:
    """The roles and texts of the messages. The role `developer` becomes `system`; text parts are joined.

    User messages in a row are one message, on lines of their own: there is no reply between them.

    Raises:
        RequestError: a message has other content than a role and a text.
    """
    joined: list[dict[str, str]] = []
    for message in (_message(number, message) for number, message in enumerate(fields.messages)):
        if joined and message["role"] == joined[-1]["role"] == "user":
            joined[-1]["content"] += "\n" + message["content"]
        else:
            joined.append(message)
    return joined


def _message(number: int, message: Mapping[str, Any]) -> dict[str, str]:
    where = f"messages.{number}"
    for name, value in message.items():
        if name not in ("role", "content") and value not in (None, []):
            raise RequestError(f"{where}.{name[:SHOWN_NAME]}: this server does not support it", param="messages")
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "developer", "user", "assistant"):
        problem = "must be system, developer, user or assistant"
        raise RequestError(f"{where}.role: {problem}, got {shown_value(role)}", param="messages")
    if isinstance(content, list) and content:
        content = "".join(_part(where, part) for part in cast("list[object]", content))
    if not isinstance(content, str):
        found = "null" if content is None else shown_value(content)  # pyright: ignore[reportUnknownArgumentType]
        found = found if "content" in message else "none"
        raise RequestError(f"{where}.content: must be text, or a list of text parts; got {found}", param="messages")
    return {"role": "system" if role == "developer" else role, "content": content}


def _part(where: str, part: object) -> str:
    match part:
        case {"type": "text", "text": str(text)}:
            return text
        case _:
            raise RequestError(f"{where}.content: only text parts, got {shown_value(part)}", param="messages")
