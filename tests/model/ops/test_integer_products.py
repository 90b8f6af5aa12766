"""Integer products (`w8a8`, `int4`): quantisation of inputs and weights, and the exact result of a layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rwkvbatch.model.ops import Activation, Product, Rounding
from rwkvbatch.model.ops.reference import (
    INT4_SCALED_INPUTS,
    LEAST_INPUT,
    ROUNDINGS,
    ReferenceOps,
    quantized,
    rounded_to_int4,
)
from tests.model.ops.test_int8 import random_weight

ROUNDED: list[Rounding] = ["w8a8", "int4"]
SHAPES = [(64, 64), (97, 40), (16, 128), (203, 160), (130, 1290), (48, 587)]


def random_inputs(rows: int, width: int) -> torch.Tensor:
    """Rows of very different sizes, each with a few inputs far from the others."""
    generator = torch.Generator().manual_seed(rows * width)
    x = torch.randn(rows, width, generator=generator) * 10 ** torch.randn(rows, 1, generator=generator)
    x[torch.rand(rows, width, generator=generator) < 0.01] *= 20
    return x


class TestInputs:
    def test_an_input_is_off_by_at_most_half_a_step_of_its_group(self) -> None:
        x = random_inputs(5, 300)
        integers, scales = quantized(x, 128)
        steps = scales.repeat_interleave(128, 1)[:, :300]
        assert scales.shape == (5, 3)
        assert ((integers * steps - x).abs() <= 0.5001 * steps).all()
        assert integers.abs().max() == 127

    def test_halves_go_to_the_even_integer(self) -> None:
        integers, scales = quantized(torch.tensor([[127.0, 0.5, 1.5, -2.5, 0.0]]), 128)
        assert integers.tolist() == [[127, 0, 2, -2, 0]]
        assert scales.tolist() == [[1]]

    def test_a_row_and_a_group_have_scales_of_their_own(self) -> None:
        x = torch.full((2, 64), 1e-3)
        x[0, 0] = 127
        integers, scales = quantized(x, 32)
        assert not integers[0, 1:32].any()
        assert (integers[0, 32:] == 127).all()
        assert (integers[1] == 127).all()
        assert scales[0].tolist() == pytest.approx([1, 1e-3 / 127])

    def test_zeros_tiny_and_non_finite_groups(self) -> None:
        x = torch.zeros(4, 32)
        x[1] = 0.9 * LEAST_INPUT
        x[2, 3], x[3, 4] = float("inf"), float("nan")
        integers, scales = quantized(x, 32)
        assert not integers.any()
        assert scales[:2].tolist() == [[0], [0]]
        assert scales[2:].isnan().all()


class TestInt4:
    def test_a_number_is_off_by_at_most_half_a_step_but_at_the_far_end(self) -> None:
        weight = random_weight(24, 3 * INT4_SCALED_INPUTS + 5)
        for part, off in zip(
            weight.split(INT4_SCALED_INPUTS, 1),
            (rounded_to_int4(weight) - weight).abs().split(INT4_SCALED_INPUTS, 1),
            strict=True,
        ):
            step = part.abs().amax(1, keepdim=True) / 8
            # The number opposite to the largest one ends at 7 steps of 8, and the scale has the 8 bits of bf16.
            assert (off <= 1.01 * step).all()
            assert float((off <= 0.51 * step).float().mean()) > 0.97

    def test_the_largest_number_is_eight_steps_below_zero(self) -> None:
        weight = torch.tensor([[4.0, 0.25, -0.75, 3.5, -3.75, 0.0]])
        assert rounded_to_int4(weight).tolist() == [[4, 0, -1, 3.5, -3.5, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rounding", ["w8a8", "int4"])
def test_each_group_of_inputs_has_the_integers_and_the_scale_of_the_rule(
    rounding: Rounding, dtype: torch.dtype
) -> None:
    rule = ROUNDINGS[rounding]
    weight = random_weight(40, 2 * rule.group + 5)
    weight[0] = 0
    weight[1] *= 1e-42  # denormal: the scale is zero
    weight[2:30] = (weight[2:30] * 4).round() / 4  # many groups have two opposite numbers of the largest magnitude
    weight = weight.to(dtype)
    integers, scales = rule.quantize(weight)
    ties = 0
    for row, numbers in enumerate(weight.float().tolist()):
        for group, start in enumerate(range(0, len(numbers), rule.group)):
            block = np.array(numbers[start : start + rule.group], np.float32)
            largest = block[np.abs(block).argmax()]
            ties += bool(largest and (block == -largest).any())
            if rounding == "w8a8":
                scale, lowest, highest = np.abs(largest) / np.float32(127), -127, 127
            else:
                scale, lowest, highest = torch.tensor(largest / np.float32(-8)).bfloat16().float().numpy(), -8, 7
            expected = np.clip(np.rint(block / scale), lowest, highest) if scale else np.zeros_like(block)
            assert scales[row, group] == scale
            assert np.array_equal(integers[row, start : start + rule.group].numpy(), expected)
    assert ties > 5


def integers_and_scales(weight: torch.Tensor, rounding: Rounding) -> tuple[np.ndarray, np.ndarray]:
    """Integers [out, in] and scales [out, groups] of a weight, recomputed from the numbers it is rounded to."""
    group = ROUNDINGS[rounding].group
    rounded = ROUNDINGS[rounding].rounded(weight)
    scales = []
    for part in weight.float().split(group, 1):
        if rounding == "w8a8":
            scales.append(part.abs().amax(1) / 127)
        else:
            largest = part.gather(1, part.abs().argmax(1, keepdim=True)).squeeze(1)
            scales.append((largest / -8).bfloat16().float())
    actual = torch.stack(scales, 1)
    integers = (rounded.double() / actual.double().repeat_interleave(group, 1)[:, : weight.shape[1]]).round()
    return integers.nan_to_num().numpy().astype(np.int64), actual.numpy()


def multiply_add(x: np.ndarray, y: np.ndarray, total: np.ndarray) -> np.ndarray:
    """x * y + total in fp32. The product is exact in 64 bits of mantissa; the sum is rounded, first to these."""
    return (x.astype(np.longdouble) * y + total).astype(np.float32)


def exact_product(x: torch.Tensor, weight: torch.Tensor, rounding: Rounding) -> np.ndarray:
    """The definition of a layer in `native/integer.hpp`: exact sums, and fused multiply-adds of their scales."""
    group, input_group = ROUNDINGS[rounding].group, ROUNDINGS[rounding].input_group
    assert input_group == 128
    weights, weight_scales = integers_and_scales(weight, rounding)
    inputs, input_scales = quantized(x, input_group)
    width = x.shape[1]
    total = np.zeros((len(x), len(weight)), np.float32)
    for number, start in enumerate(range(0, width, input_group)):
        part = np.zeros_like(total)
        for begin in range(start, min(start + input_group, width), group):
            inside = slice(begin, min(begin + group, start + input_group, width))
            sums = inputs[:, inside].numpy().astype(np.int64) @ weights[:, inside].T
            part = multiply_add(sums, weight_scales[:, begin // group], part)
        total = multiply_add(part, input_scales[:, number].numpy()[:, None], total)
    return total


class TestNative:
    @pytest.fixture(
        params=["portable", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512amx", "neon", "neondot", "neoni8mm"]
    )
    def make(self, request: pytest.FixtureRequest):
        cpu = pytest.importorskip("rwkvbatch.model.ops.cpu")
        made = []

        def make(rounding: Rounding):
            try:
                ops = cpu.CpuOps(threads=2, isa=request.param, rounding=rounding)
            except cpu.UsageError:
                pytest.skip("this machine does not have the instruction set")
            ops.native.set_guard(True)
            made.append(ops)
            return ops

        yield make
        assert all(ops.native.take_damage() == 0 for ops in made)

    @pytest.mark.parametrize("rounding", ROUNDED)
    @pytest.mark.parametrize(("out", "width"), SHAPES)
    def test_a_layer_is_the_definition_bit_for_bit(self, make, rounding: Rounding, out: int, width: int) -> None:
        ops, weight = make(rounding), random_weight(out, width)
        layer = ops.linear_layer(weight, kind="large")
        for rows in (1, 2, 3, 5, 6, 7, 13, 245):
            x = random_inputs(rows, width)
            (actual,) = ops.linears([Product(ops.array(x), layer)])
            assert np.array_equal(ops.values(actual).numpy(), exact_product(x, weight, rounding))

    @pytest.mark.parametrize("rounding", ROUNDED)
    def test_the_largest_integers_do_not_saturate(self, make, rounding: Rounding) -> None:
        """Where `vpmaddubsw` and 16 bits would: all weights and inputs at the ends of their ranges."""
        ops = make(rounding)
        weight = torch.full((32, 256), 127.0 if rounding == "w8a8" else 8.0)
        weight[16:] *= -1
        for rows in (1, 5, 30):
            x = torch.full((rows, 256), 127.0)
            x[:, 1::2] *= -1 if rows > 1 else 1
            (actual,) = ops.linears([Product(ops.array(x), ops.linear_layer(weight, kind="large"))])
            assert torch.equal(ops.values(actual), x @ weight.t())

    def test_the_largest_stored_weights_of_four_bits_do_not_overflow(self, make) -> None:
        """Sums of 16 bits: of each group all weights but one are stored as 15, the largest, or as 0."""
        ops = make("int4")
        weight = torch.full((48, 256), 7.0)
        weight[:, ::32] = -8
        weight[16:32] *= -1  # the scale turns the sign: the same integers
        weight[32:, ::32] = 8
        weight[32:, 1::32] = -8  # integers of 1 and -7 between the ends
        for rows in (1, 3, 6, 30):
            for sign in (1, -1):
                x = torch.full((rows, 256), 127.0 * sign)
                x[rows // 2, 2::4] *= -1
                (actual,) = ops.linears([Product(ops.array(x), ops.linear_layer(weight, kind="large"))])
                assert torch.equal(ops.values(actual), x @ rounded_to_int4(weight).t())

    @pytest.mark.parametrize("rounding", ROUNDED)
    def test_zeros_tiny_and_non_finite_inputs_are_those_of_the_reference(self, make, rounding: Rounding) -> None:
        ops, reference, weight = make(rounding), ReferenceOps(rounding=rounding), random_weight(40, 300)
        x = random_inputs(6, 300)
        x[1] = 0
        x[2, :128] *= 1e-36
        x[3, 200], x[4, 299], x[5, 0] = float("nan"), float("inf"), -float("inf")
        (actual,) = ops.linears([Product(ops.array(x), ops.linear_layer(weight, kind="large"))])
        (expected,) = reference.linears([Product(x, reference.linear_layer(weight, kind="large"))])
        torch.testing.assert_close(ops.values(actual), expected, rtol=1e-4, atol=1e-4, equal_nan=True)
        assert ops.values(actual)[3:].isnan().all()
        assert not ops.values(actual)[1].any()

    @pytest.mark.parametrize("rounding", ROUNDED)
    def test_an_input_that_is_one_unit_off_is_noticed(self, make, rounding: Rounding) -> None:
        """The comparison above would see a single integer that is wrong by one."""
        ops, weight, x = make(rounding), random_weight(33, 200), random_inputs(4, 200)
        expected = exact_product(x, weight, rounding)
        integers, scales = quantized(x, ROUNDINGS[rounding].input_group or 0)
        wrong = torch.where(integers[2, 77] < 0, 1.0, -1.0) * scales[2, 77 // (ROUNDINGS[rounding].input_group or 1)]
        x[2, 77] += wrong
        (actual,) = ops.linears([Product(ops.array(x), ops.linear_layer(weight, kind="large"))])
        differs = (ops.values(actual).numpy() != expected).any(axis=1)
        assert differs.tolist() == [False, False, True, False]

    @pytest.mark.parametrize("rounding", ROUNDED)
    def test_ends_of_layers_are_those_of_the_reference(self, make, rounding: Rounding) -> None:
        ops, reference, weight = make(rounding), ReferenceOps(rounding=rounding), random_weight(40, 96) / 100
        x, bias, other = random_inputs(7, 96), torch.randn(40), torch.randn(7, 40)
        activations: tuple[Activation, ...] = ("none", "tanh", "sigmoid", "decay", "relu_squared")
        for activation in activations:
            layer = ops.linear_layer(weight, bias, activation, kind="large")
            slow = reference.linear_layer(weight, bias, activation, kind="large")
            rows, second = ops.array(x), ops.array(other)
            ends = [
                (Product(rows, layer, add=ops.array(other)), Product(x, slow, add=other)),
                (
                    Product(rows, layer, blend=(second, ops.array(other.flip(0)))),
                    Product(x, slow, blend=(other, other.flip(0))),
                ),
                (Product(rows, layer, times=second), Product(x, slow, times=other)),
                (Product(rows, layer), Product(x, slow)),
            ]
            for product, slow_product in ends:
                (actual,), (expected,) = ops.linears([product]), reference.linears([slow_product])
                torch.testing.assert_close(ops.values(actual), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rounding", ROUNDED)
def test_bytes_of_weights_in_memory_are_those_that_loading_counts_on(rounding: Rounding) -> None:
    cpu = pytest.importorskip("rwkvbatch.model.ops.cpu")
    ops = cpu.CpuOps(threads=1, rounding=rounding)
    ops.linear_layer(random_weight(512, 512), kind="large")
    assert ops.native.weight_bytes == 512 * 512 * ROUNDINGS[rounding].bytes_per_weight
