"""`run`: replay scripts from Python; the command line calls it too."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Unpack, cast

from rwkvbatch.replay.layers import naming_origins
from rwkvbatch.replay.models import ModelLoader
from rwkvbatch.replay.pool import pool_for
from rwkvbatch.replay.prepare import PathLike, RunKeywords, prepare, script_names
from rwkvbatch.replay.progress import Observer, Observers, serving_metrics
from rwkvbatch.replay.runner import RunOptions, RunResult, execute
from rwkvbatch.results.directory import SKIPPED_NAME

if TYPE_CHECKING:
    from rwkvbatch.llm import LLM
    from rwkvbatch.model.base import Model


def run(
    scripts: PathLike | Sequence[PathLike],
    *,
    out: PathLike | None = None,
    model: LLM | Model | PathLike | Sequence[PathLike] | None = None,
    grid: PathLike | None = None,
    config: PathLike | None = None,
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
        model: a loaded model or an `LLM`, a checkpoint's file or several (a dimension of the grid), or None for the
            bundled one.
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
    prepared = prepare(
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
            scripts=script_names(scripts),
            command=command,
            retry_errors=retry_errors,
            repair=repair,
            verify_rows=verify_rows,
            skipped=skipped,
            observer=observer,
            should_stop=should_stop,
            loading=loading,
            pool=pool_for(plan.settings, model_given=loaded is not None),
        )
        result = execute(plan, ModelLoader(plan.settings, loaded, notify), options)
    if skipped and result.directory is not None:
        count, path = len(skipped), result.directory / SKIPPED_NAME
        notify(f"{count} bad line{'s' if count > 1 else ''} set aside in {path}")
    return result
