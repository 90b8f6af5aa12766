"""Command line of the crash harness; a program of its own, so that it can fork without torch's threads.

    python -m tests.replay.crash_harness DIRECTORY KIND [SEED] [--kills N]

`every-point` kills a run at every call that changes the disk, `random` at random times, `extend` kills commands that
extend and change a run, `check` kills `rwkvbatch check`. Any other kind is one of `commands`, or a comma list of these:
the whole program with a model, killed at random moments; `commands` is all of them. Prints a JSON object: how many
processes were killed, and a list of what went wrong (empty when all is well).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tests.replay.crash_harness import points


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.replay.crash_harness")
    parser.add_argument("directory", type=Path)
    parser.add_argument("kind")
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--kills", type=int, default=40)
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    if arguments.kind in points.KINDS:
        found = points.KINDS[arguments.kind](arguments.directory, arguments.seed, arguments.kills)
    else:
        from tests.replay.crash_harness import commands

        found = commands.kill_kinds(arguments.directory, arguments.kind, arguments.seed, arguments.kills)
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
