"""Runs in worker processes, and the state of processes in `/proc`."""

from __future__ import annotations

import subprocess
from functools import partial
from pathlib import Path
from typing import Any

from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.pools.processes import ProcessPool
from rwkvbatch.replay.runner import RunOptions, RunResult, execute
from tests.replay.fakes import FakeLoader


def run_in_processes(
    directory: Path | None,
    plan: Plan,
    change: Any = None,
    *,
    make_loader: Any = None,
    num_workers: int = 2,
    **options: Any,
) -> RunResult:
    """A run over `FakeLoader(change=change)`, or over what `make_loader` returns."""
    pool = partial(process_pool, make_loader=make_loader or partial(FakeLoader, change=change), num_workers=num_workers)
    return execute(plan, FakeLoader(), RunOptions(out=directory, pool=pool, **options))


def process_pool(plan: Plan, *, make_loader: Any, num_workers: int) -> ProcessPool:
    return ProcessPool(plan, make_loader, num_workers)


def children_of(process_id: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process_id)], capture_output=True, text=True)
    return [int(word) for word in listed.stdout.split() if Path(f"/proc/{word}").exists()]


def is_alive(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
