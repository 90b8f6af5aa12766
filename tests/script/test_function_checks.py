"""Checks that a program gives as functions, or a user as a file of functions."""

from __future__ import annotations

import functools
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkvbatch.errors import ArgumentError, RowError, ScriptError, UsageError
from rwkvbatch.script.checks import Check, ReplyFacts, Verdict, judge_all, kinds_of_functions, parse_checks
from rwkvbatch.script.checks.functions import CODE, Functions, using_functions
from tests.script.writing import HERE

FACTS = ReplyFacts("one two", "stop", 2)
LIMIT = 3


def parsed(entry: object, functions: Functions | None) -> tuple[Check, ...]:
    with using_functions(kinds_of_functions(functions)):
        return parse_checks(entry, HERE)


def code_of(function: Callable[..., Any]) -> str:
    return kinds_of_functions({"a": function})["a"].code


def below_limit(facts: ReplyFacts) -> bool:
    return _count(facts.text) < LIMIT


def _count(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize(
    ("result", "verdict"),
    [
        (True, Verdict(True, 1.0)),
        (False, Verdict(False, 0.0)),
        (np.bool_(True), Verdict(True, 1.0)),
        (1, Verdict(True, 1.0)),
        (0.25, Verdict(False, 0.25, "scored 0.25")),
        (np.float32(1), Verdict(True, 1.0)),
        (Verdict(True, 0.5, "half"), Verdict(True, 0.5, "half")),
    ],
)
def test_what_a_function_returns_is_the_verdict(result: object, verdict: Verdict) -> None:
    (check,) = parsed({"mine": True}, {"mine": lambda facts: result})
    assert check.judge(FACTS) == verdict


@pytest.mark.parametrize("result", [None, "yes", [True], 1.5, -0.1, float("nan")])
def test_another_result_is_an_error_of_the_row(result: object) -> None:
    (check,) = parsed({"mine": True}, {"mine": lambda facts: result})
    with pytest.raises(RowError, match="the check 'mine'"):
        check.judge(FACTS)


def test_an_exception_is_an_error_of_the_row() -> None:
    (check,) = parsed({"mine": True}, {"mine": lambda facts: {}["missing"]})
    with pytest.raises(RowError, match="the check 'mine' failed with KeyError: 'missing'"):
        check.judge(FACTS)


def test_a_function_of_two_arguments_gets_the_value() -> None:
    checks = parsed([{"words": 2}, {"words": 3, "weight": 3}], {"words": lambda facts, n: len(facts.text.split()) == n})
    assert judge_all(checks, FACTS).score == 0.25


def test_a_function_of_one_argument_is_named_with_true() -> None:
    with pytest.raises(ScriptError, match="mine: must be true, because the function takes no value, got 3"):
        parsed({"mine": 3}, {"mine": lambda facts: True})


def test_functions_may_be_combined() -> None:
    (check,) = parsed({"not": {"any": [{"mine": True}, {"contains": "x"}]}}, {"mine": lambda facts: False})
    assert check.judge(FACTS).passed


def test_names_hold_in_their_context_only() -> None:
    parsed({"mine": True}, {"mine": lambda facts: True})
    with pytest.raises(ScriptError, match="unknown key 'mine'"):
        parsed({"mine": True}, None)


@pytest.mark.parametrize("name", ["contains", "all", "judge", "weight", "ignore_case", "votes", CODE])
def test_a_name_that_is_taken_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=re.escape(f"checks[{name!r}] has a name that is taken")):
        kinds_of_functions({name: lambda facts: True})
    path = tmp_path / "checks.py"
    path.write_text(f"def {name}(facts): return True\n")
    with pytest.raises(UsageError, match=f"the function '{name}' has a name that is taken"):
        kinds_of_functions(path)


async def asynchronous(facts: ReplyFacts) -> bool:
    return True


class Always:
    def __call__(self, facts: ReplyFacts) -> bool:
        return True


@pytest.mark.parametrize("function", [asynchronous, Always(), len, lambda: True, lambda a, b, c: True, "len", None])
def test_what_is_no_such_function_is_refused(function: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^checks\['mine'\] must "):
        kinds_of_functions({"mine": function})


@pytest.mark.parametrize("name", ["", " a", "a\n", 3])
def test_what_is_no_name_is_refused(name: Any) -> None:
    with pytest.raises(ArgumentError, match="a name must be printable text"):
        kinds_of_functions({name: lambda facts: True})


class TestCode:
    """The hash of a function's code, on which the digests of its rows depend."""

    def test_it_is_in_the_check_also_inside_combinations(self) -> None:
        first, second = {"mine": lambda facts: True}, {"mine": lambda facts: False}
        for entry in ({"mine": True}, {"all": [{"mine": True}]}, {"not": {"any": {"mine": True}}}):
            assert parsed(entry, first)[0].as_dict() == parsed(entry, first)[0].as_dict()
            assert parsed(entry, first)[0].as_dict() != parsed(entry, second)[0].as_dict()
        assert parsed({"contains": "a"}, first)[0].as_dict() == parsed({"contains": "a"}, None)[0].as_dict()

    def test_it_depends_on_constants_defaults_and_closures(self) -> None:
        def shorter(limit: object) -> Callable[..., Any]:
            return lambda facts: facts.text < limit

        assert code_of(shorter("a")) == code_of(shorter("a"))
        assert len({code_of(shorter(limit)) for limit in ("a", "b", 1, True, 1.0, (1,), [1], {"a": 1}, None)}) == 9
        assert code_of(lambda facts: "a" in facts.text) != code_of(lambda facts: "b" in facts.text)
        assert code_of(lambda facts, n=1: n) != code_of(lambda facts, n=2: n)
        assert code_of(lambda facts: facts.text) != code_of(lambda facts: facts.reference)

    def test_it_depends_on_names_of_the_module(self, monkeypatch: pytest.MonkeyPatch) -> None:
        codes = {code_of(below_limit), code_of(below_limit)}
        module = sys.modules[__name__]
        monkeypatch.setattr(module, "LIMIT", 4)
        codes.add(code_of(below_limit))
        other = {"__name__": __name__}
        exec("def _count(text):\n    return len(text)\n", other)  # noqa: S102
        monkeypatch.setattr(module, "_count", other["_count"])
        codes.add(code_of(below_limit))
        assert len(codes) == 3

    def test_it_does_not_depend_on_the_order_of_a_set(self) -> None:
        one, two = (f"def f(facts): return facts.text in {{{names}}}" for names in ("'a', 'b'", "'b', 'a'"))
        codes: list[str] = []
        for text in (one, two):
            names: dict[str, Any] = {}
            exec(text, names)  # noqa: S102
            codes.append(code_of(names["f"]))
        assert codes[0] == codes[1]

    def test_of_other_objects_it_has_the_type(self) -> None:
        def calling(thing: object) -> Callable[..., Any]:
            return lambda facts: thing

        assert code_of(calling(Always())) == code_of(calling(Always()))
        assert len({code_of(calling(thing)) for thing in (Always(), Always, object(), len, max, re, sys)}) == 7

    def test_it_depends_on_the_methods_of_a_class_of_the_module(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def function(facts: ReplyFacts) -> bool:
            return Always()(facts)

        before = code_of(function)
        monkeypatch.setattr(Always, "__call__", lambda self, facts: False)
        monkeypatch.setattr(Always.__call__, "__module__", __name__)
        assert code_of(function) != before

    def test_functions_that_call_each_other_have_one(self) -> None:
        names: dict[str, Any] = {"__name__": "recursive"}
        exec("def a(facts):\n    return b(facts)\ndef b(facts):\n    return a(facts)\n", names)  # noqa: S102
        assert code_of(names["a"]) != code_of(names["b"])

    @pytest.mark.parametrize(
        "text",
        [
            "class A:\n    @staticmethod\n    def a(): return {0}\ndef f(facts): return A.a()\n",
            "class A:\n    @classmethod\n    def a(cls): return {0}\ndef f(facts): return A.a()\n",
            "class A:\n    @property\n    def a(self): return {0}\ndef f(facts): return A().a\n",
            "class A:\n    @functools.cached_property\n    def a(self): return {0}\ndef f(facts): return A().a\n",
            "class A:\n    limit = {0}\ndef f(facts): return A.limit\n",
            "class B:\n    def a(self): return {0}\nclass A(B): pass\ndef f(facts): return A().a()\n",
            "@functools.lru_cache\ndef a(): return {0}\ndef f(facts): return a()\n",
            "def a(n, m=0): return n\nb = functools.partial(a, {0})\ndef f(facts): return b()\n",
            "def a(n, m=0): return n\nb = functools.partial(a, 0, m={0})\ndef f(facts): return b()\n",
            "def a(n=0): return {0}\nb = functools.partial(a, 1)\ndef f(facts): return b()\n",
        ],
    )
    def test_it_depends_on_what_classes_and_wrappers_contain(self, text: str) -> None:
        def code(number: int) -> str:
            names: dict[str, Any] = {"__name__": "wrapping", "functools": functools}
            exec(text.replace("{0}", str(number)), names)  # noqa: S102
            return code_of(names["f"])

        assert code(1001) == code(1001) != code(1002)

    def test_values_that_contain_themselves_and_shared_ones_are_taken_once(self) -> None:
        def code(last: int) -> str:
            own: list[Any] = []
            own.extend([own] * 3)
            shared: Any = [last]
            for _ in range(40):
                shared = (shared, shared, {"a": shared})
            return code_of(lambda facts: (own, shared))

        assert code(1) == code(1) != code(2)

    def test_that_of_a_file_is_the_hash_of_the_file(self, tmp_path: Path) -> None:
        path, codes = tmp_path / "checks.py", set[str]()
        for text in ("def mine(facts): return True\n", "def mine(facts): return True\n", "def mine(facts): return 1\n"):
            path.write_text(text)
            codes.add(kinds_of_functions(path)["mine"].code)
        assert len(codes) == 2


class TestFile:
    def test_its_public_functions_are_kinds(self, tmp_path: Path) -> None:
        path = tmp_path / "checks.py"
        path.write_text(
            "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom os.path import join\n"
            "@dataclass\nclass Limit:\n    words: int\n"
            "def _words(facts): return len(facts.text.split())\n"
            "def at_most(facts, words): return _words(facts) <= Limit(words).words\n"
            "def brief(facts): return at_most(facts, 1)\n"
        )
        assert [*kinds_of_functions(path)] == ["at_most", "brief"]
        checks = parsed({"at_most": 2, "brief": True}, str(path))
        assert [check.judge(FACTS).passed for check in checks] == [True, False]

    def test_it_may_begin_with_a_byte_order_mark(self, tmp_path: Path) -> None:
        path = tmp_path / "checks.py"
        path.write_text("def brief(facts): return True\n", encoding="utf-8-sig")
        assert [*kinds_of_functions(path)] == ["brief"]

    def test_another_process_needs_no_file(self, tmp_path: Path) -> None:
        path = tmp_path / "checks.py"
        path.write_text("def brief(facts): return len(facts.text) < 3\n")
        (check,) = parsed({"brief": True}, path)
        path.unlink()
        assert not pickle.loads(pickle.dumps(check)).judge(FACTS).passed

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("x = 1\n", "defines no function"),
            ("def mine(facts): return True\n1 / 0\n", r"checks.py:2: cannot be loaded: ZeroDivisionError"),
            ("def mine(facts) return True\n", "cannot be loaded: SyntaxError"),
            ("raise SystemExit(3)\n", "cannot be loaded: SystemExit: 3"),
            ("import os\nos._exit(0)\n", "cannot be loaded: ProcessEndedError"),
            ("def mine(a, b, c): return True\n", "the function 'mine' must take the facts"),
        ],
    )
    def test_a_file_that_cannot_be_used_is_refused(self, text: str, message: str, tmp_path: Path) -> None:
        path = tmp_path / "checks.py"
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            kinds_of_functions(path)

    def test_a_file_that_cannot_be_read_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="cannot be read: No such file"):
            kinds_of_functions(tmp_path / "none.py")


def test_the_file_of_the_documents_works(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "scripts.md").read_text(encoding="utf-8")
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "def polite" in code]
    (path := tmp_path / "checks.py").write_text(example)
    verdict = judge_all(parsed({"polite": True, "words": 4}, path), ReplyFacts("Please " * 5, "stop", 5))
    assert verdict == Verdict(False, 0.9, "words: has 5 words")
