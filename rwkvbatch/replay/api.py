"""The library's function `run`, which replays scripts. The command line calls it too."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast

from rwkvbatch.arguments import (
    FUNCTION,
    ITERABLE,
    PATH,
    SWITCH,
    TEXT,
    Kind,
    checks,
    either,
    instance_of,
    list_of,
    optional,
    whole_number,
)
from rwkvbatch.config import NO_ADAPTER
from rwkvbatch.config.sources import naming_origins
from rwkvbatch.errors import UsageError, counted
from rwkvbatch.judges.source import JudgeSource, judge_source
from rwkvbatch.replay.consistency import judge_remark, log_lint
from rwkvbatch.replay.judging.rubrics import turns_with_rubrics
from rwkvbatch.replay.metrics import serving_metrics
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.planning.setups import setups_of
from rwkvbatch.replay.pools.pool_kinds import pool_for
from rwkvbatch.replay.prepare import SCRIPT_SOURCE, PathLike, RunKeywords, Scripts, prepare
from rwkvbatch.replay.progress import Observer
from rwkvbatch.replay.runner import RunOptions, RunResult, execute
from rwkvbatch.replay.worker.models import USING_BUNDLED, ModelLoader
from rwkvbatch.results.directory import SKIPPED_NAME
from rwkvbatch.script.checks.functions import Functions

if TYPE_CHECKING:
    from rwkvbatch.llm import LLM
    from rwkvbatch.model.base import Model


def _is_model(value: object) -> bool:
    """Whether runs can use an object as a model; an `LLM` has one as its attribute `model`."""
    return hasattr(getattr(value, "model", value), "spec")


@checks(
    scripts=either(SCRIPT_SOURCE, Kind("a list of these", ITERABLE.accepts)),
    out=optional(PATH),
    model=optional(
        either(
            PATH,
            list_of(PATH, "a list of paths"),
            instance_of(Mapping, "a mapping of names to tensors"),
            Kind("a loaded Model or LLM", _is_model),
        )
    ),
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
    model: LLM | Model | Mapping[str, Any] | PathLike | Sequence[PathLike] | None = None,
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
        model: a loaded model or an `LLM`, tensors by name (`load_model`), a checkpoint's file or several (a dimension
            of the grid), or None for the bundled one.
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
    weights: Mapping[str, Any] | None = None
    if isinstance(model, Mapping):
        weights, model = model, None
    elif model is not None and not isinstance(model, (str, os.PathLike, Sequence)):
        loaded, model = cast("Model", getattr(model, "model", model)), None
    with loading():  # a script may be a pipe that never ends
        prepared = prepare(
            scripts,
            model=model,
            grid=grid,
            config=config,
            environment=environment,
            checks=checks,
            documents=documents,
            skip_bad=skip_bad,
            shard=shard,
            **settings,
        )
    plan, skipped = prepared.plan, prepared.script.skipped
    if loaded is not None or weights is not None:
        _refuse_loading_settings(plan, only_endpoint=loaded is None)
    log_lint(plan)
    observers = [] if observer is None else [observer]
    loader = ModelLoader(plan.settings, loaded, notify, weights)
    with loading(), naming_origins(plan.origins):
        judge = _judge(plan, loader, notify)
    with ExitStack() as stack:
        if metrics_port is not None:
            metrics = stack.enter_context(serving_metrics(metrics_port))
            notify(f"metrics for Prometheus are at {metrics.url}")
            observers.append(metrics)
        stack.enter_context(naming_origins(plan.origins))
        pool = pool_for(plan.settings, model_given=loaded is not None or weights is not None)
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


def _refuse_loading_settings(plan: Plan, *, only_endpoint: bool) -> None:
    """Refuse settings of how a model is loaded, which would change nothing about one that is loaded already.

    Args:
        only_endpoint: refuse served models only: the given model is still to be loaded, from tensors.
    """
    for setup in setups_of(plan):
        given = {
            "endpoint": setup.endpoint is not None,
            "strategy": setup.strategy != "auto" and not only_endpoint,
            "backend": setup.backend != "auto" and not only_endpoint,
            "adapter": setup.adapter != NO_ADAPTER and not only_endpoint,
        }
        for name in (name for name, is_given in given.items() if is_given):
            raise UsageError(
                f"{name} is given, and so is a model in memory, which it cannot change",
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
