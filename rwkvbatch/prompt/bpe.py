"""Byte-level BPE tokenizers from a `tokenizer.json`, such as GPT-NeoX 20B's, with the `tokenizers` package.

Each token stands for whole bytes, which the file writes as printable characters with GPT-2's table ("Language Models
are Unsupervised Multitask Learners", 2019, and its `encoder.py`). The bytes of one character may be spread over several
tokens, so decoding joins the bytes first, as for World tokens. The names of special tokens in a text are encoded as
ordinary text, so that no script or user can write the end of the text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from rwkvbatch.errors import InputError, MissingExtraError, error_text, parsing_problem
from rwkvbatch.prompt.text_stream import decode_utf8
from rwkvbatch.prompt.tokenizer import refuse_surrogates

END_OF_TEXT = 0


class BpeTokenizer:
    """The tokenizer of a `tokenizer.json`, for a model with `vocab_size` ids.

    Args:
        content: the content of the file.
        vocab_size: the model's number of ids; ids that the file does not have decode to nothing.
        path: the file's path, for errors.

    Raises:
        InputError: not a byte-level BPE tokenizer, an id that the model does not have, or id 0 is no special token.
        MissingExtraError: the `tokenizers` package is not installed.
    """

    def __init__(self, content: bytes, vocab_size: int, path: Path) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise MissingExtraError(f"{path} needs the `tokenizers` package", extra="tokenizers") from None
        self.name = path.name
        self.vocab_size = vocab_size
        self.sha256 = hashlib.sha256(content).hexdigest()
        description = _parsed(content, path)
        _refuse_other_kinds(description, path)
        try:
            self._tokenizer: Any = Tokenizer.from_str(content.decode("utf-8"))
        except Exception as error:  # the package raises plain `Exception`
            raise InputError(f"is not a tokenizer: {error_text(error)}", path=path) from None
        self._tokenizer.encode_special_tokens = True
        added = {int(item["id"]): item for item in description.get("added_tokens", ())}
        self._bytes_of = _bytes_of_tokens(self._tokenizer.get_vocab(with_added_tokens=True), added, path)
        last = max(self._bytes_of, default=-1)
        if last >= vocab_size:
            raise InputError(
                f"has ids up to {last:,}, and the model only {vocab_size:,} of them",
                path=path,
                hint="is it the vocabulary of this model?",
            )
        if not added.get(END_OF_TEXT, {}).get("special"):
            text = decode_utf8(self._bytes_of.get(END_OF_TEXT, b""))
            raise InputError(
                f"id 0 must be a special token that ends the text, it is {text!r}",
                path=path,
                hint="replies end at id 0 here; a model that ends them otherwise cannot be used",
            )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {self.vocab_size} ids>"

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; raises `InputError` for a lone surrogate, which has no bytes."""
        refuse_surrogates(text)
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`; each run of invalid UTF-8 becomes one U+FFFD."""
        return decode_utf8(self.decode_bytes(tokens))

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """Bytes of `tokens`; empty for ids without an entry, and for 0 (end of text)."""
        return b"".join(map(self.token_bytes, tokens))

    def token_bytes(self, token: int) -> bytes:
        """Bytes of one token; empty for 0 (end of text) and ids without an entry."""
        return b"" if token == END_OF_TEXT else self._bytes_of.get(token, b"")


def _parsed(content: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON: {parsing_problem(error)}", path=path) from None
    if not isinstance(value, dict):
        raise InputError("is not a tokenizer.json: not a JSON object", path=path)
    return cast("dict[str, Any]", value)


def _refuse_other_kinds(description: dict[str, Any], path: Path) -> None:
    model = description.get("model")
    kind = str(cast("dict[str, Any]", model).get("type", "BPE")) if isinstance(model, dict) else "no model"
    if kind != "BPE" or "ByteLevel" not in _types(description.get("decoder")):
        parts = ", ".join(_types(description.get("decoder"))) or "none"
        raise InputError(
            f"is not byte-level BPE, the only kind that is read: its model is {kind[:40]}, its decoder {parts[:80]}",
            path=path,
            hint="give the tokenizer.json of a byte-level BPE model, or a file in the World format",
        )


def _types(part: Any) -> Iterator[str] | list[str]:
    """The types of a decoder and of the decoders in it."""
    if not isinstance(part, dict):
        return []
    values = cast("dict[str, Any]", part)
    nested_types = [name for decoder in values.get("decoders", ()) for name in _types(decoder)]
    return [str(values.get("type", "")), *nested_types]


def _bytes_of_tokens(vocabulary: dict[str, int], added: dict[int, Any], path: Path) -> dict[int, bytes]:
    """The bytes of every token by its id; the text of added tokens is plain, that of others in GPT-2's table."""
    byte_of = _byte_of_character()
    bytes_of: dict[int, bytes] = {}
    for text, token in vocabulary.items():
        if token in added:
            bytes_of[token] = text.encode("utf-8")
            continue
        try:
            bytes_of[token] = bytes([byte_of[character] for character in text])
        except KeyError:
            raise InputError(
                f"the token {text[:40]!r} (id {token}) is not written in bytes, as byte-level BPE has it", path=path
            ) from None
    return bytes_of


def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: printable Latin-1 characters stand for their own byte, those from U+0100 up for the others."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}
