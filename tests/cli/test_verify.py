"""`rwkvbatch model verify`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rwkvbatch.bench import verify
from rwkvbatch.cli.app import invoke
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.model.weights.safetensors import save_tensors


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("verify") / "tiny.safetensors"
    save_tensors(path, random_tensors(1, 32, 60, 16, dtype=torch.bfloat16))
    return path


def test_the_same_network_is_said_in_words_on_80_columns(
    model_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    arguments = ["model", "verify", str(model_file.with_suffix("")), "--strategy", "cpu"]
    assert invoke(arguments) == 0
    out, err = capsys.readouterr()
    assert "The same network" in out
    assert "decode, 24 rows" in out
    assert "too much" not in out
    assert "reference: prompt at once" in err
    assert "cpu on cpu: decode, 1 row" in err


def test_json_holds_every_part_and_quiet_says_nothing(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["model", "verify", str(model_file), "--strategy", "cpu", "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["same"] is True
    assert report["limit"] == {"rms": 0.001, "largest": 0.01}
    assert [part["name"] for part in report["parts"]][:2] == ["prompt at once", "prompt in pieces"]
    assert sum(part["rows"] for part in report["parts"]) == 552
    assert err == ""


def test_another_network_is_exit_code_1_and_the_parts_are_named(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.safetensors"
    save_tensors(other, random_tensors(1, 32, 60, 16, seed=9, dtype=torch.bfloat16))
    load: Callable[..., Any] = verify.load_model

    def load_wrongly(path: str, strategy: str, backend: str, threads: int | None) -> Any:
        return load(path if backend == "reference" else other, strategy, backend, threads=threads)

    monkeypatch.setattr(verify, "load_model", load_wrongly)
    assert invoke(["model", "verify", str(model_file), "--strategy", "cpu", "--quiet"]) == 1
    out = capsys.readouterr().out
    assert "NOT the same network" in out
    assert "too much" in out


def test_random_weights_are_made_and_removed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths: list[Path] = []

    def found_file(path: str, **_: Any) -> verify.Verification:
        paths.append(Path(path))
        assert paths[0].stat().st_size > 2 * 2 * 65536 * 64
        return verify.Verification(path, 1, "cpu", "cpu", "bf16", "fp32", verify.LIMITS["fp32"], (), True)

    monkeypatch.setattr(verify, "verify_model", found_file)
    assert invoke(["model", "verify", "--random", "1x64", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == str(paths[0])
    assert not paths[0].exists()


@pytest.mark.parametrize("options", [["--strategy", "cuda fp16"], ["--backend", "cuda"], ["--strategy", "fp99"]])
def test_a_strategy_that_cannot_be_used_is_refused_before_the_reference_is_computed(
    options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert invoke(["model", "verify", *options]) == 2
    assert "reference" not in capsys.readouterr().err


def test_a_model_and_a_random_one_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["model", "verify", "x.pth", "--random", "1x64"]) == 2
    assert "--random" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["model", "verify", "nowhere.pth"]) == 3
    assert "nowhere.pth" in capsys.readouterr().err


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["model", "verify", "--help"]) == 0
    assert 'rwkvbatch model verify NAME --strategy "cuda fp16"' in capsys.readouterr().out
