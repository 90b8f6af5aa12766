"""Settings of a cell and of a run, the limits of scripts, and the tables of all settings."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Literal, get_origin

from pydantic import BeforeValidator, Field

from rwkvbatch.config.prompting import DialoguePrompt, Prompting
from rwkvbatch.config.sampling import MAX_COUNT, PRESETS, ReplySettings
from rwkvbatch.config.setting import Setting, Settings, setting

HistoryMode = Literal["own", "gold"]
EndpointApi = Literal["completions", "completions-ids", "chat"]


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

IN_MEMORY = "<state_dict>"
"""The name of a model whose weights were given as tensors, in place of a file."""


class CellSettings(ReplySettings, DialoguePrompt, Prompting):
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
        None,
        "Text read before the first turn (an initial exchange), or the name api-demo-chat; none for no text.",
        "FILE",
        "Prompt",
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
    def prompting(self) -> Prompting:
        return self.part(Prompting)


class RunSettings(CellSettings, ScriptLimits):
    """All settings of a run. Those of `CellSettings` apply to every cell unless the grid changes them.

    With both `max_repeats` and `until_ci`, a cell's repeats grow from `repeats` up to `max_repeats` while its paired
    interval against the first cell is wider than `until_ci`. With `race`, cells that are worse than another one are
    dropped, see `replay.planning.race`. None means no limit or a default: all processors, shared evenly between the
    workers, for `threads`, and the engine's default for `state_memory`.
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
