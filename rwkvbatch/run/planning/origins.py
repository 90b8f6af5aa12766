"""Where a setting that the user did not type came from, told with every error about it."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkvbatch.errors import InputError, RwkvBatchError

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
