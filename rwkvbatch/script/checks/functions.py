"""Checks that a program gives as functions, or a user as a file of functions (`--check-module`), for one command.

A script names such a check by its kind only. No line of a script names code, and a copy of a script in a run directory
has a hash of it (`CODE`), so that a changed function judges again, and so that the copy can be read without the code.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Generator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from traceback import extract_tb
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, cast

from rwkvbatch import signals
from rwkvbatch.arguments import NUMBER, SWITCH
from rwkvbatch.errors import ArgumentError, RowError, UsageError, in_words, shown_value
from rwkvbatch.hashes import json_sha256
from rwkvbatch.script.checks.text import wrong
from rwkvbatch.script.records import ReplyFacts, Rule, Verdict
from rwkvbatch.signals import ENDS_PROCESS, forbid_process_exit

CODE = "code_sha256"
"""Key of an entry in a script's copy: the hash of the function's code."""

OPTION = "--check-module"
_HOW = "def check(facts), or def check(facts, expected), which returns True or False, a score in [0, 1] or a Verdict"
_MAX_DEPTH = 64
_SET_DEPTH = 8
_NO_MEMBERS = {"__dict__", "__weakref__", "__doc__", "__module__", "__firstlineno__", "__static_attributes__"} | {
    "__annotations_cache__"
}
_Seen = dict[int, tuple[int, object]]
"""By `id`, when a value was taken first, and the value, which keeps the `id` its own."""

Function = Callable[..., Any]
Functions = Mapping[str, Function] | str | os.PathLike[str]


@dataclass(frozen=True)
class FunctionKind:
    """A kind of check that a function judges; a `RuleKind`.

    Attributes:
        takes_value: whether the function takes the value of the entry in addition to the facts.
        code: hash of its code.
    """

    name: str
    function: Function
    takes_value: bool
    code: str
    options: frozenset[str] = frozenset({CODE})

    def parse(self, expected: Any, options: Mapping[str, Any]) -> Rule:
        if not self.takes_value and expected is not True:
            wrong("must be true, because the function takes no value", expected, hint=f'write {{"{self.name}": true}}')
        return _FunctionRule(self.name, self.function, self.takes_value, expected)


@dataclass(frozen=True)
class _FunctionRule:
    name: str
    function: Function
    takes_value: bool
    expected: Any

    def judge(self, facts: ReplyFacts) -> Verdict:
        result = self.function(facts, self.expected) if self.takes_value else self.function(facts)
        if isinstance(result, Verdict):
            return result
        if SWITCH.accepts(result):
            return Verdict(bool(result), float(result))
        if NUMBER.accepts(result):
            score = float(result)
            return Verdict(score == 1, score, None if score == 1 else f"scored {score:g}")
        raise TypeError(f"it must return True or False, a score in [0, 1] or a Verdict; got {shown_value(result)}")


@dataclass(frozen=True)
class AbsentRule:
    """The rule of an entry of a script's copy whose function is not given. The rows have its verdicts."""

    name: str

    def judge(self, facts: ReplyFacts) -> Verdict:
        raise RowError(f"the check {self.name!r} is a function that is not given", hint=HOW_TO_GIVE)


HOW_TO_GIVE = f"give it: {OPTION} FILE, or the argument `checks` of `rwkvbatch.run`"

_kinds: ContextVar[Mapping[str, FunctionKind] | None] = ContextVar("_kinds", default={})  # noqa: B039 (never changed)


def given_kinds() -> Mapping[str, FunctionKind]:
    """The kinds that scripts may name in this context."""
    return _kinds.get() or {}


def reads_copy() -> bool:
    """Whether the script's copy in a run directory is read, whose functions need not be given."""
    return _kinds.get() is None


@contextmanager
def using_functions(kinds: Mapping[str, FunctionKind] | None) -> Generator[None]:
    """Scripts that are read in this context may name these kinds; None: it is a copy, whose functions are absent."""
    token = _kinds.set(kinds)
    try:
        yield
    finally:
        _kinds.reset(token)


def read_functions(functions: Functions | None, reserved: AbstractSet[str]) -> Mapping[str, FunctionKind]:
    """The kinds of functions, or of a file with functions.

    Args:
        functions: by the name of the kind, functions; or the file.
        reserved: names that mean something else in an entry.

    Raises:
        ArgumentError: a name or a function cannot be used.
        UsageError: the file cannot be read or loaded, or one of its functions cannot be used.
    """
    if functions is None:
        return {}
    if isinstance(functions, (str, os.PathLike)):
        return _of_file(Path(functions), reserved)
    kinds: dict[str, FunctionKind] = {}
    for name, function in functions.items():
        if not isinstance(name, str) or not name.isprintable() or name != name.strip() or not name:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ArgumentError(f"checks: a name must be printable text, got {shown_value(name)}")
        place = f"checks[{name!r}]"
        if (problem := _problem(name, function, reserved)) is not None:
            raise ArgumentError(f"{place} {problem}", hint=f"write {_HOW}")
        code = json_sha256(_fingerprint(cast("FunctionType", function)))
        kinds[name] = FunctionKind(name, function, _takes_value(function), code)
    return kinds


def _problem(name: str, function: object, reserved: AbstractSet[str]) -> str | None:
    """Why a function cannot be a check, after its name in a message; None if it can."""
    if name in reserved or name == CODE:
        return "has a name that is taken: it is a kind of check, or an option of one"
    if not inspect.isfunction(function):
        return f"must be a function; got {shown_value(function)}"
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        return "must not be asynchronous or a generator"
    if not _accepts(function, 1) and not _accepts(function, 2):
        return "must take the facts about a reply, and perhaps the value in the script"
    return None


def _accepts(function: Function, num_arguments: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * num_arguments)
    except TypeError:
        return False
    return True


def _takes_value(function: Function) -> bool:
    return _accepts(function, 2)


@dataclass(frozen=True)
class _FunctionOfFile:
    """A function of a file. Other processes load the text of the file, which they need not have."""

    path: str
    text: str = field(repr=False)
    name: str

    def __call__(self, *arguments: Any) -> Any:
        return getattr(_loaded(self.path, self.text), self.name)(*arguments)


def _of_file(path: Path, reserved: AbstractSet[str]) -> Mapping[str, FunctionKind]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: cannot be read: {reason}", hint=f"{OPTION} names a Python file") from None
    module = _loaded(str(path), text)
    code = hashlib.sha256(text.encode()).hexdigest()
    kinds: dict[str, FunctionKind] = {}
    for name, function in vars(module).items():
        if name.startswith("_") or not inspect.isfunction(function) or function.__module__ != module.__name__:
            continue
        if (problem := _problem(name, function, reserved)) is not None:
            hint = f"write {_HOW}; begin the names of other functions with _"
            raise UsageError(f"{path}: the function {name!r} {problem}", hint=hint)
        of_file = _FunctionOfFile(str(path), text, name)
        kinds[name] = FunctionKind(name, of_file, _takes_value(function), code)
    if not kinds:
        raise UsageError(f"{path}: defines no function", hint=f"write {_HOW}")
    return kinds


@lru_cache(maxsize=16)
def _loaded(path: str, text: str) -> ModuleType:
    """The module that the text of a file makes.

    Raises:
        UsageError: it cannot be loaded.
    """
    if signals.before_foreign_code is not None:
        signals.before_foreign_code()
    module = ModuleType(f"_rwkvbatch_checks_{hashlib.sha256(f'{path}:{text}'.encode()).hexdigest()[:16]}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        with forbid_process_exit():
            exec(compile(text, path, "exec", dont_inherit=True), module.__dict__)  # noqa: S102 (the user named the file)
    except ENDS_PROCESS:
        raise
    except BaseException as error:
        lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == path]
        place = f"{path}:{lines[-1]}" if lines else path
        raise UsageError(f"{place}: cannot be loaded: {in_words(error)}", hint="fix it; it is run as Python") from error
    return module


def _fingerprint(function: FunctionType, seen: _Seen | None = None) -> list[Any]:
    """All that a function's results depend on, as JSON values, apart from functions of other modules.

    These are its bytecode, which is there for functions of a notebook too, its defaults, the values of its closure, and
    those of the names of its module that it uses.

    Args:
        seen: the values that were taken already.
    """
    seen = {} if seen is None else seen
    if id(function) in seen:
        return ["seen", seen[id(function)][0]]
    seen[id(function)] = (len(seen), function)
    code = function.__code__
    names = sorted(_names(code) & function.__globals__.keys())
    cells = [cell.cell_contents for cell in function.__closure__ or () if not _is_empty(cell)]
    values = [function.__defaults__, function.__kwdefaults__, cells, [function.__globals__[name] for name in names]]
    return [_code(code), names, _value(values, function.__module__, 0, seen)]


def _is_empty(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return True
    return False


def _names(code: CodeType) -> set[str]:
    nested = (const for const in code.co_consts if isinstance(const, CodeType))
    return {*code.co_names}.union(*map(_names, nested))


def _code(code: CodeType) -> list[Any]:
    consts = [_code(const) if isinstance(const, CodeType) else _constant(const) for const in code.co_consts]
    names = [code.co_names, code.co_varnames, code.co_freevars]
    handlers = getattr(code, "co_exceptiontable", b"").hex()  # since Python 3.11
    bytecode = [sys.version_info[:2], code.co_flags, code.co_code.hex(), handlers]
    return [*bytecode, consts, [list(each) for each in names]]


def _constant(value: object) -> Any:
    if isinstance(value, tuple | frozenset):
        kind = "tuple" if isinstance(value, tuple) else "frozenset"
        items = [_constant(item) for item in cast("tuple[object, ...]", value)]
        return [kind, items if kind == "tuple" else sorted(items, key=repr)]
    return [type(value).__name__, repr(value)]


def _value(value: object, module: str, depth: int, seen: _Seen) -> Any:
    """A value as JSON values; of objects of other types, such as models and clients, their type."""
    if depth > _MAX_DEPTH:
        return "deeper"
    if value is None or type(value) in (bool, int, float, str, bytes):
        return [type(value).__name__, repr(value)]
    if isinstance(value, re.Pattern):
        pattern = cast("re.Pattern[Any]", value)
        return ["re", repr(pattern.pattern), pattern.flags]
    if isinstance(value, ModuleType):
        return ["module", value.__name__]
    if isinstance(value, FunctionType) and value.__module__ == module:
        return _fingerprint(value, seen)
    if type(value) in (set, frozenset):  # in any order, so that no item may depend on what was seen in another
        each = [_value(item, module, depth + _SET_DEPTH, {**seen}) for item in cast("set[object]", value)]
        return [type(value).__name__, sorted(each, key=repr)]
    parts = _parts(value, module)
    if parts is None:
        named = value if isinstance(value, type | FunctionType) or inspect.isbuiltin(value) else type(value)
        return [type(value).__name__, named.__module__, named.__qualname__]
    if id(value) in seen:
        return ["seen", seen[id(value)][0]]
    seen[id(value)] = (len(seen), value)
    return [type(value).__name__, [_value(part, module, depth + 1, seen) for part in parts]]


def _parts(value: Any, module: str) -> list[Any] | None:
    """The values that a container, a class of the module or a wrapper of a function consists of; None for others."""
    if type(value) in (list, tuple):
        return [*value]
    if type(value) is dict:
        return [part for pair in cast("dict[Any, Any]", value).items() for part in pair]
    if isinstance(value, type):
        if value.__module__ != module:
            return None
        members = [part for name, member in vars(value).items() if name not in _NO_MEMBERS for part in (name, member)]
        return [value.__qualname__, *value.__bases__, *members]
    if isinstance(value, staticmethod | classmethod | MethodType):
        return [cast("Any", value).__func__]
    if isinstance(value, property):
        return [value.fget, value.fset, value.fdel]
    if isinstance(value, cached_property):
        return [value.func]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    wrapped = inspect.getattr_static(value, "__wrapped__", None)  # such as of `lru_cache`
    return None if wrapped is None else [wrapped]
