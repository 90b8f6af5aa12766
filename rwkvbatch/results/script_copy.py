"""The copy of the script in a run directory: the replayed conversations, in the plan's order and the native form.

Its name is `script.jsonl`, or `script.jsonl.gz` above 1 MiB. It lacks the conversations that `--only`, `--limit` and
`--skip-bad` left out. It can be replayed like any script: `rwkvbatch run RUN/script.jsonl`.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from rwkvbatch.errors import RunDamagedError, RunDirectoryError, ScriptError
from rwkvbatch.files import in_blocks, open_file
from rwkvbatch.results.folder import Folder
from rwkvbatch.results.manifest import FORMER
from rwkvbatch.script.native import native_line
from rwkvbatch.script.reader import read_copy
from rwkvbatch.script.records import Conversation

SCRIPT_NAME = "script.jsonl"
COMPRESSED_NAME = "script.jsonl.gz"
COMPRESSED_FROM_BYTES = 2**20

_HINT = "the command that made the run, given again, rewrites it"


def script_sha256(conversations: Iterable[Conversation]) -> str:
    """The hash of a script in the manifest: the SHA-256 of its conversations' hashes, in order."""
    return hashlib.sha256("".join(conversation.sha256 for conversation in conversations).encode("ascii")).hexdigest()


def write_script(folder: Folder, conversations: Sequence[Conversation]) -> None:
    """Replace the copy; raises as `Folder.save`."""
    lines = map(native_line, conversations)
    buffered: list[bytes] = []
    num_bytes = 0
    for line in lines:
        buffered.append(line)
        num_bytes += len(line)
        if num_bytes > COMPRESSED_FROM_BYTES:
            folder.save(COMPRESSED_NAME, _compressed(in_blocks(_chained(buffered, lines))))
            obsolete = SCRIPT_NAME
            break
    else:
        folder.save(SCRIPT_NAME, buffered)
        obsolete = COMPRESSED_NAME
    folder.remove(obsolete)  # if the file stays, the reader recognises the right one by its hash


def has_script(directory: Path) -> bool:
    """Whether there is a copy."""
    return any((directory / name).is_file() for name in (SCRIPT_NAME, COMPRESSED_NAME))


def read_script(directory: Path, manifest: Mapping[str, Any]) -> tuple[Conversation, ...] | None:
    """The replayed conversations in the plan's order; None if there is no copy.

    Raises:
        RunDamagedError: the copy is damaged, or is not that of the run that the manifest describes.
        RunDirectoryError: the copy cannot be read.
        MissingExtraError: a check needs an optional dependency that is not installed.
    """
    expected = {_hash_in(manifest), _hash_in(manifest.get(FORMER) or manifest)}
    problems: list[RunDirectoryError] = []
    for name in (SCRIPT_NAME, COMPRESSED_NAME):
        path = directory / name
        try:
            with open_file(path) as file:
                lines = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
                conversations = read_copy(cast("BinaryIO", lines), str(path))
        except FileNotFoundError:
            continue
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or error
            problems.append(RunDirectoryError(f"cannot be read: {reason}", path=path, hint=_HINT))
        except ScriptError as error:
            problems.append(RunDamagedError(f"is damaged: {error.message}", path=path, line=error.line, hint=_HINT))
        else:
            if script_sha256(conversations) in expected:
                return conversations
            problems.append(RunDamagedError("is not the script of this run: it was changed", path=path, hint=_HINT))
    if problems:
        raise problems[0]
    return None


def has_intact_script(directory: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether there is a copy that `read_script` reads; raises `MissingExtraError`."""
    try:
        return read_script(directory, manifest) is not None
    except RunDirectoryError:
        return False


def _hash_in(manifest: Mapping[str, Any]) -> str | None:
    script = manifest["identity"].get("script")
    return cast("dict[str, Any]", script).get("sha256") if isinstance(script, dict) else None


def _chained(buffered: list[bytes], lines: Iterator[bytes]) -> Iterator[bytes]:
    """The buffered lines, then the other lines; frees the buffer in between."""
    yield from buffered
    buffered.clear()
    yield from lines


def _compressed(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """A gzip file without a time stamp, so that the same script gives the same bytes."""
    compressor = zlib.compressobj(6, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    for block in blocks:
        if compressed := compressor.compress(block):
            yield compressed
    yield compressor.flush()
