"""Checks of final answers: `boxed`, `math` and `ifeval`."""

from __future__ import annotations

import io
import json
import os
import random
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rwkvbatch.errors import MissingExtraError, ScriptError
from rwkvbatch.script.checks import Verdict, answers, instructions, judge_all, mathematics, parse_checks
from rwkvbatch.script.records import ReplyFacts
from tests.script.writing import HERE


def judged(entry: dict[str, Any], reply: str) -> Verdict:
    return judge_all(parse_checks(entry, HERE), ReplyFacts(reply, "stop", 3))


@pytest.mark.parametrize(
    ("reply", "passed"),
    [
        (r"So \boxed{\dfrac{1}{2}}.", True),
        (r"\boxed{3} no, \boxed{ \frac{1}{2} }", True),
        (r"\boxed{\frac12}", True),
        (r"$\boxed{\left. \tfrac{1}{2} \right.}$", True),
        (r"\boxed{\frac{1}{2}} or \boxed{3}", False),
        (r"\boxed{\frac{1}{2}", False),
        (r"\frac{1}{2}", False),
        (r"<think>\boxed{\frac{1}{2}}</think>\boxed{2}", False),
        (r"so \boxed \frac{1}{2}", True),
        (r"so \boxed \frac{1}{2}$. Done", True),
        (r"so \boxed 2", False),
    ],
)
def test_the_last_complete_box_is_compared(reply: str, passed: bool) -> None:
    assert judged({"boxed": r"\frac{1}{2}"}, reply).passed == passed


@pytest.mark.parametrize(
    ("expected", "content", "passed"),
    [
        (r"x \rightarrow y", r"x \to y", False),
        (r"x \rightarrow y", r"x \leftarrow y", False),
        (r"x \rightarrow y", "x arrow y", False),
        (r"\displaystylefoo", "foo", False),
        (r"\left. x \right|", "x |", True),
        (r"\displaystyle x", "x", True),
        (r"(1,234)", "(1234)", False),
        (r"[0, 1,234)", "[0, 1234)", False),
        (r"\{1,234\}", r"\{1234\}", False),
        ("(1{,}234)", "(1234)", True),
        ("1,234", "1234", True),
        ("f(x) + 1,234,567", "f(x)+1234567", True),
        (r"\frac{1,234}{5}", r"\frac{1234}{5}", True),
        ("1,2,345", "1,2345", False),
        (r"a \\ b", r"a\\b", True),
        ("5.", "5", True),
    ],
)
def test_only_the_layout_of_a_box_is_ignored(expected: str, content: str, passed: bool) -> None:
    assert judged({"boxed": expected}, rf"\boxed{{{content}}}").passed == passed
    assert judged({"boxed": content}, rf"\boxed{{{expected}}}").passed == passed


def test_a_box_may_contain_braces() -> None:
    assert answers.last_boxed(r"\boxed{\{1, 2\}} and \fbox{a_{b_{c}}}") == r"a_{b_{c}}"
    assert answers.last_boxed(r"\boxed{\{1, 2\}}") == r"\{1, 2\}"


@pytest.mark.parametrize(
    ("expected", "reply", "passed"),
    [
        (r"\frac{1}{2}", "So it is 0.5", True),
        (r"\frac{1}{2}", r"Hence $\frac{2}{4}$.", True),
        (r"\frac{1}{2}", r"\boxed{1/2}, and not 3", True),
        (r"\frac{1}{2}", "So it is 0.6", False),
        (r"\frac{1}{2}", "No idea.", False),
        ("x^2+1", "1 + x^2", True),
        ("x^2+1", r"\boxed{x^2 - 1}", False),
        (r"\{1, 2\}", r"\boxed{\{2, 1\}}", True),
        (r"2\sqrt{2}", r"$\sqrt{8}$", True),
        ("5", "The last of 3, 4 and 5 is 5", True),
        (r"\$36", r"\boxed{36}", True),
        (r"\$36", r"\boxed{\$37}", False),
        ("32348", r"\boxed{\$32,\!348}", True),
        (r"\begin{pmatrix} 1 \\[2pt] 2 \end{pmatrix}", r"\boxed{\begin{pmatrix} 1 \\[2pt] 2 \end{pmatrix}}", True),
    ],
)
def test_mathematics_is_compared_by_its_value(expected: str, reply: str, passed: bool) -> None:
    assert judged({"math": expected}, reply).passed == passed


def test_a_comparison_past_its_deadline_is_undecided_and_the_next_has_a_new_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check = parse_checks({"math": "12"}, HERE)
    monkeypatch.setattr(mathematics, "DEADLINE_S", 0.3)
    found = judge_all(check, ReplyFacts(r"\boxed{9^{9^{9^{9^9}}}}", "stop", 3))
    assert found.undecided
    assert not found.passed
    monkeypatch.undo()
    assert judge_all(check, ReplyFacts(r"\boxed{12.0}", "stop", 3)).passed  # in a new process


def test_an_expected_value_that_is_no_expression_is_refused() -> None:
    with pytest.raises(ScriptError, match=r"expect\.math: must be an expression"):
        parse_checks({"math": "$"}, HERE)


def test_without_math_verify_the_hint_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="math-verify") as caught:
        parse_checks({"math": "1"}, HERE)
    assert "rwkvbatch[math]" in str(caught.value.hint)


def test_a_comparison_whose_process_starts_too_late_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mathematics, "START_DEADLINE_S", 0.0)
    monkeypatch.setattr(mathematics, "_child", None)
    assert mathematics.compare("7", "7 - started late") == mathematics.Equality.GAVE_UP
    assert mathematics._child is None
    mathematics.compare.cache_clear()


def test_a_forked_process_does_not_end_the_comparing_process(monkeypatch: pytest.MonkeyPatch) -> None:
    mathematics.compare("1", "1.0")
    child = mathematics._child
    assert child is not None
    with monkeypatch.context() as forked:
        forked.setattr("os.getpid", lambda: child.owner + 1)
        child.end()
    assert child._process.poll() is None


class FakeMathVerify:
    """Stands for math-verify: expressions are equal when their texts are."""

    @staticmethod
    def parse(text: str, parsing_timeout: None) -> list[str]:
        if "huge" in text:
            raise MemoryError
        if "wrong" in text:
            raise RuntimeError("a bug in the parser")
        return [] if "nothing" in text else [text]

    @staticmethod
    def verify(expected: list[str], found: list[str], timeout_seconds: None) -> bool:
        return expected == found


def test_the_comparing_process_answers_each_line_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    comparisons = [
        ("x", "x", True),
        ("x", "y", True),
        ("x", r"\(x\)", True),
        ("x", "$x$", False),
        ("x", "nothing", True),
    ]
    comparisons += [("x", "huge", True), ("x", "wrong", True), ("nothing", "x", True)]
    lines = [json.dumps({"expected": a, "text": b, "whole": whole}) for a, b, whole in comparisons]
    monkeypatch.setattr(mathematics, "import_module", lambda _: FakeMathVerify)
    monkeypatch.setattr(mathematics.resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(mathematics.logging, "disable", lambda _: None)
    monkeypatch.setattr(mathematics.os, "dup2", lambda *_: None)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    mathematics.serve()
    answers = ["ready", "equal", "different", "different", "equal", *["unreadable"], "gave up", *["unreadable"] * 2]
    assert capfd.readouterr().out.split("\n")[:-1] == answers


class AtMostCommas:
    """An instruction with the interface of lm-evaluation-harness: at most `most` commas."""

    def __init__(self, name: str) -> None:
        self.name = name

    def build_description(self, *, most: int = 0) -> None:
        self.most = most
        random.random()  # as instructions do that choose missing arguments

    def check_following(self, text: str) -> bool:
        return text.count(",") <= self.most


@pytest.fixture
def fake_instructions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    names = {"punctuation:commas": AtMostCommas, "length_constraints:number_sentences": AtMostCommas}
    for name in ("lm_eval", "lm_eval.tasks", "lm_eval.tasks.ifeval"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    registry: Any = ModuleType("registry")
    registry.INSTRUCTION_DICT = names
    monkeypatch.setitem(sys.modules, "lm_eval.tasks.ifeval.instructions_registry", registry)
    langdetect: Any = ModuleType("langdetect")
    langdetect.DetectorFactory = type("DetectorFactory", (), {"seed": None})
    monkeypatch.setitem(sys.modules, "langdetect", langdetect)

    def find(_: str) -> None:
        raise LookupError

    nltk: Any = ModuleType("nltk")
    nltk.data = SimpleNamespace(find=find)
    monkeypatch.setitem(sys.modules, "nltk", nltk)
    instructions._registry.cache_clear()
    yield
    instructions._registry.cache_clear()


@pytest.mark.usefixtures("fake_instructions")
@pytest.mark.parametrize("rank", [None, "7"])
def test_each_instruction_is_judged_without_changing_the_environment_or_random_state(
    rank: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if rank is None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
    else:
        monkeypatch.setenv("LOCAL_RANK", rank)
    random.seed(5)
    before = random.getstate()
    entries = [{"id": "punctuation:commas"}, {"id": "punctuation:commas", "most": 2}]
    assert judged({"ifeval": entries}, "One two.") == Verdict(True, 1.0)
    assert judged({"ifeval": entries}, "One, two.") == Verdict(False, 0.5, "ifeval: does not follow punctuation:commas")
    assert judged({"ifeval": entries}, "a, b,\nc.").score == 0.5
    assert judged({"ifeval": entries, "loose": True}, "a, b,\nc.").passed  # its last line alone has no comma
    assert not judged({"ifeval": entries}, " ").passed
    assert os.environ.get("LOCAL_RANK") == rank
    assert random.getstate() == before


@pytest.mark.usefixtures("fake_instructions")
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"id": "punctuation:no_comma"}, "must name instructions of IFEval, got 'punctuation:no_comma'"),
        ({"id": "punctuation:commas", "least": 2}, "the instruction punctuation:commas does not take .*'least'"),
        ({"id": "length_constraints:number_sentences"}, "needs nltk's data set punkt_tab"),
    ],
)
def test_instructions_that_cannot_be_checked_are_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises((ScriptError, MissingExtraError), match=message):
        parse_checks({"ifeval": [entry]}, HERE)


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-evaluation-harness is installed")
def test_without_lm_eval_the_check_ifeval_names_the_extra() -> None:
    with pytest.raises(MissingExtraError) as caught:
        parse_checks({"ifeval": [{"id": "punctuation:no_comma"}]}, HERE)
    assert "rwkvbatch[ifeval]" in str(caught.value.hint)


def test_the_value_of_ifeval_must_be_instructions() -> None:
    for value in ("punctuation:no_comma", [], [{"name": "x"}]):
        with pytest.raises(ScriptError, match="must be an array of instructions"):
            parse_checks({"ifeval": value}, HERE)
