"""Declarations of all settings: type, limits, help, option, environment name, and whether a grid may vary the setting.

The records are frozen and refuse unknown keys and values out of range. `replace` makes a changed, validated copy. The
options of the command line, environment variables (`RWKVBATCH_TOP_P=0.5`), `--config` files, grids and documents are
derived from their fields. Formulas and the order of the sampling steps are those of the `rwkv` package
(`PIPELINE.sample_logits`) and of ChatRWKV's `API_DEMO_CHAT.py`; see `docs/sampling.md`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple, Self, cast, get_args, get_origin

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic.functional_validators import ModelWrapValidatorHandler

from rwkvbatch.errors import UsageError
from rwkvbatch.setting import Setting, Settings, explain, setting, shown_value

ThinkMode = Literal["off", "on", "fake", "short", "long", "on-parens", "short-parens", "long-parens", "fake-oneline"]
TurnEnd = Literal["auto", "next-role", "blank-line", "end-of-text"]
HistoryMode = Literal["own", "gold"]
Switch = Literal["auto", "on", "off"]
EndpointApi = Literal["completions", "completions-ids", "chat"]


class CutOrder(NamedTuple):
    """Whether the temperature is applied before the cuts, and whether top-k cuts before top-p.

    With top-k first, top-p is a share of the probability that top-k keeps.
    """

    temperature_first: bool
    top_k_first: bool


Order = Literal["top-p-first", "top-k-first", "temperature-first", "temperature-top-k"]
ORDERS: Mapping[str, CutOrder] = {
    "top-p-first": CutOrder(temperature_first=False, top_k_first=False),
    "top-k-first": CutOrder(temperature_first=False, top_k_first=True),
    "temperature-first": CutOrder(temperature_first=True, top_k_first=False),
    "temperature-top-k": CutOrder(temperature_first=True, top_k_first=True),
}
"""Orders of the sampling steps. `top-p-first` is that of the `rwkv` package. `temperature-top-k` is that of the
evaluation engines for RWKV-7, which apply the temperature, keep `top_k` tokens, renormalise, and then cut at
`top_p`."""

MAX_COUNT = 2**31 - 1
"""The largest value of a setting that is a count, so that it fits every file and array."""


def _texts(value: object) -> object:
    """Convert one text to a list, and remove empty texts from a list."""
    if isinstance(value, str):
        value = (value,)
    return [text for text in cast("list[object]", value) if text != ""] if isinstance(value, list | tuple) else value


_Share = Annotated[float, Field(ge=0, le=1)]
_Penalty = Annotated[float, Field(ge=-100, le=100)]


class Sampling(Settings):
    """How a token is chosen from the logits; `temperature` 0, `top_p` 0 or `top_k` 1 is greedy.

    - `temperature`: the kept probabilities are raised to 1 / temperature.
    - `top_p`: the likeliest tokens are kept up to this probability, and all tokens as likely as the last of them.
    - `min_p`: tokens less likely than this share of the likeliest token's probability are dropped.
    - `presence_penalty` is subtracted once from the logit of every token that is already in the reply,
      `frequency_penalty` once for each occurrence. Occurrence counts are multiplied by `penalty_decay` at each step.
    - `no_penalty`: tokens whose text is a part of one of these texts are not counted: only `presence_penalty` is
      subtracted from their logits.
    - `order`: whether the temperature is applied before or after the cuts, and whether top-p or top-k cuts first, see
      `ORDERS`.
    """

    temperature: float = setting(1.0, "Temperature; 0 is greedy.", "X", "Sampling", ge=0, le=100)
    top_p: _Share = setting(0.3, "Keep the likeliest tokens up to this probability; 0 is greedy.", "X", "Sampling")
    top_k: int = setting(0, "Keep at most N tokens; 0 keeps all.", "N", "Sampling", ge=0, le=MAX_COUNT)
    min_p: _Share = setting(
        0.0, "Drop tokens less likely than X times the likeliest one; 0 keeps all.", "X", "Sampling"
    )
    presence_penalty: _Penalty = setting(0.0, "Penalty for tokens that the reply already contains.", "X", "Sampling")
    frequency_penalty: _Penalty = setting(0.0, "Penalty per occurrence of a token in the reply.", "X", "Sampling")
    penalty_decay: _Share = setting(0.996, "Factor on the occurrence counts at each step.", "X", "Sampling")
    order: Order = setting(
        "top-p-first", f"Order of the sampling steps: {', '.join(get_args(Order))}.", "NAME", "Sampling"
    )
    no_penalty: Annotated[tuple[Annotated[str, Field(max_length=1000)], ...], BeforeValidator(_texts)] = setting(
        (),
        "Tokens that are a part of TEXT are exempt from --frequency; may be repeated. An empty TEXT exempts none.",
        "TEXT",
        "Sampling",
        allowed="must be text of at most 1000 characters",
        max_length=100,
    )
    banned_token_ids: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = setting(
        (),
        "Token ids that are never chosen; may be repeated.",
        "ID",
        "Sampling",
        allowed="must be token ids, whole numbers in [0, 2147483647]",
        split=True,
    )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 or self.top_p == 0 or self.top_k == 1

    def check_vocabulary(self, vocab_size: int, name: str = "banned_token_ids") -> None:
        """Check banned token ids against a model's vocabulary.

        Args:
            name: the setting's name in the error message.

        Raises:
            UsageError: a banned id is not in [0, vocab_size).
        """
        unknown = sorted({token for token in self.banned_token_ids if token >= vocab_size})
        if unknown:
            shown = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            raise UsageError(
                f"{name}: the model's vocabulary has {vocab_size:,} token ids, 0 to {vocab_size - 1}; got {shown}",
                hint="leave it out; /tokens in `rwkvbatch chat` shows the ids of a reply",
            )


PRESETS: Mapping[str, Sampling] = {
    "default": Sampling(),
    "greedy": Sampling(temperature=0.0, top_p=1.0),
    # ChatRWKV, API_DEMO_CHAT.py: with the initial prompt, and with a custom initial state.
    "api-demo-chat": Sampling(
        temperature=1.0, top_p=0.3, presence_penalty=0.5, frequency_penalty=0.5, banned_token_ids=(0,)
    ),
    "api-demo-chat-state": Sampling(
        temperature=1.0, top_p=0.2, presence_penalty=0.3, frequency_penalty=0.3, banned_token_ids=(0,)
    ),
    # The rwkv package's PIPELINE_ARGS, and the tokens that `PIPELINE.generate` does not count.
    "rwkv-package": Sampling(
        temperature=1.0, top_p=0.85, presence_penalty=0.2, frequency_penalty=0.2, no_penalty=(" \t0123456789",)
    ),
    # The evaluation teams' settings for RWKV-7 G1, by thinking mode, and those of the demonstration.
    "g1-think": Sampling(
        temperature=0.96,
        top_p=0.76,
        top_k=32,
        presence_penalty=1.0,
        frequency_penalty=0.1,
        penalty_decay=0.988,
        order="temperature-top-k",
    ),
    "g1-fake-think": Sampling(temperature=1.0, top_p=0.28, top_k=32, order="temperature-top-k"),
    "g1-tools": Sampling(temperature=0.96, top_p=0.76, top_k=32, order="temperature-top-k"),
    "g1-demo": Sampling(
        temperature=1.0,
        top_p=0.5,
        top_k=500,
        presence_penalty=1.0,
        frequency_penalty=0.1,
        penalty_decay=0.99,
        order="temperature-top-k",
    ),
    "creative": Sampling(temperature=1.2, top_p=0.7, presence_penalty=0.4, frequency_penalty=0.4),
    "precise": Sampling(temperature=1.0, top_p=0.1),
    "model": Sampling(temperature=1.0, top_p=1.0),
}
"""Known-good combinations, by the name for `--preset`. `model` samples from the model's own distribution. Sources and
dates are in `docs/sampling.md`."""


PRESET_TURN_ENDS: Mapping[str, TurnEnd] = {"api-demo-chat": "blank-line", "api-demo-chat-state": "blank-line"}
"""The `turn_end` of presets of other programs."""


def preset_settings(name: str) -> dict[str, Any]:
    """All settings of `--preset NAME`; raises as `preset`."""
    settings: dict[str, Any] = dict(preset(name))
    if name in PRESET_TURN_ENDS:
        settings["turn_end"] = PRESET_TURN_ENDS[name]
    return settings


def preset(name: str) -> Sampling:
    """The sampling preset called `name`.

    Raises:
        UsageError: there is no such preset.
    """
    if name not in PRESETS:
        raise UsageError(f"--preset must be one of {', '.join(PRESETS)}; got {name!r}")
    return PRESETS[name]


class Stopping(Settings):
    """When a reply ends. Token 0 (end of text) always ends it too, unless it is banned.

    `max_seconds` counts from the reply's first step. A reply that it ends has the `finish_reason` `time` and is not
    reproducible. The texts of `stop` apply in addition to `turn_end`.
    """

    max_tokens: int = setting(256, "Maximum number of tokens in a reply.", "N", "End of a reply", ge=1, le=1_000_000)
    max_seconds: float | None = setting(
        None,
        "Maximum seconds for a reply. A reply that ends so is not reproducible.",
        "X",
        "End of a reply",
        gt=0,
        le=10**9,
    )
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = setting(
        (),
        "Text that ends a reply; may be repeated.",
        "TEXT",
        "End of a reply",
        allowed="must be texts, none of them empty",
    )


class SamplingParams(Sampling, Stopping):
    """How one reply of `LLM` is sampled and when it ends: the fields of `Sampling` and `Stopping`, and a seed.

    Attributes:
        seed: seed of the reply's randomness. The same seed and prompt give the same reply.

    Raises:
        UsageError: an unknown field, or a value out of range.
    """

    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="wrap")
    @classmethod
    def _raise_usage_error(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            hint = f"the fields are {', '.join(cls.model_fields)}"
            raise UsageError(explain(error, cls.__name__, cls), hint=hint) from None

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> Self:
        """The preset called `name` (see `PRESETS`), with `changes` applied.

        Raises:
            UsageError: there is no such preset, or as the constructor.
        """
        return cls(**{**preset(name).model_dump(), **changes})

    @cached_property
    def sampling(self) -> Sampling:
        """The fields of `Sampling` alone."""
        return self.part(Sampling)


def _switch(value: object) -> object:
    """Convert true and false, as in a TOML file or a script, to `on` and `off`."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class ReplyPrompt(Settings):
    """The beginning of a reply in the prompt, and its end. The `params` of a conversation or a turn may change these.

    - `turn_end`: `next-role` is a line that begins with `User:` (the template's stop texts), `blank-line` the first
      blank line (as in ChatRWKV's API_DEMO_CHAT.py), `end-of-text` only token 0, which ends a reply in all cases.
    - `reply_prefix`: the first text of the reply. It is read with the prompt, shown as a part of the reply, and not
      scored.
    """

    think: ThinkMode = setting(
        "off", "Thinking: off, on, fake, short, long, and newer forms (docs/prompts.md).", "MODE", "Prompt"
    )
    turn_end: TurnEnd = setting(
        "auto",
        "What ends a reply: next-role, blank-line, end-of-text; auto is next-role (blank-line for the bundled model).",
        "NAME",
        "End of a reply",
    )
    reply_prefix: str = setting("", "Text that every reply begins with.", "TEXT", "Prompt", text=True)

    def check_reply_prefix(self) -> None:
        """Check that the prefix begins the answer.

        Raises:
            UsageError: there is a prefix, but in this thinking mode the reply begins with thinking.
        """
        if self.reply_prefix and self.think in OPEN_THINKING:
            raise UsageError(
                f"--reply-prefix begins the answer, and with --think {self.think} the reply begins with thinking; "
                f"got {shown_value(self.reply_prefix)}",
                hint="use --think off or --think fake, or leave the prefix out",
            )


OPEN_THINKING: frozenset[ThinkMode] = frozenset({"on", "short", "long", "on-parens", "short-parens", "long-parens"})
"""The thinking modes in which the model writes the thinking part."""


class DialoguePrompt(ReplyPrompt):
    """`ReplyPrompt`, and whether token 0 (end of text) is read before everything else.

    `bos` `auto` is off with a chat template (ChatRWKV's API_DEMO_CHAT.py does not read token 0) and on for plain text
    (RWKV-LM's `rwkv_mmlu_eval.py` and the authors' other evaluations begin with token 0).
    """

    bos: Annotated[Switch, BeforeValidator(_switch)] = setting(
        "auto", "Token 0 before the first token: on, off; auto is off for chats, on for plain text.", "MODE", "Prompt"
    )

    def begins_with_bos(self, *, plain_text: bool = False) -> bool:
        """Whether token 0 is read first.

        Args:
            plain_text: whether the prompt is made without a chat template.
        """
        return plain_text if self.bos == "auto" else self.bos == "on"


class Prompting(ReplyPrompt):
    """The settings from which a prompt template is loaded."""

    template: str | None = setting(
        None, "Jinja2 template in place of RWKV's official one: a file, bot or markdown.", "FILE", "Prompt"
    )

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, name) for name in type(self).model_fields))


def _bytes(value: object) -> object:
    """Convert `512M` or `2G` to a number of bytes; other values are returned unchanged, for the field to check."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt])i?b?", value.strip(), re.IGNORECASE)
    count = math.inf if match is None else float(match[1]) * 1024 ** (1 + "kmgt".index(match[2].lower()))
    return value if math.isinf(count) else int(count)


ByteCount = Annotated[int, BeforeValidator(_bytes), Field(ge=1, lt=2**63)]
_SIZE = "must be a number of bytes in [1, 9223372036854775807], such as 512M or 2G"


MAX_THREADS = 1024
"""The most threads of a process."""


class ScriptLimits(Settings):
    """Limits of a script. Lines beyond them are refused."""

    max_line_bytes: ByteCount = setting(10_000_000, "Bytes of one line of a script.", "SIZE", None, allowed=_SIZE)
    max_turns: int = setting(10_000, "User messages of one conversation.", "N", None, ge=1, le=MAX_COUNT)
    max_conversations: int = setting(1_000_000, "Conversations in all scripts together.", "N", None, ge=1, le=MAX_COUNT)


NO_ADAPTER = "none"
"""The value of `adapter` for no adapter."""


class CellSettings(Sampling, Stopping, DialoguePrompt, Prompting):
    """The settings that determine a reply. They may differ between the cells of a grid."""

    history: HistoryMode = setting(
        "own", "What later turns see: the model's own replies (own), or the script's (gold).", "MODE", "Prompt"
    )
    model: str | None = setting(
        None,
        "Checkpoint: a file, whose ending may be left out, or a Hugging Face directory. "
        "[dim]Default: $RWKVBATCH_MODEL, else the bundled one.[/]",
        "FILE",
        "Model",
        "-m",
    )
    adapter: str = setting(
        NO_ADAPTER,
        "Adapter to merge into the weights: 'FILE alpha=NUMBER' (LoRA), 'FILE init=FILE' (PiSSA), FILE (DiSHA, Bone, "
        "a PEFT directory), none.",
        "TEXT",
        "Model",
    )
    strategy: str = setting(
        "auto",
        'Device and precision: "cpu fp32", "cpu bf16", "cpu int8", "cpu w8a8", "cpu int4", "cuda fp16", auto.',
        "TEXT",
        "Model",
    )
    backend: str = setting("auto", "cpu, reference, cuda, upstream, auto.", "NAME", "Model")
    state: str | None = setting(None, "Initial state (a state-tuned file).", "FILE", "Model")
    system: str | None = setting(
        None, "System message, in place of the script's; an empty text removes it.", "TEXT", "Prompt", text=True
    )
    prelude: str | None = setting(
        None, "Text read before the first turn (an initial exchange), or the name api-demo-chat.", "FILE", "Prompt"
    )
    endpoint: str | None = setting(
        None,
        "Base URL of an OpenAI-compatible server whose model replies, such as http://127.0.0.1:8080/v1. "
        "[dim]The key is $RWKVBATCH_ENDPOINT_KEY.[/]",
        "URL",
        "Endpoint",
    )
    endpoint_model: str | None = setting(
        None,
        "Name of the model on the server. [dim]Default: the only one that the server lists.[/]",
        "NAME",
        "Endpoint",
    )
    endpoint_api: EndpointApi = setting(
        "completions",
        "completions (this program's template, as text), completions-ids (as token ids), chat (the server's template).",
        "NAME",
        "Endpoint",
    )
    endpoint_body: str = setting("", "Further fields of each request, as a JSON object.", "JSON", "Endpoint", text=True)

    @property
    def uses_chat_api(self) -> bool:
        """Whether a server applies its own template."""
        return self.endpoint is not None and self.endpoint_api == "chat"

    @cached_property
    def sampling(self) -> Sampling:
        return self.part(Sampling)

    @cached_property
    def stopping(self) -> Stopping:
        return self.part(Stopping)

    @cached_property
    def prompting(self) -> Prompting:
        return self.part(Prompting)


class RunSettings(CellSettings, ScriptLimits):
    """All settings of a run. Those of `CellSettings` apply to every cell unless the grid changes them.

    With both `max_repeats` and `until_ci`, a cell's repeats grow from `repeats` up to `max_repeats` while its paired
    interval against the first cell is wider than `until_ci`. With `race`, cells that are worse than another one are
    dropped, see `replay.race`. None means no limit or a default: all processors, shared evenly between the workers, for
    `threads`, and the engine's default for `state_memory`.
    """

    seed: int = setting(0, "Random seed. [dim]Default: 0[/]", "N", "Sampling", ge=0, lt=2**63)
    batch_size: Annotated[int, Field(ge=1, le=65536)] = setting(
        32, "Replies that a worker generates at once. Does not change replies. [dim]Default: 32[/]", "N", "Model", "-b"
    )
    threads: int | None = setting(
        None, "CPU threads per worker. Does not change replies.", "N", "Model", ge=1, le=MAX_THREADS
    )
    vocab: str | None = setting(
        None,
        "Vocabulary of all models: a file (World format or tokenizer.json), or world. "
        "[dim]Default: the checkpoint's own.[/]",
        "FILE|world",
        "Model",
        min_length=1,
    )
    state_memory: ByteCount | None = setting(
        None, "Memory for recurrent states, such as 512M or 2G.", "SIZE", "Model", allowed=_SIZE
    )
    workers: int | None = setting(
        None, "Worker processes, which share the weights. Does not change replies on CPUs.", "N", "Model", ge=1, le=1024
    )
    devices: tuple[Annotated[str, Field(pattern=r"^(cpu|cuda(:\d{1,3})?)$")], ...] = setting(
        (),
        "Devices of the workers, such as cuda:0,cuda:1.",
        "LIST",
        "Model",
        allowed="must be cpu, cuda, or cuda:N",
        split=True,
    )
    ray: str | None = setting(
        None, "Workers as actors of a Ray cluster: local, auto, or HOST:PORT.", "ADDRESS", "Model", min_length=1
    )
    concurrency: int = setting(
        8, "Concurrent requests to the endpoint. [dim]Default: 8[/]", "N", "Endpoint", ge=1, le=1024
    )
    max_requests: int | None = setting(
        None, "Send at most N requests, retries included; then the run stops.", "N", "Endpoint", ge=1, le=MAX_COUNT
    )
    endpoint_timeout: float = setting(
        600.0, "Maximum seconds for a whole answer. [dim]Default: 600[/]", "X", "Endpoint", gt=0, le=10**6
    )
    endpoint_retries: int = setting(
        5,
        "Further attempts after status 429, 5xx, a timeout or a broken connection. [dim]Default: 5[/]",
        "N",
        "Endpoint",
        ge=0,
        le=100,
    )
    judge: str | None = setting(
        None,
        "Checkpoint that answers the checks `judge`: a file, or bundled for the bundled model.",
        "FILE",
        "Judge",
        min_length=1,
        allowed="must be a file, or bundled",
    )
    judge_strategy: str = setting("auto", "Device and precision of the judge, as --strategy.", "TEXT", "Judge")
    judge_vocab: str | None = setting(None, "Vocabulary of the judge, as --vocab.", "FILE|world", "Judge", min_length=1)
    judge_url: str | None = setting(
        None,
        "Base URL of an OpenAI-compatible server whose model judges. [dim]The key is $RWKVBATCH_JUDGE_KEY.[/]",
        "URL",
        "Judge",
    )
    judge_model: str | None = setting(
        None, "Name of the judge on the server. [dim]Default: the only one that the server lists.[/]", "NAME", "Judge"
    )
    judge_body: str = setting("", "Further fields of each request to the judge, as JSON.", "JSON", "Judge", text=True)
    max_prompt_tokens: int | None = setting(
        None,
        "Maximum prompt length in tokens. Longer turns fail, and the run continues.",
        "N",
        "Prompt",
        ge=1,
        le=MAX_COUNT,
    )
    only: tuple[str, ...] = setting(
        (),
        "Only conversations with this id or tag, or a pattern of them (memory-*); may be repeated.",
        "ID|TAG",
        "What is replayed",
    )
    limit: int | None = setting(None, "At most N conversations.", "N", "What is replayed", ge=1, le=MAX_COUNT)
    shuffle_seed: int | None = setting(
        None,
        "Shuffle the conversations with this seed, before --limit.",
        "N",
        "What is replayed",
        ge=-(2**63),
        lt=2**63,
    )
    repeats: Annotated[int, Field(ge=1, le=1_000_000)] = setting(
        1, "Repetitions per conversation and cell; N..M with --until-ci. [dim]Default: 1[/]", "N|N..M", "The run", "-r"
    )
    max_repeats: int | None = setting(None, "M of --repeats N..M.", "M", None, ge=2, le=1_000_000)
    until_ci: float | None = setting(
        None, "Add repeats while a cell's interval against the first cell is wider.", "WIDTH", "The run", gt=0, le=10**9
    )
    race: bool = setting(
        False,
        "Drop cells during the run once they are shown to score worse than another one.",
        "",
        "The run",
        allowed="must be true or false",
    )
    race_margin: float | None = setting(
        None,
        "End the race when the leader is shown to be less than X worse than any cell left.",
        "X",
        "The run",
        gt=0,
        lt=1,
    )
    race_level: float = setting(
        0.05, "Maximum probability that the race drops a best cell. [dim]Default: 0.05[/]", "X", "The run", gt=0, lt=1
    )
    race_rows: int | None = setting(None, "Maximum number of rows of the whole race.", "N", "The run", ge=1, lt=2**63)
    max_failures: int | None = setting(None, "Stop after more than N failed rows.", "N", "The run", ge=0, lt=2**63)

    @cached_property
    def script_limits(self) -> ScriptLimits:
        return self.part(ScriptLimits)


SYSTEM_FILE = "system_file"

SETTINGS: Mapping[str, Setting] = {
    "preset": Setting(
        f"A known-good combination: {', '.join(PRESETS)}. Other options override it.", "NAME", "Sampling"
    ),
    SYSTEM_FILE: Setting("File with the system message, as --system.", "FILE", "Prompt"),
    **{
        name: item
        for name, field in RunSettings.model_fields.items()
        for item in field.metadata
        if isinstance(item, Setting)
    },
}
"""The declarations of all settings, by name. `preset` sets all fields of `Sampling`; `system_file` sets `system` to the
content of a file."""

LISTS = frozenset(name for name, field in RunSettings.model_fields.items() if get_origin(field.annotation) is tuple)
"""Settings whose value is a list."""

FLAGS = frozenset(name for name, field in RunSettings.model_fields.items() if field.annotation is bool)
"""Settings that are on or off. Their options have no value."""

TEXTS = frozenset(name for name, declared in SETTINGS.items() if declared.text)
"""Settings whose value may be any text, commas included."""

GRID_SETTINGS = ("preset", SYSTEM_FILE, *(name for name in CellSettings.model_fields if name not in LISTS))
"""Settings that accept several values in options and in the library; each is then a dimension of the grid."""

ENDPOINT_KEY_VARIABLE = "RWKVBATCH_ENDPOINT_KEY"
"""The environment variable of an endpoint's key. It is not a setting, since no file, option or manifest may hold it."""

JUDGE_KEY_VARIABLE = "RWKVBATCH_JUDGE_KEY"
"""The environment variable of the key of a judge's server; not a setting either."""


def stands_for(key: str) -> str:
    """The setting that the setting `key` sets: `system` for `system_file`, else `key` itself."""
    return "system" if key == SYSTEM_FILE else key
