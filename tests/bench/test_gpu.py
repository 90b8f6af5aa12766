"""GPU benchmark arithmetic and choices, with a simulated device and clock."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch

from rwkvbatch.bench import limits, workloads
from rwkvbatch.bench.limits import Meter
from rwkvbatch.bench.measure import figure_of
from rwkvbatch.bench.package import strategy_for
from rwkvbatch.bench.workloads import Workload, device_clock
from rwkvbatch.cli.bench import _limits  # pyright: ignore[reportPrivateUsage]
from rwkvbatch.errors import UsageError
from rwkvbatch.model.load import load_model


class Device:
    """Copies 8 GB and multiplies 6 TFLOP, each time in the next of the seconds given."""

    name = "A GPU, bf16 products"
    arithmetic = "products"
    copy_bytes = 8e9
    product_operations = 6e12

    def __init__(self, copy_s: list[float], multiply_s: list[float]) -> None:
        self._copy_s, self._multiply_s = iter(copy_s), iter(multiply_s)
        self._now_s = 0.0

    def copy(self) -> None:
        self._now_s += next(self._copy_s)

    def multiply(self) -> None:
        self._now_s += next(self._multiply_s)

    def clock(self) -> float:
        return self._now_s


def test_limits_are_medians_over_rounds_of_the_best_of_three() -> None:
    device = Device([8, 4, 8, 5, 2, 5, 8, 8, 8], [3, 2, 3, 3, 3, 3, 6, 6, 6])
    meter = Meter(device, device.clock)
    for _ in range(3):
        meter.measure()
    limits = meter.limits()
    assert limits is not None
    assert (limits.read_gb_s, limits.best_read_gb_s) == (pytest.approx(2.0), pytest.approx(4.0))
    assert (limits.fma_gflop_s, limits.best_fma_gflop_s) == (pytest.approx(2000.0), pytest.approx(3000.0))
    assert (limits.isa, limits.arithmetic) == ("A GPU, bf16 products", "products")
    assert _limits(limits).startswith("copies 2.0 GB/s (best 4.0), matrix products 2000 GFLOP/s (best 3000)")
    assert _limits(replace(limits, arithmetic="fma")).startswith("reads 2.0 GB/s (best 4.0), multiply-adds")


def test_one_row_is_a_share_of_the_copy_bandwidth_and_many_are_one_of_the_matrix_rate() -> None:
    device = Device([8] * 3, [2] * 3)
    meter = Meter(device, device.clock)
    rates = [rate for rate in [meter.measure()] if rate is not None]
    one = Workload("one", "decode", 1, lambda: 0.0, operations=3e9, memory_bytes=3e9)
    many = Workload("many", "decode", 256, lambda: 0.0, operations=12e12, memory_bytes=3e9)
    figures = [figure_of(work, [seconds], [], rates) for work, seconds in ((one, 4.0), (many, 8.0))]
    assert [(figure.limit, figure.share) for figure in figures] == [
        ("memory", pytest.approx(0.75)),
        ("products", pytest.approx(0.5)),
    ]


def test_the_clock_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append(f"waited for {device}"))
    monkeypatch.setattr(workloads, "WALL", lambda: float(events.append("looked at the clock") or 7.0))
    clock = pickle.loads(pickle.dumps(device_clock("cuda:1")))
    assert clock() == 7.0
    assert events == ["waited for cuda:1", "looked at the clock"]


def test_the_meter_is_chosen_by_where_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(backend="reference")
    chosen: list[tuple[str, str]] = []

    def work(device: str, dtype: str) -> Device:
        chosen.append((device, dtype))
        return Device([], [])

    monkeypatch.setattr(limits, "torch_work", work)
    for device, backend, is_measured in (
        ("cpu", "reference", False),
        ("mps", "reference", False),
        ("cuda:1", "cuda", True),
    ):
        monkeypatch.setattr(model, "spec", replace(model.spec, device=device, backend=backend))
        assert (Meter.of(model).work is not None) == is_measured
    assert chosen == [("cuda:1", model.spec.dtype)]
    with pytest.raises(UsageError, match="--cpu-time"):
        Meter.of(model, processor_time=True)


@pytest.mark.parametrize(("device", "strategy"), [("cpu", "cpu fp32"), ("cuda:1", "cuda:1 fp16")])
def test_the_package_runs_on_the_same_device(device: str, strategy: str) -> None:
    assert strategy_for(device) == strategy
