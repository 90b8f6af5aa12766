"""The names of settings in the program, in options and in environment variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile

ALIASES: Mapping[str, str] = {
    "temp": "temperature",
    "presence": "presence_penalty",
    "frequency": "frequency_penalty",
    "decay": "penalty_decay",
    "ban": "banned_token_ids",
}
"""Settings by their short names, which options, files, the environment and `run` accept."""

SHORT_NAMES: Mapping[str, str] = {name: alias for alias, name in ALIASES.items()}
"""Short names by setting, used in options and cell names."""


def full_name(key: str) -> str:
    """The full name of a setting: short names are resolved, and `-` is replaced by `_`."""
    key = key.replace("-", "_")
    return ALIASES.get(key, key)


ENVIRONMENT_PREFIX = "RWKVBATCH_"


def option_name(key: str) -> str:
    """The command line's name of a setting."""
    return "--" + SHORT_NAMES.get(key, key).replace("_", "-")


def environment_name(key: str) -> str:
    """The environment variable of a setting."""
    return ENVIRONMENT_PREFIX + key.upper()


def short_names(names: Sequence[str]) -> tuple[str, list[str]]:
    """Names of cells or runs without what they have in common, and before them a heading that says what they name.

    Cells of one grid (`temp=1,top_p=0.5`) are named by the values of the settings that differ, other names without
    their common prefix. Equal names stay as they are.
    """
    if len(set(names)) < 2:
        return "", list(names)
    settings = [[part.partition("=") for part in name.split(",")] for name in names]
    is_grid = len({tuple(key for key, _, _ in parts) for parts in settings}) == 1 and settings[0][0][1]
    if is_grid:
        varied = [index for index in range(len(settings[0])) if len({parts[index][2] for parts in settings}) > 1]
        heading = ", ".join(settings[0][index][0] for index in varied)
        return heading, [",".join(parts[index][2] for index in varied) for parts in settings]
    num_common = sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False)))
    start = 1 + max(names[0][:num_common].rfind(separator) for separator in "-_./=,:")
    return f"{names[0][:start]}*" if start else "", [name[start:] for name in names]
