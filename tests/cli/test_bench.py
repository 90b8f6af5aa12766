"""The `rwkvbatch bench` command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rwkvbatch.bench import measure
from rwkvbatch.bench.measure import Plan, run_benchmark
from rwkvbatch.cli.app import invoke
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.model.weights.safetensors import save_tensors


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "tiny.safetensors"
    save_tensors(path, random_tensors(1, 64, 300, dtype=torch.bfloat16))
    return path


def test_json_holds_the_whole_report(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["bench", "--model", str(model_file), "--quick", "--json", "--threads", "1"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["model"] == str(model_file)
    assert report["rounds"] == 3
    assert [figure["name"] for figure in report["figures"]][:3] == [
        "decode, 1 row",
        "decode, 8 rows",
        "decode, 64 rows",
    ]
    assert "round 3 of 3" in err


def test_the_table_names_every_figure_on_80_columns(
    model_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert invoke(["bench", "--model", str(model_file), "--quick", "--quiet", "--threads", "1"]) == 0
    out, err = capsys.readouterr()
    for name in (
        "decode, 64 rows",
        "prompt, 512 tokens",
        "sampling with penalties",
        "tokenizer",
        "tokens/s",
        "1 thread,",
    ):
        assert name in out
    assert err == ""


@pytest.mark.parametrize(
    ("limit", "share", "explained"),
    [("memory", 0.9, False), ("memory", 1.004, False), ("memory", 1.4, True), ("fma", 1.4, False), (None, None, False)],
)
def test_a_share_above_the_memory_s_limit_is_explained(
    limit: str | None,
    share: float | None,
    explained: bool,
    model_file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = run_benchmark(str(model_file), Plan(rows=(1,), rounds=1), threads=1)
    figures = [replace(report.figures[0], share=share, limit=limit)]
    monkeypatch.setattr(measure, "run_benchmark", lambda *_, **__: replace(report, figures=figures))
    assert invoke(["bench", "--model", str(model_file), "--quick", "--quiet"]) == 0
    assert ("More than 100%: the weights stay in" in capsys.readouterr().out) == explained


def test_a_random_checkpoint_is_made_measured_and_removed(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["bench", "--random", "1x64", "--quick", "--json", "--quiet", "--threads", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["parameters"] > 2 * 65536 * 64
    assert not Path(report["model"]).exists()


@pytest.mark.parametrize("size", ["12", "0x64", "2x100", "axb", "2x-64"])
def test_a_size_that_cannot_be_is_a_usage_error(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["bench", "--random", size]) == 2
    assert "LAYERSxWIDTH" in capsys.readouterr().err


def test_a_model_and_a_random_one_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["bench", "--random", "1x64", "--model", "x.pth"]) == 2
    assert "--model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--random", "1x64", "--sparsity", "1"], "[0, 1), got 1"),
        (["--random", "1x64", "--sparsity", "-0.5"], "[0, 1), got -0.5"),
        (["--sparsity", "0.5"], "--random LAYERSxWIDTH"),
        (["--cpu-time", "--threads", "2"], "--cpu-time is the time of one thread, got --threads 2"),
    ],
)
def test_a_sparsity_that_cannot_be_is_a_usage_error(
    options: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["bench", *options]) == 2
    assert named in " ".join(capsys.readouterr().err.split())
