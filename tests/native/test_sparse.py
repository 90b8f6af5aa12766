"""Skipping the weights of zero inputs gives the same bits as reading all weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rwkvbatch.model.ops import Product

pytest.importorskip("rwkvbatch._native")
from rwkvbatch.model.ops.cpu import CpuOps, Isa
from tests.native.test_bits import assert_same_bits, vector_sets

INPUTS, OUTPUTS = 300, 203
"""Neither is a multiple of the units of packed weights."""

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.bfloat16}


def channel_mix(
    ops: CpuOps, hidden: Tensor, weight: Tensor, *, sparse: bool, add: Tensor | None = None, by_input: bool = True
) -> Tensor:
    """add + relu(hidden)^2 W^T by the kernels.

    Args:
        sparse: whether the weights of zero inputs may be skipped.
        by_input: whether w8a8 weights may be stored by input.
    """
    ops.native.set_guard(True)
    ops.native.set_sparse(sparse)
    inner = ops.linear_layer(torch.eye(hidden.shape[1]), activation="relu_squared")
    value = ops.linear_layer(weight, kind="large", sparse_inputs=by_input)
    (squares,) = ops.linears([Product(ops.array(hidden), inner)])
    (result,) = ops.linears([Product(squares, value, add=None if add is None else ops.array(add))])
    values = ops.values(result)
    del squares, result
    assert ops.native.take_damage() == 0
    return values


def hidden_rows(rows: int, zeros: float, seed: int = 0) -> Tensor:
    """Random hidden values. A share `zeros` of them is negative, at random positions in each row."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(rows, INPUTS, generator=generator) + 0.1
    return torch.where(torch.rand(rows, INPUTS, generator=generator) < zeros, -sizes, sizes)


def random_weight(dtype: torch.dtype, outputs: int = OUTPUTS) -> Tensor:
    return torch.randn(outputs, INPUTS, generator=torch.Generator().manual_seed(5)).to(dtype)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("isa", ["portable", *vector_sets()])
def test_the_bits_are_those_of_reading_all_weights(precision: str, isa: Isa) -> None:
    weight = random_weight(PRECISIONS[precision])
    for threads in (1, 2):
        ops = CpuOps(threads, isa, rounding="int8" if precision == "int8" else None)
        for rows in range(1, 5):
            for zeros in (0.0, 0.75, 0.9, 0.99, 1.0):
                hidden = hidden_rows(rows, zeros)
                add = torch.randn(rows, OUTPUTS, generator=torch.Generator().manual_seed(rows))
                expected = channel_mix(ops, hidden, weight, sparse=False, add=add)
                assert_same_bits(channel_mix(ops, hidden, weight, sparse=True, add=add), expected)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_skipped_bytes_are_counted(precision: str) -> None:
    ops = CpuOps(1, rounding="int8" if precision == "int8" else None)
    panels = -(-OUTPUTS // 16)
    for rows, zeros, min_skipped, max_skipped in (
        (1, 0.75, 200, 260),
        (3, 0.95, 220, 275),
        (3, 0.6, 0, 0),
        (4, 1.0, 0, 0),
        (1, 0.5, 0, 0),
        (1, 0.0, 0, 0),
    ):
        before = ops.native.skipped_bytes
        hidden = hidden_rows(rows, zeros)
        channel_mix(ops, hidden, random_weight(PRECISIONS[precision]), sparse=True)
        skipped = ops.native.skipped_bytes - before
        assert min_skipped <= skipped / (panels * 16 * (1 if precision == "int8" else 2)) <= max_skipped
    ops = CpuOps(1)
    channel_mix(ops, hidden_rows(1, 0.9), random_weight(torch.bfloat16), sparse=False)
    assert ops.native.skipped_bytes == 0


def test_a_layer_reads_all_weights_unless_its_inputs_come_from_relu_squared() -> None:
    ops = CpuOps(1)
    layer = ops.linear_layer(random_weight(torch.bfloat16))
    ops.linears([Product(ops.array(torch.zeros(1, INPUTS)), layer)])
    assert ops.native.skipped_bytes == 0


def test_a_zero_sum_has_the_sign_of_the_sum_of_all_products() -> None:
    # The first product is -1e-50, which rounds to -0. The products of zeros with positive weights are +0, so that the
    # sum is +0; without them it is -0.
    hidden = torch.full((1, INPUTS), -1.0)
    hidden[0, 0] = 1e-20
    weight = torch.full((OUTPUTS, INPUTS), 1.0)
    weight[:, 0] = -1e-10
    add = torch.full((1, OUTPUTS), -0.0)
    for isa in ("portable", *vector_sets()):
        ops = CpuOps(1, isa)
        actual = channel_mix(ops, hidden, weight, sparse=True, add=add)
        assert ops.native.skipped_bytes > 0
        assert_same_bits(actual, torch.zeros(1, OUTPUTS))
        assert_same_bits(actual, channel_mix(ops, hidden, weight, sparse=False, add=add))


def test_an_infinite_input_is_read() -> None:
    weight = random_weight(torch.bfloat16)
    hidden = hidden_rows(2, 0.9)
    hidden[1, 77] = 1e30  # its square overflows
    for isa in ("portable", *vector_sets()):
        ops = CpuOps(1, isa)
        actual = channel_mix(ops, hidden, weight, sparse=True)
        assert ops.native.skipped_bytes > 0
        assert torch.isfinite(actual[0]).all()
        assert torch.isinf(actual[1]).all()
        assert_same_bits(actual, channel_mix(ops, hidden, weight, sparse=False))


def test_a_single_skipped_input_changes_the_bits() -> None:
    weight = random_weight(torch.bfloat16)
    hidden = hidden_rows(1, 0.75)
    without = hidden.clone()
    without[
        0, hidden[0].clamp(min=1e-9).masked_fill(hidden[0] < 0, torch.inf).argmin()
    ] = -1.0  # the smallest positive one
    ops = CpuOps(1)
    expected = channel_mix(ops, hidden, weight, sparse=False)
    with pytest.raises(AssertionError):
        assert_same_bits(channel_mix(ops, without, weight, sparse=True), expected)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_row_has_the_bits_of_a_larger_batch(precision: str) -> None:
    ops = CpuOps(2, rounding="int8" if precision == "int8" else None)
    weight = random_weight(torch.bfloat16)
    hidden = hidden_rows(9, 0.8)
    hidden[4] = torch.nan
    expected = channel_mix(ops, hidden, weight, sparse=True)  # nine rows read all weights
    assert ops.native.skipped_bytes == 0
    for row in range(9):
        assert_same_bits(channel_mix(ops, hidden[row : row + 1], weight, sparse=True), expected[row : row + 1])
    assert ops.native.skipped_bytes > 0


BAND_OUTPUTS = 192
"""Outputs in whole bands of 64, so that w8a8 weights are stored by input."""


@pytest.mark.parametrize("isa", ["portable", *vector_sets()])
def test_w8a8_bits_are_those_of_reading_all_weights_and_of_the_other_layout(isa: Isa) -> None:
    weight = random_weight(torch.bfloat16, BAND_OUTPUTS)
    for threads in (1, 2):
        ops = CpuOps(threads, isa, rounding="w8a8")
        for rows in (1, 2, 3, 4, 18):
            for zeros in (0.0, 0.6, 0.75, 1.0):
                hidden = hidden_rows(rows, zeros)
                add = torch.randn(rows, BAND_OUTPUTS, generator=torch.Generator().manual_seed(rows))
                expected = channel_mix(ops, hidden, weight, sparse=False, add=add, by_input=False)
                assert_same_bits(channel_mix(ops, hidden, weight, sparse=False, add=add), expected)
                assert_same_bits(channel_mix(ops, hidden, weight, sparse=True, add=add), expected)


def test_w8a8_inputs_that_are_rounded_to_zero_are_skipped() -> None:
    ops = CpuOps(1, rounding="w8a8")
    weight = random_weight(torch.bfloat16, BAND_OUTPUTS)
    hidden = torch.full((1, INPUTS), -1.0)
    hidden[0, :60] = hidden[0, 140:150] = 1.0
    hidden[0, 5:25] = 0.06  # whose squares are below half of 1 / 127
    for rows, skipped in ((1, INPUTS - 50), (3, INPUTS - 50), (4, 0)):
        before = ops.native.skipped_bytes
        channel_mix(ops, hidden.expand(rows, -1), weight, sparse=True)
        assert ops.native.skipped_bytes - before == skipped * BAND_OUTPUTS
    before = ops.native.skipped_bytes
    channel_mix(
        ops, torch.cat([hidden, hidden.roll(10)]), weight, sparse=True
    )  # 75 inputs are needed by one of the rows
    assert ops.native.skipped_bytes - before == (INPUTS - 75) * BAND_OUTPUTS
    channel_mix(ops, hidden, weight, sparse=False)
    channel_mix(ops, hidden, weight, sparse=True, by_input=False)
    channel_mix(ops, hidden, random_weight(torch.bfloat16), sparse=True)  # 203 outputs
    assert ops.native.skipped_bytes - before == (INPUTS - 75) * BAND_OUTPUTS


@pytest.mark.parametrize("isa", ["portable", *vector_sets()])
def test_w8a8_weights_are_read_in_order_if_more_than_half_of_the_inputs_are_not_zero(isa: Isa) -> None:
    weight = random_weight(torch.bfloat16, BAND_OUTPUTS)
    limit = INPUTS // 2
    for num_nonzero, skipped in ((limit, INPUTS - limit), (limit + 1, 0)):
        ops = CpuOps(1, isa, rounding="w8a8")
        hidden = torch.full((1, INPUTS), -1.0)
        hidden[0, torch.randperm(INPUTS, generator=torch.Generator().manual_seed(0))[:num_nonzero]] = 1.0
        actual = channel_mix(ops, hidden, weight, sparse=True)
        assert ops.native.skipped_bytes == skipped * BAND_OUTPUTS
        assert_same_bits(actual, channel_mix(ops, hidden, weight, sparse=False, by_input=False))


@pytest.mark.parametrize("isa", ["portable", *vector_sets()])
def test_a_single_skipped_w8a8_input_of_value_1_changes_the_bits(isa: Isa) -> None:
    weight = random_weight(torch.bfloat16, BAND_OUTPUTS)
    hidden = hidden_rows(1, 0.75)
    hidden[0, 130] = 1.2
    hidden[0, 200] = 0.1  # its square is rounded to 1 in units of 1.44 / 127
    without = hidden.clone()
    without[0, 200] = -1.0
    ops = CpuOps(1, isa, rounding="w8a8")
    expected = channel_mix(ops, hidden, weight, sparse=False)
    assert_same_bits(channel_mix(ops, hidden, weight, sparse=True), expected)
    with pytest.raises(AssertionError):
        assert_same_bits(channel_mix(ops, without, weight, sparse=True), expected)


@pytest.mark.parametrize("isa", ["portable", *vector_sets()])
def test_a_w8a8_row_has_the_bits_of_a_larger_batch(isa: Isa) -> None:
    ops = CpuOps(2, isa, rounding="w8a8")
    weight = random_weight(torch.bfloat16, BAND_OUTPUTS)
    hidden = hidden_rows(33, 0.8)
    hidden[4] = torch.nan
    hidden[5, 7] = 1e30  # its square overflows
    expected = channel_mix(ops, hidden, weight, sparse=True)
    assert torch.isnan(expected[4:6]).all()
    for row in (0, 3, 6, 31):
        assert torch.isfinite(expected[row]).all()
        assert_same_bits(channel_mix(ops, hidden[row : row + 1], weight, sparse=True), expected[row : row + 1])
    assert ops.native.skipped_bytes > 0
    assert torch.isnan(channel_mix(ops, hidden[4:6], weight, sparse=True)).all()
