"""Bit for bit on every processor: logits, states and choices are those in `processors.json`, which x86-64 wrote.

`python -m tests.native.test_processors` rewrites that file, with the portable kernels.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from rwkvbatch.errors import UsageError
from rwkvbatch.model.base import RaggedBatch, SampleBatch
from rwkvbatch.model.checkpoints.random_checkpoint import LowRankWidths, random_tensors
from rwkvbatch.model.network.rwkv7 import Network

pytest.importorskip("rwkvbatch._native")
from rwkvbatch.model.network.traced import TracedProgram
from rwkvbatch.model.ops.cpu import CpuOps, Isa
from tests.native.recorded import Recorder
from tests.native.test_bits import NUM_LAYERS, SHAPES, Shape, vector_sets

FIXTURE = Path(__file__).with_name("processors.json")
REPLAY = Path(__file__).with_name("replay")
BUILDS = Path(__file__).parents[2] / "build"
FOR_ARM = BUILDS / "replay-aarch64" / "replay"

BATCHES = {
    "1 row": [[5]],
    "3 rows": [[1], [2], [3]],
    "8 rows": [[token] for token in range(8)],
    "33 rows": [[token] for token in range(20, 53)],
    "a prompt": [[7 * position % 61 for position in range(40)]],
    "prompts": [list(range(10 + length)) for length in (1, 30, 4, 9)],
}
# temperature, top_p, min_p's least score; top_k, orders (bits), noise key
SAMPLINGS = {
    "all tokens": ((1.0, 1.0, -np.inf), (0, 0, 11)),
    "top-p": ((0.8, 0.6, -np.inf), (0, 1, 12)),
    "top-k, top-p, min-p": ((1.3, 0.9, -3.0), (40, 2, 13)),
}
NUM_SAMPLED, SAMPLED_VOCAB = 9, 4001


def numbers(source: np.random.RandomState, *shape: int) -> np.ndarray:
    """Of -1 to 1, the same everywhere: numpy has frozen this generator, and nothing is rounded."""
    return (source.randint(-(1 << 15), 1 << 15, shape) / (1 << 15)).astype(np.float32)


@cache
def tensors_of(shape: Shape) -> dict[str, torch.Tensor]:
    """A checkpoint whose numbers come from no mathematics library, unlike those of `random_tensors`."""
    ranks = LowRankWidths(decay=24, rate=40, value=16, gate=56)
    like = random_tensors(
        NUM_LAYERS, shape.width, shape.vocab_size, shape.head_size, hidden=3 * shape.width + 8, ranks=ranks,
        deep_embed=shape.deep_embed, dtype=torch.float32,
    )  # fmt: skip
    source = np.random.RandomState(5)
    tensors = {}
    for name, tensor in like.items():
        values = numbers(source, *tensor.shape)
        if ".ln" in name or name.startswith("ln"):
            values = values / 8 + (1 if name.endswith("weight") else 0)
        elif min(tensor.shape) > 1 and name != "emb.weight":
            values *= 2.0 ** -(tensor.shape[-1].bit_length() // 2 - 1)
        elif ".x_" in name or name.endswith((".k_k", ".k_a", ".s0")):
            values = (values + 1) / 2
        tensors[name] = torch.from_numpy(values).to(shape.dtype)
    return tensors


def pools(shape: Shape) -> Iterator[tuple[str, RaggedBatch, np.ndarray, np.ndarray]]:
    """Batches over pools of states: shifts [capacity, L, 2, C], wkv [capacity, L, H, N, N]."""
    source = np.random.RandomState(6)
    heads, size = shape.width // shape.head_size, shape.head_size
    for name, lists in BATCHES.items():
        capacity = len(lists) + 1
        slots = list(range(len(lists), 0, -1))
        shifts = numbers(source, capacity, NUM_LAYERS, 2, shape.width)
        yield (
            name,
            RaggedBatch.of(lists, slots, every_token=True),
            shifts,
            numbers(source, capacity, NUM_LAYERS, heads, size, size),
        )


def sampled_logits() -> np.ndarray:
    return 6 * numbers(np.random.RandomState(8), NUM_SAMPLED, SAMPLED_VOCAB)


def digest(*arrays: np.ndarray) -> str:
    actual = hashlib.sha256()
    for array in arrays:
        actual.update(array.tobytes())
    return actual.hexdigest()[:24]


def digests(isa: Isa, threads: int = 1) -> dict[str, dict[str, str]]:
    """By shape and batch, what this machine makes of them."""
    actual: dict[str, dict[str, str]] = {}
    for title, shape in SHAPES.items():
        ops = CpuOps(threads, isa, rounding=shape.rounding)
        program = TracedProgram(Network.build(tensors_of(shape), NUM_LAYERS, ops))
        actual[title] = {}
        for name, batch, shifts, wkv in pools(shape):
            pool = ops.make_pool(*wkv.shape[:4])
            pool.shifts[:], pool.wkv[:] = torch.from_numpy(shifts), torch.from_numpy(wkv)
            logits = program.step(ops, batch, pool)
            assert torch.isfinite(logits).all()
            actual[title][name] = digest(logits.numpy(), pool.shifts.numpy(), pool.wkv.numpy())
    actual["sampling"] = {}
    logits = torch.from_numpy(sampled_logits())
    for name, ((temperature, top_p, least), (top_k, orders, key)) in SAMPLINGS.items():
        count, nothing = NUM_SAMPLED, np.zeros(NUM_SAMPLED, np.int64)
        batch = SampleBatch(
            np.full(count, temperature, np.float32), np.full(count, top_p, np.float32), np.full(count, top_k),
            np.full(count, orders, np.uint8), np.empty(0, np.int64), np.empty(0, np.float32),
            np.zeros(count + 1, np.int64), np.arange(key, key + count, dtype=np.uint64), nothing, nothing,
            np.full(count, least),
        )  # fmt: skip
        choices = CpuOps(threads, isa).choose(logits, batch)
        assert len(set(choices.tokens.tolist())) > 1
        actual["sampling"][name] = digest(choices.tokens, choices.logprobs)
    return actual


def record(folder: Path) -> dict[str, dict[str, list[int]]]:
    """A recording for each shape, and the number of bytes of each batch's results."""
    sizes: dict[str, dict[str, list[int]]] = {}
    for title, shape in SHAPES.items():
        with (folder / title).open("wb") as file:
            recorder = Recorder(file, shape.rounding)
            Network.build(tensors_of(shape), NUM_LAYERS, recorder).run(recorder, None)  # type: ignore[arg-type]
            sizes[title] = {}
            for name, batch, shifts, wkv in pools(shape):
                recorder.step(batch, shifts, wkv)
                sizes[title][name] = [4 * len(batch.outputs) * shape.vocab_size, shifts.nbytes, wkv.nbytes]
            recorder.end()
    with (folder / "sampling").open("wb") as file:
        recorder = Recorder(file, None)
        for settings, integers in SAMPLINGS.values():
            recorder.choose(sampled_logits(), settings, integers)
        recorder.end()
    sizes["sampling"] = {name: [NUM_SAMPLED * (8 + 4)] for name in SAMPLINGS}
    return sizes


def expected() -> dict[str, dict[str, str]]:
    return json.loads(FIXTURE.read_text())


@pytest.mark.parametrize("isa", ["portable", *vector_sets()])
def test_this_processor_computes_what_x86_64_wrote(isa: Isa) -> None:
    assert digests(isa) == expected()


def build_replay(processor: str, *options: str) -> Path:
    """Builds `replay` for a processor; returns its file."""
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    folder = BUILDS / f"replay-{processor}"
    target = ["-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={processor}", *options]
    subprocess.run(["cmake", "-S", REPLAY, "-B", folder, *target], check=True, capture_output=True)
    jobs = ["--parallel", str(os.cpu_count() or 1)]
    built = subprocess.run(["cmake", "--build", folder, *jobs], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "replay"


def replayed(command: list[str | Path], isa: str, folder: Path) -> dict[str, dict[str, str]]:
    """As `digests`, of a program that replays recordings."""
    actual: dict[str, dict[str, str]] = {}
    for title, batches in record(folder).items():
        results = folder / "results"
        subprocess.run([*command, folder / title, results, isa, "2"], check=True, timeout=300)
        data = results.read_bytes()
        assert len(data) == sum(sum(parts) for parts in batches.values())
        actual[title] = {}
        for name, parts in batches.items():
            actual[title][name] = hashlib.sha256(data[: sum(parts)]).hexdigest()[:24]
            data = data[sum(parts) :]
    return actual


@pytest.mark.slow
def test_a_build_for_an_unknown_processor_computes_what_x86_64_wrote(tmp_path: Path) -> None:
    assert replayed([build_replay("unknown")], "auto", tmp_path) == expected()


@pytest.fixture(scope="session")
def replay() -> list[str | Path]:
    """Builds `replay` for 64-bit ARM; the emulator's command, followed by a processor, the program, its arguments."""
    tools = {"aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu", "qemu-aarch64": "qemu-user"}
    missing = [package for tool, package in tools.items() if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs Debian's packages {', '.join(missing)} to build and run for ARM")
    build_replay("aarch64", "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++")
    return ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "-cpu"]


# Processors that qemu knows: without products of bytes, with these, and with products of matrices.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("processor", "isa"),
    [("cortex-a53", "portable"), ("cortex-a53", "neon"), ("neoverse-n1", "neondot"), ("max", "neoni8mm")],
)
def test_arm_computes_what_x86_64_wrote(replay: list[str | Path], tmp_path: Path, processor: str, isa: str) -> None:
    assert replayed([*replay, processor, FOR_ARM], isa, tmp_path) == expected()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processor", "isa", "chosen"),
    [("cortex-a53", "neondot", ""), ("neoverse-n1", "neoni8mm", ""), ("neoverse-n1", "auto", "neondot")],
)
def test_arm_takes_the_instructions_that_the_processor_has(
    replay: list[str | Path], tmp_path: Path, processor: str, isa: str, chosen: str
) -> None:
    (tmp_path / "nothing").write_bytes(bytes(8))
    command = [*replay, processor, FOR_ARM, tmp_path / "nothing", tmp_path / "results", isa, "1"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.stdout.strip() == chosen
    assert (f"instruction set '{isa}' is not available here" in run.stderr) == (not chosen)


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(UsageError, match="'sse9' is not available here"):
        CpuOps(1, "sse9")  # type: ignore[arg-type]


if __name__ == "__main__":
    FIXTURE.write_text(json.dumps(digests("portable"), indent=1) + "\n")
