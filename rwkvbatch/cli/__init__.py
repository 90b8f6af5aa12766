"""The command line: parse, call, print. The one place where errors become messages and exit codes."""

from __future__ import annotations


def main() -> None:
    """Entry point of the `rwkvbatch` program; ends the process with its exit code."""
    import sys

    from rwkvbatch.cli.app import invoke

    sys.exit(invoke(sys.argv[1:]))
