"""The plan of a run, made from the arguments of `replay.api.run`. Loads no model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast

from rwkvbatch.arguments import NAME, check_argument, either, instance_of
from rwkvbatch.config import GRID_SETTINGS, TEXTS, EndpointApi, HistoryMode, Order, Switch, ThinkMode, TurnEnd
from rwkvbatch.config.names import full_name, option_name
from rwkvbatch.config.sources import CHECKPOINT_ENDINGS, naming_origins, read_toml, resolve_settings
from rwkvbatch.errors import UsageError
from rwkvbatch.files import user_path
from rwkvbatch.replay.consistency import check_plan, log_left_out, refuse_contradictions, with_endpoint
from rwkvbatch.replay.planning.grid import PATHS, GridFile, make_cells
from rwkvbatch.replay.planning.plan import Plan, select
from rwkvbatch.replay.planning.row_index import Shard
from rwkvbatch.script.checks import kinds_of_functions
from rwkvbatch.script.checks.functions import Functions, using_functions
from rwkvbatch.script.documents import read_documents
from rwkvbatch.script.reader import Script, read_scripts

PathLike = str | os.PathLike[str]
Scripts = PathLike | Mapping[str, Any] | Iterable[PathLike | Mapping[str, Any]]
"""Paths of scripts, and conversations in any form that a script's line may have."""

FROM_PYTHON = "<python>"
"""In the manifest, the name of the conversations that a program gave."""


class RunKeywords(TypedDict, total=False):
    """Fields of `RunSettings`, `preset` and `system_file`; a list of values makes a dimension of the grid."""

    preset: str | Sequence[str]
    temperature: float | Sequence[float]
    temp: float | Sequence[float]
    top_p: float | Sequence[float]
    top_k: int | Sequence[int]
    min_p: float | Sequence[float]
    presence_penalty: float | Sequence[float]
    frequency_penalty: float | Sequence[float]
    penalty_decay: float | Sequence[float]
    order: Order | Sequence[Order]
    no_penalty: Sequence[str]
    banned_token_ids: Sequence[int]
    max_tokens: int | Sequence[int]
    max_seconds: float | Sequence[float] | None
    stop: Sequence[str]
    think: ThinkMode | Sequence[ThinkMode]
    turn_end: TurnEnd | Sequence[TurnEnd]
    reply_prefix: str | Sequence[str]
    bos: Switch | bool | Sequence[Switch | bool]
    history: HistoryMode | Sequence[HistoryMode]
    adapter: str | Sequence[str]
    strategy: str | Sequence[str]
    backend: str | Sequence[str]
    state: str | Sequence[str] | None
    template: str | Sequence[str] | None
    prelude: str | Sequence[str] | None
    system: str | Sequence[str] | None
    system_file: PathLike | Sequence[PathLike]
    endpoint: str | Sequence[str] | None
    endpoint_model: str | Sequence[str] | None
    endpoint_api: EndpointApi | Sequence[EndpointApi]
    endpoint_body: str | Sequence[str]
    concurrency: int
    max_requests: int | None
    endpoint_timeout: float
    endpoint_retries: int
    judge: str | None
    judge_strategy: str
    judge_vocab: str | None
    judge_url: str | None
    judge_model: str | None
    judge_body: str
    seed: int
    repeats: int | str
    max_repeats: int | None
    until_ci: float | None
    race: bool
    race_margin: float | None
    race_level: float
    race_rows: int | None
    limit: int | None
    only: Sequence[str]
    shuffle_seed: int | None
    batch_size: int
    threads: int | None
    workers: int | None
    devices: Sequence[str]
    ray: str | None
    state_memory: int | str | None
    vocab: str | None
    max_prompt_tokens: int | None
    max_failures: int | None
    max_line_bytes: int | str
    max_turns: int
    max_conversations: int


SCRIPT_SOURCE = either(NAME, instance_of(Mapping, "a mapping (a conversation)"))
"""An item of `scripts`; `read_scripts` refuses empty names."""


@dataclass(frozen=True)
class Prepared:
    """A plan and its script.

    Attributes:
        names: the scripts' names for the manifest.
    """

    plan: Plan
    script: Script
    names: tuple[str, ...]


def prepare(
    scripts: Scripts,
    *,
    model: PathLike | Sequence[PathLike] | None = None,
    grid: PathLike | None = None,
    config: PathLike | None = None,
    environment: Mapping[str, str] | None = None,
    checks: Functions | None = None,
    documents: bool = False,
    skip_bad: bool = False,
    shard: str | None = None,
    **settings: Unpack[RunKeywords],
) -> Prepared:
    """The plan of a run; loads no model. Arguments and errors are those of `run`."""
    given: dict[str, Any] = {**settings}
    if model is not None:
        given["model"] = os.fspath(model) if isinstance(model, (str, os.PathLike)) else [os.fspath(m) for m in model]
    values, lists = split_lists(given)
    resolved = resolve_settings(values, environment=environment, config=None if config is None else Path(config))
    files = [] if config is None else [GridFile(os.fspath(config), resolved.grid)]
    if grid is not None:
        files.append(GridFile(os.fspath(grid), read_toml(Path(grid), "--grid")))
    cells = make_cells(lists, *files)
    varied = {option_name(key) for cell in cells for key in cell.overrides}
    origins = [replace(origin, is_only=origin.option not in varied) for origin in resolved.origins]
    origins += [origin for file in files for origin in file.origins(cells)]
    resolved = replace(resolved, origins=tuple(origins))
    with naming_origins(resolved.origins):
        part = None if shard is None else Shard.parse(shard)
        refuse_contradictions(resolved, cells, part)
        resolved = with_endpoint(resolved, cells)
        limits = resolved.settings.script_limits
        sources = _listed(scripts, limits.max_conversations)
        paths = [source for source in sources if isinstance(source, str)]
        if not documents:
            with using_functions(kinds_of_functions(checks)):
                script = read_scripts(sources, limits=limits, skip_bad=skip_bad)
        elif len(paths) < len(sources):
            hint = 'leave it out: conversations such as {"text": "..."} are scored without it'
            raise UsageError("documents=True is for files, and a conversation is given", hint=hint)
        else:
            script = read_documents(paths, limits=limits, skip_bad=skip_bad)
        log_left_out(script)
        plan = Plan(select(script.conversations, resolved.settings), cells, resolved, part)
        check_plan(plan)
        names = (source if isinstance(source, str) else FROM_PYTHON for source in sources)
        return Prepared(plan, script, tuple(dict.fromkeys(names)))


def _listed(scripts: Scripts, max_conversations: int) -> list[str | Mapping[str, Any]]:
    """The paths and conversations of the argument `scripts`; of an iterator, only as many as the reader refuses.

    Raises:
        ArgumentError: an item is neither.
    """
    is_one = isinstance(scripts, (str, os.PathLike, Mapping))
    items = cast("Iterable[PathLike | Mapping[str, Any]]", [scripts] if is_one else scripts)
    sources: list[str | Mapping[str, Any]] = []
    for index, item in enumerate(islice(items, max_conversations + 2)):  # one may be a line of defaults
        check_argument(f"scripts[{index}]", item, SCRIPT_SOURCE)
        sources.append(os.fspath(item) if isinstance(item, (str, os.PathLike)) else item)
    return sources


def split_lists(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The settings with one value, and those with several values, by full names.

    Only settings that a grid may vary have several: a comma list such as `0.3,0.7`, or a sequence.

    Raises:
        UsageError: a list has an empty item.
    """
    single: dict[str, Any] = {}
    lists: dict[str, list[Any]] = {}
    for raw_key, value in values.items():
        key = full_name(raw_key)
        items: list[Any] = [value]
        if key in GRID_SETTINGS:
            if isinstance(value, str) and "," in value and key not in TEXTS:
                items = _split_paths(value) if key in PATHS else [item.strip() for item in value.split(",")]
            elif isinstance(value, (list, tuple)):
                items = list(value)  # pyright: ignore[reportUnknownArgumentType]
            if not items or ("" in items and key not in TEXTS):
                raise UsageError(f"{option_name(key)} has an empty item in {value!r}")
        if len(items) == 1:
            single[key] = items[0]
        else:
            lists[key] = items
    return single, lists


def _split_paths(text: str) -> list[str]:
    """The paths of a comma list. Each path joins as many parts as possible to the name of an existing file."""
    parts, paths = text.split(","), list[str]()
    while parts:
        sizes = range(len(parts), 1, -1)
        size = next((n for n in sizes if _is_path(",".join(parts[:n]).strip())), 1)
        paths.append(",".join(parts[:size]).strip())
        parts = parts[size:]
    return paths


def _is_path(name: str) -> bool:
    try:
        return any(user_path(f"{name}{ending}").exists() for ending in CHECKPOINT_ENDINGS)
    except (OSError, ValueError, RuntimeError):
        return False
