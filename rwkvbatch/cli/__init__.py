"""The command line: parses arguments, calls the library, prints results, and maps errors to messages and exit codes."""

from __future__ import annotations


def _leave_on_signals() -> None:
    """Do the same as `signals.leave_at_once`, but without slow imports: signals may arrive during them."""
    import os
    from importlib import import_module

    _signal = import_module("_signal")  # built in, unlike `signal`
    for number, message in ((_signal.SIGINT, b"interrupted"), (_signal.SIGTERM, b"terminated")):

        def leave(number: int, _: object, message: bytes = message) -> None:
            os.write(2, b"rwkvbatch: " + message + b"\n")
            os._exit(128 + number)

        if _signal.getsignal(number) != _signal.SIG_IGN:
            _signal.signal(number, leave)


def main() -> None:
    """Entry point of the `rwkvbatch` program; ends the process with its exit code."""
    _leave_on_signals()
    from rwkvbatch.signals import leave_at_once, raise_on_signals

    leave_at_once()
    import atexit
    import gc
    import sys

    gc.set_threshold(20_000)  # with the default of 700, collections during the import of torch take 0.1 s
    code: int | None = None

    def end_now() -> None:
        """End the process without the 0.4 s in which the interpreter frees torch.

        Not with foreign code, which may have open files that the interpreter closes.
        """
        if code is not None and not has_foreign_code():
            sys.stdout.flush()
            sys.stderr.flush()
            signals.end_process(code)

    atexit.register(end_now)  # registered first, so that it is called last

    from rwkvbatch import signals
    from rwkvbatch.cli.app import invoke
    from rwkvbatch.cli.exits import ExitCode, flush_output, prepare_streams, report
    from rwkvbatch.cli.guard import confirm_exit_code, continue_guarded, has_foreign_code

    prepare_streams()
    signals.before_foreign_code = continue_guarded
    raise_on_signals()
    code = invoke(sys.argv[1:])
    leave_at_once()
    try:
        flush_output()
    except OSError as error:
        if code <= ExitCode.FAILED:
            code = report(error, debug=False)
    confirm_exit_code()
    sys.exit(code)
