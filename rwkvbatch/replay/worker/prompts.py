"""Makes the prompts of a run's tasks as tokens, with the tokenizer, templates and initial states of one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

from rwkvbatch.config import CellSettings
from rwkvbatch.engine.request import END_OF_TEXT
from rwkvbatch.errors import RowError
from rwkvbatch.prompt.segments import PromptTemplate
from rwkvbatch.prompt.templates import load_prelude, load_template
from rwkvbatch.prompt.tokenizer import Tokenizer, encode_long
from rwkvbatch.replay.planning.plan import Task
from rwkvbatch.results.row import EMPTY_PROMPT, ONE_TOKEN_TEXT
from rwkvbatch.script.choices import Choice
from rwkvbatch.script.records import Turn

ScoredText = tuple[Sequence[int], Sequence[int]]
"""The tokens before a text that is scored, and the text's own."""


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
        self._load_template = lru_cache(maxsize=256)(load_template)
        self._load_prelude = lru_cache(maxsize=256)(load_prelude)

    def template(self, settings: CellSettings) -> PromptTemplate:
        """The prompt template for replies with these settings."""
        return self._load_template(settings.prompting, self._weights_sha256)

    def opening(self, task: Task) -> tuple[int, ...]:
        """The tokens before the first turn: token 0 with `bos`, the system message, the prelude and a greeting."""
        settings = task.settings
        prelude = self._load_prelude(settings.prelude)
        bos = (END_OF_TEXT,) if settings.begins_with_bos() else ()
        return (*bos, *self.encode(self.template(settings).opening(task.system, prelude, task.conversation.greeting)))

    def root(self, settings: CellSettings) -> int:
        """The engine's root number of the settings' initial state."""
        return 0 if settings.state is None else self._roots[settings.state]

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text))


@dataclass(frozen=True)
class TurnPrompt:
    """One turn of a task after a history, as tokens.

    Attributes:
        number: index of the turn in the conversation.
        history: the tokens before the turn.
    """

    task: Task
    number: int
    encoder: PromptEncoder
    history: tuple[int, ...]

    @property
    def turn(self) -> Turn:
        return self.task.conversation.turns[self.number]

    @property
    def settings(self) -> CellSettings:
        return self.task.of_turn(self.number).settings

    @property
    def template(self) -> PromptTemplate:
        return self.encoder.template(self.settings)

    @property
    def reply_template(self) -> PromptTemplate | None:
        """The template of the reply; None after a plain text."""
        return None if self.turn.plain else self.template

    def tokens(self) -> tuple[int, ...]:
        """All tokens before the reply; raises `RowError` if a plain prompt has none."""
        if not self.turn.plain:
            return (*self.history, *self.encoder.encode(self.template.turn(self.turn.user)))
        if not (tokens := self._plain_prompt(self.turn.user)):
            raise RowError(f"{EMPTY_PROMPT}, and nothing is read before it: use --bos on")
        return tokens

    def scored_texts(self) -> list[ScoredText]:
        """The texts of the turn that are scored: its reference, its choices.

        Raises:
            RowError: a plain text has no token that can be scored.
        """
        texts = [] if self.turn.reference is None else [self.reference_tokens(self.turn.reference)]
        return [*texts, *map(self._choice_tokens, self.turn.choices)]

    def reference_tokens(self, reference: str) -> ScoredText:
        """The tokens before the scored part of the turn's reference, and the scored tokens.

        The first token of a plain text cannot be scored if no token precedes it (`bos` off, no prompt).
        """
        if not self.turn.plain:
            return self._split_before_last(*self.template.given_reply(reference))
        return self._plain_tokens(self.turn.user, encode_long(self.encoder.tokenizer, reference))

    def _plain_prompt(self, prompt: str) -> tuple[int, ...]:
        """Token 0 (unless `bos` is off) and a prompt, read without a template."""
        bos = (END_OF_TEXT,) if self.settings.begins_with_bos(plain_text=True) else ()
        # Without the cache of encoded texts, which would keep whole documents in memory.
        return (*bos, *self.encoder.tokenizer.encode(prompt))

    def _plain_tokens(self, prompt: str, text: Sequence[int]) -> ScoredText:
        """The tokens before the scored part of a plain text, and the scored tokens.

        Without any before it, the first token of the text is not scored.
        """
        prefix = self._plain_prompt(prompt)
        if not prefix and len(text) < 2:
            raise RowError(f"{ONE_TOKEN_TEXT}, and nothing is read before it: use --bos on")
        return (prefix, text) if prefix else (text[:1], text[1:])

    def _choice_tokens(self, choice: Choice) -> ScoredText:
        """The tokens before a choice, and its own tokens, as the beginning of a reply or after a plain prompt.

        With a `continuation` of the turn, the choice belongs to the tokens before, and the continuation is scored.
        """
        turn = self.turn
        if not turn.plain:
            return self._split_before_choice(self.choice_text(choice))
        if turn.continuation is None:
            return self._plain_tokens(turn.user, self.encoder.encode(self.choice_text(choice)))
        return self._plain_tokens(turn.user + choice.text, self.encoder.encode(turn.continuation))

    def choice_text(self, choice: Choice) -> str:
        """A choice as the template writes a reply; verbatim after a `reply_prefix`, a prompt or a `choice_prefix`."""
        if self.turn.choice_prefix is not None:
            return self.turn.choice_prefix + choice.text
        if self.template.reply_prefix or self.turn.plain:
            return choice.text
        return self.template.reply(choice.text).removesuffix(self.template.closing)

    def _split_before_choice(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens before the choice `text` of the turn, and its own tokens."""
        if self.template.reply_prefix:
            return self.tokens(), self.encoder.encode(text)
        return self._split_before_last(text)

    def _split_before_last(self, *parts: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens before the last of the `parts` of the turn's reply, and the tokens of that part."""
        texts = (self.template.past_turn(self.turn.user), *parts)
        *before, last = [self.encoder.encode(text) for text in texts]
        return (*self.history, *chain.from_iterable(before)), last

    def after_reference(self, reference: str) -> tuple[int, ...]:
        """All tokens up to the end of the turn, with its reference as the reply."""
        prefix, reply = self._split_before_last(self.template.reply(reference))
        return (*prefix, *reply)

    def after_choice(self, choice: Choice) -> tuple[int, ...]:
        """All tokens up to the end of the turn, with a choice as the reply."""
        prefix, reply = self._split_before_choice(self.choice_text(choice) + self.template.closing)
        return (*prefix, *reply)
