"""Replays one task turn by turn: makes engine requests from a script's turns, and rows from the engine's replies.

These records hold a turn on its way from the script to the run directory: `Conversation` and `Turn` (the script),
`Task` and `TurnSettings` (the plan), `ConversationReplay` (here), `Request` and `Reply` (the engine), `ReplyFacts` and
`CheckResult` (the checks), `Row` (the results).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from rwkvbatch.engine.request import FinishReason, NoiseKey, Reply, Request, Score, closed_history
from rwkvbatch.errors import PromptTooLongError, RowError
from rwkvbatch.replay.judging.checks import explain, likeliest_choice
from rwkvbatch.replay.planning.plan import Task
from rwkvbatch.replay.worker.prompts import PromptEncoder, ScoredText, TurnPrompt
from rwkvbatch.replay.worker.rows import TurnResults, error_row, turn_row
from rwkvbatch.results.row import TOO_LONG_PROMPT, Row
from rwkvbatch.script.records import Turn
from rwkvbatch.signals import ENDS_PROCESS

if TYPE_CHECKING:
    from rwkvbatch.endpoint.engine import EndpointEngine
    from rwkvbatch.engine.engine import Engine


class ConversationReplay:
    """A task and the state of its replay.

    Attributes:
        pending: engine requests of the next turn that have no result yet.
    """

    def __init__(self, task: Task, encoder: PromptEncoder) -> None:
        self.task = task
        self.pending: set[int] = set()
        self._position = 0
        """Index of the next turn in the order of the replay."""
        self._work: _Work | None = None
        # By turn of the dialogue, the number of tokens up to the end of its user message: the distance of a probe is
        # counted from there.
        self._num_tokens_through: dict[int, int] = {}
        self._encoder = encoder
        self._history = encoder.opening(task)
        # The dialogue so far as messages, for a server that applies its own template.
        before = {"system": task.system, "assistant": task.conversation.greeting}
        self._messages = [{"role": role, "content": text} for role, text in before.items() if text]

    @property
    def over(self) -> bool:
        return self._position >= len(self.task.conversation.order)

    @property
    def turn(self) -> int:
        """The index of the next turn in the conversation; the number of turns when `over`."""
        order = self.task.conversation.order
        return len(order) if self.over else order[self._position]

    @property
    def turns_after(self) -> tuple[int, ...]:
        """The indices of the turns after the next one, in the order of the replay."""
        return self.task.conversation.order[self._position + 1 :]

    @property
    def is_at_probe(self) -> bool:
        """Whether the next turn is a probe, whose failure does not end the dialogue."""
        return not self.over and self._next.probe is not None

    def prompt(self) -> tuple[int, ...]:
        """All tokens before the next reply; raises as `TurnPrompt.tokens`."""
        return self._prompt.tokens()

    def scored_texts(self) -> list[ScoredText]:
        """The texts of the next turn that are scored; raises as `TurnPrompt.scored_texts`."""
        return self._prompt.scored_texts()

    def request(self) -> Request:
        """The engine request for the next turn's reply; raises `PromptTooLongError`, or as `prompt`."""
        tokens = self.prompt()
        self._check_length(len(tokens))
        turn = self.task.of_turn(self.turn)
        settings = turn.settings
        messages = (*self._messages, {"role": "user", "content": self._next.user}) if settings.uses_chat_api else ()
        root = self._encoder.root(settings)
        template = self._prompt.reply_template
        return Request.reply(tokens, settings, self._noise(turn.seed), template, root=root, messages=messages)

    def _check_length(self, num_tokens: int) -> None:
        limit = self._encoder.max_prompt_tokens
        if limit is not None and num_tokens > limit:
            raise PromptTooLongError(f"{TOO_LONG_PROMPT} {num_tokens} tokens; --max-prompt-tokens allows {limit}")

    def _noise(self, seed: int) -> NoiseKey:
        """The key of the turn's random numbers. A probe's key does not depend on how many turns the dialogue has."""
        conversation, probe = self.task.conversation.id, self._next.probe
        if probe is None:
            return NoiseKey(seed, conversation, self.task.repeat, self.turn)
        return NoiseKey(seed, f"{conversation}\x1fprobe {probe.number}", self.task.repeat, probe.after)

    def _probe_tokens(self) -> int | None:
        """The number of tokens since the message that the next turn, a probe, asks about; None for other turns."""
        probe = self._next.probe
        if probe is None:
            return None
        return len(self._history) - (0 if probe.since < 0 else self._num_tokens_through[probe.since])

    def submit(self, engine: Engine | EndpointEngine) -> None:
        """Submit the work of the next turn: generating the reply, scoring the reference and the choices.

        Raises:
            PromptTooLongError: the prompt is longer than the settings allow.
            RwkvBatchError, ValueError: the engine refuses a request.
        """
        turn, scored_texts = self._next, self.scored_texts()
        if not turn.generate:
            for prefix, _ in scored_texts:
                self._check_length(len(prefix))
        self._work = _Work(self.request() if turn.generate else None, scored_texts)
        self.submit_more(engine)

    def submit_more(self, engine: Engine | EndpointEngine) -> None:
        """Submit more requests of the next turn's work, until `MAX_PENDING` are pending. This bounds their tokens."""
        work = self._work
        if work is None:
            return
        root = self._encoder.root(self.task.of_turn(self.turn).settings)
        try:
            while work.num_submitted < work.num_parts and len(self.pending) < MAX_PENDING:
                part = work.num_submitted
                if work.request is not None and part == 0:
                    request_id = engine.submit(work.request)
                else:
                    index = part - (work.request is not None)
                    # Only a reference reply can be part of a later history.
                    cache = index == 0 and self._next.reference is not None and not self._next.plain
                    request_id = engine.submit_score(*work.scored_texts[index], root, cache=cache)
                work.part_of[request_id] = part
                self.pending.add(request_id)
                work.num_submitted += 1
        except BaseException:  # also KeyboardInterrupt: the engine must not continue requests without a receiver
            for request_id in self.pending:
                engine.cancel(request_id)
            raise

    def take_result(self, request_id: int, result: Reply | Score) -> Row | None:
        """Take a pending request's result. Returns the turn's row once all its results are there.

        The replay has then moved to the next turn, unless the row is an error row. When it returns None, call
        `submit_more`.
        """
        results = self.collect(request_id, result)
        if results is None:
            return None
        reply = results.reply
        template = self._prompt.reply_template
        # What a model writes after a plain text is kept as it is: code is indented.
        text = "" if reply is None else reply.text if template is None else template.shown_reply(reply.text)
        try:
            row = turn_row(self._prompt, results, text, self._probe_tokens())
        except ENDS_PROCESS:
            raise
        except BaseException as error:  # checks may be plug-ins: an exception fails the row, not the run
            return error_row(self.task, self.turn, explain(error), reply, text)
        self._advance(() if reply is None else reply.history, row)
        return row

    def collect(self, request_id: int, result: Reply | Score) -> TurnResults | None:
        """Take a pending request's result, as `take_result` does, but run no checks and stay at the turn.

        Returns:
            All results of the turn once they are there. When it returns None, call `submit_more`.
        """
        self.pending.remove(request_id)
        work = self._work
        assert work is not None
        work.results[work.part_of.pop(request_id)] = result
        if len(work.results) < work.num_parts:
            return None
        self._work = None
        reply = work.results[0] if work.request is not None else None
        assert reply is None or isinstance(reply, Reply)
        scores = [result for _, result in sorted(work.results.items()) if isinstance(result, Score)]
        return TurnResults(reply, scores, work.scored_texts)

    def fail_turn(self, error: Exception) -> Row:
        """The error row of the next turn. The replay stays at that turn."""
        self.pending = set()
        self._work = None
        return error_row(self.task, self.turn, explain(error))

    def skip_turn(self, row: Row) -> None:
        """Move past a turn whose row exists: add its tokens to the history and generate nothing."""
        history: tuple[int, ...] = ()
        if self._next.generate and self._next.probe is None and not self._next.plain:
            history = closed_history(
                self._encoder.tokenizer,
                self.prompt(),
                row.reply_ids,
                cast("FinishReason", row.finish_reason),
                row.stopped_by,
                self._prompt.template.closing,
            )
        self._advance(history, row)

    def take_references(self) -> Iterator[ScoredText]:
        """For each of the next references, the tokens before it and its own tokens, as rows score them.

        Moves past the turns of these references, with the references as history, and stops before a turn of the
        dialogue that has none. Probes without a reference are skipped.
        """
        while not self.over:
            turn = self._next
            if turn.reference is not None:
                yield self._prompt.reference_tokens(turn.reference)
                if turn.probe is None and not turn.plain:
                    self._history = self._prompt.after_reference(turn.reference)
            elif turn.probe is None:
                return
            self._position += 1

    def take_reply(self, reply: Reply) -> None:
        """Move past the next turn with the model's reply as history, without making a row.

        Raises:
            RowError: the engine could not make the reply.
        """
        if reply.finish_reason == "error":
            raise RowError(reply.error or "the engine could not make this reply")
        self._history = reply.history
        self._position += 1

    @property
    def _prompt(self) -> TurnPrompt:
        return TurnPrompt(self.task, self.turn, self._encoder, self._history)

    @property
    def _next(self) -> Turn:
        return self.task.conversation.turns[self.turn]

    def _advance(self, history: tuple[int, ...], row: Row) -> None:
        """Move to the next turn; `history` has all tokens up to the end of this one if its reply was generated.

        Probes and plain texts leave the history as it is. After a turn with choices and no reply, the history has the
        most likely choice, by the turn's first check of choices or else by the sum of log-probabilities.
        """
        turn, settings = self._next, self.task.settings
        if turn.probe is None and not turn.plain:
            self._num_tokens_through[self.turn] = len(self.prompt())
            assistant = row.reply
            if settings.history == "gold" and turn.reference is not None:
                history = self._prompt.after_reference(turn.reference)
                assistant = turn.reference
            elif not turn.generate:
                history = self._prompt.after_choice(likeliest_choice(turn, row.choices))
            self._history = history
            self._messages += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": assistant}]
        self._position += 1


MAX_PENDING = 256
"""Largest number of requests of one turn that are in the engine at a time."""


@dataclass
class _Work:
    """The engine's work for one turn. Its parts are the request, if any, and then each of the scored texts.

    Attributes:
        scored_texts: the tokens before each text, and the text's own. The first text is the turn's reference, if it
            has one; the others are its choices.
        num_submitted: number of parts that were submitted, in order.
        part_of: by id of a pending request, the index of its part.
        results: by index of the part.
    """

    request: Request | None
    scored_texts: Sequence[ScoredText]
    num_submitted: int = 0
    part_of: dict[int, int] = field(default_factory=dict[int, int])
    results: dict[int, Reply | Score] = field(default_factory=dict["int", "Reply | Score"])

    @property
    def num_parts(self) -> int:
        return len(self.scored_texts) + (self.request is not None)
