"""A record of each benchmark in each form in which it is published, made for the tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rwkvbatch.script.benchmark_import import import_benchmark

LAMBADA = {"text": "He gave her the book, and she read the\nbook"}
MMLU = {"question": "What is 1 + 1?", "subject": "abstract_algebra", "choices": ["1", "2", "3", "4"], "answer": 1}
MMLU_PRO = {
    "question_id": 70,
    "question": "What is 1 + 1?",
    "options": ["1", " 2", "3", "N/A"],
    "answer": "B",
    "answer_index": 1,
    "cot_content": "A: Let's think step by step. One and one are two. The answer is (B).",
    "category": "computer science",
    "src": "ori_mmlu",
}
GPQA = {
    "Question": "What is hot?",
    "Correct Answer": "the  sun\n",
    "Incorrect Answer 1": "ice",
    "Incorrect Answer 2": "snow [title] rain",
    "Incorrect Answer 3": "a cold wind",
    "Explanation": "It is.",
    "Subdomain": "Astrophysics",
    "High-level domain": "Physics",
    "Record ID": "rec1",
}
ARC = {
    "id": "Mercury_1",
    "question": "What is hot?",
    "choices": {"text": ["ice", "the sun", "snow"], "label": ["1", "2", "3"]},
    "answerKey": "2",
}
ARC_AI2 = {
    "id": "MCAS_1",
    "question": {"stem": "What is hot?", "choices": [{"text": "ice", "label": "A"}, {"text": "the sun", "label": "B"}]},
    "answerKey": "B",
}
HELLASWAG = {
    "ind": 24,
    "activity_label": "Roof removal",
    "ctx_a": "A man is sitting on a roof.",
    "ctx_b": "he",
    "endings": ["is singing.", "stands [title] pulls [step] it  up.", "sleeps.", "starts."],
    "label": "1",
}
PIQA = {"goal": "To open a jar", "sol1": "twist the lid.", "sol2": "twist the glass.", "label": 0}
SCIQ = {
    "question": "What do plants make?",
    "distractor3": "salt",
    "distractor1": "iron",
    "distractor2": "sand",
    "correct_answer": "oxygen",
    "support": " Plants make oxygen.",
}
OPENBOOKQA = {
    "id": "7-980",
    "question_stem": "The sun is responsible for",
    "choices": {"text": ["puppies", "plants growing"], "label": ["A", "B"]},
    "answerKey": "B",
}
OPENBOOKQA_AI2 = {
    "id": "7-980",
    "question": {
        "stem": "The sun is responsible for",
        "choices": [{"text": "puppies", "label": "A"}, {"text": "plants growing", "label": "B"}],
    },
    "answerKey": "B",
}
BOOLQ = {"question": "is the sun hot", "title": "Sun", "answer": True, "passage": "The sun is hot."}
BOOLQ_SUPERGLUE = {"question": "is the sun hot", "passage": "The sun is hot.", "idx": 0, "label": True}
BOOLQ_PARQUET = {"question": "is the sun hot", "passage": "The sun is hot.", "idx": 0, "label": 1}
COPA = {
    "premise": "The man woke up. ",
    "choice1": "The clock rang.",
    "choice2": "He slept.",
    "question": "cause",
    "label": 0,
    "idx": 0,
}
WINOGRANDE = {
    "qID": "3D5G8J-1",
    "sentence": "Ada asked Bob for help because _ was kind.",
    "option1": "Ada",
    "option2": "Bob",
    "answer": "2",
}
XWINOGRAD = {"sentence": "Ada gab Bob Brot, weil _ Hunger hatte.", "option1": "Ada", "option2": "Bob", "answer": "2"}
BLIMP = {
    "sentence_good": "Who has Ada seen?",
    "sentence_bad": "Who have Ada seen?",
    "field": "syntax",
    "linguistics_term": "agreement",
    "UID": "wh_agreement",
    "simple_LM_method": True,
    "pairID": "12",
}
GSM8K = {"question": "How many are 2 and 3?", "answer": "2 + 3 = <<2+3=5>>5\n#### 1,005"}
MATH = {
    "problem": "What is $1/2 + 1$?",
    "solution": "It is $\\boxed{\\frac{3}{2}}$.",
    "answer": "\\frac{3}{2}",
    "subject": "Prealgebra",
    "level": 2,
    "unique_id": "test/prealgebra/1.json",
}
MATH_HENDRYCKS = {
    "problem": "What is $1/2 + 1$?",
    "level": "Level 2",
    "type": "Prealgebra",
    "solution": "It is $\\boxed{\\frac{3}{2}}$.",
}
AIME = {"ID": "2024-I-1", "Problem": "How many?", "Solution": "So it is 33.", "Answer": 33}
TRIVIAQA = {
    "question": "Who wrote the letter?",
    "question_id": "tc_1",
    "question_source": "http://example.com/",
    "answer": {
        "aliases": ["Ada Lovelace", "The Countess of Lovelace"],
        "normalized_aliases": ["ada lovelace", "countess of lovelace"],
        "value": "Ada Lovelace",
    },
}
TRIVIAQA_ORIGINAL = {
    "Data": [
        {
            "Answer": {
                "Aliases": ["Ada Lovelace", "The Countess of Lovelace"],
                "NormalizedAliases": ["ada lovelace", "countess of lovelace"],
                "Value": "Ada Lovelace",
            },
            "Question": "Who wrote the letter?",
            "QuestionId": "tc_1",
            "QuestionSource": "http://example.com/",
        }
    ],
    "Domain": "Web",
    "Split": "dev",
    "VerifiedEval": False,
    "Version": 1.0,
}
CEVAL = {
    "id": 0, "question": " 一加一等于____。 ", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "B",
    "explanation": "", "subject": "college_physics",
}  # fmt: skip
CMMLU = {"Question": "一加一等于", "A": "1", "B": "2", "C": "3", "D": "4", "Answer": "B", "subject": "anatomy"}
TRUTHFULQA = {
    "question": "What is hot?",
    "mc1_targets": {"choices": ["The sun is.", "Ice is.", "Snow is."], "labels": [1, 0, 0]},
}
TRUTHFULQA_ORIGINAL = {"question": "What is hot?", "mc1_targets": {"Ice is.": 0, "The sun is.": 1, "Snow is.": 0}}
SIMPLEQA = {
    "metadata": "{'topic': 'History', 'answer_type': 'Person', 'urls': ['https://example.com/']}",
    "problem": "Who wrote the letter?",
    "answer": "Ada Lovelace",
}
MT_BENCH = {"question_id": 81, "category": "math", "turns": ["Add 1 and 1.", "Double it."], "reference": ["2", ""]}

RECORDS: dict[str, Mapping[str, Any]] = {
    "lambada": LAMBADA, "mmlu": MMLU, "mmlu-pro": MMLU_PRO, "gpqa": GPQA, "arc": ARC, "hellaswag": HELLASWAG,
    "piqa": PIQA, "sciq": SCIQ, "openbookqa": OPENBOOKQA, "boolq": BOOLQ, "copa": COPA, "winogrande": WINOGRANDE,
    "xwinograd": XWINOGRAD, "blimp": BLIMP, "gsm8k": GSM8K, "math": MATH, "aime": AIME, "triviaqa": TRIVIAQA,
    "simpleqa": SIMPLEQA, "mt-bench": MT_BENCH, "ceval": CEVAL, "cmmlu": CMMLU, "truthfulqa": TRUTHFULQA,
}  # fmt: skip
"""By benchmark, a record; all but ifeval, whose instructions need an optional dependency."""


def written(path: Path, *records: Any) -> str:
    """A JSON Lines file of records."""
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return str(path)


def lines_of(
    name: str, tmp_path: Path, *records: Mapping[str, Any], dev: Sequence[Mapping[str, Any]] = (), **options: Any
) -> list[dict[str, Any]]:
    """The lines of the script that is imported from a file of records, as JSON values."""
    if dev:
        options["dev"] = [written(tmp_path / "dev.jsonl", *dev)]
    out = tmp_path / "out.jsonl"
    out.unlink(missing_ok=True)
    import_benchmark(name, [written(tmp_path / "in.jsonl", *records)], out, **options)
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
