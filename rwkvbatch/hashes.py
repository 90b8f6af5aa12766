"""Hashes of JSON values and of files that options name."""

from __future__ import annotations

import hashlib
import json

from rwkvbatch.errors import InputError
from rwkvbatch.files import open_file, user_path


def canonical_json(value: object) -> bytes:
    """The JSON text of a value for hashes: ASCII, with sorted keys and without spaces."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), default=list).encode("ascii")


def json_sha256(value: object) -> str:
    """Hex digest of a JSON value's `canonical_json`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


MAX_STATE_BYTES = 2**34
"""Size limit of state files; the state file of a model of 14 billion parameters has 82 MB."""


def sha256_of_file(path: str, option: str) -> str:
    """Hex digest of a file that an option names; raises `InputError` if it cannot be read."""
    try:
        with open_file(user_path(path), MAX_STATE_BYTES) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{option} {path}: cannot be read: {error.strerror}") from None
