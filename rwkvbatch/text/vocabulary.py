"""The World vocabulary's entries: read from the `rwkv` package's data file once, then from a compact cache.

The data file holds one Python literal a line, which takes most of a second to parse. The cache holds the same entries
as plain bytes; it names the data file's hash and carries its own checksum, so a stale or damaged one is replaced.
"""

from __future__ import annotations

import ast
import hashlib
import os
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from itertools import accumulate, pairwise
from pathlib import Path

from rwkvbatch.errors import InputError

FILE_NAME = "rwkv_vocab_v20230424.txt"
_MAGIC = b"rwkvbatch vocabulary 1\n"
_HASH_BYTES = 32
_REINSTALL = "reinstall the `rwkv` package, which carries the vocabulary"


def vocabulary_path() -> Path:
    """Where the installed `rwkv` package keeps the vocabulary; the package itself is not imported.

    Raises:
        InputError: the package or the file is not there.
    """
    spec = find_spec("rwkv")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / FILE_NAME
        if path.is_file():
            return path
    raise InputError(f"the World vocabulary {FILE_NAME} is not installed", hint=_REINSTALL)


def load_entries(path: Path | None = None, cache: Path | None = None) -> tuple[bytes, ...]:
    """The bytes of every token id from 0 to the last; ids without an entry have none.

    Args:
        path: the vocabulary file; the installed one by default.
        cache: the cache file; one in the user's cache directory by default. Where it cannot be written, nothing is.

    Raises:
        InputError: the file cannot be read, or a line is no entry (file and line).
    """
    path = path or vocabulary_path()
    cache = cache or _default_cache()
    try:
        source = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=path, hint=_REINSTALL) from None
    source_hash = hashlib.sha256(source).digest()
    entries = _read_cache(cache, source_hash)
    if entries is None:
        entries = parse_entries(source, path)
        _write_cache(cache, source_hash, entries)
    return entries


def parse_entries(source: bytes, path: Path) -> tuple[bytes, ...]:
    """Entries of a vocabulary file: lines of `ID LITERAL LENGTH`, the literal a Python `str` or `bytes`.

    Raises:
        InputError: a line is no entry, its length is not the literal's, or an id comes twice (file and line).
    """
    by_id: dict[int, bytes] = {}
    for number, raw in enumerate(source.split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            token, rest = raw.decode("utf-8").split(" ", 1)
            literal, length = rest.rsplit(" ", 1)
            value: object = ast.literal_eval(literal.strip())
            entry = value.encode("utf-8") if isinstance(value, str) else value
            if not isinstance(entry, bytes) or len(entry) != int(length) or not 0 < len(entry) < 256:
                raise ValueError("the length is not the literal's")
            if not 0 < int(token) < 1 << 20 or int(token) in by_id:
                raise ValueError("the id is out of range or comes twice")
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise InputError(
                f"not an entry of a World vocabulary: {error}", path=path, line=number, hint=_REINSTALL
            ) from None
        by_id[int(token)] = entry
    if not by_id:
        raise InputError("holds no vocabulary entry", path=path, hint=_REINSTALL)
    return tuple(by_id.get(token, b"") for token in range(max(by_id) + 1))


def pack(entries: tuple[bytes, ...]) -> bytes:
    """The entries as bytes: their number, their lengths, then all of them after one another."""
    return len(entries).to_bytes(4, "little") + bytes(map(len, entries)) + b"".join(entries)


def _unpack(packed: bytes) -> tuple[bytes, ...]:
    count = int.from_bytes(packed[:4], "little")
    lengths, text = packed[4 : 4 + count], packed[4 + count :]
    return tuple([text[begin:end] for begin, end in pairwise(accumulate(lengths, initial=0))])


def _default_cache() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("rwkvbatch") / "world-vocabulary-1.bin"


def _read_cache(cache: Path, source_hash: bytes) -> tuple[bytes, ...] | None:
    try:
        content = cache.read_bytes()
    except OSError:
        return None
    head, packed = content[: len(_MAGIC) + 2 * _HASH_BYTES], content[len(_MAGIC) + 2 * _HASH_BYTES :]
    return _unpack(packed) if head == _MAGIC + source_hash + hashlib.sha256(packed).digest() else None


def _write_cache(cache: Path, source_hash: bytes, entries: tuple[bytes, ...]) -> None:
    packed = pack(entries)
    content = _MAGIC + source_hash + hashlib.sha256(packed).digest() + packed
    # Without a cache everything works, only slower, so a directory that cannot be written is no error.
    with suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=cache.parent, prefix=cache.name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(name).replace(cache)
        except OSError:
            Path(name).unlink(missing_ok=True)
