"""Makes the prompts of a run's tasks as tokens, with the tokenizer, templates and initial states of one model."""

from __future__ import annotations

from functools import lru_cache

from rwkvbatch.config import CellSettings, Prompting
from rwkvbatch.engine.request import END_OF_TEXT
from rwkvbatch.prompt.templates import PromptTemplate, load_prelude, load_template, with_turn_end
from rwkvbatch.prompt.tokenizer import Tokenizer
from rwkvbatch.replay.plan import Task


class PromptEncoder:
    """Tokenizer, templates and initial states of one model, shared by its tasks. Caches encoded texts.

    Args:
        roots: by path of an initial state file, the engine's root number; root 0 is the empty state.
        max_prompt_tokens: length limit of prompts, which `ConversationReplay` enforces.
        weights_sha256: identifies the model, whose turn end `auto` resolves to.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        roots: dict[str, int] | None = None,
        max_prompt_tokens: int | None = None,
        weights_sha256: str = "",
    ) -> None:
        self._weights_sha256 = weights_sha256
        self.tokenizer = tokenizer
        self.max_prompt_tokens = max_prompt_tokens
        self._roots = dict(roots or {})
        # Every cell and repetition encodes the same texts of a conversation.
        self.encode = lru_cache(maxsize=8192)(self._encode)
        self._load_template = lru_cache(maxsize=256)(self._make_template)
        self._load_prelude = lru_cache(maxsize=256)(load_prelude)

    def template(self, settings: CellSettings) -> PromptTemplate:
        """The prompt template for replies with these settings."""
        return self._load_template(settings.prompting)

    def _make_template(self, prompting: Prompting) -> PromptTemplate:
        return load_template(with_turn_end(prompting, self._weights_sha256))

    def opening(self, task: Task) -> tuple[int, ...]:
        """The tokens before the first turn: token 0 with `bos`, the system message and the prelude; may be empty."""
        settings = task.settings
        prelude = None if settings.prelude is None else self._load_prelude(settings.prelude)
        bos = (END_OF_TEXT,) if settings.begins_with_bos() else ()
        return (*bos, *self.encode(self.template(settings).opening(task.system, prelude)))

    def root(self, settings: CellSettings) -> int:
        """The engine's root number of the settings' initial state."""
        return 0 if settings.state is None else self._roots[settings.state]

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text))
