"""A faster interpreter of Triton: leaves out work whose result it drops, and does once what it does for each operation.

The numbers that kernels compute are the same. Without these changes the tests of the kernels take twice the time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any


def speed_up() -> None:
    """Change the loaded Triton; do nothing without Triton."""
    try:
        import triton.language as tl
        from triton.runtime import interpreter
    except ImportError:
        return
    _list_the_language_once(tl, interpreter)
    _patch_the_language_once_per_launch(tl, interpreter)
    # The interpreter computes the condition of each check, and then makes no assertion without `debug`.
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    _share_types(tl, interpreter)


def _list_the_language_once(tl: Any, interpreter: Any) -> None:
    """Spare the interpreter a listing of the language's members at each call of a function inside a kernel.

    It looks there for functions to replace, of which `inspect.getmembers` finds hundreds; that is a third of its time.
    """
    spaces = (tl, tl.core, tl.math, tl.tensor)
    names = {space: [name for name, it in inspect.getmembers(space) if tl.core.is_builtin(it)] for space in spaces}

    class ListedOnce:
        def __getattr__(self, name: str) -> Any:
            return getattr(inspect, name)

        def getmembers(self, space: Any) -> list[tuple[str, Any]]:
            actual = names.get(space)
            return inspect.getmembers(space) if actual is None else [(name, getattr(space, name)) for name in actual]

    interpreter.inspect = ListedOnce()


def _patch_the_language_once_per_launch(tl: Any, interpreter: Any) -> None:
    """Replace the language's functions at the start of a kernel, not again at each call of a function inside it."""
    patch_language = interpreter._patch_lang
    patched: set[str] = set()  # modules, until the end of the kernel

    @cache
    def modules_of(function: Callable[..., Any]) -> frozenset[str]:
        return frozenset(it.__name__ for it in function.__globals__.values() if it is tl or it is tl.core)

    class Scope:
        def __init__(self, actual: Any) -> None:
            self.actual = actual

        def restore(self) -> None:
            patched.clear()
            self.actual.restore()

    def patch_once(function: Callable[..., Any]) -> Scope | None:
        modules = modules_of(function)
        if modules and modules <= patched:
            return None  # inside a kernel, where the result is not used
        patched.update(modules)
        return Scope(patch_language(function))

    interpreter._patch_lang = patch_once


def _share_types(tl: Any, interpreter: Any) -> None:
    """Make the types of blocks, and what a tensor holds besides its numbers, once for each type.

    A type's name says what it consists of: the type of the elements, and the shape.
    """
    make_tensor = tl.tensor.__init__
    tensors: dict[str, dict[str, Any]] = {}

    def make_like_others(tensor: Any, handle: Any, type: Any) -> None:
        like = tensors.get(type.name)
        if like is None:
            make_tensor(tensor, handle, type)
            tensors[type.name] = {name: value for name, value in vars(tensor).items() if name not in ("handle", "type")}
        else:
            vars(tensor).update(like, handle=handle, type=type)

    tl.tensor.__init__ = make_like_others
    tl.block_type.with_element_ty = _once_per_name(tl.block_type.with_element_ty)
    tl.block_type.to_ir = _once_per_name(tl.block_type.to_ir)
    interpreter._get_np_dtype = _once_per_name(interpreter._get_np_dtype)


def _once_per_name(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of types, and of objects without a name that are always the same, which remembers its results."""
    results: dict[tuple[str | None, ...], Any] = {}

    def remembered(*arguments: Any) -> Any:
        key = tuple([getattr(argument, "name", None) for argument in arguments])
        if key not in results:
            results[key] = function(*arguments)
        return results[key]

    return remembered
