"""The model `rwkvbatch` of lm-evaluation-harness, and its command line with it.

The interface is that of `lm_eval/api/model.py` (`TemplateLM`): `loglikelihood`, `loglikelihood_rolling` and
`generate_until`. As in the harness's own models, context and continuation are encoded together and divided where the
context ends. Token 0 comes first, as in the evaluations of RWKV's authors (`bos=off` in `--model_args` omits it).
"""

from __future__ import annotations

import hashlib
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import model_registry
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

from rwkvbatch.config import NO_ADAPTER, Prompting, SamplingParams
from rwkvbatch.engine.request import END_OF_TEXT
from rwkvbatch.errors import UsageError
from rwkvbatch.llm import LLM
from rwkvbatch.model.states import load_state
from rwkvbatch.prompt.templates import load_template

# `lm_eval` is an optional dependency, which may be missing when types are checked.
# pyright: reportMissingImports=false, reportMissingModuleSource=false

NAME = "rwkvbatch"
CHUNK = 1024
"""The number of requests that are passed to the engine at a time; the progress bar advances after each chunk."""
MAX_GEN_TOKS = 256
MODEL_ARGS = (
    "pretrained", "strategy", "backend", "threads", "adapter", "vocab", "state", "bos", "think", "template",
    "reply_prefix", "turn_end", "seed", "max_gen_toks",
)  # fmt: skip
_WITHOUT_EFFECT: Mapping[str, Sequence[Any]] = {
    "num_beams": (1,), "repetition_penalty": (1, 1.0), "num_return_sequences": (1,), "use_cache": (True, False),
}  # fmt: skip
"""Generation arguments of other models that are accepted, each with the values that have no effect."""


class RwkvBatchLM(TemplateLM):
    """An RWKV model behind one engine, which processes a beginning that several requests share only once.

    `strategy`, `backend`, `threads`, `adapter` and `vocab` are as for `LLM`. `think`, `template`, `reply_prefix` and
    `turn_end` are the settings of the chat template, for `--apply_chat_template`.

    Args:
        pretrained: a checkpoint, or None for `RWKVBATCH_MODEL` or else the bundled model.
        device: the strategy if `strategy` is `auto`; the harness's default `cuda:0` is ignored.
        batch_size: rows in a batch; the engine's own number for `auto` and for 1, the harness's default.
        bos: whether token 0 comes before every text.
        state: a state file; every request continues from its state.
        seed: the seed of sampled replies.
        max_gen_toks: the maximum length of a reply if the task does not set one.

    Raises:
        UsageError: an unknown argument, or a value that cannot be used.
        CheckpointError: as for `load_model` and `load_state`.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        batch_size: int | str | None = None,
        device: str | None = None,
        max_batch_size: int | None = None,
        strategy: str = "auto",
        backend: str = "auto",
        threads: int | None = None,
        adapter: str = NO_ADAPTER,
        vocab: str | None = None,
        state: str | None = None,
        bos: str | bool = "on",
        think: str = "off",
        template: str | None = None,
        reply_prefix: str = "",
        turn_end: str = "auto",
        seed: int = 0,
        max_gen_toks: int = MAX_GEN_TOKS,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            hint = f"the arguments are {', '.join(MODEL_ARGS)}"
            raise UsageError(f"--model_args: unknown argument {next(iter(unknown))!r}", hint=hint)
        switches = {"on": True, "off": False, True: True, False: False}
        if bos not in switches:
            raise UsageError(f"--model_args: bos must be on or off, got {bos!r}")
        if strategy == "auto" and device not in (None, "cuda:0"):  # the latter is the harness's default
            strategy = device
        size = _batch_size(batch_size, max_batch_size)
        self.llm = LLM(
            None if pretrained is None else str(pretrained), strategy=strategy, backend=backend, threads=threads,
            adapter=adapter, vocab=vocab, **({} if size is None else {"max_batch": size}),
        )  # fmt: skip
        self._state = None if state is None else load_state(state, self.llm.spec)
        self._bos, self._seed, self._max_gen_toks = switches[bos], seed, max_gen_toks
        settings = {"think": think, "template": template, "reply_prefix": reply_prefix, "turn_end": turn_end}
        prompting = Prompting.parse(settings, where="--model_args")
        self._template = load_template(prompting, self.llm.spec.weights_sha256)
        self._settings_text = ", ".join(f"{key}={value}" for key, value in settings.items() if value)
        self._in_chat = False

    @property
    def eot_token_id(self) -> int:
        return END_OF_TEXT

    @property
    def tokenizer_name(self) -> str:
        """A name for the harness's request cache, different for every tokenizer and every chat template setting."""
        return "rwkvbatch-" + hashlib.sha256(f"{self.llm.tokenizer!r} {self._settings_text}".encode()).hexdigest()[:16]

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The settings of the chat template; records whether requests are chats."""
        self._in_chat = bool(chat_template)
        return f"rwkvbatch: {self._settings_text}" if chat_template else ""

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of a chat. Without `add_generation_prompt`, the last message is the beginning of the reply.

        Raises:
            UsageError: the roles do not alternate, or the last message is not the user's.
        """
        self._in_chat = True
        messages = [(message["role"], message["content"]) for message in chat_history]
        system = messages.pop(0)[1] if messages and messages[0][0] == "system" else None
        reply_start = messages.pop()[1] if messages and not add_generation_prompt else None
        roles = [role for role, _ in messages]
        if not roles or roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
            raise UsageError(
                f"a chat must have messages of user and assistant in turn, got {', '.join(roles) or 'none'}"
            )
        template = self._template
        text = template.opening(system, None)
        for (_, user), (_, reply) in zip(messages[:-1:2], messages[1::2], strict=True):
            text += template.past_turn(user) + template.reply(reply)
        last_user = messages[-1][1]
        if reply_start is None:
            return text + template.turn(last_user)
        return text + template.past_turn(last_user) + template.reply(reply_start).removesuffix(template.closing)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return list(self.llm.tokenizer.encode(string))

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        # Sorted by context, so that a beginning which several requests share is still cached for the next one.
        order = sorted(range(len(requests)), key=lambda index: requests[index][1])
        results: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        for chunk in self._chunks(order, "Running loglikelihood requests", disable_tqdm):
            # A continuation can be left without tokens, if its text is part of the context's last token: probability 1.
            scored = [index for index in chunk if requests[index][2]]
            pairs = [(self._with_bos(requests[index][1]), requests[index][2]) for index in scored]
            for index, score in zip(scored, self.llm.score_pairs(pairs, initial_state=self._state), strict=True):
                results[index] = score.logprob, score.is_greedy
            for index in chunk:
                if requests[index][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[index][0], results[index])
        return results

    def _with_bos(self, context: Sequence[int]) -> list[int]:
        """The context with token 0 before it, if `bos` is on and the context does not begin with that token."""
        return [END_OF_TEXT, *context] if self._bos and context[:1] != [END_OF_TEXT] else list(context)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts after token 0. RWKV has no context limit, so no text is cut into windows."""
        texts = [request.args[0] for request in requests]
        tokens = [(None, [END_OF_TEXT], self.tok_encode(text)) for text in texts]
        logprobs = [logprob for logprob, _ in self._loglikelihood_tokens(tokens, disable_tqdm)]
        for text, logprob in zip(texts, logprobs, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), logprob)
        return logprobs

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        num_repeats: Counter[str] = Counter()
        prepared: list[tuple[list[int], SamplingParams]] = []
        for context, arguments in (request.args for request in requests):
            # Each repeat of a document has its own seed, so that its replies differ.
            params = self._params(arguments, self._seed + num_repeats[context])
            num_repeats[context] += 1
            tokens = self._with_bos(self.tok_encode(context))
            prepared.append((tokens or [END_OF_TEXT], params))
        order = sorted(range(len(requests)), key=lambda index: prepared[index][0])
        replies = [""] * len(requests)
        for chunk in self._chunks(order, "Running generate_until requests", disable_tqdm):
            prompts, params = zip(*(prepared[index] for index in chunk), strict=True)
            outputs = self.llm.generate(list(prompts), list(params), initial_state=self._state)
            for index, output in zip(chunk, outputs, strict=True):
                replies[index] = self._answer(output.text)
                self.cache_hook.add_partial("generate_until", requests[index].args, replies[index])
        return replies

    def _params(self, arguments: Mapping[str, Any], seed: int) -> SamplingParams:
        """The sampling parameters for a request's generation arguments, with the harness's own defaults.

        Raises:
            UsageError: an argument that has no counterpart here.
        """
        kwargs: dict[str, Any] = dict(normalize_gen_kwargs(dict(arguments), self._max_gen_toks))
        until = [text for text in kwargs.pop("until") if text]
        do_sample = bool(kwargs.pop("do_sample"))
        values: dict[str, Any] = {"max_tokens": kwargs.pop("max_gen_toks"), "temperature": 0.0, "seed": seed}
        temperature = kwargs.pop("temperature", None)
        sampling = {key: kwargs.pop(key) for key in ("top_p", "top_k", "min_p") if key in kwargs}
        if do_sample:
            values |= {"temperature": 1.0 if temperature is None else temperature, "top_p": 1.0, "top_k": 0, **sampling}
        for key, value in kwargs.items():
            if value not in _WITHOUT_EFFECT.get(key, (None,)):
                hint = "remove it from the task's generation_kwargs, or from --gen_kwargs"
                raise UsageError(f"generation argument {key}={value!r} has no counterpart here", hint=hint)
        stops = [*until, *(self._template.stops if self._in_chat else ())]
        return SamplingParams(**values, presence_penalty=0.0, frequency_penalty=0.0, stop=tuple(dict.fromkeys(stops)))

    def _answer(self, text: str) -> str:
        """A reply without its thinking part, if the prompt requested one."""
        has_thinking = self._in_chat and self._template.think != "off" and "</think>" in text
        return text.rpartition("</think>")[2].lstrip() if has_thinking else text

    def _chunks(self, order: Sequence[int], title: str, disable_tqdm: bool) -> Iterator[Sequence[int]]:
        """`order` in parts of `CHUNK`, with a progress bar."""
        with tqdm(total=len(order), desc=title, disable=disable_tqdm or None) as bar:
            for start in range(0, len(order), CHUNK):
                chunk = order[start : start + CHUNK]
                yield chunk
                bar.update(len(chunk))

    def get_model_info(self) -> dict[str, Any]:
        """The model's entries in the harness's results file."""
        return {"rwkvbatch_model": self.llm.spec.in_words, "rwkvbatch_bos": self._bos}


_MOST_DIGITS = 9
"""Digits of a number of rows; Python refuses to read numbers of thousands of digits."""


def _batch_size(batch_size: int | str | None, max_batch_size: int | None) -> int | None:
    """The number of rows in a batch; None for the engine's own number."""
    text = str(batch_size or "auto").partition(":")[0]
    if text == "auto":
        return max_batch_size
    if not text.isdecimal() or len(text) > _MOST_DIGITS or int(text) < 1:
        raise UsageError(f"--batch_size must be a number from 1 up, or auto; got {text[:60]!r}")
    return None if int(text) == 1 else int(text)


def register() -> None:
    """Register the model with lm-evaluation-harness under the name `rwkvbatch`."""
    import lm_eval.models  # noqa: F401  (the import fills the registry)

    if NAME not in model_registry:
        model_registry.register(NAME, target=f"{__name__}:{RwkvBatchLM.__name__}")


def run(arguments: Sequence[str]) -> None:
    """Run the harness's command line with `arguments`, and with this model unless they name another.

    Raises:
        SystemExit: as the harness's own command line does.
    """
    from lm_eval.__main__ import cli_evaluate

    register()
    arguments = list(arguments)
    is_run = not arguments or arguments[0] not in ("ls", "validate")
    has_model = any(
        argument == "--model" or argument.startswith(("--model=", "--config", "-C")) for argument in arguments
    )
    if is_run:
        arguments = arguments[1:] if arguments[:1] == ["run"] else arguments
        arguments = ["run", *arguments, *([] if has_model else ["--model", NAME])]
    previous_argv, previous_handler = sys.argv, signal.getsignal(signal.SIGTERM)
    sys.argv = ["lm-eval", *arguments]
    # The harness ends its child processes with SIGTERM, and they would inherit this program's handler.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        cli_evaluate()
    finally:
        sys.argv = previous_argv
        signal.signal(signal.SIGTERM, previous_handler)
