"""Strategy strings: parsing and error messages."""

from __future__ import annotations

import pytest
import torch

from rwkvbatch.errors import UsageError
from rwkvbatch.model.strategy import Strategy, parse_strategy, parse_upstream_strategy


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("text", "device", "precision"),
    [
        ("cpu", "cpu", None),
        ("cpu fp32", "cpu", "fp32"),
        ("  cpu   bf16 ", "cpu", "bf16"),
        ("cpu int8", "cpu", "int8"),
        ("cpu w8a8", "cpu", "w8a8"),
        ("cpu  int4", "cpu", "int4"),
        ("cuda fp16", "cuda", "fp16"),
        ("cuda:1 bf16", "cuda:1", "bf16"),
        ("cuda", "cuda", None),
        ("auto", "cuda", None),
    ],
)
@pytest.mark.usefixtures("two_gpus")
def test_device_and_precision_are_read(text: str, device: str, precision: str | None) -> None:
    assert parse_strategy(text) == Strategy(device, precision)  # pyright: ignore[reportArgumentType]


@pytest.mark.usefixtures("two_gpus")
def test_fixed_rows_are_read_for_nvidia_gpus_only() -> None:
    assert parse_strategy("cuda:1 fp16  rows=64") == Strategy("cuda:1", "fp16", 64)
    assert parse_strategy("cuda rows=1").fixed_rows == 1
    with pytest.raises(UsageError, match="rows= in --strategy is for NVIDIA GPUs"):
        parse_strategy("cpu fp32 rows=64")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_int8_is_refused_on_gpus_with_what_to_use(device: str) -> None:
    with pytest.raises(UsageError, match=f"int8 in --strategy is for the CPU; got '{device} int8'") as caught:
        parse_strategy(f"{device} int8")
    assert caught.value.hint == f'use "cpu int8", or "{device} fp16" on the GPU'


@pytest.mark.parametrize("generation", ["7", "6.0"])
def test_int8_is_no_strategy_of_the_package_and_the_error_says_what_is(generation: str) -> None:
    with pytest.raises(UsageError, match="--strategy must be one of") as caught:
        parse_upstream_strategy("cpu int8", generation)
    assert '"cpu fp32i8"' in str(caught.value.hint)


def test_an_apple_gpu_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no Apple GPU was found"):
        parse_strategy("mps fp16")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert parse_strategy("mps fp16") == Strategy("mps", "fp16")


@pytest.mark.usefixtures("no_gpu")
def test_auto_is_the_cpu_where_there_is_no_gpu() -> None:
    assert parse_strategy("auto") == Strategy("cpu", None)
    assert parse_upstream_strategy("auto", "6.0") == "cpu fp32"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gpu",
        "cpu fp8",
        "CPU fp32",
        "cpu:0 fp32",
        "cuda:x fp16",
        "cpu fp32 extra",
        "cpu\x00",
        "cuda rows=0",
        "cuda rows",
    ],
)
def test_unknown_strategy_lists_what_is_allowed(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_strategy(text)
    assert '"cpu bf16"' in str(caught.value)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["cuda fp16 *10 -> cpu fp32", "cuda fp16i8", "cpu fp32 *3+"])
def test_strategy_of_the_package_points_to_upstream(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_strategy(text)
    assert "--backend upstream" in str(caught.value.hint)


@pytest.mark.usefixtures("no_gpu")
def test_gpu_that_is_not_there_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no CUDA device was found"):
        parse_strategy("cuda fp16")


@pytest.mark.usefixtures("two_gpus")
def test_gpu_of_too_high_a_number_is_a_usage_error() -> None:
    assert parse_strategy("cuda:1 fp16").device == "cuda:1"
    with pytest.raises(UsageError, match="'cuda:2', but found 2, numbered from 0"):
        parse_strategy("cuda:2 fp16")
    with pytest.raises(UsageError, match="'cuda:7', but found 2"):
        parse_upstream_strategy("cpu fp32 *2 -> cuda:7 fp16", "4")


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cuda fp16 *10->cpu fp32", "cuda fp16 *10 -> cpu fp32"),
        ("cuda   fp16i8 *0+ ->  cpu fp32 *1", "cuda fp16i8 *0+ -> cpu fp32 *1"),
        ("cuda:0 fp16 *3 -> cuda:1 bf16", "cuda:0 fp16 *3 -> cuda:1 bf16"),
        ("auto", "cuda fp16"),
        ("cuda", "cuda fp16"),
        ("cpu", "cpu fp32"),
    ],
)
def test_strategies_of_the_package_are_normalised(text: str, expected: str) -> None:
    assert parse_upstream_strategy(text, "4") == expected


@pytest.mark.parametrize("text", ["", "->", "cpu fp32 ->", "cuda fp16 *x", "cpu fp32 *1 cuda fp16"])
def test_bad_strategies_of_the_package_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--strategy must be one of"):
        parse_upstream_strategy(text, "4")
