"""Initial exchanges, read before the first turn."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from rwkvbatch.errors import UsageError
from rwkvbatch.text.cleaning import LINE_END

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


def prelude_text(prelude: str | None, closing: str) -> str:
    """A prelude with `\\n` line ends, no space at its ends, and the closing text behind it."""
    text = re.sub(LINE_END, "\n", prelude or "").strip()
    return text.removesuffix(closing.strip()).rstrip() + closing if text else ""
