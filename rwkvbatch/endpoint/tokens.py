"""The tokens of a server's answer as tokens of the vocabulary here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from rwkvbatch.endpoint.protocol import REPLACEMENT, ServedToken
from rwkvbatch.errors import EndpointError
from rwkvbatch.prompt.tokenizer import Tokenizer


class TokenReader:
    """Finds the ids of served tokens, and the tokens of a part of a text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def by_ids(self, tokens: Sequence[ServedToken], text: str) -> Sequence[ServedToken]:
        """The tokens with the text that their ids have here, where the server gives ids and those make the reply.

        While it holds back what may become a stop text or a character, llama.cpp's server names with each token the
        text that it sends, none at first and all of it with a later token (`text_to_send` in its `server-context.cpp`).
        """
        ids = [token.id for token in tokens if token.id is not None and 0 <= token.id < self._tokenizer.vocab_size]
        if len(ids) < len(tokens) or not self._tokenizer.decode_bytes(ids).startswith(text.encode()):
            return tokens
        return [
            replace(token, text=data.decode("utf-8", "replace"), data=data)
            for token, data in zip(tokens, map(self._tokenizer.token_bytes, ids), strict=True)
        ]

    def ids(self, text: str, stop: str | None, tokens: Sequence[ServedToken]) -> tuple[int, ...]:
        """The reply's ids: the server's, where they are of this vocabulary and make the text; else the text's own."""
        whole = text + (stop or "")
        named = [self._id_of(token) for token in tokens]
        found = tuple(token for token in named if token is not None)
        if len(found) == len(named) and self._tokenizer.decode_bytes(found) == whole.encode():
            return found
        return tuple(self._tokenizer.encode(whole))

    def _id_of(self, token: ServedToken) -> int | None:
        """A token's id: as the server gives it, or by its text."""
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
        """The tokens of the continuation among those of the whole text and the one after it."""
        before, text = self._tokenizer.decode_bytes(prefix), self._tokenizer.decode_bytes(continuation)
        if by_ids:
            start, stop = len(prefix), len(prefix) + len(continuation)
            if not stop <= len(tokens) <= stop + 1:
                raise EndpointError(f"the server counts {len(tokens)} tokens where {stop} ids and one were sent")
        else:
            places = {0: 0, **{end: place + 1 for place, end in enumerate(_ends(tokens, before + text))}}
            if len(before) not in places or len(before) + len(text) not in places:
                raise EndpointError(
                    "no token of the server begins where the scored text does: use --endpoint-api completions-ids, "
                    "if its model has the same vocabulary"
                )
            start, stop = places[len(before)], places[len(before) + len(text)]
        found = tokens[start:stop]
        shown = [token.known_bytes for token in found]
        if b"".join(data for data in shown if data is not None) != text and None not in shown:
            raise EndpointError(
                "the server's tokens are not those of the scored text: has its model another vocabulary?"
            )
        return found


def within(tokens: Sequence[ServedToken], text: str) -> Sequence[ServedToken]:
    """The tokens of a text at their beginning: without end of text, and what a stop text cut off."""
    return tokens[: len(_ends(tokens, text.encode("utf-8", "replace")))]


def _ends(tokens: Sequence[ServedToken], data: bytes) -> list[int]:
    """Where in `data` its tokens end; -1 inside a character of whose parts the server does not say the bytes.

    Such a character ends where the next token is found. It has at least one byte for each of its tokens.
    """
    ends: list[int] = []
    place = unknown = 0
    for token in tokens:
        if place + unknown >= len(data):
            break
        known = token.known_bytes
        if known is None:
            unknown += 1
            ends.append(-1)
            continue
        if unknown:
            found = data.find(known, place + unknown)
            if found < 0:
                break
            ends[-1] = place = found
            unknown = 0
        place += len(known)
        ends.append(place)
    if unknown:
        ends[-1] = len(data)
    return ends


def stop_among(tokens: Sequence[ServedToken], text: str, stops: Sequence[str]) -> str | None:
    """The stop text that the tokens hold after the reply's text, where the server lists the tokens of it."""
    held = b"".join(token.text.encode("utf-8", "replace") if token.data is None else token.data for token in tokens)
    if not held.startswith(text.encode()):
        return None
    rest = held[len(text.encode()) :]
    return max((stop for stop in stops if rest.startswith(stop.encode())), key=len, default=None)
