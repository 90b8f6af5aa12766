"""The models that a run's cells need, loaded one after the other."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rwkvbatch.engine.request import Reply, Request, Score
from rwkvbatch.errors import UsageError
from rwkvbatch.prompt.templates import load_template
from rwkvbatch.prompt.tokenizer import Tokenizer, world_tokenizer
from rwkvbatch.replay.conversation import PromptEncoder
from rwkvbatch.replay.plan import Dialogue, Plan
from rwkvbatch.replay.settings import RunSettings
from rwkvbatch.script.source import refuse

if TYPE_CHECKING:
    from rwkvbatch.model.base import Model, ModelSpec


@dataclass(frozen=True)
class Setup:
    """A model as some cells want it, and the numbers of those cells."""

    model: str | None
    strategy: str
    backend: str
    cells: tuple[int, ...]


def setups_of(plan: Plan) -> tuple[Setup, ...]:
    """The different models of the plan's cells, in the cells' order."""
    groups: dict[tuple[str | None, str, str], list[int]] = {}
    for number, settings in enumerate(plan.cell_settings):
        groups.setdefault((settings.model, settings.strategy, settings.backend), []).append(number)
    return tuple(Setup(*key, tuple(cells)) for key, cells in groups.items())


_log = logging.getLogger(__name__)


class TurnEngine(Protocol):
    """What a worker needs of an engine."""

    @property
    def max_batch(self) -> int: ...
    def submit(self, request: Request) -> int: ...
    def submit_score(self, prefix: Sequence[int], continuation: Sequence[int], root: int = 0) -> int: ...
    def cancel(self, request_id: int) -> None: ...
    def step(self) -> Sequence[tuple[int, Reply | Score]]: ...


class ModelProvider(Protocol):
    """Where a plan's models come from; `ModelLoader` is the real one."""

    def specs(self, setups: Sequence[Setup]) -> dict[Setup, Any]: ...
    def tokenizer(self, spec: Any) -> Tokenizer: ...
    def desk(self, setup: Setup, plan: Plan) -> PromptEncoder: ...
    def engine(self, setup: Setup, plan: Plan, batch: int) -> TurnEngine: ...


class ModelLoader:
    """Loads models and makes engines for them. One model is in memory at a time.

    Args:
        settings: threads, memory and limits.
        model: use this one instead of loading any.
        say: is told when the bundled model serves.
    """

    def __init__(
        self, settings: RunSettings, model: Model | None = None, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self._settings = settings
        self._say = say
        self._given = model
        self._loaded: tuple[tuple[str | None, str, str], Model] | None = None

    def model(self, setup: Setup) -> Model:
        """The setup's model.

        Raises:
            CheckpointError, UsageError: it cannot be loaded.
        """
        if self._given is not None:
            return self._given
        key = (setup.model, setup.strategy, setup.backend)
        if self._loaded is None or self._loaded[0] != key:
            from rwkvbatch.model.load import load_model, resolve_model_path

            self._loaded = None
            if resolve_model_path(setup.model).bundled:
                self._say("using the bundled demonstration model; --model FILE takes another one")
            began_s = time.monotonic()
            model = load_model(*key, threads=self._settings.threads)
            _log.info(
                "loaded the model",
                extra={"path": model.spec.path, "seconds": round(time.monotonic() - began_s, 3)},
            )
            self._loaded = (key, model)
        return self._loaded[1]

    def tokenizer(self, spec: ModelSpec) -> Tokenizer:
        """The tokenizer of a model."""
        return world_tokenizer(spec.vocab_size)

    def specs(self, setups: Sequence[Setup]) -> dict[Setup, ModelSpec]:
        """What every setup's model is. The first setup's is in memory afterwards."""
        return {setup: self.model(setup).spec for setup in reversed(setups)}

    def desk(self, setup: Setup, plan: Plan) -> PromptEncoder:
        """What the dialogues of a setup share. State files have the roots 1, 2, ... in the order of the cells."""
        return PromptEncoder(
            self.tokenizer(self.model(setup).spec), self._roots(setup, plan), self._settings.max_prompt_tokens
        )

    def engine(self, setup: Setup, plan: Plan, batch: int) -> TurnEngine:
        """An engine for `batch` replies at once, with the initial states of the setup's cells."""
        from rwkvbatch.engine.engine import Engine
        from rwkvbatch.model.states import load_state

        model = self.model(setup)
        memory = self._settings.state_memory
        options: dict[str, Any] = {} if memory is None else {"state_memory": memory}
        engine = Engine(model, tokenizer=self.tokenizer(model.spec), max_batch=batch, **options)
        for path, number in self._roots(setup, plan).items():
            if engine.add_root(load_state(path, model.spec)) != number:
                raise UsageError(f"--state {path}: the engine has other initial states already")
        return engine

    @staticmethod
    def _roots(setup: Setup, plan: Plan) -> dict[str, int]:
        paths = dict.fromkeys(plan.cell_settings[cell].state for cell in setup.cells)
        return {path: number for number, path in enumerate((p for p in paths if p is not None), start=1)}


def forkable_loader(settings: RunSettings) -> ModelLoader:
    """A workshop in a process that will be forked: torch starts no threads there, which a fork would lose."""
    import torch

    torch.set_num_threads(1)
    return ModelLoader(settings)


def refuse_unusable(plan: Plan, specs: Mapping[Setup, Any]) -> None:
    """Hold token ids against the vocabularies, and read every template and every initial state once: before anything
    is claimed, not when a worker begins.

    Raises:
        UsageError, ScriptError: a token id that a model does not have.
        UsageError, TemplateError, CheckpointError: a file that cannot be used.
    """
    for setup, spec in specs.items():
        _check_ids(plan, setup, spec.vocab_size)
    prompts = {(s.template, s.think): s for s in plan.cell_settings if s.template is not None}
    for settings in prompts.values():
        load_template(settings.prompting())
    for setup, spec in specs.items():
        for path in dict.fromkeys(plan.cell_settings[cell].state for cell in setup.cells):
            if path is not None:
                from rwkvbatch.model.states import load_state

                load_state(path, spec)


def _check_ids(plan: Plan, setup: Setup, vocab_size: int) -> None:
    for cell in setup.cells:
        varied = "banned_token_ids" in plan.cells[cell].overrides
        name = f"cell {plan.cells[cell].name}: banned_token_ids" if varied else "--ban"
        plan.cell_settings[cell].check_vocabulary(vocab_size, name)
    for number in plan.chosen:
        conversation = plan.conversations[number]
        if any("banned_token_ids" in p for p in (conversation.params, *(turn.params for turn in conversation.turns))):
            for cell in setup.cells:
                _check_ids_of_params(plan.dialogue(plan.number_of(number, cell, 0)), vocab_size)


def _check_ids_of_params(dialogue: Dialogue, vocab_size: int) -> None:
    for number, turn in enumerate(dialogue.conversation.turns):
        where = f"params of turn {number}: " if "banned_token_ids" in turn.params else "params."
        name = f"{where}banned_token_ids"
        try:
            dialogue.of_turn(number).settings.check_vocabulary(vocab_size, name)
        except UsageError as error:
            refuse(dialogue.conversation.source, error.message, error.hint)
