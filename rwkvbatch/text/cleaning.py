"""What content becomes before it may stand in a prompt."""

from __future__ import annotations

import re

# Any carriage returns before a line end belong to it. Beginning only where a run of them begins keeps this linear.
LINE_END = r"(?<!\r)\r*\n"
_LINE_ENDS = re.compile(f"(?:{LINE_END})+")


def clean(text: str) -> str:
    """Content as it may stand in a prompt: `\\r\\n` is `\\n`, no empty lines inside, no space at the ends."""
    return _LINE_ENDS.sub("\n", text).strip()
