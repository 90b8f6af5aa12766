"""The World tokenizer (the same ids as the `rwkv` package for any text), and incremental decoding up to a stop text.

A model with a smaller vocabulary uses the entries with ids below its size. Ids 1 to 256 are the single bytes, so a
vocabulary of 257 can encode any text.

In no entry is an ASCII letter or digit followed by another ASCII character: a token ends where a word ends. Text is
therefore split there into pieces, whose tokens are cached.
"""

from __future__ import annotations

import ast
import codecs
import hashlib
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from importlib.util import find_spec
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Protocol

from rwkvbatch.errors import InputError, UsageError
from rwkvbatch.files import OS_FILES, PRIVATE_MODE, read_file, replace_file

FILE_NAME = "rwkv_vocab_v20230424.txt"
_MAGIC = b"rwkvbatch vocabulary 1\n"
MAX_VOCABULARY_BYTES = 2**26
_HASH_BYTES = 32
_REINSTALL = "reinstall the `rwkv` package, which carries the vocabulary"


def vocabulary_path() -> Path:
    """The vocabulary file of the installed `rwkv` package, which is not imported.

    Raises:
        InputError: the package or the file is missing.
    """
    spec = find_spec("rwkv")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / FILE_NAME
        if path.is_file():
            return path
    raise InputError(f"the World vocabulary {FILE_NAME} is not installed", hint=_REINSTALL)


def load_entries(path: Path | None = None, cache: Path | None = None) -> tuple[bytes, ...]:
    """The bytes of every token id from 0 to the last; empty for ids without an entry.

    Args:
        path: the vocabulary file; the installed one by default.
        cache: the cache file, by default in the user's cache directory; not written if it cannot be.

    Raises:
        InputError: the file cannot be read, or a line is not an entry (file and line).
    """
    path = path or vocabulary_path()
    if cache is None:
        from platformdirs import user_cache_path

        cache = user_cache_path("rwkvbatch") / "world-vocabulary-1.bin"
    try:
        source = read_file(path, MAX_VOCABULARY_BYTES)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=path, hint=_REINSTALL) from None
    source_hash = hashlib.sha256(source).digest()
    entries = _read_cache(cache, source_hash)
    if entries is None:
        entries = parse_entries(source, path)
        _write_cache(cache, source_hash, entries)
    return entries


def parse_entries(source: bytes, path: Path, hint: str = _REINSTALL) -> tuple[bytes, ...]:
    """Entries of a vocabulary file: lines of `ID LITERAL LENGTH`, the literal a Python `str` or `bytes`.

    Raises:
        InputError: a line is not an entry, its length is wrong, or an id is repeated (file and line).
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
                f"not an entry of a World vocabulary: {error}", path=path, line=number, hint=hint
            ) from None
        by_id[int(token)] = entry
    if not by_id:
        raise InputError("contains no vocabulary entry", path=path, hint=hint)
    return tuple(by_id.get(token, b"") for token in range(max(by_id) + 1))


def pack(entries: tuple[bytes, ...]) -> bytes:
    """The entries as bytes: their number, their lengths, then their bytes."""
    return len(entries).to_bytes(4, "little") + bytes(map(len, entries)) + b"".join(entries)


def _read_cache(cache: Path, source_hash: bytes) -> tuple[bytes, ...] | None:
    try:
        content = read_file(cache, MAX_VOCABULARY_BYTES)
    except OSError:
        return None
    head, packed = content[: len(_MAGIC) + 2 * _HASH_BYTES], content[len(_MAGIC) + 2 * _HASH_BYTES :]
    if head != _MAGIC + source_hash + hashlib.sha256(packed).digest():
        return None
    count = int.from_bytes(packed[:4], "little")
    lengths, text = packed[4 : 4 + count], packed[4 + count :]
    return tuple([text[begin:end] for begin, end in pairwise(accumulate(lengths, initial=0))])


def _write_cache(cache: Path, source_hash: bytes, entries: tuple[bytes, ...]) -> None:
    packed = pack(entries)
    content = _MAGIC + source_hash + hashlib.sha256(packed).digest() + packed
    # The cache is optional, so a directory that cannot be written is not an error.
    with suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(OS_FILES, cache, [content], mode=PRIVATE_MODE, durable=False, unique=True)


REPLACEMENT = "\ufffd"

# `surrogateescape` maps each undecodable byte to one of these, which no valid UTF-8 decodes to.
_ESCAPED_RUN = re.compile("[\udc80-\udcff]+")


def decode_utf8(data: bytes) -> str:
    """`data` as text; each run of invalid bytes becomes one U+FFFD."""
    return _ESCAPED_RUN.sub(REPLACEMENT, data.decode("utf-8", "surrogateescape"))


MIN_VOCAB_SIZE = 257
MAX_CACHED = 2**15
"""The most entries of each cache of tokens; a full cache is cleared."""

MAX_PIECE_BYTES = 32
"""Longer pieces are not cached."""

_WORD_END = re.compile(rb"[A-Za-z0-9][\x00-/:-@\[-`{-\x7f]")
_PIECE = re.compile(rb"[^A-Za-z0-9]*+(?:[A-Za-z0-9]++[\x80-\xff][^A-Za-z0-9]*+)*+[A-Za-z0-9]*+")
"""From one word end to the next; the matches cover the text, and the last one is empty."""

_SLAB_BYTES = 2**16
"""A long text is encoded in slabs of about this size, since its pieces take several times its memory."""

_BEGINNING_BYTES = 4


class Tokenizer(Protocol):
    """A tokenizer, as the engine and templates use it.

    Attributes:
        vocab_size: ids are below this; not every id has an entry.
        name: for messages.
        sha256: hex digest, equal for two tokenizers only if they give the same ids and texts.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, tokens: Sequence[int]) -> str: ...
    def decode_bytes(self, tokens: Sequence[int]) -> bytes: ...
    def token_bytes(self, token: int) -> bytes: ...


def refuse_surrogates(text: str) -> bytes:
    """`text` in UTF-8; raises `InputError` for a lone surrogate, which has no bytes."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"character {error.start + 1} of a text, U+{ord(text[error.start]):04X}, is half of a surrogate pair",
            hint="write the whole character, or remove it",
        ) from None


class WorldTokenizer:
    """The World vocabulary's entries with ids below `vocab_size`; see `world_tokenizer`.

    Args:
        entries: the bytes of each id, empty for ids without an entry; must include the 256 single bytes.
        vocab_size: the model's vocabulary size; may be larger than the table.
        name: for messages.
    """

    def __init__(self, entries: Sequence[bytes], vocab_size: int, name: str = "rwkv-world") -> None:
        self.name = name
        self.vocab_size = vocab_size
        self._bytes_of = tuple(entries[:vocab_size])
        self._id_of = {entry: token for token, entry in enumerate(self._bytes_of) if entry}
        self._longer = _longer_by_beginning(self._id_of)
        self._ends_with_words = not _WORD_END.search(b"\xff".join(self._bytes_of))
        self._pieces: dict[bytes, tuple[int, ...]] = {}
        self._beginnings: dict[bytes, tuple[tuple[int, ...], int, int]] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {self.vocab_size} ids>"

    @property
    def sha256(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(pack(self._bytes_of)).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`.

        Raises:
            InputError: `text` contains a lone surrogate, which has no bytes.
        """
        data = refuse_surrogates(text)
        if not self._ends_with_words:
            return self._encode_bytes(data)
        ids = list[int]()
        for slab in _slabs(data):
            self._encode_words(slab, ids)
        return ids

    def encode_long(self, text: str) -> array[int]:
        """As `encode`, in 4 bytes a token (array type `i`), and with little memory besides."""
        data, ids = refuse_surrogates(text), array("i")
        if not self._ends_with_words:
            return array("i", self._encode_bytes(data))
        for slab in _slabs(data):
            self._encode_words(slab, ids)
        return ids

    def _encode_words(self, data: bytes, ids: list[int] | array[int]) -> None:
        """Append the ids of whole words, and what is between them, to `ids`."""
        id_of, pieces = self._id_of, self._pieces
        for piece in _PIECE.findall(data):
            known = pieces.get(piece)
            if known is None:
                token = id_of.get(piece)
                known = tuple(self._encode_bytes(piece)) if token is None else (token,)
                if len(piece) <= MAX_PIECE_BYTES:
                    _store(pieces, piece, known)
            ids.extend(known)

    def _encode_bytes(self, data: bytes) -> list[int]:
        """Greedy longest match: repeatedly takes the longest entry at the beginning of the rest."""
        id_of, beginnings, ids, at = self._id_of, self._beginnings, list[int](), 0
        while at < len(data):
            beginning = data[at : at + _BEGINNING_BYTES]
            known = beginnings.get(beginning)
            if known is None:
                length = len(beginning)
                while (token := id_of.get(beginning[:length])) is None:
                    length -= 1
                known = self._longer.get(beginning, ()), token, length
                _store(beginnings, beginning, known)
            longer, token, length = known
            for more in longer:
                found = id_of.get(data[at : at + more])
                if found is not None:
                    token, length = found, more
                    break
            ids.append(token)
            at += length
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`; each run of invalid UTF-8 becomes one U+FFFD."""
        return decode_utf8(self.decode_bytes(tokens))

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """Bytes of `tokens`; empty for ids without an entry."""
        return b"".join(map(self.token_bytes, tokens))

    def token_bytes(self, token: int) -> bytes:
        """Bytes of one token; empty for 0 (end of text) and other ids without an entry."""
        return self._bytes_of[token] if 0 <= token < len(self._bytes_of) else b""


@lru_cache(maxsize=8)
def world_tokenizer(vocab_size: int = 65536) -> WorldTokenizer:
    """The World tokenizer of a model with `vocab_size` token ids; the same object for the same size.

    Raises:
        UsageError: the size does not include the 256 single bytes.
        InputError: the vocabulary is missing or damaged.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise UsageError(
            f"the World vocabulary has at least {MIN_VOCAB_SIZE} ids (end of text, 256 bytes), got {vocab_size}",
            hint="use a model that was trained with the World vocabulary",
        )
    return WorldTokenizer(load_entries(), vocab_size)


def encode_long(tokenizer: Tokenizer, text: str) -> array[int]:
    """The ids of a text that may be long, in 4 bytes a token (array type `i`); raises as `Tokenizer.encode`."""
    return tokenizer.encode_long(text) if isinstance(tokenizer, WorldTokenizer) else array("i", tokenizer.encode(text))


def _slabs(data: bytes) -> Iterator[bytes]:
    """`data` in slabs of about `_SLAB_BYTES`, cut where words end, and so tokens too."""
    begin = 0
    while begin < len(data):
        found = _WORD_END.search(data, begin + _SLAB_BYTES)
        end = len(data) if found is None else found.start() + 1
        yield data[begin:end]
        begin = end


def _longer_by_beginning(id_of: dict[bytes, int]) -> dict[bytes, tuple[int, ...]]:
    """For each beginning, the lengths (longest first) of the longer entries that begin with it."""
    found: dict[bytes, set[int]] = {}
    for entry in id_of:
        if len(entry) > _BEGINNING_BYTES:
            found.setdefault(entry[:_BEGINNING_BYTES], set()).add(len(entry))
    return {beginning: tuple(sorted(lengths, reverse=True)) for beginning, lengths in found.items()}


def _store(memory: dict[bytes, Any], key: bytes, value: Any) -> None:
    if len(memory) >= MAX_CACHED:
        memory.clear()
    memory[key] = value


class Utf8Stream:
    """`decode_utf8` of bytes that arrive in pieces."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._in_invalid_run = False

    def push(self, data: bytes, *, final: bool = False) -> str:
        """The characters that `data` completes; with `final` also an incomplete one."""
        escaped = self._decoder.decode(data, final)
        if not escaped:
            return ""
        text = _ESCAPED_RUN.sub(REPLACEMENT, escaped)
        if self._in_invalid_run and _ESCAPED_RUN.match(escaped):
            text = text[1:]
        self._in_invalid_run = _ESCAPED_RUN.match(escaped[-1]) is not None
        return text


class TextStream:
    """The text of a growing reply, up to its first stop text.

    The stop text that is complete first ends the text (of two that end at the same character, the longer one), wherever
    token borders are. A piece is returned once it can be part of neither an incomplete character nor a stop text.

    Attributes:
        stopped_by: the stop text that ended the reply, or None.
        held: whole characters not returned yet, because they may begin a stop text.

    Raises:
        UsageError: a stop text is empty.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], stops: Sequence[str] = ()) -> None:
        if "" in stops:
            raise UsageError("a stop text must not be empty", hint="remove it")
        self.stopped_by: str | None = None
        self.held = ""
        self._token_bytes = token_bytes
        self._utf8 = Utf8Stream()
        self._stops = tuple(stops)
        self._pieces: list[str] = []
        self._ended = False

    @property
    def text(self) -> str:
        """The returned pieces, joined; after `finish` all text of the reply without the stop text."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def push(self, token: int) -> str:
        """The text that is certain after `token`; empty after a stop text or `finish`."""
        return "" if self._ended else self._take(self._utf8.push(self._token_bytes(token)))

    def finish(self) -> str:
        """The rest of the text. An incomplete character becomes U+FFFD."""
        if self._ended:
            return ""
        piece = self._take(self._utf8.push(b"", final=True))
        if self.stopped_by is None:
            piece += self._return(self.held)
        self.held, self._ended = "", True
        return piece

    def _take(self, new: str) -> str:
        window = self.held + new
        # What ends first, and of these the longest.
        if found := [(window.index(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in window]:
            end, _, self.stopped_by = min(found)
            self.held, self._ended = "", True
            return self._return(window[: end - len(self.stopped_by)])
        num_returned = len(window) - max([_num_begun(stop, window) for stop in self._stops], default=0)
        self.held = window[num_returned:]
        return self._return(window[:num_returned])

    def _return(self, piece: str) -> str:
        if piece:
            self._pieces.append(piece)
        return piece


def _num_begun(stop: str, text: str) -> int:
    """The length of the longest proper beginning of `stop` that `text` ends with."""
    length = min(len(stop) - 1, len(text))
    while length and not text.endswith(stop[:length]):
        length -= 1
    return length
