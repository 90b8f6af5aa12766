"""Loads the models of a run's cells, one at a time, and makes engines for them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rwkvbatch.config import RunSettings
from rwkvbatch.endpoint.client import Budget, Client, ClientOptions, check_url
from rwkvbatch.endpoint.engine import EndpointEngine
from rwkvbatch.endpoint.served import Endpoint, ServedSpec, served_spec, weights_of
from rwkvbatch.errors import InputError, MissingDeviceError, UsageError
from rwkvbatch.files import user_path
from rwkvbatch.prompt.templates import load_template
from rwkvbatch.prompt.tokenizer import Tokenizer, world_tokenizer
from rwkvbatch.prompt.vocabulary import shown_ids, textless_ids, tokenizer_of
from rwkvbatch.replay.endpoint_checks import TOKEN_0_HINT, check_server, token_0_problem
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.planning.setups import Setup, Spec, setups_of
from rwkvbatch.replay.worker.prompts import PromptEncoder
from rwkvbatch.script.lines import refuse

if TYPE_CHECKING:
    from rwkvbatch.engine.engine import Engine
    from rwkvbatch.model.base import Model
    from rwkvbatch.model.checkpoints.checkpoint import Checkpoint

_log = logging.getLogger(__name__)

USING_BUNDLED = "using the bundled demonstration model; --model FILE takes another one"


class ModelLoader:
    """Loads models and makes engines for them. One model is in memory at a time.

    Args:
        model: a loaded model, which is used instead of those that the setups name.
        weights: tensors by name (`load_model`), which are loaded instead of the setups' files.
        notify: is called with a message when the bundled model is loaded.
    """

    def __init__(
        self,
        settings: RunSettings,
        model: Model | None = None,
        notify: Callable[[str], None] = lambda _: None,
        weights: Mapping[str, Any] | None = None,
    ) -> None:
        self._settings = settings
        self._notify = notify
        self._given_model = model
        self._weights = weights
        self._loaded: tuple[tuple[str | None, str, str, str], Model] | None = None
        self._loaded_names: set[str | None] = set()
        self._served: dict[Endpoint, tuple[Client, ServedSpec]] = {}
        self.budget = Budget(settings.max_requests)
        """The number of requests that may still be sent to servers, all endpoints together."""

    def model(self, setup: Setup) -> Model:
        """The setup's model, loaded unless it is the one in memory; raises `CheckpointError` or `UsageError`."""
        if self._given_model is not None:
            return self._given_model
        key = (setup.model, setup.strategy, setup.backend, setup.adapter)
        if self._loaded is None or self._loaded[0] != key:
            from rwkvbatch.model.load import load_model
            from rwkvbatch.model.model_files import resolve_model_path
            from rwkvbatch.model.strategy import check_device

            self._loaded = None
            if setup.device is not None:
                check_device(setup.device, "--devices")
            source = self._weights
            if source is None:
                resolved = resolve_model_path(setup.model)
                if resolved.bundled:
                    self._notify(USING_BUNDLED)
                # By its file's path, there is no second warning that several files have its name.
                source = resolved.path if setup.model in self._loaded_names else setup.model
                self._loaded_names.add(setup.model)
            began_s = time.monotonic()
            model = load_model(source, *key[1:3], threads=self._settings.threads, adapter=setup.adapter)
            seconds = round(time.monotonic() - began_s, 3)
            _log.info("loaded the model", extra={"path": model.spec.path, "seconds": seconds})
            self._loaded = (key, model)
        return self._loaded[1]

    def release(self) -> None:
        """Free the memory of the loaded model."""
        self._loaded = None

    def spec(self, setup: Setup) -> Spec:
        """The description of the setup's model; raises as `model`, or as `served_spec`."""
        return self.model(setup).spec if setup.endpoint is None else self._serving(setup.endpoint)[1]

    def _serving(self, endpoint: Endpoint) -> tuple[Client, ServedSpec]:
        if endpoint not in self._served:
            settings = self._settings
            options = ClientOptions(settings.concurrency, settings.endpoint_timeout, settings.endpoint_retries)
            client = Client(check_url(endpoint.url), options, budget=self.budget)
            self._served[endpoint] = client, served_spec(endpoint, client)
        return self._served[endpoint]

    def tokenizer(self, spec: Spec) -> Tokenizer:
        """The tokenizer of a model; raises as `tokenizer_of`."""
        return tokenizer_of(spec, self._settings.vocab)

    def specs(self, setups: Sequence[Setup]) -> dict[Setup, Spec]:
        """The spec of every setup's model. The first setup's model stays in memory."""
        return {setup: self.spec(setup) for setup in reversed(setups)}

    def encoder(self, setup: Setup, plan: Plan) -> PromptEncoder:
        """The prompt encoder of a setup. Its state files have the root numbers 1, 2, ... in the order of the cells."""
        spec = self.spec(setup)
        limit, roots = self._settings.max_prompt_tokens, self.state_files(setup, plan)
        # What ends a turn by default is a property of the weights.
        return PromptEncoder(self.tokenizer(spec), roots, limit, weights_of(spec))

    def engine(self, setup: Setup, plan: Plan, batch: int) -> Engine | EndpointEngine:
        """An engine that generates `batch` replies at once, with the initial states of the setup's cells."""
        if setup.endpoint is not None:
            client, spec = self._serving(setup.endpoint)
            extra = setup.endpoint.extra
            return EndpointEngine(client, spec, self.tokenizer(spec), extra=extra, max_batch=batch)
        from rwkvbatch.engine.engine import Engine
        from rwkvbatch.model.states import load_state

        model = self.model(setup)
        memory = self._settings.state_memory
        options: dict[str, Any] = {} if memory is None else {"state_memory": memory}
        engine = Engine(model, tokenizer=self.tokenizer(model.spec), max_batch=batch, **options)
        for path, number in self.state_files(setup, plan).items():
            if engine.add_root(load_state(path, model.spec)) != number:
                raise UsageError(f"--state {path}: the engine has other initial states already")
        return engine

    @staticmethod
    def state_files(setup: Setup, plan: Plan) -> dict[str, int]:
        """By path, the root number of each initial state file of a setup's cells."""
        paths = dict.fromkeys(plan.cell_settings[cell].state for cell in setup.cells)
        return {path: number for number, path in enumerate((p for p in paths if p is not None), start=1)}


def forkable_loader(settings: RunSettings) -> ModelLoader:
    """A loader for a process that forks. Torch must not start threads in it, because a forked process lacks them."""
    import torch

    torch.set_num_threads(1)
    return ModelLoader(settings)


def check_headers(plan: Plan) -> tuple[Tokenizer, list[str]]:
    """Check the models of a plan without loading them: the tokenizer of the first cell's model, and warnings.

    Only the headers of the checkpoints are read. A file or a device that this machine lacks gives a warning, since
    another machine may have it. The tokens of a checkpoint that cannot be opened are counted with the World tokenizer.

    Raises:
        UsageError: a strategy or a backend does not fit the model, or a token id is not in its vocabulary.
        ScriptError: a token id of a conversation's params is not.
    """
    from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
    from rwkvbatch.model.checkpoints.description import describe
    from rwkvbatch.model.model_files import resolve_model_path

    tokenizers: list[Tokenizer] = []
    warnings: list[str] = []
    for setup in setups_of(plan):
        if setup.endpoint is not None:
            tokenizers.append(tokenizer_of(ServedSpec(setup.endpoint.url, "", "completions", ""), plan.settings.vocab))
            if (problem := token_0_problem(plan, setup)) is not None:
                warnings.append(f"refused unless the server is `rwkvbatch serve`: {problem}; {TOKEN_0_HINT}")
            continue
        try:
            resolved = resolve_model_path(setup.model)
            if resolved.ambiguity is not None:
                warnings.append(resolved.ambiguity)
            with open_checkpoint(resolved.path) as checkpoint:
                tokenizer = tokenizer_of(describe(checkpoint), plan.settings.vocab)
                warnings += _missing_devices(checkpoint, setup, plan.settings.devices)
        except InputError as error:
            warnings.append(f"{error}; tokens are counted with the World vocabulary")
            tokenizer = world_tokenizer()
        else:
            _check_token_ids(plan, setup, tokenizer.vocab_size)
            warnings += _textless_warnings(setup, tokenizer)
        tokenizers.append(tokenizer)
        warnings += _missing_files(setup, plan)
    return tokenizers[0], list(dict.fromkeys(warnings))


def _missing_devices(checkpoint: Checkpoint, setup: Setup, devices: Sequence[str]) -> list[str]:
    """Warnings about devices that this machine lacks: those of `--devices`, or that of the setup's strategy.

    Raises:
        UsageError: the strategy or the backend does not fit the model or one of the devices.
    """
    from rwkvbatch.model.load import check_strategy

    warnings: list[str] = []
    for device in devices or (None,):
        try:
            check_strategy(checkpoint, setup.on_device(device).strategy, setup.backend)
        except MissingDeviceError as error:
            warnings.append(str(error) if device is None else str(error).replace("--strategy", "--devices", 1))
    return warnings


def _textless_warnings(setup: Setup, tokenizer: Tokenizer) -> list[str]:
    if not (textless := textless_ids(tokenizer)):
        return []
    name = "the bundled model" if setup.model is None else setup.model
    return [
        f"{name}: {len(textless):,} of {tokenizer.vocab_size:,} token ids decode to nothing with the "
        f"vocabulary {tokenizer.name} ({shown_ids(textless)}); a reply that contains one is reported"
    ]


def _missing_files(setup: Setup, plan: Plan) -> list[str]:
    """Warnings about files that a setup needs in addition to its model, and that do not exist."""
    from rwkvbatch.model.checkpoints.adapters import parse_adapter

    adapter = parse_adapter(setup.adapter)
    adapter_files = () if adapter is None else (adapter.path, adapter.init)
    files = [("--adapter", path) for path in adapter_files if path is not None]
    files += [("--state", user_path(path)) for path in ModelLoader.state_files(setup, plan)]
    return [f"{option} {path}: there is no such file" for option, path in files if not path.exists()]


def refuse_unusable(plan: Plan, specs: Mapping[Setup, Any]) -> None:
    """Check token ids against the vocabularies, and read every template and initial state once, before a run begins.

    Raises:
        UsageError: a token id of the settings is not in a model's vocabulary, or a server does not take the settings.
        ScriptError: the same for a conversation's params.
        TemplateError: a template cannot be used.
        CheckpointError: an initial state cannot be used.
    """
    for setup, spec in specs.items():
        _check_token_ids(plan, setup, spec.vocab_size)
        if isinstance(spec, ServedSpec):
            check_server(plan, setup, spec, tokenizer_of(spec, plan.settings.vocab))
    for prompting in {settings.prompting for settings in plan.cell_settings}:
        load_template(prompting)
    for setup, spec in specs.items():
        for path in ModelLoader.state_files(setup, plan):
            from rwkvbatch.model.states import load_state

            load_state(path, spec)


def _check_token_ids(plan: Plan, setup: Setup, vocab_size: int) -> None:
    for cell in setup.cells:
        is_varied = "banned_token_ids" in plan.cells[cell].overrides
        name = f"cell {plan.cells[cell].name}: banned_token_ids" if is_varied else "--ban"
        plan.cell_settings[cell].check_vocabulary(vocab_size, name)
    for number in plan.chosen:
        conversation = plan.conversations[number]
        turns_with_ids = [n for n, turn in enumerate(conversation.turns) if "banned_token_ids" in turn.params]
        if not turns_with_ids and "banned_token_ids" not in conversation.params:
            continue
        for task in (plan.task(plan.number_of(number, cell, 0)) for cell in setup.cells):
            for turn in range(len(conversation.turns)):
                is_of_turn = turn in turns_with_ids
                name = f"params of turn {turn}: banned_token_ids" if is_of_turn else "params.banned_token_ids"
                try:
                    task.of_turn(turn).settings.check_vocabulary(vocab_size, name)
                except UsageError as error:
                    refuse(conversation.source, error.message, error.hint)
