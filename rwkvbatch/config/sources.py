"""Resolves settings from their sources: the command line, the environment, a settings file, the defaults.

The order of precedence is: command line, environment, `--config FILE.toml`, defaults. Keys are the names of the fields
of `RunSettings` or their short names (`config.names.ALIASES`); `-` is read as `_`, and `preset` sets all fields of
`Sampling` at once.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rwkvbatch.config import (
    ENDPOINT_KEY_VARIABLE,
    JUDGE_KEY_VARIABLE,
    LISTS,
    SETTINGS,
    SYSTEM_FILE,
    RunSettings,
    preset_settings,
    stands_for,
)
from rwkvbatch.config.names import ALIASES, ENVIRONMENT_PREFIX, environment_name, full_name, option_name
from rwkvbatch.config.setting import allowed_values
from rwkvbatch.errors import MAX_SHOWN_VALUE, InputError, RwkvBatchError, UsageError, parsing_problem, shown_value
from rwkvbatch.files import read_file, read_text, user_path

MAX_TOML_BYTES = 2**20
MAX_SYSTEM_BYTES = 1_000_000
MAX_KEY_PARTS = 16
_PART = r"""(?:[\w-]+|"[^"\n]*"|'[^'\n]*')"""
_LONG_KEY = re.compile(rf"(?:^|[{{,\[])[ \t]*{_PART}(?:[ \t]*\.[ \t]*{_PART}){{{MAX_KEY_PARTS}}}", re.MULTILINE)

GRID_TABLES = ("grid", "zip", "cells", "override")
"""Tables of a settings file that define a grid, see `replay.planning.grid`."""

CHECKPOINT_ENDINGS = ("", ".pth", ".safetensors", ".st", ".gguf")
"""File name suffixes that may be omitted from a model's path."""


@dataclass(frozen=True)
class Origin:
    """The source of a setting's value.

    Attributes:
        option: name of the setting in errors, such as `--model`.
        place: name of the source, such as `RWKVBATCH_MODEL` or `settings.toml`.
        is_only: whether all cells have this value. Otherwise an error is about this value only if it shows the value.
    """

    option: str
    value: Any
    place: str
    is_only: bool = True

    def concerns(self, error: RwkvBatchError) -> bool:
        """Whether `error` is about this value: it names the option, or is about the file that the value names."""
        if isinstance(error, InputError) and error.path is not None and isinstance(self.value, str):
            # The path of an adapter may be followed by options.
            path = user_path(re.sub(r" +(alpha|init)=.*", "", self.value, flags=re.DOTALL))
            if str(error.path) in {f"{path}{ending}" for ending in CHECKPOINT_ENDINGS}:
                return True
        text = f"{error.message} {error.hint}"
        names_option = re.search(rf"{re.escape(self.option)}(?![\w-])", text) is not None
        return names_option and (self.is_only or str(self.value) in error.message)


@contextmanager
def naming_origins(origins: Iterable[Origin]) -> Generator[None]:
    """Add to an error that leaves the block the sources of the settings that the error is about."""
    try:
        yield
    except RwkvBatchError as error:
        options: dict[str, list[str]] = {}
        for place, option in dict.fromkeys((o.place, o.option) for o in origins if o.concerns(error)):
            options.setdefault(place, []).append(option)
        for place, names in options.items():
            if place not in error.message:
                error.add_origin(f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'} from {place}")
        raise


@dataclass(frozen=True)
class ResolvedSettings:
    """Merged settings and their sources.

    Attributes:
        explicit: names of the settings that the command line gave. They also override a conversation's `params`.
        named: the explicit settings that were given by name, not as a part of a preset.
        grid: the `GRID_TABLES` of the config file.
        origins: sources of the settings that the command line did not give.
    """

    settings: RunSettings
    explicit: frozenset[str] = frozenset()
    named: frozenset[str] = frozenset()
    grid: Mapping[str, Any] = field(default_factory=dict[str, Any])
    origins: tuple[Origin, ...] = ()


def resolve_settings(
    given: Mapping[str, Any], *, environment: Mapping[str, str] | None = None, config: Path | None = None
) -> ResolvedSettings:
    """Settings merged from all sources.

    Args:
        given: settings of the command line, or of the caller of `run`.
        environment: environment variables; None to use none.
        config: a TOML file.

    Raises:
        UsageError: an unknown key, with close known ones; a value that is not allowed; an unreadable file.
    """
    tables: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    places: dict[str, str] = {}
    if config is not None:
        content = read_toml(config, "--config")
        tables = {name: content.pop(name) for name in GRID_TABLES if name in content}
        merged |= checked_values(content, lambda key: f"{config}: {key}")
        places |= dict.fromkeys(merged, str(config))
    if environment is not None:
        variables = _from_environment(environment)
        from_environment = checked_values(variables, environment_name)
        merged |= from_environment
        places |= dict.fromkeys(from_environment, environment_name("preset"))
        places |= {stands_for(full_name(key)): environment_name(key) for key in variables}
    explicit = checked_values(given, option_name)
    merged |= explicit
    named = frozenset(stands_for(full_name(key)) for key in given) - {"preset"}
    not_explicit = [key for key in places if key in merged and key not in explicit]
    origins = tuple(Origin(option_name(key), merged[key], places[key]) for key in not_explicit)
    return ResolvedSettings(RunSettings.parse(merged), frozenset(explicit), named, tables, origins)


def checked_values(values: Mapping[str, Any], name: Callable[[str], str] = option_name) -> dict[str, Any]:
    """Validated `values` by the settings' full names, with a preset replaced by its settings.

    Args:
        name: gives the name of a key in errors.

    Raises:
        UsageError: an unknown key, with close known ones; a setting given twice; a value that is not allowed.
    """
    from_preset: dict[str, Any] = {}
    checked: dict[str, Any] = {}
    for raw_key, value in values.items():
        key = full_name(raw_key)
        if key == "preset":
            from_preset.update(preset_settings(str(value)))
        elif key not in SETTINGS:
            # No option is unknown here: the command line refuses it before, and Python gives keywords.
            shown = raw_key if name is option_name else name(raw_key)
            raise UsageError(f"{shown}: unknown setting{_did_you_mean(key)}")
        elif stands_for(key) in checked:
            both_names = f" with {name('system')} and {name(SYSTEM_FILE)}" if stands_for(key) == "system" else ""
            raise UsageError(f"{name(raw_key)}: given twice{both_names}")
        elif key == SYSTEM_FILE:
            checked["system"] = _system_text(value, name(raw_key))
        elif key == "repeats" and isinstance(value, str) and ".." in value:
            checked |= _repeat_range(value, name(raw_key))
        else:
            checked[key] = _checked_value(key, value, name(raw_key))
    return {**from_preset, **checked}


def _repeat_range(value: str, shown_name: str) -> dict[str, Any]:
    """The settings that a range of repeats LOW..HIGH stands for; errors call the setting `shown_name`."""
    low, _, high = value.partition("..")
    try:
        repeats = {key: _checked_value(key, part, "") for key, part in (("repeats", low), ("max_repeats", high))}
    except UsageError:
        repeats = {}
    if not repeats or repeats["max_repeats"] < repeats["repeats"]:
        allowed = "must be N or LOW..HIGH, whole numbers in [1, 1000000] with LOW <= HIGH and HIGH >= 2"
        raise UsageError(f"{shown_name} {allowed}, got {value[:MAX_SHOWN_VALUE]}")
    return repeats


def _system_text(path: Any, shown_name: str) -> str:
    """The content of a file with a system message; errors call the setting `shown_name`."""
    try:
        return read_text(Path(path), MAX_SYSTEM_BYTES)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{shown_name} {path}: {error}", hint="name a text file in UTF-8") from None


def _checked_value(key: str, value: Any, shown_name: str) -> Any:
    """The validated value of one setting; errors call the setting `shown_name`."""
    if key in LISTS and isinstance(value, (str, int)):
        value = [value]
    try:
        return getattr(RunSettings.model_validate({key: value}), key)
    except ValidationError as error:
        first = error.errors()[0]
        problem = allowed_values(RunSettings, key, first["msg"])
        wrong = first["input"] if key in LISTS else value
        got = wrong if isinstance(wrong, str) and 0 < len(wrong) <= MAX_SHOWN_VALUE else shown_value(wrong)
        raise UsageError(f"{shown_name} {problem}, got {got}") from None


def _did_you_mean(key: str) -> str:
    """The end of a message about an unknown setting: similar known ones; empty if there are none."""
    matches = difflib.get_close_matches(key, [*SETTINGS, *ALIASES], n=2, cutoff=0.75)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """The settings in environment variables, unchecked, by their keys."""
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or not text:
            continue
        key = variable[len(ENVIRONMENT_PREFIX) :].lower()
        full = full_name(key)
        if full in SETTINGS:
            values[key] = [part.strip() for part in text.split(",")] if full in LISTS else text
        elif variable not in (ENDPOINT_KEY_VARIABLE, JUDGE_KEY_VARIABLE) and _did_you_mean(key):
            # Other parts of the program have variables of their own, so only names similar to a setting are refused.
            raise UsageError(f"{variable}: unknown setting{_did_you_mean(key)}")
    return values


def as_toml(values: Mapping[str, Any]) -> str:
    """Settings as the text of a file for `--config`, one per line.

    Args:
        values: numbers, truth values, texts and lists of these. `None`, which TOML does not have, is left out.
    """
    lines = (f"{key} = {_toml_value(value)}\n" for key, value in values.items() if value is not None)
    return "".join(lines)


def _toml_value(value: Any) -> str:
    # Lists, numbers and truth values are written as in JSON, and so are texts but for one character.
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")


def read_toml(path: Path, option: str) -> dict[str, Any]:
    """The content of a TOML file that an option names; raises `UsageError` if it cannot be read or is not TOML."""
    try:
        text = read_file(user_path(path), MAX_TOML_BYTES).decode("utf-8").removeprefix("\ufeff")
        # The parser's memory use grows with the square of the number of parts.
        if _LONG_KEY.search(text):
            raise UsageError(f"{option} {path}: has a key of more than {MAX_KEY_PARTS} parts, joined by dots")
        return tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"{option} {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        where = f"not UTF-8: byte 0x{error.object[error.start]:02x} at place {error.start + 1}"
        raise UsageError(f"{option} {path}: not a TOML file: {where}", hint="save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:  # `ValueError` also for an integer of thousands of digits
        raise UsageError(f"{option} {path}: not a TOML file: {parsing_problem(error)}") from None
