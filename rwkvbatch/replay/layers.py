"""Settings from the command line, the environment, a file and the defaults, laid over each other.

The command line wins over the environment, that over `--config FILE.toml`, that over the defaults. Keys are the names
of `RunSettings`' fields or their short names (`setting_names.ALIASES`), `-` is read as `_`, and `preset` stands for
all fields of `Sampling` at once.
"""

from __future__ import annotations

import difflib
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
from rwkvbatch.errors import InputError, RwkvBatchError, UsageError, parsing_problem
from rwkvbatch.files import read_file
from rwkvbatch.prompt.templates import MAX_PRELUDE_BYTES, read_text
from rwkvbatch.setting import allowed_values, shown_value
from rwkvbatch.setting_names import ALIASES, ENVIRONMENT_PREFIX, environment_name, full_name, option_name

MAX_TOML_BYTES = 2**20
MAX_KEY_PARTS = 16
_PART = r"""(?:[\w-]+|"[^"\n]*"|'[^'\n]*')"""
_LONG_KEY = re.compile(rf"(?:^|[{{,\[])[ \t]*{_PART}(?:[ \t]*\.[ \t]*{_PART}){{{MAX_KEY_PARTS}}}", re.MULTILINE)

GRID_TABLES = ("grid", "zip", "cells", "override")
"""Tables of a settings file that make a grid, see `replay.grid`."""

CHECKPOINT_ENDINGS = ("", ".pth", ".safetensors", ".st", ".gguf")
"""A model's file may be named without its ending."""


@dataclass(frozen=True)
class Origin:
    """A setting's value, and the `place` that gave it, such as `RWKVBATCH_MODEL` or `settings.toml`.

    Errors call the setting by its `option`. `is_only`: all cells have this value; else an error about it shows it.
    """

    option: str
    value: Any
    place: str
    is_only: bool = True

    def concerns(self, error: RwkvBatchError) -> bool:
        """Whether `error` is about this value: it names the option, or is about the file that the value names."""
        if isinstance(error, InputError) and error.path is not None and isinstance(self.value, str):
            # An adapter's file may be followed by its options.
            named = Path(re.sub(r" +(alpha|init)=.*", "", self.value, flags=re.DOTALL)).expanduser()
            if str(error.path) in {f"{named}{ending}" for ending in CHECKPOINT_ENDINGS}:
                return True
        text = f"{error.message} {error.hint}"
        names_option = re.search(rf"{re.escape(self.option)}(?![\w-])", text) is not None
        return names_option and (self.is_only or str(self.value) in error.message)


@contextmanager
def naming_origins(origins: Iterable[Origin]) -> Generator[None]:
    """Adds to an error that leaves the block where the settings that it is about came from."""
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
class Layered:
    """Settings, and where they came from.

    Attributes:
        explicit: names that the command line gave. They also win over a conversation's own `params`.
        named: those of them that it gave by name, not as a part of a preset.
        grid: the `GRID_TABLES` of the config file.
        origins: of the settings that the command line did not give.
    """

    settings: RunSettings
    explicit: frozenset[str] = frozenset()
    named: frozenset[str] = frozenset()
    grid: Mapping[str, Any] = field(default_factory=dict[str, Any])
    origins: tuple[Origin, ...] = ()


def layer_settings(
    given: Mapping[str, Any], *, environment: Mapping[str, str] | None = None, config: Path | None = None
) -> Layered:
    """Settings from all layers: what the command line (or the caller) gave, the environment if any, and a TOML file.

    Raises:
        UsageError: an unknown key, with close known ones; a value that is not allowed; an unreadable file.
    """
    tables: dict[str, Any] = {}
    layers: list[dict[str, Any]] = []
    places: dict[str, str] = {}
    if config is not None:
        content = read_toml(config, "--config")
        tables = {name: content.pop(name) for name in GRID_TABLES if name in content}
        layers.append(checked_values(content, lambda key: f"{config}: {key}"))
        places |= dict.fromkeys(layers[-1], str(config))
    if environment is not None:
        found = _from_environment(environment)
        layers.append(checked_values(found, environment_name))
        places |= dict.fromkeys(layers[-1], environment_name("preset"))
        places |= {stands_for(full_name(key)): environment_name(key) for key in found}
    explicit = checked_values(given, option_name)
    layers.append(explicit)
    merged = {key: value for layer in layers for key, value in layer.items()}
    named = frozenset(stands_for(full_name(key)) for key in given) - {"preset"}
    given_elsewhere = [key for key in places if key in merged and key not in explicit]
    origins = tuple(Origin(option_name(key), merged[key], places[key]) for key in given_elsewhere)
    return Layered(RunSettings.parse(merged), frozenset(explicit), named, tables, origins)


def checked_values(values: Mapping[str, Any], name: Callable[[str], str] = option_name) -> dict[str, Any]:
    """Validated `values` by the settings' full names, with a preset put in place; errors call a key by its `name`.

    Raises:
        UsageError: an unknown key, with close known ones; a setting given twice; a value that is not allowed.
    """
    result: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    for raw_key, value in values.items():
        key = full_name(raw_key)
        if key == "preset":
            result.update(preset_settings(str(value)))
        elif key not in SETTINGS:
            raise UsageError(f"{name(raw_key)}: unknown setting{_close(key)}")
        elif stands_for(key) in plain:
            both = f" with {name('system')} and {name(SYSTEM_FILE)}" if stands_for(key) == "system" else ""
            raise UsageError(f"{name(raw_key)}: given twice{both}")
        elif key == SYSTEM_FILE:
            plain["system"] = _system_text(value, name(raw_key))
        elif key == "repeats" and isinstance(value, str) and ".." in value:
            low, _, high = value.partition("..")
            plain |= {"repeats": _checked(key, low, name(raw_key)), "max_repeats": _checked(key, high, name(raw_key))}
        else:
            plain[key] = _checked(key, value, name(raw_key))
    return {**result, **plain}


def _system_text(path: Any, shown: str) -> str:
    """The content of a file with a system message."""
    try:
        return read_text(str(Path(path)), MAX_PRELUDE_BYTES)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{shown} {path}: {error}", hint="name a text file in UTF-8") from None


def _checked(key: str, value: Any, shown: str) -> Any:
    if key in LISTS and isinstance(value, (str, int)):
        value = [value]
    try:
        return getattr(RunSettings.model_validate({key: value}), key)
    except ValidationError as error:
        first = error.errors()[0]
        problem = allowed_values(RunSettings, key, first["msg"])
        wrong = first["input"] if key in LISTS else value
        got = wrong if isinstance(wrong, str) and wrong else shown_value(wrong)
        raise UsageError(f"{shown} {problem}, got {got}") from None


def _close(key: str) -> str:
    """The end of an error about an unknown setting: close known ones, if there are any."""
    matches = difflib.get_close_matches(key, [*SETTINGS, *ALIASES], n=2, cutoff=0.75)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or not text:
            continue
        key = variable[len(ENVIRONMENT_PREFIX) :].lower()
        full = full_name(key)
        if full in SETTINGS:
            values[key] = [part.strip() for part in text.split(",")] if full in LISTS else text
        elif variable not in (ENDPOINT_KEY_VARIABLE, JUDGE_KEY_VARIABLE) and _close(key):
            # Other parts of the program have variables of their own: only what looks like a slip is refused.
            raise UsageError(f"{variable}: unknown setting{_close(key)}")
    return values


def read_toml(path: Path, option: str) -> dict[str, Any]:
    """The content of a TOML file that an option names; raises `UsageError` if it cannot be read or is not TOML."""
    try:
        text = read_file(path, MAX_TOML_BYTES).decode("utf-8-sig")
        # The parser's memory grows with the square of the number of parts.
        if _LONG_KEY.search(text):
            raise UsageError(f"{option} {path}: has a key of more than {MAX_KEY_PARTS} parts, joined by dots")
        return tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"{option} {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        where = f"not UTF-8: byte 0x{error.object[error.start]:02x} at place {error.start + 1}"
        raise UsageError(f"{option} {path}: not a TOML file: {where}", hint="save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:  # `ValueError`: an integer of thousands of digits, for one
        raise UsageError(f"{option} {path}: not a TOML file: {parsing_problem(error)}") from None
