"""The judge that settings name: checked before a run, opened when it is asked."""

from __future__ import annotations

from rwkvbatch.config import RunSettings
from rwkvbatch.endpoint.client import JUDGE_OPTIONS, Budget, Client, ClientOptions, check_url
from rwkvbatch.endpoint.served import Endpoint, extra_fields, served_spec
from rwkvbatch.errors import UsageError
from rwkvbatch.judges.local import LocalJudge
from rwkvbatch.judges.opinions import Judge
from rwkvbatch.judges.served import ServedJudge

BUNDLED = "bundled"
"""What `--judge` calls the bundled model."""


class JudgeSource:
    """A judge that may not be opened yet.

    Attributes:
        is_local: whether it takes memory of this machine when it is open.
    """

    def __init__(self, settings: RunSettings, budget: Budget | None = None) -> None:
        self._settings = settings
        self._budget = budget
        self._served: ServedJudge | None = None
        self.is_local = settings.judge_url is None

    def check(self) -> None:
        """Raise for a judge that cannot be opened, as far as that shows without loading a model.

        A server is asked for its models where none is named.

        Raises:
            UsageError: contradicting settings, a wrong URL, or a refused key.
            CheckpointError: there is no such file, or it is no checkpoint.
            WorkerError, EndpointError: the server cannot be reached, or answers nonsense.
        """
        if self.is_local:
            from rwkvbatch.model.checkpoint import describe, open_checkpoint
            from rwkvbatch.model.load import resolve_model_path
            from rwkvbatch.prompt.vocabulary import tokenizer_of

            with open_checkpoint(resolve_model_path(self._path()).path) as checkpoint:
                tokenizer_of(describe(checkpoint), self._settings.judge_vocab)
        else:
            self._serving()

    def open(self) -> Judge:
        """The judge, with its model loaded; raises as `check`."""
        if not self.is_local:
            return self._serving()
        from rwkvbatch.model.load import load_model
        from rwkvbatch.prompt.vocabulary import tokenizer_of

        settings = self._settings
        model = load_model(self._path(), settings.judge_strategy, threads=settings.threads)
        return LocalJudge(model, tokenizer_of(model.spec, settings.judge_vocab), settings.batch_size)

    def _path(self) -> str:
        from rwkvbatch.model.load import BUNDLED_MODEL

        named = self._settings.judge
        assert named is not None
        return str(BUNDLED_MODEL) if named == BUNDLED else named

    def _serving(self) -> ServedJudge:
        if self._served is None:
            settings = self._settings
            assert settings.judge_url is not None
            url, extra = check_url(settings.judge_url, JUDGE_OPTIONS), extra_fields(settings.judge_body, "--judge-body")
            options = ClientOptions(
                settings.concurrency, settings.endpoint_timeout, settings.endpoint_retries, JUDGE_OPTIONS
            )
            client = Client(url, options, budget=self._budget)
            model = settings.judge_model or served_spec(Endpoint(url, "", "chat", ""), client).name
            self._served = ServedJudge(client, model, extra)
        return self._served


def judge_source(settings: RunSettings, budget: Budget | None = None) -> JudgeSource | None:
    """The judge that settings name; None where they name none.

    Args:
        budget: counts the requests to a server, with those of others; None for one of `settings.max_requests`.

    Raises:
        UsageError: settings contradict each other.
    """
    if settings.judge is not None and settings.judge_url is not None:
        raise UsageError(
            "--judge and --judge-url are both given", hint="--judge-model names the model of the server; leave one out"
        )
    of_server = {"judge_model": "--judge-model", "judge_body": "--judge-body"}
    of_file = {"judge_strategy": "--judge-strategy", "judge_vocab": "--judge-vocab"}
    for names, owner, given in ((of_server, "--judge-url", settings.judge_url), (of_file, "--judge", settings.judge)):
        for name, option in names.items():
            if given is None and getattr(settings, name) != RunSettings.model_fields[name].default:
                raise UsageError(f"{option} belongs to {owner}, which is not given")
    if settings.judge is None and settings.judge_url is None:
        return None
    return JudgeSource(settings, Budget(settings.max_requests) if budget is None else budget)
