from __future__ import annotations

import io
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from rwkvbatch.engine.request import PrefillProgress
from rwkvbatch.replay.progress import (
    BarObserver,
    Counts,
    LineObserver,
    Progress,
    StepLog,
    WorkerProgress,
    duration,
    progress_line,
)
from rwkvbatch.results.folder import Folder
from rwkvbatch.results.status import StatusFile

PROGRESS = Progress(
    rows_done=30,
    rows_total=100,
    failures=0,
    failed_checks=0,
    active=4,
    reply_tokens=5000,
    elapsed_s=10.0,
    seconds_left=23.4,
)


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


class TestCounts:
    def test_the_time_left_is_estimated_from_this_session_s_rows(self) -> None:
        clock = Clock()
        counts = Counts(rows_before=60, clock=clock)
        counts.reply_tokens = 500
        clock.now += 10
        progress = counts.progress(rows_done=80, rows_total=100)
        assert progress.seconds_left == pytest.approx(10.0)
        assert progress.tokens_per_s == pytest.approx(50.0)

    def test_a_long_text_in_progress_counts_by_the_share_that_was_read(self) -> None:
        clock = Clock()
        counts = Counts(clock=clock)
        counts.workers = {n: WorkerProgress("w").after(1, (), PrefillProgress(1, 25, 100)) for n in range(2)}
        clock.now += 10
        progress = counts.progress(rows_done=0, rows_total=2)
        assert progress.prefill == PrefillProgress(2, 50, 200)
        assert progress.seconds_left == pytest.approx(30.0)

    def test_a_continued_race_counts_no_negative_rows_to_do(self) -> None:
        lines: list[str] = []
        progress = Counts(741, may_grow=True, clock=Clock()).progress(741, 104)
        LineObserver(lines.append).started(progress)
        assert lines == ["0 of at least 741 rows to do"]
        assert progress_line(progress).startswith("741/741 rows")

    def test_a_run_that_may_grow_has_no_estimate(self) -> None:
        clock = Clock()
        counts = Counts(clock=clock)
        clock.now += 10
        assert counts.progress(50, 100).seconds_left == pytest.approx(10.0)
        counts.may_grow = True
        assert counts.progress(50, 100).seconds_left is None

    def test_without_a_finished_row_there_is_no_estimate(self) -> None:
        assert Counts(60, clock=Clock()).progress(60, 100).seconds_left is None

    def test_a_clock_set_back_gives_no_negative_time(self) -> None:
        clock = Clock()
        counts = Counts(reply_tokens=10, clock=clock)
        clock.now -= 100
        progress = counts.progress(5, 100)
        assert (progress.elapsed_s, progress.tokens_per_s) == (0.0, 0.0)


class TestLines:
    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            (0.0, "0 s"),
            (0.0004, "0.4 ms"),
            (0.0251, "25 ms"),
            (0.099, "99 ms"),
            (0.0996, "0.1 s"),
            (0.4, "0.4 s"),
            (9.94, "9.9 s"),
            (9.96, "10 s"),
            (59, "59 s"),
            (185, "3 min 5 s"),
            (7800, "2 h 10 min"),
        ],
    )
    def test_durations_are_rounded_with_their_unit(self, seconds: float, text: str) -> None:
        assert duration(seconds) == text

    def test_a_line_has_rows_speed_time_left_and_failures(self) -> None:
        assert progress_line(PROGRESS) == "30/100 rows, 500 tokens/s, 23 s left"
        failing = replace(PROGRESS, failures=2, failed_checks=3)
        assert progress_line(failing).endswith("23 s left, 2 failed, 3 checks not passed")
        continued = replace(failing, rows_before=20)
        assert progress_line(continued).endswith("23 s left, 2 failed, 3 checks not passed in this session")

    def test_long_texts_in_progress_are_in_the_line_the_bar_and_the_status(self) -> None:
        reading = replace(
            PROGRESS, rows_done=0, rows_total=1, reply_tokens=0, prefill=PrefillProgress(1, 12_400, 45_300_000)
        )
        assert progress_line(reading) == "0/1 rows, 12,400 of 45,300,000 tokens of a long text read, 23 s left"
        assert reading.as_dict()["prefill"] == {"num_texts": 1, "num_read": 12_400, "num_tokens": 45_300_000}
        assert "prefill" not in PROGRESS.as_dict()
        observer = BarObserver(Console(file=io.StringIO(), width=100))
        observer.moved(replace(reading, prefill=PrefillProgress(1, 50, 100)))
        assert observer.tasks[0].completed == 0.5

    def test_a_line_is_written_every_minute(self) -> None:
        clock, lines = Clock(), list[str]()
        observer = LineObserver(lines.append, clock)
        observer.started(PROGRESS)
        for _ in range(300):
            clock.now += 1
            observer.moved(PROGRESS)
        observer.ended(PROGRESS)
        assert lines[0] == "70 of 100 rows to do"
        assert len(lines) == 1 + 5 + 1

    def test_the_bar_shows_rows_and_speed(self) -> None:
        stream = io.StringIO()
        observer = BarObserver(Console(file=stream, force_terminal=True, width=100))
        observer.started(PROGRESS)
        observer.moved(replace(PROGRESS, rows_done=60))
        observer.ended(replace(PROGRESS, rows_done=100))
        assert "500 tokens/s" in stream.getvalue()
        assert "100/100 rows" in stream.getvalue()


def with_workers(count: int) -> Progress:
    workers = tuple(WorkerProgress(f"worker {n}", 2, 10 * n, 100 * n) for n in range(count))
    return replace(PROGRESS, workers=workers, lost_workers=1)


class TestWorkers:
    def test_the_line_has_the_active_tasks_of_workers_and_the_number_lost(self) -> None:
        line = progress_line(with_workers(2))
        assert line.endswith("23 s left, 1 worker lost; under way: worker 0: 2, worker 1: 2")
        assert progress_line(replace(with_workers(2), active=0)).endswith("23 s left, 1 worker lost")

    def test_a_single_worker_is_not_named(self) -> None:
        assert "worker 0" not in progress_line(with_workers(1))

    def test_the_bar_has_a_line_for_each_of_8_workers_and_a_sum_of_the_others(self) -> None:
        stream = io.StringIO()
        observer = BarObserver(Console(file=stream, force_terminal=True, width=100))
        observer.started(with_workers(12))
        observer.ended(with_workers(12))
        shown = stream.getvalue()
        assert "worker 7" in shown
        assert "worker 8" not in shown
        assert "4 more" in shown
        assert "380 rows" in shown  # 80 + 90 + 100 + 110

    def test_the_status_file_has_the_workers(self, tmp_path: Path) -> None:
        StatusFile(Folder(tmp_path)).update(with_workers(2).as_dict())
        content = json.loads((tmp_path / "status.json").read_text())
        assert content["workers"][1] == {
            "name": "worker 1",
            "active": 2,
            "rows": 10,
            "reply_tokens": 100,
            "scored_tokens": 0,
        }
        assert content["lost_workers"] == 1


class TestStepLog:
    def test_steps_are_logged_every_ten_seconds_with_their_times(self, caplog: pytest.LogCaptureFixture) -> None:
        clock = Clock()
        with caplog.at_level(logging.INFO, logger="rwkvbatch"):
            log = StepLog(clock)
            for step in range(25):
                clock.now += 2.0 if step == 3 else 1.0
                log.count(PROGRESS)
            log.end(PROGRESS, interrupted=False)
        records = [vars(record) for record in caplog.records]
        assert [record["steps"] for record in records] == [9, 10, 6]
        assert (records[0]["step_longest_s"], records[1]["step_longest_s"]) == (2.0, 1.0)
        assert records[1]["step_mean_s"] == 1.0
        assert records[-1]["message"] == "the run ended"
        assert records[-1]["peak_memory_bytes"] > 2**20
