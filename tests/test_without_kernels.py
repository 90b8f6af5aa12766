"""Installations without native kernels (no compiler), and on Windows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = "".join(f'{{"id": "{n}", "messages": [{{"role": "user", "content": "hi {n}"}}]}}\n' for n in range(40))
"""Of several conversations, so that each worker reports before the run ends."""


@pytest.fixture(scope="module")
def without_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for `PYTHONPATH`: in every process that has it, the native kernels cannot be imported."""
    place = tmp_path_factory.mktemp("without_kernels")
    hide = "import sys\nsys.modules['rwkvbatch._native'] = None\n"
    (place / "sitecustomize.py").write_text(hide, encoding="utf-8")
    return place


def rwkvbatch(place: Path, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rwkvbatch", *arguments],
        input=given,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(place)},
        check=False,
        timeout=120,
    )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [[], ["--workers", "2"]])
def test_a_run_warns_once_and_says_the_way_out(workers: list[str], without_kernels: Path, tmp_path: Path) -> None:
    script = tmp_path / "a.jsonl"
    script.write_text(SCRIPT if workers else SCRIPT.splitlines()[0])
    options = ["--max-tokens", "1", "--threads", "1", "--out", str(tmp_path / "r")]
    done = rwkvbatch(without_kernels, "run", str(script), *options, *workers)
    assert done.returncode == 0, done.stderr
    (said,) = [line for line in done.stderr.splitlines() if "native kernels" in line]
    assert "from a wheel" in said
    assert "Clang" in said


@pytest.mark.slow
def test_a_chat_warns_in_one_line_without_a_line_of_source(without_kernels: Path) -> None:
    done = rwkvbatch(without_kernels, "chat", "--max-tokens", "1", "--threads", "1", "--no-transcript", given="hi\n")
    assert done.returncode == 0, done.stderr
    (said,) = [line for line in done.stderr.splitlines() if "native kernels" in line]
    assert said.startswith("warning: ")
    assert "SlowBackendWarning" not in done.stderr
    assert ".py" not in done.stderr


def test_windows_is_pointed_to_wsl() -> None:
    program = "import sys; sys.platform = 'win32'; import rwkvbatch"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert "WSL" in last
