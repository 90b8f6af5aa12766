"""Makes the JSON objects of OpenAI's two interfaces from the engine's replies and scores.

Field names: OpenAI's API reference, "The chat completion object", "The chat completion chunk object" and "The
completion object". A token that does not consist of whole characters has a name such as `bytes:\\xe2\\x80`, as in
OpenAI's completions.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rwkvbatch.engine.request import END_OF_TEXT, FinishReason, Reply, TokenDetails
from rwkvbatch.prompt.text_stream import Utf8Stream
from rwkvbatch.prompt.tokenizer import Tokenizer

END_OF_TEXT_NAME = "<|endoftext|>"
"""The name of token 0 for clients; the token has no text."""

_names = random.Random()
"""Generator of response ids. These are not secret, and the system's generator would need a system call for each."""

_REASONS: dict[FinishReason, str] = {"stop": "stop", "eos": "stop", "length": "length", "time": "length"}


def finish_reason(reply: Reply) -> str:
    """OpenAI's finish reason, which is `length` also for a reply that `max_seconds` ended."""
    return _REASONS.get(reply.finish_reason, "stop")


@dataclass(frozen=True)
class Head:
    """The first fields of every object of one response.

    Attributes:
        kind: `chat.completion`, `chat.completion.chunk` or `text_completion`.
        fingerprint: identifies the weights, the backend and the program's version.
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
    """Token counts. A prompt counts once, even with several replies; the end of text is not counted in a reply."""
    all_replies = list(replies)
    num_reply = sum(len(reply.ids) for reply in all_replies)
    cached = min((reply.num_cached for reply in all_replies), default=0)
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
                    **self._entry(token_details.token, token_details.logprob),
                    "top_logprobs": [self._entry(token, logprob) for token, logprob in token_details.top],
                }
                for token_details in details
            ],
            "refusal": None,
        }

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self.name(token), "logprob": logprob, "bytes": list(self.data(token))}

    def completion_logprobs(self, details: Sequence[TokenDetails | int], offsets: TextOffsets) -> dict[str, Any]:
        """`logprobs` of a completion choice.

        Args:
            details: the details of each token; an id for a token without a probability, because it is the first one.
            offsets: counts the text offsets; has counted those of all earlier tokens.
        """
        tokens = [item if isinstance(item, int) else item.token for item in details]
        return {
            "tokens": [self.name(token) for token in tokens],
            "token_logprobs": [None if isinstance(item, int) else item.logprob for item in details],
            "top_logprobs": [None if isinstance(item, int) else self._top(item) for item in details],
            "text_offset": [offsets.take(token) for token in tokens],
        }

    def _top(self, details: TokenDetails) -> dict[str, float]:
        """By name, the log-probabilities of the likeliest tokens and of the token itself.

        If two tokens have the same name, that of the likelier one is given.
        """
        logprobs: dict[str, float] = {}
        for token, logprob in (*details.top, (details.token, details.logprob)):
            logprobs.setdefault(self.name(token), logprob)
        return logprobs


class TextOffsets:
    """Counts the offsets of a completion's tokens, in characters of its text."""

    def __init__(self, names: TokenNames) -> None:
        self._names = names
        self._text = Utf8Stream()
        self._offset = 0

    def take(self, token: int) -> int:
        """The offset of the next token. A character counts to the token that has its last byte."""
        offset = self._offset
        self._offset += len(self._text.push(self._names.data(token)))
        return offset
