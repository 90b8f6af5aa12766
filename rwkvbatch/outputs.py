"""Results of `LLM`: the replies to a prompt, and scores of continuations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rwkvbatch.engine.request import FinishReason, Reply, ReplyTiming, Score
from rwkvbatch.errors import NonFiniteLogitsError, counted, shortened
from rwkvbatch.prepared import PreparedPrompt


@dataclass(frozen=True)
class CompletionOutput:
    """One reply.

    Attributes:
        index: its repetition index, from 0 to n - 1.
        text: the text without the stop text. `chat` strips it, and prepends the part of the reply (such as the
            beginning of the thinking) that was in the prompt.
        token_ids: the tokens, including those of the stop text, without end of text (0).
        finish_reason: `stop` (a stop text), `eos` (token 0), `length` (max_tokens) or `time` (max_seconds).
        stopped_by: the stop text, if `finish_reason` is `stop`.
        logprobs: natural-log probability of each of `token_ids` under the model's own distribution.
        top_logprobs: for each of `token_ids`, the likeliest tokens at its position with their log-probabilities,
            likeliest first; empty unless they were asked for. A sampled token may be none of them.
        num_cached_tokens: number of prompt tokens whose state came from the cache.
        timing: durations in seconds.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stopped_by: str | None
    logprobs: tuple[float, ...]
    top_logprobs: tuple[Mapping[int, float], ...]
    num_cached_tokens: int
    timing: ReplyTiming

    @property
    def cumulative_logprob(self) -> float:
        """Sum of `logprobs`, in nats."""
        return math.fsum(self.logprobs)

    def __repr__(self) -> str:
        tokens = counted(len(self.token_ids), "token")
        return f"<CompletionOutput {shortened(self.text)!r}: {tokens}, {self.finish_reason}>"


@dataclass(frozen=True)
class RequestOutput:
    """The replies to one prompt.

    Attributes:
        prompt: the text of the prompt; None for a prompt of token ids.
        prompt_token_ids: its tokens, without those before an initial state.
        outputs: n replies, in the order of the repetition index.
    """

    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]

    @property
    def text(self) -> str:
        """Text of the first reply."""
        return self.outputs[0].text

    @property
    def finish_reason(self) -> FinishReason:
        """Why the first reply ended."""
        return self.outputs[0].finish_reason

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    def __repr__(self) -> str:
        more = f" and {len(self.outputs) - 1} more" if len(self.outputs) > 1 else ""
        prompt = counted(self.num_prompt_tokens, "token")
        return f"<RequestOutput {shortened(self.text)!r}{more}, after {prompt}>"


@dataclass(frozen=True)
class ScoreOutput(Score):
    """Log-probabilities of one continuation, and its `token_ids`."""

    token_ids: tuple[int, ...]

    @property
    def logprob(self) -> float:
        """Sum of `logprobs`: the continuation's log-probability, in nats."""
        return math.fsum(self.logprobs)

    @property
    def is_greedy(self) -> bool:
        """Whether greedy decoding would generate the continuation."""
        return self.num_matched == len(self.token_ids)

    def __repr__(self) -> str:
        size = counted(len(self.token_ids), "token")
        return f"<ScoreOutput: {size}, logprob {self.logprob:.4f}, {self.num_matched} matched>"


def output_of(prompt: PreparedPrompt, replies: Iterable[Reply]) -> RequestOutput:
    """The output of all replies to `prompt`; raises as `completion_of`."""
    outputs = tuple(completion_of(prompt, index, reply) for index, reply in enumerate(replies))
    return RequestOutput(prompt.text, prompt.tokens, outputs)


def completion_of(prompt: PreparedPrompt, index: int, reply: Reply) -> CompletionOutput:
    """The output of one reply to `prompt`.

    Raises:
        NonFiniteLogitsError: no token could be chosen.
    """
    if reply.finish_reason == "error":
        raise NonFiniteLogitsError(f"{prompt.name}: {reply.error}")
    return CompletionOutput(
        index=index,
        text=prompt.shown(reply.text),
        token_ids=reply.ids,
        finish_reason=reply.finish_reason,
        stopped_by=reply.stopped_by,
        logprobs=reply.logprobs,
        # Without the position of end of text.
        top_logprobs=tuple(dict(position.top) for position in reply.details[: len(reply.ids)]),
        num_cached_tokens=reply.num_cached,
        timing=reply.timing,
    )
