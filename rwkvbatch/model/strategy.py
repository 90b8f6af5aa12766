"""Strategy strings: the device of a model and the precision of its weights."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

import torch

from rwkvbatch.errors import MissingDeviceError, UsageError
from rwkvbatch.model.base import RWKV7
from rwkvbatch.model.ops import Rounding

Precision = Literal["fp32", "bf16", "fp16"]
"""Number format of a stored tensor."""

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS: dict[torch.dtype, Precision] = {dtype: precision for precision, dtype in DTYPES.items()}

_PLAIN = re.compile(
    r"(?P<device>cpu|mps|cuda(?::\d{1,3})?)"
    r"(?: +(?P<precision>fp32|bf16|fp16|int8|w8a8|int4))?(?: +rows=(?P<rows>[1-9]\d{0,3}))?"
)

# The grammar of the `rwkv` package: parts joined by `->`. Each is a device, a precision, an optional i8 and an optional
# layer count.
_UPSTREAM_PART = re.compile(r"(?:cpu|mps|dml|cuda(?::\d{1,3})?) +(?:fp32|bf16|fp16)(?:i8)?(?: +\*\d{1,6}\+?)?")

ALLOWED = (
    '"auto", "cpu", "cpu fp32", "cpu bf16", "cpu fp16", "cpu int8", "cpu w8a8", "cpu int4", "cuda", "cuda fp16", '
    '"cuda:1 bf16", "cuda fp16 rows=64", "mps fp16" and the like'
)
ALLOWED_UPSTREAM = (
    '"cpu fp32", "cuda fp16", "cuda fp16i8", "cuda fp16 *10 -> cpu fp32", "cuda fp16i8 *0+ -> cpu fp32 *1" '
    "and the like, as the `rwkv` package documents them"
)


@dataclass(frozen=True)
class Strategy:
    """Device and precision.

    Attributes:
        device: `cpu`, `cuda`, `cuda:N` or `mps`.
        precision: the precision to which weights are rounded at loading; None does not round them. `int8`, `w8a8` and
            `int4` (CPU only) round matrices (`ops.matrix_rounding`); `w8a8` and `int4` also round the inputs of these
            matrices to 8 bits.
        fixed_rows: the number of rows of every matrix product on a GPU, so that a reply does not depend on the number
            of other replies; None for no fixed number.
        is_auto: whether the device was chosen automatically.
    """

    device: str
    precision: Precision | Rounding | None
    fixed_rows: int | None = None
    is_auto: bool = field(default=False, compare=False)

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype to which every tensor is rounded; None for no rounding, or for rounding of matrices only."""
        is_dtype = self.precision is not None and self.rounding is None
        return DTYPES[cast(Precision, self.precision)] if is_dtype else None

    @property
    def rounding(self) -> Rounding | None:
        """The rounding of matrices; None if the precision is a dtype."""
        return cast(Rounding, self.precision) if self.precision in get_args(Rounding) else None


def is_upstream(text: str) -> bool:
    """Whether `text` is a strategy of the `rwkv` package."""
    return all(_UPSTREAM_PART.fullmatch(part.strip()) for part in text.split("->"))


def looks_like_strategy(text: str) -> bool:
    """Whether `text` begins like a strategy, as opposed to a file name."""
    return re.fullmatch(r"auto|(?:cpu|mps|cuda(?::\d+)?)(?: .*)?", " ".join(text.split())) is not None


def parse_strategy(text: str) -> Strategy:
    """Parse a strategy of rwkvbatch's own backends.

    Raises:
        UsageError: an unknown form, or a device that this machine lacks.
    """
    normalized = " ".join(text.split())
    if normalized == "auto":
        return Strategy("cuda" if torch.cuda.is_available() else "cpu", None, is_auto=True)
    match = _PLAIN.fullmatch(normalized)
    if match is None:
        hint = None
        if is_upstream(normalized):
            hint = "this form works with --backend upstream only (and there for RWKV-4, 5 and 6 only)"
        raise UsageError(f"--strategy must be one of {ALLOWED}; got {text!r}", hint=hint)
    rows = match["rows"]
    strategy = Strategy(match["device"], match["precision"], None if rows is None else int(rows))  # pyright: ignore[reportArgumentType]
    if rows is not None and not strategy.device.startswith("cuda"):
        raise UsageError(
            f"rows= in --strategy is for NVIDIA GPUs; got {text!r}",
            hint="on the CPU replies never depend on the rest of the batch",
        )
    if strategy.rounding is not None and strategy.on_gpu:
        raise UsageError(
            f"{strategy.rounding} in --strategy is for the CPU; got {text!r}",
            hint=f'use "cpu {strategy.rounding}", or "{strategy.device} fp16" on the GPU',
        )
    check_device(strategy.device)
    return strategy


def parse_upstream_strategy(text: str, generation: str) -> str:
    """A strategy in the form that the `rwkv` package accepts.

    Raises:
        UsageError: an unknown form, or a device that this machine lacks.
    """
    normalized = " ".join(text.split())
    if normalized == "auto":
        return "cuda fp16" if torch.cuda.is_available() else "cpu fp32"
    if normalized in ("cpu", "cuda"):
        normalized += " fp16" if normalized == "cuda" else " fp32"
    if not is_upstream(normalized):
        hint = None
        if normalized in {f"cpu {rounding}" for rounding in get_args(Rounding)}:
            hint = 'that is for RWKV-7 without --backend upstream; for RWKV-4, 5 and 6 the package has "cpu fp32i8"'
        raise UsageError(f"--strategy must be one of {ALLOWED_UPSTREAM}; got {text!r}", hint=hint)
    parts = [" ".join(part.split()) for part in normalized.split("->")]
    if generation in RWKV7 and _PLAIN.fullmatch(normalized) is None:
        raise UsageError(
            f"--strategy for RWKV-7 must be one device and one precision ({ALLOWED}); got {text!r}",
            hint="the `rwkv` package splits or quantises RWKV-4, 5 and 6 only",
        )
    for part in parts:
        check_device(part.split(" ")[0])
    return " -> ".join(parts)


def check_device(device: str, option: str = "--strategy") -> None:
    """Raise `MissingDeviceError` when this machine lacks `device`, which `option` asks for."""
    problem = None
    if device == "mps" and not torch.backends.mps.is_available():
        problem = "no Apple GPU was found"
    elif device.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(device.partition(":")[2] or 0) >= count:
            problem = f"found {count}, numbered from 0" if count else "no CUDA device was found"
    if problem is not None:
        hint = (
            'use "cpu" or "auto"' if option == "--strategy" else "name devices that this machine has, or leave it out"
        )
        raise MissingDeviceError(f"{option} asks for the device {device!r}, but {problem}", hint=hint)
