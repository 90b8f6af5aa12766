"""Choice of a checkpoint's tokenizer: by `--vocab`, its metadata, a file next to it, or its number of token ids.

World checkpoints have 65,536 ids, a few of them fewer (down to 65,525). RWKV-4 Pile and Raven use the GPT-NeoX 20B
tokenizer (50,254 to 50,304 ids, with padding); its file `20B_tokenizer.json` is in the repository BlinkDL/ChatRWKV.
With the wrong vocabulary the replies look like those of a bad model, so an unknown vocabulary is an error, not a guess.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from rwkvbatch.config import IN_MEMORY
from rwkvbatch.errors import CheckpointError, InputError
from rwkvbatch.files import read_file, user_path
from rwkvbatch.prompt.bpe import BpeTokenizer
from rwkvbatch.prompt.tokenizer import Tokenizer, WorldTokenizer, parse_entries, world_tokenizer

WORLD = "world"
"""The name of the World vocabulary, limited to the model's number of ids, for `--vocab` and in metadata."""

METADATA_KEY = "vocabulary"
"""The key of a `.safetensors` file's metadata that declares the vocabulary."""

VOCAB_VARIABLE = "RWKVBATCH_VOCAB"
WORLD_SIZES = range(65_525, 65_537)
NEOX_SIZES = range(50_254, 50_305)
NEOX_FILE = "20B_tokenizer.json"
HF_FILE = "tokenizer.json"
MAX_FILE_BYTES = 256 << 20
END_OF_TEXT = 0

_VOCAB_OPTIONS = "--vocab FILE (World format, or a tokenizer.json), or --vocab world for World ids cut to its size"


class HasVocabulary(Protocol):
    """The part of `ModelSpec` that determines the vocabulary."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def path(self) -> str: ...
    @property
    def vocabulary(self) -> str | None: ...
    @property
    def vocabulary_file(self) -> str | None: ...


def tokenizer_of(model: HasVocabulary, vocab: str | None = None) -> Tokenizer:
    """The tokenizer of a model.

    Args:
        vocab: `world`, or a vocabulary file. With None, the first of these that applies: the environment variable
            `RWKVBATCH_VOCAB`, `model.vocabulary_file`, `model.vocabulary` (declared by the metadata), the number of
            ids, a tokenizer file in the checkpoint's directory. A model without a path has World ids.

    Raises:
        CheckpointError: the vocabulary of the checkpoint is unknown.
        InputError: the vocabulary file is missing, damaged or of an unsupported kind.
        UsageError: the model has too few ids for the single bytes of the World vocabulary.
    """
    size = model.vocab_size
    vocab = vocab or os.environ.get(VOCAB_VARIABLE) or model.vocabulary_file
    if vocab is not None and vocab != WORLD:
        return read_vocabulary(user_path(vocab), size)
    if vocab == WORLD or model.vocabulary == WORLD or size in WORLD_SIZES or not model.path:
        return world_tokenizer(size)
    checkpoint = Path(model.path)
    is_folder = checkpoint.is_dir()
    has_neox_file = size in NEOX_SIZES and model.path != IN_MEMORY
    names = ((NEOX_FILE,) if has_neox_file else ()) + ((HF_FILE,) if is_folder else ())
    for file in ((checkpoint if is_folder else checkpoint.parent) / name for name in names):
        if file.is_file():
            return read_vocabulary(file, size)
    if size in NEOX_SIZES:
        raise CheckpointError(
            f"has {size:,} token ids, as checkpoints of the GPT-NeoX 20B tokenizer have; {NEOX_FILE} is not next to it",
            path=checkpoint,
            hint=f"put that file of BlinkDL/ChatRWKV there, or give {_VOCAB_OPTIONS}",
        )
    raise CheckpointError(
        f"has {size:,} token ids, which is the size of no known vocabulary (World: {_range(WORLD_SIZES)}; "
        f"GPT-NeoX 20B: {_range(NEOX_SIZES)})",
        path=checkpoint,
        hint=f"give {_VOCAB_OPTIONS}",
    )


def _range(sizes: range) -> str:
    return f"{sizes[0]:,} to {sizes[-1]:,}"


def read_vocabulary(path: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer in a file: a `tokenizer.json` with byte-level BPE, or entries in the World format.

    Raises:
        InputError: the file cannot be read, is of neither format, or does not fit `vocab_size` ids.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        problem = getattr(error, "strerror", None) or error
        raise InputError(f"cannot be read: {problem}", path=path, hint=f"give {_VOCAB_OPTIONS}") from None
    return _read(path, vocab_size, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=8)
def _read(path: Path, vocab_size: int, _modified_ns: int, num_bytes: int) -> Tokenizer:
    """The tokenizer in a file; the modification time is part of the cache key, so a changed file is read again."""
    if num_bytes > MAX_FILE_BYTES:
        raise InputError(f"is larger than {MAX_FILE_BYTES:,} bytes, the most of a vocabulary", path=path)
    if not path.is_file():
        raise InputError("is not a file", path=path, hint=f"give {_VOCAB_OPTIONS}")
    try:
        content = read_file(path, MAX_FILE_BYTES)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=path) from None
    if content.lstrip()[:1] == b"{":
        return BpeTokenizer(content, vocab_size, path)
    entries = parse_entries(content, path, "a vocabulary file is in the World format or a tokenizer.json")
    known = set(entries[:vocab_size])
    missing = [byte for byte in range(256) if bytes([byte]) not in known]
    if missing:
        raise InputError(
            f"below id {vocab_size:,} {len(missing)} of the 256 single bytes have no entry, such as 0x{missing[0]:02x}",
            path=path,
            hint="text with such a byte could not be encoded: is it the vocabulary of this model?",
        )
    return WorldTokenizer(entries, vocab_size, name=f"World format, {path.name}")


@lru_cache(maxsize=16)
def textless_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids without an entry in the vocabulary, except end of text (0): rows of the model that are padding."""
    return frozenset(
        token for token in range(tokenizer.vocab_size) if token != END_OF_TEXT and not tokenizer.token_bytes(token)
    )


def shown_ids(ids: Sequence[int] | frozenset[int], most: int = 6) -> str:
    """Ids for a message, consecutive ones as ranges; after `most` ranges, only the total follows.

    >>> shown_ids([5, 7, 8, 9])
    '5, 7 to 9'
    """
    ordered = sorted(ids)
    starts = [index for index, (left, right) in enumerate(pairwise(ordered), start=1) if right != left + 1]
    runs = [ordered[start:end] for start, end in pairwise([0, *starts, len(ordered)])] if ordered else []
    ranges = [f"{run[0]}" if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return ", ".join(ranges[:most]) + (f" and {len(ordered):,} in all" if len(ranges) > most else "")
