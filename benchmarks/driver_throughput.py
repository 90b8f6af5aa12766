"""Rows per second of the driver with simulated workers that reply at once, lag, crash and join.

The plan, the assignments, the counts, and the store with its checksums and flushes on a disk are real. The workers are
simulated in this process and send lines of the right form; their time is included in the result. Afterwards the rows
are sorted, and every line is checked.

    python benchmarks/driver_throughput.py [--rows 2000000] [--workers 1000] [--folder DIR] [--figure FILE.svg]
"""

from __future__ import annotations

import argparse
import itertools
import random
import resource
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

from rwkvbatch.bench.measure import resident_bytes
from rwkvbatch.config import RunSettings
from rwkvbatch.config.sources import ResolvedSettings
from rwkvbatch.replay.driver import PoolDriver, RowRecorder
from rwkvbatch.replay.planning.grid import Cell
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.planning.setups import Setup, setups_of
from rwkvbatch.replay.pools.pool import Assign, Drop, Event, Order, Report, WorkerExited, WorkerReady
from rwkvbatch.replay.progress import Counts
from rwkvbatch.results.folder import Folder
from rwkvbatch.results.row_codec import EncodedRow
from rwkvbatch.results.store import RowStore
from rwkvbatch.script.lines import SourceLine
from rwkvbatch.script.records import Conversation, Turn

TURNS = 4
REPEATS = 100
CAPACITY = 48
LOSS_PROBABILITY, LAG_PROBABILITY = 1e-3, 5e-3
LAG_S = (0.5, 5.0)
REJOIN_S = (0.5, 2.0)
SAMPLE_S = 1.0

_BODY = (
    '{"conversation":"c%d","cell":"base","repeat":%d,"turn":%d,"seed":0,"tags":[],"prompt":"What is it?",'
    '"reply":"It is what it is.","reply_ids":[33,2,1,10,200,31,77,4,9,12],"finish_reason":"stop","stopped_by":"\\n\\n",'
    '"tokens":{"prompt":40,"reply":10},"logprob":{"mean":-0.5,"sum":-5.0},"reference":null,"checks":[],"error":null,'
    '"timing":{"queued_s":0.0,"prefill_s":0.1,"first_token_s":0.1,"total_s":0.5,"tokens_per_s":20.0,"cached_tokens":0}'
)


@dataclass
class _SimulatedWorker:
    held: deque[int] = field(default_factory=deque[int])
    wakes_s: float = 0.0


class SimulatedPool:
    """A `WorkerPool` of workers that finish whole tasks at once, of which some lag and some are lost."""

    def __init__(self, plan: Plan, count: int, seed: int) -> None:
        self._plan = plan
        self._random = random.Random(seed)
        self._workers: dict[int, _SimulatedWorker] = {}
        self._joining = [0.0] * count
        self._next = 0
        self._turn = itertools.count()
        self._killed: list[int] = []
        self.num_lost = self.num_lags = self.num_joins = 0

    def specs(self, setups: Sequence[Setup]) -> dict[Setup, Any]:
        return {}

    @property
    def num_starting(self) -> int:
        return 0

    def begin(self, setup: Setup) -> None: ...

    def send(self, worker: int, order: Order) -> None:
        simulated = self._workers.get(worker)
        if simulated is None:
            return
        match order:
            case Assign(tasks):
                simulated.held.extend(tasks)
            case Drop(tasks):
                simulated.held = deque(task for task in simulated.held if task not in tasks)
            case _:
                pass

    def kill(self, worker: int) -> None:
        if worker in self._workers:
            self._killed.append(worker)

    def receive(self, timeout_s: float) -> list[tuple[int, Event]]:
        now = time.monotonic()
        events: list[tuple[int, Event]] = []
        for worker in self._killed:
            self._lose(worker, now, "killed", events)
        self._killed.clear()
        for at_s in [at_s for at_s in self._joining if at_s <= now]:
            self._joining.remove(at_s)
            self._workers[self._next] = _SimulatedWorker()
            events.append((self._next, WorkerReady(f"simulated {self._next}", CAPACITY)))
            self._next += 1
            self.num_joins += 1
        for number in list(self._workers):
            self._report(number, now, events)
        if not events:
            time.sleep(min(timeout_s, 0.002))
        return events

    def close(self) -> None:
        self._workers.clear()

    def _report(self, number: int, now: float, events: list[tuple[int, Event]]) -> None:
        worker = self._workers[number]
        if not worker.held or worker.wakes_s > now:
            return
        uniform = self._random.random()
        if uniform < LOSS_PROBABILITY:
            self._lose(number, now, "lost at random", events)
        elif uniform < LOSS_PROBABILITY + LAG_PROBABILITY:
            self.num_lags += 1
            worker.wakes_s = now + self._random.uniform(*LAG_S)
        else:
            done = [worker.held.popleft() for _ in range(min(len(worker.held), 4))]
            rows = tuple(row for task in done for row in self._rows(task))
            events.append((number, Report(rows, tuple(done), len(worker.held))))

    def _lose(self, worker: int, now: float, reason: str, events: list[tuple[int, Event]]) -> None:
        if self._workers.pop(worker, None) is not None:
            self.num_lost += 1
            self._joining.append(now + self._random.uniform(*REJOIN_S))
            events.append((worker, WorkerExited(reason)))

    def _rows(self, task: int) -> list[EncodedRow]:
        first, last = self._plan.rows_of(task)
        conversation, repeat = divmod(task, REPEATS)
        return [
            EncodedRow(number, _line(conversation, repeat, number - first), reply_tokens=10)
            for number in range(first, last)
        ]


def _line(conversation: int, repeat: int, turn: int) -> bytes:
    body = (_BODY % (conversation, repeat, turn)).encode()
    return b'%s,"crc":"%08x"}\n' % (body, crc32(b"%s}" % body))


def make_plan(rows: int) -> Plan:
    turns = tuple(Turn("What is it?") for _ in range(TURNS))
    count = -(-rows // (TURNS * REPEATS))
    conversations = [Conversation(f"c{n}", None, turns, (), {}, SourceLine("made.jsonl", n + 1)) for n in range(count)]
    return Plan(conversations, [Cell("base", {})], ResolvedSettings(RunSettings.parse({"repeats": REPEATS})))


@dataclass(frozen=True)
class Sample:
    """Rows and memory at a time of the run."""

    at_s: float
    rows: int
    resident_mb: float


class Sampler:
    """Records rows and memory once a second."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._started_s = time.monotonic()
        self._next_s = self._started_s
        self.samples: list[Sample] = []

    def __call__(self) -> None:
        now = time.monotonic()
        if now >= self._next_s:
            self._next_s = now + SAMPLE_S
            self.record()

    def record(self) -> None:
        memory = (resident_bytes() or 0) / 1e6
        self.samples.append(Sample(time.monotonic() - self._started_s, self._counts.rows, memory))


def draw(samples: Sequence[Sample], path: Path) -> None:
    """Throughput and memory over time, as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, (upper, lower) = plt.subplots(2, 1, figsize=(7, 4.5), sharex=True, layout="constrained")
    steps = list(itertools.pairwise(samples))
    upper.plot([b.at_s for _, b in steps], [(b.rows - a.rows) / (b.at_s - a.at_s) / 1e3 for a, b in steps])
    upper.axhline(20, color="0.6", linestyle="--", linewidth=1)
    upper.set(ylabel="thousand rows per second", ylim=(0, None))
    lower.plot([s.at_s for s in samples], [s.resident_mb for s in samples])
    lower.set(ylabel="resident MB", xlabel="seconds", ylim=(0, None))
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, default=None, help="folder on the disk to measure; default: the current one"
    )
    parser.add_argument("--figure", type=Path, default=None)
    options = parser.parse_args()

    plan = make_plan(options.rows)
    with tempfile.TemporaryDirectory(dir=options.folder or Path.cwd()) as folder:
        counts = Counts()
        store = RowStore(Folder(Path(folder)), plan.num_rows, plan.row_number)
        pool = SimulatedPool(plan, options.workers, options.seed)
        sampler = Sampler(counts)
        driver = PoolDriver(plan, pool, RowRecorder(plan, store, counts), after_step=sampler)
        started_s = time.monotonic()
        driver.run(range(plan.num_tasks), setups_of(plan)[0])
        store.flush()
        run_s = time.monotonic() - started_s
        sampler.record()
        store.finalize()
        sampler.record()
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        sort_s = time.monotonic() - started_s - run_s
        store.close()
        size = (Path(folder) / "results.jsonl").stat().st_size
        checked = RowStore(Folder(Path(folder)), plan.num_rows, plan.row_number)
        check_s = time.monotonic() - started_s - run_s - sort_s
        assert checked.num_rows == plan.num_rows
        checked.close()
    print(f"{plan.num_rows:,} rows, {size / 1e9:.2f} GB, in {run_s:.1f} s: {plan.num_rows / run_s:,.0f} rows/s")
    print(f"workers: {pool.num_joins:,} joined, {pool.num_lost:,} lost, {pool.num_lags:,} lagged")
    print(f"memory: {sampler.samples[0].resident_mb:,.0f} MB at first, {peak_mb:,.0f} MB at most, including sorting")
    print(f"sorting the rows: {sort_s:.1f} s; checking every line: {check_s:.1f} s")
    if options.figure is not None:
        draw(sampler.samples[:-1], options.figure)


if __name__ == "__main__":
    main()
