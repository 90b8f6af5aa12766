"""Time to first token from a cold start, against reading the same file by plain read(), in turns.

    python benchmarks/loading.py [--shape 24x2048] [--strategy "cpu bf16"] [--rounds 5] [--folder FILES]

Before each, the file's pages are dropped from the page cache (posix_fadvise, after a sync). Cold is the file, not the
interpreter: a process of its own imports the package first, which is timed apart, then waits for the pages to be
dropped, loads the model and computes the logits after one token. Prints medians, and the ratio of loading to reading
as the median of the rounds' quotients. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine_load import LoadReading, share_of_others
from rwkvbatch.bench.measure import write_random
from rwkvbatch.errors import RwkvBatchError

READ_BYTES = 8 << 20

CHILD = """
import sys, time
began = time.perf_counter()
from rwkvbatch.model.load import load_model
print("imported", time.perf_counter() - began, flush=True)
sys.stdin.readline()
began = time.perf_counter()
model = load_model(sys.argv[1], sys.argv[2], "auto")
loaded = time.perf_counter()
model.forward([[1]])
print(loaded - began, time.perf_counter() - loaded, flush=True)
"""


@dataclass(frozen=True)
class Round:
    """Seconds.

    Attributes:
        read: of the file by read(), uncached.
        imported: of importing the package, cached.
        loaded: of loading the model, uncached. first_token: of one step after that.
        others: share of the processors that other programs used while the model was loaded.
    """

    read: float
    imported: float
    loaded: float
    first_token: float
    others: float | None

    @property
    def ratio(self) -> float:
        return (self.loaded + self.first_token) / self.read


def drop_pages(path: Path) -> None:
    """Drop a file's pages from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # pages that are not written yet are not dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
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


def measured(path: Path, strategy: str) -> Round:
    """One round.

    Raises:
        RwkvBatchError: the model could not be loaded.
    """
    drop_pages(path)
    read = seconds_to_read(path)
    command = [sys.executable, "-c", CHILD, str(path), strategy]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        imported = child.stdout.readline().split()
        drop_pages(path)
        before = LoadReading.now()
        child.stdin.write("\n")
        child.stdin.flush()
        found = child.stdout.read().split()
        child.wait()
    if child.returncode != 0 or len(found) != 2:
        raise RwkvBatchError(f"a process that loads {path} with {strategy!r} failed")
    others = share_of_others(before, LoadReading.now())
    return Round(read, float(imported[1]), float(found[0]), float(found[1]), others)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="24x2048")
    parser.add_argument("--strategy", default="cpu bf16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="where the checkpoint is made, and found again")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    try:
        with ExitStack() as stack:
            folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"random-{arguments.shape}.safetensors"
            if not path.is_file():
                path = write_random(arguments.shape, folder)
            size = path.stat().st_size
            rounds: list[Round] = []
            for number in range(arguments.rounds):
                rounds.append(measured(path, arguments.strategy))
                one = rounds[-1]
                print(
                    f"round {number + 1} of {arguments.rounds}: read {one.read:.2f} s, loaded {one.loaded:.2f} s, "
                    f"first token {one.first_token:.2f} s, {one.ratio:.2f} x; others use {one.others or 0:.0%}",
                    file=sys.stderr,
                )
    except RwkvBatchError as error:
        raise SystemExit(f"error: {error}") from None
    ratio = median(one.ratio for one in rounds)
    if arguments.json:
        print(json.dumps({"bytes": size, "ratio": ratio, "rounds": [asdict(one) for one in rounds]}))
        return
    speed, imported = median(size / one.read for one in rounds) / 1e9, median(one.imported for one in rounds)
    print(
        f"{arguments.shape}, {arguments.strategy}, {size / 1e9:.2f} GB: read at {speed:.2f} GB/s, loading and the "
        f"first token take {ratio:.2f} x as long as reading; importing the package {imported:.2f} s"
    )


if __name__ == "__main__":
    main()
