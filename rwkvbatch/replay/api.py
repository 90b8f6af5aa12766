"""The library's function `run`, which replays scripts, and `prepare`, which only makes the plan.

The command line calls both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, cast

from rwkvbatch.arguments import (
    FUNCTION,
    ITERABLE,
    NAME,
    PATH,
    SWITCH,
    TEXT,
    Kind,
    check_argument,
    checks,
    either,
    instance_of,
    list_of,
    optional,
    whole_number,
)
from rwkvbatch.config import (
    GRID_SETTINGS,
    NO_ADAPTER,
    TEXTS,
    EndpointApi,
    HistoryMode,
    Order,
    Switch,
    ThinkMode,
    TurnEnd,
)
from rwkvbatch.config.names import full_name, option_name
from rwkvbatch.config.sources import CHECKPOINT_ENDINGS, naming_origins, read_toml, resolve_settings
from rwkvbatch.errors import UsageError, counted
from rwkvbatch.files import user_path
from rwkvbatch.judges.source import JudgeSource, judge_source
from rwkvbatch.replay.consistency import (
    check_plan,
    judge_remark,
    log_left_out,
    log_lint,
    refuse_contradictions,
    with_endpoint,
)
from rwkvbatch.replay.judging.rubrics import turns_with_rubrics
from rwkvbatch.replay.metrics import serving_metrics
from rwkvbatch.replay.planning.grid import PATHS, GridFile, make_cells
from rwkvbatch.replay.planning.plan import Plan, select
from rwkvbatch.replay.planning.row_index import Shard
from rwkvbatch.replay.planning.setups import setups_of
from rwkvbatch.replay.pools.pool_kinds import pool_for
from rwkvbatch.replay.progress import Observer
from rwkvbatch.replay.runner import RunOptions, RunResult, execute
from rwkvbatch.replay.worker.models import USING_BUNDLED, ModelLoader
from rwkvbatch.results.directory import SKIPPED_NAME
from rwkvbatch.script.checks import kinds_of_functions
from rwkvbatch.script.checks.functions import Functions, using_functions
from rwkvbatch.script.documents import read_documents
from rwkvbatch.script.reader import Script, read_scripts

if TYPE_CHECKING:
    from rwkvbatch.llm import LLM
    from rwkvbatch.model.base import Model

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


_PATHS = list_of(PATH, "a list of paths")


_SOURCE = either(NAME, instance_of(Mapping, "a mapping (a conversation)"))
"""An item of `scripts`; `read_scripts` refuses empty names."""


def _is_model(value: object) -> bool:
    """Whether it has what runs use of a model; an `LLM` has it in its attribute `model`."""
    return hasattr(getattr(value, "model", value), "spec")


@checks(
    scripts=either(_SOURCE, Kind("a list of these", ITERABLE.accepts)),
    out=optional(PATH),
    model=optional(either(PATH, _PATHS, Kind("a loaded Model or LLM", _is_model))),
    grid=optional(PATH),
    config=optional(PATH),
    environment=optional(instance_of(Mapping, "a mapping of names to texts, such as os.environ")),
    checks=optional(either(PATH, instance_of(Mapping, "a mapping of names to functions"))),
    documents=SWITCH,
    skip_bad=SWITCH,
    shard=optional(TEXT),
    retry_errors=SWITCH,
    repair=SWITCH,
    verify_rows=whole_number(0),
    metrics_port=optional(whole_number(0, 65535)),
    observer=optional(instance_of(Observer, "an Observer")),
    notify=FUNCTION,
    should_stop=FUNCTION,
    loading=FUNCTION,
    command=TEXT,
)
def run(
    scripts: Scripts,
    *,
    out: PathLike | None = None,
    model: LLM | Model | PathLike | Sequence[PathLike] | None = None,
    grid: PathLike | None = None,
    config: PathLike | None = None,
    environment: Mapping[str, str] | None = None,
    checks: Functions | None = None,
    documents: bool = False,
    skip_bad: bool = False,
    shard: str | None = None,
    retry_errors: bool = False,
    repair: bool = False,
    verify_rows: int = 0,
    metrics_port: int | None = None,
    observer: Observer | None = None,
    notify: Callable[[str], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    loading: Callable[[], AbstractContextManager[None]] = nullcontext,
    command: str = "rwkvbatch.run(...)",
    **settings: Unpack[RunKeywords],
) -> RunResult:
    """Replay the conversations of `scripts`, many at once.

    Args:
        scripts: a file or several; `-` is standard input. Also conversations, each a mapping in any form that a line of
            a script may have, with values as `json.loads` returns them.
        out: the run directory, new or one to continue; None keeps the rows in memory.
        model: a loaded model or an `LLM`, a checkpoint's file or several (a dimension of the grid), or None for the
            bundled one.
        grid: a TOML file with a grid of settings.
        config: a TOML file with settings.
        environment: variables from which `RWKVBATCH_*` settings are read, such as `os.environ`; None reads none.
        checks: functions that `expect` in the scripts may name as kinds of checks, by name, or a Python file that
            defines them.
        documents: score text files, JSON lines with `text` and folders of them, as `rwkvbatch score` does.
        skip_bad: set bad lines of a script aside instead of raising.
        shard: run only this part of the conversations, such as `2/8`.
        retry_errors: run failed rows again.
        repair: set damaged rows aside and run them again.
        verify_rows: afterwards, generate this many rows again, alone and in another batch.
        metrics_port: serve metrics for Prometheus on this port of 127.0.0.1 during the run; 0 takes a free one.
        observer: receives progress.
        notify: is called with messages for the user.
        should_stop: called between steps; true ends the run, which can be continued.
        loading: makes a context in which files are read and the models are loaded. If it raises, nothing was written.
        command: the command that started the run, for the manifest.
        settings: fields of `RunSettings`, see `RunKeywords`; a list of values makes a dimension of the grid. They
            override a conversation's `params`.

    Returns:
        The summary, and the rows: `result.rows()`.

    Raises:
        UsageError, ScriptError, CheckpointError, RunDirectoryError, StorageError: see `rwkvbatch.errors`.
    """
    loaded: Model | None = None
    if model is not None and not isinstance(model, (str, os.PathLike, Sequence)):
        loaded, model = cast("Model", getattr(model, "model", model)), None
    sources: dict[str, Any] = {"grid": grid, "config": config, "environment": environment, "documents": documents}
    sources["checks"] = checks
    with loading():  # a script may be a pipe that never ends
        prepared = prepare(scripts, model=model, skip_bad=skip_bad, shard=shard, **sources, **settings)
    plan, skipped = prepared.plan, prepared.script.skipped
    if loaded is not None:
        _refuse_loading_settings(plan)
    log_lint(plan)
    observers = [] if observer is None else [observer]
    loader = ModelLoader(plan.settings, loaded, notify)
    with loading(), naming_origins(plan.origins):
        judge = _judge(plan, loader, notify)
    with ExitStack() as stack:
        if metrics_port is not None:
            metrics = stack.enter_context(serving_metrics(metrics_port))
            notify(f"metrics for Prometheus are at {metrics.url}")
            observers.append(metrics)
        stack.enter_context(naming_origins(plan.origins))
        pool = pool_for(plan.settings, model_given=loaded is not None)
        if pool is not None and isinstance(checks, Mapping) and checks:
            hint = 'write them into a file and give its name: checks="checks.py"; or leave workers, devices and ray out'
            raise UsageError("checks that are functions of this process cannot judge in other processes", hint=hint)
        options = RunOptions(
            out=None if out is None else Path(out),
            scripts=prepared.names,
            command=command,
            retry_errors=retry_errors,
            repair=repair,
            verify_rows=verify_rows,
            skipped=skipped,
            observers=observers,
            should_stop=should_stop,
            notify=notify,
            loading=loading,
            pool=pool,
            judge=judge,
        )
        if pool is not None and _uses_bundled(plan):  # the loaders of other processes cannot say it
            notify(USING_BUNDLED)
        result = execute(plan, loader, options)
    if skipped and result.directory is not None:
        count, path = len(skipped), result.directory / SKIPPED_NAME
        notify(f"{counted(count, 'bad line')} set aside in {path}")
    return result


def _uses_bundled(plan: Plan) -> bool:
    from rwkvbatch.model.model_files import is_bundled

    # Not `resolve_model_path`: with `--ray`, the files may be on other machines only.
    return any(setup.endpoint is None and is_bundled(setup.model) for setup in setups_of(plan))


def _refuse_loading_settings(plan: Plan) -> None:
    """Refuse settings of how a model is loaded, which would change nothing about one that is loaded already."""
    for setup in setups_of(plan):
        given = {
            "strategy": setup.strategy != "auto",
            "backend": setup.backend != "auto",
            "adapter": setup.adapter != NO_ADAPTER,
            "endpoint": setup.endpoint is not None,
        }
        for name in (name for name, is_given in given.items() if is_given):
            raise UsageError(
                f"{name} is given, and so is a model that is loaded already, which it cannot change",
                hint=f"give the checkpoint's file as model, or leave {name} out",
            )


def _judge(plan: Plan, loader: ModelLoader, notify: Callable[[str], None]) -> JudgeSource | None:
    """The judge that the settings name, if the script has rubrics; raises as `JudgeSource.check`."""
    source = judge_source(plan.settings, loader.budget, given=plan.explicit)
    if (remark := judge_remark(plan, source)) is not None:
        notify(f"note: {remark}")
    if source is None or not turns_with_rubrics(plan.conversations):
        return None
    source.check()
    return source


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
        check_argument(f"scripts[{index}]", item, _SOURCE)
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
    """The paths of a comma list. Each path has as many parts as possible such that a file of this name exists."""
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
