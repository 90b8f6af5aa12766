"""Every setting of a run, and how the places that can give one are laid over each other.

The command line wins over the environment (`RWKVBATCH_TOP_P=0.5`), that over `--config FILE.toml`, that over
the defaults. Keys are the names of `RunSettings`' fields or their short names (`config.ALIASES`), `-` is read as
`_`, and `preset` stands for all fields of `Sampling` at once.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from rwkvbatch.config import (
    ALIASES,
    SHORT_NAMES,
    HistoryMode,
    Prompting,
    Sampling,
    Stopping,
    ThinkMode,
    allowed_values,
    full_name,
    preset,
)
from rwkvbatch.errors import InputError, RwkvBatchError, UsageError
from rwkvbatch.prompt.templates import load_prelude
from rwkvbatch.script.reader import Limits

ENDINGS = ("", ".pth", ".safetensors")
"""A model's file may be named without its ending."""


@dataclass(frozen=True)
class Origin:
    """A setting's value, and the environment variable or the file that gave it.

    Attributes:
        option: the command line's name of the setting, by which errors call it.
        place: such as `RWKVBATCH_MODEL` or `settings.toml`.
        is_only: whether all cells have this value; else an error is about it only if it shows it.
    """

    option: str
    value: Any
    place: str
    is_only: bool = True

    def concerns(self, error: RwkvBatchError) -> bool:
        """Whether `error` is about this value: it names the option, or is about the file that the value names."""
        if isinstance(error, InputError) and error.path is not None and isinstance(self.value, str):
            named = Path(self.value).expanduser()
            if str(error.path) in {f"{named}{ending}" for ending in ENDINGS}:
                return True
        said = f"{error.message} {error.hint}"
        names_option = re.search(rf"{re.escape(self.option)}(?![\w-])", said) is not None
        return names_option and (self.is_only or str(self.value) in error.message)


@contextmanager
def told_with_errors(origins: Iterable[Origin]) -> Generator[None]:
    """An error that leaves the block says where the settings came from that it is about."""
    try:
        yield
    except RwkvBatchError as error:
        options: dict[str, dict[str, None]] = {}
        for origin in origins:
            if origin.concerns(error):
                options.setdefault(origin.place, {})[origin.option] = None
        for place, names in options.items():
            if place not in error.message:
                error.add_origin(f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'} from {place}")
        raise


ENVIRONMENT_PREFIX = "RWKVBATCH_"
_LISTS = ("banned_token_ids", "stop", "only", "devices")
_SIZE = "must be a number of bytes from 1 up, such as 512M or 2G"
_IN_WORDS: Mapping[str, str] = {
    "devices": "must be cpu, cuda, or cuda:N",
    "state_memory": _SIZE,
    "max_line_bytes": _SIZE,
}


def _bytes(value: object) -> object:
    """`512M` or `2G` as a number of bytes; anything else is left to the field."""
    found = (
        re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt])i?b?", value.strip(), re.IGNORECASE)
        if isinstance(value, str)
        else None
    )
    if found is None:
        return value
    return int(float(found[1]) * 1024 ** (1 + "kmgt".index(found[2].lower())))


ByteCount = Annotated[int, BeforeValidator(_bytes), Field(ge=1)]


DeviceName = Annotated[str, Field(pattern=r"^(cpu|cuda(:\d{1,3})?)$")]


class CellSettings(Sampling, Stopping):
    """What decides about one reply, and may differ between the cells of a grid.

    Attributes:
        think: thinking mode. history: whose replies the next turn sees.
        model: checkpoint; None for the bundled model. strategy, backend: how it is run.
        state: initial state file. template: template file. prelude: file with an initial exchange.
    """

    think: ThinkMode = "off"
    history: HistoryMode = "own"
    model: str | None = None
    strategy: str = "auto"
    backend: str = "auto"
    state: str | None = None
    template: str | None = None
    prelude: str | None = None

    @cached_property
    def sampling(self) -> Sampling:
        return Sampling(**{name: getattr(self, name) for name in Sampling.model_fields})

    @cached_property
    def stopping(self) -> Stopping:
        return Stopping(**{name: getattr(self, name) for name in Stopping.model_fields})

    def prompting(self) -> Prompting:
        """How turns become text; reads the prelude's file, or takes the built-in one of that name.

        Raises:
            UsageError: the file cannot be read as UTF-8.
        """
        text = None if self.prelude is None else load_prelude(self.prelude)
        return Prompting(think=self.think, history=self.history, template=self.template, prelude=text)


class RunSettings(CellSettings):
    """All settings of a run; those of `CellSettings` are what its cells start from.

    Attributes:
        seed: of all randomness in the run.
        repeats: how often each conversation is replayed in each cell. max_repeats, until_ci: with both set, a
            cell's repeats grow up to `max_repeats` while its paired interval against the first cell is wider
            than `until_ci`.
        limit: replay at most this many conversations. only: ids or tags of those to replay. shuffle_seed:
            bring them into another order before `limit` is applied.
        batch_size: replies that a worker generates at the same time. threads: of each worker on the CPU; None
            for all processors, shared evenly.
        state_memory: bytes for recurrent states; None leaves it to the engine.
        max_prompt_tokens: a turn whose history and prompt are longer becomes an error row.
        max_failures: the run stops when more rows than this have failed; None for no limit.
        max_line_bytes, max_turns, max_conversations: what a script may hold at most, see `script.reader.Limits`.
    """

    seed: int = Field(0, ge=0, lt=2**63)
    repeats: int = Field(1, ge=1, le=1_000_000)
    max_repeats: int | None = Field(None, ge=2, le=1_000_000)
    until_ci: float | None = Field(None, gt=0)
    limit: int | None = Field(None, ge=1)
    only: tuple[str, ...] = ()
    shuffle_seed: int | None = None
    batch_size: int = Field(32, ge=1, le=65536)
    threads: int | None = Field(None, ge=1, le=1024)
    workers: int | None = Field(None, ge=1, le=1024)
    devices: tuple[DeviceName, ...] = ()
    ray: str | None = Field(None, min_length=1)
    state_memory: ByteCount | None = None
    max_prompt_tokens: int | None = Field(None, ge=1)
    max_failures: int | None = Field(None, ge=0)
    max_line_bytes: ByteCount = Limits.max_line_bytes
    max_turns: int = Field(Limits.max_turns, ge=1)
    max_conversations: int = Field(Limits.max_conversations, ge=1)

    @property
    def script_limits(self) -> Limits:
        return Limits(self.max_line_bytes, self.max_turns, self.max_conversations)


@dataclass(frozen=True)
class Layered:
    """Settings, and where they came from.

    Attributes:
        explicit: names that the command line gave. They also win over a conversation's own `params`.
        named: those of them that it gave by name, not as a part of a preset.
        grid: the `[grid]`, `[zip]`, `[cells]` and `[override]` tables of the config file, as they stood.
        origins: of the settings that the command line did not give, where they came from.
    """

    settings: RunSettings
    explicit: frozenset[str] = frozenset()
    named: frozenset[str] = frozenset()
    grid: Mapping[str, Any] = field(default_factory=dict[str, Any])
    origins: tuple[Origin, ...] = ()


GRID_TABLES = ("grid", "zip", "cells", "override")


def layer_settings(
    given: Mapping[str, Any], *, environment: Mapping[str, str] | None = None, config: Path | None = None
) -> Layered:
    """Put the layers together.

    Args:
        given: the command line's (or the caller's) values by field name; only what was given.
        environment: `os.environ`, or None to leave it out.
        config: a TOML file.

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
        layers.append(checked_values(found, _variable))
        places |= dict.fromkeys(layers[-1], _variable("preset"))
        places |= {full_name(key): _variable(key) for key in found}
    explicit = checked_values(given, option_name)
    layers.append(explicit)
    merged = {key: value for layer in layers for key, value in layer.items()}
    named = frozenset(full_name(key) for key in given) - {"preset"}
    origins = tuple(
        Origin(option_name(key), merged[key], place)
        for key, place in places.items()
        if key in merged and key not in explicit
    )
    return Layered(RunSettings.parse(merged), frozenset(explicit), named, tables, origins)


def _variable(key: str) -> str:
    return ENVIRONMENT_PREFIX + key.upper()


def option_name(key: str) -> str:
    """The command line's name of a setting."""
    return "--" + SHORT_NAMES.get(key, key).replace("_", "-")


def checked_values(values: Mapping[str, Any], name: Callable[[str], str] = option_name) -> dict[str, Any]:
    """`values` under their full names, with a preset put in place; each value is checked on its own.

    Args:
        name: how to call a key in an error.

    Raises:
        UsageError: as `layer_settings`.
    """
    result: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    for raw_key, value in values.items():
        key = full_name(raw_key)
        if key == "preset":
            result.update(dict(preset(str(value))))
        elif key not in RunSettings.model_fields:
            raise UsageError(f"{name(raw_key)}: unknown setting{_close(key)}")
        elif key in plain:
            raise UsageError(f"{name(raw_key)}: given twice")
        else:
            plain[key] = _checked(key, value, name(raw_key))
    return {**result, **plain}


def read_toml(path: Path, option: str) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        UsageError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{option} {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        where = f"byte 0x{error.object[error.start]:02x} at place {error.start + 1}"
        raise UsageError(
            f"{option} {path}: not a TOML file: not UTF-8: {where}", hint="save the file as UTF-8"
        ) from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{option} {path}: not a TOML file: {error}") from None


def _checked(key: str, value: Any, shown: str) -> Any:
    if key in _LISTS and isinstance(value, (str, int)):
        value = [value]
    try:
        return getattr(RunSettings.model_validate({key: value}), key)
    except ValidationError as error:
        first = error.errors()[0]
        problem = _IN_WORDS.get(key) or allowed_values(RunSettings, key, first["msg"])
        wrong = first["input"] if key in _LISTS else value
        text = wrong if isinstance(wrong, str) and wrong else repr(wrong)
        raise UsageError(f"{shown} {problem}, got {text if len(text) < 60 else text[:59] + '…'}") from None


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or not text:
            continue
        key = variable[len(ENVIRONMENT_PREFIX) :].lower()
        full = full_name(key)
        if full in RunSettings.model_fields or key == "preset":
            values[key] = [part.strip() for part in text.split(",")] if full in _LISTS else text
        elif _close(key):
            # Other parts of the program have variables of their own: only what looks like a slip is refused.
            raise UsageError(f"{variable}: unknown setting{_close(key)}")
    return values


def _close(key: str) -> str:
    known = [*RunSettings.model_fields, *ALIASES, "preset"]
    matches = difflib.get_close_matches(key, known, n=2, cutoff=0.75)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""
