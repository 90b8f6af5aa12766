"""Matrices quantised to int8, and linear layers of them against the reference implementation."""

from __future__ import annotations

import pytest
import torch

from rwkvbatch.model.ops import Product
from rwkvbatch.model.ops.reference import SCALED_INPUTS, ReferenceOps, rounded_to_int8

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}


def random_weight(out: int, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(out * width)
    # Outputs of very different sizes, and a few weights far from the others.
    weight = torch.randn(out, width, generator=generator) * 10 ** torch.randn(out, 1, generator=generator)
    weight[torch.rand(out, width, generator=generator) < 0.005] *= 20
    return weight.to(dtype)


def same_bits(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.equal(actual.contiguous().view(torch.int32), expected.contiguous().view(torch.int32))


def test_a_number_is_off_by_at_most_half_a_step_of_its_block() -> None:
    weight = random_weight(24, 3 * SCALED_INPUTS + 5)
    difference = (rounded_to_int8(weight) - weight).abs()
    for part, off in zip(weight.split(SCALED_INPUTS, 1), difference.split(SCALED_INPUTS, 1), strict=True):
        step = part.abs().amax(1, keepdim=True) / 127
        assert (off <= 0.5001 * step).all()
        assert (off > 0.3 * step).any()


def test_halves_go_to_the_even_integer_and_the_largest_number_stays() -> None:
    weight = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -127.0, 0.0]])
    assert rounded_to_int8(weight).tolist() == [[127, 0, 2, 2, 0, -2, -127, 0]]


def test_blocks_of_an_output_have_scales_of_their_own() -> None:
    weight = torch.full((2, 2 * SCALED_INPUTS), 1e-3)
    weight[0, 0] = 127
    actual = rounded_to_int8(weight)
    assert not actual[0, 1:SCALED_INPUTS].any()
    assert torch.allclose(actual[0, SCALED_INPUTS:], weight[0, SCALED_INPUTS:])
    assert torch.allclose(actual[1], weight[1])


def test_zeros_stay_zeros() -> None:
    weight = random_weight(3, 200)
    weight[1] = 0
    weight[2, :SCALED_INPUTS] = 0
    actual = rounded_to_int8(weight)
    assert not actual[1].any()
    assert not actual[2, :SCALED_INPUTS].any()
    assert torch.isfinite(actual).all()


def test_a_matrix_is_rounded_alike_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_weight(50, 300)
    expected = rounded_to_int8(weight)
    monkeypatch.setattr("rwkvbatch.model.ops.reference._PIECE", 2100)
    assert same_bits(rounded_to_int8(weight), expected)


class TestNative:
    @pytest.fixture(params=["portable", "auto"])
    def ops(self, request: pytest.FixtureRequest):
        cpu = pytest.importorskip("rwkvbatch.model.ops.cpu")
        ops = cpu.CpuOps(threads=2, isa=request.param, rounding="int8")
        ops.native.set_guard(True)
        yield ops
        assert ops.native.take_damage() == 0

    def weights_in(self, ops, layer, width: int) -> torch.Tensor:
        """A layer's weights [out, in]: what it makes of each input alone, which has no sum to round."""
        (result,) = ops.linears([Product(ops.array(torch.eye(width)), layer)])
        return ops.values(result).t()

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(("out", "width"), [(64, 64), (97, 40), (203, 128), (1, 129), (80, 770)])
    def test_weights_are_those_of_the_reference_bit_for_bit(
        self, ops, out: int, width: int, dtype: torch.dtype
    ) -> None:
        weight = random_weight(out, width).clamp(-6e4, 6e4).to(dtype)
        actual = self.weights_in(ops, ops.linear_layer(weight, kind="large"), width)
        assert torch.equal(actual, rounded_to_int8(weight))

    def test_zeros_halves_and_extremes_are_those_of_the_reference(self, ops) -> None:
        weight = random_weight(6, 300)
        weight[0] = 0
        weight[1] *= 1e-38
        weight[2] = torch.arange(300) * 1e-45
        weight[3, :SCALED_INPUTS] = 1e-45
        weight[4] *= 1 / weight[4].abs().max()
        weight[4] *= 3e38
        weight[5] = torch.arange(300) % 250 / 2 - 60.5
        weight[5, ::SCALED_INPUTS] = 127
        actual = self.weights_in(ops, ops.linear_layer(weight, kind="large"), 300)
        expected = rounded_to_int8(weight)
        assert expected[1].any()
        assert torch.equal(actual, expected)

    def test_a_transposed_matrix_is_rounded_as_it_stands(self, ops) -> None:
        weight = random_weight(150, 40).t()
        actual = self.weights_in(ops, ops.linear_layer(weight, kind="large"), 150)
        assert torch.equal(actual, rounded_to_int8(weight))

    @pytest.mark.parametrize(("out", "width"), [(64, 64), (97, 40), (16, 128), (203, 160), (130, 1290)])
    @pytest.mark.parametrize("rows", [1, 2, 3, 5, 6, 7, 8, 13, 241])
    def test_a_linear_layer_is_that_of_the_reference(self, ops, rows: int, out: int, width: int) -> None:
        generator = torch.Generator().manual_seed(rows)
        weight = torch.randn(out, width, generator=generator).bfloat16() / width**0.5
        bias, x = torch.randn(out, generator=generator), torch.randn(rows, width, generator=generator)
        reference = ReferenceOps(rounding="int8")
        (actual,) = ops.linears([Product(ops.array(x), ops.linear_layer(weight, bias, kind="large"))])
        (expected,) = reference.linears([Product(x, reference.linear_layer(weight, bias, kind="large"))])
        torch.testing.assert_close(ops.values(actual), expected, **TOLERANCE)

    @pytest.mark.parametrize("rows", [1, 4, 40])
    def test_sums_of_whole_numbers_are_exact(self, ops, rows: int) -> None:
        generator = torch.Generator().manual_seed(rows)
        weight = torch.randint(-127, 128, (70, 600), generator=generator).float()
        weight[:, ::SCALED_INPUTS] = 127
        x = torch.randint(-9, 10, (rows, 600), generator=generator).float()
        (actual,) = ops.linears([Product(ops.array(x), ops.linear_layer(weight, kind="large"))])
        assert torch.equal(ops.values(actual), x @ weight.t())

    def test_only_large_matrices_are_rounded_and_take_a_byte_a_weight(self, ops) -> None:
        weight = random_weight(512, 512, torch.bfloat16)
        small = ops.linear_layer(weight)
        assert ops.native.weight_bytes == 512 * 512 * 2
        assert torch.equal(self.weights_in(ops, small, 512), weight.float())
        ops.linear_layer(weight, kind="large")
        assert ops.native.weight_bytes == 512 * 512 * 2 + 512 * 512 + 512 * 512 // SCALED_INPUTS * 4

    def test_without_int8_large_matrices_stay_as_they_are(self) -> None:
        cpu = pytest.importorskip("rwkvbatch.model.ops.cpu")
        ops, weight = cpu.CpuOps(threads=1), random_weight(64, 64, torch.bfloat16)
        assert torch.equal(self.weights_in(ops, ops.linear_layer(weight, kind="large"), 64), weight.float())

    def test_a_step_reads_all_but_the_embedding(self, ops) -> None:
        ops.linear_layer(random_weight(64, 128), kind="large")
        ops.table(random_weight(100, 64))
        assert ops.step_bytes == 64 * 128 + 64 * 4
