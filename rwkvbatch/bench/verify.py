"""Comparison of a backend's logits with those of the reference operations, step by step.

The steps cover the cases that a backend may compute differently: a prompt in one step and in pieces, many prompts in
one step, and decode steps of one to many rows, enough of them for CUDA graphs to be captured and replayed. Both sides
read the same random tokens. Nothing is sampled, so no different choice of token can increase a difference.
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

from rwkvbatch.errors import UsageError, counted
from rwkvbatch.model.base import Model, ModelSpec, RaggedBatch, is_rwkv7
from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
from rwkvbatch.model.load import check_strategy, load_model
from rwkvbatch.model.model_files import model_file
from rwkvbatch.model.strategy import DTYPES

PIECES = (1, 15, 16, 40, 1, 16, 5, 22)
"""Lengths of a prompt's pieces: one, few and many tokens, multiples of the chunk size 16 and other numbers."""
UNCOMPARED = 32
"""Number of the first tokens of a prompt whose logits are not compared: after an empty state, the norm of a head
divides by almost zero, which magnifies rounding a hundredfold with random weights."""
LENGTHS = (17, 1, 33, 15, 2, 3, 16, *(1 + number % 3 for number in range(17)))
"""Lengths of texts that are read in one step, from copies of the prompt's state, and continued by decode steps."""
DECODE_ROWS = (len(LENGTHS), 16, 3, 1)
DECODE_STEPS = 6
"""Decode steps for each number of rows. A CUDA graph is captured at the third."""

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Limit:
    """The allowed difference of logits, as a share of the standard deviation of the reference's logits."""

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
"""Limits by precision, the finest first; docs/strategies.md has the measured differences."""


@dataclass(frozen=True)
class Step:
    """One step of the comparison.

    Attributes:
        part: name of the part that the step belongs to.
        source: slot whose state is copied to all slots of the batch before the step; None to copy nothing.
    """

    part: str
    batch: RaggedBatch
    source: int | None = None


@dataclass(frozen=True)
class Part:
    """Differences of the logits of one part.

    Attributes:
        rows: number of compared rows of logits.
        rms, largest: root mean square and maximum of the difference, as shares of the standard deviation of the
            reference's logits; None if a logit is not finite.
        same_token: share of rows with the same likeliest token.
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
    notify: Notify = lambda _: None,
) -> Verification:
    """Compare the logits of `backend` with those of the reference operations (fp32 on the CPU) for the same file.

    Only one model is in memory at a time, with about 150 MB of logits for a vocabulary of 65,536.

    Args:
        threads: number of threads of both models on the CPU. For None, the backend uses all processors, and the
            reference operations use the idle ones.

    Raises:
        UsageError: the checkpoint is older than RWKV-7, which the reference operations do not compute.
        RwkvBatchError: one of the two models cannot be loaded.
    """
    file = model_file(path)
    with open_checkpoint(file) as checkpoint:
        if not is_rwkv7(checkpoint.architecture):
            generation = checkpoint.architecture.generation
            raise UsageError(
                f"{checkpoint.file.path} is RWKV-{generation}; the operations that `model verify` compares are those "
                "of RWKV-7",
                hint="RWKV-4 to 6 run on the `rwkv` package alone, so there is nothing to compare it with",
            )
        check_strategy(checkpoint, strategy, backend)
    reference_threads = idle_processors() if threads is None else threads
    return verify(
        lambda: load_model(file, "cpu", "reference", threads=reference_threads),
        lambda: load_model(file, strategy, backend, threads=threads),
        notify=notify,
    )


def idle_processors() -> int:
    """The number of processors that other programs leave idle, according to the last minute's load; at least 1.

    Torch's threads spin while they wait for each other. When other programs use the processors, two threads took 15
    times the processor time of one.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, processors - round(load))


def verify(
    load_reference: Callable[[], Model], load_other: Callable[[], Model], *, notify: Notify = lambda _: None
) -> Verification:
    """As `verify_model`, for two models that are loaded one after the other."""
    notify("loading the reference operations, fp32 on the CPU")
    model = load_reference()
    reference, steps = model.spec, plan(model.spec.vocab_size)
    logits = list(_logits(model, steps, "reference", notify))
    # Free the memory of the first model before the second is loaded.
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    notify("loading the backend")
    model = load_other()
    spec = model.spec
    precision = precision_of(spec, reference.dtype)
    limit = LIMITS[precision]
    pairs = zip(steps, logits, _logits(model, steps, f"{spec.backend} on {spec.device}", notify), strict=True)
    parts = tuple(
        _compare_part(name, [(expected, actual) for _, expected, actual in group], limit)
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
    """The steps of the comparison, for a pool of `len(LENGTHS) + 2` cleared slots."""
    generator = np.random.default_rng(7)

    def random_tokens(length: int) -> list[int]:
        return generator.integers(0, vocab_size, length).tolist()

    text_slots = range(len(LENGTHS))
    whole_prompt_slot, pieces_slot = len(LENGTHS), len(LENGTHS) + 1
    prompt = random_tokens(sum(PIECES))
    steps: list[Step] = []
    for name, ends, slot in (
        ("prompt at once", [0, len(prompt)], whole_prompt_slot),
        ("prompt in pieces", np.cumsum([0, *PIECES]).tolist(), pieces_slot),
    ):
        for start, end in pairwise(ends):
            batch = RaggedBatch.of([prompt[start:end]], [slot], every_token=True)
            steps.append(Step(name, replace(batch, outputs=batch.outputs[max(UNCOMPARED - start, 0) :])))
    texts = RaggedBatch.of([random_tokens(length) for length in LENGTHS], text_slots, every_token=True)
    steps.append(Step(f"{len(LENGTHS)} texts together", texts, source=pieces_slot))
    for num_rows in DECODE_ROWS:
        name = f"decode, {counted(num_rows, 'row')}"
        steps += [
            Step(name, RaggedBatch.of([random_tokens(1) for _ in range(num_rows)], range(num_rows)))
            for _ in range(DECODE_STEPS)
        ]
    return steps


def precision_of(spec: ModelSpec, stored: str) -> str:
    """The precision whose limit applies: the coarsest of a backend, or fp32 if only stored weights are rounded.

    On the CPU, floating-point formats round only the weights. Integer products, also those of a quantised file, round
    the inputs too, and a difference in the last place can move an input to the next integer.

    Args:
        stored: the precision of the weights in the file.
    """
    if spec.device == "cpu" and spec.backend != "upstream" and spec.dtype == stored and stored in DTYPES:
        return "fp32"
    dtype = spec.dtype.replace("i8", " int8")
    return next((name for name in reversed(LIMITS) if name in dtype), "fp32")


def _compare_part(name: str, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], limit: Limit) -> Part:
    """The differences of the logits of one part.

    Args:
        pairs: the reference's and the backend's logits of each step, both `[rows, vocab]`.
    """
    pairs = [(expected, actual) for expected, actual in pairs if len(expected)]
    num_rows = sum(len(expected) for expected, _ in pairs)
    differences = [(actual.double() - expected.double()) for expected, actual in pairs]
    deviation = _root_mean([expected.double().var(dim=1, correction=0) for expected, _ in pairs])
    rms = _root_mean([difference.square().mean(dim=1) for difference in differences]) / deviation
    largest = max(float(difference.abs().max()) for difference in differences) / deviation
    same = sum(int((expected.argmax(1) == actual.argmax(1)).sum()) for expected, actual in pairs) / num_rows
    if not math.isfinite(rms):
        return Part(name, num_rows, None, None, same, within=False)
    return Part(name, num_rows, rms, largest, same, within=rms <= limit.rms and largest <= limit.largest)


def _logits(model: Model, steps: Sequence[Step], name: str, notify: Notify) -> Iterator[torch.Tensor]:
    """The logits of each step, on the CPU."""
    num_slots = len(LENGTHS) + 2
    pool = model.make_pool(num_slots)
    for slot in range(num_slots):
        pool.clear(slot)
    part = None
    for step in steps:
        if step.part != part:
            part = step.part
            notify(f"{name}: {part}")
        if step.source is not None:
            for slot in step.batch.slots.tolist():
                pool.copy(step.source, slot)
        yield model.step(step.batch, pool).detach().to("cpu", torch.float32, copy=True)


def _root_mean(squares: Sequence[torch.Tensor]) -> float:
    return float(torch.cat(list(squares)).mean().sqrt())
