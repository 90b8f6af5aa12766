"""`LLM`: generates, chats, streams and scores with one model, with the engine that runs and the chat command use."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self, TypedDict, Unpack, cast, overload

from rwkvbatch.arguments import (
    ITERABLE,
    NAME,
    PATH,
    SWITCH,
    TEXT,
    checks,
    either,
    instance_of,
    list_of,
    optional,
    whole_number,
)
from rwkvbatch.config import NO_ADAPTER, SamplingParams, ThinkMode, TurnEnd
from rwkvbatch.engine.engine import DEFAULT_STATE_MEMORY, Engine
from rwkvbatch.engine.request import Reply, Request, Score
from rwkvbatch.engine.shared import SharedEngine
from rwkvbatch.errors import NonFiniteLogitsError, UsageError
from rwkvbatch.model.base import Model, ModelSpec, State
from rwkvbatch.model.load import LOADING, STATE_DICT, load_model
from rwkvbatch.outputs import RequestOutput, ScoreOutput, output_of
from rwkvbatch.prepared import (
    CONVERSATIONS,
    PROMPT_OR_MESSAGES,
    PROMPTS,
    Message,
    PreparedPrompt,
    Prompt,
    PromptBuilder,
    as_list,
    checked_pair,
)
from rwkvbatch.prompt.segments import PromptTemplate
from rwkvbatch.prompt.templates import load_prelude
from rwkvbatch.prompt.tokenizer import Tokenizer
from rwkvbatch.prompt.vocabulary import tokenizer_of

_Params = SamplingParams | Sequence[SamplingParams] | None
_MAX_REPLIES = 1_000_000
"""Most replies to one prompt, as most repetitions of a run."""
_MAX_TOP = 1000
"""Most alternatives of a token."""

_PARAMS = instance_of(SamplingParams, "SamplingParams", "SamplingParams(max_tokens=64, ...)")
_SCORING = {
    "bos": SWITCH,
    "initial_state": optional(
        instance_of(State, "a State", "load_state(FILE, llm.spec) reads one from a file, llm.state(PROMPT) makes one")
    ),
}
_REPLYING = {**_SCORING, "top_logprobs": whole_number(0, _MAX_TOP)}
_STREAMING = {**_REPLYING, "params": optional(_PARAMS)}
_GENERATING = {
    **_REPLYING,
    "params": optional(either(_PARAMS, list_of(_PARAMS, "a list with one for each prompt"))),
    "n": whole_number(1, _MAX_REPLIES),
}
_PROMPTING = {
    "think": TEXT,
    "turn_end": TEXT,
    "reply_prefix": TEXT,
    "template": optional(PATH),
    "prelude": optional(PATH),
}


class _Options(TypedDict, total=False):
    n: int
    top_logprobs: int
    bos: bool
    initial_state: State | None


class _ChatOptions(_Options, total=False):
    think: ThinkMode
    turn_end: TurnEnd
    reply_prefix: str
    template: str | os.PathLike[str] | None
    prelude: str | os.PathLike[str] | None


class LLM:
    """A model with its tokenizer and an engine that batches requests.

    A reply depends on the weights, the prompt, the initial state, the sampling parameters with their seed, and its
    repetition index. It does not depend on the other prompts of a call (docs/design/reproducibility.md states the
    guarantee of each backend). Randomness is keyed by (seed, prompt tokens, repetition index).

    Calls from several threads are safe, and wait for one another. To batch prompts, pass them as a list to one call.
    Other calls may run between the pieces of a stream.

    Args:
        model: a checkpoint file, tensors by name (`load_model`), or a loaded `Model`. None takes the file in the
            environment variable `RWKVBATCH_MODEL`, or else the bundled model.
        strategy, backend, threads, adapter: as `load_model`; not with a loaded model.
        max_batch: most replies that are generated at a time.
        state_memory: bytes for recurrent states and cached prefixes.
        vocab: a vocabulary file, or `world`; None for the checkpoint's own vocabulary, see docs/models.md.

    Raises:
        InputError: the vocabulary file cannot be used.
        UsageError: an invalid strategy, backend or size.
        CheckpointError: the checkpoint is missing, damaged, or not an RWKV checkpoint.
    """

    @checks(
        model=optional(either(NAME, STATE_DICT, instance_of(Model, "a loaded Model"))),
        **LOADING,
        max_batch=whole_number(1),
        state_memory=whole_number(1),
        vocab=optional(PATH),
    )
    def __init__(
        self,
        model: str | os.PathLike[str] | Mapping[str, Any] | Model | None = None,
        *,
        strategy: str = "auto",
        backend: str = "auto",
        threads: int | None = None,
        adapter: str = NO_ADAPTER,
        max_batch: int = 64,
        state_memory: int = DEFAULT_STATE_MEMORY,
        vocab: str | os.PathLike[str] | None = None,
    ) -> None:
        if model is None or isinstance(model, str | os.PathLike | Mapping):
            loaded = load_model(model, strategy, backend, threads=threads, adapter=adapter)
        elif (strategy, backend, threads, adapter) == ("auto", "auto", None, NO_ADAPTER):
            loaded = model
        else:
            raise UsageError("strategy, backend, threads and adapter need a checkpoint to load, got a loaded model")
        self._model: Model | None = loaded
        tokenizer = tokenizer_of(loaded.spec, None if vocab is None else os.fspath(vocab))
        self._new_engine = lambda: SharedEngine(
            Engine(self.model, tokenizer=tokenizer, max_batch=max_batch, state_memory=state_memory)
        )
        self._shared: SharedEngine | None = self._new_engine()
        self._lock = threading.RLock()
        self._builder = PromptBuilder(loaded.spec, tokenizer)

    def __repr__(self) -> str:
        return "<LLM, closed>" if self._model is None else f"<LLM {self._model.spec.in_words}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model and its states. Every later call raises `UsageError`."""
        with self._lock:
            self._model = self._shared = None

    @property
    def model(self) -> Model:
        """The loaded model."""
        if self._model is None:
            raise UsageError("this LLM is closed", hint="make a new one")
        return self._model

    @property
    def spec(self) -> ModelSpec:
        """The description of the model, for `save_state` and `load_state`."""
        return self.model.spec

    @property
    def engine(self) -> Engine:
        """The engine, for requests of token ids. Do not use it while another thread uses this LLM."""
        with self._lock:
            return self._open().engine

    @property
    def tokenizer(self) -> Tokenizer:
        return self.engine.tokenizer

    # For a type checker, str is also a Sequence[str]; the first matching overload applies.
    @overload
    def generate(  # pyright: ignore[reportOverlappingOverload]
        self, prompts: Prompt, params: SamplingParams | None = None, **options: Unpack[_Options]
    ) -> RequestOutput: ...
    @overload
    def generate(
        self, prompts: Sequence[str] | Sequence[Sequence[int]], params: _Params = None, **options: Unpack[_Options]
    ) -> list[RequestOutput]: ...
    @checks(prompts=PROMPTS, **_GENERATING)
    def generate(
        self,
        prompts: Any,
        params: _Params = None,
        *,
        n: int = 1,
        top_logprobs: int = 0,
        bos: bool = False,
        initial_state: State | None = None,
    ) -> RequestOutput | list[RequestOutput]:
        """Continue prompts without a template. Besides the limits of `params`, only `params.stop` and token 0 end a
        reply.

        Args:
            prompts: one prompt (text or token ids), or a list of them.
            params: parameters for all prompts, or a list with one for each prompt; None for the defaults.
            n: number of replies per prompt. Their random keys differ by the repetition index, so that reply i is the
                same for every n. Greedy replies are all equal.
            top_logprobs: number of the likeliest tokens at each position whose log-probabilities a reply has.
            bos: read token 0 (end of text) before each prompt, as the authors' evaluations do with plain text.
            initial_state: the state before the prompts; None for the zero state.

        Returns:
            One output for a single prompt; for a list of prompts, a list in the same order.

        Raises:
            UsageError: an empty prompt, a token id outside the vocabulary, or a number of `params` that is not that of
                the prompts.
            InputError: a text has an unpaired surrogate.
            CheckpointError: the initial state does not have this model's shape.
            NonFiniteLogitsError: no token could be chosen.
        """
        items, is_single = as_list(prompts)
        prepared = [self._builder.prompt(prompt, f"prompt {number}", bos) for number, prompt in enumerate(items)]
        outputs = self._outputs(prepared, params, n, top_logprobs, initial_state)
        return outputs[0] if is_single else outputs

    @overload
    def chat(
        self, messages: Sequence[Message], params: SamplingParams | None = None, **options: Unpack[_ChatOptions]
    ) -> RequestOutput: ...
    @overload
    def chat(
        self, messages: Sequence[Sequence[Message]], params: _Params = None, **options: Unpack[_ChatOptions]
    ) -> list[RequestOutput]: ...
    @checks(messages=CONVERSATIONS, **_GENERATING, **_PROMPTING)
    def chat(
        self,
        messages: Any,
        params: _Params = None,
        *,
        n: int = 1,
        top_logprobs: int = 0,
        think: ThinkMode = "off",
        turn_end: TurnEnd = "auto",
        reply_prefix: str = "",
        template: str | os.PathLike[str] | None = None,
        prelude: str | os.PathLike[str] | None = None,
        bos: bool = False,
        initial_state: State | None = None,
    ) -> RequestOutput | list[RequestOutput]:
        """Reply to the last user message of a conversation, or of each conversation in a list.

        An assistant message at the end is the beginning of the reply: the reply's `text` continues it.

        The template's stop texts end a reply, in addition to those of `params`.

        Args:
            messages: system, user and assistant messages. Messages of one role in a row are one message, on lines of
                their own; a system message between a user message and the reply is read before the user message.
            params, n, top_logprobs, bos, initial_state: as `generate`.
            think: thinking mode, see `rwkvbatch.prompt.segments`.
            turn_end: the end of a reply, in addition to token 0, see `config.ReplyPrompt`.
            reply_prefix: text at the beginning of every reply; a part of the prompt and of the reply's `text`.
            template: a Jinja2 template file instead of the official template.
            prelude: text before the first message: a file, or the name of one of `PRELUDES`.

        Raises:
            UsageError: no user message to reply to, a last assistant message together with `reply_prefix` or a
                thinking mode that begins the reply with thinking, or as `generate`.
            TemplateError: the template file cannot be used.
            CheckpointError, NonFiniteLogitsError: as `generate`.
        """
        prompt_template, prelude_text = self._loaded_template(think, turn_end, reply_prefix, template, prelude)
        items, is_single = as_list(messages)
        prepared = [
            self._builder.conversation(item, prompt_template, prelude_text, f"conversation {number}", bos)
            for number, item in enumerate(items)
        ]
        outputs = self._outputs(prepared, params, n, top_logprobs, initial_state)
        return outputs[0] if is_single else outputs

    @checks(messages=PROMPT_OR_MESSAGES, **_STREAMING, **_PROMPTING)
    def stream(
        self,
        messages: str | Sequence[int] | Sequence[Message],
        params: SamplingParams | None = None,
        *,
        top_logprobs: int = 0,
        think: ThinkMode = "off",
        turn_end: TurnEnd = "auto",
        reply_prefix: str = "",
        template: str | os.PathLike[str] | None = None,
        prelude: str | os.PathLike[str] | None = None,
        bos: bool = False,
        initial_state: State | None = None,
    ) -> Generator[str, None, RequestOutput]:
        """Yield the reply to one conversation (as `chat`) or one prompt (as `generate`) piece by piece.

        The pieces join to the `text` of the output that `chat` or `generate` returns. The generator returns this output
        too, as the value of `yield from`. Generation begins when the first piece is requested. Closing the generator,
        or dropping it, cancels the reply.

        Raises:
            As `chat` and `generate`; all but NonFiniteLogitsError before the generator is returned.
        """
        is_prompt = isinstance(messages, str) or (len(messages) > 0 and not isinstance(messages[0], Mapping))
        if not is_prompt:
            prompt_template, prelude_text = self._loaded_template(think, turn_end, reply_prefix, template, prelude)
            prepared = self._builder.conversation(
                cast("Sequence[Message]", messages), prompt_template, prelude_text, "conversation", bos
            )
        elif (think, turn_end, reply_prefix, template, prelude) != ("off", "auto", "", None, None):
            raise UsageError("think, turn_end, reply_prefix, template and prelude need messages, got a prompt")
        else:
            prepared = self._builder.prompt(cast("Prompt", messages), "the prompt", bos)
        with self._lock:
            shared, root = self._with_root(initial_state)
        request = prepared.request(params or SamplingParams(), root, top_logprobs)
        request.sampling.check_vocabulary(self.spec.vocab_size)
        return self._stream(shared, request, prepared)

    @overload
    def score(  # pyright: ignore[reportOverlappingOverload]
        self, prompt: Prompt, continuations: Prompt, *, bos: bool = False, initial_state: State | None = None
    ) -> ScoreOutput: ...
    @overload
    def score(
        self, prompt: Prompt, continuations: Sequence[Prompt], *, bos: bool = False, initial_state: State | None = None
    ) -> list[ScoreOutput]: ...
    @checks(continuations=PROMPTS, **_SCORING)
    def score(
        self, prompt: Prompt, continuations: Any, *, bos: bool = False, initial_state: State | None = None
    ) -> ScoreOutput | list[ScoreOutput]:
        """Log-probabilities of continuations of one prompt, in one batch. The prompt is read once.

        Prompt and continuation are encoded separately, so write the space between them at the beginning of the
        continuation: `score("The sky is", [" blue", " green"])`. With `bos`, token 0 (end of text) is read first, and
        the prompt may be empty: `score("", text, bos=True)` scores a whole text.

        Raises:
            UsageError: an empty prompt or continuation, or a token id outside the vocabulary.
            CheckpointError: as `generate`.
            NonFiniteLogitsError: a log-probability is NaN or infinite.
        """
        items, is_single = as_list(continuations)
        prefix = self._builder.prompt(prompt, "the prompt", bos).tokens
        outputs = self._scores(
            [(prefix, item, f"continuation {number}") for number, item in enumerate(items)], initial_state
        )
        return outputs[0] if is_single else outputs

    @checks(pairs=ITERABLE, **_SCORING)
    def score_pairs(
        self, pairs: Iterable[tuple[Prompt, Prompt]], *, bos: bool = False, initial_state: State | None = None
    ) -> list[ScoreOutput]:
        """`score` for (prompt, continuation) pairs, in one batch. A common prefix of prompts is read once.

        Raises:
            As `score`.
        """
        prepared = [
            (self._builder.prompt(prompt, f"prompt {number}", bos).tokens, continuation, f"continuation {number}")
            for number, (prompt, continuation) in enumerate(map(checked_pair, pairs))
        ]
        return self._scores(prepared, initial_state)

    def _scores(
        self, pairs: Sequence[tuple[tuple[int, ...], Prompt, str]], initial_state: State | None
    ) -> list[ScoreOutput]:
        """The scores of `pairs`: the tokens before a continuation, the continuation, and its name for errors."""
        tokens = [(prefix, self._builder.prompt(item, name).tokens) for prefix, item, name in pairs]
        with self._lock:
            shared, root = self._with_root(initial_state)
            scores: list[Score] = shared.run(
                shared.engine.submit_score(prefix, continuation, root) for prefix, continuation in tokens
            )
        outputs: list[ScoreOutput] = []
        for (_, _, name), (_, ids), score in zip(pairs, tokens, scores, strict=True):
            if not all(map(math.isfinite, score.logprobs)):
                raise NonFiniteLogitsError(f"{name}: a log-probability is NaN or infinite")
            outputs.append(ScoreOutput(tuple(score.logprobs), score.num_matched, ids))
        return outputs

    @checks(**_SCORING)
    def state(self, prompt: Prompt, *, bos: bool = False, initial_state: State | None = None) -> State:
        """The recurrent state after a prompt (batch size 1), for `initial_state` and `save_state`.

        Args:
            bos, initial_state: as `generate`.

        Raises:
            UsageError, CheckpointError: as `generate`.
        """
        tokens = self._builder.prompt(prompt, "the prompt", bos).tokens
        with self._lock:
            shared, root = self._with_root(initial_state)
            with shared.broken_by_errors():
                return shared.engine.next_logits(tokens, root).state

    def _loaded_template(
        self,
        think: ThinkMode,
        turn_end: TurnEnd,
        reply_prefix: str,
        template: str | os.PathLike[str] | None,
        prelude: str | os.PathLike[str] | None,
    ) -> tuple[PromptTemplate, str | None]:
        """The template of a conversation, and the text of its prelude."""
        file = None if template is None else os.fspath(template)
        opening = load_prelude(None if prelude is None else os.fspath(prelude))
        return self._builder.template(think, turn_end, reply_prefix, file), opening

    def _open(self) -> SharedEngine:
        _ = self.model  # raises when closed
        if self._shared is None or self._shared.is_broken:
            self._shared = self._new_engine()
        return self._shared

    def _with_root(self, state: State | None) -> tuple[SharedEngine, int]:
        """The engine to use, and its root for `state`. Running streams keep their engine when a new one is made."""
        shared = self._open()
        if state is None:
            return shared, 0
        try:
            return shared, shared.root(state)
        except UsageError:  # no memory for another state in addition to those of earlier calls
            self._shared = shared = self._new_engine()
            return shared, shared.root(state)

    def _outputs(
        self, prompts: Sequence[PreparedPrompt], params: _Params, n: int, top_logprobs: int, initial_state: State | None
    ) -> list[RequestOutput]:
        if isinstance(params, SamplingParams | None):
            params_list: Sequence[SamplingParams] = [params or SamplingParams()] * len(prompts)
        else:
            params_list = params
        if len(params_list) != len(prompts):
            raise UsageError(f"params: expected one, or one for each of {len(prompts)} prompts; got {len(params_list)}")
        with self._lock:
            shared, root = self._with_root(initial_state)
            requests = [
                prompt.request(prompt_params, root, top_logprobs)
                for prompt, prompt_params in zip(prompts, params_list, strict=True)
            ]
            replies: list[Reply] = shared.run(
                shared.engine.submit(replace(request, noise=replace(request.noise, repeat=index)))
                for request in requests
                for index in range(n)
            )
        return [output_of(prompt, replies[index * n : (index + 1) * n]) for index, prompt in enumerate(prompts)]

    def _stream(
        self, shared: SharedEngine, request: Request, prompt: PreparedPrompt
    ) -> Generator[str, None, RequestOutput]:
        pieces: list[str] = []
        stripper = prompt.stripper()
        if stripper is not None and (reply_start := stripper.push(prompt.reply_start)):
            yield reply_start
        with self._lock:
            number = shared.engine.submit(replace(request, on_text=pieces.append))
            shared.results[number] = None
        try:
            while True:
                with self._lock:
                    _ = self.model  # raises when closed
                    reply = cast("Reply | None", shared.results[number])
                    if reply is None and not pieces:
                        shared.step()
                    piece = "".join(pieces)
                    pieces.clear()
                if reply is not None and not piece:
                    return output_of(prompt, [reply])
                if shown := piece if stripper is None else stripper.push(piece):
                    yield shown
        finally:
            shared.abandoned.append(number)
