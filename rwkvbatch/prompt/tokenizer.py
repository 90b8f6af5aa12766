"""The World tokenizer: the same ids as the `rwkv` package for any text.

A model with a smaller vocabulary uses the entries with ids below its size. Ids 1 to 256 are the single bytes, so a
vocabulary of 257 can encode any text.

In no entry is an ASCII letter or digit followed by an ASCII character of another kind, so no token extends beyond the
end of a word. Text is therefore split into pieces at the ends of words, and the tokens of each piece are cached.
"""

from __future__ import annotations

import ast
import hashlib
import re
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from importlib.util import find_spec
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rwkvbatch.errors import InputError, UsageError
from rwkvbatch.files import OS_FILES, PRIVATE_MODE, read_file, replace_file
from rwkvbatch.prompt.text_stream import decode_utf8

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
    """The bytes of every token id from 0 up to the highest; empty for ids without an entry.

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
    """The entries of a vocabulary file, as `load_entries` returns them.

    Its lines have the form `ID LITERAL LENGTH`; the literal is a Python `str` or `bytes`.

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
                raise ValueError("the id is out of range or repeated")
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise InputError(
                f"not an entry of a World vocabulary: {error}", path=path, line=number, hint=hint
            ) from None
        by_id[int(token)] = entry
    if not by_id:
        raise InputError("contains no vocabulary entry", path=path, hint=hint)
    return tuple(by_id.get(token, b"") for token in range(max(by_id) + 1))


def pack(entries: tuple[bytes, ...]) -> bytes:
    """The entries in binary form: their number (4 bytes), their lengths (1 byte each), and their bytes."""
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
    return tuple([text[start:end] for start, end in pairwise(accumulate(lengths, initial=0))])


def _write_cache(cache: Path, source_hash: bytes, entries: tuple[bytes, ...]) -> None:
    packed = pack(entries)
    content = _MAGIC + source_hash + hashlib.sha256(packed).digest() + packed
    # The cache is optional, so a directory that cannot be written is not an error.
    with suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(OS_FILES, cache, [content], mode=PRIVATE_MODE, durable=False, unique=True)


MIN_VOCAB_SIZE = 257
MAX_CACHED = 2**15
"""The maximum number of entries in each token cache; a full cache is cleared."""

MAX_PIECE_BYTES = 32
"""The length up to which pieces are cached."""

_WORD_END = re.compile(rb"[A-Za-z0-9][\x00-/:-@\[-`{-\x7f]")
_PIECE = re.compile(rb"[^A-Za-z0-9]*+(?:[A-Za-z0-9]++[\x80-\xff][^A-Za-z0-9]*+)*+[A-Za-z0-9]*+")
"""Text from one word end to the next; the matches cover the whole text, and the last one is empty."""

_BLOCK_BYTES = 2**16
"""The approximate size of the blocks in which a long text is encoded: its pieces take several times its memory."""

_PREFIX_BYTES = 4
"""The length of the prefix by which entries longer than it are looked up."""


@runtime_checkable
class Tokenizer(Protocol):
    """The interface of tokenizers.

    Attributes:
        vocab_size: all ids are below this; not every id has an entry.
        name: for messages.
        sha256: a hex digest; two tokenizers have the same one only if they produce the same ids and texts.
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
            f"character {error.start + 1} of a text, U+{ord(text[error.start]):04X}, is an unpaired surrogate",
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
        self._long_lengths = _long_lengths_by_prefix(self._id_of)
        self._can_split_at_words = not _WORD_END.search(b"\xff".join(self._bytes_of))
        self._cached_pieces: dict[bytes, tuple[int, ...]] = {}
        self._cached_prefixes: dict[bytes, tuple[tuple[int, ...], int, int]] = {}

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
        if not self._can_split_at_words:
            return self._encode_bytes(data)
        ids = list[int]()
        for block in _blocks(data):
            self._encode_words(block, ids)
        return ids

    def encode_long(self, text: str) -> array[int]:
        """As `encode`, in an array (type `i`) of 4 bytes per token, and with little additional memory."""
        data, ids = refuse_surrogates(text), array("i")
        if not self._can_split_at_words:
            return array("i", self._encode_bytes(data))
        for block in _blocks(data):
            self._encode_words(block, ids)
        return ids

    def _encode_words(self, data: bytes, ids: list[int] | array[int]) -> None:
        """Append the ids of `data`, which must end at the end of a word or of the text, to `ids`."""
        id_of, cache = self._id_of, self._cached_pieces
        for piece in _PIECE.findall(data):
            piece_ids = cache.get(piece)
            if piece_ids is None:
                token = id_of.get(piece)
                piece_ids = tuple(self._encode_bytes(piece)) if token is None else (token,)
                if len(piece) <= MAX_PIECE_BYTES:
                    _store(cache, piece, piece_ids)
            ids.extend(piece_ids)

    def _encode_bytes(self, data: bytes) -> list[int]:
        """The ids of `data` by greedy longest match: every token is the longest entry that matches at its position.

        The cache holds, for each prefix of `_PREFIX_BYTES` bytes, the lengths of the longer entries that start with it,
        and the id and length of the longest entry within the prefix.
        """
        id_of, cache, ids, position = self._id_of, self._cached_prefixes, list[int](), 0
        while position < len(data):
            prefix = data[position : position + _PREFIX_BYTES]
            candidates = cache.get(prefix)
            if candidates is None:
                length = len(prefix)
                while (token := id_of.get(prefix[:length])) is None:
                    length -= 1
                candidates = self._long_lengths.get(prefix, ()), token, length
                _store(cache, prefix, candidates)
            long_lengths, token, length = candidates
            for long_length in long_lengths:
                long_token = id_of.get(data[position : position + long_length])
                if long_token is not None:
                    token, length = long_token, long_length
                    break
            ids.append(token)
            position += length
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
    """The World tokenizer of a model with `vocab_size` token ids; cached by size.

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
    """The ids of a text that may be long, in an array (type `i`) of 4 bytes per token; raises as `Tokenizer.encode`."""
    return tokenizer.encode_long(text) if isinstance(tokenizer, WorldTokenizer) else array("i", tokenizer.encode(text))


def _blocks(data: bytes) -> Iterator[bytes]:
    """`data` in blocks of about `_BLOCK_BYTES`, cut at ends of words, where a token always ends."""
    start = 0
    while start < len(data):
        word_end = _WORD_END.search(data, start + _BLOCK_BYTES)
        end = len(data) if word_end is None else word_end.start() + 1
        yield data[start:end]
        start = end


def _long_lengths_by_prefix(id_of: dict[bytes, int]) -> dict[bytes, tuple[int, ...]]:
    """The lengths of the entries longer than `_PREFIX_BYTES`, longest first, by their prefix of that size."""
    lengths_of: dict[bytes, set[int]] = {}
    for entry in id_of:
        if len(entry) > _PREFIX_BYTES:
            lengths_of.setdefault(entry[:_PREFIX_BYTES], set()).add(len(entry))
    return {prefix: tuple(sorted(lengths, reverse=True)) for prefix, lengths in lengths_of.items()}


def _store(cache: dict[bytes, Any], key: bytes, value: Any) -> None:
    if len(cache) >= MAX_CACHED:
        cache.clear()
    cache[key] = value
