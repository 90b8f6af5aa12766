"""Options that are generated from the declaration of the settings, and options that several commands share."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rwkvbatch.config import ScriptLimits

OUTPUT_PANEL = "Output"


def option(
    name: str, help: str, metavar: str | None = None, panel: str | None = None, *, flag: str | None = None, **more: Any
) -> Any:
    """An option for `Annotated`; `panel` is its group in `--help`, `flag` its one-letter name."""
    names = (name,) if flag is None else (name, flag)
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel, **more)


JsonOption = Annotated[bool, option("--json", "Print the result as JSON on standard output.", panel=OUTPUT_PANEL)]
QuietOption = Annotated[bool, option("--quiet", "Print only errors on standard error.", panel=OUTPUT_PANEL, flag="-q")]
VerboseOption = Annotated[bool, option("--verbose", "Log more on standard error.", panel=OUTPUT_PANEL, flag="-v")]
RunOutOption = Annotated[
    Path | None,
    option(
        "--out",
        "Run directory, new or one to continue. [dim]Default: runs/NAME-TIME[/]",
        "DIR",
        OUTPUT_PANEL,
        flag="-o",
    ),
]
ConfigOption = Annotated[
    Path | None,
    option(
        "--config", "TOML file with settings. The command line and $RWKVBATCH_* take precedence.", "FILE", OUTPUT_PANEL
    ),
]
SparsityOption = Annotated[
    float | None,
    option(
        "--sparsity",
        "With --random: share of the channel mix's hidden activations that are zero after relu squared.",
        "SHARE",
    ),
]
ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="Checkpoint: a file, whose ending may be left out, or a directory. "
        "[dim]Default: $RWKVBATCH_MODEL, else the bundled one.[/]",
    ),
]
Force = Annotated[bool, option("--force", "Replace the file if it exists.")]
AdapterOption = Annotated[
    str,
    option("--adapter", "Adapter to merge: 'FILE alpha=NUMBER' (LoRA), 'FILE init=FILE' (PiSSA), FILE, none.", "TEXT"),
]
CHECK_MODULE_HELP = "Python file, which is run; the script's checks may name its functions."
CheckModuleOption = Annotated[Path | None, option("--check-module", CHECK_MODULE_HELP, "FILE")]
RandomOption = Annotated[
    str | None, option("--random", "Take random weights of this shape, such as 12x768.", "LAYERSxWIDTH")
]


def script_limits() -> ScriptLimits:
    """The limits of scripts and texts, with those that the environment sets."""
    from rwkvbatch.config import ScriptLimits
    from rwkvbatch.config.sources import resolve_settings

    return resolve_settings({}, environment=only_variables(*ScriptLimits.model_fields)).settings.script_limits


def only_variables(*names: str) -> dict[str, str]:
    """The environment's variables of these settings, for commands that read no others."""
    from rwkvbatch.config.names import ENVIRONMENT_PREFIX

    variables = {f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in names}
    return {name: value for name, value in os.environ.items() if name in variables}


def with_settings(
    *names: str, panel: str | None = None, **help_texts: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options of settings to a command, which gets the given ones as `**settings`: by full name, as text.

    Args:
        names: names of the settings; none for all that have an option.
        panel: the group of all these options in `--help`, shown last; None for the settings' own groups.
        help_texts: by the setting's name, help that differs for this command.
    """
    from rwkvbatch.config import SETTINGS
    from rwkvbatch.config.setting import PANELS

    chosen = [name for name in names or SETTINGS if SETTINGS[name].panel is not None]
    chosen.sort(key=lambda name: PANELS.index(SETTINGS[name].panel))

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def call(**values: Any) -> None:
            of_command = {name: value for name, value in values.items() if name not in chosen}
            command(**of_command, **_given_settings({name: values[name] for name in chosen}))

        # Typer shows groups of options in the order of the parameters: the settings' own panels first, or `panel` last.
        of_settings = [_parameter(name, panel, help_texts.get(name)) for name in chosen]
        of_command = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in inspect.signature(command, eval_str=True).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        parameters = [*of_settings, *of_command] if panel is None else [*of_command, *of_settings]
        call.__annotations__ = {each.name: each.annotation for each in parameters}
        call.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
        return call

    return decorate


def _parameter(name: str, panel: str | None, help_text: str | None) -> inspect.Parameter:
    """The parameter of a command for the option of a setting; `panel` and `help_text` replace the setting's own."""
    from rwkvbatch.config import FLAGS, LISTS, SETTINGS, TEXTS
    from rwkvbatch.config.names import option_name

    setting = SETTINGS[name]
    typer_option = option(
        option_name(name),
        help_text or setting.help,
        setting.metavar or None,
        panel or setting.panel,
        flag=None if panel else setting.flag,
    )
    # Values stay text here: a comma list makes a grid, and the settings validate their values.
    value_type: Any = bool if name in FLAGS else list[str] | None if name in LISTS | TEXTS else str | None
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=False if name in FLAGS else None,
        annotation=Annotated[value_type, typer_option],
    )


def _given_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings whose options were given, from the values of all options."""
    from rwkvbatch.config import SETTINGS

    given = {name: value for name, value in values.items() if not (value is None or value is False or value == [])}
    for name, value in given.items():
        if SETTINGS[name].text:
            given[name] = value[0] if len(value) == 1 else value
        elif SETTINGS[name].split:
            given[name] = [part.strip() for text in value for part in text.split(",")]
    return given


JUDGE_SETTINGS = (
    "judge",
    "judge_strategy",
    "judge_vocab",
    "judge_url",
    "judge_model",
    "judge_body",
    "batch_size",
    "threads",
    "concurrency",
    "max_requests",
    "endpoint_timeout",
    "endpoint_retries",
)
"""The settings of commands that ask a judge about existing rows."""

JUDGE_PANEL = "Judge"
JUDGE_HELP = {
    "batch_size": "Texts that a judge of this machine reads at the same time. Changes no verdict. [dim]Default: 32[/]",
    "threads": "CPU threads of the judge.",
    "concurrency": "Concurrent requests to the judge's server. [dim]Default: 8[/]",
    "max_requests": "Send at most N requests to it, retries included; verdicts that need more are missing.",
    "endpoint_timeout": "Seconds for a whole answer of the server, at most. [dim]Default: 600[/]",
}
