"""The check `letter`: replies that name an option, that deny one, and that cannot be read."""

from __future__ import annotations

from typing import Any

import pytest

from rwkvbatch.errors import ScriptError
from rwkvbatch.script.checks import Verdict, judge_all, parse_checks
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
    "I have no idea, but it is wrong that the answer is B.",
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
