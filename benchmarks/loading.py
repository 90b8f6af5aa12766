"""Time to first token from a cold start, against reading the same file by plain read(), in turns.

    python benchmarks/loading.py [--shape 24x2048] [--strategy "cpu bf16"] [--rounds 5] [--file FILE | --folder FOLDER]

Each round does everything twice: with the file's pages dropped from the page cache (posix_fadvise, after a sync), and
with them there. Cold is the file, not the interpreter: a process of its own imports the package first, which is timed
apart, then waits for the pages to be dropped, loads the model and computes the logits after one token. Prints medians,
ratios as medians of the rounds' quotients, the phases of loading, and a bound: the same reading by all threads into
fresh memory on huge pages, which is the least that weights in memory of their own can cost. Linux only.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine_load import LoadReading, share_of_others
from rwkvbatch.bench.measure import write_random
from rwkvbatch.errors import RwkvBatchError

READ_BYTES = 8 << 20
PART_BYTES = 256 << 10

CHILD = """
import json, resource, sys, time
began = time.perf_counter()
from rwkvbatch.model import load
from rwkvbatch.model.rwkv7 import Network
from rwkvbatch.model.tensor_file import NamedTensors
imported = time.perf_counter() - began
spent = {}
def timed(owner, name, phase):
    function = getattr(owner, name)
    def measured(*arguments):
        began = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            spent[phase] = spent.get(phase, 0) + time.perf_counter() - began
    setattr(owner, name, measured)
timed(Network, "build", "packed")
timed(NamedTensors, "sha256", "hashed")
print("ready", flush=True)
sys.stdin.readline()
before = resource.getrusage(resource.RUSAGE_SELF)
began = time.perf_counter()
model = load.load_model(sys.argv[1], sys.argv[2], "auto")
loaded = time.perf_counter()
model.forward([[1]])
first_token = time.perf_counter() - loaded
after = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({
    "imported": imported, "loaded": loaded - began, "first_token": first_token, **spent,
    "user": after.ru_utime - before.ru_utime, "system": after.ru_stime - before.ru_stime,
    "peak_bytes": after.ru_maxrss * 1024,
}))
"""


@dataclass(frozen=True)
class Loading:
    """Seconds; what one process took.

    Attributes:
        imported: importing the package, cached.
        loaded: loading the model, of which
        packed: reading and packing the weights, and
        hashed: waiting after that for the file's hash.
        first_token: of one step after loading.
        user, system: processor time of loading and the step, of all threads.
        peak_bytes: the most memory that the process had.
    """

    imported: float
    loaded: float
    packed: float
    hashed: float
    first_token: float
    user: float
    system: float
    peak_bytes: int


@dataclass(frozen=True)
class Round:
    """Seconds, with the file's pages in the cache or not.

    Attributes:
        read: of the file by read(), into one buffer.
        copied: of the file by all threads, into fresh memory.
        loading: of a model.
        others: share of the processors that other programs used while the model was loaded.
    """

    read: float
    copied: float
    loading: Loading
    others: float | None

    @property
    def ratio(self) -> float:
        return (self.loading.loaded + self.loading.first_token) / self.read

    @property
    def bound(self) -> float:
        return self.copied / self.read


def prepare(path: Path, *, cold: bool) -> None:
    """Have a file's pages in the page cache, or not."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if cold:
            os.fsync(descriptor)  # pages that are not written yet are not dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            while os.read(descriptor, READ_BYTES):
                pass
    finally:
        os.close(descriptor)


def seconds_to_read(path: Path) -> float:
    """Seconds to read a file from its beginning to its end, into one buffer."""
    buffer = bytearray(READ_BYTES)
    started = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - started


def seconds_to_copy(path: Path) -> float:
    """Seconds to read a file into fresh memory on huge pages, a part a task, by as many threads as processors."""
    size, threads = path.stat().st_size, len(os.sched_getaffinity(0))
    with path.open("rb", buffering=0) as file, mmap.mmap(-1, size) as memory, ThreadPoolExecutor(threads) as pool:
        memory.madvise(mmap.MADV_HUGEPAGE)
        view = memoryview(memory)

        def read(thread: int) -> None:
            for start in range(size * thread // threads, size * (thread + 1) // threads, PART_BYTES):
                os.preadv(file.fileno(), [view[start : start + PART_BYTES]], start)

        started = time.perf_counter()
        list(pool.map(read, range(threads)))
        taken = time.perf_counter() - started
        view.release()
    return taken


def measured(path: Path, strategy: str, *, cold: bool) -> Round:
    """One round.

    Raises:
        RwkvBatchError: the model could not be loaded.
    """
    prepare(path, cold=cold)
    read = seconds_to_read(path)
    prepare(path, cold=cold)
    copied = seconds_to_copy(path)
    command = [sys.executable, "-c", CHILD, str(path), strategy]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        prepare(path, cold=cold)
        before = LoadReading.now()
        child.stdin.write("\n")
        child.stdin.flush()
        found = child.stdout.read()
        child.wait()
    if child.returncode != 0:
        raise RwkvBatchError(f"a process that loads {path} with {strategy!r} failed")
    return Round(read, copied, Loading(**json.loads(found)), share_of_others(before, LoadReading.now()))


def report(rounds: list[Round], size: int, state: str) -> str:
    """A few lines about the rounds with the file in one state."""

    def middle(name: str) -> float:
        return median(getattr(one.loading, name) for one in rounds)

    return (
        f"{state}: read at {median(size / one.read for one in rounds) / 1e9:.2f} GB/s; loading and the first token "
        f"take {median(one.ratio for one in rounds):.2f} x as long, reading into fresh memory alone "
        f"{median(one.bound for one in rounds):.2f} x\n"
        f"  seconds: loading {middle('loaded'):.2f} (weights {middle('packed'):.2f}, then waiting for the hash "
        f"{middle('hashed'):.2f}), first token {middle('first_token'):.2f}; processor time {middle('user'):.2f} in the "
        f"program, {middle('system'):.2f} in the system\n"
        f"  importing the package {middle('imported'):.2f} s, at most {middle('peak_bytes') / 1e9:.2f} GB of memory"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="24x2048")
    parser.add_argument("--strategy", default="cpu bf16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="where the checkpoint is made, and found again")
    parser.add_argument("--file", type=Path, default=None, help="a checkpoint to load, of any kind")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    rounds: dict[str, list[Round]] = {"cold": [], "warm": []}
    try:
        with ExitStack() as stack:
            path = arguments.file
            if path is None:
                folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"random-{arguments.shape}.safetensors"
                if not path.is_file():
                    path = write_random(arguments.shape, folder)
            size = path.stat().st_size
            for number in range(arguments.rounds):
                for state, found in rounds.items():
                    one = measured(path, arguments.strategy, cold=state == "cold")
                    found.append(one)
                    print(
                        f"round {number + 1} of {arguments.rounds}, {state}: read {one.read:.2f} s, into memory "
                        f"{one.copied:.2f} s, loaded {one.loading.loaded:.2f} s, first token "
                        f"{one.loading.first_token:.2f} s, {one.ratio:.2f} x; others use {one.others or 0:.0%}",
                        file=sys.stderr,
                    )
    except RwkvBatchError as error:
        raise SystemExit(f"error: {error}") from None
    if arguments.json:
        each = {state: [asdict(one) for one in found] for state, found in rounds.items()}
        print(json.dumps({"bytes": size, "strategy": arguments.strategy, "rounds": each}))
        return
    print(f"{path.name}, {arguments.strategy}, {size / 1e9:.2f} GB")
    for state, found in rounds.items():
        print(report(found, size, state))


if __name__ == "__main__":
    main()
