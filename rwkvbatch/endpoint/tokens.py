"""Maps the tokens of a server's answer to tokens of the local vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from rwkvbatch.endpoint.protocol import END_OF_TEXT_NAMES, REPLACEMENT, ServedToken
from rwkvbatch.engine.request import END_OF_TEXT
from rwkvbatch.errors import EndpointError
from rwkvbatch.prompt.tokenizer import Tokenizer


class TokenReader:
    """Finds the ids of served tokens, and the tokens of a part of a text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def by_ids(self, tokens: Sequence[ServedToken], text: str) -> Sequence[ServedToken]:
        """The tokens with the local texts of their ids, if the server gives ids and these make the reply.

        The texts that llama.cpp's server gives are not always those of the tokens. While it holds back text that may
        become a stop text or a character, its tokens have no text, and a later token has all of it (`text_to_send` in
        its `server-context.cpp`).
        """
        ids = [token.id for token in tokens if token.id is not None and 0 <= token.id < self._tokenizer.vocab_size]
        if len(ids) < len(tokens) or not self._tokenizer.decode_bytes(ids).startswith(text.encode()):
            return tokens
        return [
            replace(token, text=data.decode("utf-8", "replace"), data=data)
            for token, data in zip(tokens, map(self._tokenizer.token_bytes, ids), strict=True)
        ]

    def ids(self, text: str, stop: str | None, tokens: Sequence[ServedToken]) -> tuple[int, ...]:
        """The reply's ids: those of the server's tokens if they make the text, otherwise those of the encoded text."""
        complete_text = text + (stop or "")
        token_ids = [self._id_of(token) for token in tokens]
        known_ids = tuple(token_id for token_id in token_ids if token_id is not None)
        if len(known_ids) == len(token_ids) and self._tokenizer.decode_bytes(known_ids) == complete_text.encode():
            return known_ids
        return tuple(self._tokenizer.encode(complete_text))

    def _id_of(self, token: ServedToken) -> int | None:
        """A token's id, from the server or by its bytes or text; None if it is not in the vocabulary."""
        if token.id is not None:
            return token.id if 0 < token.id < self._tokenizer.vocab_size else None
        if token.data is not None:
            return self._id_of_bytes.get(token.data) if token.data else None
        if REPLACEMENT in token.text:
            return None
        ids = self._tokenizer.encode(token.text)
        return ids[0] if len(ids) == 1 else None

    @cached_property
    def _id_of_bytes(self) -> dict[bytes, int]:
        return {self._tokenizer.token_bytes(token): token for token in range(1, self._tokenizer.vocab_size)}

    def continued(
        self, tokens: Sequence[ServedToken], prefix: Sequence[int], continuation: Sequence[int], *, by_ids: bool
    ) -> Sequence[ServedToken]:
        """The tokens of the continuation, among the server's tokens of prefix, continuation and one more token.

        Raises:
            EndpointError: the server's tokens do not have a border between prefix and continuation, or are others.
        """
        prefix_bytes, text = self._tokenizer.decode_bytes(prefix), self._tokenizer.decode_bytes(continuation)
        if by_ids:
            start, stop = len(prefix), len(prefix) + len(continuation)
            if not stop <= len(tokens) <= stop + 1:
                raise EndpointError(f"the server counts {len(tokens)} tokens where {stop} ids and one were sent")
        else:
            ends = _ends(tokens, prefix_bytes + text)
            num_tokens_to = {0: 0, **{end: number for number, end in enumerate(ends, start=1)}}
            text_end = len(prefix_bytes) + len(text)
            if len(prefix_bytes) not in num_tokens_to or text_end not in num_tokens_to:
                raise EndpointError(
                    "no token of the server begins where the scored text does: use --endpoint-api completions-ids, "
                    "if its model has the same vocabulary"
                )
            start, stop = num_tokens_to[len(prefix_bytes)], num_tokens_to[text_end]
        scored = tokens[start:stop]
        token_bytes = [token.known_bytes for token in scored]
        if b"".join(data for data in token_bytes if data is not None) != text and None not in token_bytes:
            raise EndpointError(
                "the server's tokens are not those of the scored text: has its model another vocabulary?"
            )
        return scored


def within(tokens: Sequence[ServedToken], text: str) -> Sequence[ServedToken]:
    """The first tokens that make `text`: without the end of text, and without text that a stop text cut off."""
    return tokens[: len(_ends(tokens, text.encode("utf-8", "replace")))]


def _ends(tokens: Sequence[ServedToken], data: bytes) -> list[int]:
    """The offsets in `data` at which its tokens end; -1 for a token within a character whose bytes are unknown.

    A server may give parts of a character without their bytes. Such a character has at least one byte for each of its
    tokens, and ends where the next token is found.
    """
    ends: list[int] = []
    end = num_unknown = 0
    for token in tokens:
        if end + num_unknown >= len(data):
            break
        token_bytes = token.known_bytes
        if token_bytes is None:
            num_unknown += 1
            ends.append(-1)
            continue
        if num_unknown:
            start = data.find(token_bytes, end + num_unknown)
            if start < 0:
                break
            ends[-1] = end = start
            num_unknown = 0
        end += len(token_bytes)
        ends.append(end)
    if num_unknown:
        ends[-1] = len(data)
    return ends


def stop_among(tokens: Sequence[ServedToken], text: str, stops: Sequence[str]) -> str | None:
    """The stop text that the tokens have after the reply's text; None if the server does not list its tokens."""
    data = b"".join(token.text.encode("utf-8", "replace") if token.data is None else token.data for token in tokens)
    if not data.startswith(text.encode()):
        return None
    after_text = data[len(text.encode()) :]
    return max((stop for stop in stops if after_text.startswith(stop.encode())), key=len, default=None)


def ends_with_end_of_text(tokens: Sequence[ServedToken]) -> bool:
    """Whether the last token of an answer is token 0: by its id, or, without one, by its name and no bytes.

    A token without a name and bytes is one whose text the server holds back.
    """
    if not tokens:
        return False
    last = tokens[-1]
    return last.id == END_OF_TEXT if last.id is not None else last.text in END_OF_TEXT_NAMES and not last.data
