"""The command line: parses arguments, calls the library, prints results; turns errors into messages and exit codes."""

from __future__ import annotations


def _leave_on_signals() -> None:
    """What `leave_at_once` does, without an import that takes time: signals may come that early."""
    import os
    from importlib import import_module

    _signal = import_module("_signal")  # built in, as `signal` is not
    for number, message in ((_signal.SIGINT, b"interrupted"), (_signal.SIGTERM, b"terminated")):

        def leave(number: int, _: object, message: bytes = message) -> None:
            os.write(2, b"rwkvbatch: " + message + b"\n")
            os._exit(128 + number)

        if _signal.getsignal(number) != _signal.SIG_IGN:
            _signal.signal(number, leave)


def main() -> None:
    """Entry point of the `rwkvbatch` program; ends the process with its code."""
    _leave_on_signals()
    from rwkvbatch.signals import leave_at_once, unwind

    leave_at_once()
    import atexit
    import gc
    import sys

    gc.set_threshold(20_000)  # looking through torch's modules while they are made takes 0.1 s with 700
    code: int | None = None

    def end_now() -> None:
        """Spares the interpreter the 0.4 s of taking torch apart. Foreign code may have files that it would close."""
        if code is not None and not has_foreign_code():
            sys.stdout.flush()
            sys.stderr.flush()
            signals.end_process(code)

    atexit.register(end_now)  # before all others, which makes it the last to be called

    from rwkvbatch import signals
    from rwkvbatch.cli.app import invoke
    from rwkvbatch.cli.exits import ExitCode, flush_output, prepare_streams, report
    from rwkvbatch.cli.guard import came_to_its_end, continue_guarded, has_foreign_code

    prepare_streams()
    signals.before_foreign_code = continue_guarded
    unwind()
    code = invoke(sys.argv[1:])
    leave_at_once()
    try:
        flush_output()
    except OSError as error:
        if code <= ExitCode.FAILED:
            code = report(error, debug=False)
    came_to_its_end()
    sys.exit(code)
