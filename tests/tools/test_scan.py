"""The chunked scan against the plain loop."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tools.demo.scan import CHUNK, chunked_scan, naive_scan


def _inputs(batch: int, time: int, heads: int, size: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shape = (batch, time, heads, size)
    kk = normalize(random(*shape), dim=-1)
    decay = torch.exp(-(0.5**0.5) * torch.sigmoid(random(*shape) * 3))
    rate = torch.sigmoid(random(*shape))
    state = random(batch, heads, size, size)
    return [random(*shape), decay, random(*shape), random(*shape), -kk, kk * rate, state]


def test_the_chunked_scan_gives_the_outputs_and_the_state_of_the_loop() -> None:
    inputs = _inputs(2, 3 * CHUNK, 2, 8)
    expected, expected_state = naive_scan(*inputs)
    got, got_state = chunked_scan(*inputs)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(got_state, expected_state, rtol=0, atol=1e-11)


def test_the_chunked_scan_is_exact_enough_in_float32_at_the_fastest_decay() -> None:
    inputs = _inputs(1, 8 * CHUNK, 1, 64)
    inputs[1] = torch.full_like(inputs[1], 0.545239)
    expected, _ = naive_scan(*inputs)
    got, _ = chunked_scan(*(x.float() for x in inputs))
    scale = float(expected.abs().max())
    assert float((got.double() - expected).abs().max()) < 1e-4 * scale


def test_the_chunked_scan_has_the_gradients_of_finite_differences() -> None:
    inputs = [x.requires_grad_() for x in _inputs(1, CHUNK, 1, 2)]
    assert torch.autograd.gradcheck(chunked_scan, inputs, fast_mode=True)


def test_the_chunked_scan_has_the_gradients_of_the_loop() -> None:
    ours = [x.requires_grad_() for x in _inputs(2, 2 * CHUNK, 2, 4)]
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    for scan, inputs in ((chunked_scan, ours), (naive_scan, theirs)):
        outputs, state = scan(*inputs)
        (outputs.sin().sum() + state.cos().sum()).backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-9, atol=1e-9)


def test_a_length_that_is_no_multiple_of_the_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match=r"multiple of 16, got 17"):
        chunked_scan(*_inputs(1, CHUNK + 1, 1, 2))
