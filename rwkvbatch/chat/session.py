"""A chat over an engine, without a terminal: messages, retries, alternatives, next tokens.

The random numbers of a reply are keyed by (seed, conversation, repeat, turn), as in a run. Therefore the same messages
with the same seed get the same replies, and so does a run of the exported conversation. Another reply to the same
message uses another seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from rwkvbatch.chat.pinned_prefixes import PinnedPrefixes
from rwkvbatch.chat.tree import ConversationTree, Cut, Exchange, Opening, Position
from rwkvbatch.config import CellSettings, ReplyPrompt, Sampling, Stopping
from rwkvbatch.endpoint.engine import EndpointEngine
from rwkvbatch.endpoint.served import ServedSpec, weights_of
from rwkvbatch.engine.engine import Engine, NextToken
from rwkvbatch.engine.request import END_OF_TEXT, NoiseKey, Reply, Request
from rwkvbatch.errors import InputError, NonFiniteLogitsError, UsageError
from rwkvbatch.files import user_path
from rwkvbatch.hashes import sha256_of_file
from rwkvbatch.model.base import State
from rwkvbatch.model.states import load_state
from rwkvbatch.prompt.segments import PromptTemplate
from rwkvbatch.prompt.templates import load_template

CONVERSATION = "chat"
SEED_LIMIT = 2**63
TURN_SETTINGS = (*Sampling.model_fields, *Stopping.model_fields, *ReplyPrompt.model_fields)
"""Settings that may differ between turns."""


def turn_values(settings: CellSettings) -> dict[str, Any]:
    """`TURN_SETTINGS` as JSON values."""
    values = settings.model_dump(mode="json")
    return {name: values[name] for name in TURN_SETTINGS}


OnText = Callable[[str], None]
"""Is called with each piece of a reply's text."""

ShouldStop = Callable[[], bool]
"""Is called after every step; returning true ends the replies in progress."""


@dataclass(frozen=True)
class Identity:
    """The part of the random numbers' key that is the same for all turns of a session."""

    seed: int = 0
    conversation: str = CONVERSATION
    repeat: int = 0


class Session:
    """One chat. An operation that raises leaves the conversation unchanged.

    Attributes:
        tree: the exchanges.
        settings: the settings of the next reply, set by `use_settings`.
        vocab: `--vocab` of the engine's tokenizer; None for the checkpoint's own vocabulary.
        alternatives: the replies of the last `again`, from which `pick` chooses.

    Raises:
        UsageError: the operation is not possible in this conversation or with this model.
        InputError: a file cannot be used.
        NonFiniteLogitsError: the model produced no reply.
    """

    def __init__(
        self,
        engine: Engine | EndpointEngine,
        settings: CellSettings,
        identity: Identity | None = None,
        *,
        vocab: str | None = None,
    ) -> None:
        self.engine = engine
        self.vocab = vocab
        self._load_template = lru_cache(maxsize=16)(load_template)
        self.use_settings(settings)
        self.identity = identity or Identity()
        self.tree = ConversationTree()
        self.alternatives: list[Exchange] = []
        self._prefixes = PinnedPrefixes(engine, self.tree)

    def use_settings(self, settings: CellSettings) -> None:
        """Use `settings` for the next replies."""
        settings.check_vocabulary(self.engine.model.spec.vocab_size)
        self.template_of(settings)
        self.settings = settings

    @property
    def template(self) -> PromptTemplate:
        """The template of the next reply."""
        return self.template_of(self.settings)

    def template_of(self, settings: CellSettings) -> PromptTemplate:
        """The template of a reply with `settings`."""
        return self._load_template(settings.prompting, weights_of(self.engine.model.spec))

    def turn_settings(self) -> dict[str, Any]:
        """The `TURN_SETTINGS` of the next reply as JSON values."""
        return turn_values(self.settings)

    def begin(
        self, *, system: str | None = None, prelude: str | None = None, state_file: str | Path | None = None
    ) -> None:
        """Start a conversation. The current one stays as a branch.

        Args:
            state_file: file of the initial state; None for the zero state.

        Raises:
            InputError: the state's file cannot be read, or is not a state of this model.
            UsageError: the engine has no memory for another initial state.
        """
        opening = self._opening(system, prelude)
        if state_file is not None:
            state, sha256 = self._read_state(state_file)
            self._prefixes.add_state(opening.number, state)
            opening = replace(opening, state=str(user_path(state_file).resolve()), state_sha256=sha256)
        self.tree.begin(opening)
        self._prefixes.pin_branch_states()

    def begin_again(self, system: str | None) -> None:
        """Start a conversation with another system message, and the prelude and the state of the current one."""
        current = self.tree.opening
        opening = replace(
            self._opening(system, current.prelude), state=current.state, state_sha256=current.state_sha256
        )
        self._prefixes.share_state(current.number, opening.number)
        self.tree.begin(opening)
        self._prefixes.pin_branch_states()

    def _opening(self, system: str | None, prelude: str | None) -> Opening:
        bos = (END_OF_TEXT,) if self.settings.begins_with_bos() else ()
        tokens = (*bos, *self.engine.tokenizer.encode(self.template.opening(system, prelude)))
        return Opening(len(self.tree.openings), system, prelude, tokens)

    def adopt(self, tree: ConversationTree, settings: CellSettings, identity: Identity) -> None:
        """Continue a saved conversation."""
        states = {
            opening.number: self._read_state(opening.state, opening.state_sha256)[0]
            for opening in tree.openings
            if opening.state is not None
        }
        self.use_settings(settings)
        prefixes = PinnedPrefixes(self.engine, tree)
        for number, state in states.items():
            prefixes.add_state(number, state)
        self._prefixes.close()
        self._prefixes = prefixes
        self.identity, self.tree, self.alternatives = identity, tree, []

    def _read_state(self, path: str | Path, saved_sha256: str | None = None) -> tuple[State, str]:
        """The state in a file, and the hash of the file, which must be `saved_sha256` if that is given."""
        sha256 = sha256_of_file(str(path), "initial state")
        if saved_sha256 not in (None, sha256):
            raise InputError("the initial state has changed since the session was saved", path=path)
        spec = self.engine.model.spec
        if isinstance(spec, ServedSpec):
            raise UsageError("a served model takes no initial state", hint="this needs --model FILE")
        return load_state(path, spec), sha256

    def use_engine(self, engine: Engine | EndpointEngine) -> None:
        """Continue with another model, which computes the conversation when it gets the next message."""
        hint = "leave, and start again with --model"
        if any(opening.state is not None for opening in self.tree.openings):
            raise UsageError("this conversation began with an initial state of the current model", hint=hint)
        if engine.tokenizer.sha256 != self.engine.tokenizer.sha256:
            raise UsageError("the two models have different vocabularies", hint=hint)
        self.settings.check_vocabulary(engine.model.spec.vocab_size)
        self.engine = engine
        self._prefixes = PinnedPrefixes(engine, self.tree)

    def ask(self, user: str, *, on_text: OnText | None = None, should_stop: ShouldStop = lambda: False) -> Exchange:
        """Reply to `user` at the end of the current branch."""
        if not user.strip():
            raise UsageError("the message is empty")
        return self._add_reply(self.tree.head, user, 0, on_text, should_stop)

    def retry(self, *, on_text: OnText | None = None, should_stop: ShouldStop = lambda: False) -> Exchange:
        """Replace the last reply by another one."""
        last = self._last("/retry")
        return self._add_reply(self.tree.before(last), last.user, self.tree.next_attempt(last), on_text, should_stop)

    def edit(self, user: str, *, on_text: OnText | None = None, should_stop: ShouldStop = lambda: False) -> Exchange:
        """Reply to `user` in place of the last message."""
        if not user.strip():
            raise UsageError("the message is empty")
        return self._add_reply(self.tree.before(self._last("/edit")), user, 0, on_text, should_stop)

    def redo(self) -> Cut:
        """Revert the last `undo`, `retry`, `edit` or `pick`."""
        cut = self.tree.redo()
        self._prefixes.pin_branch_states()
        return cut

    def again(self, count: int, *, should_stop: ShouldStop = lambda: False) -> list[Exchange]:
        """Generate `count` more replies to the last message as one batch; `pick` chooses one."""
        last = self._last("/again")
        first_attempt = self.tree.next_attempt(last)
        attempts = range(first_attempt, first_attempt + count)
        self.alternatives = self._answer(self.tree.before(last), last.user, attempts, None, should_stop)
        for exchange in self.alternatives:
            self.tree.add(exchange, move=False)
        return self.alternatives

    def pick(self, number: int) -> Exchange:
        """Continue the current branch from alternative `number`, counted from 1."""
        if not self.alternatives:
            raise UsageError("/pick chooses a reply of /again, and there is none", hint="/again N makes N replies")
        if not 1 <= number <= len(self.alternatives):
            raise UsageError(f"/pick: the number must be in 1 to {len(self.alternatives)}, got {number}")
        chosen = self.alternatives[number - 1]
        self.tree.pick(chosen)
        self._prefixes.pin_branch_states()
        return chosen

    def next_token(self, message: str | None = None) -> NextToken:
        """Next-token logits and state at the end of the branch, or before the reply to `message`."""
        tree = self.tree
        if message is not None:
            tokens, root = self._encode_turn(message), self._prefixes.root_after(tree.head)
        elif tree.last is not None:
            tokens, root = tree.last.tokens, self._prefixes.root_after(tree.before(tree.last))
        elif tree.opening.tokens:
            tokens, root = tree.opening.tokens, self._prefixes.initial_root(tree.head)
        else:
            raise UsageError("the conversation is empty", hint="/top MESSAGE shows how the reply to it may begin")
        return self.engine.next_logits(tokens, root)

    def logprobs(self, exchange: Exchange) -> tuple[float, ...]:
        """Log-probabilities of the reply's tokens; computed if the exchange does not have them.

        A served model may give none, or those of its own tokens, of which there may be more or fewer.
        """
        if exchange.logprobs or not exchange.ids or self.settings.uses_chat_api:
            return exchange.logprobs
        root = self._prefixes.root_after(self.tree.before(exchange))
        return tuple(self.engine.score(exchange.prompt, exchange.ids, root).logprobs)

    def _last(self, command: str) -> Exchange:
        """The last exchange; the error for an empty branch names `command`."""
        last = self.tree.last
        if last is None:
            raise UsageError(f"{command} repeats the last message, and there is none yet")
        return last

    def _encode_turn(self, user: str) -> tuple[int, ...]:
        return tuple(self.engine.tokenizer.encode(self.template.turn(user)))

    def _add_reply(
        self, position: Position, user: str, attempt: int, on_text: OnText | None, should_stop: ShouldStop
    ) -> Exchange:
        (exchange,) = self._answer(position, user, (attempt,), on_text, should_stop)
        self.tree.add(exchange)
        self._prefixes.pin_branch_states()
        return exchange

    def _answer(
        self, position: Position, user: str, attempts: Sequence[int], on_text: OnText | None, should_stop: ShouldStop
    ) -> list[Exchange]:
        """Generate one reply to `user` at `position` for each of the `attempts`; does not change the tree."""
        root, prompt = self._prefixes.root_after(position), self._encode_turn(user)
        turn = self.tree.num_turns(position)
        seed, conversation, repeat = self.identity.seed, self.identity.conversation, self.identity.repeat
        messages = self._messages(position, user) if self.settings.uses_chat_api else ()
        requests = [
            Request.reply(
                prompt,
                self.settings,
                NoiseKey((seed + attempt) % SEED_LIMIT, conversation, repeat, turn),
                self.template,
                root=root,
                messages=messages,
            )
            for attempt in attempts
        ]
        replies = generate(self.engine, requests, on_text, should_stop)
        return [
            Exchange(
                number=number,
                parent=position.exchange,
                opening=position.opening,
                turn=turn,
                attempt=attempt,
                seed=request.noise.seed,
                user=user,
                prompt=prompt,
                ids=reply.ids,
                rest=reply.history[len(prompt) :],
                reply=self.template.shown_reply(reply.text),
                raw=reply.text,
                finish_reason=reply.finish_reason,
                stopped_by=reply.stopped_by,
                settings=self.turn_settings(),
                logprobs=reply.logprobs,
                first_token_s=reply.timing.first_token_s,
                total_s=reply.timing.total_s,
                num_read=reply.num_prompt - reply.num_cached,
                num_cached=reply.num_cached,
                weights_sha256=self.engine.model.spec.weights_sha256,
            )
            for number, (attempt, request, reply) in enumerate(
                zip(attempts, requests, replies, strict=True), start=len(self.tree.exchanges)
            )
        ]

    def _messages(self, position: Position, user: str) -> tuple[dict[str, str], ...]:
        """The dialogue up to `position` and the next message, for a server that applies its own template."""
        newest_first = [{"role": "user", "content": user}]
        while position.exchange is not None:
            exchange = self.tree.exchanges[position.exchange]
            newest_first.append({"role": "assistant", "content": exchange.reply})
            newest_first.append({"role": "user", "content": exchange.user})
            position = self.tree.before(exchange)
        if system := self.tree.openings[position.opening].system:
            newest_first.append({"role": "system", "content": system})
        return tuple(newest_first[::-1])


def generate(
    engine: Engine | EndpointEngine, requests: Sequence[Request], on_text: OnText | None, should_stop: ShouldStop
) -> list[Reply]:
    """Replies to `requests`, in their order. On return, and after an error, no request is left in the engine.

    Args:
        on_text: receives the text of all replies. If it raises an exception, the replies end and the exception is
            raised.

    Raises:
        NonFiniteLogitsError: a reply has no finite logits.
    """
    errors: list[Exception] = []

    def forward_text(text: str) -> None:
        # The engine calls this within a step, which an exception must not interrupt.
        if on_text is not None and not errors:
            try:
                on_text(text)
            except Exception as error:
                errors.append(error)

    request_ids: list[int] = []
    replies: dict[int, Reply] = {}

    def step() -> None:
        # After an error, the engine may also return cancelled replies of an earlier call.
        results = engine.step()
        replies.update((key, reply) for key, reply in results if key in request_ids and isinstance(reply, Reply))

    try:
        request_ids.extend(engine.submit(replace(request, on_text=forward_text)) for request in requests)
        while len(replies) < len(request_ids):
            step()
            if errors or should_stop():
                break
    finally:
        # Also after an error: the engine would otherwise continue the requests with the next message.
        for request_id in request_ids:
            if request_id not in replies:
                engine.cancel(request_id)
    if len(replies) < len(request_ids):
        step()
    if errors:
        raise errors[0]
    for reply in replies.values():
        if reply.finish_reason == "error":
            raise NonFiniteLogitsError(reply.error or "the model produced no reply", hint="/params shows the settings")
    return [replies[request_id] for request_id in request_ids]
