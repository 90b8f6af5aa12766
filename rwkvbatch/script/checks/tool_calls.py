"""The check `tool_call`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from rwkvbatch.script.checks.json_schema import hashable
from rwkvbatch.script.checks.text import answer, answer_of, excerpt, flag, verdict, wrong
from rwkvbatch.script.lines import is_array, is_object
from rwkvbatch.script.records import ReplyFacts, Verdict
from rwkvbatch.script.tools import Call, calls_in, calls_text


@dataclass(frozen=True)
class ToolCall:
    """The answer makes these calls, in any order: the same functions with equal arguments, compared as JSON values.

    Attributes:
        calls: the expected calls; None for those of the reference. If the arguments of a call are None, any match.
        allow_extra: whether a call may have further arguments.
    """

    options: ClassVar[frozenset[str]] = frozenset({"allow_extra"})
    calls: tuple[tuple[str, Mapping[str, Any] | None], ...] | None
    allow_extra: bool

    @property
    def needs_reference(self) -> bool:
        return self.calls is None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the expected functions."""
        return tuple(name for name, _ in self.calls or ())

    @classmethod
    def parse(cls, expected: Any, options: Mapping[str, Any]) -> Self:
        allow_extra = flag(options, "allow_extra")
        if expected is True:
            return cls(None, allow_extra)
        items: list[Any] = expected if is_array(expected) else [expected]
        return cls(tuple(map(_expected_call, items)), allow_extra)

    def judge(self, facts: ReplyFacts) -> Verdict:
        expected = self.calls
        if expected is None:
            if facts.reference is None:
                return Verdict(False, 0.0, "the turn has no reference reply", undecided=True)
            reference = calls_in(answer_of(facts.reference))
            if isinstance(reference, str):
                return Verdict(False, 0.0, f"the reference {reference}", undecided=True)
            expected = tuple((call.name, call.arguments) for call in reference)
        text = answer(facts)
        calls = calls_in(text)
        if isinstance(calls, str):
            return verdict(False, f"{calls}: {excerpt(text)}")
        partners = [
            [index for index, call in enumerate(calls) if self._matches(call, name, arguments)]
            for name, arguments in expected
        ]
        if (unmatched := _unmatched(partners)) is not None:
            name, arguments = expected[unmatched]
            got = excerpt(calls_text(calls)) if calls else f"no call: {excerpt(text)}"
            return verdict(False, f"expected a call of {name!r}{_with(arguments)}; got {got}")
        return verdict(len(calls) == len(expected), f"makes {len(calls)} calls, expected {len(expected)}")

    def _matches(self, call: Call, name: str, arguments: Mapping[str, Any] | None) -> bool:
        """Whether `call` is the expected call of `name` with `arguments`."""
        if call.name != name:
            return False
        if arguments is None:
            return True
        compared = {key: value for key, value in call.arguments.items() if key in arguments or not self.allow_extra}
        return hashable(compared) == hashable(arguments)


def _unmatched(partners: Sequence[Sequence[int]]) -> int | None:
    """The first expected call for which no call is left, however calls are assigned; None if each gets its own.

    A maximum matching by augmenting paths: a call that is taken goes to the next expected call, if the one that has it
    can take another.

    Args:
        partners: for each expected call, the indices of the calls that match it.
    """
    taken_by: dict[int, int] = {}
    for start in range(len(partners)):
        came_from: dict[int, int] = {}  # a call, and the expected call that would take it
        queue = [start]
        free: int | None = None
        for item in queue:
            for call in partners[item]:
                if call not in came_from:
                    came_from[call] = item
                    if call not in taken_by:
                        free = call
                        break
                    queue.append(taken_by[call])
            if free is not None:
                break
        if free is None:
            return start
        while free is not None:
            item = came_from[free]
            former = next((call for call, holder in taken_by.items() if holder == item), None)
            taken_by[free] = item
            free = former
    return None


def _with(arguments: Mapping[str, Any] | None) -> str:
    return "" if arguments is None else f" with {excerpt(json.dumps(arguments, ensure_ascii=False))}"


def _expected_call(item: Any) -> tuple[str, Mapping[str, Any] | None]:
    name, arguments = item, None
    if is_object(item) and "name" in item and item.keys() <= {"name", "arguments"}:
        name, arguments = item["name"], item.get("arguments")
        if "arguments" in item and not is_object(arguments):
            wrong("must have arguments that are an object", arguments)
    if not isinstance(name, str) or not name.strip():
        hint = 'write "NAME", {"name": "...", "arguments": {...}}, an array of such, or true for those of the reference'
        wrong("must be a call, an array of calls, or true", item, hint=hint)
    return name, arguments
