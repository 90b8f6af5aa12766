"""`run`: replay scripts from Python, as `rwkvbatch run` does from a shell."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, cast

from rwkvbatch.config import HistoryMode, ThinkMode
from rwkvbatch.replay.models import ModelLoader
from rwkvbatch.replay.pool import pool_for
from rwkvbatch.replay.prepare import RunArguments, prepare, split_lists
from rwkvbatch.replay.progress import Observer
from rwkvbatch.replay.runner import RunOptions, RunResult, execute
from rwkvbatch.replay.settings import CellSettings, told_with_errors

if TYPE_CHECKING:
    from rwkvbatch.model.base import Model

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
    repeats: int
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


LISTED = ("preset", *(name for name in CellSettings.model_fields if name not in ("banned_token_ids", "stop")))
"""Settings that may be given as several values, each a dimension of the grid."""


def run(
    scripts: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str] | None = None,
    model: Model | str | os.PathLike[str] | Sequence[str] | None = None,
    grid: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | None = None,
    retry_errors: bool = False,
    repair: bool = False,
    skip_bad: bool = False,
    shard: str | None = None,
    observer: Observer | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    **settings: Unpack[RunKeywords],
) -> RunResult:
    """Replay the conversations of `scripts`, many at once.

    Args:
        scripts: a file or several; `-` is standard input.
        out: the run directory, new or one to continue; None keeps the rows in memory.
        model: a loaded model, a checkpoint's file or several (a dimension of the grid), or None for the bundled
            one.
        grid: a TOML file with a grid of settings. config: one with settings.
        retry_errors: run rows again that failed. repair: set damaged rows aside and run them again.
        skip_bad: leave bad lines of a script out.
        shard: run only this part of the conversations, such as `2/8`.
        observer: is told of progress. should_stop: asked between steps; true ends the run, which can be continued.
        settings: fields of `RunSettings`, see `RunKeywords`; a list of values makes a dimension of the grid. They
            win over a conversation's own params.

    Returns:
        The summary, and the rows: `result.rows()`.

    Raises:
        UsageError, ScriptError, CheckpointError, RunDirectoryError, StorageError: see `rwkvbatch.errors`.
    """
    paths = [scripts] if isinstance(scripts, (str, os.PathLike)) else list(scripts)
    given: dict[str, Any] = {**settings}
    loaded: Model | None = None
    match model:
        case None:
            pass
        case str() | os.PathLike():
            given["model"] = os.fspath(model)
        case list() | tuple():
            given["model"] = [os.fspath(name) for name in model]
        case _:
            loaded = cast("Model", model)
    values, lists = split_lists(given, LISTED)
    names = tuple(os.fspath(path) for path in paths)
    prepared = prepare(
        RunArguments(
            scripts=names,
            values=values,
            lists=lists,
            grid=None if grid is None else Path(grid),
            config=None if config is None else Path(config),
            skip_bad=skip_bad,
            shard=shard,
        )
    )
    plan = prepared.plan
    with told_with_errors(plan.origins):
        options = RunOptions(
            out=None if out is None else Path(out),
            scripts=names,
            command="rwkvbatch.run(...)",
            retry_errors=retry_errors,
            repair=repair,
            observer=observer,
            should_stop=should_stop,
            crew=pool_for(plan.settings, model_given=loaded is not None),
        )
        return execute(plan, ModelLoader(plan.settings, loaded), options)
