"""Construction of the judge that settings name: checked before a run, opened on first use."""

from __future__ import annotations

import re
from collections.abc import Generator, Set
from contextlib import contextmanager
from typing import Any

from rwkvbatch.config import RunSettings
from rwkvbatch.endpoint.client import JUDGE_OPTIONS, Budget, Client, ClientOptions, check_url
from rwkvbatch.endpoint.served import Endpoint, extra_fields, refuse_without, served_spec
from rwkvbatch.errors import RwkvBatchError, UsageError
from rwkvbatch.judges.answers import Judge
from rwkvbatch.judges.local import LocalJudge
from rwkvbatch.judges.served import ServedJudge

BUNDLED = "bundled"
"""The name of the bundled model for `--judge`."""


class JudgeSource:
    """Checks and opens a judge.

    Attributes:
        is_local: whether the open judge is a model in this process, which needs memory.
    """

    def __init__(self, settings: RunSettings, budget: Budget | None = None) -> None:
        self._settings = settings
        self._budget = budget
        self._served: ServedJudge | None = None
        self.is_local = settings.judge_url is None

    def check(self, *, ask_server: bool = True) -> None:
        """Check that the judge can be opened, without loading a model.

        Args:
            ask_server: ask a server for its models if none is named.

        Raises:
            UsageError: contradicting settings, an invalid URL, or a refused key.
            CheckpointError: the file does not exist, or is not a checkpoint.
            WorkerError, EndpointError: the server cannot be reached, or sends an invalid answer.
        """
        if self.is_local:
            from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
            from rwkvbatch.model.checkpoints.description import describe
            from rwkvbatch.model.load import check_strategy
            from rwkvbatch.model.model_files import resolve_model_path
            from rwkvbatch.prompt.vocabulary import tokenizer_of

            path = resolve_model_path(self._path()).path
            with _naming_judge_options(), open_checkpoint(path) as checkpoint:
                tokenizer_of(describe(checkpoint), self._settings.judge_vocab)
                check_strategy(checkpoint, self._settings.judge_strategy)
        elif ask_server:
            self._served_judge()
        else:
            self._client()

    def open(self) -> Judge:
        """The judge, with its model loaded; raises as `check`."""
        if not self.is_local:
            return self._served_judge()
        from rwkvbatch.model.load import load_model
        from rwkvbatch.prompt.vocabulary import tokenizer_of

        settings = self._settings
        with _naming_judge_options():
            model = load_model(self._path(), settings.judge_strategy, threads=settings.threads)
            return LocalJudge(model, tokenizer_of(model.spec, settings.judge_vocab), settings.batch_size)

    def _path(self) -> str:
        from rwkvbatch.model.model_files import BUNDLED_MODEL

        name = self._settings.judge
        assert name is not None
        return str(BUNDLED_MODEL) if name == BUNDLED else name

    def _served_judge(self) -> ServedJudge:
        if self._served is None:
            client, extra = self._client()
            model = self._settings.judge_model or served_spec(Endpoint(client.url, "", "chat", ""), client).name
            self._served = ServedJudge(client, model, extra)
        return self._served

    def _client(self) -> tuple[Client, dict[str, Any]]:
        """A client of the server, and further fields of each request's body."""
        settings = self._settings
        assert settings.judge_url is not None
        url, extra = check_url(settings.judge_url, JUDGE_OPTIONS), extra_fields(settings.judge_body, "--judge-body")
        options = ClientOptions(
            settings.concurrency, settings.endpoint_timeout, settings.endpoint_retries, JUDGE_OPTIONS
        )
        return Client(url, options, budget=self._budget), extra


@contextmanager
def _naming_judge_options() -> Generator[None]:
    """Name the judge's options in errors about its model."""
    try:
        yield
    except RwkvBatchError as error:
        error.message = _OPTION.sub(r"--judge-\1", error.message)
        error.hint = None if error.hint is None else _OPTION.sub(r"--judge-\1", error.hint)
        error.args = (error.message,)
        raise


_OPTION = re.compile("--(strategy|vocab)")


def judge_source(
    settings: RunSettings, budget: Budget | None = None, *, given: Set[str] | None = None
) -> JudgeSource | None:
    """The judge that settings name; None if they name none.

    Args:
        budget: limits the requests to a server together with other requests; None for a budget of
            `settings.max_requests` for the judge alone.
        given: names of the settings that the command line or a caller gave; None for all that are set. Others, such as
            those of the environment, are not refused where they have no effect.

    Raises:
        UsageError: settings contradict each other.
    """
    if settings.judge is not None and settings.judge_url is not None:
        raise UsageError(
            "--judge and --judge-url are both given", hint="--judge-model names the model of the server; leave one out"
        )
    given = settings.model_fields_set if given is None else given
    refuse_without(("judge_url",), ("judge_model", "judge_body"), settings, given)
    refuse_without(("judge",), ("judge_strategy", "judge_vocab"), settings, given)
    if settings.judge is None and settings.judge_url is None:
        return None
    return JudgeSource(settings, Budget(settings.max_requests) if budget is None else budget)
