"""Native operations with an injected fault: negative controls for tests of bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rwkvbatch.model.ops import Product, Rounding
from rwkvbatch.model.ops.cpu import CpuOps, Isa

Fault = Callable[[CpuOps, np.ndarray], None]
"""Changes the result [R, out] of a linear layer in place."""


def nudge(values: np.ndarray) -> None:
    """Replace values by the next fp32 numbers, the smallest possible change."""
    values[...] = np.nextafter(values, np.float32(np.inf))


def more_rows_take_another_path(ops: CpuOps, values: np.ndarray) -> None:
    if len(values) > 1:
        nudge(values)


def later_rows_take_another_path(ops: CpuOps, values: np.ndarray) -> None:
    nudge(values[1:])


def rows_leak_into_each_other(ops: CpuOps, values: np.ndarray) -> None:
    values += 0 * values.sum(axis=0)


def more_threads_take_another_path(ops: CpuOps, values: np.ndarray) -> None:
    if ops.threads > 1:
        nudge(values)


def the_portable_path_rounds_differently(ops: CpuOps, values: np.ndarray) -> None:
    if ops.isa == "portable":
        nudge(values)


def groups_take_another_path(ops: CpuOps, values: np.ndarray) -> None:
    if isinstance(ops, DisturbedOps) and ops.group_size > 1:
        nudge(values)


class DisturbedOps(CpuOps):
    """`CpuOps` with `fault` in every linear layer but the head."""

    def __init__(self, fault: Fault, threads: int = 1, isa: Isa = "auto", *, rounding: Rounding | None = None) -> None:
        super().__init__(threads, isa, rounding=rounding)
        self._fault = fault
        self.group_size = 0

    def linears(self, products: Sequence[Product]) -> Sequence[Any]:
        results = super().linears(products)
        self.group_size = len(products)
        for result in results:
            self._fault(self, result.numpy())
        return results
