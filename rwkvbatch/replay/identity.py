"""Digests of what settings name: files, and the text of a prelude."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rwkvbatch.config import CellSettings
from rwkvbatch.errors import InputError
from rwkvbatch.prompt.templates import prompting_of


def sha256_of_file(path: str, option: str) -> str:
    """Hex digest of a file that an option names.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with Path(path).expanduser().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{option} {path}: cannot be read: {error.strerror}") from None


def text_sha256(settings: CellSettings) -> str | None:
    """Hex digest of the prelude's text, None without one."""
    prelude = prompting_of(settings).prelude
    return None if prelude is None else hashlib.sha256(prelude.encode("utf-8", "surrogatepass")).hexdigest()
