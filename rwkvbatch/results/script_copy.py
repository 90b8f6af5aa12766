"""The script's copy in a run directory: the conversations as replayed, in the plan's order and the native form.

`script.jsonl`, or `script.jsonl.gz` when it is large. What `--only`, `--limit` and `--skip-bad` left out is not in it.
It can be replayed itself: `rwkvbatch run RUN/script.jsonl`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from rwkvbatch.errors import RunDamagedError, RunDirectoryError, ScriptError
from rwkvbatch.files import OS_FILES, Files, in_blocks, open_file, save_file
from rwkvbatch.results.manifest import FORMER
from rwkvbatch.script.native import native_record
from rwkvbatch.script.reader import read_copy
from rwkvbatch.script.records import Conversation

SCRIPT_NAME = "script.jsonl"
COMPRESSED_NAME = "script.jsonl.gz"
COMPRESSED_FROM_BYTES = 2**20

_HINT = "the command that made the run, given again, writes it anew"


def script_sha256(conversations: Iterable[Conversation]) -> str:
    """The hash of a script in the manifest: of its conversations' own hashes, in order."""
    return hashlib.sha256("".join(each.sha256 for each in conversations).encode("ascii")).hexdigest()


def write_script(
    directory: Path, conversations: Sequence[Conversation], *, files: Files = OS_FILES, at: int | None = None
) -> None:
    """Replace the copy atomically; `at` is the open directory, which is opened without it.

    Raises:
        StorageError: it could not be written.
    """
    lines = map(_line, conversations)
    held: list[bytes] = []
    num_bytes = 0
    for line in lines:
        held.append(line)
        num_bytes += len(line)
        if num_bytes > COMPRESSED_FROM_BYTES:
            save_file(directory / COMPRESSED_NAME, _compressed(in_blocks(_chained(held, lines))), files=files, at=at)
            other = SCRIPT_NAME
            break
    else:
        save_file(directory / SCRIPT_NAME, held, files=files, at=at)
        other = COMPRESSED_NAME
    with suppress(OSError):  # of a script that was larger, or smaller; the reader takes the one that is right
        os.unlink(directory / other if at is None else other, dir_fd=at)


def has_script(directory: Path) -> bool:
    """Whether there is a copy. Directories of earlier versions have none."""
    return any((directory / name).is_file() for name in (SCRIPT_NAME, COMPRESSED_NAME))


def read_script(directory: Path, manifest: Mapping[str, Any]) -> tuple[Conversation, ...] | None:
    """The conversations as replayed, in the plan's order; None where there is no copy.

    Raises:
        RunDamagedError: the copy is damaged, or is not of the run that the manifest describes.
        RunDirectoryError: it cannot be read.
        MissingExtraError: a check needs an optional dependency that is not installed.
    """
    expected = {_hash_in(manifest), _hash_in(manifest.get(FORMER) or manifest)}
    problems: list[RunDirectoryError] = []
    for name in (SCRIPT_NAME, COMPRESSED_NAME):
        path = directory / name
        try:
            with open_file(path) as file:
                lines = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
                found = read_copy(cast("BinaryIO", lines), str(path))
        except FileNotFoundError:
            continue
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or error
            problems.append(RunDirectoryError(f"cannot be read: {reason}", path=path, hint=_HINT))
        except ScriptError as error:
            problems.append(RunDamagedError(f"is damaged: {error.message}", path=path, line=error.line, hint=_HINT))
        else:
            if script_sha256(found) in expected:
                return found
            problems.append(RunDamagedError("is not the script of this run: it was changed", path=path, hint=_HINT))
    if problems:
        raise problems[0]
    return None


def _hash_in(manifest: Mapping[str, Any]) -> str | None:
    script = manifest["identity"].get("script")
    return cast("dict[str, Any]", script).get("sha256") if isinstance(script, dict) else None


def _line(conversation: Conversation) -> bytes:
    record = native_record(conversation)
    try:
        return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def _chained(held: list[bytes], lines: Iterator[bytes]) -> Iterator[bytes]:
    yield from held
    held.clear()
    yield from lines


def _compressed(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """A gzip file without a time, so that the same script gives the same bytes."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    for block in blocks:
        if packed := packer.compress(block):
            yield packed
    yield packer.flush()
