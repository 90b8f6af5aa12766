"""`load_model`: a `Model` from a file or tensors in memory, a strategy and a backend."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from rwkvbatch.arguments import NAME, TEXT, checks, either, instance_of, optional, whole_number
from rwkvbatch.config import NO_ADAPTER
from rwkvbatch.errors import CheckpointError, MissingDeviceError, UsageError
from rwkvbatch.model.base import Model, ModelSpec, dimensions_of, is_rwkv7
from rwkvbatch.model.checkpoints.adapters import parse_adapter
from rwkvbatch.model.checkpoints.checkpoint import Checkpoint, initial_wkv, open_checkpoint
from rwkvbatch.model.checkpoints.memory import refuse_too_large
from rwkvbatch.model.model_files import model_file, naming_origin
from rwkvbatch.model.network.rwkv7 import Network, WeightReader, state_bytes
from rwkvbatch.model.network.rwkv7_model import Rwkv7Model, Stepper
from rwkvbatch.model.ops import Activation, Array, Operations
from rwkvbatch.model.ops.reference import ReferenceOps
from rwkvbatch.model.strategy import DTYPES, Strategy, parse_strategy, parse_upstream_strategy
from rwkvbatch.model.upstream import load_upstream
from rwkvbatch.model.weights.quantised import rounding_of

if TYPE_CHECKING:
    from rwkvbatch.model.ops.cpu import CpuOps

Backend = Literal["auto", "cpu", "reference", "cuda", "upstream"]
MIN_CAPABILITY = (8, 0)
"""The lowest compute capability that Triton supports."""


class RoundedAgainWarning(UserWarning):
    """An adapter changes matrices of a quantised file, which are then rounded again."""


class SeveralNetworksWarning(UserWarning):
    """A file contains other dicts of tensors than the one that is read, such as moving averages of the weights."""


class SlowBackendWarning(UserWarning):
    """The kernels for the device are not available; the reference operations, which are much slower, are used."""


LOADING = {"strategy": TEXT, "backend": TEXT, "threads": optional(whole_number(1, 1024)), "adapter": TEXT}
"""Kinds of the arguments that say how a model is loaded."""


STATE_DICT = instance_of(
    Mapping, "a mapping of names to tensors", "torch.load(FILE), or module.state_dict() of a module"
)


# `resolve_model_path` refuses impossible names.
@checks(model=optional(either(NAME, STATE_DICT)), **LOADING)
def load_model(
    model: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    strategy: str = "auto",
    backend: str = "auto",
    *,
    threads: int | None = None,
    adapter: str = NO_ADAPTER,
) -> Model:
    """Load a model.

    Args:
        model: a checkpoint, see `resolve_model_path`; or tensors by name, as `torch.load` of a `.pth` file or a
            module's `state_dict()` gives them, of any device. They are copied, so that later changes of them do not
            change the model; see docs/library.md for the hash of such a model.
        strategy: `auto`, or device and precision as in `cpu fp32`, `cpu bf16`, `cuda fp16`, `cuda:1 bf16`. Weights are
            rounded to the precision; `cpu int8`, `cpu w8a8` and `cpu int4` round only the large matrices. Arithmetic on
            the CPU is fp32, except for the integer products of the large matrices with `w8a8` and `int4`. `auto` takes
            a GPU if there is one, and does not round the weights. `cuda fp16 rows=64` gives every matrix product 64
            rows (docs/design/reproducibility.md). With `upstream`, any strategy of the `rwkv` package.
        backend: `cpu` (native kernels), `reference` (plain torch; also for AMD and Apple GPUs), `cuda` (NVIDIA GPUs),
            `upstream` (the `rwkv` package), or `auto`: the fastest for the strategy, and `upstream` for checkpoints
            older than RWKV-7.
        threads: number of threads on the CPU; None for all processors.
        adapter: an adapter to merge into the weights: `FILE`, `FILE alpha=NUMBER` or `FILE init=FILE`; `none` for none.

    Raises:
        UsageError: an unknown strategy or backend, or one that this machine does not support.
        CheckpointError: the file is missing, damaged, or the tensors are not those of an RWKV checkpoint.
    """
    parsed_adapter = parse_adapter(adapter)
    source = model if isinstance(model, Mapping) else model_file(model)
    with naming_origin(model), open_checkpoint(source, parsed_adapter) as checkpoint:
        for file in checkpoint.file.files:
            if file.choice:
                text = f"{file.path}: {file.choice}; to use another dict of tensors, save it alone"
                warnings.warn(text, SeveralNetworksWarning, stacklevel=3)
        parsed = check_strategy(checkpoint, strategy, backend)
        if isinstance(parsed, str):
            return load_upstream(checkpoint, strategy, threads=threads)
        return _load_rwkv7(checkpoint, parsed, backend, threads)


def check_strategy(checkpoint: Checkpoint, strategy: str, backend: str = "auto") -> Strategy | str:
    """The strategy with which a checkpoint would be loaded; as text for the `rwkv` package.

    Raises:
        UsageError: as `load_model`, as far as it can be known without loading.
    """
    if backend not in get_args(Backend):
        raise UsageError(f"--backend must be one of {', '.join(get_args(Backend))}; got {backend!r}")
    generation = checkpoint.architecture.generation
    is_supported = is_rwkv7(checkpoint.architecture)
    if backend == "upstream" or (not is_supported and backend == "auto"):
        return parse_upstream_strategy(strategy, generation)
    if not is_supported:
        raise UsageError(
            f"{checkpoint.file.path} is RWKV-{generation}, which only --backend upstream runs; got --backend {backend}"
        )
    try:
        parsed = parse_strategy(strategy)
    except MissingDeviceError:
        _refuse_backend(backend, strategy.split()[0])  # wrong on machines with that device too
        raise
    if parsed.is_auto and backend == "cuda" and not parsed.device.startswith("cuda"):
        raise MissingDeviceError("--backend cuda needs an NVIDIA GPU, and none was found", hint="leave --backend out")
    _refuse_backend(backend, parsed.device)
    return parsed


def _refuse_backend(backend: str, device: str) -> None:
    """Raise `UsageError` if no machine runs `backend` on `device`."""
    if backend == "cuda" and not device.startswith("cuda"):
        raise UsageError(
            f"--backend cuda needs an NVIDIA GPU, and --strategy is for {device!r}", hint='use --strategy "cuda fp16"'
        )
    if backend == "cpu" and device != "cpu":
        raise UsageError(f"--backend cpu cannot run on {device!r}", hint='use --strategy "cpu" or --backend cuda')


def _load_rwkv7(checkpoint: Checkpoint, strategy: Strategy, backend: str, threads: int | None) -> Rwkv7Model:
    architecture = checkpoint.architecture
    file_rounding = rounding_of(checkpoint.file.metadata)
    if strategy.precision is None and not strategy.on_gpu and file_rounding is not None:
        strategy = replace(strategy, precision=file_rounding)
    if file_rounding is not None and checkpoint.adapter is not None and strategy.rounding is not None:
        warnings.warn(
            f"{checkpoint.file.path} is quantised to {file_rounding}: matrices that the adapter changes are rounded "
            f"again, to {strategy.precision}, which loses a part of the adapter's effect; give the unquantised "
            f'checkpoint, or --strategy "{strategy.device} fp32"',
            RoundedAgainWarning,
            stacklevel=4,
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
        from rwkvbatch.model.network.traced import CpuModel
        from rwkvbatch.model.ops.cpu import CpuOps

        assert isinstance(ops, CpuOps)
        return CpuModel(network, ops, spec, initial_wkv=initial)
    stepper: Stepper = network
    if ops.name == "cuda":
        from rwkvbatch.model.network.graphs import GraphedNetwork, cuda_capture

        stepper = GraphedNetwork(network, cuda_capture())
    return Rwkv7Model(stepper, ops, spec, threads=threads, initial_wkv=initial)


def _reader(tensors: Checkpoint, ops: Operations) -> WeightReader | None:
    """The `WeightReader` of the backend; None if it has none."""
    if ops.name != "cpu":
        return None
    from rwkvbatch.model.ops.cpu import CpuOps

    assert isinstance(ops, CpuOps)
    return _FileReader(tensors, ops)


class _FileReader:
    """The `WeightReader` of the native kernels. `Checkpoint` raises the errors of matrices that it cannot read."""

    def __init__(self, tensors: Checkpoint, ops: CpuOps) -> None:
        self._tensors, self._ops = tensors, ops

    def layer(self, name: str, activation: Activation, *, sparse_inputs: bool = False) -> Array | None:
        stored = self._tensors.rows(name)
        return None if stored is None else self._ops.read_layer(stored, activation, sparse_inputs=sparse_inputs)

    def table(self, name: str) -> Array | None:
        stored = self._tensors.rows(name)
        return None if stored is None else self._ops.read_table(stored)


MAX_HEAD_SIZE = 256
"""The largest head that the native and the Triton kernels support."""


def _refuse_unrunnable(checkpoint: Checkpoint, ops: Operations) -> None:
    """Raise `CheckpointError` when the backend's kernels do not run networks of this shape."""
    head_size = checkpoint.architecture.head_size
    if head_size > MAX_HEAD_SIZE and ops.name != "reference":
        raise CheckpointError(
            f"it has heads of size {head_size}; the kernels of --backend {ops.name} support at most {MAX_HEAD_SIZE}",
            path=checkpoint.file.path,
            hint="--backend reference runs them, many times slower",
        )


def _operations(
    checkpoint: Checkpoint, strategy: Strategy, backend: str, threads: int | None
) -> tuple[str, Operations]:
    """The backend's name and its operations."""
    if strategy.on_gpu:
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
                    hint="install rwkvbatch from a wheel, or with GCC or Clang installed, or use --backend reference",
                ) from error
            warnings.warn(
                "the native kernels are not installed; using the reference operations, many times slower; to get the "
                "kernels, install rwkvbatch from a wheel, or again with GCC or Clang installed",
                SlowBackendWarning,
                stacklevel=5,
            )
    return "reference", ReferenceOps("cpu", rounding=strategy.rounding)


def _gpu_operations(strategy: Strategy, dtype: torch.dtype, backend: str) -> tuple[str, Operations]:
    if strategy.device.startswith("cuda") and backend != "reference":
        missing = _missing_for_kernels(strategy.device)
        if missing is None:
            from rwkvbatch.model.ops.cuda import CudaOps

            # The row count is a part of the backend's name, since replies with another count could differ.
            name = "cuda" if strategy.fixed_rows is None else f"cuda rows={strategy.fixed_rows}"
            return name, CudaOps(strategy.device, dtype, strategy.fixed_rows)
        if strategy.fixed_rows is None:
            warnings.warn(
                f"{missing}; using the reference operations on the GPU, several times slower",
                SlowBackendWarning,
                stacklevel=6,
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
    if capability < MIN_CAPABILITY:
        return f"{device!r} has compute capability {capability[0]}.{capability[1]}, Triton needs 8.0"
    try:
        import rwkvbatch.model.ops.cuda  # noqa: F401
    except ImportError as error:
        return f"Triton cannot be imported ({error}); pip install triton"
    return None
