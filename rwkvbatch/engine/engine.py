"""`Engine`: continuous batching of replies and scores over one model.

`step` plans the rows, runs the network, chooses tokens and collects the finished requests. On a GPU it waits for the
device at most once. Results do not depend on the rest of the batch; docs/design/reproducibility.md states the guarantee
of each backend.
"""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from rwkvbatch.arguments import FUNCTION, checks, instance_of, optional, whole_number
from rwkvbatch.engine.prefix_cache import Node, PrefixTree
from rwkvbatch.engine.request import (
    END_OF_TEXT,
    LONG_TEXT_TOKENS,
    EngineStats,
    FinishReason,
    PrefillProgress,
    Reply,
    Request,
    Score,
)
from rwkvbatch.engine.scheduler import Chunk, Scheduler, SequenceState
from rwkvbatch.engine.sequence import Generation, Job, Scoring, StepWork
from rwkvbatch.errors import ArgumentError, UsageError, is_out_of_memory
from rwkvbatch.model.base import Choices, Model, State, check_tokens
from rwkvbatch.prompt.tokenizer import Tokenizer
from rwkvbatch.prompt.vocabulary import textless_ids, tokenizer_of

DEFAULT_STATE_MEMORY = 2**30
MAX_SLOTS = 4096
ZERO_ROOT = 0
"""The root of the zero state."""

_log = logging.getLogger(__name__)

Finished = tuple[int, Reply | Score]
"""A request's number and its result."""


@dataclass(frozen=True)
class NextToken:
    """Next-token logits and state after a prefix.

    Attributes:
        logits: fp32, [vocab_size].
        state: the recurrent state after the prefix, batch size 1.
    """

    logits: torch.Tensor
    state: State

    def __repr__(self) -> str:
        return f"<NextToken: {len(self.logits)} logits, the highest of token {int(self.logits.argmax())}; {self.state}>"


class Engine:
    """Generates replies and scores texts.

    Args:
        model: a model of any backend.
        tokenizer: None for the model's own, see `tokenizer_of`.
        max_batch: the most requests that are active at a time.
        step_rows: approximate number of token rows per step; prompts are read in chunks that fit.
        state_memory: bytes for recurrent states, cached ones included. Requests wait while it is full.
        clock: seconds, for timings and time limits only.

    Raises:
        UsageError: `state_memory` does not hold a single state, or a size is below 1.
        InputError: as `tokenizer_of`.
    """

    @checks(
        model=instance_of(Model, "a loaded Model", "load_model(FILE) loads one"),
        tokenizer=optional(instance_of(Tokenizer, "a tokenizer")),
        max_batch=whole_number(1),
        step_rows=whole_number(1),
        state_memory=whole_number(1),
        clock=FUNCTION,
    )
    def __init__(
        self,
        model: Model,
        *,
        tokenizer: Tokenizer | None = None,
        max_batch: int = 64,
        step_rows: int = 512,
        state_memory: int = DEFAULT_STATE_MEMORY,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        capacity = min(state_memory // max(model.spec.state_bytes, 1), MAX_SLOTS + max_batch)
        if capacity < 2:
            raise UsageError(
                f"the memory for states must hold two of {model.spec.state_bytes:,} bytes, got {state_memory:,}",
                hint="raise --state-memory",
            )
        self.model = model
        self.tokenizer = tokenizer if tokenizer is not None else tokenizer_of(model.spec)
        self._unreported_textless_ids = set(textless_ids(self.tokenizer))
        self.stats = EngineStats()
        self._clock = clock
        self._pool = model.make_pool(capacity)
        tree = PrefixTree()
        tree.add_root(ZERO_ROOT, None)
        self._scheduler = Scheduler(tree, self._pool, max_batch, step_rows)
        self._jobs: dict[int, Job] = {}
        self._done: list[Finished] = []
        self._next_id = 0
        self._next_root = ZERO_ROOT + 1
        self._num_pinned_states = 0
        self._max_pinned_states = capacity // 2

    def __repr__(self) -> str:
        return (
            f"<Engine of {self.model!r}: batch of at most {self.max_batch}, {len(self._jobs)} unfinished, "
            f"{self.num_cached_states} cached states>"
        )

    @property
    def num_cached_states(self) -> int:
        """Cached states of prefixes, those of roots not included."""
        return self._scheduler.tree.num_states

    @property
    def busy(self) -> bool:
        """Whether `step` has work to do or results to return."""
        return bool(self._jobs or self._done)

    @property
    def prefill(self) -> PrefillProgress:
        """The progress of reading the long texts of active requests."""
        texts = [sequence for sequence in self._scheduler.active if len(sequence.tokens) >= LONG_TEXT_TOKENS]
        num_read = sum(text.position - text.base.depth for text in texts)
        return PrefillProgress(len(texts), num_read, sum(len(text.tokens) for text in texts))

    @property
    def max_batch(self) -> int:
        """The most requests that are active at a time; halved when memory runs out."""
        return self._scheduler.max_batch

    def add_root(self, state: State) -> int:
        """Register an initial state (batch size 1) for `Request.root`, for the lifetime of the engine.

        Raises:
            UsageError: no memory is left for it.
            CheckpointError: the state does not fit this model.
        """
        # One more slot must stay free, or no request could ever be admitted.
        slot = self._scheduler.take_slot() if self._next_root + 1 < self._pool.capacity else None
        if slot is None:
            raise UsageError("no memory for another initial state is left", hint="raise --state-memory")
        try:
            self._pool.write([slot], state)
        except BaseException:  # KeyboardInterrupt included: the engine may go on, and must not lose a slot
            self._scheduler.free_slots.append(slot)
            raise
        root = self._next_root
        self._next_root += 1
        self._scheduler.tree.add_root(root, slot)
        return root

    def pin_prefix(self, tokens: Sequence[int], root: int = ZERO_ROOT) -> int:
        """Create a root for the prefix `tokens` after `root`, which may be a pinned prefix itself.

        A request after a pinned prefix does not repeat the tokens before it, so a turn's cost does not grow with the
        length of the conversation. The tokens are pinned, not their state: an evicted state is computed again.

        Raises:
            ArgumentError: a token outside the vocabulary, or an unknown root.
        """
        check_tokens(tokens, self.model.spec.vocab_size)
        return self._scheduler.tree.pin_prefix(root, tuple(tokens))

    def unpin_prefix(self, root: int) -> None:
        """Remove a pinned prefix. Prefixes pinned after it and active requests are not affected."""
        self._scheduler.tree.unpin_prefix(root)

    def pin_state(self, tokens: Sequence[int], root: int = ZERO_ROOT) -> Node | None:
        """Protect the deepest cached state on the path to `tokens` from eviction, until `unpin_state`.

        Returns:
            A handle for `unpin_state`; None when no state is cached, or when half of all states are pinned already.

        Raises:
            ArgumentError: an unknown root.
        """
        if self._num_pinned_states >= self._max_pinned_states:
            return None
        node = self._scheduler.tree.pin_state(root, tuple(tokens))
        self._num_pinned_states += node is not None
        return node

    def unpin_state(self, node: Node) -> None:
        """Undo one `pin_state`: the state may be evicted again."""
        node.num_state_pins -= 1
        self._num_pinned_states -= 1

    def submit(self, request: Request) -> int:
        """Queue a request; returns the number under which `step` returns its reply.

        Raises:
            ArgumentError: no tokens, a token outside the vocabulary, or an unknown root.
            UsageError: a banned token outside the vocabulary.
        """
        request.sampling.check_vocabulary(self.model.spec.vocab_size)
        sequence = self._new_sequence(self._scheduler.tree.base(request.root), request.tokens)
        self._jobs[sequence.id] = Generation(request, sequence, self.tokenizer, self._clock())
        return sequence.id

    def submit_score(
        self,
        prefix: Sequence[int],
        continuation: Sequence[int],
        root: int = ZERO_ROOT,
        *,
        cache: bool = True,
        num_top: int | None = None,
    ) -> int:
        """Queue the scoring of `continuation` after `prefix`; neither may be empty.

        A long continuation is read in chunks, like a prompt, and the logits of each chunk are dropped after use. States
        at which several queued texts fork are cached even without `cache`.

        Args:
            cache: keep the state at the end, for requests that continue the text.
            num_top: how many of the likeliest tokens `Score.details` has at each position; None for no details.

        Raises:
            ArgumentError: as `submit`, or `prefix` or `continuation` is empty.
        """
        if not prefix or not continuation:
            raise ArgumentError("scoring needs at least one token in the prefix and one in the continuation")
        base = self._scheduler.tree.base(root)
        return self._submit_scoring(base, prefix, continuation, cache=cache, num_top=num_top)

    def cancel(self, request_id: int) -> None:
        """End a request now. The next `step` returns a reply so far as `cancelled`; a score is not returned."""
        job = self._jobs.get(request_id)
        if isinstance(job, Generation):
            self._end(job, "cancelled")
        elif job is not None:
            del self._jobs[request_id]
            self._scheduler.finish(job.sequence, cache=job.cache)

    def step(self) -> list[Finished]:
        """Advance all active requests by one forward pass and return the finished ones."""
        now_s = self._clock()
        self._end_overdue(now_s)
        work = StepWork.from_chunks(self._scheduler.plan(), self._jobs)
        if work.chunks:
            self._begin(work.chunks, now_s)
            logits = self._forward(work)
            if logits is not None and len(logits):
                choices = self.model.choose(logits, work.sample_batch(self.model.spec.vocab_size))
                work.add_details(logits, choices)
                self._collect(work, choices)
        done, self._done = self._done, []
        return done

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Submit all requests and step until they finish; replies in the order of the requests."""
        ids = [self.submit(request) for request in requests]
        results = self._run_until(ids)
        return [result for request_id in ids if isinstance(result := results[request_id], Reply)]

    def score(self, prefix: Sequence[int], continuation: Sequence[int], root: int = ZERO_ROOT) -> Score:
        """Log-probabilities of `continuation` after `prefix`; does not affect active requests.

        Raises:
            ArgumentError: as `submit_score`.
        """
        request_id = self.submit_score(prefix, continuation, root)
        result = self._run_until([request_id])[request_id]
        assert isinstance(result, Score)
        return result

    def next_logits(self, tokens: Sequence[int], root: int = ZERO_ROOT) -> NextToken:
        """The next token's logits and the state after `tokens`; does not affect active requests.

        Raises:
            ArgumentError: as `submit`.
        """
        if not tokens:
            raise ArgumentError("next-token logits need at least one token before them")
        check_tokens(tokens, self.model.spec.vocab_size)
        before = self._state_after(self._scheduler.tree.insert(root, tuple(tokens[:-1])))
        logits, state = self.model.forward([[tokens[-1]]], before)
        return NextToken(logits[0].clone(), state)

    def _state_after(self, node: Node) -> State | None:
        """The state at `node`, computed if it is not cached; None for the zero state."""
        if node.slot is None and node.parent is not None:
            # Scoring any token reads everything up to `node` and caches its state.
            self._run_until([self._submit_scoring(node.parent, node.edge, (END_OF_TEXT,))])
            assert node.slot is not None
        return None if node.slot is None else self._pool.read([node.slot])

    def _run_until(self, ids: Sequence[int]) -> dict[int, Reply | Score]:
        awaited, results, others = set(ids), dict[int, Reply | Score](), list[Finished]()
        while awaited - results.keys():
            for request_id, result in self.step():
                if request_id in awaited:
                    results[request_id] = result
                else:
                    others.append((request_id, result))
        self._done.extend(others)
        return results

    def _submit_scoring(
        self,
        base: Node,
        prefix: Sequence[int],
        continuation: Sequence[int],
        *,
        cache: bool = True,
        num_top: int | None = None,
    ) -> int:
        for ids in (prefix, continuation):
            check_tokens(ids, self.model.spec.vocab_size)
        first_output = base.depth + len(prefix) - 1
        tokens = array("i", prefix)
        tokens.extend(continuation)
        last = tokens.pop()
        sequence = self._new_sequence(base, tokens, num_unread_at_end=len(continuation))
        self._jobs[sequence.id] = Scoring(sequence, last, len(continuation), first_output, cache, num_top)
        return sequence.id

    def _new_sequence(self, base: Node, tokens: Sequence[int], num_unread_at_end: int = 1) -> SequenceState:
        if not tokens:
            raise ArgumentError("a request needs at least one token")
        check_tokens(tokens, self.model.spec.vocab_size)
        num_prompt = base.depth + len(tokens)
        tokens = tokens if isinstance(tokens, array) else array("i", tokens)
        sequence = SequenceState(self._next_id, base, tokens, num_prompt, num_unread_at_end=num_unread_at_end)
        self._next_id += 1
        self._scheduler.add(sequence)
        return sequence

    def _begin(self, chunks: Sequence[Chunk], now_s: float) -> None:
        for chunk in chunks:
            job = self._jobs[chunk.sequence.id]
            if isinstance(job, Generation):
                job.begin(now_s)
        self.stats.num_steps += 1
        self.stats.num_rows += sum(chunk.stop - chunk.start for chunk in chunks)

    def _forward(self, work: StepWork) -> torch.Tensor | None:
        """Logits of the step; None when memory ran out and the batch size was halved instead."""
        try:
            logits = self.model.step(work.ragged_batch(), self._pool)
            self._scheduler.advance(work.chunks)
            return logits
        except BaseException as error:
            # The states may be ahead of their recorded positions, so none may be cached or continued.
            self._scheduler.restart([chunk.sequence for chunk in work.chunks])
            for scoring, _ in work.scored:
                scoring.start_over()
            if not is_out_of_memory(error) or self._scheduler.max_batch == 1:
                raise
        self._scheduler.max_batch //= 2
        self._scheduler.step_rows = max(1, self._scheduler.step_rows // 2)
        self.stats.num_halvings += 1
        _log.warning("out of memory: batch size reduced to %d", self._scheduler.max_batch)
        return None

    def _collect(self, work: StepWork, choices: Choices) -> None:
        now_s = self._clock()
        for scoring in work.take_scores(choices):
            del self._jobs[scoring.sequence.id]
            self._scheduler.finish(scoring.sequence, cache=scoring.cache)
            self._done.append((scoring.sequence.id, scoring.score()))
        # Rows of scored texts come after those of replies.
        for job, token, logprob in zip(work.sampled, choices.tokens.tolist(), choices.logprobs.tolist(), strict=False):
            was_in_stop_text = job.ends_with_partial_stop
            finish_reason = job.take(token, logprob, now_s)
            if job.sequence.id not in self._jobs:
                continue  # the request's `on_text` cancelled it
            if token in self._unreported_textless_ids:
                self._report_textless(token)
            if finish_reason is not None:
                self._end(job, finish_reason)
            elif job.needs_fallback and job.ends_with_partial_stop and not was_in_stop_text:
                self._save_fallback(job)

    def _report_textless(self, token: int) -> None:
        """Warn, once per id, of a token without text in a reply, whose text and tokens then disagree."""
        self._unreported_textless_ids.discard(token)
        _log.warning(
            "the model chose token id %d, which has no text in the vocabulary (%s); is this the model's vocabulary? "
            "--ban %d excludes the id",
            *(token, self.tokenizer.name, token),
        )

    def _save_fallback(self, job: Generation) -> None:
        """Save the state before the last token, which may begin a stop text; the network has not read it yet."""
        slot = job.fallback[0] if job.fallback is not None else self._scheduler.take_slot()
        if slot is not None:
            assert job.sequence.slot is not None
            self._pool.copy(job.sequence.slot, slot)
            job.fallback = (slot, job.sequence.position)

    def _end_overdue(self, now_s: float) -> None:
        for job in [job for job in self._jobs.values() if isinstance(job, Generation) and job.is_overdue(now_s)]:
            self._end(job, "time")

    def _end(self, job: Generation, finish_reason: FinishReason) -> None:
        error = (
            "the model's logits contain NaN or infinity, or every token is banned" if finish_reason == "error" else None
        )
        reply = job.reply(finish_reason, self._clock(), error)
        del self._jobs[job.sequence.id]
        if job.fallback is not None:
            slot, length = job.fallback
            self._scheduler.cache_or_free(job.sequence, slot, length, cache=finish_reason == "stop")
        self._scheduler.finish(job.sequence, cache=finish_reason != "error")
        self.stats.num_prompt_cached += reply.num_cached
        self.stats.num_prompt_read += reply.num_prompt - reply.num_cached
        self.stats.num_generated += len(reply.ids)
        self._done.append((job.sequence.id, reply))
