"""Different requests, and the parts of their replies that must not depend on the batch."""

from __future__ import annotations

from rwkvbatch.config import Sampling
from rwkvbatch.engine.request import NoiseKey, Reply, Request

SAMPLING = Sampling(temperature=1.0, top_p=0.9, presence_penalty=0.3, frequency_penalty=0.2, banned_token_ids=(0,))


def request(number: int, *, shared: int = 0, length: int = 20, max_tokens: int = 12) -> Request:
    tokens = [7] * shared + [1 + (number * 13 + index) % 250 for index in range(length)]
    return Request(
        tokens=tuple(tokens),
        sampling=SAMPLING,
        noise=NoiseKey(seed=1, conversation=f"c{number}", turn=number % 3),
        max_tokens=max_tokens,
        stop=("\n\n",),
    )


def contents(reply: Reply) -> tuple[object, ...]:
    return (reply.text, reply.ids, reply.history, reply.finish_reason, reply.logprobs, reply.num_prompt)
