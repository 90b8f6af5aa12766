"""Published benchmarks: readers of their files, and the prompts of their sources as lines of a script.

| benchmark | style | file | prompt |
|---|---|---|---|
| lambada | `plain` | `text` | RWKV-LM, and lm-evaluation-harness `lambada_openai.yaml` |
| mmlu | `rwkv` | hendrycks/test (CSV), cais/mmlu | RWKV-LM `rwkv_mmlu_eval.py` |
| mmlu | `plain` | the same | hendrycks/test `evaluate.py` |
| mmlu, arc | `chat` | the same | openai/simple-evals `common.py` |
| arc | `plain` | AI2 (JSONL), allenai/ai2_arc | lm-evaluation-harness `arc_easy.yaml` |
| hellaswag | `plain` | rowanz/hellaswag, Rowan/hellaswag | lm-evaluation-harness `hellaswag.yaml` and `utils.py` |
| gsm8k | `chat` | openai/grade-school-math | the question; with examples as lm-evaluation-harness `gsm8k.yaml` |
| ifeval | `chat` | google-research `instruction_following_eval` | the prompt itself |
| mt-bench | `chat` | FastChat `mt_bench/question.jsonl` | the turns; temperatures of FastChat `common.py` |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from rwkvbatch.script.lines import is_array, is_object, shown
from rwkvbatch.script.tables import Record

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Question:
    """A question of a benchmark.

    Attributes:
        name: id of the conversation.
        text: the question, or the beginning of a text.
        options: by name, the answers to choose from.
        answer: the right answer: an option's name, a number, or a text.
        group: the group from which few-shot examples are taken, such as a subject.
        record: the values of the record, for styles that need more of them.
    """

    name: str
    text: str
    options: Mapping[str, str] = field(default_factory=dict[str, str])
    answer: str = ""
    group: str = ""
    record: Mapping[str, Any] = field(default_factory=dict[str, Any])


Read = Callable[[Record], Question]
Write = Callable[[Question, Sequence[Question]], dict[str, Any]]


@dataclass(frozen=True)
class Style:
    """A form of the prompt.

    Attributes:
        write: makes the line of a script from a question and the examples before it.
        shots: whether the prompt can have examples.
    """

    write: Write
    shots: bool = False


@dataclass(frozen=True)
class Benchmark:
    """A published benchmark.

    Attributes:
        summary: description of the file.
        read: makes the question of a record; raises `BadRecordError`.
        styles: by name; the first one is the default.
        header: columns by which a header of a CSV file is recognised.
    """

    summary: str
    read: Read
    styles: Mapping[str, Style]
    header: frozenset[str] = frozenset()


class BadRecordError(Exception):
    """A record does not have the form of its benchmark; the text describes the problem."""


def _bad(problem: str) -> NoReturn:
    raise BadRecordError(problem)


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str) or not value.strip():
        _bad(f"{key} must be a text that is not empty, got {shown(value)}" if key in values else f"{key} is missing")
    return value


# LAMBADA


def _read_lambada(record: Record) -> Question:
    text = _text(record.values, "text")
    before, space, last = text.rpartition(" ")
    if not space or not before.strip() or not last.strip():
        _bad("text must have a last word after a space")
    return Question(f"lambada-{record.number}", before, answer=f" {last}")


def _write_lambada(question: Question, _: Sequence[Question]) -> dict[str, Any]:
    return {"id": question.name, "prompt": question.text, "continuation": question.answer}


# MMLU


def _read_mmlu(record: Record) -> Question:
    values = record.values
    if "question" in values:
        choices = values["choices"] if "choices" in values else [values[letter] for letter in "ABCD"]
        # A CSV file has a list in the notation of Python or numpy, which cannot be parsed with certainty.
        options = list(choices) if is_array(choices) else _bad("choices must be a list of texts")
        text, answer = _text(values, "question"), values["answer"]
        subject = values.get("subject") or _subject(record.source.path)
    else:
        *cells, answer = values.values()
        text, *options = cells
        subject = _subject(record.source.path)
    if len(options) < 2 or not all(isinstance(option, str) and option.strip() for option in options):
        _bad("it must have two options or more, and all must be texts")
    by_letter = dict(zip(LETTERS, options, strict=False))
    if isinstance(answer, str) and answer.isdecimal():
        answer = int(answer)
    letter = LETTERS[answer] if type(answer) is int and 0 <= answer < len(options) else answer
    if letter not in by_letter:
        _bad(f"its answer must be one of {', '.join(by_letter)} or 0 to {len(options) - 1}, got {shown(answer)}")
    return Question(f"{subject}-{record.number}", text, by_letter, str(letter), str(subject))


def _subject(path: str) -> str:
    """The subject of a file that is named as in hendrycks/test: `SUBJECT_test.csv`."""
    return re.sub(r"[_-](?:test|dev|val|validation|train)(?:[-_].*)?$", "", Path(path).stem)


def _write_mmlu_rwkv(question: Question, _: Sequence[Question]) -> dict[str, Any]:
    options = "".join(f"{letter}. {text}\n" for letter, text in question.options.items())
    subject = question.group.replace("_", " ")
    prompt = f"User: You are a very talented expert in {subject}. Answer this question:\n{question.text}\n{options}"
    prompt = f"{prompt}\nAssistant: The answer is".replace("\r\n", "\n").strip()
    return _letter_choices(question, prompt)


def _write_mmlu_plain(question: Question, examples: Sequence[Question]) -> dict[str, Any]:
    # As in the source, the subject begins with a space, so that there are two spaces before it.
    subject = "".join(f" {word}" for word in question.group.split("_"))
    prompt = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    for example in examples:
        prompt += f"{_mmlu_question(example)} {example.answer}\n\n"
    return _letter_choices(question, prompt + _mmlu_question(question))


def _mmlu_question(question: Question) -> str:
    options = "".join(f"\n{letter}. {text}" for letter, text in question.options.items())
    return f"{question.text}{options}\nAnswer:"


def _letter_choices(question: Question, prompt: str) -> dict[str, Any]:
    """A line whose choices are the letters of the options."""
    choices = {letter: f" {letter}" for letter in question.options}
    return {
        "id": question.name, **_tags(question), "prompt": prompt, "choices": choices,
        "expect": {"choice": question.answer},
    }  # fmt: skip


def _tags(question: Question) -> dict[str, Any]:
    return {"tags": [question.group]} if question.group else {}


def _write_options_chat(question: Question, _: Sequence[Question]) -> dict[str, Any]:
    """A question with options from A, whatever their names, and a reply that ends with a letter."""
    letters = LETTERS[: len(question.options)]
    right_letter = letters[list(question.options).index(question.answer)]
    content = (
        "Answer the following multiple choice question. The last line of your response should be of the following "
        f"format: 'Answer: $LETTER' (without quotes) where LETTER is one of {letters}. Think step by step before "
        f"answering.\n\n{question.text}\n\n"
    )
    content += "\n".join(f"{letter}) {text}" for letter, text in zip(letters, question.options.values(), strict=True))
    message = {"role": "user", "content": content, "expect": {"letter": right_letter, "letters": letters}}
    return {
        "id": question.name, **_tags(question), "messages": [message], "params": {"temperature": 0, "max_tokens": 1024},
    }  # fmt: skip


# ARC


def _read_arc(record: Record) -> Question:
    values = record.values
    text, choices = values["question"], values.get("choices")
    if is_object(text):  # AI2's own files
        text, choices = text["stem"], text["choices"]
    if is_object(choices):
        pairs = list(zip(choices["label"], choices["text"], strict=True))
    elif is_array(choices):
        pairs = [(choice["label"], choice["text"]) for choice in choices]
    else:
        _bad("its CSV files have the options inside the question; take the .jsonl file beside it")
    options = {str(label): option for label, option in pairs}
    answer = str(values["answerKey"])
    if answer not in options or not isinstance(text, str):
        _bad(f"answerKey must be one of {', '.join(options)}, got {shown(answer)}")
    return Question(_text(values, "id"), text, options, answer)


def _write_arc(question: Question, examples: Sequence[Question]) -> dict[str, Any]:
    shots = "".join(f"Question: {e.text}\nAnswer: {e.options[e.answer]}\n\n" for e in examples)
    return _text_choices(question, f"{shots}Question: {question.text}\nAnswer:")


def _text_choices(question: Question, prompt: str) -> dict[str, Any]:
    """A line whose choices are the texts of the options."""
    choices = {name: f" {text}" for name, text in question.options.items()}
    return {"id": question.name, "prompt": prompt, "choices": choices, "expect": {"choice": question.answer}}


# HellaSwag


def _read_hellaswag(record: Record) -> Question:
    values = record.values
    label = str(values["label"])
    if not label:
        _bad("it has no label; those of the test file are not published, so take the validation file")
    second_part = values["ctx_b"]
    context = f"{values['activity_label']}: {values['ctx_a']} {second_part[:1].upper()}{second_part[1:].lower()}"
    options = {str(index): _without_markup(text) for index, text in enumerate(values["endings"])}
    if label not in options:
        _bad(f"label must be one of {', '.join(options)}, got {shown(label)}")
    return Question(f"hellaswag-{record.number}", _without_markup(context), options, label)


def _without_markup(text: str) -> str:
    """A text without the markup of WikiHow articles that the data contain."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _write_hellaswag(question: Question, examples: Sequence[Question]) -> dict[str, Any]:
    shots = "".join(f"{example.text} {example.options[example.answer]}\n\n" for example in examples)
    return _text_choices(question, shots + question.text)


# GSM8K


def _read_gsm8k(record: Record) -> Question:
    solution = _text(record.values, "answer")
    match = re.search(r"####\s*(-?[\d.,]+)\s*$", solution)
    number = match[1].replace(",", "").rstrip(".") if match else ""
    if not re.fullmatch(r"-?\d+(?:\.\d+)?", number):
        _bad("answer must end with `#### NUMBER`")
    return Question(f"gsm8k-{record.number}", _text(record.values, "question"), answer=number, record=record.values)


def _write_gsm8k(question: Question, examples: Sequence[Question]) -> dict[str, Any]:
    content = question.text
    if examples:
        shots = "".join(f"Question: {e.text}\nAnswer: {e.record['answer']}\n\n" for e in examples)
        content = f"{shots}Question: {question.text}\nAnswer:"
    number = float(question.answer) if "." in question.answer else int(question.answer)
    message = {"role": "user", "content": content, "expect": {"number": number}}
    return {"id": question.name, "messages": [message], "params": {"temperature": 0, "max_tokens": 1024}}


# IFEval


def _read_ifeval(record: Record) -> Question:
    values = record.values
    names, arguments = values["instruction_id_list"], values["kwargs"]
    if not is_array(names) or not is_array(arguments) or len(names) != len(arguments) or not names:
        _bad("instruction_id_list and kwargs must be lists of the same length")
    return Question(f"ifeval-{values['key']}", _text(values, "prompt"), record=values)


def _write_ifeval(question: Question, _: Sequence[Question]) -> dict[str, Any]:
    record = question.record
    entries = [
        # In a Parquet file, each entry has the arguments of all instructions, and most are null.
        {"id": name, **{key: value for key, value in arguments.items() if value is not None}}
        for name, arguments in zip(record["instruction_id_list"], record["kwargs"], strict=True)
    ]
    message = {"role": "user", "content": question.text, "expect": {"ifeval": entries}}
    tags = list(dict.fromkeys(name.partition(":")[0] for name in record["instruction_id_list"]))
    return {
        "id": question.name, "tags": tags, "messages": [message], "params": {"temperature": 0, "max_tokens": 1280},
    }  # fmt: skip


# MT-Bench

_TEMPERATURES = {
    "writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0, "stem": 0.1,
    "humanities": 0.1,
}  # fmt: skip
_DEFAULT_TEMPERATURE = 0.7


def _read_mt_bench(record: Record) -> Question:
    values = record.values
    turns = values["turns"]
    if not is_array(turns) or not turns or not all(isinstance(turn, str) for turn in turns):
        _bad("turns must be a list of texts")
    return Question(str(values["question_id"]), turns[0], group=str(values.get("category") or ""), record=values)


def _write_mt_bench(question: Question, _: Sequence[Question]) -> dict[str, Any]:
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
    params = {"temperature": temperature, "max_tokens": 1024}
    return {"id": question.name, **_tags(question), "messages": messages, "params": params}


BENCHMARKS: Mapping[str, Benchmark] = {
    "lambada": Benchmark("lines with `text`", _read_lambada, {"plain": Style(_write_lambada)}),
    "mmlu": Benchmark(
        "SUBJECT_test.csv, or `question`, `choices`, `answer`, `subject`",
        _read_mmlu,
        {
            "rwkv": Style(_write_mmlu_rwkv),
            "plain": Style(_write_mmlu_plain, shots=True),
            "chat": Style(_write_options_chat),
        },
        header=frozenset({"question", "answer"}),
    ),
    "gsm8k": Benchmark(
        "`question` and `answer`",
        _read_gsm8k,
        {"chat": Style(_write_gsm8k, shots=True)},
        header=frozenset({"question", "answer"}),
    ),
    "arc": Benchmark(
        "`question`, `choices`, `answerKey`",
        _read_arc,
        {"plain": Style(_write_arc, shots=True), "chat": Style(_write_options_chat)},
        header=frozenset({"question", "AnswerKey"}),
    ),
    "hellaswag": Benchmark(
        "`activity_label`, `ctx_a`, `ctx_b`, `endings`, `label`",
        _read_hellaswag,
        {"plain": Style(_write_hellaswag, shots=True)},
    ),
    "ifeval": Benchmark(
        "`key`, `prompt`, `instruction_id_list`, `kwargs`", _read_ifeval, {"chat": Style(_write_ifeval)}
    ),
    "mt-bench": Benchmark("`question_id`, `turns`, `category`", _read_mt_bench, {"chat": Style(_write_mt_bench)}),
}
"""The benchmarks that can be imported, by name."""
