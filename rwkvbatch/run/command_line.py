"""Commands that are shown so that they can be given again."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path


def command_line() -> str:
    """This process's command, as a shell would read it."""
    return shlex.join(["rwkvbatch", *sys.argv[1:]])


def with_directory(words: Sequence[str], out: Path) -> str:
    """The command of `words`, which have no `--out`, with one. Behind a `--` all words are scripts."""
    end = _end_of_options(words)
    return shlex.join([*words[:end], "--out", str(out), *words[end:]])


def without_options(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """`words` without these options (`--out`, `-o`) and their values: `--out DIR`, `--out=DIR`, `-o DIR`, `-oDIR`."""
    joined = tuple(f"{name}=" if name.startswith("--") else name for name in names)
    end = _end_of_options(words)
    kept: list[str] = []
    options = iter(words[:end])
    for word in options:
        if word in names:
            next(options, None)
        elif not word.startswith(joined):
            kept.append(word)
    return [*kept, *words[end:]]


def _end_of_options(words: Sequence[str]) -> int:
    return words.index("--") if "--" in words else len(words)
