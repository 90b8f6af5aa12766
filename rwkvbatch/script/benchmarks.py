"""Scripts from the files of published benchmarks, with the prompts of their sources.

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
        text: the question or the beginning of a text. options: the answers to choose from, by their names.
        answer: the right one: an option's name, a number, or a text that solves the question.
        group: what few-shot examples are taken from the same of, such as a subject.
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
    """A way to ask: makes the line of a script from a question and the examples before it."""

    write: Write
    shots: bool = False


@dataclass(frozen=True)
class Benchmark:
    """A published benchmark.

    Attributes:
        summary: what its file is. read: the question of a record; raises `BadRecordError`.
        styles: by name; the first is the default.
        header: columns of its CSV files that have a header.
    """

    summary: str
    read: Read
    styles: Mapping[str, Style]
    header: frozenset[str] = frozenset()


class BadRecordError(Exception):
    """A record that is not of its benchmark's form; the text says what is wrong."""


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
        given = values["choices"] if "choices" in values else [values[letter] for letter in "ABCD"]
        # A CSV file has a list as Python or numpy writes it, which cannot be taken apart with certainty.
        options = list(given) if is_array(given) else _bad("choices must be a list of texts")
        text, answer = _text(values, "question"), values["answer"]
        subject = values.get("subject") or _subject(record.source.path)
    else:
        *cells, answer = values.values()
        text, *options = cells
        subject = _subject(record.source.path)
    if len(options) < 2 or not all(isinstance(option, str) and option.strip() for option in options):
        _bad("it must have two options or more, and all must be texts")
    named = dict(zip(LETTERS, options, strict=False))
    if isinstance(answer, str) and answer.isdecimal():
        answer = int(answer)
    name = LETTERS[answer] if type(answer) is int and 0 <= answer < len(options) else answer
    if name not in named:
        _bad(f"its answer must be one of {', '.join(named)} or 0 to {len(options) - 1}, got {shown(answer)}")
    return Question(f"{subject}-{record.number}", text, named, str(name), str(subject))


def _subject(path: str) -> str:
    """The subject of a file, as hendrycks/test names its files: `SUBJECT_test.csv`."""
    return re.sub(r"[_-](?:test|dev|val|validation|train)(?:[-_].*)?$", "", Path(path).stem)


def _write_mmlu_rwkv(question: Question, _: Sequence[Question]) -> dict[str, Any]:
    listed = "".join(f"{letter}. {text}\n" for letter, text in question.options.items())
    subject = question.group.replace("_", " ")
    prompt = f"User: You are a very talented expert in {subject}. Answer this question:\n{question.text}\n{listed}"
    prompt = f"{prompt}\nAssistant: The answer is".replace("\r\n", "\n").strip()
    return _lettered(question, prompt)


def _write_mmlu_plain(question: Question, examples: Sequence[Question]) -> dict[str, Any]:
    # The subject has a space of its own in the source, so that there are two.
    subject = "".join(f" {word}" for word in question.group.split("_"))
    prompt = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    for one in examples:
        prompt += f"{_mmlu_question(one)} {one.answer}\n\n"
    return _lettered(question, prompt + _mmlu_question(question))


def _mmlu_question(question: Question) -> str:
    listed = "".join(f"\n{letter}. {text}" for letter, text in question.options.items())
    return f"{question.text}{listed}\nAnswer:"


def _lettered(question: Question, prompt: str) -> dict[str, Any]:
    choices = {letter: f" {letter}" for letter in question.options}
    return {
        "id": question.name, **_tags(question), "prompt": prompt, "choices": choices,
        "expect": {"choice": question.answer},
    }  # fmt: skip


def _tags(question: Question) -> dict[str, Any]:
    return {"tags": [question.group]} if question.group else {}


def _write_options_chat(question: Question, _: Sequence[Question]) -> dict[str, Any]:
    """A question with lettered options, whose reply ends with the letter; named options become letters too."""
    letters = LETTERS[: len(question.options)]
    right = letters[list(question.options).index(question.answer)]
    content = (
        "Answer the following multiple choice question. The last line of your response should be of the following "
        f"format: 'Answer: $LETTER' (without quotes) where LETTER is one of {letters}. Think step by step before "
        f"answering.\n\n{question.text}\n\n"
    )
    content += "\n".join(f"{letter}) {text}" for letter, text in zip(letters, question.options.values(), strict=True))
    message = {"role": "user", "content": content, "expect": {"letter": right, "letters": letters}}
    return {
        "id": question.name, **_tags(question), "messages": [message], "params": {"temperature": 0, "max_tokens": 1024},
    }  # fmt: skip


# ARC


def _read_arc(record: Record) -> Question:
    values = record.values
    stem, given = values["question"], values.get("choices")
    if is_object(stem):  # AI2's own files
        stem, given = stem["stem"], stem["choices"]
    if is_object(given):
        pairs = list(zip(given["label"], given["text"], strict=True))
    elif is_array(given):
        pairs = [(one["label"], one["text"]) for one in given]
    else:
        _bad("its CSV files have the options inside the question; take the .jsonl file beside it")
    options = {str(label): text for label, text in pairs}
    answer = str(values["answerKey"])
    if answer not in options or not isinstance(stem, str):
        _bad(f"answerKey must be one of {', '.join(options)}, got {shown(answer)}")
    return Question(_text(values, "id"), stem, options, answer)


def _write_arc(question: Question, examples: Sequence[Question]) -> dict[str, Any]:
    shots = "".join(f"Question: {one.text}\nAnswer: {one.options[one.answer]}\n\n" for one in examples)
    return _continued(question, f"{shots}Question: {question.text}\nAnswer:")


def _continued(question: Question, prompt: str) -> dict[str, Any]:
    choices = {name: f" {text}" for name, text in question.options.items()}
    return {"id": question.name, "prompt": prompt, "choices": choices, "expect": {"choice": question.answer}}


# HellaSwag


def _read_hellaswag(record: Record) -> Question:
    values = record.values
    label = str(values["label"])
    if not label:
        _bad("it has no label; those of the test file are not published, so take the validation file")
    second = values["ctx_b"]
    context = f"{values['activity_label']}: {values['ctx_a']} {second[:1].upper()}{second[1:].lower()}"
    options = {str(at): _without_marks(text) for at, text in enumerate(values["endings"])}
    if label not in options:
        _bad(f"label must be one of {', '.join(options)}, got {shown(label)}")
    return Question(f"hellaswag-{record.number}", _without_marks(context), options, label)


def _without_marks(text: str) -> str:
    """A text without the marks that WikiHow's articles left in the data."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _write_hellaswag(question: Question, examples: Sequence[Question]) -> dict[str, Any]:
    shots = "".join(f"{one.text} {one.options[one.answer]}\n\n" for one in examples)
    return _continued(question, shots + question.text)


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
        shots = "".join(f"Question: {one.text}\nAnswer: {one.record['answer']}\n\n" for one in examples)
        content = f"{shots}Question: {question.text}\nAnswer:"
    number = float(question.answer) if "." in question.answer else int(question.answer)
    message = {"role": "user", "content": content, "expect": {"number": number}}
    return {"id": question.name, "messages": [message], "params": {"temperature": 0, "max_tokens": 1024}}


# IFEval


def _read_ifeval(record: Record) -> Question:
    values = record.values
    names, given = values["instruction_id_list"], values["kwargs"]
    if not is_array(names) or not is_array(given) or len(names) != len(given) or not names:
        _bad("instruction_id_list and kwargs must be lists of the same length")
    return Question(f"ifeval-{values['key']}", _text(values, "prompt"), record=values)


def _write_ifeval(question: Question, _: Sequence[Question]) -> dict[str, Any]:
    record = question.record
    entries = [
        # A Parquet file has all arguments, most of them null.
        {"id": name, **{key: value for key, value in given.items() if value is not None}}
        for name, given in zip(record["instruction_id_list"], record["kwargs"], strict=True)
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
_NO_CATEGORY = 0.7


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
    own = record.get("required_temperature")
    temperature = _TEMPERATURES.get(question.group, _NO_CATEGORY) if own is None else own
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
