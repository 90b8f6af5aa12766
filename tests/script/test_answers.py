"""Checks of final answers: `letter`, `boxed`, `math` and `ifeval`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from rwkvbatch.errors import MissingExtraError, ScriptError
from rwkvbatch.script.checks import Verdict, answers, judge_all, mathematics, parse_checks
from rwkvbatch.script.records import ReplyFacts
from tests.script.writing import HERE


def judged(entry: dict[str, Any], reply: str) -> Verdict:
    return judge_all(parse_checks(entry, HERE), ReplyFacts(reply, "stop", 3))


CLEAR = {
    "B": "B",
    " (b) ": "B",
    "B.": "B",
    "**B**": "B",
    "B. because A is wrong": "B",
    "B\n\nExplanation: A is bad": "B",
    "Option D": "D",
    "The answer is (B).": "B",
    "Answer:\nC": "C",
    "**Answer:** C": "C",
    "answer: b": "B",
    "the best answer is C, not A": "C",
    "Choice A is incorrect. So the answer is C": "C",
    "I thought the answer is A. Wait: the answer is D.": "D",
    "The correct option is B: cats": "B",
    r"So \boxed{\text{(C)}}.": "C",
    r"The answer is: $\boxed{D}$, not A": "D",
    "Of these, C seems right": "C",
    "A bird is C": "C",
    "<think>A or B? The answer is A.</think>B": "B",
    "答案是B": "B",
    "答案：C": "C",
}
UNCLEAR = [
    "",
    "A bird sings.",
    "The answer is a bird",
    "The answer is 42",
    "The answer is E",
    "The answer is A or B",
    "The answers are A and C",
    "It could be B or C.",
    "The answer is not A",
    "It isn't B",
    "A) dog\nB) cat\nC) cow",
    r"\boxed{12}",
    "I think so",
    "<think>The answer is A",
]


@pytest.mark.parametrize(("reply", "letter"), CLEAR.items())
def test_a_letter_is_read_where_a_reply_names_one(reply: str, letter: str) -> None:
    assert judged({"letter": letter, "letters": "ABCD"}, reply) == Verdict(True, 1.0)
    other = "A" if letter != "A" else "B"
    assert not judged({"letter": other, "letters": "ABCD"}, reply).passed


@pytest.mark.parametrize("reply", UNCLEAR)
def test_an_unclear_letter_fails_every_check(reply: str) -> None:
    for letter in "ABCD":
        entry = {"letter": letter, "letters": "ABCD"}
        assert judged(entry, reply).undecided
        assert not judged({"not": entry}, reply).passed


@pytest.mark.parametrize(
    "entry", [{"letter": "E", "letters": "ABCD"}, {"letter": "b"}, {"letter": 1}, {"letter": "AB"}]
)
def test_a_letter_must_be_one_of_the_letters(entry: dict[str, Any]) -> None:
    with pytest.raises(ScriptError, match=r"letter: must be one of the letters"):
        parse_checks(entry, HERE)


@pytest.mark.parametrize("letters", ["AA", "ab", "A", 4])
def test_wrong_letters_are_errors(letters: Any) -> None:
    with pytest.raises(ScriptError, match=r"expect\.letters: must"):
        parse_checks({"letter": "A", "letters": letters}, HERE)


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
    ],
)
def test_the_last_whole_box_is_compared(reply: str, passed: bool) -> None:
    assert judged({"boxed": r"\frac{1}{2}"}, reply).passed == passed


def test_braces_inside_a_box_belong_to_it() -> None:
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
    ],
)
def test_mathematics_is_compared_by_its_value(expected: str, reply: str, passed: bool) -> None:
    assert judged({"math": expected}, reply).passed == passed


def test_an_expression_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    check = parse_checks({"math": "12"}, HERE)
    monkeypatch.setattr(mathematics, "DEADLINE_S", 0.3)
    found = judge_all(check, ReplyFacts(r"\boxed{9^{9^{9^{9^9}}}}", "stop", 3))
    assert found.undecided
    assert not found.passed
    monkeypatch.undo()
    assert judge_all(check, ReplyFacts(r"\boxed{12.0}", "stop", 3)).passed  # the next comparison has a new process


def test_an_expected_value_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(ScriptError, match=r"expect\.math: must be an expression"):
        parse_checks({"math": "$"}, HERE)


def test_without_math_verify_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="math-verify") as caught:
        parse_checks({"math": "1"}, HERE)
    assert "rwkvbatch[math]" in str(caught.value.hint)


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-evaluation-harness is installed")
def test_without_lm_eval_the_check_ifeval_names_the_extra() -> None:
    with pytest.raises(MissingExtraError) as caught:
        parse_checks({"ifeval": [{"id": "punctuation:no_comma"}]}, HERE)
    assert "rwkvbatch[ifeval]" in str(caught.value.hint)


def test_the_value_of_ifeval_must_be_instructions() -> None:
    for value in ("punctuation:no_comma", [], [{"name": "x"}]):
        with pytest.raises(ScriptError, match="must be an array of instructions"):
            parse_checks({"ifeval": value}, HERE)
