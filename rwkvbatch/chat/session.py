"""The dialogue's tree over an engine: asking, retrying, alternatives. No terminal here.

A reply's randomness is keyed by (seed, conversation, repeat, turn), as in a run: the same words under the same seed
get the same reply, and an exported dialogue replays. Another attempt at a reply takes another seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rwkvbatch.chat.replies import Anchors, GoOn, make_replies
from rwkvbatch.chat.tree import Dialogue, Exchange, Opening, Point
from rwkvbatch.config import Prompting, ThinkMode
from rwkvbatch.engine.engine import Engine, Outlook
from rwkvbatch.engine.request import NoiseKey, Request
from rwkvbatch.errors import UsageError
from rwkvbatch.model.base import State
from rwkvbatch.prompt.templates import PromptTemplate, load_template
from rwkvbatch.replay.settings import CellSettings

CONVERSATION = "chat"
SEED_LIMIT = 2**63
KEPT_SETTINGS = (
    *("temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty", "penalty_decay", "order"),
    *("banned_token_ids", "max_tokens", "max_seconds", "stop", "think"),
)
"""What a reply depends on besides its tokens and seed, and may change from turn to turn."""


def always() -> bool:
    return True


@dataclass(frozen=True)
class Identity:
    """Where the randomness of a session comes from, besides each turn."""

    seed: int = 0
    conversation: str = CONVERSATION
    repeat: int = 0


class Session:
    """One chat.

    Attributes:
        dialogue: what was said.
        settings: of the next reply; changed by `use_settings`.
        alternatives: what `/again` gave and `pick` chooses from.
    """

    def __init__(self, engine: Engine, settings: CellSettings, identity: Identity | None = None) -> None:
        self.engine = engine
        self._template = lru_cache(maxsize=16)(_load_template)
        self.use_settings(settings)
        self.identity = identity or Identity()
        self.dialogue = Dialogue()
        self.alternatives: list[Exchange] = []
        self._anchors = Anchors(engine, self.dialogue)

    def use_settings(self, settings: CellSettings) -> None:
        """Make the replies to come with `settings`.

        Raises:
            UsageError: they name token ids that the model does not have.
            TemplateError: the template's file cannot be used.
        """
        settings.check_vocabulary(self.engine.model.spec.vocab_size)
        self._template(settings.think, settings.template)
        self.settings = settings

    @property
    def template(self) -> PromptTemplate:
        """Raises:
        TemplateError: the template's file cannot be used.
        """
        return self._template(self.settings.think, self.settings.template)

    def begin(
        self,
        *,
        system: str | None = None,
        prelude: str | None = None,
        state: State | None = None,
        state_path: str | None = None,
        state_sha256: str | None = None,
    ) -> None:
        """Start a dialogue; one that is there stays as a branch."""
        tokens = tuple(self.engine.tokenizer.encode(self.template.opening(system, prelude)))
        number = len(self.dialogue.openings)
        if state is not None:
            self._anchors.set_state(number, state)
        self.dialogue.begin(Opening(number, system, prelude, tokens, state_path, state_sha256))
        self._anchors.hold_branches()

    def adopt(self, dialogue: Dialogue, states: Mapping[int, State]) -> None:
        """Go on with a dialogue that was saved; `states` are the initial states by the openings' numbers."""
        anchors = Anchors(self.engine, dialogue, states)
        self._anchors.let_go()
        self._anchors = anchors
        self.dialogue = dialogue
        self.alternatives = []

    def use_engine(self, engine: Engine) -> None:
        """Go on with another model: it reads the dialogue again when the next message comes.

        Raises:
            UsageError: a branch began with a state of the model so far, or the settings do not go with this one.
        """
        if any(opening.state is not None for opening in self.dialogue.openings):
            raise UsageError(
                "this dialogue began with an initial state of the model so far",
                hint="leave, and start again with --model",
            )
        if engine.tokenizer.sha256 != self.engine.tokenizer.sha256:
            raise UsageError(
                "the models have different vocabularies, so the one cannot read what the other has",
                hint="leave, and start again with --model",
            )
        self.settings.check_vocabulary(engine.model.spec.vocab_size)
        self.engine = engine
        self._anchors = Anchors(engine, self.dialogue)

    def root(self, point: Point | None = None) -> int:
        """The engine's number of the initial state before `point` (the head)."""
        return self._anchors.root(point or self.dialogue.head)

    def ask(self, user: str, *, on_text: Callable[[str], None] | None = None, go_on: GoOn = always) -> Exchange:
        """The reply to `user`; the branch goes on from it.

        Raises:
            UsageError: `user` is empty.
            NonFiniteLogitsError: the model has no reply.
        """
        self._check_message(user)
        (exchange,) = self._answer(self.dialogue.head, user, (0,), on_text, go_on)
        self.dialogue.add(exchange)
        self._anchors.hold_branches()
        return exchange

    def retry(self, *, on_text: Callable[[str], None] | None = None, go_on: GoOn = always) -> Exchange:
        """Another reply to the last message, in place of the last one.

        Raises:
            UsageError: there is no last message.
        """
        last = self._last("/retry")
        attempt = self.dialogue.next_attempt(last)
        (exchange,) = self._answer(self.dialogue.before(last), last.user, (attempt,), on_text, go_on)
        self.dialogue.add(exchange)
        self._anchors.hold_branches()
        return exchange

    def again(self, count: int, *, go_on: GoOn = always) -> list[Exchange]:
        """`count` more replies to the last message, made together; `pick` chooses one.

        Raises:
            UsageError: there is no last message.
        """
        last = self._last("/again")
        first = self.dialogue.next_attempt(last)
        attempts = range(first, first + count)
        made = self._answer(self.dialogue.before(last), last.user, attempts, None, go_on)
        for exchange in made:
            self.dialogue.add(exchange, move=False)
        self.alternatives = made
        return made

    def pick(self, number: int) -> Exchange:
        """Let the branch go on from alternative `number`, counted from 1.

        Raises:
            UsageError: there is no such alternative.
        """
        if not 1 <= number <= len(self.alternatives):
            allowed = f"1 to {len(self.alternatives)}" if self.alternatives else "one that /again has made"
            raise UsageError(f"/pick needs the number of a reply, {allowed}; got {number}")
        chosen = self.alternatives[number - 1]
        self.dialogue.move(chosen)
        self._anchors.hold_branches()
        return chosen

    def look(self, message: str | None = None) -> Outlook:
        """What may come next: in the dialogue as it stands, or at the beginning of the reply to `message`.

        Raises:
            UsageError: nothing was read yet, so that nothing can be expected.
        """
        head, last = self.dialogue.head, self.dialogue.last
        if message is not None:
            return self.engine.look(self._turn(message), self._anchors.mark(head))
        if last is not None:
            return self.engine.look(last.tokens, self._anchors.mark(self.dialogue.before(last)))
        tokens = self.dialogue.openings[head.opening].tokens
        if not tokens:
            raise UsageError("nothing was said yet", hint="/top MESSAGE shows how the reply to it may begin")
        return self.engine.look(tokens, self.root())

    def logprobs(self, exchange: Exchange) -> tuple[float, ...]:
        """Log-probabilities of the reply's tokens; computed when they are not known."""
        if exchange.logprobs or not exchange.ids:
            return exchange.logprobs
        mark = self._anchors.mark(self.dialogue.before(exchange))
        return self.engine.score(exchange.prompt, exchange.ids, mark).logprobs

    def _last(self, command: str) -> Exchange:
        last = self.dialogue.last
        if last is None:
            raise UsageError(f"{command} needs a message to answer again, and there is none yet")
        return last

    def _check_message(self, user: str) -> None:
        if not user.strip():
            raise UsageError("the message is empty")

    def _turn(self, user: str) -> tuple[int, ...]:
        return tuple(self.engine.tokenizer.encode(self.template.turn(user)))

    def _answer(
        self,
        point: Point,
        user: str,
        attempts: Sequence[int],
        on_text: Callable[[str], None] | None,
        go_on: GoOn,
    ) -> list[Exchange]:
        mark, prompt = self._anchors.mark(point), self._turn(user)
        turn = self.dialogue.num_turns(point)
        seeds = [(self.identity.seed + attempt) % SEED_LIMIT for attempt in attempts]
        requests = [
            Request(
                tokens=prompt,
                sampling=self.settings.sampling,
                noise=NoiseKey(seed, self.identity.conversation, self.identity.repeat, turn),
                max_tokens=self.settings.max_tokens,
                max_seconds=self.settings.max_seconds,
                stop=(*self.template.stops, *self.settings.stop),
                closing=self.template.closing,
                root=mark,
            )
            for seed in seeds
        ]
        replies = make_replies(self.engine, requests, on_text, go_on)
        first = len(self.dialogue.exchanges)
        return [
            Exchange(
                number=first + place,
                parent=point.exchange,
                opening=point.opening,
                turn=turn,
                attempt=attempts[place],
                seed=seeds[place],
                user=user,
                prompt=prompt,
                ids=reply.ids,
                rest=reply.history[len(prompt) :],
                reply=self.template.shown_reply(reply.text),
                raw=reply.text,
                finish_reason=reply.finish_reason,
                stopped_by=reply.stopped_by,
                settings=self.kept_settings(),
                logprobs=reply.logprobs,
                first_token_s=reply.timing.first_token_s,
                total_s=reply.timing.total_s,
                num_read=reply.num_prompt - reply.num_cached,
                num_cached=reply.num_cached,
                weights_sha256=self.engine.model.spec.weights_sha256,
            )
            for place, reply in enumerate(replies)
        ]

    def kept_settings(self) -> dict[str, Any]:
        """The settings of the next reply that may change from turn to turn, JSON-ready."""
        values = self.settings.model_dump(mode="json")
        return {name: values[name] for name in KEPT_SETTINGS}


def _load_template(think: ThinkMode, template: str | None) -> PromptTemplate:
    return load_template(Prompting(think=think, template=template))
