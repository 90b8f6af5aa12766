"""The model provider `rwkvbatch` of Inspect: `inspect eval task.py --model rwkvbatch/NAME`.

The interface is that of `inspect_ai/model/_model.py` (`ModelAPI`). Inspect finds the provider through the entry point
group `inspect_ai`. Samples that run at the same time share the engine's batches.
"""

from __future__ import annotations

import asyncio
import atexit
import math
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    TopLogprob,
)

from rwkvbatch.config import NO_ADAPTER, SamplingParams, ThinkMode, TurnEnd
from rwkvbatch.engine.engine import DEFAULT_STATE_MEMORY, Engine
from rwkvbatch.engine.request import Reply, TokenDetails
from rwkvbatch.errors import NonFiniteLogitsError, UsageError
from rwkvbatch.model.load import load_model
from rwkvbatch.model.states import load_state
from rwkvbatch.prepared import PreparedPrompt, PromptBuilder
from rwkvbatch.prompt.templates import load_prelude
from rwkvbatch.prompt.vocabulary import tokenizer_of
from rwkvbatch.serve.answers import TokenNames
from rwkvbatch.serve.batcher import Batcher

# `inspect_ai` is an optional dependency, which may be missing when types are checked.
# pyright: reportMissingImports=false

BUNDLED = "demo"
"""The name of the bundled model: `--model rwkvbatch/demo`."""

MAX_TOKENS = 2048
"""The maximum length of a reply if neither the task nor the command line sets one; as for Inspect's local models."""

MODEL_ARGS = (
    "strategy", "backend", "threads", "adapter", "vocab", "state", "think", "template", "reply_prefix", "turn_end",
    "prelude", "bos", "preset", "seed", "max_batch", "state_memory",
)  # fmt: skip
_REFUSED = ("logit_bias", "best_of", "response_schema", "prompt_logprobs", "extra_body")
"""Settings that would change the reply but have no counterpart here."""


class RwkvBatchAPI(ModelAPI):
    """An RWKV model behind one engine.

    `strategy`, `backend`, `threads`, `adapter`, `vocab`, `max_batch` and `state_memory` are as for `LLM`. `think`,
    `template`, `reply_prefix`, `turn_end`, `prelude` and `bos` determine the prompt, as the options of `rwkvbatch run`.

    Args:
        model_name: a checkpoint, or `demo` for the bundled model.
        state: a state file; every conversation continues from its state.
        preset: the preset of sampling parameters that the task does not set. With a temperature of 0, sampling is
            greedy for any preset.
        seed: the seed for tasks without one. Each epoch of a sample has different random numbers.

    Raises:
        UsageError: an unknown argument, or a value that cannot be used.
        CheckpointError: as for `load_model` and `load_state`.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 (as the base class has it)
        *,
        strategy: str = "auto",
        backend: str = "auto",
        threads: int | None = None,
        adapter: str = NO_ADAPTER,
        vocab: str | None = None,
        state: str | None = None,
        think: str = "off",
        template: str | None = None,
        reply_prefix: str = "",
        turn_end: str = "auto",
        prelude: str | None = None,
        bos: bool = False,
        preset: str = "default",
        seed: int = 0,
        max_batch: int = 64,
        state_memory: int = DEFAULT_STATE_MEMORY,
        **unknown: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        if unknown:
            hint = f"the arguments are {', '.join(MODEL_ARGS)}"
            raise UsageError(f"-M: unknown argument {next(iter(unknown))!r}", hint=hint)
        path = None if model_name == BUNDLED and not Path(model_name).exists() else model_name
        model = load_model(path, strategy, backend, threads=threads, adapter=adapter)
        tokenizer = tokenizer_of(model.spec, vocab)
        self._builder, self._names = PromptBuilder(model.spec, tokenizer), TokenNames(tokenizer)
        self._template = self._builder.template(
            cast("ThinkMode", think), cast("TurnEnd", turn_end), reply_prefix, template
        )
        self._prelude = load_prelude(prelude)
        self._bos, self._preset, self._seed, self._max_batch = bos, preset, seed, max_batch
        SamplingParams.from_preset(preset)
        initial = None if state is None else load_state(state, model.spec)
        self._root = 0 if initial is None else 1

        def make_engine() -> Engine:
            engine = Engine(model, tokenizer=tokenizer, max_batch=max_batch, state_memory=state_memory)
            if initial is not None:
                engine.add_root(initial)
            return engine

        self._make_engine = make_engine
        # Inspect keeps its models until the interpreter exits, where native objects would be reported as leaked.
        atexit.register(_release, weakref.ref(self))
        self._batcher: tuple[asyncio.AbstractEventLoop, Batcher] | None = None
        self._num_repeats: Counter[tuple[str, int]] = Counter()

    async def generate(
        self, input: list[ChatMessage], tools: list[Any], tool_choice: Any, config: GenerateConfig
    ) -> ModelOutput:
        """The reply to the last user message, or `num_choices` of them.

        Raises:
            UsageError: tools, settings without a counterpart, or messages in an order that allows no reply.
            NonFiniteLogitsError: the logits of a token are not finite.
        """
        if tools:
            raise UsageError("tools cannot be called: RWKV's prompt format has no form of tool calls", hint="see docs")
        params = self._params(config)
        prompt = self._builder.conversation(_messages(input), self._template, self._prelude, "input", self._bos)
        num_top = (config.top_logprobs or 0) if config.logprobs or config.top_logprobs else None
        first = replace(prompt.request(params, self._root), num_top=num_top)
        key = first.noise.conversation, params.seed
        start, count = self._num_repeats[key], config.num_choices or 1
        # Inspect sends the same messages in every epoch: each time is another repetition.
        self._num_repeats[key] += count
        works = [replace(first, noise=replace(first.noise, repeat=repeat)) for repeat in range(start, start + count)]
        batcher = self._running_batcher()
        flight = batcher.submit(works, streams=False)
        try:
            while not flight.is_done:
                await flight.change()
        finally:
            batcher.cancel(flight)
        if flight.error is not None:
            raise flight.error
        replies = [cast("Reply", result) for result in flight.results]
        return self._output(prompt, replies, with_logprobs=num_top is not None)

    def _params(self, config: GenerateConfig) -> SamplingParams:
        for name in _REFUSED:
            if getattr(config, name, None) is not None:
                raise UsageError(f"{name} has no counterpart here", hint="remove it from the task's GenerateConfig")
        names = ("temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty", "max_tokens", "seed")
        settings = {name: value for name in names if (value := getattr(config, name)) is not None}
        preset = "greedy" if settings.get("temperature") == 0 else self._preset
        values = {"max_tokens": MAX_TOKENS, "seed": self._seed, **settings}
        return SamplingParams.from_preset(preset, stop=tuple(config.stop_seqs or ()), **values)

    def _running_batcher(self) -> Batcher:
        """The batcher of the running event loop, which is a new one in each evaluation.

        Raises:
            UsageError: the event loop is not asyncio's.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise UsageError("the provider runs in asyncio only", hint="unset INSPECT_ASYNC_BACKEND=trio") from None
        if self._batcher is None or self._batcher[0] is not loop:
            self.close()
            batcher = Batcher(self._make_engine, max_unfinished=1 << 30)
            batcher.start(loop)
            self._batcher = loop, batcher
            weakref.finalize(self, batcher.close)
        return self._batcher[1]

    def _output(self, prompt: PreparedPrompt, replies: Sequence[Reply], *, with_logprobs: bool) -> ModelOutput:
        choices: list[ChatCompletionChoice] = []
        for reply in replies:
            if reply.finish_reason == "error" or not all(map(math.isfinite, reply.logprobs)):
                raise NonFiniteLogitsError(reply.error or "a log-probability is NaN or infinite")
            message = ChatMessageAssistant(
                content=_content(prompt.shown(reply.text)), source="generate", model=self.model_name
            )
            choices.append(
                ChatCompletionChoice(
                    message=message,
                    stop_reason="max_tokens" if reply.finish_reason in ("length", "time") else "stop",
                    logprobs=self._logprobs(reply.details) if with_logprobs else None,
                )
            )
        cached = min((reply.num_cached for reply in replies), default=0)
        num_prompt, num_reply = len(prompt.tokens), sum(len(reply.ids) for reply in replies)
        usage = ModelUsage(
            input_tokens=max(0, num_prompt - cached), input_tokens_cache_read=min(cached, num_prompt),
            output_tokens=num_reply, total_tokens=num_prompt + num_reply,
        )  # fmt: skip
        return ModelOutput(model=self.model_name, choices=choices, usage=usage)

    def _logprobs(self, details: Sequence[TokenDetails]) -> Logprobs:
        content = [
            Logprob(
                token=self._names.name(detail.token),
                logprob=detail.logprob,
                bytes=list(self._names.data(detail.token)),
                top_logprobs=[
                    TopLogprob(token=self._names.name(token), logprob=value, bytes=list(self._names.data(token)))
                    for token, value in detail.top
                ]
                or None,
            )
            for detail in details
        ]
        return Logprobs(content=content)

    def close(self) -> None:
        """Stop the engine's thread."""
        if self._batcher is not None:
            self._batcher[1].close()
            self._batcher = None

    def max_tokens(self) -> int:
        return MAX_TOKENS

    def max_connections(self) -> int:
        return self._max_batch

    def connection_key(self) -> str:
        return self.model_name

    def collapse_user_messages(self) -> bool:
        return True

    def collapse_assistant_messages(self) -> bool:
        return True

    def should_retry(self, ex: Exception) -> bool:
        return False


def _release(model: weakref.ref[RwkvBatchAPI]) -> None:
    """Release a provider's engine and weights at the end of the process."""
    if (api := model()) is not None:
        api.close()
        del api._make_engine


def _messages(chat_messages: Sequence[ChatMessage]) -> list[Mapping[str, str]]:
    """Inspect's messages as `PromptBuilder` takes them, with all system messages joined into one.

    Raises:
        UsageError: a message contains something other than text and reasoning.
    """
    system = [message.text for message in chat_messages if message.role == "system"]
    messages: list[Mapping[str, str]] = [{"role": "system", "content": "\n".join(system)}] if system else []
    for message in chat_messages:
        parts = [] if isinstance(message.content, str) else message.content
        if unsupported := [part.type for part in parts if part.type not in ("text", "reasoning")]:
            raise UsageError(f"a message contains {unsupported[0]}: contents must be text")
        if message.role != "system":
            messages.append({"role": message.role, "content": message.text})
    return messages


def _content(text: str) -> Any:
    """A reply as Inspect's contents: the text up to `</think>` is reasoning; without that tag, all of it is."""
    if not text.startswith("<think"):
        return text
    thinking, end, answer = text.partition("</think>")
    reasoning = thinking.removeprefix("<think").removeprefix(">").strip()
    return [ContentReasoning(reasoning=reasoning), ContentText(text=answer.strip() if end else "")]
