"""The JSON objects of OpenAI's two interfaces, made of the engine's replies and scores.

Field names: OpenAI's API reference, "The chat completion object", "The chat completion chunk object" and "The
completion object". A token that is not whole characters is named `bytes:\\xe2\\x80`, as in OpenAI's completions.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rwkvbatch.engine.request import END_OF_TEXT, FinishReason, Reply, TokenDetails
from rwkvbatch.prompt.tokenizer import Tokenizer, Utf8Stream

END_OF_TEXT_NAME = "<|endoftext|>"
"""How token 0 is named to clients; it has no text."""

_names = random.Random()
"""Names of responses. They are no secrets, and the system's generator takes a call of the system for each."""

_REASONS: dict[FinishReason, str] = {"stop": "stop", "eos": "stop", "length": "length", "time": "length"}


def finish_reason(reply: Reply) -> str:
    """OpenAI's word: a reply that `max_seconds` ended is `length` too."""
    return _REASONS.get(reply.finish_reason, "stop")


@dataclass(frozen=True)
class Head:
    """What every object of one response begins with.

    Attributes:
        kind: `chat.completion`, `chat.completion.chunk` or `text_completion`.
        fingerprint: of the weights, their backend and the program's version.
    """

    kind: str
    model: str
    fingerprint: str
    id: str
    created: int

    @classmethod
    def of(cls, kind: str, model: str, fingerprint: str) -> Head:
        prefix = "cmpl" if kind == "text_completion" else "chatcmpl"
        return cls(kind, model, fingerprint, f"{prefix}-{_names.getrandbits(128):032x}", int(time.time()))

    def object(self, choices: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": self.kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": list(choices),
            **more,
        }


def usage(num_prompt: int, replies: Iterable[Reply]) -> dict[str, Any]:
    """Token counts. Prompts count once, however many replies there are; end of text is no token of a reply."""
    listed = list(replies)
    num_reply = sum(len(reply.ids) for reply in listed)
    cached = min((reply.num_cached for reply in listed), default=0)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_reply,
        "total_tokens": num_prompt + num_reply,
        "prompt_tokens_details": {"cached_tokens": min(cached, num_prompt)},
    }


class TokenNames:
    """Names of tokens for clients."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def data(self, token: int) -> bytes:
        return self._tokenizer.token_bytes(token)

    def name(self, token: int) -> str:
        """The token's text, `<|endoftext|>` or `bytes:\\xNN`."""
        if token == END_OF_TEXT:
            return END_OF_TEXT_NAME
        data = self.data(token)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def chat_logprobs(self, details: Iterable[TokenDetails]) -> dict[str, Any]:
        """`logprobs` of a chat choice."""
        return {
            "content": [
                {
                    **self._entry(each.token, each.logprob),
                    "top_logprobs": [self._entry(token, logprob) for token, logprob in each.top],
                }
                for each in details
            ],
            "refusal": None,
        }

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self.name(token), "logprob": logprob, "bytes": list(self.data(token))}

    def completion_logprobs(self, details: Sequence[TokenDetails | int], offsets: TextOffsets) -> dict[str, Any]:
        """`logprobs` of a completion choice.

        Args:
            details: of each token; a number is a token whose probability is unknown, since nothing is before it.
            offsets: of the text before these tokens; counts theirs.
        """
        tokens = [each if isinstance(each, int) else each.token for each in details]
        return {
            "tokens": [self.name(token) for token in tokens],
            "token_logprobs": [None if isinstance(each, int) else each.logprob for each in details],
            "top_logprobs": [None if isinstance(each, int) else self._top(each) for each in details],
            "text_offset": [offsets.take(token) for token in tokens],
        }

    def _top(self, each: TokenDetails) -> dict[str, float]:
        """The likeliest tokens by name, and the token itself. Of two tokens of the same name the likelier one stays."""
        found: dict[str, float] = {}
        for token, logprob in (*each.top, (each.token, each.logprob)):
            found.setdefault(self.name(token), logprob)
        return found


class TextOffsets:
    """Where the tokens of a completion begin, in characters of its text."""

    def __init__(self, names: TokenNames) -> None:
        self._names = names
        self._text = Utf8Stream()
        self._offset = 0

    def take(self, token: int) -> int:
        """The offset of the next token. A character counts where its last byte is."""
        offset = self._offset
        self._offset += len(self._text.push(self._names.data(token)))
        return offset
