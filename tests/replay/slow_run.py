"""A program for tests of signals: a run of slow steps that handles signals as `rwkvbatch run` does.

`python -m tests.replay.slow_run DIRECTORY [SECONDS A STEP]`

The file `in-a-step` next to the directory appears when the first step starts.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rwkvbatch.engine.request import Reply, Request
from rwkvbatch.replay.runner import RunOptions, execute
from rwkvbatch.signals import stop_on_signals
from tests.replay.fakes import FakeLoader, make_plan

IN_STEP_NAME = "in-a-step"


def main() -> None:
    pause_s = float(sys.argv[2]) if len(sys.argv) > 2 else 0.01
    directory = Path(sys.argv[1])

    def pause(request: Request, reply: Reply) -> Reply:
        directory.with_name(IN_STEP_NAME).touch()
        time.sleep(pause_s)
        return reply

    loader = FakeLoader(change=pause)
    with stop_on_signals(lambda line: print(line, file=sys.stderr, flush=True)) as stop:  # noqa: T201
        options = RunOptions(out=directory, should_stop=stop)
        result = execute(make_plan(60, batch_size=2), loader, options)
    sys.exit(128 + stop.signal_number if result.interrupted else 0)


if __name__ == "__main__":
    main()
