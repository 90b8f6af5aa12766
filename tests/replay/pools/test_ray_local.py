"""Whole runs of the command line program on a cluster that `--ray local` starts and stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import rwkvbatch
from rwkvbatch.replay.runner import RunResult
from tests.replay.crash_harness.processes import wait_until
from tests.replay.pools.worker_processes import children_of

pytest.importorskip("ray", reason="Ray is not installed")

ROOT = Path(__file__).parents[3]


def actors_of(process: int) -> set[int]:
    """Process ids of the actors of the cluster that `process` has started."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process has ended
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_text()
    found = {child for child, name in names.items() if name.startswith("ray::RayWorker")}
    return {child for child in found if parents.get(parents[child]) == process}


def test_a_run_on_a_local_cluster_is_interrupted_by_sigint_and_resumed_without_ray(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"temperature": 1.0, "limit": 6, "max_tokens": 24, "repeats": 3}
    command = [
        sys.executable, "-m", "rwkvbatch", "run", "datasets/demo.jsonl", "--temp", "1", "--limit", "6",
        "--max-tokens", "24", "--repeats", "3", "--batch-size", "1", "--ray", "local", "--workers", "1",
        "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=pipe, stderr=pipe, text=True)
    results = tmp_path / "run" / "results.jsonl"
    assert wait_until(lambda: process.poll() is not None or (results.exists() and results.stat().st_size > 0), 240)
    (actor,) = actors_of(process.pid)
    os.kill(actor, signal.SIGKILL)
    assert wait_until(lambda: process.poll() is not None or bool(actors_of(process.pid) - {actor}), 240)
    os.killpg(process.pid, signal.SIGINT)
    output, messages = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "rwkvbatch run" in messages  # the command that resumes it
    for word in ("raylet", "WARNING", "INFO", "usage", "Traceback"):
        assert word not in messages
        assert word not in output
    num_rows = len(results.read_bytes().splitlines())
    expected = rwkvbatch.run(ROOT / "datasets/demo.jsonl", **settings)
    assert 0 < num_rows < expected.summary.rows
    whole = rwkvbatch.run(ROOT / "datasets/demo.jsonl", out=tmp_path / "run", **settings)
    assert plain_rows(whole) == plain_rows(expected)
    assert len(plain_rows(whole)) == expected.summary.planned


def plain_rows(result: RunResult) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.as_dict().items() if key != "timing"} for row in result.rows()]


@pytest.mark.slow
def test_a_run_whose_ray_node_is_killed_exits_with_5_and_the_command_to_resume(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["run", "datasets/demo.jsonl", "--ray", "local", "--workers", "2", "--repeats", "400", "--out", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "rwkvbatch", *command], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (out / "results.jsonl").exists() or not (out / "results.jsonl").stat().st_size:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (raylet,) = [n for n in children_of(process.pid) if Path(f"/proc/{n}/comm").read_text() == "raylet\n"]
        os.kill(raylet, signal.SIGKILL)
        _, messages = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 5
    assert "To continue: rwkvbatch run" in messages
    assert json.loads((out / "status.json").read_text())["state"] == "failed"
