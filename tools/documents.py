"""The parts of documents that are generated from the code: by cog, in `make fix`; checked in `make documents`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

WIDTH = 100


_HELP = """
import contextlib, io, json, sys
from rwkvbatch.cli.app import invoke
texts = []
for command in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as text:
        if code := invoke([*command, "--help"]):
            sys.exit(code)
    texts.append(text.getvalue())
json.dump(texts, sys.stdout)
"""


def help_texts(commands: Sequence[Sequence[str]]) -> list[str]:
    """`rwkvbatch COMMAND --help` as Markdown blocks, the same on every terminal. One new process prints all of them."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("RWKVBATCH_", "FORCE_COLOR"))
    }
    environment |= {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": str(WIDTH), "TERMINAL_WIDTH": str(WIDTH)}
    done = subprocess.run(
        [sys.executable, "-c", _HELP],
        input=json.dumps(commands),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment,
    )
    return [_block(text) for text in json.loads(done.stdout)]


def _block(text: str) -> str:
    lines = [line.rstrip() for line in text.strip("\n").splitlines()]
    while lines and not lines[0]:
        lines.pop(0)
    return "\n```text\n" + "\n".join(lines) + "\n```\n"


def command_reference() -> str:
    """A section for each command, in the order of the program's own help, with its subcommands' help below its own."""
    from typer.core import TyperGroup

    from rwkvbatch.cli.app import COMMANDS, load_command

    commands: list[list[str]] = [[]]
    for name in COMMANDS:
        commands.append([name])
        if isinstance(command := load_command(name), TyperGroup):
            commands += [[name, subcommand] for subcommand in command.commands]
    headings = (f"\n## rwkvbatch {command[0]}\n" if len(command) == 1 else "" for command in commands)
    return "".join(heading + text for heading, text in zip(headings, help_texts(commands), strict=True))


def settings_table() -> str:
    """A line for each setting: its names, default, limits, and whether a grid can vary it."""
    from rwkvbatch.config import GRID_SETTINGS, SETTINGS, CellSettings, RunSettings
    from rwkvbatch.config.names import ENVIRONMENT_PREFIX, SHORT_NAMES, option_name
    from rwkvbatch.config.setting import allowed_values

    lines = ["", "| setting | option | default | allowed | in a grid |", "|---|---|---|---|---|"]
    for name, setting in SETTINGS.items():
        names = f"`{name}`" + (f", `{SHORT_NAMES[name]}`" if name in SHORT_NAMES else "")
        option = f"`{option_name(name)}`" if setting.panel else "none"
        default = RunSettings.model_fields[name].default if name in RunSettings.model_fields else None
        shown = "none" if default in (None, ()) else "off" if default is False else f"`{default}`"
        allowed = allowed_values(RunSettings, name, "").removeprefix("must be ")
        cell = "comma list or file" if name in GRID_SETTINGS else "file" if name in CellSettings.model_fields else "no"
        lines.append(f"| {names} | {option} | {shown} | {allowed} | {cell} |")
    note = f"The environment variable of a setting is `{ENVIRONMENT_PREFIX}` and one of its names in capitals."
    return "\n".join([*lines, "", note, ""])


EXTRAS = {
    "checks": "checks of replies against a JSON Schema",
    "metrics": "chrF and BLEU against references",
    "gguf": "GGUF files of RWKV-7",
    "tokenizers": "vocabularies in `tokenizer.json` files, such as GPT-NeoX's",
    "parquet": "other programs' results in Parquet files in `compare`, and benchmarks published as Parquet",
    "math": "checks of mathematical answers",
    "prometheus": "figures of a running command for Prometheus",
    "ray": "runs on a Ray cluster (`--ray`)",
    "endpoint": "served models (`run --endpoint`, `chat --endpoint`, `certify`)",
    "serve": "the server (`rwkvbatch serve`)",
    "ifeval": "checks of IFEval's instructions",
    "lm-eval": "`rwkvbatch lm-eval`",
    "inspect": "Inspect's model provider",
    "docs": "building this site (`make docs`)",
    "fuzz": "`make fuzz`",
    "test": "the project's own tests (`make test`)",
}
"""What each optional dependency of pyproject.toml is for."""


def extras_table() -> str:
    """A line for each extra that `pyproject.toml` declares."""
    with Path("pyproject.toml").open("rb") as file:
        declared = tomllib.load(file)["project"]["optional-dependencies"]
    undescribed = declared.keys() - EXTRAS.keys()
    if undescribed:
        raise ValueError(f"tools/documents.py: EXTRAS must say what these are for: {', '.join(sorted(undescribed))}")
    rows = [f"| `{name}` | {purpose} |" for name, purpose in EXTRAS.items() if name in declared]
    return "\n".join(["", "| extra | for |", "|---|---|", *rows, ""])


def benchmarks_table() -> str:
    """A line for each style of each benchmark that `script import` knows."""
    from rwkvbatch.script.benchmarks import BENCHMARKS

    lines = ["", "| benchmark | file | style | what is asked | `--shots` | measured by |", "|---|---|---|---|---|---|"]
    for name, benchmark in BENCHMARKS.items():
        cells = f"`{name}` | {benchmark.files}"
        for style, declared in benchmark.styles.items():
            default = " (default)" if len(benchmark.styles) > 1 and style == next(iter(benchmark.styles)) else ""
            shots = "yes" if declared.shots else "no"
            lines.append(f"| {cells} | `{style}`{default} | {declared.asks} | {shots} | {declared.measured} |")
            cells = " | "
    return "\n".join([*lines, ""])
