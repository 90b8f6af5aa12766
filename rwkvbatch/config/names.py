"""The names of settings in the program, in options, in environment variables, and in files of earlier versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from rwkvbatch.config import TurnEnd

PENALTY_ALIASES: Mapping[str, str] = {
    "presence": "presence_penalty",
    "frequency": "frequency_penalty",
    "decay": "penalty_decay",
    "ban": "banned_token_ids",
}
"""Settings by their short names, which files of earlier versions use as keys."""

ALIASES: Mapping[str, str] = {"temp": "temperature", **PENALTY_ALIASES}
"""Settings by their short names, which are accepted everywhere."""

SHORT_NAMES: Mapping[str, str] = {name: alias for alias, name in ALIASES.items()}
"""Short names by setting, used in options and cell names."""


def full_name(key: str) -> str:
    """The full name of a setting: short names are resolved, and `-` is replaced by `_`."""
    key = key.replace("-", "_")
    return ALIASES.get(key, key)


def with_full_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a file under their full names; files of earlier versions have short ones."""
    return {ALIASES.get(key, key): value for key, value in values.items()}


def with_later_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """A reply's settings in a file under their full names, with values for settings that earlier versions lacked."""
    settings = with_full_names(values)
    turn_end = first_turn_end(settings.get("think", "off"), has_template=settings.get("template_sha256") is not None)
    return {"min_p": 0.0, "no_penalty": [], "reply_prefix": "", "turn_end": turn_end, **settings}


def first_turn_end(think: str, *, has_template: bool) -> TurnEnd:
    """The `turn_end` of versions without the setting: a blank line without thinking, else the template's texts."""
    return "blank-line" if think == "off" and not has_template else "next-role"


def identity_with_full_names(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The `identity` of a manifest with full names, and with values for settings that earlier versions lacked."""
    result = dict(identity)
    if isinstance(cells := result.get("cells"), dict):
        result["cells"] = {
            name: {"bos": "auto", **with_later_settings(cast("dict[str, Any]", values))}
            if isinstance(values, dict)
            else values
            for name, values in cast("dict[str, Any]", cells).items()
        }
    if isinstance(given := result.get("given_for_all"), list):
        result["given_for_all"] = sorted(ALIASES.get(str(name), str(name)) for name in cast("list[Any]", given))
    return result


ENVIRONMENT_PREFIX = "RWKVBATCH_"


def option_name(key: str) -> str:
    """The command line's name of a setting."""
    return "--" + SHORT_NAMES.get(key, key).replace("_", "-")


def environment_name(key: str) -> str:
    """The environment variable of a setting."""
    return ENVIRONMENT_PREFIX + key.upper()
