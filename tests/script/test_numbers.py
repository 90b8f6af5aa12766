"""Numbers in answers: read exactly or refused as unclear."""

# ruff: noqa: E501 (tables of cases)

from __future__ import annotations

import contextlib
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvbatch.script.checks import judge_all, parse_checks
from rwkvbatch.script.checks.numbers import UnclearNumberError, answer_number, last_number
from rwkvbatch.script.lines import SourceLine
from rwkvbatch.script.records import ReplyFacts

READ: list[tuple[str, str]] = [
    ("50 m^2", "50"), ("5 kg CO2", "5"), ("5 m/s²", "5"), ("x_1 = 4", "4"), ("log_{10}(100) = 2", "2"),
    ("-$5", "-5"), ("$-5", "-5"), ("−€5", "-5"), ("-US$5", "-5"), ("(-5)", "-5"), ("3-5", "5"), ("–5", "-5"),
    ("1,234,567.5", "1234567.5"), ("1.234.567,89", "1234567.89"), ("1.234,56", "1234.56"), ("12,34,567", "1234567"),
    ("1'234'567.8", "1234567.8"), ("1\u00a0234\u202f567", "1234567"), ("1_000", "1000"), ("1{,}234", "1234"), (r"1\,234", "1234"),
    ("3 \\times 10^5", "300000"), ("3 × 10⁵", "300000"), ("3*10^{-2}", "0.03"), ("3x10^5", "300000"), ("6.022e23", "6.022e23"),
    ("10^5", "100000"), ("2^10", "1024"), ("2**10", "1024"), ("5²", "25"), ("1E-3", "0.001"),
    ("\\frac{3}{4}", "3/4"), ("\\dfrac34", "3/4"), ("-\\frac{3}{4}", "-3/4"), ("1\\frac{1}{2}", "3/2"), ("3/4", "3/4"),
    ("1 3/4", "7/4"), ("½", "1/2"), ("1½", "3/2"), ("3 1/2 cups", "7/2"), ("1⁄3", "1/3"),
    ("50%", "50"), ("50 %", "50"), (r"5\%", "5"), (r"\$5", "5"), ("$5.00.", "5"), (".5", "1/2"), ("-.5", "-1/2"),
    ("5 million", "5000000"), ("2.5 thousand", "2500"), ("**42**", "42"), ("Answer:**42**", "42"), (r"\boxed{42}", "42"),
    ("5 hundred thousand", "500000"), ("2 hundred million people", "200000000"), ("1.5 thousand million", "1500000000"),
    ("5 million million", "5000000000000"), ("5 quadrillion", "5e15"), ("50\\ 000", "50000"), ("10,\\!000", "10000"),
    ("1{\\,}234", "1234"), ("5 million and counting", "5000000"), ("(5)", "5"), ("| -3 |", "-3"), ("sqrt(16) = 4", "4"),
    ("\\sqrt{16 + 9} = 5", "5"), ("2^{3+1} = 16", "16"), ("17 mod 5 = 2", "2"), ("step (2) **5**", "5"), ("room 5", "5"),
    ("(90)^{\\circ}", "90"), ("5 one-way trips", "5"), ("3 seconds", "3"), ("5 people to the party", "5"),
    ("答案是42。", "42"), ("共5个", "5"), ("１２３", "123"), ("٣٫٥", "7/2"), ("30km/h", "30"), ("90^\\circ", "90"), ("#### 18", "18"),
    ("5! = 120", "120"), ("12 on May 3rd", "12"), ("2 doses for COVID-19", "2"),
]  # fmt: skip
NONE = ["forty", "CO2", "H2O", "m²", "x^2", "x_1", "5th", "RWKV7", "COVID-19", "", "e^{2}"]
REFUSED = [
    "3,5", "1,2,3", "12 345", "100 200 300", "10:30", "2020-05-03", "12-05-2020", "3/4/2020", "1.2.3", "192.168.1.1",
    "0,123", "1234,567", "12x5", "0x1F", "3D", "2x", "5K", "7B", "$5M", "5万", "5 dozen", "3 and a half",
    "√2", "\\sqrt{2}", "2π", "2\\pi", "\\frac{\\pi}{2}", "5 ± 2", "2^n", "10^x", "1/0", "1e5000", "9" * 5000,
    "3 million 500 thousand", "5'10\"", "--5", "9^9999", "2h30", "3\\frac{-1}{2}",
    "3 hundred and twenty", "5 thousand two hundred", "(-2)^2", "(3)²", "(1/2)^3", "(2.5)**2", "sqrt(16)",
    "sqrt(16 + 9)", "sqrt 16", "1,000 000", "|-3|", "abs(-3)", "log(100)", "\\log_{10}(100)", "log2(8)",
    "the square root of 16", "5 squared", "2 to the power of 10", "2 to the 10th power", "2^(10)", "2^{3+1}",
    "2 ^ 3", "\\binom{5}{2}", "{5 \\choose 2}", "3 \\pmod{5}", "3 (mod 5)", "17 mod 5", "101_{2}",
    "110 in base 2", "0.\\overline{3}", "0.(3)", "5 and 1/2", "2 thirds", "3 hundredths", "5 millionths",
    "1 half", "3 point five", "3 milliard", "5 mln", "2(3)", "(2)(3)", "max(3, 5)", "5~10", "50~000", "sin(30)",
    "\\sin 30°", "2 000.50", "\\sqrt{16 + 9}", "\\sqrt[3]{27}", "\\left(-2\\right)^{2}", "(5)^{2}", "[4]^2",
    "3 × 10 ^ 5", "5 factorial", "(5) raised to the third power", "3 million and a half", "-(5)^2",
    "2.5 hundred and 6",
    "-(5)", "-\\boxed{5}", "- 5", "total minus 5",
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), READ)
def test_a_number_is_read_exactly(text: str, value: str) -> None:
    for sentence in ("{}", "It is {}.", "First 7, then {}", "= {}\n"):
        assert last_number(sentence.format(text)) == Fraction(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("答案是-5。", -5), ("答えは−5", -5), ("结果为负5度", -5), ("5个-6个", 6), ("2023年-2024年", 2024), ("3到5", 5),
        ("x = - 5", -5), ("Answer: − 5", -5), ("(- 5)", -5), ("$- 5$", -5), ("x = {-}5", -5), ("\\text{-}5", -5),
        ("minus 5", -5), ("It is minus $5.", -5), ("negative 5 degrees", -5), ("10 minus 5", 5), ("10 - 5", 5),
        ("- 5", 5), ("Answer:\n- 5", 5), ("- $5", 5), ("10 - 4 = - 5", -5),
    ],
)  # fmt: skip
def test_a_minus_is_a_sign_where_it_cannot_be_a_hyphen_a_bullet_or_between_two_numbers(text: str, value: int) -> None:
    assert last_number(text) == value


@pytest.mark.parametrize("text", NONE)
def test_digits_joined_to_letters_or_an_exponent_are_no_number(text: str) -> None:
    assert last_number(text) is None


@pytest.mark.parametrize("text", REFUSED)
def test_an_ambiguous_number_is_refused(text: str) -> None:
    with pytest.raises(UnclearNumberError):
        last_number(f"It is {text}")


def test_only_the_last_number_has_to_be_clear() -> None:
    assert last_number("At 10:30 and 3,5 and 12 345, so 7") == 7


@pytest.mark.parametrize(
    "entry", [{"number": 5}, {"not": {"number": 5}}, {"any": [{"number": 5}, {"not": {"number": 6}}]}]
)
def test_an_ambiguous_number_fails_its_check_in_any_combination(entry: object) -> None:
    found = judge_all(parse_checks(entry, SourceLine("a", 1)), ReplyFacts("3,5", "stop", 1))
    assert not found.passed
    assert found.score == 0


_GROUPED = st.sampled_from(["{:,}", "{:_}", "{}"])
_MARKS = st.sampled_from(["", "$", "€ ", "USD ", "\\$"])
_AFTER = st.sampled_from(["", ".", " kg CO2", " m^2", "%", " km/h", " (exactly)", ", as x_2 shows", "\u00a0€", "!"])


@given(st.integers(-(10**15), 10**15), st.integers(0, 999), _GROUPED, _MARKS, _AFTER, st.sampled_from(["-", "−", "–"]))
def test_a_number_is_read_in_every_notation(
    whole: int, rest: int, form: str, mark: str, after: str, minus: str
) -> None:
    decimals = f".{rest:03}" if "_" not in form else ""
    value = (1 if whole >= 0 else -1) * Fraction(f"{abs(whole)}{decimals}")
    written = f"{minus if whole < 0 else ''}{mark}{form.format(abs(whole))}{decimals}"
    assert last_number(f"The 2 of them have {written}{after}") == value


@given(
    st.lists(
        st.sampled_from(
            [*"0123456789", *",.'-+/^_ x×%$€eE", "½", "²", "\\frac{", "}", "{", "\\times", "10", " kg", "π", "\u00a0"]
        ),
        max_size=12,
    ).map("".join)
)
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(UnclearNumberError):
        number = last_number(text)
        assert number is None or any(character.isnumeric() for character in text)


@given(st.integers(1, 999), st.integers(1, 999))
def test_numbers_joined_by_a_mark_are_not_read_as_the_second_alone(first: int, second: int) -> None:
    for mark in (",", "/", ":", ".", "'", "^", "e"):
        try:
            found = last_number(f"{first}{mark}{second}")
        except UnclearNumberError:
            continue
        exact = {"/": Fraction(first, second), ".": Fraction(f"{first}.{second}"), "^": None, "e": None}
        joined = Fraction(f"{first}{second}")
        assert found in (exact.get(mark, joined), joined) or (mark in "^e" and found is not None and found >= first)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("48 + 24 = 72\n#### 72 (48 in April and 24 in May)", 72),
        ("#### 72 (48 + 24) (the sum)", 72),
        ("#### $1,200.50 in 3 days", 1200.5),
        ("#### 5\n\n", 5),
        ("#### 5\n\nThe next one has 7.", 7),
        ("#### 5 million people in 3 towns", 5_000_000),
        ("#### 1 3/4 of 8", 1.75),
        ("#### 72.", 72),
        (r"\boxed{72} dollars for 2 weeks", 72),
        (r"\boxed{x = 5}, not 7" "\n#### 8", 5),
        ("#### 3. Add them\nThe sum of 4 and 5 is 9.", 9),
        ("#### Step 3: add\nIt is 12.", 12),
        (r"\boxed{} is empty, it is 4", 4),
    ],
)
def test_the_number_of_a_box_or_of_the_mark_of_gsm8k_comes_before_the_last_one(text: str, number: float) -> None:
    assert answer_number(text) == Fraction(str(number))


@pytest.mark.parametrize("text", [r"-\boxed{5}", r"it is - \boxed{5} for 3"])
def test_a_sign_before_a_box_is_not_clear(text: str) -> None:
    with pytest.raises(UnclearNumberError):
        answer_number(text)


ANSWERS = [
    ("The answer is **5** (five).", 5), ("**Final answer: 12**\n- explanation", 12), ("**18** - because", 18),
    ("**5**\n-----", 5), ("**$15** (total)", 15), ("**15**(个)", 15), ("#### 12 - 5 = 7", 7),
    ("#### 3 apples + 4 apples = 7 apples", 7), ("#### 5 + 3 = **8**", 8),
    ("#### 1 Calculate the cost\n3*5=15\n\nThe total is 15.", 15), ("#### 2 - Solve\nThe answer is 42", 42),
    ("#### 10% discount\nThe price is 90", 90), ("#### 72 (48 in April and 24 in May)", 72),
    ("There are 25 fifth graders.", 25), ("30 sixth graders", 30), ("8 eighth notes", 8),
    ("She saved 20 quarters.", 20), ("The price was raised to $15", 15), ("raised to 5%", 5),
    ("It took 5 min (300 seconds)", 300), ("2nd floor (12)", 12), ("in round (3)", 3), ("log 20 miles", 20),
    ("tan 5", 5), ("20 billiard balls", 20), ("\\boxed{90}^\\circ", 90), ("$\\boxed{90}^{\\circ}$", 90),
    ("\\boxed{5}% of all", 5), ("The answer is $\\boxed{18}$.", 18), ("**Answer:** 42", 42),
    ("**Total: $1,200**", 1200), ("The total is **12** apples - all red.", 12), ("- **7**", 7),
    ("* **7** (seven)", 7), ("1. **9**", 9), ("**3** + **4** = **7**", 7), ("***12***", 12), ("**12 cm**", 12),
    ("**12** cm", 12), ("The result is **-3**.", -3), ("**0.5** (one half)", 0.5), ("**A:** 3\n**B:** 4", 4),
    ("She has 3 quarters.", 3), ("He paid 1 quarter.", 1), ("There is 1 fifth grader.", 1),
    ("The 1 third grader", 1), ("The wage was raised to 20 dollars", 20), ("The flag was raised to 30 feet", 30),
    ("It rose to 5%.", 5), ("The fee raised to €12.", 12), ("In the max (10 of them)", 10),
    ("It took 30 sec (a tan 40)", 40), ("a log 12 feet long", 12), ("in min 45", 45), ("#### 18", 18), ("#### 3 × 10^5", 300000), ("#### 3*10^5", 300000), ("#### 7/2", 3.5),
    ("Work: 9 * 2\n#### 18\n", 18), ("#### $18", 18), ("#### 1,234", 1234), ("#### -5", -5), ("#### 50%", 50),
    ("#### 3 apples (2 red and 1 green)", 3), ("#### 18 dollars", 18), ("The 7 players", 7),
    ("He ran 3.5 miles.", 3.5), ("It costs $1.50.", 1.5), ("So 5 × 3 = 15", 15), ("There are 12 halfway houses", 12),
    ("45 minute lessons: 8", 8), ("Score: 3 out of 10", 10), ("答案是**15**个。", 15), ("**15**（个）", 15),
    ("答案：**15**-正确", 15), ("共有**3**人", 3), ("一共20个季度", 20), ("涨到15元", 15), ("提高到5%", 5),
    ("总共需要300秒（5分钟）", 5), ("答案是72（四月48）", 48), ("价格为￥15", 15), ("一共有25名五年级学生", 25),
    ("**答案：18**\n- 解释", 18), ("结果是-3。", -3), ("等于12.5米", 12.5), ("3+4=7个", 7),
    ("#### 72（四月48个，五月24个）", 72), ("#### 12元", 12), ("第3题的答案是8", 8), ("大约是30公里", 30),
    ("还剩7个苹果。", 7), ("所以是1/2", 0.5), ("选2", 2), ("答案为**3/4**。", 0.75), ("答案是\\boxed{6}个。", 6),
    ("\\boxed{3}千克", 3), ("\\boxed{90}度", 90), ("**总计：120元**", 120), ("每人5个，共**15**个", 15),
    ("答案：42", 42), ("小明有8支铅笔", 8), ("距离是100米（约）", 100), ("剩下1，200元？不，是150元", 150),
    ("平均分是85分", 85), ("总数=36", 36), ("因此x=4", 4), ("最后得到9", 9), ("需要6天", 6), ("大约2.5小时", 2.5),
    ("面积是24平方厘米", 24), ("共2023年", 2023),
]  # fmt: skip
UNCLEAR_ANSWERS = [
    "\\boxed{3}/4", "\\boxed{5}^2", "\\boxed{5} \\times 10^3", "\\boxed{5} million", "$\\boxed{2}\\pi$",
    "\\boxed{5}万", "#### 12 - 5", "#### 8 = 5 + 3", "2**n", "**2**10**", "x raised to 5", "2 raised to the 3",
    "2 quarters of it", " 1 third", "5 ** 2", "\\log 20", "log_2 8", "sin^2(30)", "#### 3+4", "#### 5 - 1", "(2.5)**2", "5 sextillion",
]  # fmt: skip


@pytest.mark.parametrize(("text", "number"), ANSWERS)
def test_the_number_that_an_ordinary_answer_states_is_read(text: str, number: float) -> None:
    assert answer_number(text) == Fraction(str(number))


@pytest.mark.parametrize("text", UNCLEAR_ANSWERS)
def test_an_answer_that_calculates_further_is_not_clear(text: str) -> None:
    with pytest.raises(UnclearNumberError):
        answer_number(text)
