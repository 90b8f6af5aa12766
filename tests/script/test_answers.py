"""Checks of final answers: `letter`, `boxed`, `math` and `ifeval`."""

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
    "C is the answer, since it is not false": "C",
    "It must be C": "C",
    "A bird is C": "C",
    "<think>A or B? The answer is A.</think>B": "B",
    "答案是B": "B",
    "答案：C": "C",
    "The correct option is A) No.": "A",
    "The answer is (A) No, it does not.": "A",
    "Answer: B. False": "B",
    "Answer: B) Incorrect": "B",
    "Answer: B. It's wrong": "B",
    "Answer: D) Cannot be determined": "D",
    "The answer is (D) cannot be determined.": "D",
    "The correct answer is C) is not affected by heat": "C",
    "The answer is C: not enough information.": "C",
    "Answer: D (none of these is wrong)": "D",
    "A不对，B也不对，所以答案是D。": "D",
    "选项A错误，因此正确答案为B": "B",
    "A is not right because birds fly, so the answer is C": "C",
    "A is wrong. B is not correct. The answer is C.": "C",
    "Since A is not correct the answer is C": "C",
    "Option A is incorrect because it isn't a mammal. Option B is false. Therefore, the correct answer is D.": "D",
    "The answer is C. The answer is not A because whales are mammals.": "C",
    "I'm not sure, but the answer is B.": "B",
    "There is no doubt that the answer is B.": "B",
    "Without a doubt, the answer is B": "B",
    "The question asks which is not true, so the answer is D.": "D",
    "It can't be A, B or C; the answer is D": "D",
    "That's not right: the answer is B": "B",
    "No, the answer is B": "B",
    "The answer is B, not A.": "B",
    "The answer is B. It is not A since fish swim.": "B",
    "First, A doesn't fit. Then B doesn't either, and the answer is C.": "C",
    "The answer is A. That is not true of B.": "A",
    "The answer is A. No other option fits.": "A",
    "The answer is A, no doubt.": "A",
    "Let's think. The answer is not A. It's not B either. The answer is C.": "C",
    "The answer is (C) because the others are wrong.": "C",
    "The answer is C. The other options are incorrect.": "C",
    "The answer is not A. Hmm, checking again, the answer is A": "A",
    "Not only is it red, the answer is B": "B",
    "The answer is A.\nNot B because cats purr.": "A",
    "The answer is A. It is not B.": "A",
    "The answer is A. It is true.": "A",
    "Answer: A\n\nNote: B is wrong": "A",
    "**Answer: B**\nWrong options: A, C": "B",
    "The answer is A. This is not the case for B": "A",
    "Answer: C - not A": "C",
    "Is it A? No. The answer is B.": "B",
    "答案是B，不是A": "B",
    "A不对，所以答案是C": "C",
    "The answer is B. Incorrect options: A, C": "B",
    "The answer is D! It's correct.": "D",
    "The answer is A. It was not easy": "A",
    "The statement is false. The answer is B": "B",
    "While A is not bad the answer is B": "B",
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
    "B is incorrect.",
    "**B** is not correct",
    "B isn’t it",
    "B can't be right",
    "All but B",
    "Everything except option B",
    "I'd rule out B.",
    "The answer cannot be B",
    "B不对",
    "选项B是错误的",
    "A) dog\nB) cat\nC) cow",
    r"\boxed{12}",
    "I think so",
    "<think>The answer is A",
    "I don't think the answer is B",
    "It is wrong that the answer is B.",
    "The answer is A? No.",
    "The answer is B is false",
    "I don’t believe that the correct answer is C.",
    "It's not true that the answer is B",
    "It is wrong, in my view, that the answer is B.",
    "I doubt the answer is B.",
    "I don't think it's B",
    "The answer isn't B.",
    "The answer is definitely not B",
    "It can't be that the answer is B",
    "The answer is A. That's wrong.",
    "The answer is A. No, wait.",
    "The answer is B? I don't think so.",
    "The wrong answer is B.",
    "答案不是B",
    "我不认为答案是B",
    "No way the answer is D.",
    "A. Actually, the answer is not A.",
    "The answer is A. Actually, the answer is not A, it's B.",
    "The answer is A. Actually, the answer can't be A.",
    "B? No.",
    "The answer is (B) is not correct",
    "I wouldn't say that the answer is: B",
    "The answer is B isn't right",
    "The answer is A, no, B",
    "The answer is A, no wait, it's B",
    "The answer cannot be B.",
    "The answer is C. This is incorrect.",
]


DENIES_SOMETHING_ELSE = {
    "A": [
        "No other option works, so the answer is A.", "I have no doubt that the answer is A.",
        "Answer: A. This is not true because birds fly.", "这道题不难，答案是A。", "答案是A。不过B也很接近。",
        "并非所有鸟都会飞，所以答案是A。", "答案：A、不是",
    ],
    "B": [
        "有人认为答案是A。综上，正确答案是B,不是A。", "有同学认为答案是A。正确答案是B。不是所有鸟都会飞。",
        "乍一看答案是A。仔细分析后，不难看出答案是B。", "答案是A吗？再想想。正确答案是B。错了的选项有A、C、D。",
        "At first the answer is A, but x is odd. It is not difficult to see the answer is B.",
        "A student says the answer is A. We see that it is not even and that the answer is B.",
        "正确答案是B。不对称加密使用两个密钥。", "答案：B. 不是", "说法错误的答案是B",
        "Not surprisingly the answer is B.", "We don't need to compute further since the answer is B.",
        "There's no reason to doubt that the answer is B.", "I can't deny that the answer is B.",
        "Answer: B. This is false because the mean is 3", "不正确的是B。", "错误的是B", "错误的选项是B。",
        "不属于的选项是B", "The false statement is B.", "The option that does not belong is B.",
        "The statement that is not correct is B.", "Based on this, the exception that is not covered is **B**.",
        "It is no surprise that the answer is B.", "I don't think A works because the answer is B.",
        "I don't see why anyone would pick A. The answer is B.",
        "It is impossible to get an even sum; the correct answer is B.", "Not only that, the answer is B",
        "The statement is not true for n = 1, and the answer is B.", "The answer is B. Not all birds fly.",
        "本题答案为B。不难理解。", "错误的说法是B。", "毫无疑问，答案是B。", "不得不认为答案是B。",
        "答案是B。错误选项的原因如下：时间有误。", "选B。不是因为价格。", "叙述有误的是B",
    ],
    "C": [
        "The statement that is false is (C).", "The one that is not a mammal is C.", "C is the odd one out.",
        "Without any further information the answer is C.", "Never mind; the answer is C.",
        "Nobody can deny that the answer is C.", "It's hard to deny that the answer is C.",
        "If x is not zero, the answer is C.", "The correct answer is C. This is because D is not possible.",
        "It does not matter which we use, the answer is C.", "说法不正确的是C。", "故不选A，答案是C。",
        "不属于哺乳动物的是C", "答案：C。不同的物质密度不同。", "不用计算也知道答案是C。",
        "我不同意上面的看法，答案是C。",
    ],
    "D": [
        "The incorrect option is D.", "Since none of the others fit, the answer is D.",
        "You cannot go wrong: the answer is D.", "The premise is wrong, hence the answer is D.",
        "When it does not rain the answer is D", "Answer: D Cannot be determined", "下列不符合题意的是D",
        "因为A、B、C都不对，所以答案是D。", "不正确的一项是D。", "答案是D，错在时间。", "不可否认，答案是D。",
        "正确答案是D，不是C。",
    ],
}  # fmt: skip
"""Answers with words of negation that do not deny the letter, by their letter."""
TAKEN_BACK = [
    "I'm not sure that the answer is B.", "It is doubtful that the answer is C.",
    "It is false that the answer is B.", "I can't say that the answer is B.",
    "Nobody believes that the answer is B.", "I disagree that the answer is B.", "I doubt that it's B.",
    "I don't agree that B", "The answer is A. I don't think the answer is B.", "答案是A。但我不认为答案是B。",
    "The answer is A. Or the answer is B? No.", "答案是B。不对，应该是C。", "答案是A吗？不是。", "答案是B？不对。",
    "答案是B是错误的。", "我不相信正确答案是C", "我不觉得是B", "并非说答案是B", "答案是A。答案是B吗？不，再想想。",
    "答案是B不对。", "The answer is C. That's wrong because birds fly.",
]  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "letter"),
    [*CLEAR.items(), *((text, letter) for letter in "ABCD" for text in DENIES_SOMETHING_ELSE[letter])],
)
def test_the_letter_that_a_reply_names_is_found(reply: str, letter: str) -> None:
    assert judged({"letter": letter, "letters": "ABCD"}, reply) == Verdict(True, 1.0)
    wrong = "A" if letter != "A" else "B"
    assert not judged({"letter": wrong, "letters": "ABCD"}, reply).passed


@pytest.mark.parametrize("reply", [*UNCLEAR, *TAKEN_BACK])
def test_an_unclear_letter_is_undecided_for_every_check(reply: str) -> None:
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
def test_invalid_letters_are_refused(letters: Any) -> None:
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
