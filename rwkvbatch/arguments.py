"""`checks`, a decorator that refuses arguments of another kind than a function of the library takes."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import ParamSpec, TypeVar, cast

from rwkvbatch.errors import ArgumentError, shown_value

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Kind:
    """The values that an argument may have.

    Attributes:
        in_words: what it must be, after "must be" in messages.
        accepts: whether a value is of this kind; never raises.
        hint: what to write instead.
    """

    in_words: str
    accepts: Callable[[object], bool]
    hint: str | None = None


def _is_path(value: object) -> bool:
    name = os.fspath(value) if isinstance(value, str | os.PathLike) else None  # pyright: ignore[reportUnknownArgumentType]
    try:
        return isinstance(name, str) and b"\0" not in os.fsencode(name) and name != ""
    except UnicodeEncodeError:  # an unpaired surrogate
        return False


def _is_iterable(value: object) -> bool:
    # Scalars of torch have `__iter__`, which raises.
    return isinstance(value, Iterable) and not isinstance(value, _NO_LISTS) and getattr(value, "ndim", 1) > 0  # pyright: ignore[reportUnknownArgumentType]


def _is_switch(value: object) -> bool:
    is_numpys = getattr(getattr(value, "dtype", None), "kind", None) == "b" and getattr(value, "ndim", None) == 0
    return isinstance(value, bool) or is_numpys


_NO_LISTS = (str, bytes, bytearray, Mapping)
"""Iterable types that are refused where a list is expected."""

TEXT = Kind("text", lambda value: isinstance(value, str))
NON_EMPTY_TEXT = Kind("text that is not empty", lambda value: isinstance(value, str) and value != "")
NAME = Kind("a path", lambda value: isinstance(value, str | os.PathLike))
PATH = Kind("a path (text that is not empty, or a pathlib.Path)", _is_path)
SWITCH = Kind("True or False", _is_switch)
FUNCTION = Kind("a function", callable)
ITERABLE = Kind("a list", _is_iterable)
NUMBER = Kind("a number", lambda value: isinstance(value, Real) and not isinstance(value, bool))


def whole_number(lowest: int | None = None, highest: int | None = None) -> Kind:
    """A whole number of Python or numpy in [lowest, highest], None for no limit; true and false are none."""

    def accepts(value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, Integral):
            return False
        return (lowest is None or int(value) >= lowest) and (highest is None or int(value) <= highest)

    limits = "" if lowest is None else f", at least {lowest}" if highest is None else f", {lowest} to {highest:,}"
    return Kind(f"a whole number{limits}", accepts)


def one_of(values: tuple[str, ...]) -> Kind:
    return Kind(f"one of {', '.join(values)}", lambda value: isinstance(value, str) and value in values)


def instance_of(kind: type, in_words: str, hint: str | None = None) -> Kind:
    return Kind(in_words, lambda value: isinstance(value, kind), hint)


def either(*kinds: Kind) -> Kind:
    hint = next((kind.hint for kind in kinds if kind.hint is not None), None)
    in_words = " or ".join(kind.in_words for kind in kinds)
    return Kind(in_words, lambda value: any(kind.accepts(value) for kind in kinds), hint)


def optional(kind: Kind) -> Kind:
    return Kind(f"{kind.in_words}, or None", lambda value: value is None or kind.accepts(value), kind.hint)


def list_of(kind: Kind, in_words: str, hint: str | None = None) -> Kind:
    """A collection of values of one kind: a list, a tuple, an array; text and mappings are none."""

    def accepts(value: object) -> bool:
        if not isinstance(value, Collection) or isinstance(value, _NO_LISTS):
            return False
        return all(map(kind.accepts, cast("Collection[object]", value)))

    return Kind(in_words, accepts, hint)


def check_argument(name: str, value: object, kind: Kind) -> None:
    """Raise `ArgumentError` if an argument is of another kind; it names the argument, its kind and the value."""
    if not kind.accepts(value):
        raise ArgumentError(f"{name} must be {kind.in_words}; got {shown_value(value)}", hint=kind.hint)


def checks(**kinds: Kind) -> Callable[[Callable[_Parameters, _Result]], Callable[_Parameters, _Result]]:
    """Check the arguments that a call gives before the function runs; defaults are not checked.

    Raises:
        ArgumentError: by the decorated function, as `check_argument`.
    """

    def decorate(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
        signature = inspect.signature(function)
        if unknown := kinds.keys() - signature.parameters.keys():
            raise TypeError(f"{function.__qualname__} has no arguments {', '.join(sorted(unknown))}")

        @functools.wraps(function)
        def checked(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError:
                given = {}  # the call below raises it
            for name, value in given.items():
                if (kind := kinds.get(name)) is not None:
                    check_argument(name, value, kind)
            return function(*args, **kwargs)

        return checked

    return decorate
