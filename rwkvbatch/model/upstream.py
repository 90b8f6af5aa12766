"""The `rwkv` package as a `Model`: RWKV-4 to 7, every strategy of the package, one sequence at a time.

It is the slowest backend, the final reference implementation, and the only one for generations before RWKV-7.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import os
import re
import sys
import tempfile
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwkvbatch.arguments import SWITCH, checks
from rwkvbatch.errors import CheckpointError, UsageError
from rwkvbatch.model.base import (
    RWKV7,
    Choices,
    ModelSpec,
    RaggedBatch,
    SampleBatch,
    State,
    StatePool,
    check_tokens,
    dimensions_of,
    is_rwkv7,
    num_threads,
    tf32,
)
from rwkvbatch.model.checkpoints.checkpoint import Checkpoint, initial_wkv
from rwkvbatch.model.checkpoints.memory import refuse_too_large
from rwkvbatch.model.network.rwkv7_model import forward
from rwkvbatch.model.ops import choosing
from rwkvbatch.model.strategy import Strategy, parse_upstream_strategy

_COPY_NUMBERS = itertools.count()

# The package would compile its CUDA extension at import, which a reference implementation does not need. TorchScript is
# required for RWKV-7 and of no use for the others.
_SWITCHES = {"RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0", "RWKV_DML_ON": "0", "RWKV_DE_VERSION": "0"}


def load_package_model(checkpoint: Checkpoint, strategy: str, *, requested: str | None = None) -> Any:
    """The `rwkv` package's own model object for `checkpoint`; all tensors are checked first.

    Args:
        requested: the strategy that the user gave, for error messages.

    Raises:
        CheckpointError: a tensor contains NaN or infinity, or the package cannot load it.
        UsageError: the package is not installed.
    """
    generation = checkpoint.architecture.generation
    with tempfile.TemporaryDirectory(prefix="rwkvbatch-") as folder, _fence():
        module = _private_copy(generation)
        # A `.pth` file with official tensor names, and a file name that the package accepts.
        target = Path(folder) / "model.pth"
        if checkpoint.file.kind == "pth" and not checkpoint.file.undone:
            for name in checkpoint:
                checkpoint.check(name)
            target.symlink_to(checkpoint.file.files[0].path.resolve())
        else:
            torch.save(dict(checkpoint), target)
        option = "" if requested == "auto" else f" with --strategy {strategy!r}"
        with _reported(checkpoint, f"cannot load it{option}"):
            if generation in RWKV7:
                return module.RWKV_x070(str(target).removesuffix(".pth"), strategy)
            return module.RWKV(str(target), strategy, verbose=False)


@contextlib.contextmanager
def _reported(checkpoint: Checkpoint, failure: str) -> Iterator[None]:
    """Turn an error of the package into a `CheckpointError`."""
    try:
        yield
    except Exception as error:  # the package raises errors of any type
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise CheckpointError(f"the `rwkv` package {failure} ({reason})", path=checkpoint.file.path) from error


def _private_copy(generation: str) -> types.ModuleType:
    """Import a private copy of the package's module, with its own environment variables."""
    package = importlib.util.find_spec("rwkv")
    if package is None or not package.submodule_search_locations:
        raise UsageError("--backend upstream needs the `rwkv` package", hint="pip install rwkv")
    source = Path(next(iter(package.submodule_search_locations))) / "model.py"
    name = f"_rwkvbatch_upstream_{next(_COPY_NUMBERS)}"
    spec = importlib.util.spec_from_file_location(name, source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    environment = {**_SWITCHES, "RWKV_V7_ON": "1" if generation in RWKV7 else "0"}
    if generation == "7a":
        environment["RWKV_DE_VERSION"] = "1"
    if "RWKV_RESCALE_LAYER" in os.environ:
        environment["RWKV_RESCALE_LAYER"] = os.environ["RWKV_RESCALE_LAYER"]
    # TorchScript looks up the module of its functions by name while it compiles them.
    sys.modules[name] = module
    try:
        with _environment(environment):
            spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    # The package reads the environment again when it loads and at every call.
    module.os = types.SimpleNamespace(environ=environment, path=os.path, name=os.name)  # pyright: ignore[reportAttributeAccessIssue]
    # The package runs the garbage collector once per layer: a third of a second each in a large process, for nothing.
    module.gc = types.SimpleNamespace(collect=int)  # pyright: ignore[reportAttributeAccessIssue]
    return module


@contextlib.contextmanager
def _fence() -> Iterator[None]:
    """Suppress the package's output and warnings, and restore the global settings that it changes."""
    autocast = torch._C._jit_set_autocast_mode(True)
    benchmark = torch.backends.cudnn.benchmark
    try:
        with (
            tf32(False),
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
            _environment({"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}, without=("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD",)),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch._C._jit_set_autocast_mode(autocast)
        torch.backends.cudnn.benchmark = benchmark


@contextlib.contextmanager
def _environment(changes: Mapping[str, str], without: tuple[str, ...] = ()) -> Iterator[None]:
    """Apply `changes` to the process's environment inside the block, and restore it afterwards."""
    before = dict(os.environ)
    os.environ.update(changes)
    for name in without:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


PackageState = list[Tensor]
"""The package's layout of a state: `len(names)` tensors for layer 0, then those of layer 1, and so on."""

# In the package's order. RWKV-4 has the attention's numerator, denominator and exponent; other generations have a
# matrix per head.
PACKAGE_STATE_4 = ("att_shift", "att_numerator", "att_denominator", "att_exponent", "ffn_shift")
PACKAGE_STATE = ("att_shift", "wkv", "ffn_shift")
_EMPTY_EXPONENT = -1e30


@dataclass(frozen=True)
class UpstreamPool:
    """Slots of package states. Tensors are never changed in place, so slots may share them.

    Attributes:
        names: the names of a layer's tensors.
        zero: the state before the first token.
    """

    names: tuple[str, ...]
    zero: PackageState
    slots: list[PackageState]

    @property
    def capacity(self) -> int:
        return len(self.slots)

    def clear(self, slot: int) -> None:
        self.slots[slot] = list(self.zero)

    def copy(self, source: int, target: int) -> None:
        self.slots[target] = list(self.slots[source])

    def read(self, slots: Sequence[int]) -> State:
        size = len(self.names)
        return State(
            {
                name: torch.stack(
                    [torch.stack([tensor.float().cpu() for tensor in self.slots[slot][index::size]]) for slot in slots]
                )
                for index, name in enumerate(self.names)
            }
        )

    def write(self, slots: Sequence[int], state: State) -> None:
        size = len(self.names)
        expected = {
            name: (len(slots), len(self.zero) // size, *self.zero[index].shape) for index, name in enumerate(self.names)
        }
        shapes = {name: tuple(tensor.shape) for name, tensor in state.tensors.items()}
        if shapes != expected:
            raise CheckpointError(f"the state must have tensors {expected}, got {shapes}")
        for row, slot in enumerate(slots):
            self.slots[slot] = [
                state.tensors[self.names[index % size]][row, index // size].to(zero, copy=True)
                for index, zero in enumerate(self.zero)
            ]


class UpstreamModel:
    """See `Model`.

    Args:
        package_model: the package's object.
        zero: the state before the first token.
    """

    def __init__(self, package_model: Any, zero: PackageState, spec: ModelSpec, *, threads: int | None = None) -> None:
        self._package_model = package_model
        self._zero = zero
        self.spec = spec
        self._threads = threads
        self._names = PACKAGE_STATE_4 if spec.generation == "4" else PACKAGE_STATE

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.spec.in_words}>"

    def make_pool(self, capacity: int) -> StatePool:
        return UpstreamPool(self._names, self._zero, [list(self._zero) for _ in range(capacity)])

    def step(self, batch: RaggedBatch, pool: StatePool) -> Tensor:
        assert isinstance(pool, UpstreamPool)
        check_tokens(batch.tokens, self.spec.vocab_size)
        output_rows = set(batch.outputs.tolist())
        logits: list[Tensor] = []
        with torch.no_grad(), num_threads(self._threads), tf32(False):
            for slot, start, end in zip(batch.slots.tolist(), batch.starts[:-1], batch.starts[1:], strict=True):
                rows = [row for row in range(start, end) if row in output_rows]
                every_token = rows not in ([], [end - 1])
                # A copy, since the package changes a state's tensors and its list in place.
                state = [tensor.clone() for tensor in pool.slots[slot]]
                output, state = self._package_model.forward(batch.tokens[start:end].tolist(), state, every_token)
                pool.slots[slot] = list(state)
                output = output.float().cpu().view(-1, self.spec.vocab_size)
                logits += [output[row - start] if every_token else output[-1] for row in rows]
        return torch.stack(logits) if logits else torch.empty(0, self.spec.vocab_size)

    def choose(self, logits: Tensor, batch: SampleBatch) -> Choices:
        return choosing.choose(logits, batch)

    @checks(every_token=SWITCH)
    def forward(
        self, tokens: Sequence[Sequence[int]], state: State | None = None, every_token: bool = False
    ) -> tuple[Tensor, State]:
        return forward(self, tokens, state, every_token)


def load_upstream(checkpoint: Checkpoint, strategy: str, *, threads: int | None = None) -> UpstreamModel:
    """Load `checkpoint` with the `rwkv` package.

    Args:
        strategy: any that the package supports for this generation; `auto` is `cuda fp16` or `cpu fp32`.

    Raises:
        UsageError: the package has no such strategy, or this machine lacks its device.
        CheckpointError: the package cannot load the file.
    """
    architecture = checkpoint.architecture
    package_strategy = parse_upstream_strategy(strategy, architecture.generation)
    _refuse_too_large(checkpoint, package_strategy)
    checkpoint.file.start_hashing()
    package_model = load_package_model(checkpoint, package_strategy, requested=strategy)
    with _reported(checkpoint, "loads it but cannot run it"), torch.no_grad(), num_threads(threads), tf32(False):
        zero = _zero_state(
            package_model, architecture.generation, initial_wkv(checkpoint) if is_rwkv7(architecture) else None
        )
    vocabulary = checkpoint.file.vocabulary_file
    spec = ModelSpec(
        **dimensions_of(architecture),
        state_bytes=sum(tensor.numel() * tensor.element_size() for tensor in zero),
        weights_sha256=checkpoint.file.sha256(),
        path=str(checkpoint.file.path),
        dtype=package_strategy,
        backend="upstream",
        device=str(zero[0].device),
        bitwise=False,
        vocabulary_file=None if vocabulary is None else str(vocabulary),
        vocabulary=checkpoint.vocabulary,
        adapter=checkpoint.adapter,
    )
    return UpstreamModel(package_model, zero, spec, threads=threads)


def _refuse_too_large(checkpoint: Checkpoint, strategy: str) -> None:
    """Raise `CheckpointError` when a strategy that keeps all weights on the CPU needs more memory than is available."""
    match = re.fullmatch(r"cpu (fp32|bf16|fp16)(i8)?", strategy)
    if match is not None:
        precision: Any = "int8" if match[2] else match[1]
        refuse_too_large(checkpoint, Strategy("cpu", precision), "cpu", in_fp32=match[0] == "cpu fp32")


def _zero_state(package_model: Any, generation: str, initial: Tensor | None) -> PackageState:
    """The package's initial state. Runs the model once, which also shows whether it works.

    Args:
        initial: a tuned state of RWKV-7 [L, H, N, N], which the package does not load itself.
    """
    _, after = package_model.forward([0], None)
    if generation in RWKV7:
        state = list(package_model.generate_zero_state())
        if initial is not None:
            state[1::3] = [wkv.to(zero, copy=True) for wkv, zero in zip(initial, state[1::3], strict=True)]
        return state
    # Older generations return no state before the first token.
    zero = [torch.zeros_like(tensor) for tensor in after]
    if generation == "4":
        for exponent in zero[3::5]:
            exponent.fill_(_EMPTY_EXPONENT)
    elif package_model.args.time_state:
        for layer in range(len(zero) // 3):
            tuned = package_model.w[f"blocks.{layer}.att.time_state"]
            zero[3 * layer + 1] = tuned.transpose(1, 2).to(zero[3 * layer + 1], copy=True).contiguous()
    return zero
