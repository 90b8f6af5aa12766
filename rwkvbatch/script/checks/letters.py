"""The check `letter`: the letter of an option that a reply names as its answer, or that it cannot be told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from rwkvbatch.script.checks.answers import MAX_CHARACTERS, last_boxed
from rwkvbatch.script.checks.text import answer, excerpt, verdict, wrong
from rwkvbatch.script.records import ReplyFacts, Verdict

MAX_CLAUSE = 200
"""Number of characters before a statement that are searched for words that deny it."""

_OPEN, _CLOSE = r"[*_`(\[{$\"'“‘ ]*", r"[*_`)\]}$\"'”’]*"
_END = r"(?![A-Za-z0-9_'’])"
_SAYS = re.compile(
    r"(?:(?:answers?|choice|option|correct one)\b[*_` ]*(?:(?:is|are|would be|must be|should be|=|[:：])[*_` \n]*)+"
    r"|答案(?:应该|应当)?(?:是|为|选|[:：])[*_` \n]*(?:选项)?)"
    r"(?:the letter |letter |option |choice |answer )?"
    rf"{_OPEN}(?P<letter>[A-Za-z]){_END}{_CLOSE}(?P<more>(?:\s*(?:,|/|&|or|and|或|和)\s*{_OPEN}[A-Z]{_END})?)",
    re.IGNORECASE,
)
"""A sentence that states the answer, in the forms of lm-evaluation-harness and of OpenAI's simple-evals."""
_DENIES = re.compile(
    r"(?:(?:answers?|choice|option|correct one)\b[*_` ]*"
    r"(?:(?:is|are|was|would|could|should|must|can|will)(?:n['’]t| ?not)(?: be)?|(?:can|won)['’]t be"
    r"|(?:is|are|was) (?:[a-z]+ly |of course )?(?:not|neither|anything but))"
    r"(?: (?:[a-z]+ly|simply|just))?[*_` ]+"
    r"|答案(?:应该|应当|绝对)?(?:不(?:可能|应该|应当)?(?:是|为|选)|并非)[*_` ]*(?:选项)?)"
    r"(?:the letter |letter |option |choice |answer )?"
    rf"{_OPEN}(?P<letter>[A-Za-z]){_END}",
    re.IGNORECASE,
)
"""A sentence that states what the answer is not."""
_WHOLE = re.compile(
    rf"\s*{_OPEN}(?:(?:option|choice|answer)[ :]+)?{_OPEN}(?P<letter>[A-Za-z]){_CLOSE}[.,:)]?{_CLOSE}\s*", re.IGNORECASE
)
_FIRST = re.compile(
    rf"^\s*{_OPEN}(?P<letter>[A-Z]){_CLOSE}(?:[.):,、．：]|\s*[-–—]\s|$){_CLOSE}(?=\s|$|[^\x00-\x7f])", re.MULTILINE
)
_ALONE = re.compile(rf"(?<![A-Za-z0-9_'’])(?P<letter>[A-Z]){_END}")
_NOT = re.compile(
    r"(?:\b(?:(?:not|cannot|[a-z]+n['’]t)(?: be)?|rather than|neither|nor|except(?: for)?"
    r"|(?:all|anything|everything) but|rul(?:e|ed|ing) out|eliminat(?:e|ed|ing))|不是|除了)"
    r"(?: the letter| option| choice)?[*_`(\[ ]*$",
    re.IGNORECASE,
)
"""The end of a text before a letter that is denied."""
_IS_NOT = re.compile(
    r"[*_`)\] ]*(?:\b(?:(?:is|was|could|would|must|should)(?:n['’]t| not)|can(?:not|['’]t| not))\b"
    r"|\b(?:is|was|must be|seems|looks) (?:the |an? )?(?:wrong|incorrect|false|ruled out|eliminated)\b"
    r"|不对|不是|是错|错)",
    re.IGNORECASE,
)
"""The beginning of a text after a letter that is denied."""
_STATED_IS_NOT = re.compile(
    r"[*_`)\]\"'”’ ]*(?:\b(?:(?:is|was)(?:n['’]t| not) (?:correct|right|true|it\b|the )"
    r"|(?:can(?:not|['’]t| not)|could(?:n['’]t| not)) be (?:correct|right|true|it\b)"
    r"|(?:is|was|must be|seems|looks) (?:wrong|incorrect|false)\b)"
    r"|(?:的?(?:这个)?说法)?(?:不对|不是|错了|是?(?:错的|错误的|不对的|不正确的))(?=\s*(?:[，。！,.!;；]|$)))",
    re.IGNORECASE,
)
"""The same after a stated letter; `Answer: D Cannot be determined` names the option's text."""

_CLAUSE = re.compile(
    r"[.!?;:,()。！？；：，\n—–]|\b(?:so|but|and|yet|then|therefore|thus|hence|however|instead)\b", re.IGNORECASE
)
_DISBELIEVES = (
    r"(?:(?:\b(?:do|does|did|would|could)(?:n['’]t| not)|\bcan(?:not|['’]t| not)"
    r"|\b(?:nor|neither) (?:do|would|can) (?:i|we)|\b(?:never|nobody|no one))(?: [a-z]+ly| for a moment)?"
    r" (?:think|thinks|thought|believe[sd]?|agrees?|says?|said|claim|conclude|suppose|accept)"
    r"|(?:\bnot|n['’]t)(?: [a-z]+ly)? (?:sure|certain|convinced|(?:true|clear|the case|correct|right)(?= that|,))"
    r"|\bcan(?:not|['’]t| not) be(?= that)|\bno way)"
)
_DOUBTS = (
    r"\b(?:doubt(?:s|ful)?|disagrees?|den(?:y|ies)|rejects?"
    r"|(?:wrong|incorrect|false|untrue|impossible|unlikely|a mistake|mistaken)"
    r"(?= that|, | to (?:say|think|believe|claim|conclude|assume))(?: to [a-z]+)?)"
)
_THAT = (
    r"(?:,(?! but| so| and| then)[^,.!?;\n]{1,60},(?= that))?"
    r"(?: it(?:['’]s| is) (?:true|correct|right|clear|the case))?(?: that)?"
)
_THE_ANSWER = r"(?: (?:the|your|his|her|their|this|my|our|its)(?: [a-z'-]+){0,3})?[*_`\"“'‘: ]*$"
_THE_LETTER = (
    r"(?: it(?:['’]s| is| would be| could be| must be| should be))?"
    r"(?: (?:the )?(?:letter|option|choice|answer|statement))?[*_`(\[\"“'‘: ]*$"
)
_DISBELIEVES_CHINESE = (
    r"|(?:(?<!不得)(?<!无)(?<!没人)(?<!没有人)不(?:太|怎么|再|能)?(?:认为|觉得|同意|相信)|并非)(?:说|是)?(?:[这本此该]道?题)?的?"
    r"(?:正确|最终|最佳|标准)?的?(?:选项|答案)?(?:是|选|应该是)?[*_`(（ ]*$"
)
_UNBELIEVED_ANSWER = re.compile(f"{_DISBELIEVES}{_THAT}{_THE_ANSWER}{_DISBELIEVES_CHINESE}", re.IGNORECASE)
_UNBELIEVED_LETTER = re.compile(f"{_DISBELIEVES}{_THAT}{_THE_LETTER}{_DISBELIEVES_CHINESE}", re.IGNORECASE)
_DOUBTED_ANSWER = re.compile(rf"{_DOUBTS}{_THAT}{_THE_ANSWER}", re.IGNORECASE)
_DOUBTED_LETTER = re.compile(f"{_DOUBTS}{_THAT}{_THE_LETTER}", re.IGNORECASE)
"""The ends of texts before a statement or a letter whose writer says that it is not so."""
_NOT_DOUBTED = re.compile(
    r"n['’]t\b|\b(?:no|not|cannot|never|nobody|none|nor|without|beyond|any|few|little|hardly|hard|difficult"
    r"|impossible to)\b",
    re.IGNORECASE,
)
_RETRACTED = re.compile(
    r"[*_`)\]\"'”’ ]*(?:[?？][\"'”’\s]*(?:no(?! doubt)|nope|not|never|wrong|false|incorrect)\b"
    r"|(?:[,.!?…。！？—–-]+|\n)?[\"'”’\s]*(?:(?:oh|wait|hmm|but|well|actually|sorry)\b[,.…! ]*)*"
    r"(?:(?:no|nope)\b[,.… ]+(?:wait|sorry|actually|hold on|scratch|it['’]s|it is|(?-i:[B-HJ-Z])(?![A-Za-z0-9_'’]))"
    r"|i do(?:n['’]t| not) (?:think|believe) so"
    r"|(?:(?:that|this)(?:['’]s| is| was) (?:wrong|incorrect|false|a mistake|not (?:right|correct|true|it))"
    r"|(?:that|this) (?:is|was)n['’]t (?:right|correct|true|it))"
    r"(?=\s*(?:[.,;!?\n]|$)|(?<!this is false)(?<!this is incorrect)(?<!this is not true)(?<!this is not correct)"
    r"\s*(?:because|since|as)\b))"
    r"|吗?[?？]\s*(?:不|不对|不是|错|错了)(?=\s*(?:[，。！,.!;；]|$))"
    r"|(?:[，,。！!]|\n)?\s*(?:这|那)?(?:个答案)?(?:不对|不是|错了)(?=\s*(?:[，。！,.!;；]|$))"
    r"|\.\s*(?:不对|错了)(?=[，,！!](?!\s*因为)))",
    re.IGNORECASE,
)
"""The beginning of a text after a statement that takes it back; `B. No` or `B. 不是` names the option's text."""


@dataclass(frozen=True)
class Letter:
    """The answer names this option by its letter, and no other option; `letters` has the letters of all options."""

    options: ClassVar[frozenset[str]] = frozenset({"letters"})
    letter: str
    letters: str

    @classmethod
    def parse(cls, expected: Any, options: Mapping[str, Any]) -> Self:
        letters = options.get("letters", "ABCDEFGHIJ")
        if not isinstance(letters, str) or re.fullmatch("[A-Z]{2,26}", letters) is None:
            wrong('must be two capital letters or more, such as "ABCD"', letters, key="letters")
        if len(set(letters)) != len(letters):
            wrong("must not have a letter twice", letters, key="letters")
        if not isinstance(expected, str) or len(expected) != 1 or expected not in letters:
            wrong(f"must be one of the letters {letters}", expected, hint='"letters": "ABCD" lists the letters')
        return cls(expected, letters)

    def judge(self, facts: ReplyFacts) -> Verdict:
        text = answer(facts)
        letter, problem = find_letter(text[-MAX_CHARACTERS:], self.letters)
        if letter is None:
            return Verdict(False, 0.0, f"{problem}; got {excerpt(text)}", undecided=True)
        return verdict(letter == self.letter, f"answered {letter}")


def find_letter(text: str, letters: str) -> tuple[str | None, str]:
    """The letter of the option that a text chooses; or None and the reason why it is not clear.

    The first of these that the text has decides:

    1. the last `\\boxed{}`;
    2. the last sentence that states the answer, if it is not denied there or later; an earlier sentence never decides;
    3. a letter that is the whole text, or that begins it and is followed by a mark (`B.`, `(B)`), if no other letter
       begins a line in this way;
    4. the only letter that stands alone anywhere.
    """
    if (boxed := last_boxed(text)) is not None:
        content = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s*", "", boxed)
        if (match := _WHOLE.fullmatch(content)) or (match := _FIRST.match(content)):
            return _known_letter(match["letter"], letters)
        return None, f"the box contains no letter of {letters}"
    stated = [match for match in _SAYS.finditer(text) if _states_letter(match, text)]
    denied = {match["letter"].upper(): match.start() for match in _DENIES.finditer(text)}
    statements: list[re.Match[str]] = []
    for match in stated:
        if _is_taken_back(match, text):
            denied[match["letter"].upper()] = max(match.start(), denied.get(match["letter"].upper(), 0))
        else:
            statements.append(match)
    if statements:
        last = stated[-1]
        if last is not statements[-1]:
            return None, f"says {statements[-1]['letter']}, and seems to deny {last['letter']} later"
        if last["more"]:
            return None, "names several letters"
        if denied.get(last["letter"].upper(), -1) > last.start():
            return None, f"says {last['letter']}, and then denies it"
        return _known_letter(last["letter"], letters)
    letter, problem = _without_statement(text, letters)
    return (None, f"denies {letter}, and states no other letter") if letter in denied else (letter, problem)


def _without_statement(text: str, letters: str) -> tuple[str | None, str]:
    """The letter by the third and fourth rule of `find_letter`."""
    if match := _WHOLE.fullmatch(text):
        return _known_letter(match["letter"], letters)
    first = _FIRST.match(text)
    if first and {match["letter"] for match in _FIRST.finditer(text)} == {first["letter"]}:
        return _known_letter(first["letter"], letters)
    single = [match for match in _ALONE.finditer(text) if not _is_word(match, text)]
    named = {match["letter"] for match in single} & set(letters)
    if len(named) == 1 and not any(_is_denied(match, text) for match in single):
        return named.pop(), ""
    return None, f"does not say which letter ({', '.join(sorted(named))})" if named else f"names no letter of {letters}"


def _known_letter(letter: str, letters: str) -> tuple[str | None, str]:
    letter = letter.upper()
    return (letter, "") if letter in letters else (None, f"{letter} is none of {letters}")


def _states_letter(match: re.Match[str], text: str) -> bool:
    """Whether "the answer is" is followed by a letter, not by the word `a`, `A` or `I` before another word."""
    letter = match["letter"]
    follows_space = text[match.start("letter") - 1 : match.start("letter")] in (" ", "")
    may_be_word = letter.islower() or letter in "AI"
    return not (follows_space and may_be_word and _is_before_word(text, match.end("letter")))


def _is_word(match: re.Match[str], text: str) -> bool:
    """Whether a letter that stands alone is the article `A` or the pronoun `I`."""
    return match["letter"] in "AI" and _is_before_word(text, match.end())


def _is_denied(match: re.Match[str], text: str) -> bool:
    """Whether the words around a letter that stands alone say that it is not the answer."""
    before = text[max(0, match.start() - MAX_CLAUSE) : match.start()]
    return (
        _NOT.search(before[-40:]) is not None
        or _IS_NOT.match(text, match.end()) is not None
        or _RETRACTED.match(text, match.end()) is not None
        or _is_doubted(before, _UNBELIEVED_LETTER, _DOUBTED_LETTER)
    )


def _is_taken_back(match: re.Match[str], text: str) -> bool:
    """Whether the words before a statement deny it ("I don't think the answer is B"), or those after it."""
    end = match.end("letter")
    before = text[max(0, match.start() - MAX_CLAUSE) : match.start()]
    return (
        _STATED_IS_NOT.match(text, end) is not None
        or _RETRACTED.match(text, end) is not None
        or (
            match[0][:6].lower() == "answer"
            and re.search(r"\b(?:wrong|incorrect) $", before, re.IGNORECASE) is not None
        )
        or _is_doubted(before, _UNBELIEVED_ANSWER, _DOUBTED_ANSWER)
    )


def _is_doubted(before: str, unbelieved: re.Pattern[str], doubted: re.Pattern[str]) -> bool:
    """Whether a text ends with words that deny what follows; "no reason to doubt that" does not."""
    if unbelieved.search(before):
        return True
    found = doubted.search(before)
    return found is not None and not _NOT_DOUBTED.search(_after_last(_CLAUSE, before[: found.start()]))


def _after_last(boundary: re.Pattern[str], text: str) -> str:
    return text[max((match.end() for match in boundary.finditer(text)), default=0) :]


def _is_before_word(text: str, index: int) -> bool:
    """Whether a space and a word that can follow an article are at `index`: `A bird`, but not `A.` or `A is`."""
    following = text[index : index + 12]
    return re.match(r" (?!(?:is|because|since|as|and|or|was|it|which|with|for)\b)[a-z]", following) is not None
