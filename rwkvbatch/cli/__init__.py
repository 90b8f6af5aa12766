"""The command line: parses arguments, calls the library, prints results; turns errors into messages and exit codes."""

from __future__ import annotations


def main() -> None:
    """Entry point of the `rwkvbatch` program; exits with its code."""
    from rwkvbatch.signals import leave_at_once, unwind

    leave_at_once()
    import sys

    from rwkvbatch.cli.app import invoke
    from rwkvbatch.cli.exits import ExitCode, flush_output, prepare_streams, report

    prepare_streams()
    unwind()
    code = invoke(sys.argv[1:])
    leave_at_once()
    try:
        flush_output()
    except OSError as error:
        if code <= ExitCode.FAILED:
            code = report(error, debug=False)
    sys.exit(code)
