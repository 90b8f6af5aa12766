"""The model `rwkvbatch` of lm-evaluation-harness, and its command line with it.

The interface is that of `lm_eval/api/model.py` (`TemplateLM`): `loglikelihood`, `loglikelihood_rolling` and
`generate_until`. Context and continuation are encoded as its own models do, together, and divided where the context
ends. Token 0 is read first, as in the evaluations of RWKV's authors (`bos=off` in `--model_args` leaves it out).
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
from rwkvbatch.prompt.templates import load_template, with_turn_end

# An extra, which need not be installed where types are checked.
# pyright: reportMissingImports=false, reportMissingModuleSource=false

NAME = "rwkvbatch"
CHUNK = 1024
"""Requests that are given to the engine at a time; progress is reported after each."""
MAX_GEN_TOKS = 256
MODEL_ARGS = (
    "pretrained", "strategy", "backend", "threads", "adapter", "vocab", "state", "bos", "think", "template",
    "reply_prefix", "turn_end", "seed", "max_gen_toks",
)  # fmt: skip
_WITHOUT_EFFECT: Mapping[str, Sequence[Any]] = {
    "num_beams": (1,), "repetition_penalty": (1, 1.0), "num_return_sequences": (1,), "use_cache": (True, False),
}  # fmt: skip
"""Generation arguments of other models that are accepted with the values that change nothing."""


class RwkvBatchLM(TemplateLM):
    """RWKV behind one engine, which reads what requests have in common once.

    Args:
        pretrained: a checkpoint, or None for `RWKVBATCH_MODEL` or else the bundled model.
        device: as `strategy`, which wins; the harness's default `cuda:0` counts as none.
        batch_size: rows in a batch; the engine's own number for `auto` and 1, the harness's default.
        bos: whether token 0 is read first.
        state: a state file that everything follows.
        think, template, reply_prefix, turn_end: the chat template's, for `--apply_chat_template`.
        seed: of sampled replies.

    Raises:
        UsageError: an unknown argument, or a value that cannot be used.
        CheckpointError: as `load_model` and `load_state`.
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
        given = {"think": think, "template": template, "reply_prefix": reply_prefix, "turn_end": turn_end}
        prompting = with_turn_end(Prompting.parse(given, where="--model_args"), self.llm.spec.weights_sha256)
        self._template = load_template(prompting)
        self._described = ", ".join(f"{key}={value}" for key, value in given.items() if value)
        self._in_chat = False

    @property
    def eot_token_id(self) -> int:
        return END_OF_TEXT

    @property
    def tokenizer_name(self) -> str:
        """A name that differs where requests would be encoded or written differently."""
        return "rwkvbatch-" + hashlib.sha256(f"{self.llm.tokenizer!r} {self._described}".encode()).hexdigest()[:16]

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Notes that requests are chats, and says by which settings the template is."""
        self._in_chat = bool(chat_template)
        return f"rwkvbatch: {self._described}" if chat_template else ""

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of a chat: without `add_generation_prompt` the last message is the beginning of the reply.

        Raises:
            UsageError: roles in an order that has no reply.
        """
        self._in_chat = True
        messages = [(message["role"], message["content"]) for message in chat_history]
        system = messages.pop(0)[1] if messages and messages[0][0] == "system" else None
        begun = messages.pop()[1] if messages and not add_generation_prompt else None
        roles = [role for role, _ in messages]
        if not roles or roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
            raise UsageError(
                f"a chat must have messages of user and assistant in turn, got {', '.join(roles) or 'none'}"
            )
        form = self._template
        text = form.opening(system, None)
        for (_, user), (_, reply) in zip(messages[:-1:2], messages[1::2], strict=True):
            text += form.past_turn(user) + form.reply(reply)
        if begun is None:
            return text + form.turn(messages[-1][1])
        return text + form.past_turn(messages[-1][1]) + form.reply(begun).removesuffix(form.closing)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return list(self.llm.tokenizer.encode(string))

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        # Requests with the same beginning stand together, so that it is still cached.
        order = sorted(range(len(requests)), key=lambda at: requests[at][1])
        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        for chunk in self._chunks(order, "Running loglikelihood requests", disable_tqdm):
            # A continuation without tokens (the context took them) has the probability 1.
            places = [at for at in chunk if requests[at][2]]
            pairs = [(self._begun(requests[at][1]), requests[at][2]) for at in places]
            for at, score in zip(places, self.llm.score_pairs(pairs, initial_state=self._state), strict=True):
                found[at] = score.logprob, score.is_greedy
            for at in chunk:
                if requests[at][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[at][0], found[at])
        return found

    def _begun(self, context: Sequence[int]) -> list[int]:
        """A context after token 0, unless it begins with it."""
        return [END_OF_TEXT, *context] if self._bos and context[:1] != [END_OF_TEXT] else list(context)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts after token 0: the state has no length, so no text is cut into windows."""
        texts = [request.args[0] for request in requests]
        tokens = [(None, [END_OF_TEXT], self.tok_encode(text)) for text in texts]
        found = [logprob for logprob, _ in self._loglikelihood_tokens(tokens, disable_tqdm)]
        for text, logprob in zip(texts, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), logprob)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        seen: Counter[str] = Counter()
        prepared: list[tuple[list[int], SamplingParams]] = []
        for context, given in (request.args for request in requests):
            params = self._params(given, self._seed + seen[context])
            seen[context] += 1  # repeats of a document are different replies
            tokens = self._begun(self.tok_encode(context))
            prepared.append((tokens or [END_OF_TEXT], params))
        order = sorted(range(len(requests)), key=lambda at: prepared[at][0])
        found = [""] * len(requests)
        for chunk in self._chunks(order, "Running generate_until requests", disable_tqdm):
            prompts, params = zip(*(prepared[at] for at in chunk), strict=True)
            outputs = self.llm.generate(list(prompts), list(params), initial_state=self._state)
            for at, output in zip(chunk, outputs, strict=True):
                found[at] = self._answer(output.text)
                self.cache_hook.add_partial("generate_until", requests[at].args, found[at])
        return found

    def _params(self, given: Mapping[str, Any], seed: int) -> SamplingParams:
        """The sampling parameters of a request's generation arguments, as the harness reads them.

        Raises:
            UsageError: an argument that has no counterpart here.
        """
        kwargs: dict[str, Any] = dict(normalize_gen_kwargs(dict(given), self._max_gen_toks))
        until = [text for text in kwargs.pop("until") if text]
        sampled = bool(kwargs.pop("do_sample"))
        chosen: dict[str, Any] = {"max_tokens": kwargs.pop("max_gen_toks"), "temperature": 0.0, "seed": seed}
        temperature = kwargs.pop("temperature", None)
        sampling = {key: kwargs.pop(key) for key in ("top_p", "top_k", "min_p") if key in kwargs}
        if sampled:
            chosen |= {"temperature": 1.0 if temperature is None else temperature, "top_p": 1.0, "top_k": 0, **sampling}
        for key, value in kwargs.items():
            if value not in _WITHOUT_EFFECT.get(key, (None,)):
                hint = "remove it from the task's generation_kwargs, or from --gen_kwargs"
                raise UsageError(f"generation argument {key}={value!r} has no counterpart here", hint=hint)
        stops = [*until, *(self._template.stops if self._in_chat else ())]
        return SamplingParams(**chosen, presence_penalty=0.0, frequency_penalty=0.0, stop=tuple(dict.fromkeys(stops)))

    def _answer(self, text: str) -> str:
        """A reply without its thinking part, where the prompt began one."""
        thinks = self._in_chat and self._template.think != "off"
        return text.rpartition("</think>")[2].lstrip() if thinks and "</think>" in text else text

    def _chunks(self, order: Sequence[int], title: str, disable_tqdm: bool) -> Iterator[Sequence[int]]:
        with tqdm(total=len(order), desc=title, disable=disable_tqdm or None) as bar:
            for start in range(0, len(order), CHUNK):
                chunk = order[start : start + CHUNK]
                yield chunk
                bar.update(len(chunk))

    def get_model_info(self) -> dict[str, Any]:
        """What the results file says of the model."""
        return {"rwkvbatch_model": self.llm.spec.in_words, "rwkvbatch_bos": self._bos}


def _batch_size(given: int | str | None, most: int | None) -> int | None:
    """Rows in a batch; None for the engine's own number."""
    text = str(given or "auto").partition(":")[0]
    if text == "auto":
        return most
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--batch_size must be a number from 1 up, or auto; got {given!r}")
    return None if int(text) == 1 else int(text)


def register() -> None:
    """Make the model known to lm-evaluation-harness by the name `rwkvbatch`."""
    import lm_eval.models  # noqa: F401  (the registry is filled on import)

    if NAME not in model_registry:
        model_registry.register(NAME, target=f"{__name__}:{RwkvBatchLM.__name__}")


def run(arguments: Sequence[str]) -> None:
    """The harness's command line with `arguments`, and with this model unless they name one.

    Raises:
        SystemExit: as its own command line.
    """
    from lm_eval.__main__ import cli_evaluate

    register()
    arguments = list(arguments)
    is_run = not arguments or arguments[0] not in ("ls", "validate")
    named = any(argument == "--model" or argument.startswith(("--model=", "--config", "-C")) for argument in arguments)
    if is_run:
        arguments = arguments[1:] if arguments[:1] == ["run"] else arguments
        arguments = ["run", *arguments, *([] if named else ["--model", NAME])]
    before = sys.argv, signal.getsignal(signal.SIGTERM)
    sys.argv = ["lm-eval", *arguments]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # it ends its own processes so, which have inherited the handler
    try:
        cli_evaluate()
    finally:
        sys.argv = before[0]
        signal.signal(signal.SIGTERM, before[1])
