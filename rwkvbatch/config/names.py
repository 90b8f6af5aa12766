"""The names of settings in the program, in options and in environment variables."""

from __future__ import annotations

from collections.abc import Mapping

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
