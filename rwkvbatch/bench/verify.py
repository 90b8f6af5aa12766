"""Compares a backend's logits with those of the reference operations, step by step.

The steps cover what a backend may compute differently: a prompt at once and in pieces, many prompts in one step, and
decode steps of one to many rows, enough of them for graphs to be captured and replayed. Both sides read the same random
tokens; nothing is sampled, so differences do not grow by a different choice of token.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

import numpy as np
import torch

from rwkvbatch.errors import counted
from rwkvbatch.model.base import Model, ModelSpec, RaggedBatch
from rwkvbatch.model.load import load_model
from rwkvbatch.model.strategy import DTYPES

PIECES = (1, 15, 16, 40, 1, 16, 5, 22)
"""Lengths of a prompt's pieces: one row, few and many rows, multiples of the chunk size 16 and others."""
UNCOMPARED = 32
"""The first tokens of a prompt, whose logits are not compared. After an empty state the norm of a head divides by
almost zero and magnifies rounding, with random weights a hundredfold."""
LENGTHS = (17, 1, 33, 15, 2, 3, 16, *(1 + number % 3 for number in range(17)))
"""Lengths of texts that are read together, from copies of the prompt's state, and then continued by decode steps."""
DECODE_ROWS = (len(LENGTHS), 16, 3, 1)
DECODE_STEPS = 6
"""Decode steps of each row count. A graph is captured at the third."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Limit:
    """Allowed difference of logits, as shares of the standard deviation of the reference's logits."""

    rms: float
    largest: float


LIMITS = {
    "fp32": Limit(rms=1e-3, largest=1e-2),
    "fp16": Limit(rms=0.03, largest=0.3),
    "bf16": Limit(rms=0.15, largest=1.5),
    "int8": Limit(rms=0.3, largest=3.0),
    "w8a8": Limit(rms=0.3, largest=3.0),
    "int4": Limit(rms=1.0, largest=8.0),
}
"""By precision, finest first; docs/strategies.md has the measured differences."""


@dataclass(frozen=True)
class Step:
    """One step of the comparison, and the part that it belongs to.

    Attributes:
        source: a slot whose state is first copied to all slots of the batch, or None.
    """

    part: str
    batch: RaggedBatch
    source: int | None = None


@dataclass(frozen=True)
class Part:
    """Differences of the logits of one part.

    Attributes:
        rows: number of rows of logits that were compared.
        rms, largest: the difference, as shares of the standard deviation of the reference's logits; None if a logit is
            not finite.
        same_token: the share of rows with the same likeliest token.
        within: whether the difference is finite and within the limit.
    """

    name: str
    rows: int
    rms: float | None
    largest: float | None
    same_token: float
    within: bool


@dataclass(frozen=True)
class Verification:
    """The result of a comparison.

    Attributes:
        precision: the precision whose limit applies.
        same: whether all parts are within the limit.
    """

    model: str
    parameters: int
    backend: str
    device: str
    dtype: str
    precision: str
    limit: Limit
    parts: tuple[Part, ...]
    same: bool


def verify_model(
    path: str | None,
    *,
    strategy: str = "auto",
    backend: str = "auto",
    threads: int | None = None,
    say: Say = lambda _: None,
) -> Verification:
    """Compare the logits of `backend` with those of the reference operations, fp32 on the CPU, from the same file.

    One model is in memory at a time, with about 150 MB of logits for a vocabulary of 65,536.

    Args:
        threads: of both models on the CPU; None for all processors, of which the reference operations take those that
            are idle.

    Raises:
        RwkvBatchError: one of the two models cannot be loaded.
    """
    reference_threads = idle_processors() if threads is None else threads
    return verify(
        lambda: load_model(path, "cpu", "reference", threads=reference_threads),
        lambda: load_model(path, strategy, backend, threads=threads),
        say=say,
    )


def idle_processors() -> int:
    """Processors that other programs leave idle, at least one, by the load of the last minute.

    Torch's threads wait for each other by spinning. Where other programs have the processors, two threads took 15 times
    the processor time of one.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, processors - round(load))


def verify(
    load_reference: Callable[[], Model], load_other: Callable[[], Model], *, say: Say = lambda _: None
) -> Verification:
    """Like `verify_model`, of two models that are loaded one after the other."""
    say("loading the reference operations, fp32 on the CPU")
    model = load_reference()
    reference, steps = model.spec, plan(model.spec.vocab_size)
    logits = list(_logits(model, steps, "reference", say))
    # The memory of the first model is released before the second is loaded.
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    say("loading the backend")
    model = load_other()
    spec = model.spec
    precision = precision_of(spec, reference.dtype)
    limit = LIMITS[precision]
    pairs = zip(steps, logits, _logits(model, steps, f"{spec.backend} on {spec.device}", say), strict=True)
    parts = tuple(
        compared(name, [(theirs, mine) for _, theirs, mine in group], limit)
        for name, group in groupby(pairs, key=lambda pair: pair[0].part)
    )
    return Verification(
        model=spec.path,
        parameters=spec.num_parameters,
        backend=spec.backend,
        device=spec.device,
        dtype=spec.dtype,
        precision=precision,
        limit=limit,
        parts=parts,
        same=all(part.within for part in parts),
    )


def plan(vocab_size: int) -> list[Step]:
    """The steps, for a pool of `len(LENGTHS) + 2` cleared slots."""
    tokens = np.random.default_rng(7)

    def draw(length: int) -> list[int]:
        return tokens.integers(0, vocab_size, length).tolist()

    together = range(len(LENGTHS))
    at_once, in_pieces = len(LENGTHS), len(LENGTHS) + 1
    prompt = draw(sum(PIECES))
    steps: list[Step] = []
    for name, ends, slot in (
        ("prompt at once", [0, len(prompt)], at_once),
        ("prompt in pieces", np.cumsum([0, *PIECES]).tolist(), in_pieces),
    ):
        for first, last in pairwise(ends):
            batch = RaggedBatch.of([prompt[first:last]], [slot], every_token=True)
            steps.append(Step(name, replace(batch, outputs=batch.outputs[max(UNCOMPARED - first, 0) :])))
    texts = RaggedBatch.of([draw(length) for length in LENGTHS], together, every_token=True)
    steps.append(Step(f"{len(LENGTHS)} texts together", texts, source=in_pieces))
    for rows in DECODE_ROWS:
        name = f"decode, {counted(rows, 'row')}"
        steps += [Step(name, RaggedBatch.of([draw(1) for _ in range(rows)], range(rows))) for _ in range(DECODE_STEPS)]
    return steps


def precision_of(spec: ModelSpec, stored: str) -> str:
    """The precision whose limit applies to a backend: the coarsest in it.

    On the CPU floating point rounds only the weights. Products of integers, also those of a quantised file, round
    inputs too, and a difference in the last place can move an input to the next integer.

    Args:
        stored: the precision of the weights in the file.
    """
    if spec.device == "cpu" and spec.backend != "upstream" and spec.dtype == stored and stored in DTYPES:
        return "fp32"
    dtype = spec.dtype.replace("i8", " int8")
    return next((name for name in reversed(LIMITS) if name in dtype), "fp32")


def compared(name: str, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], limit: Limit) -> Part:
    """The differences of pairs of logits [P, vocab], the reference's first."""
    pairs = [(theirs, mine) for theirs, mine in pairs if len(theirs)]
    rows = sum(len(theirs) for theirs, _ in pairs)
    differences = [(mine.double() - theirs.double()) for theirs, mine in pairs]
    spread = _root_mean([theirs.double().var(dim=1, correction=0) for theirs, _ in pairs])
    rms = _root_mean([difference.square().mean(dim=1) for difference in differences]) / spread
    largest = max(float(difference.abs().max()) for difference in differences) / spread
    same = sum(int((theirs.argmax(1) == mine.argmax(1)).sum()) for theirs, mine in pairs) / rows
    if not math.isfinite(rms):
        return Part(name, rows, None, None, same, within=False)
    return Part(name, rows, rms, largest, same, within=rms <= limit.rms and largest <= limit.largest)


def _logits(model: Model, steps: Sequence[Step], name: str, say: Say) -> Iterator[torch.Tensor]:
    """Each step's logits, on the CPU."""
    num_slots = len(LENGTHS) + 2
    pool = model.make_pool(num_slots)
    for slot in range(num_slots):
        pool.clear(slot)
    part = None
    for step in steps:
        if step.part != part:
            part = step.part
            say(f"{name}: {part}")
        if step.source is not None:
            for slot in step.batch.slots.tolist():
                pool.copy(step.source, slot)
        yield model.step(step.batch, pool).detach().to("cpu", torch.float32, copy=True)


def _root_mean(squares: Sequence[torch.Tensor]) -> float:
    return float(torch.cat(list(squares)).mean().sqrt())
