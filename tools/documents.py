"""The parts of documents that are generated from the code: by cog, in `make fix`; checked in `make documents`."""

from __future__ import annotations

import os
import subprocess
import sys

WIDTH = 100


def help_text(*command: str) -> str:
    """`rwkvbatch COMMAND --help` as a Markdown block, the same on every terminal."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("RWKVBATCH_", "FORCE_COLOR"))
    }
    environment |= {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": str(WIDTH), "TERMINAL_WIDTH": str(WIDTH)}
    done = subprocess.run(
        [sys.executable, "-m", "rwkvbatch", *command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    lines = [line.rstrip() for line in done.stdout.strip("\n").splitlines()]
    while lines and not lines[0]:
        lines.pop(0)
    return "\n```text\n" + "\n".join(lines) + "\n```\n"


def command_reference() -> str:
    """A section for each command, in the order of the program's own help, with its subcommands' help below its own."""
    from typer.core import TyperGroup
    from typer.main import get_command

    from rwkvbatch.cli.app import app

    program = get_command(app)
    assert isinstance(program, TyperGroup)
    sections = [help_text()]
    for name, command in program.commands.items():
        sections.append(f"\n## rwkvbatch {name}\n{help_text(name)}")
        if isinstance(command, TyperGroup):
            sections += [help_text(name, subcommand) for subcommand in command.commands]
    return "".join(sections)
