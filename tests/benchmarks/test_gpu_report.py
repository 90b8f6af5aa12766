"""`make gpu` without a GPU: its orchestration with made-up parts, and its parts on the CPU."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_report
from benchmarks.gpu_parts import RepeatedLayers, invariance, reference_of, speed, versions
from benchmarks.gpu_report import PARTS, Part, Result, main, page, run_parts
from rwkvbatch.bench.limits import Meter
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors


def python(name: str, code: str, limit_s: float = 20.0, **more) -> Part:
    return Part(name, (sys.executable, "-c", code), limit_s, **more)


def run(*parts: Part, gpu: bool = True, seconds: float = 60.0) -> list[Result]:
    return run_parts(parts, gpu=gpu, seconds=seconds, notify=lambda _: None)


def test_a_failure_in_one_part_does_not_stop_the_rest() -> None:
    found = run(
        python("broken", "import sys; print('half'); sys.exit('no such device')"),
        python("wrong", 'print(\'{"ok": false, "why": 1}\')'),
        Part("missing", ("/no/such/program",), 20),
        python("fine", "print('warming up'); print('{\"ok\": true, \"speed\": 7}')"),
        python("text", "print('a table')"),
    )
    assert [result.outcome for result in found] == ["failed", "failed", "failed", "ok", "ok"]
    assert "half" in found[0].printed
    assert "no such device" in found[0].printed
    assert found[3].found == {"ok": True, "speed": 7}
    assert found[4].printed == "a table\n"


def test_a_part_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    child = f"import time, pathlib; time.sleep(1.5); pathlib.Path({str(tmp_path / 'lives')!r}).touch()"
    hanging = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    (result,) = run(python("hangs", hanging, limit_s=1.0))
    assert result.outcome == "timed out"
    time.sleep(2)
    assert not (tmp_path / "lives").exists()


def test_the_parts_share_the_time_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_report, "LEAST_SECONDS", 0.5)
    first, second = run(python("slow", "import time; time.sleep(60)"), python("late", "1"), seconds=1.0)
    assert first.outcome == "timed out"
    assert second.outcome == "skipped"


def test_without_a_gpu_only_what_needs_none_is_run() -> None:
    parts = [python("a", "1", where="all"), python("b", "1", where="gpu"), python("c", "1", where="no gpu")]
    assert [result.name for result in run(*parts, gpu=False)] == ["a", "c"]
    assert [result.name for result in run(*parts)] == ["a", "b"]


def test_all_parts_fit_into_ten_minutes_at_their_usual_time_and_none_is_unlimited() -> None:
    assert all(0 < part.limit_s <= 150 for part in PARTS)
    assert len({part.name for part in PARTS}) == len(PARTS)


FIGURE = {"name": "decode, 1 row", "median": 840.0, "best": 850.0, "unit": "tokens/s", "share": 0.77, "limit": "memory"}
VERIFIED = {"parts": [{"name": "prompt", "rms": None, "largest": 1.0, "same_token": 0.5, "within": False}]}


def test_the_page_has_figures_failures_and_what_was_printed() -> None:
    bench = {"ok": True, "figures": [FIGURE], "memory": {"weights_gb": 2.8, "peak_gb": 5.0}, "limits": None}
    verified = {"ok": False, "with graphs": VERIFIED, "without graphs": VERIFIED}
    text = page(
        [
            Result("bench", "ok", 12.0, bench),
            Result("verify", "failed", 1.0, verified),
            Result("few rows", "ok", 2.0, printed="rows few.py"),
        ],
        gpu=True,
    )
    assert "| decode, 1 row | 840.0 | 850.0 | tokens/s | 77% of memory |" in text
    assert "| without graphs | prompt | not finite | 1 | 50.0% | **no** |" in text
    assert "```text\nrows few.py\n```" in text
    assert "no NVIDIA GPU" not in text
    assert "no NVIDIA GPU" in page([], gpu=False)


def test_both_files_are_written_and_a_failure_is_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_report, "PARTS", (python("good", "print('{\"ok\": true}')"), python("bad", "1 / 0")))
    monkeypatch.setattr(gpu_report, "has_gpu", lambda: True)
    monkeypatch.setattr("sys.argv", ["gpu_report.py", "--out", str(tmp_path / "gpu-report")])
    assert main() == 1
    report = json.loads((tmp_path / "gpu-report.json").read_text())
    assert [part["outcome"] for part in report["parts"]] == ["ok", "failed"]
    assert "ZeroDivisionError" in (tmp_path / "gpu-report.md").read_text()


@pytest.fixture(scope="module")
def layers() -> RepeatedLayers:
    return RepeatedLayers(3, 64, torch.float32, vocab_size=100)


def test_repeated_layers_have_the_tensors_of_a_checkpoint_of_that_shape(layers: RepeatedLayers) -> None:
    expected = random_tensors(3, 64, 100, dtype=torch.float32)
    assert set(layers) == set(expected)
    assert all(layers[name].shape == expected[name].shape for name in layers)
    assert layers["blocks.2.att.key.weight"] is layers["blocks.1.att.key.weight"]
    assert RepeatedLayers(1, 64, vocab_size=100).keys() == random_tensors(1, 64, 100).keys()


def test_the_parts_run_on_any_model(layers: RepeatedLayers) -> None:
    model = reference_of(layers)
    assert model.spec.num_parameters == sum(tensor.numel() for tensor in random_tensors(3, 64, 100).values())
    figures = speed(model, Meter(None), rows=(1, 3), prompt_tokens=9, batch=(2, 5), rounds=1)
    assert [figure.name for figure in figures] == [
        "decode, 1 row",
        "decode, 3 rows",
        "prompt, 9 tokens",
        "prompts, 2 x 5 tokens",
    ]
    assert all(figure.median > 0 for figure in figures)
    assert invariance(model, (0, 2))["same_beside"].keys() == {"2"}
    assert versions()["torch"] == torch.__version__


def test_a_sequence_that_its_neighbours_change_is_found(layers: RepeatedLayers) -> None:
    model = reference_of(layers)
    step = model.step

    def disturbed(batch, pool):
        return step(batch, pool) * (1 + 1e-6 * (len(batch.slots) - 1))

    model.step = disturbed
    assert invariance(model, (0, 2)) == {"ok": False, "same_beside": {"2": False}}
