"""`load_model`: a `Model` from a file name, a strategy and a backend."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch

from rwkvbatch.config import NO_ADAPTER
from rwkvbatch.errors import CheckpointError, UsageError
from rwkvbatch.model import MODEL_VARIABLE, READ_SUFFIXES
from rwkvbatch.model.adapters import parse_adapter
from rwkvbatch.model.base import Model, ModelSpec, dimensions_of, is_rwkv7
from rwkvbatch.model.checkpoint import Checkpoint, initial_wkv, open_checkpoint
from rwkvbatch.model.containers import is_model_directory
from rwkvbatch.model.memory import refuse_too_large
from rwkvbatch.model.ops import Activation, Array, Operations
from rwkvbatch.model.ops.reference import ReferenceOps
from rwkvbatch.model.quantised import rounding_of
from rwkvbatch.model.rwkv7 import Network, Rwkv7Model, Stepper, WeightReader, state_bytes
from rwkvbatch.model.strategy import DTYPES, Strategy, parse_strategy
from rwkvbatch.model.upstream import load_upstream

if TYPE_CHECKING:
    from rwkvbatch.model.ops.cpu import CpuOps

Backend = Literal["auto", "cpu", "reference", "cuda", "upstream"]

BUNDLED_MODEL = Path(__file__).parent.parent / "demo" / "rwkv7-demo.safetensors"

LEAST_CAPABILITY = (8, 0)
"""The lowest compute capability that Triton supports."""


class RoundedAgainWarning(UserWarning):
    """Matrices of a quantised file were changed by an adapter and are rounded anew."""


class SlowBackendWarning(UserWarning):
    """The kernels for the device are not available; the much slower reference operations are used."""


@dataclass(frozen=True)
class ResolvedModel:
    """A weights file, and whether it is the one in the package."""

    path: Path
    bundled: bool


def resolve_model_path(path: str | os.PathLike[str] | None = None) -> ResolvedModel:
    """The weights file that `path` names, with or without its suffix (`READ_SUFFIXES`).

    None means the environment variable `RWKVBATCH_MODEL`, and without that the bundled model.

    Raises:
        CheckpointError: there is no such file.
    """
    with _naming_origin(path):
        return _resolve(path)


def _resolve(path: str | os.PathLike[str] | None) -> ResolvedModel:
    named = os.fspath(path) if path is not None else os.environ.get(MODEL_VARIABLE, "")
    if not named:
        if path is not None:
            raise CheckpointError("the name of the model is empty")
        if not BUNDLED_MODEL.is_file():
            raise CheckpointError(
                "the bundled model is missing from the package", path=BUNDLED_MODEL, hint="give one with --model FILE"
            )
        return ResolvedModel(BUNDLED_MODEL, bundled=True)
    wanted = Path(named).expanduser()
    candidates = [wanted, *(Path(f"{wanted}{suffix}") for suffix in READ_SUFFIXES)]
    try:
        for candidate in candidates:
            if candidate.is_file() or (candidate is wanted and is_model_directory(wanted)):
                return ResolvedModel(candidate, bundled=False)
        if os.path.lexists(wanted):
            # A directory, a pipe, a dangling link: opening it raises an error that says so.
            return ResolvedModel(wanted, bundled=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"not a usable file name: {error}", path=named[:200]) from error
    hint = f"no {', '.join(repr(candidate.name) for candidate in candidates)} in {str(wanted.parent)!r}"
    near = _near_names(wanted)
    raise CheckpointError("there is no such file", path=wanted, hint=f"{hint}; is it {near}?" if near else hint)


@contextmanager
def _naming_origin(path: str | os.PathLike[str] | None) -> Generator[None]:
    """Add to errors about the model's file that the environment variable named it, if it did."""
    try:
        yield
    except CheckpointError as error:
        if path is None and os.environ.get(MODEL_VARIABLE) and MODEL_VARIABLE not in error.message:
            error.add_origin(f"from {MODEL_VARIABLE}")
        raise


def _near_names(wanted: Path) -> str:
    try:
        names = [entry.name for entry in os.scandir(wanted.parent) if entry.name.endswith(READ_SUFFIXES)]
    except OSError:
        return ""
    return " or ".join(repr(name) for name in difflib.get_close_matches(wanted.name, names, n=2))


def load_model(
    path: str | os.PathLike[str] | None = None,
    strategy: str = "auto",
    backend: str = "auto",
    *,
    threads: int | None = None,
    adapter: str = NO_ADAPTER,
) -> Model:
    """Load a model.

    Args:
        path: a checkpoint; see `resolve_model_path`.
        strategy: `auto`, or device and precision as in `cpu fp32`, `cpu bf16`, `cuda fp16`, `cuda:1 bf16`. Weights are
            rounded to the precision, with `cpu int8`, `cpu w8a8` and `cpu int4` only those of the large matrices;
            arithmetic on the CPU is fp32, but with the last two the large matrices are products of integers. `auto`
            takes a GPU if there is one, and leaves the weights as they are. `cuda fp16 rows=64` gives every matrix
            product 64 rows (docs/design/reproducibility.md). With `upstream`, any strategy of the `rwkv` package.
        backend: `cpu` (native kernels), `reference` (plain torch; also for AMD and Apple GPUs), `cuda` (NVIDIA GPUs),
            `upstream` (the `rwkv` package), or `auto`: the fastest for the strategy, and `upstream` for checkpoints
            older than RWKV-7.
        threads: number of threads on the CPU; None for all processors.
        adapter: an adapter to merge into the weights, see `parse_adapter`; `none` for none.

    Raises:
        UsageError: an unknown strategy or backend, or one that this machine does not support.
        CheckpointError: the file is missing, damaged, or not an RWKV checkpoint.
    """
    if backend not in get_args(Backend):
        raise UsageError(f"--backend must be one of {', '.join(get_args(Backend))}; got {backend!r}")
    if threads is not None and threads < 1:
        raise UsageError(f"--threads must be at least 1, got {threads}")
    chosen = parse_adapter(adapter)
    with _naming_origin(path), open_checkpoint(resolve_model_path(path).path, chosen) as checkpoint:
        generation = checkpoint.architecture.generation
        native = is_rwkv7(checkpoint.architecture)
        if backend == "upstream" or (not native and backend == "auto"):
            return load_upstream(checkpoint, strategy, threads=threads)
        if not native:
            only = f"{checkpoint.file.path} is RWKV-{generation}, which only --backend upstream runs"
            raise UsageError(f"{only}; got --backend {backend}")
        return _load_rwkv7(checkpoint, parse_strategy(strategy), backend, threads)


def _load_rwkv7(checkpoint: Checkpoint, strategy: Strategy, backend: str, threads: int | None) -> Rwkv7Model:
    architecture = checkpoint.architecture
    stored = rounding_of(checkpoint.file.metadata)
    if strategy.precision is None and not strategy.on_gpu and stored is not None:
        strategy = replace(strategy, precision=stored)  # as the file is
    if stored is not None and checkpoint.adapter is not None and strategy.rounding is not None:
        warnings.warn(
            f"{checkpoint.file.path} is quantised to {stored}: matrices that the adapter changes are rounded again, "
            f"to {strategy.precision}, which takes away a part of what it does; give the unquantised checkpoint, or "
            f'--strategy "{strategy.device} fp32"',
            RoundedAgainWarning,
            stacklevel=2,
        )
    name, ops = _operations(checkpoint, strategy, backend, threads)
    _refuse_unrunnable(checkpoint, ops)
    refuse_too_large(checkpoint, strategy, ops.device, in_fp32=ops.name == "reference" and ops.device == "cpu")
    checkpoint.file.start_hashing()
    tensors = Checkpoint(checkpoint.file, architecture, strategy.dtype)
    network = Network.build(tensors, architecture.num_layers, ops, _reader(tensors, ops))
    vocabulary = checkpoint.file.vocabulary_file
    spec = ModelSpec(
        **dimensions_of(architecture),
        state_bytes=state_bytes(architecture),
        weights_sha256=checkpoint.file.sha256(),
        path=str(checkpoint.file.path),
        dtype=strategy.precision or architecture.precision,
        backend=name,
        device=ops.device,
        bitwise=ops.bitwise,
        vocabulary_file=None if vocabulary is None else str(vocabulary),
        vocabulary=checkpoint.vocabulary,
        adapter=checkpoint.adapter,
    )
    initial = initial_wkv(checkpoint)
    if ops.name == "cpu":
        from rwkvbatch.model.ops.cpu import CpuModel, CpuOps

        assert isinstance(ops, CpuOps)
        return CpuModel(network, ops, spec, initial_wkv=initial)
    stepper: Stepper = network
    if ops.name == "cuda":
        from rwkvbatch.model.ops.graphs import GraphedNetwork, cuda_capture

        stepper = GraphedNetwork(network, cuda_capture())
    return Rwkv7Model(stepper, ops, spec, threads=threads, initial_wkv=initial)


def _reader(tensors: Checkpoint, ops: Operations) -> WeightReader | None:
    """What packs large matrices on the way from the file; None on backends without one."""
    if ops.name != "cpu":
        return None
    from rwkvbatch.model.ops.cpu import CpuOps

    assert isinstance(ops, CpuOps)
    return _FileReader(tensors, ops)


class _FileReader:
    """The `WeightReader` of the native kernels. What is wrong with a matrix that it cannot read, `Checkpoint` says."""

    def __init__(self, tensors: Checkpoint, ops: CpuOps) -> None:
        self._tensors, self._ops = tensors, ops

    def layer(self, name: str, activation: Activation, *, sparse_inputs: bool = False) -> Array | None:
        stored = self._tensors.rows(name)
        return None if stored is None else self._ops.read_layer(stored, activation, sparse_inputs=sparse_inputs)

    def table(self, name: str) -> Array | None:
        stored = self._tensors.rows(name)
        return None if stored is None else self._ops.read_table(stored)


MAX_HEAD_SIZE = 256
"""Of the native and the Triton kernels."""


def _refuse_unrunnable(checkpoint: Checkpoint, ops: Operations) -> None:
    """Raise `CheckpointError` when the backend's kernels do not run networks of this shape."""
    head_size = checkpoint.architecture.head_size
    if head_size > MAX_HEAD_SIZE and ops.name != "reference":
        raise CheckpointError(
            f"it has heads of size {head_size}; the kernels of --backend {ops.name} run heads up to {MAX_HEAD_SIZE}",
            path=checkpoint.file.path,
            hint="--backend reference runs them, many times slower",
        )


def _operations(
    checkpoint: Checkpoint, strategy: Strategy, backend: str, threads: int | None
) -> tuple[str, Operations]:
    """The backend's name and its operations."""
    if backend == "cuda" and not strategy.device.startswith("cuda"):
        found = "none was found" if strategy.is_auto else f"--strategy is for {strategy.device!r}"
        hint = "leave --backend out" if strategy.is_auto else 'use --strategy "cuda fp16"'
        raise UsageError(f"--backend cuda needs an NVIDIA GPU, and {found}", hint=hint)
    if strategy.on_gpu:
        if backend == "cpu":
            raise UsageError(
                f"--backend cpu cannot run on {strategy.device!r}", hint='use --strategy "cpu" or --backend cuda'
            )
        dtype = strategy.dtype or DTYPES[checkpoint.architecture.precision]
        return _gpu_operations(strategy, dtype, backend)
    if backend != "reference":
        try:
            from rwkvbatch.model.ops.cpu import CpuOps

            return "cpu", CpuOps(threads=threads, rounding=strategy.rounding)
        except ImportError as error:
            if backend == "cpu":
                raise UsageError(
                    f"--backend cpu needs the native kernels, which cannot be imported: {error}",
                    hint="install rwkvbatch from a wheel or with GCC or Clang at hand, or use --backend reference",
                ) from error
            warnings.warn(
                "the native kernels are not installed; using the reference operations, many times slower; to get them, "
                "install rwkvbatch from a wheel, or again with GCC or Clang at hand",
                SlowBackendWarning,
                stacklevel=4,
            )
    return "reference", ReferenceOps("cpu", rounding=strategy.rounding)


def _gpu_operations(strategy: Strategy, dtype: torch.dtype, backend: str) -> tuple[str, Operations]:
    if strategy.device.startswith("cuda") and backend != "reference":
        missing = _missing_for_kernels(strategy.device)
        if missing is None:
            from rwkvbatch.model.ops.cuda import CudaOps

            # A part of the backend's name, since replies with another fixed row count could differ.
            name = "cuda" if strategy.fixed_rows is None else f"cuda rows={strategy.fixed_rows}"
            return name, CudaOps(strategy.device, dtype, strategy.fixed_rows)
        if strategy.fixed_rows is None:
            warnings.warn(
                f"{missing}; using the reference operations on the GPU, several times slower",
                SlowBackendWarning,
                stacklevel=5,
            )
    if strategy.fixed_rows is not None:
        raise UsageError(
            "rows= in --strategy needs the kernels for NVIDIA GPUs, which cannot be used here",
            hint="remove rows=, or install Triton (pip install triton)",
        )
    return "reference", ReferenceOps(strategy.device, dtype)


def _missing_for_kernels(device: str) -> str | None:
    """Why the Triton kernels cannot be used on a GPU; None if they can."""
    if torch.version.hip is not None:
        return f"{device!r} is an AMD GPU, and the kernels are for NVIDIA GPUs"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        return f"{device!r} has compute capability {capability[0]}.{capability[1]}, Triton needs 8.0"
    try:
        import rwkvbatch.model.ops.cuda  # noqa: F401
    except ImportError as error:
        return f"Triton cannot be imported ({error}); pip install triton"
    return None
