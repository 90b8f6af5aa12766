"""Warnings in workers and loaders: each is once in the driver's log."""

from __future__ import annotations

import logging
import os
import queue
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.engine.request import Reply, Request
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.planning.setups import Setup
from rwkvbatch.replay.pools.pool import Leave, Report
from rwkvbatch.replay.pools.processes import ProcessPool
from rwkvbatch.replay.pools.worker_loop import LogCollector, collecting_logs, run_worker
from rwkvbatch.replay.runner import RunOptions, execute
from rwkvbatch.replay.worker.worker import Worker
from tests.replay.fakes import FakeLoader, make_plan


class WarningLoader(FakeLoader):
    """Warns where the model is loaded, which workers share, and where an engine is made, in each of them."""

    def specs(self, setups: Any) -> Any:
        warnings.warn("the model is slow", UserWarning, stacklevel=2)
        return super().specs(setups)

    def engine(self, setup: Setup, plan: Plan, batch: int) -> Any:
        if batch > 1:  # not when the template is warmed up
            warnings.warn(f"process {os.getpid()} is slow", UserWarning, stacklevel=2)
        return super().engine(setup, plan, batch)


class WarningReply:
    def __call__(self, request: Request, reply: Reply) -> Reply:
        warnings.warn("a reply is odd", RuntimeWarning, stacklevel=2)
        time.sleep(0.02)  # so that both workers get tasks
        return reply


def make_pool(plan: Plan, *, loader: Any) -> ProcessPool:
    return ProcessPool(plan, loader, 2)


def test_warnings_of_worker_processes_are_in_the_drivers_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    pool = partial(make_pool, loader=partial(WarningLoader, change=WarningReply()))
    execute(make_plan(12, batch_size=2), FakeLoader(), RunOptions(out=tmp_path / "out", pool=pool))
    messages = [record.getMessage() for record in caplog.records if record.name == "rwkvbatch.warnings"]
    assert messages.count("the model is slow") == 1
    assert len({text for text in messages if text.startswith("process ")}) == 2
    assert messages.count("a reply is odd") == 2
    assert all(record.levelno == logging.WARNING for record in caplog.records if record.name == "rwkvbatch.warnings")
    assert capfd.readouterr().err == ""


def test_entries_collected_before_serving_are_reported() -> None:
    class Channel:
        def __init__(self) -> None:
            self.sent: list[Any] = []
            self.orders: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def send(self, obj: Any, /) -> None:
            self.sent.append(obj)

        def recv(self) -> Any:
            return self.orders.get()

    channel, logs = Channel(), LogCollector()
    with collecting_logs(logs):
        warnings.warn("early", UserWarning, stacklevel=1)
    channel.orders.put(Leave())
    plan, loader = make_plan(1), FakeLoader()
    setup = Setup(None, "auto", "auto", (0,))
    run_worker(channel, lambda: Worker(plan, loader, setup), "w", logs)
    reports = [event for event in channel.sent if isinstance(event, Report)]
    assert [entry.text for report in reports for entry in report.logs] == ["early"]


def test_warnings_are_no_longer_collected_afterwards() -> None:
    with collecting_logs(LogCollector()):
        pass
    with pytest.warns(UserWarning, match="later"):
        warnings.warn("later", UserWarning, stacklevel=1)
