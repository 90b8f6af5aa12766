"""Requests and results of the engine, as plain values without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from rwkvbatch.arguments import (
    FUNCTION,
    NON_EMPTY_TEXT,
    NUMBER,
    TEXT,
    check_argument,
    instance_of,
    list_of,
    optional,
    whole_number,
)
from rwkvbatch.config import ReplySettings, Sampling
from rwkvbatch.errors import counted, listed, shortened

if TYPE_CHECKING:
    from rwkvbatch.prompt.segments import PromptTemplate
    from rwkvbatch.prompt.tokenizer import Tokenizer

FinishReason = Literal["stop", "eos", "length", "time", "cancelled", "error"]

END_OF_TEXT = 0
"""Token 0 of every RWKV vocabulary."""


@dataclass(frozen=True)
class NoiseKey:
    """A reply's position in a run: the key of its random numbers.

    The grid cell is not part of it: all cells use common random numbers, so that noise does not hide their difference.
    """

    seed: int = 0
    conversation: str = ""
    repeat: int = 0
    turn: int = 0

    @property
    def philox_key(self) -> int:
        """64 bits of BLAKE2b over (seed, conversation, repeat); the turn goes into the counter."""
        text = f"{self.seed}\x1f{self.repeat}\x1f{self.conversation}".encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(text, digest_size=8, person=b"rwkvbatch").digest(), "little")


_REQUEST_KINDS = {
    "sampling": instance_of(Sampling, "Sampling"),
    "logit_bias": instance_of(Mapping, "a mapping of token ids to numbers"),
    "noise": instance_of(NoiseKey, "a NoiseKey"),
    "max_tokens": whole_number(1),
    "max_seconds": optional(NUMBER),
    "stop": list_of(NON_EMPTY_TEXT, "a tuple of texts that are not empty"),
    "closing": TEXT,
    "root": whole_number(),
    "num_top": optional(whole_number(0)),
    "on_text": optional(FUNCTION),
    "on_details": optional(FUNCTION),
}


@dataclass(frozen=True)
class Request:
    """One reply to generate. Arguments of other kinds than those below raise `ArgumentError`.

    Attributes:
        tokens: all tokens between `root` and the reply: history and prompt. The engine uses the longest cached prefix.
        sampling: how tokens are chosen.
        logit_bias: by token id, a number that is added to its logit before each choice.
        noise: the key of the random numbers.
        max_tokens: the most tokens of the reply.
        max_seconds: the reply ends at the first step that begins this many seconds after its first step.
        stop: texts that end the reply; not part of `Reply.text`.
        closing: the text that closes a turn (the template's blank line); added to `Reply.history` unless the reply ends
            with it.
        root: what the tokens follow: an initial state (`Engine.add_root`) or a pinned prefix (`Engine.pin_prefix`).
        messages: the dialogue that `tokens` encode, for served models, which apply their own template.
        num_top: number of likeliest tokens per position in `Reply.details`; None for no details.
        on_text: called with each new piece of text, as soon as it cannot belong to a stop text or an incomplete
            character.
        on_details: called with the details of each token, before `on_text` with the text that it completes; needs
            `num_top`.
    """

    tokens: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    noise: NoiseKey = field(default_factory=NoiseKey)
    max_tokens: int = 256
    max_seconds: float | None = None
    stop: tuple[str, ...] = ("\n\n",)
    closing: str = "\n\n"
    root: int = 0
    messages: tuple[Mapping[str, str], ...] = field(default=(), compare=False)
    num_top: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float], hash=False)
    on_text: Callable[[str], None] | None = field(default=None, compare=False)
    on_details: Callable[[TokenDetails], None] | None = field(default=None, compare=False)

    @classmethod
    def reply(
        cls,
        tokens: tuple[int, ...],
        settings: ReplySettings,
        noise: NoiseKey,
        template: PromptTemplate | None,
        *,
        root: int = 0,
        messages: tuple[Mapping[str, str], ...] = (),
    ) -> Request:
        """A reply with `settings`, ended by their stop texts and the template's.

        Args:
            template: the template of the prompt; None for a prompt without one.
            messages: the dialogue, for a server that applies its own template, which then also ends the reply.
        """
        return cls(
            tokens=tokens,
            sampling=settings.sampling,
            noise=noise,
            max_tokens=settings.max_tokens,
            max_seconds=settings.max_seconds,
            stop=settings.stop if messages or template is None else (*template.stops, *settings.stop),
            closing="" if template is None else template.closing,
            root=root,
            messages=messages,
        )

    def __post_init__(self) -> None:
        for name, kind in _REQUEST_KINDS.items():
            check_argument(name, getattr(self, name), kind)

    def __repr__(self) -> str:
        changed = [
            f"{name}={value!r}"
            for name in _SHOWN_IF_CHANGED
            if (value := getattr(self, name)) != getattr(_DEFAULT_REQUEST, name)
        ]
        return f"Request({', '.join([f'tokens={_shown_ids(self.tokens)}', *changed])})"


_DEFAULT_REQUEST = Request(())
_SHOWN_IF_CHANGED = (
    "sampling",
    "noise",
    "max_tokens",
    "max_seconds",
    "stop",
    "closing",
    "root",
    "num_top",
    "logit_bias",
)


def _shown_ids(ids: Sequence[int]) -> str:
    return f"<{len(ids)}: {listed(ids, 6)}>"


@dataclass(frozen=True)
class ReplyTiming:
    """Seconds. `queued_s` from submission to the first prompt row, `prefill_s` from there to the first logits,
    `first_token_s` from submission to the first token, `total_s` from submission to the end."""

    queued_s: float
    prefill_s: float
    first_token_s: float
    total_s: float


@dataclass(frozen=True)
class TokenDetails:
    """The token at one position and its alternatives, under the model's own distribution.

    Attributes:
        token: the token id; may be end of text (0).
        logprob: natural-log probability of the token.
        top: the likeliest tokens and their log-probabilities, likeliest first, equal ones by id.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Reply:
    """A finished reply.

    Attributes:
        text: decoded, without the stop text, not stripped.
        ids: the reply's tokens, those of the stop text included, end of text (0) excluded.
        history: the tokens that the next turn's prompt follows, after the same root: the request's tokens, the reply's
            and the closing text. A stop text other than `closing`, and the line ends before it, are left out.
        finish_reason: `stop` (a stop text), `eos` (token 0), `length`, `time`, `cancelled` (by `Engine.cancel`) or
            `error`.
        stopped_by: the stop text, when `finish_reason` is `stop`.
        logprobs: natural-log probability of each of `ids` under the model's own distribution.
        num_prompt: number of tokens before the reply, from the initial state on.
        num_cached: how many of them were cached.
        error: what went wrong, when `finish_reason` is `error`.
        details: one for each sampled token, including token 0 of `eos`; empty if `Request.num_top` is None.
    """

    text: str
    ids: tuple[int, ...]
    history: tuple[int, ...]
    finish_reason: FinishReason
    stopped_by: str | None
    logprobs: tuple[float, ...]
    num_prompt: int
    num_cached: int
    timing: ReplyTiming
    error: str | None = None
    details: tuple[TokenDetails, ...] = ()

    def __repr__(self) -> str:
        text = shortened(self.text)
        end = f"{self.finish_reason} {self.stopped_by!r}" if self.stopped_by is not None else self.finish_reason
        return (
            f"<Reply {text!r}: {counted(len(self.ids), 'token')}, ended by {end}, "
            f"after {counted(self.num_prompt, 'token')} ({self.num_cached} cached)"
            f"{f', error {self.error!r}' if self.error else ''}>"
        )


@dataclass(frozen=True)
class Score:
    """Log-probabilities of a given text.

    Attributes:
        logprobs: natural log, one for each token of the continuation; an array of fp32, as documents are long.
        num_matched: number of tokens that were the likeliest at their position.
        unavailable: why a served model returns no log-probabilities for any text.
        error: why there are none for this text.
        details: one for each token; empty unless `Engine.submit_score` was asked for them.
    """

    logprobs: Sequence[float]
    num_matched: int
    unavailable: str | None = field(default=None, kw_only=True)
    error: str | None = field(default=None, kw_only=True)
    details: tuple[TokenDetails, ...] = field(default=(), kw_only=True)

    def __repr__(self) -> str:
        return f"<Score of {counted(len(self.logprobs), 'token')}: nll {self.nll:.4f}, {self.num_matched} matched>"

    @property
    def nll(self) -> float:
        """Mean negative log-probability per token, in nats."""
        return -sum(self.logprobs) / len(self.logprobs) + 0.0  # not -0.0, for the nll of certain tokens


@dataclass
class EngineStats:
    """Counts since construction.

    `num_prompt_read` and `num_prompt_cached` add up to the prompts' tokens. What a server reads again is unknown.
    """

    num_steps: int = 0
    num_rows: int = 0
    num_prompt_read: int = 0
    num_prompt_cached: int = 0
    num_generated: int = 0
    num_halvings: int = 0


LONG_TEXT_TOKENS = 4096
"""Length from which a text's reading progress is reported as part of a run's progress."""


@dataclass(frozen=True)
class PrefillProgress:
    """The progress of reading the long prompts and texts of active requests.

    Attributes:
        num_texts: number of texts of at least `LONG_TEXT_TOKENS`.
        num_read: number of their tokens that have been read.
        num_tokens: number of all their tokens.
    """

    num_texts: int = 0
    num_read: int = 0
    num_tokens: int = 0

    def __add__(self, other: PrefillProgress) -> PrefillProgress:
        return PrefillProgress(
            self.num_texts + other.num_texts, self.num_read + other.num_read, self.num_tokens + other.num_tokens
        )

    @property
    def share_of_texts(self) -> float:
        """`num_texts` times the share of their tokens that has been read."""
        return self.num_texts * self.num_read / self.num_tokens if self.num_tokens else 0.0


NO_PREFILL = PrefillProgress()


def closed_history(
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    reply: Sequence[int],
    finish_reason: FinishReason,
    stopped_by: str | None,
    closing: str,
) -> tuple[int, ...]:
    """The tokens that the next turn's prompt follows.

    Args:
        prompt: all tokens before the reply.
        reply: the reply's tokens, without end of text.
        stopped_by: the stop text, when `finish_reason` is `stop`.
        closing: the text that closes a turn.

    Returns:
        `prompt` + `reply` if the reply ended with `closing`. Otherwise another stop text, with the line ends before it,
        is removed, and `closing` is added.
    """
    if finish_reason == "stop" and stopped_by == closing:
        return (*prompt, *reply)
    kept = tuple(reply)
    if finish_reason == "stop" and stopped_by:
        kept = _before_stop(tokenizer, kept, stopped_by)
    elif closing and tokenizer.decode_bytes(kept).endswith(closing.encode()):
        return (*prompt, *kept)
    return (*prompt, *kept, *tokenizer.encode(closing))


def _before_stop(tokenizer: Tokenizer, reply: tuple[int, ...], stopped_by: str) -> tuple[int, ...]:
    """The reply's tokens up to the stop text; a token that overlaps it is replaced by those of its remaining text."""
    text = tokenizer.decode_bytes(reply)
    text = text[: text.find(stopped_by.encode())].rstrip(b"\n")
    num_kept, num_bytes = 0, 0
    for token in reply:
        size = len(tokenizer.token_bytes(token))
        if num_bytes + size > len(text):
            break
        num_kept, num_bytes = num_kept + 1, num_bytes + size
    remainder = text[num_bytes:].decode("utf-8", errors="ignore")
    return (*reply[:num_kept], *tokenizer.encode(remainder))
