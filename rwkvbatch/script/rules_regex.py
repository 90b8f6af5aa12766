"""The `regex` check. Patterns come from scripts, so matching has a deadline, which the standard library's cannot have.

A pattern must be one of `re`: what the `regex` library adds to it, such as recursion, can take any amount of memory.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import regex

from rwkvbatch.script.records import ReplyFacts, Verdict
from rwkvbatch.script.rules import IGNORE_CASE, answer, excerpt, flag, text_of, verdict, wrong

MAX_PATTERN_LENGTH = 2000
MAX_COMPILED_SIZE = 500_000
MAX_SEARCHED_CHARACTERS = 100_000
DEADLINE_S = 1.0

# The library writes counted repeats out when it compiles. In verbose patterns a count may have spaces in it.
_COUNTED = re.compile(r"\{([0-9]+(?:,[0-9]*)?|,[0-9]+)\}")
_VERBOSE = re.compile(r"\(\?[a-zA-Z]*x")


def compile_pattern(pattern: str, flags: int = 0) -> regex.Pattern[str]:
    """`pattern` compiled.

    Raises:
        ValueError: it is no regular expression of `re`, or too long or too deep to compile.
    """
    if len(pattern) > MAX_PATTERN_LENGTH:
        raise ValueError(f"longer than {MAX_PATTERN_LENGTH} characters")
    if _VERBOSE.search(pattern):
        raise ValueError("the flag x (verbose) is not supported")
    size = len(pattern)
    for counts in _COUNTED.findall(pattern):
        size *= max(1, *(int(count[:9]) for count in counts.split(",") if count))
    if size > MAX_COMPILED_SIZE:
        raise ValueError("its counted repeats, such as {1000}, are too large together")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(pattern)
            return regex.compile(pattern, flags | regex.VERSION0)
    except (re.error, regex.error) as error:
        raise ValueError(str(error)) from None
    except (RecursionError, MemoryError, OverflowError):
        raise ValueError("too deep or too large to compile") from None


def search(pattern: regex.Pattern[str], text: str) -> bool:
    """Whether `pattern` matches anywhere in the first `MAX_SEARCHED_CHARACTERS` of `text`.

    Raises:
        TimeoutError, MemoryError: it takes longer than `DEADLINE_S`, or too much memory.
    """
    return pattern.search(text[:MAX_SEARCHED_CHARACTERS], timeout=DEADLINE_S) is not None


@dataclass(frozen=True)
class Matches:
    """The pattern matches somewhere in the answer."""

    options: ClassVar[frozenset[str]] = IGNORE_CASE
    pattern: regex.Pattern[str]

    @classmethod
    def parse(cls, expected: Any, options: Mapping[str, Any]) -> Self:
        flags = regex.IGNORECASE if flag(options, "ignore_case") else 0
        try:
            return cls(compile_pattern(text_of(expected), flags))
        except ValueError as error:
            wrong(f"is no regular expression ({error})", expected)

    def judge(self, facts: ReplyFacts) -> Verdict:
        text = answer(facts)
        try:
            return verdict(search(self.pattern, text), f"got {excerpt(text)}")
        except TimeoutError:
            return verdict(
                False, f"gave up: matching took longer than {DEADLINE_S:g} s; simplify the pattern"
            )
