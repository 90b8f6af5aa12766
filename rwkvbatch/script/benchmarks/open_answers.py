"""Benchmarks whose answers are written freely: numbers, formulas, names, and texts that follow instructions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rwkvbatch.script.benchmarks.question import (
    Question,
    Write,
    bad,
    chat_line,
    line_of,
    prompt_line,
    text_of,
    texts_of,
)
from rwkvbatch.script.checks.answers import last_boxed
from rwkvbatch.script.lines import is_array, is_object, shown
from rwkvbatch.script.tables import Record


def read_gsm8k(record: Record) -> Question:
    solution = text_of(record.values, "answer")
    match = re.search(r"####\s*(-?[\d.,]+)\s*$", solution)
    number = match[1].replace(",", "").rstrip(".") if match else ""
    if not re.fullmatch(r"-?\d+(?:\.\d+)?", number):
        bad("answer must end with `#### NUMBER`")
    return Question(f"gsm8k-{record.number}", text_of(record.values, "question"), answer=number, record=record.values)


def write_gsm8k(question: Question, examples: Sequence[Question]) -> dict[str, Any]:
    content = _gsm8k_prompt(question, examples) if examples else question.text
    return chat_line(question, content, _gsm8k_check(question), 1024)


_ENDS = ("Question:", "</s>", "<|im_end|>")
"""Stop texts of several tasks of lm-evaluation-harness."""


def write_gsm8k_plain(question: Question, examples: Sequence[Question]) -> dict[str, Any]:
    return prompt_line(question, _gsm8k_prompt(question, examples), _gsm8k_check(question), stop=_ENDS)


def _gsm8k_prompt(question: Question, examples: Sequence[Question]) -> str:
    shots = "".join(f"Question: {e.text}\nAnswer: {e.record['answer']}\n\n" for e in examples)
    return f"{shots}Question: {question.text}\nAnswer:"


def _gsm8k_check(question: Question) -> dict[str, Any]:
    return {"number": float(question.answer) if "." in question.answer else int(question.answer)}


def read_math(record: Record) -> Question:
    """A problem of MATH: with its `answer` (MATH-500), or with the answer in the box of its `solution` (MATH)."""
    values = record.values
    text = text_of(values, "problem")
    answer = text_of(values, "answer") if "answer" in values else last_boxed(text_of(values, "solution"))
    if not answer or not answer.strip():
        bad("solution must have its answer in a \\boxed{}")
    subject = str(values.get("subject") or values.get("type") or "")
    level = str(values.get("level") or "").removeprefix("Level ")
    tags = tuple(filter(None, (subject, f"level-{level}" if level else "")))
    name = values.get("unique_id") or "-".join(
        filter(None, ("math", subject, Path(record.source.path).stem, str(record.number)))
    )
    return Question(str(name), text, answer=answer, tags=tags)


def write_boxed(max_tokens: int) -> Write:
    """Writes messages that ask for an answer in a box, which the check `math` compares."""

    def write(question: Question, _: Sequence[Question]) -> dict[str, Any]:
        content = f"{question.text}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
        return chat_line(question, content, {"math": question.answer}, max_tokens)

    return write


def write_math_plain(question: Question, examples: Sequence[Question]) -> dict[str, Any]:
    shots = "".join(f"Problem: {e.text}\nAnswer: {e.answer}\n\n" for e in examples)
    prompt = f"{shots}Problem: {question.text}\nAnswer:"
    return prompt_line(question, prompt, {"math": question.answer}, stop=("Problem:",))


def write_aime_plain(question: Question, _: Sequence[Question]) -> dict[str, Any]:
    prompt = f"Question: {question.text}\nAnswer:"
    return prompt_line(question, prompt, {"math": question.answer}, stop=(*_ENDS, "<|eot_id|>"), max_tokens=32_768)


def read_aime(record: Record) -> Question:
    """A problem of AIME, whose answer is a whole number from 0 to 999. Its files differ in the names of columns."""
    known = ("problem", "question", "answer", "id")
    values = {key.lower(): record.values[key] for key in record.values if key.lower() in known}
    if "problem" not in values and "question" not in values:
        bad("problem or question is missing")
    text = text_of(values, "problem" if "problem" in values else "question")
    if "answer" not in values:
        bad("answer is missing")
    answer = values["answer"]
    # Some answers have a degree sign.
    digits = re.sub(r"\^\{?\\circ\}?$", "", str(answer).strip())
    if isinstance(answer, bool) or not re.fullmatch(r"\d{1,3}", digits):
        bad(f"answer must be a whole number from 0 to 999, got {shown(answer)}")
    name = values.get("id")
    return Question(f"aime-{record.number if name in (None, '') else name}", text, answer=str(int(digits)))


TRIVIAQA_STOP = ("\n", ".", ",")


def read_triviaqa(record: Record) -> Question:
    """A question of TriviaQA: a record of Hugging Face, or of the original files with capital letters."""
    values = record.values
    is_original = "Question" in values
    answer = values.get("Answer" if is_original else "answer")
    if not is_object(answer):
        bad("its answer must be an object with aliases; those of the test files are not published")
    aliases = texts_of(answer, "Aliases" if is_original else "aliases")
    normalized = answer.get("NormalizedAliases" if is_original else "normalized_aliases")
    texts = [text for text in normalized if isinstance(text, str) and text.strip()] if is_array(normalized) else []
    text = text_of(values, "Question" if is_original else "question")
    name = values["QuestionId" if is_original else "question_id"]
    record_of_answers = {"accepted": list(dict.fromkeys(texts or aliases))}
    return Question(f"triviaqa-{name}", text.strip(), answer=aliases[0].strip(), record=record_of_answers)


def write_triviaqa(question: Question, examples: Sequence[Question]) -> dict[str, Any]:
    return chat_line(question, *_triviaqa(question, examples), 256, stop=TRIVIAQA_STOP)


def write_triviaqa_plain(question: Question, examples: Sequence[Question]) -> dict[str, Any]:
    return prompt_line(question, *_triviaqa(question, examples), stop=TRIVIAQA_STOP)


def _triviaqa(question: Question, examples: Sequence[Question]) -> tuple[str, dict[str, Any]]:
    """The prompt and the check of a question."""
    # As in the source, a question mark is added even if the question has one.
    shots = "".join(f"Question: {e.text}?\nAnswer: {e.answer}\n\n" for e in examples)
    expect = {
        "one_of": question.record["accepted"], "ignore_case": True, "ignore_punctuation": True, "ignore_articles": True,
    }  # fmt: skip
    return f"{shots}Question: {question.text}?\nAnswer:", expect


SIMPLEQA_RUBRIC = (
    "The reply gives the answer of the reference: it has all important information of the reference that the question "
    "asks for, and says nothing that contradicts the reference. Upper and lower case, punctuation, grammar, order, "
    "small misspellings of names, and hedging do not matter. A number must be right to the last digit that the "
    "reference gives. A reply that does not answer, or names several possible answers, does not meet this."
)


def read_simpleqa(record: Record) -> Question:
    values = record.values
    topic = re.search(r"'topic': '([^'\n]{1,100})'", str(values.get("metadata") or ""))
    tags = (topic[1],) if topic else ()
    return Question(
        f"simpleqa-{record.number}", text_of(values, "problem"), answer=text_of(values, "answer"), tags=tags
    )


def write_simpleqa(question: Question, _: Sequence[Question]) -> dict[str, Any]:
    expect = {"judge": SIMPLEQA_RUBRIC, "reference": True}
    return chat_line(question, question.text, expect, 1024, reference=question.answer)


def read_ifeval(record: Record) -> Question:
    values = record.values
    names, arguments = values["instruction_id_list"], values["kwargs"]
    if not is_array(names) or not is_array(arguments) or len(names) != len(arguments) or not names:
        bad("instruction_id_list and kwargs must be lists of the same length")
    tags = tuple(dict.fromkeys(name.partition(":")[0] for name in names))
    return Question(f"ifeval-{values['key']}", text_of(values, "prompt"), tags=tags, record=values)


def write_ifeval(question: Question, _: Sequence[Question]) -> dict[str, Any]:
    return chat_line(question, question.text, _ifeval_check(question), 1280)


def write_ifeval_plain(question: Question, _: Sequence[Question]) -> dict[str, Any]:
    return prompt_line(question, question.text, _ifeval_check(question), max_tokens=1280)


def _ifeval_check(question: Question) -> dict[str, Any]:
    record = question.record
    entries = [
        # In a Parquet file, each entry has the arguments of all instructions, and most are null.
        {"id": name, **{key: value for key, value in arguments.items() if value is not None}}
        for name, arguments in zip(record["instruction_id_list"], record["kwargs"], strict=True)
    ]
    return {"ifeval": entries}


_TEMPERATURES: Mapping[str, float] = {
    "writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0, "stem": 0.1,
    "humanities": 0.1,
}  # fmt: skip
_DEFAULT_TEMPERATURE = 0.7


def read_mt_bench(record: Record) -> Question:
    values = record.values
    turns = values["turns"]
    if not is_array(turns) or not turns or not all(isinstance(turn, str) for turn in turns):
        bad("turns must be a list of texts")
    category = str(values.get("category") or "")
    tags = (category,) if category else ()
    return Question(str(values["question_id"]), turns[0], group=category, tags=tags, record=values)


def write_mt_bench(question: Question, _: Sequence[Question]) -> dict[str, Any]:
    record = question.record
    references: list[Any] = [*(record.get("reference") or []), *[None] * len(record["turns"])]
    messages: list[dict[str, str]] = []
    for turn, reference in zip(record["turns"], references, strict=False):
        messages.append({"role": "user", "content": turn})
        if reference:
            messages.append({"role": "assistant", "content": reference})
    temperature = record.get("required_temperature")
    if temperature is None:
        temperature = _TEMPERATURES.get(question.group, _DEFAULT_TEMPERATURE)
    return line_of(question, messages=messages, params={"temperature": temperature, "max_tokens": 1024})
