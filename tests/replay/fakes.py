"""A fake engine whose replies are hashes of their requests, its loader, and made plans, conversations and rows.

Nothing here imports torch, so that processes that tests kill start quickly.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rwkvbatch.config import RunSettings
from rwkvbatch.config.sources import ResolvedSettings
from rwkvbatch.engine.request import FinishReason, PrefillProgress, Reply, ReplyTiming, Request, Score, closed_history
from rwkvbatch.errors import CheckpointError, RowError
from rwkvbatch.replay.planning.grid import Cell, make_cells
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.planning.row_index import Shard
from rwkvbatch.replay.planning.setups import Setup
from rwkvbatch.replay.worker.prompts import PromptEncoder
from rwkvbatch.results.row import CheckResult, Logprob, Row, RowTiming, TokenCounts
from rwkvbatch.script.lines import SourceLine
from rwkvbatch.script.records import Check, Conversation, ReplyFacts, Turn, Verdict

WORDS = ("alder", "birch", "cedar", "dogwood", "elm", "fir", "größe", "树", "🌲")


class ByteTokenizer:
    """Ids 1 to 256 are the bytes."""

    vocab_size = 257
    name = "bytes"
    sha256 = "0" * 64

    def encode(self, text: str) -> list[int]:
        return [byte + 1 for byte in text.encode()]

    def decode(self, tokens: Sequence[int]) -> str:
        return self.decode_bytes(tokens).decode(errors="replace")

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        return bytes(token - 1 for token in tokens)

    def token_bytes(self, token: int) -> bytes:
        return bytes([token - 1])


@dataclass(frozen=True)
class FakeSpec:
    generation: str = "7"
    num_layers: int = 1
    width: int = 1
    vocab_size: int = 257
    num_parameters: int = 1
    weights_sha256: str = "f" * 64
    path: str = "fake.pth"
    dtype: str = "fp32"
    backend: str = "fake"
    device: str = "cpu"
    bitwise: bool = True
    adapter: str | None = None


def pure_reply(request: Request) -> Reply:
    """A reply that depends on every field of the request that it may depend on, and on nothing else."""
    key = f"{request.tokens}{request.sampling}{request.noise}{request.max_tokens}{request.stop}{request.root}"
    digest = hashlib.blake2b(key.encode()).digest()
    text = " " + " ".join(WORDS[byte % len(WORDS)] for byte in digest[: 1 + digest[0] % 4])
    finish_reason: FinishReason = ("stop", "stop", "eos", "length")[digest[1] % 4]  # type: ignore[assignment]
    tokenizer = ByteTokenizer()
    ids = tuple(tokenizer.encode(text + ("\n\n" if finish_reason == "stop" else "")))
    stopped_by = "\n\n" if finish_reason == "stop" else None
    logprobs = tuple(-((digest[index % 64] + 1) / 256) for index in range(len(ids)))
    history = closed_history(tokenizer, request.tokens, ids, finish_reason, stopped_by, request.closing)
    return Reply(
        text, ids, history, finish_reason, stopped_by, logprobs, len(request.tokens), 0, ReplyTiming(0.0, 0.0, 0.0, 0.0)
    )


def pure_score(prefix: Sequence[int], continuation: Sequence[int]) -> Score:
    digest = hashlib.blake2b(f"{tuple(prefix)}{tuple(continuation)}".encode()).digest()
    return Score(tuple(-(digest[i % 64] / 100) for i in range(len(continuation))), digest[0] % len(continuation))


class FakeEngine:
    """Finishes each of the first `max_batch` requests after one to three steps, in reverse order.

    Args:
        change: returns another reply for a request and its reply, or raises.
    """

    def __init__(self, max_batch: int, change: Callable[[Request, Reply], Reply] | None = None) -> None:
        self.max_batch = max_batch
        self.submitted: list[Request] = []
        self.most_active = 0
        self.prefill = PrefillProgress()
        self._change = change
        self._waiting: list[tuple[int, int, Reply | Score | Request]] = []
        self._count = 0

    def submit(self, request: Request) -> int:
        self.submitted.append(request)
        return self._queue(request, 1 + len(request.tokens) % 3)

    def submit_score(
        self, prefix: Sequence[int], continuation: Sequence[int], root: int = 0, *, cache: bool = True
    ) -> int:
        return self._queue(pure_score(prefix, continuation), 1 + len(continuation) % 2)

    def cancel(self, request_id: int) -> None:
        self._waiting = [entry for entry in self._waiting if entry[0] != request_id]

    def step(self) -> list[tuple[int, Reply | Score]]:
        active, rest = self._waiting[: self.max_batch], self._waiting[self.max_batch :]
        self.most_active = max(self.most_active, len(active))
        done: list[tuple[int, Reply | Score]] = []
        kept: list[tuple[int, int, Reply | Score | Request]] = []
        for number, steps, work in active:
            if steps > 1:
                kept.append((number, steps - 1, work))
            elif isinstance(work, Request):
                reply = pure_reply(work)
                done.append((number, self._change(work, reply) if self._change else reply))
            else:
                done.append((number, work))
        self._waiting = kept + rest
        return done[::-1]

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        ids = [self.submit(request) for request in requests]
        results: dict[int, Reply | Score] = {}
        while len(results) < len(ids):
            results.update(self.step())
        return [reply for number in ids if isinstance(reply := results[number], Reply)]

    def _queue(self, work: Reply | Score | Request, steps: int) -> int:
        self._count += 1
        self._waiting.append((self._count, steps, work))
        return self._count


class FakeLoader:
    """Makes `FakeEngine`s and keeps them in `engines`."""

    def __init__(self, spec: FakeSpec | None = None, change: Callable[[Request, Reply], Reply] | None = None) -> None:
        self.spec = spec or FakeSpec()
        self.change = change
        self.engines: list[FakeEngine] = []

    def specs(self, setups: Sequence[Setup]) -> dict[Setup, Any]:
        return dict.fromkeys(setups, self.spec)

    def tokenizer(self, spec: FakeSpec) -> Any:
        return ByteTokenizer()

    def encoder(self, setup: Setup, plan: Plan) -> PromptEncoder:
        return PromptEncoder(ByteTokenizer(), None, plan.settings.max_prompt_tokens)

    def engine(self, setup: Setup, plan: Plan, batch: int) -> Any:
        self.engines.append(FakeEngine(batch, self.change))
        return self.engines[-1]

    @property
    def num_generated(self) -> int:
        return sum(len(engine.submitted) for engine in self.engines)


class NoModel(FakeLoader):
    """A loader whose checkpoint is missing."""

    def specs(self, setups: Sequence[Setup]) -> dict[Setup, Any]:
        raise CheckpointError("there is no such file", path="weights.pth", hint="put it there")


@dataclass(frozen=True)
class Delayed:
    """Delays every reply."""

    seconds: float

    def __call__(self, request: Request, reply: Reply) -> Reply:
        time.sleep(self.seconds)
        return reply


@dataclass(frozen=True)
class KillsProcess:
    """Kills the process that generates a reply of this conversation."""

    conversation: str

    def __call__(self, request: Request, reply: Reply) -> Reply:
        if request.noise.conversation == self.conversation:
            os.kill(os.getpid(), signal.SIGKILL)
        return reply


@dataclass(frozen=True)
class LongerThan:
    """A check that passes for replies longer than `minimum` characters."""

    minimum: int

    def judge(self, facts: ReplyFacts) -> Verdict:
        passed = len(facts.text) > self.minimum
        return Verdict(passed, float(passed), None if passed else f"only {len(facts.text)}")


@dataclass(frozen=True)
class RaisingCheck:
    """A check of a broken plug-in, as the guard of plug-ins reports it."""

    def judge(self, facts: ReplyFacts) -> Verdict:
        raise RowError("the check 'mine' failed with ZeroDivisionError: broken plug-in")


def make_conversation(
    name: str,
    num_turns: int = 2,
    *,
    checks: Iterable[Check] = (),
    reference: str | None = None,
    params: dict[str, Any] | None = None,
    tags: tuple[str, ...] = (),
) -> Conversation:
    turns = tuple(Turn(f"{name} asks {turn}", reference, tuple(checks)) for turn in range(num_turns))
    return Conversation(name, "Be brief.", turns, tags, params or {}, SourceLine("made.jsonl", 1))


def make_plan(
    num_conversations: int = 5,
    *,
    conversations: Sequence[Conversation] | None = None,
    cells: Sequence[Cell] | None = None,
    explicit: Iterable[str] = (),
    shard: Shard | None = None,
    **settings: Any,
) -> Plan:
    """Conversations of one to four turns, some with checks and references, in two cells."""
    if conversations is None:
        check = Check("longer", 12, LongerThan(12))
        conversations = [
            make_conversation(
                f"c{number}",
                1 + number % 4,
                checks=[check] if number % 2 else [],
                reference="a reference" if number % 3 == 0 else None,
            )
            for number in range(num_conversations)
        ]
    if cells is None:
        cells = make_cells({"temperature": [0.3, 1.0]})
    return Plan(conversations, cells, ResolvedSettings(RunSettings(**settings), frozenset(explicit)), shard)


def make_row(
    conversation: str, turn: int = 0, *, finish_reason: str = "stop", reply: str = "hello", **changes: Any
) -> Row:
    """A row of default values, with `changes`."""
    values: dict[str, Any] = {
        "conversation": conversation,
        "cell": "base",
        "repeat": 0,
        "turn": turn,
        "seed": 0,
        "tags": ("a", "b"),
        "prompt": "Hi",
        "reply": reply,
        "reply_ids": (5, 6, 7),
        "finish_reason": finish_reason,
        "stopped_by": "\n\n" if finish_reason == "stop" else None,
        "tokens": TokenCounts(10, 3),
        "logprob": Logprob(-0.5, -1.5),
        "reference": None,
        "checks": (CheckResult("contains", "h", True, 1.0),),
        "error": "it broke" if finish_reason == "error" else None,
        "timing": RowTiming(0.0, 0.1, 0.2, 0.3, 10.0, 4),
    }
    return Row(**{**values, **changes})
