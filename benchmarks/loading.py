"""Time to the first token from a cold start, compared with reading the same file by read(), alternately.

    python benchmarks/loading.py [--shape 24x2048] [--strategy "cpu bf16"] [--rounds 5] [--file FILE | --folder FOLDER]

Each round measures twice: with the file's pages dropped from the page cache (posix_fadvise, after a sync), and with
them cached. The file is cold, not the interpreter: a new process imports the package first, which is timed separately,
waits for the pages to be dropped, loads the model and computes the logits after one token. Prints medians, medians of
the rounds' ratios, the phases of loading, and a lower bound: reading the file by all threads into fresh memory on huge
pages, the least cost of weights in memory of the process. Linux only.
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
started_s = time.perf_counter()
from rwkvbatch.model import load
from rwkvbatch.model.network.rwkv7 import Network
from rwkvbatch.model.weights.named_tensors import NamedTensors
import_s = time.perf_counter() - started_s
phases = {}
def timed(owner, name, phase):
    function = getattr(owner, name)
    def timed_function(*arguments):
        started_s = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            phases[phase] = phases.get(phase, 0) + time.perf_counter() - started_s
    setattr(owner, name, timed_function)
timed(Network, "build", "pack_s")
timed(NamedTensors, "sha256", "hash_s")
print("ready", flush=True)
sys.stdin.readline()
before = resource.getrusage(resource.RUSAGE_SELF)
started_s = time.perf_counter()
model = load.load_model(sys.argv[1], sys.argv[2], "auto")
loaded_at_s = time.perf_counter()
model.forward([[1]])
first_token_s = time.perf_counter() - loaded_at_s
after = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({
    "import_s": import_s, "load_s": loaded_at_s - started_s, "first_token_s": first_token_s, **phases,
    "user_s": after.ru_utime - before.ru_utime, "system_s": after.ru_stime - before.ru_stime,
    "peak_bytes": after.ru_maxrss * 1024,
}))
"""


@dataclass(frozen=True)
class Loading:
    """Seconds of one process that loads a model.

    Attributes:
        import_s: importing the package, cached.
        load_s: loading the model, of which
        pack_s: reading and packing the weights, and
        hash_s: waiting afterwards for the hash of the file.
        first_token_s: one step after loading.
        user_s, system_s: processor time of loading and the step, of all threads.
        peak_bytes: peak memory of the process.
    """

    import_s: float
    load_s: float
    pack_s: float
    hash_s: float
    first_token_s: float
    user_s: float
    system_s: float
    peak_bytes: int


@dataclass(frozen=True)
class Round:
    """Seconds of one round, with the file's pages in the cache or not.

    Attributes:
        read_s: reading the file by read(), into one buffer.
        copy_s: reading the file by all threads, into fresh memory.
        loading: loading the model.
        others_share: share of the processors that other programs used while the model was loaded.
    """

    read_s: float
    copy_s: float
    loading: Loading
    others_share: float | None

    @property
    def ratio(self) -> float:
        """Loading and the first token, relative to reading the file."""
        return (self.loading.load_s + self.loading.first_token_s) / self.read_s

    @property
    def bound(self) -> float:
        return self.copy_s / self.read_s


def prepare(path: Path, *, cold: bool) -> None:
    """Drop a file's pages from the page cache, or read them into it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if cold:
            os.fsync(descriptor)  # dirty pages are not dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            while os.read(descriptor, READ_BYTES):
                pass
    finally:
        os.close(descriptor)


def seconds_to_read(path: Path) -> float:
    """Seconds to read a file from start to end into one buffer."""
    buffer = bytearray(READ_BYTES)
    started = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - started


def seconds_to_copy(path: Path) -> float:
    """Seconds to read a file into fresh memory on huge pages, in parts, by as many threads as processors."""
    size, threads = path.stat().st_size, len(os.sched_getaffinity(0))
    with path.open("rb", buffering=0) as file, mmap.mmap(-1, size) as memory, ThreadPoolExecutor(threads) as pool:
        memory.madvise(mmap.MADV_HUGEPAGE)
        view = memoryview(memory)

        def read(thread: int) -> None:
            for start in range(size * thread // threads, size * (thread + 1) // threads, PART_BYTES):
                os.preadv(file.fileno(), [view[start : start + PART_BYTES]], start)

        started = time.perf_counter()
        list(pool.map(read, range(threads)))
        copy_s = time.perf_counter() - started
        view.release()
    return copy_s


def measure_round(path: Path, strategy: str, *, cold: bool) -> Round:
    """One round.

    Raises:
        RwkvBatchError: the model could not be loaded.
    """
    prepare(path, cold=cold)
    read_s = seconds_to_read(path)
    prepare(path, cold=cold)
    copy_s = seconds_to_copy(path)
    command = [sys.executable, "-c", CHILD, str(path), strategy]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        prepare(path, cold=cold)
        before = LoadReading.now()
        child.stdin.write("\n")
        child.stdin.flush()
        output = child.stdout.read()
        child.wait()
    if child.returncode != 0:
        raise RwkvBatchError(f"a process that loads {path} with {strategy!r} failed")
    return Round(read_s, copy_s, Loading(**json.loads(output)), share_of_others(before, LoadReading.now()))


def report(rounds: list[Round], size: int, state: str) -> str:
    """Lines about the rounds with the file in one state."""

    def median_of(name: str) -> float:
        return median(getattr(each.loading, name) for each in rounds)

    return (
        f"{state}: read at {median(size / each.read_s for each in rounds) / 1e9:.2f} GB/s; loading and the first token "
        f"take {median(each.ratio for each in rounds):.2f} x as long, reading into fresh memory alone "
        f"{median(each.bound for each in rounds):.2f} x\n"
        f"  seconds: loading {median_of('load_s'):.2f} (weights {median_of('pack_s'):.2f}, then waiting for the hash "
        f"{median_of('hash_s'):.2f}), first token {median_of('first_token_s'):.2f}; processor time "
        f"{median_of('user_s'):.2f} in the program, {median_of('system_s'):.2f} in the system\n"
        f"  importing the package {median_of('import_s'):.2f} s, "
        f"at most {median_of('peak_bytes') / 1e9:.2f} GB of memory"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="24x2048")
    parser.add_argument("--strategy", default="cpu bf16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the checkpoint is written, and read the next time"
    )
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
                for state, rounds_of_state in rounds.items():
                    current = measure_round(path, arguments.strategy, cold=state == "cold")
                    rounds_of_state.append(current)
                    loading = current.loading
                    print(
                        f"round {number + 1} of {arguments.rounds}, {state}: read {current.read_s:.2f} s, into memory "
                        f"{current.copy_s:.2f} s, loaded {loading.load_s:.2f} s, first token "
                        f"{loading.first_token_s:.2f} s, {current.ratio:.2f} x; "
                        f"others use {current.others_share or 0:.0%}",
                        file=sys.stderr,
                    )
    except RwkvBatchError as error:
        raise SystemExit(f"error: {error}") from None
    if arguments.json:
        by_state = {state: [asdict(each) for each in of_state] for state, of_state in rounds.items()}
        print(json.dumps({"bytes": size, "strategy": arguments.strategy, "rounds": by_state}))
        return
    print(f"{path.name}, {arguments.strategy}, {size / 1e9:.2f} GB")
    for state, rounds_of_state in rounds.items():
        print(report(rounds_of_state, size, state))


if __name__ == "__main__":
    main()
