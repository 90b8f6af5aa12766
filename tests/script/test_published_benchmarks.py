"""The exact line of a script that is made of a record, for each benchmark in each form in which it is published."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import rwkvbatch
from rwkvbatch.errors import MissingExtraError, ScriptError, UsageError
from rwkvbatch.script.benchmark_import import import_benchmark
from rwkvbatch.script.benchmarks import BENCHMARKS, Benchmark
from rwkvbatch.script.benchmarks.letters import read_gpqa
from rwkvbatch.script.checks import judge_all, parse_checks
from rwkvbatch.script.choices import Normalize
from rwkvbatch.script.records import ReplyFacts
from rwkvbatch.script.tables import Record
from tests.script.benchmark_records import (
    AIME,
    BLIMP,
    BOOLQ,
    BOOLQ_PARQUET,
    BOOLQ_SUPERGLUE,
    CEVAL,
    CMMLU,
    COPA,
    GPQA,
    GSM8K,
    MATH,
    MATH_HENDRYCKS,
    MMLU_PRO,
    OPENBOOKQA,
    OPENBOOKQA_AI2,
    PIQA,
    SCIQ,
    SIMPLEQA,
    TRIVIAQA,
    TRIVIAQA_ORIGINAL,
    TRUTHFULQA,
    TRUTHFULQA_ORIGINAL,
    WINOGRANDE,
    XWINOGRAD,
    lines_of,
    written,
)
from tests.script.writing import HERE

ROOT = Path(__file__).parents[2]

BOOLQ_LINE = {
    "id": "boolq-1", "prompt": "The sun is hot.\nQuestion: is the sun hot?\nAnswer:",
    "choices": {"no": " no", "yes": " yes"}, "expect": {"choice": "yes"},
}  # fmt: skip
OPENBOOKQA_LINE = {
    "id": "7-980", "prompt": "The sun is responsible for", "choices": {"A": " puppies", "B": " plants growing"},
    "expect": {"choice": "B"},
}  # fmt: skip
BLIMP_LINE = {
    "id": "wh_agreement-12", "tags": ["syntax", "agreement", "wh_agreement"], "prompt": "",
    "choices": {"good": " Who has Ada seen?", "bad": " Who have Ada seen?"}, "expect": {"choice": "good"},
}  # fmt: skip
MATH_LINE = {
    "id": "test/prealgebra/1.json", "tags": ["Prealgebra", "level-2"],
    "messages": [
        {
            "role": "user",
            "content": "What is $1/2 + 1$?\nPlease reason step by step, and put your final answer within \\boxed{}.",
            "expect": {"math": "\\frac{3}{2}"},
        }
    ],
    "params": {"temperature": 0, "max_tokens": 2048},
}  # fmt: skip
AIME_LINE = {
    "id": "aime-2024-I-1",
    "messages": [
        {
            "role": "user",
            "content": "How many?\nPlease reason step by step, and put your final answer within \\boxed{}.",
            "expect": {"math": "33"},
        }
    ],
    "params": {"temperature": 0, "max_tokens": 32768},
}
GPQA_OPTIONS = "Choices:\n(A) the sun\n(B) a cold wind\n(C) snow. rain\n(D) ice\nAnswer:"
LINES: list[tuple[str, str, Mapping[str, Any], dict[str, Any]]] = [
    ("piqa", "plain", PIQA, {
        "id": "piqa-1", "prompt": "Question: To open a jar\nAnswer:",
        "choices": {"0": " twist the lid.", "1": " twist the glass."}, "expect": {"choice": "0"},
    }),
    ("sciq", "plain", SCIQ, {
        "id": "sciq-1", "prompt": "Plants make oxygen.\nQuestion: What do plants make?\nAnswer:",
        "choices": {
            "distractor1": " iron", "distractor2": " sand", "distractor3": " salt", "correct_answer": " oxygen",
        },
        "expect": {"choice": "correct_answer"},
    }),
    ("openbookqa", "plain", OPENBOOKQA, OPENBOOKQA_LINE),
    ("openbookqa", "plain", OPENBOOKQA_AI2, OPENBOOKQA_LINE),
    ("boolq", "plain", BOOLQ, BOOLQ_LINE),
    ("boolq", "plain", BOOLQ_SUPERGLUE, BOOLQ_LINE),
    ("boolq", "plain", BOOLQ_PARQUET, BOOLQ_LINE),
    ("copa", "plain", COPA, {
        "id": "copa-1", "tags": ["cause"], "prompt": "The man woke up because",
        "choices": {"choice1": "  the clock rang.", "choice2": "  he slept."}, "expect": {"choice": "choice1"},
    }),
    ("winogrande", "plain", WINOGRANDE, {
        "id": "3D5G8J-1", "prompt": "Ada asked Bob for help because ", "choices": {"1": "Ada", "2": "Bob"},
        "continuation": " was kind.", "expect": {"choice": "2"},
    }),
    ("ceval", "plain", CEVAL, {
        "id": "ceval-college_physics-1", "tags": ["college_physics"],
        "prompt": "以下是中国关于大学物理的单项选择题，请选出其中的正确答案。\n\n"
        "一加一等于____。\nA. 1\nB. 2\nC. 3\nD. 4\n答案：",
        "choices": {"A": " A", "B": " B", "C": " C", "D": " D"}, "expect": {"choice": "B"},
    }),
    ("cmmlu", "plain", CMMLU, {
        "id": "cmmlu-anatomy-1", "tags": ["anatomy"],
        "prompt": "以下是关于解剖学的单项选择题，请直接给出正确答案的选项。\n\n"
        "一加一等于\nA. 1\nB. 2\nC. 3\nD. 4\n答案：",
        "choices": {"A": " A", "B": " B", "C": " C", "D": " D"}, "expect": {"choice": "B"},
    }),
    ("xwinograd", "plain", XWINOGRAD, {
        "id": "xwinograd-1", "prompt": "Ada gab Bob Brot, weil ", "choices": {"1": "Ada", "2": "Bob"},
        "continuation": " Hunger hatte.", "expect": {"choice": "2"},
    }),
    ("blimp", "plain", BLIMP, BLIMP_LINE),
    ("blimp", "plain", {**{k: v for k, v in BLIMP.items() if k != "pairID"}, "pair_id": 12}, BLIMP_LINE),
    ("mmlu-pro", "chat", MMLU_PRO, {
        "id": "mmlu-pro-70", "tags": ["computer science"],
        "messages": [{
            "role": "user",
            "content": "The following are multiple choice questions (with answers) about computer science. Think step "
            'by step and then finish your answer with "the answer is (X)" where X is the correct letter choice.\n'
            "Question:\nWhat is 1 + 1?\nOptions:\nA. 1\nB. 2\nC. 3\nAnswer: Let's think step by step.",
            "expect": {"letter": "B", "letters": "ABC"},
        }],
        "params": {"temperature": 0, "max_tokens": 2048},
    }),
    ("gpqa", "plain", GPQA, {
        "id": "gpqa-rec1", "tags": ["Physics", "Astrophysics"],
        "prompt": f"What is the correct answer to this question:What is hot?\n{GPQA_OPTIONS}",
        "choices": {letter: f" ({letter})" for letter in "ABCD"}, "expect": {"choice": "A"},
    }),
    ("gpqa", "chat", GPQA, {
        "id": "gpqa-rec1", "tags": ["Physics", "Astrophysics"],
        "messages": [{
            "role": "user",
            "content": "Answer the following multiple choice question. The last line of your response should be of "
            "the following format: 'Answer: $LETTER' (without quotes) where LETTER is one of ABCD. Think step by step "
            "before answering.\n\nWhat is hot?\n\nA) the  sun\n\nB) a cold wind\nC) snow [title] rain\nD) ice",
            "expect": {"letter": "A", "letters": "ABCD"},
        }],
        "params": {"temperature": 0, "max_tokens": 1024},
    }),
    ("math", "chat", MATH, MATH_LINE),
    ("math", "chat", MATH_HENDRYCKS, MATH_LINE | {"id": "math-Prealgebra-in-1"}),
    ("aime", "chat", AIME, AIME_LINE),
    ("aime", "chat", {"id": 60, "problem": "How many?", "solution": "33", "answer": "033", "year": "2024"},
     AIME_LINE | {"id": "aime-60"}),
    ("aime", "chat", {"question": "How many?", "answer": "33^\\circ"}, AIME_LINE | {"id": "aime-1"}),
    ("triviaqa", "chat", TRIVIAQA, {
        "id": "triviaqa-tc_1",
        "messages": [{
            "role": "user", "content": "Question: Who wrote the letter??\nAnswer:",
            "expect": {
                "one_of": ["ada lovelace", "countess of lovelace"], "ignore_case": True, "ignore_punctuation": True,
                "ignore_articles": True,
            },
        }],
        "params": {"temperature": 0, "max_tokens": 256, "stop": ["\n", ".", ","]},
    }),
    ("gsm8k", "plain", GSM8K, {
        "id": "gsm8k-1", "prompt": f"Question: {GSM8K['question']}\nAnswer:", "expect": {"number": 1005},
        "params": {"temperature": 0, "max_tokens": 256, "stop": ["Question:", "</s>", "<|im_end|>"]},
    }),
    ("math", "plain", MATH, {
        "id": "test/prealgebra/1.json", "tags": ["Prealgebra", "level-2"],
        "prompt": f"Problem: {MATH['problem']}\nAnswer:", "expect": {"math": MATH["answer"]},
        "params": {"temperature": 0, "max_tokens": 256, "stop": ["Problem:"]},
    }),
    ("aime", "plain", AIME, {
        "id": "aime-2024-I-1", "prompt": f"Question: {AIME['Problem']}\nAnswer:", "expect": {"math": "33"},
        "params": {
            "temperature": 0, "max_tokens": 32768, "stop": ["Question:", "</s>", "<|im_end|>", "<|eot_id|>"],
        },
    }),
    ("triviaqa", "plain", TRIVIAQA, {
        "id": "triviaqa-tc_1", "prompt": "Question: Who wrote the letter??\nAnswer:",
        "expect": {
            "one_of": ["ada lovelace", "countess of lovelace"], "ignore_case": True, "ignore_punctuation": True,
            "ignore_articles": True,
        },
        "params": {"temperature": 0, "max_tokens": 256, "stop": ["\n", ".", ","]},
    }),
    ("mmlu-pro", "plain", MMLU_PRO, {
        "id": "mmlu-pro-70", "tags": ["computer science"],
        "prompt": (
            "The following are multiple choice questions (with answers) about computer science. Think step by step and "
            'then finish your answer with "the answer is (X)" where X is the correct letter choice.\n'
            "Question:\nWhat is 1 + 1?\nOptions:\nA. 1\nB. 2\nC. 3\nAnswer: Let's think step by step."
        ),
        "expect": {"letter": "B", "letters": "ABC"},
        "params": {"temperature": 0, "max_tokens": 2048, "stop": ["Question:"]},
    }),
]  # fmt: skip


@pytest.mark.parametrize(("name", "style", "record", "line"), LINES)
def test_the_line_of_a_record(
    name: str, style: str, record: Mapping[str, Any], line: dict[str, Any], tmp_path: Path
) -> None:
    (found,) = lines_of(name, tmp_path, record, style=style)
    assert found == line


def test_an_answer_of_simpleqa_is_a_reference_that_a_judge_compares(tmp_path: Path) -> None:
    (line,) = lines_of("simpleqa", tmp_path, SIMPLEQA)
    question, answer = line["messages"]
    assert (line["id"], line["tags"]) == ("simpleqa-1", ["History"])
    assert (question["content"], answer) == (SIMPLEQA["problem"], {"role": "assistant", "content": "Ada Lovelace"})
    assert question["expect"]["reference"] is True
    assert line["params"] == {"temperature": 0, "max_tokens": 1024}


SHOTS: list[tuple[str, Mapping[str, Any], Mapping[str, Any], str]] = [
    ("piqa", PIQA, PIQA | {"goal": "To close", "label": 1},
     "Question: To close\nAnswer: twist the glass.\n\nQuestion: To open a jar\nAnswer:"),
    ("sciq", SCIQ, SCIQ | {"question": "What is air?", "support": ""},
     "\nQuestion: What is air?\nAnswer: oxygen\n\nPlants make oxygen.\nQuestion: What do plants make?\nAnswer:"),
    ("openbookqa", OPENBOOKQA, OPENBOOKQA | {"question_stem": "Dogs have", "answerKey": "A"},
     "Dogs have puppies\n\nThe sun is responsible for"),
    ("boolq", BOOLQ, BOOLQ | {"question": "is it cold", "answer": False},
     "The sun is hot.\nQuestion: is it cold?\nAnswer: no\n\nThe sun is hot.\nQuestion: is the sun hot?\nAnswer:"),
    ("copa", COPA, COPA | {"question": "effect", "label": 1},
     "The man woke up therefore  he slept.\n\nThe man woke up because"),
    ("winogrande", WINOGRANDE, WINOGRANDE | {"sentence": "Then _ left.", "answer": "1"},
     "Then Ada left.\n\nAda asked Bob for help because "),
    ("ceval", CEVAL, CEVAL | {"question": "二加零等于"},
     "以下是中国关于大学物理的单项选择题，请选出其中的正确答案。\n\n二加零等于\nA. 1\nB. 2\nC. 3\nD. 4\n答案： B\n\n"
     "一加一等于____。\nA. 1\nB. 2\nC. 3\nD. 4\n答案："),
    ("gpqa", GPQA, GPQA | {"Question": "What is cold?", "Correct Answer": "ice", "Incorrect Answer 1": "fire"},
     "Here are some example questions from experts. Answer the final question yourself, following the format of the "
     "previous questions exactly.\nQuestion: What is cold?\nChoices:\n(A) snow. rain\n(B) ice\n(C) a cold wind\n"
     f"(D) fire\nAnswer: (B)\n\nQuestion: What is hot?\n{GPQA_OPTIONS}"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "record", "example", "prompt"), SHOTS)
def test_examples_are_before_the_question(
    name: str, record: Mapping[str, Any], example: Mapping[str, Any], prompt: str, tmp_path: Path
) -> None:
    (line,) = lines_of(name, tmp_path, record, dev=[example], shots=1)
    assert line["prompt"] == prompt


def test_examples_of_mmlu_pro_have_the_reasoning_of_the_same_category(tmp_path: Path) -> None:
    dev = [MMLU_PRO | {"category": "law", "question": "No?"}, MMLU_PRO | {"question": "What is 2 + 0?"}]
    (line,) = lines_of("mmlu-pro", tmp_path, MMLU_PRO, dev=dev, shots=1)
    question = "Question:\n{}\nOptions:\nA. 1\nB. 2\nC. 3\nAnswer: Let's think step by step."
    assert line["messages"][0]["content"].endswith(
        "letter choice.\n" + question.format("What is 2 + 0?") + " One and one are two. The answer is (B).\n\n"
        + question.format("What is 1 + 1?")
    )  # fmt: skip


def test_examples_of_triviaqa_have_the_first_alias(tmp_path: Path) -> None:
    (line,) = lines_of("triviaqa", tmp_path, TRIVIAQA, dev=[TRIVIAQA | {"question": "Who?"}], shots=1)
    expected = "Question: Who??\nAnswer: Ada Lovelace\n\nQuestion: Who wrote the letter??\nAnswer:"
    assert line["messages"][0]["content"] == expected


def test_examples_of_plain_gsm8k_keep_their_blank_lines(tmp_path: Path) -> None:
    dev = GSM8K | {"question": "How many?", "answer": "Two.\n#### 2"}
    (line,) = lines_of("gsm8k", tmp_path, GSM8K, style="plain", dev=[dev], shots=1)
    expected = f"Question: How many?\nAnswer: Two.\n#### 2\n\nQuestion: {GSM8K['question']}\nAnswer:"
    assert line["prompt"] == expected


def imported_line(name: str, path: Path) -> dict[str, Any]:
    """The only line of the script that is imported from a file."""
    out = path.with_name("script.jsonl")
    import_benchmark(name, [str(path)], out)
    return json.loads(out.read_text())


def test_the_original_file_of_triviaqa_has_its_records_in_an_object(tmp_path: Path) -> None:
    path = tmp_path / "web-dev.json"
    path.write_text(json.dumps(TRIVIAQA_ORIGINAL, indent=4))
    assert [imported_line("triviaqa", path)] == lines_of("triviaqa", tmp_path, TRIVIAQA)


CSV_FILES: list[tuple[str, Mapping[str, Any]]] = [
    ("gpqa", GPQA),
    ("simpleqa", SIMPLEQA),
    ("aime", {"ID": "1983-1", "Year": "1983", "Problem Number": "1", "Question": "How many?", "Answer": "60"}),
]


@pytest.mark.parametrize(("name", "record"), CSV_FILES)
def test_files_with_a_header_are_read_by_its_names(name: str, record: Mapping[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "file.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(record))
        writer.writeheader()
        writer.writerow(record)
    assert [imported_line(name, path)] == lines_of(name, tmp_path, record)


def test_the_order_of_the_options_of_gpqa_depends_on_contents_alone_and_each_letter_is_right_equally_often() -> None:
    def letter(number: int, **change: Any) -> str:
        values = GPQA | {"Question": f"Question {number}?"} | change
        return read_gpqa(Record(values, 1, HERE)).answer

    letters = [letter(number) for number in range(2000)]
    swapped = {
        "Incorrect Answer 1": GPQA["Incorrect Answer 3"], "Incorrect Answer 3": GPQA["Incorrect Answer 1"],
        "Record ID": "other",
    }  # fmt: skip
    assert [letter(number, **swapped) for number in range(2000)] == letters
    # 500 expected for each, with a standard deviation of 19
    assert all(420 < count < 580 for count in Counter(letters).values())


HARNESS: list[tuple[str, Mapping[str, Any], list[tuple[str, str]]]] = [
    ("winogrande", WINOGRANDE, [
        ("Ada asked Bob for help because Ada", " was kind."), ("Ada asked Bob for help because Bob", " was kind."),
    ]),
    ("blimp", BLIMP, [("", " Who has Ada seen?"), ("", " Who have Ada seen?")]),
    ("copa", COPA, [
        ("The man woke up because", "  the clock rang."), ("The man woke up because", "  he slept."),
    ]),
    ("piqa", PIQA, [
        ("Question: To open a jar\nAnswer:", " twist the lid."),
        ("Question: To open a jar\nAnswer:", " twist the glass."),
    ]),
]  # fmt: skip
"""By benchmark, the contexts and continuations whose likelihoods lm-evaluation-harness compares."""


@pytest.mark.parametrize(("name", "record", "pairs"), HARNESS)
def test_likelihoods_are_those_of_the_contexts_and_continuations_of_lm_evaluation_harness(
    name: str, record: Mapping[str, Any], pairs: list[tuple[str, str]], tmp_path: Path
) -> None:
    lines_of(name, tmp_path, record)
    llm = rwkvbatch.LLM()
    (row,) = rwkvbatch.run(tmp_path / "out.jsonl", model=llm.model).rows()
    assert row.choices is not None
    expected: list[float] = []
    for context, continuation in pairs:
        # Its `_encode_pair`: both are encoded together, and an empty context is token 0.
        whole, before = (llm.tokenizer.encode(text) for text in (context + continuation, context))
        expected.append(llm.score([0, *before], whole[len(before) :]).logprob)
    assert [score.logprob for score in row.choices.scores] == expected


@pytest.mark.parametrize(("record", "right"), [(TRUTHFULQA, "A"), (TRUTHFULQA_ORIGINAL, "B")])
def test_truthfulqa_has_the_dialogue_of_its_source_before_the_question(
    record: Mapping[str, Any], right: str, tmp_path: Path
) -> None:
    (line,) = lines_of("truthfulqa", tmp_path, record)
    assert line["prompt"].startswith("Q: What is human life expectancy in the United States?\nA: Human life")
    assert line["prompt"].endswith("\nA: The 1992 Olympics were held in Barcelona, Spain.\n\nQ: What is hot?\nA:")
    assert line["prompt"].count("Q: ") == 7
    assert (line["choices"][right], line["expect"]) == (" The sun is.", {"choice": right})


@pytest.mark.parametrize(
    ("name", "file", "record", "subject"),
    [
        ("ceval", "val/college_physics_val.jsonl", CEVAL, "college_physics"),
        ("ceval", "college_physics/val-00000-of-00001.jsonl", CEVAL, "college_physics"),
        ("cmmlu", "test/anatomy.jsonl", CMMLU, "anatomy"),
    ],
)
def test_the_subject_of_a_chinese_benchmark_is_in_the_name_of_its_file_or_folder(
    name: str, file: str, record: Mapping[str, Any], subject: str, tmp_path: Path
) -> None:
    path = tmp_path / file
    path.parent.mkdir()
    values = {key: value for key, value in record.items() if key != "subject"}
    import_benchmark(name, [written(path, values)], tmp_path / "out.jsonl")
    (line,) = map(json.loads, (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines())
    assert (line["tags"], line["id"]) == ([subject], f"{name}-{subject}-1")


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("ceval", CEVAL | {"answer": ""}, "it has no answer; those of the test file are not published"),
    ("ceval", CEVAL | {"answer": "E"}, "answer must be one of A, B, C, D, got 'E'"),
    ("ceval", CEVAL | {"D": None}, "D must be a text that is not empty, got None"),
    ("cmmlu", CMMLU | {"subject": "college_physics"}, "its subject 'college_physics' is none of the benchmark"),
    ("truthfulqa", {"question": "What?", "mc1_targets": ["a"]}, "mc1_targets must be an object with the answers"),
    ("truthfulqa", {"question": "What?", "mc1_targets": {"a": 1}}, "mc1_targets must have 2 to 26 answers"),
    ("truthfulqa", {"question": "What?", "mc1_targets": {"a": 1, "b": 1}}, "one with the label 1"),
    ("mmlu-pro", MMLU_PRO | {"answer": "D"}, "answer must be one of A, B, C, got 'D'"),
    ("mmlu-pro", MMLU_PRO | {"options": []}, "options must be a list of texts"),
    ("mmlu-pro", MMLU_PRO | {"options": list("abcdefghijk")}, "options must be 2 to 10 texts, got 11"),
    ("mmlu-pro", MMLU_PRO | {"category": ""}, "category must be a text that is not empty, got ''"),
    ("gpqa", GPQA | {"Incorrect Answer 2": None}, "Incorrect Answer 2 must be a text that is not empty, got None"),
    ("piqa", {k: v for k, v in PIQA.items() if k != "label"}, "valid.jsonl with valid-labels.lst next to it"),
    ("piqa", PIQA | {"label": -1}, "it has no label; those of the test file are not published"),
    ("piqa", PIQA | {"label": 2}, "label must be one of 0, 1, got 2"),
    ("sciq", SCIQ | {"support": None}, "support must be a text, which may be empty, got None"),
    ("sciq", SCIQ | {"distractor2": ""}, "distractor2 must be a text that is not empty"),
    ("openbookqa", OPENBOOKQA | {"answerKey": "C"}, "answerKey must be one of A, B, got 'C'"),
    ("openbookqa", OPENBOOKQA | {"choices": "A"}, "choices must be an object of `label` and `text`"),
    ("boolq", BOOLQ | {"answer": "maybe"}, "answer must be one of 0, 1, got 'maybe'"),
    ("boolq", BOOLQ_PARQUET | {"label": -1}, "it has no label"),
    ("copa", COPA | {"question": "reason"}, "question must be one of cause, effect, got 'reason'"),
    ("copa", COPA | {"label": None}, "it has no label"),
    ("winogrande", WINOGRANDE | {"answer": ""}, "it has no answer; those of the test file are not published"),
    ("winogrande", WINOGRANDE | {"sentence": "No blank."}, "sentence must have a blank `_` and text after it"),
    ("winogrande", WINOGRANDE | {"sentence": "It was _"}, "sentence must have a blank `_` and text after it"),
    ("winogrande", WINOGRANDE | {"answer": 3}, "answer must be one of 1, 2, got 3"),
    ("xwinograd", XWINOGRAD | {"option2": 7}, "option2 must be a text that is not empty, got 7"),
    ("blimp", BLIMP | {"sentence_bad": ""}, "sentence_bad must be a text"),
    ("blimp", {k: v for k, v in BLIMP.items() if k != "UID"}, "UID is missing"),
    ("math", MATH_HENDRYCKS | {"solution": "No box."}, "solution must have its answer in a"),
    ("math", MATH | {"answer": ""}, "answer must be a text that is not empty"),
    ("math", MATH | {"answer": "$"}, "must be an expression that math-verify can read"),
    ("aime", AIME | {"Answer": 1000}, "answer must be a whole number from 0 to 999, got 1000"),
    ("aime", AIME | {"Answer": True}, "answer must be a whole number from 0 to 999, got True"),
    ("aime", {"ID": "1", "Answer": 3}, "problem or question is missing"),
    ("triviaqa", TRIVIAQA | {"answer": None}, "its answer must be an object with aliases"),
    ("triviaqa", TRIVIAQA | {"answer": {"aliases": []}}, "aliases must be a list of texts"),
    ("simpleqa", SIMPLEQA | {"answer": None}, "answer must be a text that is not empty, got None"),
    ("copa", COPA | {"premise": 5}, "premise must be a text that is not empty, got 5"),
    ("hellaswag", {"label": "0", "ctx_a": "a", "ctx_b": 3, "activity_label": "b", "endings": ["c", "d"]},
     "has a value of another type"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "record", "problem"), BAD)
def test_what_is_wrong_with_a_record_is_said(name: str, record: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ScriptError) as caught:
        lines_of(name, tmp_path, record)
    assert "in.jsonl:1: " in str(caught.value)
    assert problem in str(caught.value)
    assert "--skip-bad" in str(caught.value.hint)


def test_labels_are_read_from_the_file_beside_the_records(tmp_path: Path) -> None:
    record = {key: value for key, value in PIQA.items() if key != "label"}
    path = written(tmp_path / "valid.jsonl", record, record | {"goal": "Again"})
    labels = tmp_path / "valid-labels.lst"
    labels.write_text("1\n0\n")
    import_benchmark("piqa", [path], tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["expect"] for line in lines] == [{"choice": "1"}, {"choice": "0"}]
    labels.write_text("1\n")
    with pytest.raises(ScriptError, match=r"valid\.jsonl:2: has no label: .*valid-labels\.lst has 1 line"):
        import_benchmark("piqa", [path], tmp_path / "out.jsonl", replace=True)
    labels.write_text("1\n0\n1\n")
    with pytest.raises(ScriptError, match=r"valid-labels\.lst: has 3 lines, and .*valid\.jsonl has 2 records"):
        import_benchmark("piqa", [path], tmp_path / "out.jsonl", replace=True)


@pytest.mark.parametrize("normalize", ["token", "byte", "character"])
def test_likelihoods_of_choices_can_be_normalized(normalize: Normalize, tmp_path: Path) -> None:
    path, out = tmp_path / "blimp.jsonl", tmp_path / "out.jsonl"
    path.write_text(json.dumps(BLIMP) + "\n")
    import_benchmark("blimp", [str(path)], out, normalize=normalize)
    assert json.loads(out.read_text())["expect"] == {"choice": "good", "normalize": normalize}


def test_normalizing_is_refused_where_no_likelihoods_of_choices_are_compared(tmp_path: Path) -> None:
    path, out = tmp_path / "lambada.jsonl", tmp_path / "out.jsonl"
    path.write_text('{"text": "Tom has a red book"}\n')
    with pytest.raises(UsageError, match="lambada in the style 'plain' compares no likelihoods of choices"):
        import_benchmark("lambada", [str(path)], out, normalize="byte")
    wrong: Any = "char"
    with pytest.raises(UsageError, match="--normalize must be one of none, token, byte, character, got 'char'"):
        import_benchmark("blimp", [str(path)], out, normalize=wrong)
    assert not out.exists()


@pytest.mark.parametrize("name", ["humaneval", "mbpp", "HumanEval"])
def test_benchmarks_that_run_code_are_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{name.lower()} is not imported: its checks run code") as caught:
        import_benchmark(name, [str(tmp_path)], tmp_path / "out.jsonl")
    assert "rwkvbatch serve" in str(caught.value.hint)


@pytest.mark.parametrize(("name", "meant"), [("winogrand", "winogrande"), ("mmlu_pro", "mmlu-pro"), ("PIQA", "piqa")])
def test_a_benchmark_with_a_similar_name_is_suggested(name: str, meant: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"unknown benchmark '{name}'") as caught:
        import_benchmark(name, ["x.jsonl"], tmp_path / "out.jsonl")
    assert f"did you mean {meant!r}?" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("reply", "passed"),
    [
        ("Ada Lovelace", True),
        ("the Countess of Lovelace.", True),
        ("ADA  LOVELACE!", True),
        ("Ada-Lovelace", True),
        ("Ada", False),
        ("It was Ada Lovelace", False),
        ("", False),
    ],
)
def test_answers_of_triviaqa_are_compared_without_case_punctuation_and_articles(
    reply: str, passed: bool, tmp_path: Path
) -> None:
    (line,) = lines_of("triviaqa", tmp_path, TRIVIAQA)
    checks = parse_checks(line["messages"][0]["expect"], HERE)
    assert judge_all(checks, ReplyFacts(reply, "stop", 1)).passed == passed


@pytest.mark.parametrize("name", [name for name, declared in BENCHMARKS.items() if "math" in name or "aime" in name])
def test_without_math_verify_the_extra_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwkvbatch.script.checks.answers.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="needs the math-verify library"):
        lines_of(name, tmp_path, MATH if name == "math" else AIME)


@pytest.mark.parametrize("document", ["README.md", "README.zh-CN.md"])
def test_every_benchmark_is_named_in_the_readme(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    missing = [benchmark.title for benchmark in BENCHMARKS.values() if benchmark.title not in text]
    assert not missing


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=BENCHMARKS)
def test_every_style_says_what_it_asks_and_its_source(benchmark: Benchmark) -> None:
    assert benchmark.title
    assert benchmark.files
    for style in benchmark.styles.values():
        assert style.asks
        assert style.measured


def test_the_test_file_of_ceval_has_no_answers_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "logic_test.csv"
    path.write_text("id,question,A,B,C,D\n0,一加一等于,1,2,3,4\n", encoding="utf-8")
    with pytest.raises(ScriptError, match="it has no answer; those of the test file are not published"):
        import_benchmark("ceval", [str(path)], tmp_path / "out.jsonl")
