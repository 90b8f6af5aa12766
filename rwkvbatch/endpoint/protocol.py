"""Request bodies and answers of OpenAI's completions and chat completions, with the variants of different servers.

OpenAI's API reference defines both interfaces. Servers differ in these points:

- Log-probabilities of a completion: lists `tokens`, `token_logprobs` and `top_logprobs` (OpenAI, vLLM, SGLang),
  or `content`, as in a chat (llama.cpp's server, `to_json_oaicompat`); there with `id` and `bytes`.
- Log-probabilities of a given text: `echo` with `logprobs` and one generated token, as in lm-evaluation-harness's
  `local-completions` (`lm_eval/models/openai_completions.py`); llama.cpp's server has no `echo`.
- vLLM gives the stop text that ended a reply in `stop_reason`, the id of another token that it stops at, and null for
  end of text. `rwkvbatch serve` gives null also where its template's end of a turn ended the reply. Others do not give
  it.
- `top_k` and `min_p` are fields of vLLM, SGLang and llama.cpp; `penalty_decay`, `order` and `no_penalty` are fields of
  `rwkvbatch serve` only. They are sent if they differ from their defaults; `rwkvbatch serve`, which its list of models
  tells apart, gets all fields.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from rwkvbatch.config import EndpointApi, Sampling
from rwkvbatch.endpoint.client import Json, incomplete
from rwkvbatch.engine.request import FinishReason, NoiseKey, Request
from rwkvbatch.errors import EndpointError

EXTENSIONS = frozenset({"top_k", "min_p", "order", "penalty_decay", "no_penalty"})
"""Sampling fields that OpenAI's API does not have. Servers that do not know them may ignore them."""

REPLACEMENT = "\ufffd"
END_OF_TEXT_NAMES = frozenset({"<|endoftext|>", "<|rwkv_tokenizer_end_of_text|>"})
"""Names of token 0: that of the 20B tokenizer and `rwkvbatch serve`, and that of World's tokenizer in transformers."""
_NAMED_BYTES = re.compile(r"bytes:((?:\\x[0-9a-fA-F]{2})+)")


def sampling_fields(sampling: Sampling, *, all_known: bool = False) -> dict[str, Any]:
    """The fields of a body about sampling. Greedy decoding is temperature 0.

    Args:
        all_known: whether the server has all of these settings, as `rwkvbatch serve`. It then gets all of them, so that
            none is that of its command line.
    """
    if all_known:
        return sampling.model_dump(mode="json")
    values: dict[str, Any] = {"temperature": 0.0}
    if not sampling.greedy:
        values = {"temperature": sampling.temperature, "top_p": sampling.top_p}
        filters = {"top_k": sampling.top_k, "min_p": sampling.min_p}
        values |= {name: value for name, value in filters.items() if value}
        if sampling.order != "top-p-first" and (sampling.temperature != 1 or len(values) > 2):
            values["order"] = sampling.order
    penalties = {name: getattr(sampling, name) for name in ("presence_penalty", "frequency_penalty")}
    if any(penalties.values()):
        values |= penalties
        if sampling.penalty_decay != 1:
            values["penalty_decay"] = sampling.penalty_decay
        if sampling.no_penalty and sampling.frequency_penalty:
            values["no_penalty"] = list(sampling.no_penalty)
    if sampling.banned_token_ids:
        values["logit_bias"] = {str(token): -100 for token in sampling.banned_token_ids}
    return values


def seed_of(noise: NoiseKey) -> int:
    """The seed of a reply in [0, 2^31): a hash of its noise key, which is the same in all cells."""
    digest = hashlib.blake2b(b"%d %d" % (noise.philox_key, noise.turn), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1


def reply_body(
    request: Request,
    prompt: str | Sequence[int],
    *,
    model: str,
    api: EndpointApi,
    logprobs: bool,
    all_known: bool = False,
) -> dict[str, Any]:
    """The body of a request for one streamed reply; `all_known` as for `sampling_fields`."""
    sampling = sampling_fields(request.sampling, all_known=all_known)
    body: dict[str, Any] = {"model": model, "max_tokens": request.max_tokens, **sampling}
    if api == "chat":
        body["messages"] = [dict(message) for message in request.messages]
        body |= {"logprobs": True, "top_logprobs": 1} if logprobs else {}
    else:
        body["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
        body |= {"logprobs": 1} if logprobs else {}
    if all_known and api != "chat":
        body["bos"] = "off"  # token 0 is among the ids, or not wanted
    if request.stop or all_known:
        body["stop"] = list(request.stop)
    if not request.sampling.greedy:
        body["seed"] = seed_of(request.noise)
    return {**body, "stream": True, "stream_options": {"include_usage": True}}


def score_body(prompt: str | Sequence[int], *, model: str, all_known: bool = False) -> dict[str, Any]:
    """The body of a request for the log-probabilities of the prompt's tokens; `all_known` as for `sampling_fields`."""
    text = prompt if isinstance(prompt, str) else list(prompt)
    body = {"model": model, "prompt": text, "max_tokens": 1, "temperature": 0.0, "echo": True, "logprobs": 1}
    return {**body, "bos": "off"} if all_known else body


@dataclass(frozen=True)
class ServedToken:
    """A token of a server's answer.

    Attributes:
        text: the token's text; may have U+FFFD for a part of a character.
        logprob: natural logarithm of the probability; None if the server gives none (the first token).
        id: the token's id, if the server gives it.
        data: the token's bytes, if the server gives them; also by a text such as `bytes:\\xe4`, with which OpenAI and
            `rwkvbatch serve` name a part of a character.
        best: highest log-probability of all tokens at this position, if the server gives it.
    """

    text: str
    logprob: float | None
    id: int | None = None
    data: bytes | None = None
    best: float | None = None

    @property
    def known_bytes(self) -> bytes | None:
        """The token's bytes; None for a part of a character whose bytes the server does not give."""
        if self.data is not None:
            return self.data
        return None if REPLACEMENT in self.text else self.text.encode("utf-8", "replace")


@dataclass
class Answer:
    """One choice of an answer, collected from its events.

    Attributes:
        pieces: the text in pieces.
        says_stop: whether the server gives `stop_reason`.
    """

    pieces: list[str] = field(default_factory=list[str])
    tokens: list[ServedToken] = field(default_factory=list[ServedToken])
    finish_reason: str | None = None
    says_stop: bool = False
    stop_reason: str | int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int = 0

    @property
    def text(self) -> str:
        if len(self.pieces) > 1:
            self.pieces = ["".join(self.pieces)]
        return self.pieces[0] if self.pieces else ""

    def take(self, event: Json) -> str:
        """Add an event, or a complete answer. Returns its text.

        Raises:
            EndpointError: it is not an answer of this API.
            Exception: the server reports an error; `Client.call` then repeats the request, see `incomplete`.
        """
        if error := event.get("error"):
            message = cast("dict[str, Any]", error).get("message", error) if isinstance(error, dict) else error
            raise incomplete(f"the server reports an error in its answer: {str(message)[:200]}")
        self._take_usage(event.get("usage"))
        piece = ""
        for item in _list(event, "choices"):
            if not isinstance(item, dict):
                raise EndpointError("`choices` of the answer must contain objects")
            choice = cast("dict[str, Any]", item)
            if choice.get("index", 0) != 0:
                continue
            piece += self._text_of(choice)
            self.tokens += _tokens(choice.get("logprobs"))
            if (reason := choice.get("finish_reason")) is not None:
                self.finish_reason = str(reason)[:60]
            if "stop_reason" in choice:
                self.says_stop, stop = True, choice["stop_reason"]
                self.stop_reason = stop if isinstance(stop, (str, int)) else None
        if piece:
            self.pieces.append(piece)
        return piece

    @staticmethod
    def _text_of(choice: Mapping[str, Any]) -> str:
        content: Any = choice.get("text")
        for name in ("delta", "message"):
            part = choice.get(name)
            if isinstance(part, dict) and content is None:
                content = cast("dict[str, Any]", part).get("content")
        if content is not None and not isinstance(content, str):
            raise EndpointError(f"the text of the answer must be a string, found {type(content).__name__}")
        return content or ""

    def _take_usage(self, usage: Any) -> None:
        match usage:
            case {"prompt_tokens": int() as count} if 0 <= count < 2**31:
                self.prompt_tokens = count
                match usage:
                    case {"prompt_tokens_details": {"cached_tokens": int() as cached}} if 0 <= cached <= count:
                        self.cached_tokens = cached
                    case _:
                        pass
            case _:
                pass

    def end(self, stops: Sequence[str], *, by_server_template: bool = False) -> tuple[FinishReason, str | None]:
        """The reason why the reply ended, and the stop text that ended it, if the server gives it.

        `stop` without a text means that the server does not say whether end of text, a stop text or a token that its
        template stops at ended the reply. Without stop texts in the request, that is unknown too: llama.cpp's server
        ends a reply at a model's own end-of-turn tokens (the blank line of World models), also for completions.

        Args:
            stops: the stop texts of the request.
            by_server_template: whether the server's template made the prompt. It then also ends the turn, with a text
                or token that `stop_reason` does not give.

        Raises:
            EndpointError: the server's reason is not an end of a reply.
            Exception: the reply is incomplete; `Client.call` then repeats the request, see `incomplete`.
        """
        match self.finish_reason:
            case "length":
                return "length", None
            case "eos_token" | "eos":
                return "eos", None
            case "stop" | "stop_sequence":
                if isinstance(self.stop_reason, str) and self.stop_reason in stops:
                    return "stop", self.stop_reason
                says_end_of_text = self.says_stop and self.stop_reason is None and self.finish_reason == "stop"
                return ("eos", None) if says_end_of_text and not by_server_template else ("stop", None)
            case None:
                raise incomplete("the answer ended before the reply did")
            case reason:
                raise EndpointError(f"the server ended the reply with finish_reason {reason!r}")


def read_answer(events: Iterator[Json]) -> Answer:
    """The complete answer; raises as `Answer.take`."""
    answer = Answer()
    for event in events:
        answer.take(event)
    return answer


def _list(values: Mapping[str, Any], name: str) -> list[Any]:
    """The list `name` in `values`; empty if it is missing or null."""
    value: Any = values.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise EndpointError(f"`{name}` of the answer must be a list, found {type(value).__name__}")
    return cast("list[Any]", value)


def _tokens(logprobs: Any) -> list[ServedToken]:
    if not isinstance(logprobs, dict):
        return []
    fields = cast("dict[str, Any]", logprobs)
    if isinstance(fields.get("content"), list):
        return [_token_of_chat(cast("dict[str, Any]", item)) for item in fields["content"] if isinstance(item, dict)]
    texts, values = _list(fields, "tokens"), _list(fields, "token_logprobs")
    tops = _list(fields, "top_logprobs")
    if len(texts) != len(values):
        raise EndpointError(f"the answer has {len(texts)} tokens and {len(values)} log-probabilities")
    tokens: list[ServedToken] = []
    for index, (text, value) in enumerate(zip(texts, values, strict=True)):
        top: Any = tops[index] if index < len(tops) else None
        top_values = cast("dict[str, Any]", top).values() if isinstance(top, dict) else ()
        best = max((number for number in map(_number, top_values) if number is not None), default=None)
        match = _NAMED_BYTES.fullmatch(str(text))
        data = None if match is None else bytes.fromhex(match[1].replace("\\x", ""))
        tokens.append(ServedToken(str(text), _number(value), data=data, best=best))
    return tokens


def _token_of_chat(values: Mapping[str, Any]) -> ServedToken:
    raw_bytes: Any = values.get("bytes")
    try:
        data = bytes(cast("list[int]", raw_bytes)) if isinstance(raw_bytes, list) else None
    except (TypeError, ValueError):
        data = None
    token_id = values.get("id")
    tops = [cast("dict[str, Any]", top) for top in _list(values, "top_logprobs") if isinstance(top, dict)]
    top_logprobs = [value for top in tops if (value := _number(top.get("logprob"))) is not None]
    return ServedToken(
        str(values.get("token", "")),
        _number(values.get("logprob")),
        id=token_id if type(token_id) is int else None,
        data=data,
        best=max(top_logprobs, default=None),
    )


def _number(value: Any) -> float | None:
    """`value` if it is a finite number, otherwise None."""
    return float(value) if type(value) in (int, float) and math.isfinite(value) else None
