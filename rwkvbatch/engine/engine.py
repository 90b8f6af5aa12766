"""`Engine`: many replies at once over one model.

`step` is the whole of it: plan the rows, run the network, choose tokens, collect what ended. On a GPU it waits once at
most, for the chosen tokens. Results do not depend on what else is in the batch (see docs/design/reproducibility.md for
what each backend holds).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from rwkvbatch.engine.prefix_cache import Node, Places, PrefixTree, SlotAllocator
from rwkvbatch.engine.request import END_OF_TEXT, FinishReason, Reply, Request, Score, check_tokens
from rwkvbatch.engine.scheduler import Chunk, Reading, Scheduler
from rwkvbatch.engine.sequence import Generation, Job, Scoring, StepWork
from rwkvbatch.errors import UsageError, is_out_of_memory
from rwkvbatch.model.base import Choices, Model, State
from rwkvbatch.prompt.tokenizer import Tokenizer, world_tokenizer


@dataclass(frozen=True)
class Outlook:
    """What the model expects after some tokens.

    Attributes:
        logits: of the next token, fp32, [vocab_size].
        state: the recurrent state after the tokens, batch size 1.
    """

    logits: torch.Tensor
    state: State

    def __repr__(self) -> str:
        return f"<Outlook: {len(self.logits)} logits, the highest of token {int(self.logits.argmax())}; {self.state}>"


DEFAULT_STATE_MEMORY = 2**30
MAX_SLOTS = 4096
ZERO_ROOT = 0

_log = logging.getLogger(__name__)

Finished = tuple[int, Reply | Score]
"""A request's number and its result."""


@dataclass
class EngineStats:
    """Counts since the engine was made. `num_prompt_read` and `num_prompt_cached` add up to the prompts' tokens."""

    num_steps: int = 0
    num_rows: int = 0
    num_prompt_read: int = 0
    num_prompt_cached: int = 0
    num_generated: int = 0
    num_halvings: int = 0


class Engine:
    """Generates and scores.

    Args:
        model: any backend's.
        tokenizer: None for the World vocabulary, cut to the model's.
        max_batch: at most this many requests are active at a time.
        step_rows: about this many token rows in one step; prompts are read in chunks that fit.
        state_memory: bytes for recurrent states, those of finished prefixes included. Requests wait when it is full.
        clock: seconds, for timings and time limits only.

    Raises:
        UsageError: `state_memory` does not hold a single state, or a size is below 1.
    """

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
        if max_batch < 1 or step_rows < 1:
            raise UsageError(f"batch size and rows a step must be at least 1, got {max_batch} and {step_rows}")
        capacity = min(state_memory // max(model.spec.state_bytes, 1), MAX_SLOTS + max_batch)
        if capacity < 2:
            raise UsageError(
                f"the memory for states must hold two of {model.spec.state_bytes:,} bytes, got {state_memory:,}",
                hint="raise --state-memory",
            )
        self.model = model
        self.tokenizer = tokenizer if tokenizer is not None else world_tokenizer(model.spec.vocab_size)
        self.stats = EngineStats()
        self._clock = clock
        self._pool = model.make_pool(capacity)
        tree = PrefixTree()
        tree.add_root(ZERO_ROOT, None)
        self._scheduler = Scheduler(tree, SlotAllocator(capacity), self._pool, max_batch, step_rows)
        self._jobs: dict[int, Job] = {}
        self._done: list[Finished] = []
        self._next_id = 0
        self._next_root = ZERO_ROOT + 1
        self.places = Places(tree, capacity // 2, model.spec.vocab_size)

    def __repr__(self) -> str:
        return (
            f"<Engine of {self.model!r}: at most {self.max_batch} at a time, {len(self._jobs)} under way, "
            f"{self.num_states_kept} states kept>"
        )

    @property
    def num_states_kept(self) -> int:
        """States of finished prefixes that are still at hand."""
        return self._scheduler.tree.num_kept

    @property
    def busy(self) -> bool:
        """Whether there is anything left to do or to collect."""
        return bool(self._jobs or self._done)

    @property
    def max_batch(self) -> int:
        """At most this many requests are active at a time; halved when memory runs out."""
        return self._scheduler.max_batch

    def add_root(self, state: State) -> int:
        """Keep an initial state (batch size 1) for `Request.root`; for the engine's whole life.

        Raises:
            UsageError: no memory for it is left.
            CheckpointError: the state is not of this model's shape.
        """
        # One slot more has to be left, or no request could ever be admitted.
        slot = self._scheduler.take_slot() if self._next_root + 1 < self._pool.capacity else None
        if slot is None:
            raise UsageError("no memory for another initial state is left", hint="raise --state-memory")
        self._pool.write([slot], state)
        root = self._next_root
        self._next_root += 1
        self._scheduler.tree.add_root(root, slot)
        return root

    def submit(self, request: Request) -> int:
        """Queue a reply; `step` returns it under the number that this returns.

        Raises:
            ValueError: no tokens, a token outside the vocabulary, or an unknown root.
            UsageError: a banned token outside the vocabulary.
        """
        request.sampling.check_vocabulary(self.model.spec.vocab_size)
        reading = self._reading(self._scheduler.tree.base(request.root), request.tokens)
        self._jobs[reading.id] = Generation(request, reading, self.tokenizer, self._clock())
        return reading.id

    def submit_score(self, prefix: Sequence[int], continuation: Sequence[int], root: int = ZERO_ROOT) -> int:
        """Queue the scoring of `continuation` after `prefix`; neither may be empty.

        Raises:
            ValueError: as `submit`, or one of them is empty.
        """
        if not prefix or not continuation:
            raise ValueError("scoring needs at least one token before the text and one in it")
        return self._submit_scoring(self._scheduler.tree.base(root), prefix, continuation)

    def cancel(self, request_id: int) -> None:
        """End a request where it stands; its reply so far is returned by the next `step`, as `cancelled`."""
        job = self._jobs.get(request_id)
        if isinstance(job, Generation):
            self._end(job, "cancelled")
        elif job is not None:
            del self._jobs[request_id]
            self._scheduler.finish(job.reading, keep=True)

    def step(self) -> list[Finished]:
        """Advance everything that is under way by one forward pass; returns what ended."""
        now_s = self._clock()
        self._end_overdue(now_s)
        work = StepWork.of(self._scheduler.plan(), self._jobs)
        if work.chunks:
            self._begin(work.chunks, now_s)
            logits = self._forward(work)
            if logits is not None:
                self._scheduler.advance(work.chunks)
                if len(logits):
                    self._collect(work, self.model.choose(logits, work.wanted(self.model.spec.vocab_size)))
        done, self._done = self._done, []
        return done

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Submit all, step until they are done; replies in the order of the requests."""
        ids = [self.submit(request) for request in requests]
        results = self._run_until(ids)
        return [result for request_id in ids if isinstance(result := results[request_id], Reply)]

    def score(self, prefix: Sequence[int], continuation: Sequence[int], root: int = ZERO_ROOT) -> Score:
        """Log-probabilities of `continuation` after `prefix`; disturbs nothing that is under way.

        Raises:
            ValueError: as `submit_score`.
        """
        request_id = self.submit_score(prefix, continuation, root)
        result = self._run_until([request_id])[request_id]
        assert isinstance(result, Score)
        return result

    def look(self, tokens: Sequence[int], root: int = ZERO_ROOT) -> Outlook:
        """The next token's logits and the state after `tokens`; disturbs nothing that is under way.

        Raises:
            ValueError: as `submit`.
        """
        if not tokens:
            raise ValueError("there is nothing to look at after no tokens")
        check_tokens(tokens, self.model.spec.vocab_size)
        before = self._state_after(self._scheduler.tree.insert(root, tuple(tokens[:-1])))
        logits, state = self.model.forward([[tokens[-1]]], before)
        return Outlook(logits[0].clone(), state)

    def _state_after(self, node: Node) -> State | None:
        """None is the zero state."""
        if node.slot is None and node.parent is not None:
            # Scoring any token reads all up to `node` and leaves its state in the tree.
            self._run_until([self._submit_scoring(node.parent, node.edge, (END_OF_TEXT,))])
            assert node.slot is not None
        return None if node.slot is None else self._pool.read([node.slot])

    def _run_until(self, ids: Sequence[int]) -> dict[int, Reply | Score]:
        wanted, results, others = set(ids), dict[int, Reply | Score](), list[Finished]()
        while wanted - results.keys():
            for request_id, result in self.step():
                if request_id in wanted:
                    results[request_id] = result
                else:
                    others.append((request_id, result))
        self._done.extend(others)
        return results

    def _submit_scoring(self, base: Node, prefix: Sequence[int], continuation: Sequence[int]) -> int:
        check_tokens(continuation[-1:], self.model.spec.vocab_size)
        first_output = base.depth + len(prefix) - 1
        reading = self._reading(base, (*prefix, *continuation[:-1]), num_unread_at_end=len(continuation))
        self._jobs[reading.id] = Scoring(reading, tuple(continuation), first_output)
        return reading.id

    def _reading(self, base: Node, tokens: Sequence[int], num_unread_at_end: int = 1) -> Reading:
        if not tokens:
            raise ValueError("a request needs at least one token")
        check_tokens(tokens, self.model.spec.vocab_size)
        reading = Reading(
            id=self._next_id,
            base=base,
            tokens=list(tokens),
            num_prompt=base.depth + len(tokens),
            num_unread_at_end=num_unread_at_end,
        )
        self._next_id += 1
        self._scheduler.add(reading)
        return reading

    def _begin(self, chunks: Sequence[Chunk], now_s: float) -> None:
        for chunk in chunks:
            job = self._jobs[chunk.reading.id]
            if isinstance(job, Generation):
                job.begin(now_s)
        self.stats.num_steps += 1
        self.stats.num_rows += sum(chunk.stop - chunk.start for chunk in chunks)

    def _forward(self, work: StepWork) -> torch.Tensor | None:
        """Logits of the step; None when memory ran out and the batch was made smaller instead."""
        try:
            return self.model.step(work.rows(), self._pool)
        except Exception as error:
            if not is_out_of_memory(error) or self._scheduler.max_batch == 1:
                raise
            self._scheduler.max_batch //= 2
            self._scheduler.step_rows = max(1, self._scheduler.step_rows // 2)
            self.stats.num_halvings += 1
            _log.warning("out of memory: going on with at most %d rows at once", self._scheduler.max_batch)
            self._scheduler.restart([chunk.reading for chunk in work.chunks])
            for scoring, _ in work.scored:
                scoring.start_over()
            return None

    def _collect(self, work: StepWork, choices: Choices) -> None:
        now_s = self._clock()
        for scoring in work.take_scores(choices):
            self._end_scoring(scoring)
        # Texts have the rows after those of the replies.
        for job, token, logprob in zip(work.sampled, choices.tokens.tolist(), choices.logprobs.tolist(), strict=False):
            held_back = job.holds_back
            finish_reason = job.take(token, logprob, now_s)
            if job.reading.id not in self._jobs:
                continue  # cancelled by its own `on_text`
            if finish_reason is not None:
                self._end(job, finish_reason)
            elif job.wants_fallback and job.holds_back and not held_back:
                self._save_fallback(job)

    def _save_fallback(self, job: Generation) -> None:
        """The last token may begin a stop text, and the state has not read it yet: remember that state."""
        slot = job.fallback[0] if job.fallback is not None else self._scheduler.take_slot()
        if slot is not None:
            assert job.reading.slot is not None
            self._pool.copy(job.reading.slot, slot)
            job.fallback = (slot, job.reading.position)

    def _end_overdue(self, now_s: float) -> None:
        for job in [job for job in self._jobs.values() if isinstance(job, Generation) and job.is_overdue(now_s)]:
            self._end(job, "time")

    def _end(self, job: Generation, finish_reason: FinishReason) -> None:
        error = (
            "the model's logits hold NaN or infinity, or every token is banned" if finish_reason == "error" else None
        )
        reply = job.reply(finish_reason, self._clock(), error)
        del self._jobs[job.reading.id]
        if job.fallback is not None:
            slot, length = job.fallback
            self._scheduler.release(job.reading, slot, length, keep=finish_reason == "stop")
        self._scheduler.finish(job.reading, keep=finish_reason != "error")
        self.stats.num_prompt_cached += reply.num_cached
        self.stats.num_prompt_read += reply.num_prompt - reply.num_cached
        self.stats.num_generated += len(reply.ids)
        self._done.append((job.reading.id, reply))

    def _end_scoring(self, job: Scoring) -> None:
        del self._jobs[job.reading.id]
        self._scheduler.finish(job.reading, keep=True)
        self._done.append((job.reading.id, job.score()))
