"""Benchmarks whose answers are letters of options: likelihoods of the letters, or replies that name one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rwkvbatch.script.benchmarks.question import (
    LETTERS,
    Question,
    bad,
    chat_line,
    line_of,
    prompt_line,
    text_of,
    texts_of,
)
from rwkvbatch.script.lines import is_array, shown
from rwkvbatch.script.tables import Record


def read_mmlu(record: Record) -> Question:
    values = record.values
    if "question" in values:
        choices = values["choices"] if "choices" in values else [values[letter] for letter in "ABCD"]
        # A CSV file has a list in the notation of Python or numpy, which cannot be parsed with certainty.
        options = list(choices) if is_array(choices) else bad("choices must be a list of texts")
        text, answer = text_of(values, "question"), values["answer"]
        subject = values.get("subject") or subject_of(record.source.path)
    else:
        # The columns of a CSV file without a header are "0", "1", ...; other records have names.
        cells = list(values.values()) if "0" in values else bad("question is missing")
        text, *options, answer = (
            cells if len(cells) == 6 else bad("it must have a question, four options and an answer")
        )
        subject = subject_of(record.source.path)
    if len(options) < 2 or not all(isinstance(option, str) and option.strip() for option in options):
        bad("it must have two options or more, and all must be texts")
    by_letter = dict(zip(LETTERS, options, strict=False))
    if isinstance(answer, str) and answer.isdecimal():
        answer = int(answer)
    letter = LETTERS[answer] if type(answer) is int and 0 <= answer < len(options) else answer
    if letter not in by_letter:
        bad(f"its answer must be one of {', '.join(by_letter)} or 0 to {len(options) - 1}, got {shown(answer)}")
    subject = str(subject)
    tags = (subject,) if subject else ()
    return Question(f"{subject}-{record.number}", text, by_letter, str(letter), subject, tags)


def subject_of(path: str) -> str:
    """The subject of a file that is named as in hendrycks/test: `SUBJECT_test.csv`."""
    return re.sub(r"[_-](?:test|dev|val|validation|train)(?:[-_].*)?$", "", Path(path).stem)


def write_mmlu_rwkv(question: Question, _: Sequence[Question]) -> dict[str, Any]:
    options = "".join(f"{letter}. {text}\n" for letter, text in question.options.items())
    subject = question.group.replace("_", " ")
    prompt = f"User: You are a very talented expert in {subject}. Answer this question:\n{question.text}\n{options}"
    prompt = f"{prompt}\nAssistant: The answer is".replace("\r\n", "\n").strip()
    return letter_choices(question, prompt)


def write_mmlu_plain(question: Question, examples: Sequence[Question]) -> dict[str, Any]:
    # As in the source, the subject begins with a space, so that there are two spaces before it.
    subject = "".join(f" {word}" for word in question.group.split("_"))
    prompt = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    for example in examples:
        prompt += f"{_mmlu_question(example)} {example.answer}\n\n"
    return letter_choices(question, prompt + _mmlu_question(question))


def _mmlu_question(question: Question) -> str:
    options = "".join(f"\n{letter}. {text}" for letter, text in question.options.items())
    return f"{question.text}{options}\nAnswer:"


def letter_choices(question: Question, prompt: str, form: str = "{}") -> dict[str, Any]:
    """A line whose choices are the letters of the options, each after a space and in `form`."""
    choices = {letter: f" {form.format(letter)}" for letter in question.options}
    return line_of(question, prompt=prompt, choices=choices, expect={"choice": question.answer})


def write_options_chat(question: Question, _: Sequence[Question]) -> dict[str, Any]:
    """A question with options from A, whatever their names, and a reply that ends with a letter."""
    letters = LETTERS[: len(question.options)]
    right_letter = letters[list(question.options).index(question.answer)]
    content = (
        "Answer the following multiple choice question. The last line of your response should be of the following "
        f"format: 'Answer: $LETTER' (without quotes) where LETTER is one of {letters}. Think step by step before "
        f"answering.\n\n{question.text}\n\n"
    )
    content += "\n".join(f"{letter}) {text}" for letter, text in zip(letters, question.options.values(), strict=True))
    return chat_line(question, content, {"letter": right_letter, "letters": letters}, 1024)


MMLU_PRO_LETTERS = LETTERS[:10]


def read_mmlu_pro(record: Record) -> Question:
    values = record.values
    options = texts_of(values, "options")
    while options[-1] == "N/A":  # an option that was removed
        options = options[:-1]
    letters = MMLU_PRO_LETTERS[: len(options)]
    answer = values["answer"]
    if not 2 <= len(options) <= len(MMLU_PRO_LETTERS):
        bad(f"options must be 2 to {len(MMLU_PRO_LETTERS)} texts, got {len(options)}")
    if not isinstance(answer, str) or len(answer) != 1 or answer not in letters:
        bad(f"answer must be one of {', '.join(letters)}, got {shown(answer)}")
    category = text_of(values, "category")
    by_letter = dict(zip(letters, options, strict=True))
    name = f"mmlu-pro-{values['question_id']}"
    return Question(name, text_of(values, "question"), by_letter, answer, category, (category,), values)


def write_mmlu_pro(question: Question, examples: Sequence[Question]) -> dict[str, Any]:
    return chat_line(question, _mmlu_pro_prompt(question, examples), _mmlu_pro_check(question), 2048)


def write_mmlu_pro_plain(question: Question, examples: Sequence[Question]) -> dict[str, Any]:
    prompt = _mmlu_pro_prompt(question, examples)
    return prompt_line(question, prompt, _mmlu_pro_check(question), stop=("Question:",), max_tokens=2048)


def _mmlu_pro_check(question: Question) -> dict[str, Any]:
    return {"letter": question.answer, "letters": "".join(question.options)}


def _mmlu_pro_prompt(question: Question, examples: Sequence[Question]) -> str:
    content = (
        f"The following are multiple choice questions (with answers) about {question.group}. Think step by step and "
        'then finish your answer with "the answer is (X)" where X is the correct letter choice.\n'
    )
    for example in examples:
        reasoning = text_of(example.record, "cot_content").replace("A: Let's think step by step. ", "")
        content += f"{_mmlu_pro_question(example)} {reasoning}\n\n"
    return content + _mmlu_pro_question(question)


def _mmlu_pro_question(question: Question) -> str:
    options = "".join(f"{letter}. {text.strip()}\n" for letter, text in question.options.items())
    return f"Question:\n{question.text}\nOptions:\n{options}Answer: Let's think step by step."


GPQA_ANSWERS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def read_gpqa(record: Record) -> Question:
    """A question whose options are ordered by their contents, since the files have the right answer first.

    The order is that of the SHA-256 of the question, a line end and the option, both stripped: the same in every file
    and selection of questions, and on average each letter is right equally often.
    """
    values = record.values
    text = text_of(values, "Question")
    answers = [(name, text_of(values, name)) for name in GPQA_ANSWERS]
    answers.sort(key=lambda pair: hashlib.sha256(f"{text.strip()}\n{pair[1].strip()}".encode()).digest())
    options = {letter: option for letter, (_, option) in zip(LETTERS, answers, strict=False)}
    right_letter = LETTERS[[name for name, _ in answers].index("Correct Answer")]
    tags = tuple(dict.fromkeys(str(values[key]) for key in ("High-level domain", "Subdomain") if values.get(key)))
    name = f"gpqa-{values.get('Record ID') or record.number}"
    return Question(name, text, options, right_letter, tags=tags)


def write_gpqa_plain(question: Question, examples: Sequence[Question]) -> dict[str, Any]:
    if not examples:
        prompt = f"What is the correct answer to this question:{question.text}\n{_gpqa_options(question.options)}"
        return letter_choices(question, prompt, "({})")
    prompt = (
        "Here are some example questions from experts. Answer the final question yourself, following the format of the "
        "previous questions exactly.\n"
    )
    for example in examples:
        prompt += f"Question: {example.text}\n{_gpqa_options(example.options)} ({example.answer})\n\n"
    return letter_choices(question, f"{prompt}Question: {question.text}\n{_gpqa_options(question.options)}", "({})")


def _gpqa_options(options: Mapping[str, str]) -> str:
    def cleaned(text: str) -> str:
        return text.strip().replace(" [title]", ". ").replace("  ", " ")

    lines = "".join(f"({letter}) {cleaned(text)}\n" for letter, text in options.items())
    return f"Choices:\n{lines}Answer:"
