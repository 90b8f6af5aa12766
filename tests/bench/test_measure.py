"""Measurements of the benchmark command."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from rwkvbatch.bench import measure, workloads
from rwkvbatch.bench.limits import Rates, bytes_beyond_caches
from rwkvbatch.bench.measure import Figure, Plan, figure_of, run_benchmark, write_random
from rwkvbatch.bench.package import rwkv_package
from rwkvbatch.bench.workloads import Workload
from rwkvbatch.errors import CheckpointError, RwkvBatchError, UsageError
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.model.load import load_model
from rwkvbatch.model.network.rwkv7_model import Rwkv7Model
from rwkvbatch.model.weights.safetensors import save_tensors

RATES = Rates(read=10e9, fma=100e9)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "tiny.safetensors"
    save_tensors(path, random_tensors(1, 64, 300, dtype=torch.bfloat16))
    return path


def workload(kind: str, size: int, *, operations: float = 0.0, memory_bytes: float = 0.0) -> Workload:
    return Workload("some", kind, size, lambda: 0.0, operations, memory_bytes)  # pyright: ignore[reportArgumentType]


def test_a_step_that_reads_more_than_it_multiplies_is_bound_by_memory() -> None:
    # 1 GB at 10 GB/s takes 0.1 s, 5 GFLOP at 100 GFLOP/s 0.05 s.
    figure = figure_of(workload("decode", 1, operations=5e9, memory_bytes=1e9), [0.2, 0.4, 0.3], [], [RATES] * 3)
    assert figure.limit == "memory"
    assert figure.share == pytest.approx(0.1 / 0.3)
    assert (figure.median, figure.best) == (pytest.approx(1 / 0.3), pytest.approx(5.0))


def test_a_round_is_held_against_what_the_machine_could_do_just_then() -> None:
    rates = [RATES, Rates(read=40e9, fma=100e9), Rates(read=20e9, fma=100e9)]
    figure = figure_of(workload("decode", 1, operations=1.0, memory_bytes=1e9), [0.125, 0.05, 0.1], [], rates)
    assert figure.share == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("caches", "expected"),
    [
        ([("0-7", "32768K\n")], 256 << 20),
        ([("0-1", "307200K\n"), ("0-1", "307200K\n")], 600 << 20),
        ([("0-7", "131072K\n"), ("8-15", "131072K\n")], 512 << 20),
        ([("0", "unknown")], 256 << 20),
        ([], 256 << 20),
    ],
)
def test_memory_is_read_in_an_array_that_no_cache_holds(
    caches: list[tuple[str, str]], expected: int, tmp_path: Path
) -> None:
    for number, (shared_by, size) in enumerate(caches):
        folder = tmp_path / f"cpu{number}" / "cache" / "index3"
        folder.mkdir(parents=True)
        (folder / "shared_cpu_list").write_text(shared_by)
        (folder / "size").write_text(size)
    assert bytes_beyond_caches(tmp_path) == expected


def test_many_rows_are_bound_by_arithmetic() -> None:
    figure = figure_of(workload("decode", 64, operations=320e9, memory_bytes=1e9), [4.0], [], [RATES])
    assert figure.limit == "fma"
    assert figure.share == pytest.approx(0.8)
    assert figure.median == pytest.approx(16.0)


def test_the_package_decodes_one_row_and_we_count_all_of_ours() -> None:
    figure = figure_of(workload("decode", 64), [2.0], [0.5], [RATES])
    assert figure.package == pytest.approx(2.0)
    assert figure.ratio == pytest.approx(16.0)


def test_a_time_is_better_when_it_is_smaller() -> None:
    figure = figure_of(workload("sample", 10), [0.001], [0.004], [])
    assert (figure.unit, figure.median) == ("ms/row", pytest.approx(0.1))
    assert figure.ratio == pytest.approx(40.0)
    assert figure.share is None


def test_everything_is_measured_once_a_round(model_file: Path) -> None:
    said: list[str] = []
    plan = Plan(rows=(1, 3), prompt_tokens=9, rounds=2)
    report = run_benchmark(model_file, plan, backend="reference", threads=1, notify=said.append)
    names = [figure.name for figure in report.figures]
    assert names == ["decode, 1 row", "decode, 3 rows", "prompt, 9 tokens", "sampling with penalties", "tokenizer"]
    assert all(figure.best > 0 and figure.median > 0 for figure in report.figures)
    assert report.limits is None
    assert report.loading.checkpoint_mb == pytest.approx(model_file.stat().st_size / 1e6)
    assert said == ["loading", "round 1 of 2", "round 2 of 2"]


def dying_clock() -> float:
    """For the package's process: its end in the middle of a measurement."""
    os._exit(3)


def test_a_file_that_the_package_cannot_load_is_the_loader_s_error(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"no weights")
    with (
        pytest.raises(CheckpointError, match=r"x\.pth: not a checkpoint"),
        rwkv_package(tmp_path / "x.pth", 1, dying_clock, "cpu fp32"),
    ):
        pass


def test_a_package_that_ends_early_is_noticed(model_file: Path) -> None:
    with (
        rwkv_package(model_file, 1, dying_clock, "cpu fp32") as measure_package,
        pytest.raises(RwkvBatchError, match="ended early"),
    ):
        measure_package("decode", 1)


def test_weights_that_cannot_be_made_are_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="random checkpoint of 1x64"):
        write_random("1x64", tmp_path / "nowhere")


@pytest.mark.parametrize("strategy", ["cpu", "cpu int8"])
def test_the_bytes_of_a_step_are_those_that_are_read(
    strategy: str, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = pytest.importorskip("rwkvbatch.model.ops.cpu")
    counted: list[float] = []

    def noted(workload: Workload, *others: Any) -> Figure:
        counted.append(workload.memory_bytes)
        return figure_of(workload, *others)

    monkeypatch.setattr(measure, "figure_of", noted)
    report = run_benchmark(model_file, Plan(rows=(2,), prompt_tokens=4, rounds=1), strategy=strategy, threads=1)
    assert report.dtype == ("int8" if strategy == "cpu int8" else "bf16")
    model = load_model(model_file, strategy, threads=1)
    assert isinstance(model, Rwkv7Model)
    assert isinstance(model.ops, native.CpuOps)
    states = 2 * model.spec.state_bytes  # read and written
    assert counted == [model.ops.step_bytes + 2 * states, model.ops.step_bytes + states, 0, 0]


def test_native_kernels_are_held_against_the_machine_and_the_package(model_file: Path) -> None:
    pytest.importorskip("rwkvbatch._native")
    plan = Plan(rows=(1,), prompt_tokens=4, rounds=1, against_package=True)
    report = run_benchmark(model_file, plan, threads=1)
    assert report.backend == "cpu"
    assert report.limits is not None
    assert report.limits.read_gb_s > 0
    assert report.limits.fma_gflop_s > 0
    assert all(figure.ratio is not None and figure.ratio > 0 for figure in report.figures)
    assert [figure.limit is None for figure in report.figures] == [False, False, True, True]


@pytest.mark.parametrize(("skipped", "mean"), [([0, 0, 0], 0.0), ([100, 40, 60], 50.0)])
def test_weights_that_a_step_skips_are_counted_after_its_first_one(
    skipped: list[int], mean: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    native, steps = SimpleNamespace(skipped_bytes=7), iter(skipped)
    monkeypatch.setattr(workloads, "_SKIPPING_STEPS", 2)

    def once() -> float:
        native.skipped_bytes += next(steps)
        return 0.0

    assert workloads._skipped_bytes(cast("Any", SimpleNamespace(native=native)), once) == mean


@pytest.mark.parametrize(("device", "waited"), [("cpu", []), ("cuda:1", ["cuda:1"]), ("mps", ["mps"])])
def test_the_clock_waits_for_the_work_of_a_device(
    device: str, waited: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    monkeypatch.setattr("torch.cuda.synchronize", found.append)
    monkeypatch.setattr("torch.mps.synchronize", lambda: found.append("mps"))
    workloads._time_when_done(device)
    assert found == waited
