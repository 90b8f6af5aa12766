"""`--adapter` of run, model info and model convert."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rwkvbatch.cli.app import invoke
from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
from rwkvbatch.model.model_files import BUNDLED_MODEL


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    with open_checkpoint(BUNDLED_MODEL) as checkpoint:
        out, width = checkpoint["blocks.0.att.output.weight"].shape
    generator = torch.Generator().manual_seed(1)
    path = tmp_path / "lora.pth"
    made = {"lora_A": torch.randn(4, width, generator=generator), "lora_B": torch.randn(out, 4, generator=generator)}
    torch.save({f"blocks.0.att.output.{name}": part.bfloat16() for name, part in made.items()}, path)
    return path


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.jsonl"
    path.write_text('{"id": "a", "messages": [{"role": "user", "content": "My name is Ada."}]}\n')
    return path


def run(*arguments: str) -> int:
    return invoke(["run", *arguments, "--quiet", "--max-tokens", "6"])


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_a_grid_varies_the_adapter_and_the_run_cannot_go_on_with_another(
    adapter: Path, script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run(str(script), "--adapter", f"{adapter} alpha=64,none", "--out", str(out)) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    cells = manifest["identity"]["cells"]
    assert list(cells) == ["adapter=lora.pth_alpha_64", "adapter=none"]
    assert len({cell["weights_sha256"] for cell in cells.values()}) == 2
    assert [model.get("adapter") for model in manifest["about"]["models"]] == [None, f"{adapter} alpha=64"]
    with_adapter, without = (row["reply"] for row in rows(out))
    assert with_adapter != without

    plain = tmp_path / "plain"
    assert run(str(script), "--out", str(plain)) == 0
    assert rows(plain)[0]["reply"] == without
    assert "adapter" not in json.loads((plain / "manifest.json").read_text())["identity"]["cells"]["base"]
    capsys.readouterr()
    assert run(str(script), "--out", str(plain), "--adapter", f"{adapter} alpha=64") == 3
    assert "weights" in capsys.readouterr().err


def test_convert_writes_the_merged_checkpoint(adapter: Path, script: Path, tmp_path: Path) -> None:
    merged, option = tmp_path / "merged.safetensors", f"{adapter} alpha=64"
    assert invoke(["model", "convert", str(BUNDLED_MODEL), str(merged), "--adapter", option, "--quiet"]) == 0
    assert run(str(script), "--model", str(merged), "--out", str(tmp_path / "a")) == 0
    assert run(str(script), "--adapter", option, "--out", str(tmp_path / "b")) == 0
    assert rows(tmp_path / "a")[0]["reply"] == rows(tmp_path / "b")[0]["reply"]


def test_info_says_what_is_merged(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["model", "info", "--adapter", f"{adapter} alpha=64", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["undone"] == ["the LoRA adapter 'lora.pth' merged into 1 matrices"]


def test_a_missing_alpha_is_one_message(adapter: Path, script: Path, tmp_path: Path, capsys) -> None:
    assert run(str(script), "--adapter", str(adapter), "--out", str(tmp_path / "run")) == 3
    message = capsys.readouterr().err
    assert "either LoRA or PiSSA" in message
    assert "alpha=NUMBER" in message
    assert "Traceback" not in message
    assert not (tmp_path / "run" / "results.jsonl").exists()


def test_a_missing_file_is_named(script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(script), "--adapter", "nowhere.pth alpha=3", "--out", str(tmp_path / "run")) == 3
    assert "nowhere.pth: there is no such file" in capsys.readouterr().err
    assert run(str(script), "--adapter", "nowhere.pth alpha=x", "--out", str(tmp_path / "run")) == 2


def test_score_takes_it(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("My name is Ada.")
    found: list[str] = []
    for option in ("none", f"{adapter} alpha=64"):
        assert invoke(["score", str(text), "--adapter", option, "--json", "--quiet"]) == 0
        found.append(capsys.readouterr().out)
    assert found[0] != found[1]


def test_an_error_names_the_variable_that_gave_it(
    script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RWKVBATCH_ADAPTER", "nowhere.pth alpha=3")
    assert run(str(script), "--out", str(tmp_path / "run")) == 3
    assert "RWKVBATCH_ADAPTER" in capsys.readouterr().err
