"""`run`: replay scripts from Python; the command line calls it too."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, cast

from rwkvbatch.config import HistoryMode, ThinkMode
from rwkvbatch.replay.layers import naming_origins
from rwkvbatch.replay.metrics_server import serving_metrics
from rwkvbatch.replay.models import ModelLoader
from rwkvbatch.replay.pool import pool_for
from rwkvbatch.replay.prepare import Prepared, RunArguments, prepare, split_lists
from rwkvbatch.replay.progress import Observer, Observers
from rwkvbatch.replay.runner import RunOptions, RunResult, execute
from rwkvbatch.results.directory import SKIPPED_NAME

if TYPE_CHECKING:
    from rwkvbatch.model.base import Model

_PathLike = str | os.PathLike[str]
_Order = Literal["top-p-first", "temperature-first"]


class RunKeywords(TypedDict, total=False):
    """Fields of `RunSettings`, and `preset`; a list of values makes a dimension of the grid."""

    preset: str | Sequence[str]
    temperature: float | Sequence[float]
    temp: float | Sequence[float]
    top_p: float | Sequence[float]
    top_k: int | Sequence[int]
    presence_penalty: float | Sequence[float]
    frequency_penalty: float | Sequence[float]
    penalty_decay: float | Sequence[float]
    order: _Order | Sequence[_Order]
    banned_token_ids: Sequence[int]
    max_tokens: int | Sequence[int]
    max_seconds: float | Sequence[float] | None
    stop: Sequence[str]
    think: ThinkMode | Sequence[ThinkMode]
    history: HistoryMode | Sequence[HistoryMode]
    strategy: str | Sequence[str]
    backend: str | Sequence[str]
    state: str | Sequence[str] | None
    template: str | Sequence[str] | None
    prelude: str | Sequence[str] | None
    seed: int
    repeats: int | str
    max_repeats: int | None
    until_ci: float | None
    limit: int | None
    only: Sequence[str]
    shuffle_seed: int | None
    batch_size: int
    threads: int | None
    workers: int | None
    devices: Sequence[str]
    ray: str | None
    state_memory: int | str | None
    max_prompt_tokens: int | None
    max_failures: int | None
    max_line_bytes: int | str
    max_turns: int
    max_conversations: int


def plan_run(
    scripts: _PathLike | Sequence[_PathLike],
    *,
    model: _PathLike | Sequence[_PathLike] | None = None,
    grid: _PathLike | None = None,
    config: _PathLike | None = None,
    environment: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    shard: str | None = None,
    **settings: Unpack[RunKeywords],
) -> Prepared:
    """The plan of a run, without loading a model; arguments as those of `run`.

    Raises:
        UsageError: a setting, the grid or the selection is not allowed.
        ScriptError: a script cannot be read.
    """
    given: dict[str, Any] = {**settings}
    if model is not None:
        given["model"] = os.fspath(model) if isinstance(model, (str, os.PathLike)) else [os.fspath(m) for m in model]
    values, lists = split_lists(given)
    return prepare(
        RunArguments(
            scripts=_script_names(scripts),
            values=values,
            lists=lists,
            grid=None if grid is None else Path(grid),
            config=None if config is None else Path(config),
            environment=environment,
            skip_bad=skip_bad,
            shard=shard,
        )
    )


def run(
    scripts: _PathLike | Sequence[_PathLike],
    *,
    out: _PathLike | None = None,
    model: Model | _PathLike | Sequence[_PathLike] | None = None,
    grid: _PathLike | None = None,
    config: _PathLike | None = None,
    environment: Mapping[str, str] | None = None,
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
        scripts: a file or several; `-` is standard input.
        out: the run directory, new or one to continue; None keeps the rows in memory.
        model: a loaded model (or an object that has one as `model`), a checkpoint's file or several (a dimension of the
            grid), or None for the bundled one.
        grid: a TOML file with a grid of settings. config: one with settings.
        environment: where `RWKVBATCH_*` settings are read from, such as `os.environ`; None reads none.
        skip_bad: leave bad lines of a script out.
        shard: run only this part of the conversations, such as `2/8`.
        retry_errors: run rows again that failed. repair: set damaged rows aside and run them again.
        verify_rows: afterwards, generate this many rows again, alone and in another batch.
        metrics_port: serve metrics for Prometheus on this port of 127.0.0.1 while it runs; 0 takes a free one.
        observer: receives progress. notify: receives messages for people.
        should_stop: called between steps; true ends the run, which can be continued.
        loading: entered while the models are loaded; what it raises leaves no trace.
        command: how the run was started, for the manifest.
        settings: fields of `RunSettings`, see `RunKeywords`; a list of values makes a dimension of the grid. They
            win over a conversation's own params.

    Returns:
        The summary, and the rows: `result.rows()`.

    Raises:
        UsageError, ScriptError, CheckpointError, RunDirectoryError, StorageError: see `rwkvbatch.errors`.
    """
    loaded: Model | None = None
    if model is not None and not isinstance(model, (str, os.PathLike, Sequence)):
        loaded, model = cast("Model", getattr(model, "model", model)), None
    prepared = plan_run(
        scripts,
        model=model,
        grid=grid,
        config=config,
        environment=environment,
        skip_bad=skip_bad,
        shard=shard,
        **settings,
    )
    plan, skipped = prepared.plan, prepared.script.skipped
    with ExitStack() as stack:
        if metrics_port is not None:
            served = stack.enter_context(serving_metrics(metrics_port))
            notify(f"metrics for Prometheus are at {served.url}")
            observer = served if observer is None else Observers([observer, served])
        stack.enter_context(naming_origins(plan.origins))
        options = RunOptions(
            out=None if out is None else Path(out),
            scripts=_script_names(scripts),
            command=command,
            retry_errors=retry_errors,
            repair=repair,
            verify_rows=verify_rows,
            skipped=skipped,
            observer=observer,
            should_stop=should_stop,
            loading=loading,
            crew=pool_for(plan.settings, model_given=loaded is not None),
        )
        result = execute(plan, ModelLoader(plan.settings, loaded, notify), options)
    if skipped and result.directory is not None:
        count, path = len(skipped), result.directory / SKIPPED_NAME
        notify(f"{count} bad line{'s' if count > 1 else ''} set aside in {path}")
    return result


def _script_names(scripts: _PathLike | Sequence[_PathLike]) -> tuple[str, ...]:
    paths = [scripts] if isinstance(scripts, (str, os.PathLike)) else scripts
    return tuple(os.fspath(path) for path in paths)
