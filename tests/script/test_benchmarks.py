"""Scripts from the published files of benchmarks."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rwkvbatch.cli.app import invoke
from rwkvbatch.errors import MissingExtraError, RwkvBatchError, ScriptError, UsageError
from rwkvbatch.script import tables
from rwkvbatch.script.benchmark_import import import_benchmark
from rwkvbatch.script.benchmarks import BENCHMARKS, BadRecordError
from rwkvbatch.script.reader import read_scripts
from rwkvbatch.script.records import Conversation
from tests.script.benchmark_records import (
    ARC,
    ARC_AI2,
    BLIMP,
    GSM8K,
    HELLASWAG,
    LAMBADA,
    MMLU,
    MT_BENCH,
    OPENBOOKQA,
    RECORDS,
    lines_of,
    written,
)
from tests.script.writing import HERE


def imported(
    name: str, tmp_path: Path, *records: Mapping[str, Any], dev: Sequence[Mapping[str, Any]] = (), **options: Any
) -> tuple[Conversation, ...]:
    lines_of(name, tmp_path, *records, dev=dev, **options)
    return read_scripts([str(tmp_path / "out.jsonl")]).conversations


def test_lambada_is_the_last_word_after_all_others(tmp_path: Path) -> None:
    (found,) = imported("lambada", tmp_path, LAMBADA | {"text": "One two\nthree four"})
    (turn,) = found.turns
    assert (turn.user, turn.reference, turn.plain) == ("One two\nthree", " four", True)


def test_the_last_word_of_lambada_is_after_the_last_space(tmp_path: Path) -> None:
    (found,) = imported("lambada", tmp_path, LAMBADA)
    assert (found.turns[0].user, found.turns[0].reference) == ("He gave her the book, and she read", " the\nbook")


def test_mmlu_has_the_prompt_of_the_authors_of_rwkv(tmp_path: Path) -> None:
    (found,) = imported("mmlu", tmp_path, MMLU)
    (turn,) = found.turns
    assert turn.user == (
        "User: You are a very talented expert in abstract algebra. Answer this question:\n"
        "What is 1 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\n\nAssistant: The answer is"
    )
    assert [choice.text for choice in turn.choices] == [" A", " B", " C", " D"]
    assert [check.as_dict() for check in turn.checks] == [{"choice": "B", "weight": 1.0}]
    assert (found.id, found.tags) == ("abstract_algebra-1", ("abstract_algebra",))


def test_mmlu_in_the_style_of_its_source_has_examples_of_the_same_subject(tmp_path: Path) -> None:
    other = MMLU | {"subject": "anatomy", "question": "What is a bone?"}
    dev = [other, MMLU | {"question": "What is 2 + 1?", "answer": 2}, MMLU | {"question": "More?"}]
    (found,) = imported("mmlu", tmp_path, MMLU, dev=dev, style="plain", shots=1)
    assert found.turns[0].user == (
        "The following are multiple choice questions (with answers) about  abstract algebra.\n\n"
        "What is 2 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: C\n\n"
        "What is 1 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    )


def test_mmlu_is_read_from_csv_files_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "high_school_physics_test.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["A, or\n\nB?", "1", "2", "3", "NA", "D"], ["C?", "1", "2", "3", "4", "A"]])
    import_benchmark("mmlu", [str(path)], tmp_path / "out.jsonl")
    first, second = read_scripts([str(tmp_path / "out.jsonl")]).conversations
    assert (first.id, first.tags) == ("high_school_physics-1", ("high_school_physics",))
    assert "A, or\n\nB?\nA. 1" in first.turns[0].user
    assert "D. NA" in first.turns[0].user
    assert first.turns[0].checks[0].expected == "D"
    assert second.turns[0].checks[0].expected == "A"


def test_a_line_of_mmlu_without_one_of_its_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "anatomy_test.csv"
    path.write_text("What is a bone?,1,2,3,C\n")
    with pytest.raises(ScriptError, match=r"anatomy_test\.csv:1: .* must have a question, four options and an answer"):
        import_benchmark("mmlu", [str(path)], tmp_path / "out.jsonl")


def test_the_first_line_of_a_csv_file_of_other_benchmarks_is_its_header(tmp_path: Path) -> None:
    path = tmp_path / "lambada.csv"
    path.write_text("text,domain\nShe said hello,book\n")
    import_benchmark("lambada", [str(path)], tmp_path / "out.jsonl")
    (found,) = read_scripts([str(tmp_path / "out.jsonl")]).conversations
    assert (found.turns[0].user, found.turns[0].reference) == ("She said", " hello")
    path.write_text("txt,domain\nShe said hello,book\n")
    with pytest.raises(ScriptError, match=r"lambada\.csv:2: .* text is missing") as caught:
        import_benchmark("lambada", [str(path)], tmp_path / "two.jsonl")
    assert "its columns are txt, domain" in str(caught.value.hint)


def test_a_table_with_a_header_is_read_by_its_names_and_without_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "gsm8k.csv"
    path.write_text('answer,question,more\n\n"2 + 3 = <<2+3=5>>5\n#### 5",How many are 2 and 3?,x\n')
    import_benchmark("gsm8k", [str(path)], tmp_path / "out.jsonl")
    (found,) = read_scripts([str(tmp_path / "out.jsonl")]).conversations
    assert "How many are 2 and 3?" in found.turns[0].user
    path.write_text("question,answer\nonly one\n")
    with pytest.raises(ScriptError, match=r"gsm8k\.csv:2: has 1 columns, and the first line has 2"):
        import_benchmark("gsm8k", [str(path)], tmp_path / "two.jsonl")


def test_an_answer_may_be_a_number_in_a_text_and_empty_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(f"\n{json.dumps(MMLU | {'answer': '1'})}\n  \n")
    import_benchmark("mmlu", [str(path)], tmp_path / "out.jsonl")
    (found,) = read_scripts([str(tmp_path / "out.jsonl")]).conversations
    assert found.turns[0].checks[0].expected == "B"


def test_records_of_the_same_id_are_refused_or_set_aside(tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=r"in\.jsonl:2: the id 'Mercury_1' was already used at .*in\.jsonl:1"):
        imported("arc", tmp_path, ARC, ARC)
    assert len(imported("arc", tmp_path, ARC, ARC, skip_bad=True)) == 1


def test_a_file_without_a_question_that_can_be_used_says_the_first_problem(tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=r"contains no usable question; the first problem: .*in\.jsonl:1: "):
        imported("arc", tmp_path, {"id": 1}, skip_bad=True)


def test_a_question_of_ifeval_has_arguments_for_each_instruction() -> None:
    values = {"key": 7, "prompt": "Write.", "instruction_id_list": ["a:b"], "kwargs": [{}]}
    read = BENCHMARKS["ifeval"].read
    assert read(tables.Record(values, 1, HERE)).name == "ifeval-7"
    for change in ({"kwargs": []}, {"kwargs": {}}, {"instruction_id_list": [], "kwargs": []}):
        with pytest.raises(BadRecordError, match="must be lists of the same length"):
            read(tables.Record(values | change, 1, HERE))


@pytest.mark.parametrize("record", [ARC, ARC_AI2])
def test_arc_is_asked_as_a_continuation(record: dict[str, Any], tmp_path: Path) -> None:
    (found,) = imported("arc", tmp_path, record)
    (turn,) = found.turns
    assert turn.user == "Question: What is hot?\nAnswer:"
    assert [choice.text for choice in turn.choices][:2] == [" ice", " the sun"]
    assert turn.checks[0].expected == record["answerKey"]
    assert found.id == record["id"]


def test_arc_in_chat_asks_for_a_letter(tmp_path: Path) -> None:
    (found,) = imported("arc", tmp_path, ARC, style="chat")
    (turn,) = found.turns
    assert turn.user.endswith("What is hot?\n\nA) ice\nB) the sun\nC) snow")
    assert "one of ABC." in turn.user
    assert turn.checks[0].as_dict() == {"letter": "B", "letters": "ABC", "weight": 1.0}


def test_examples_of_arc_and_hellaswag_are_whole_texts_before_the_question(tmp_path: Path) -> None:
    dev = [ARC | {"question": "What is cold?", "answerKey": "1"}, ARC | {"question": "And wet?", "answerKey": "3"}]
    (found,) = imported("arc", tmp_path, ARC, dev=dev, shots=2)
    assert found.turns[0].user == (
        "Question: What is cold?\nAnswer: ice\n\nQuestion: And wet?\nAnswer: snow\n\nQuestion: What is hot?\nAnswer:"
    )
    (found,) = imported("hellaswag", tmp_path, HELLASWAG, dev=[HELLASWAG | {"ctx_b": "she"}], shots=1)
    text = "Roof removal: A man is sitting on a roof."
    assert found.turns[0].user == f"{text} She stands. pulls it up.\n\n{text} He"


def test_hellaswag_is_cleaned_as_in_lm_evaluation_harness(tmp_path: Path) -> None:
    (found,) = imported("hellaswag", tmp_path, HELLASWAG)
    (turn,) = found.turns
    assert turn.user == "Roof removal: A man is sitting on a roof. He"
    assert [choice.text for choice in turn.choices] == [" is singing.", " stands. pulls it up.", " sleeps.", " starts."]
    assert turn.checks[0].expected == "1"


def test_white_space_at_the_end_of_a_prompt_belongs_to_the_text_after_it(tmp_path: Path) -> None:
    """As in `_encode_pair` of lm-evaluation-harness."""
    (found,) = imported("hellaswag", tmp_path, HELLASWAG | {"ctx_b": "she [step]"}, dev=[HELLASWAG], shots=1)
    (turn,) = found.turns
    assert turn.user.endswith(" He stands. pulls it up.\n\nRoof removal: A man is sitting on a roof. She")
    assert (turn.choice_prefix, turn.choices[0].text) == ("  ", "is singing.")
    (found,) = imported("openbookqa", tmp_path, OPENBOOKQA | {"question_stem": "Ice is\t "})
    assert found.turns[0].user == "Ice is"
    assert found.turns[0].choice_prefix == "\t  "
    assert [choice.text for choice in found.turns[0].choices] == OPENBOOKQA["choices"]["text"]
    (found,) = imported("lambada", tmp_path, LAMBADA | {"text": "One two  three"})
    assert (found.turns[0].user, found.turns[0].reference) == ("One two", "  three")
    (found,) = imported("blimp", tmp_path, BLIMP)
    assert found.turns[0].user == ""


def test_gsm8k_checks_the_number_after_the_marks(tmp_path: Path) -> None:
    (found,) = imported("gsm8k", tmp_path, GSM8K)
    assert found.turns[0].user == GSM8K["question"]
    assert found.turns[0].checks[0].as_dict() == {"number": 1005, "weight": 1.0}
    assert found.params["temperature"] == 0


def test_gsm8k_has_worked_examples(tmp_path: Path) -> None:
    dev = [{"question": "Q1?", "answer": "It is 4.\n#### 4"}]
    (found,) = imported("gsm8k", tmp_path, GSM8K, dev=dev, shots=1)
    question = GSM8K["question"]
    assert found.turns[0].user == f"Question: Q1?\nAnswer: It is 4.\n#### 4\n\nQuestion: {question}\nAnswer:"


def test_mt_bench_has_the_temperature_of_its_category(tmp_path: Path) -> None:
    math, writing, own = imported(
        "mt-bench",
        tmp_path,
        MT_BENCH,
        MT_BENCH | {"question_id": 82, "category": "writing"},
        MT_BENCH | {"question_id": 83, "required_temperature": 0.3},
    )
    assert [turn.user for turn in math.turns] == MT_BENCH["turns"]
    assert [turn.reference for turn in math.turns] == ["2", None]
    assert [found.params["temperature"] for found in (math, writing, own)] == [0, 0.7, 0.3]
    assert math.tags == ("math",)


@pytest.mark.parametrize("name", RECORDS)
def test_parquet_arrow_and_json_files_give_the_same_script(name: str, tmp_path: Path) -> None:
    table = pa.Table.from_pylist([dict(RECORDS[name])])
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_stream(tmp_path / "b.arrow", table.schema) as stream:
        stream.write_table(table)
    with pa.ipc.new_file(tmp_path / "c.arrow", table.schema) as file:
        file.write_table(table)
    (tmp_path / "d.json").write_text(json.dumps([RECORDS[name]], indent=1))
    written(tmp_path / "e.jsonl", RECORDS[name])
    scripts: list[bytes] = []
    for path in sorted(tmp_path.glob("?.*")):
        import_benchmark(name, [str(path)], tmp_path / "out.jsonl", replace=True)
        scripts.append((tmp_path / "out.jsonl").read_bytes())
    assert len(scripts) == 5
    assert len(set(scripts)) == 1


@pytest.mark.parametrize("name", [*RECORDS, "ifeval"])
@pytest.mark.parametrize(
    "record",
    [{}, {"text": 3}, {"text": "word"}, {"question": "Q"}, {"question": "Q", "answer": "x"}, {"id": "x", "turns": []}],
)
def test_records_of_another_form_are_refused_with_their_line(name: str, record: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=rf"in\.jsonl:1: is not a record of {name}: "):
        imported(name, tmp_path, record)
    assert not (tmp_path / "out.jsonl").exists()


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("mmlu", MMLU | {"answer": 4}, "its answer must be one of A, B, C, D or 0 to 3"),
    ("mmlu", MMLU | {"answer": "E"}, "its answer must be one of A, B, C, D"),
    ("mmlu", MMLU | {"choices": "['1' '2']"}, "choices must be a list"),
    ("mmlu", MMLU | {"choices": ["1", ""]}, "all must be texts"),
    ("mmlu", MMLU | {"answer": "4"}, "its answer must be one of A, B, C, D or 0 to 3, got 4"),
    ("mmlu", LAMBADA, "question is missing"),
    ("mmlu", {"context": "1 + 1?", "first": "1", "second": "2", "label": "B"}, "question is missing"),
    ("arc", ARC | {"answerKey": "A"}, "answerKey must be one of 1, 2, 3"),
    ("arc", ARC | {"choices": None}, "take the .jsonl file next to it"),
    ("hellaswag", HELLASWAG | {"label": ""}, "take the validation file"),
    ("hellaswag", HELLASWAG | {"label": 4}, "label must be one of"),
    ("gsm8k", GSM8K | {"answer": "5"}, "#### NUMBER"),
    ("gsm8k", GSM8K | {"answer": "#### 1.2.3"}, "#### NUMBER"),
    ("lambada", {"text": "a b "}, "last word"),
    ("mt-bench", MT_BENCH | {"turns": [1]}, "turns must be a list of texts"),
]


@pytest.mark.parametrize(("name", "record", "problem"), BAD)
def test_what_is_wrong_with_a_record_is_said(name: str, record: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=problem.replace("(", r"\(")):
        imported(name, tmp_path, record)
    assert len(imported(name, tmp_path, record, RECORDS[name], skip_bad=True)) == 1


def test_choices_that_are_the_same_text_are_refused_with_their_line(tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=r"in\.jsonl:1: .* is the same text") as caught:
        imported("hellaswag", tmp_path, HELLASWAG | {"endings": ["a", "b", "a", "c"]})
    assert "--skip-bad" in str(caught.value.hint)


OPTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("mmlu", {"style": "x"}, "mmlu has no style 'x'"),
    ("bbh", {}, "unknown benchmark 'bbh'"),
    ("mmlu", {"shots": 1, "dev": [MMLU]}, "in the style 'rwkv' has no examples"),
    ("lambada", {"shots": 1, "dev": [LAMBADA]}, "has no examples"),
    ("gsm8k", {"shots": 1}, "--shots and --dev belong together"),
    ("gsm8k", {"dev": [GSM8K]}, "--shots and --dev belong together"),
    ("gsm8k", {"shots": -1}, r"--shots must be a whole number in \[0, 100\]"),
]


@pytest.mark.parametrize(("name", "options", "problem"), OPTIONS)
def test_wrong_options_are_usage_errors(name: str, options: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=problem):
        imported(name, tmp_path, LAMBADA, **options)


def test_too_few_examples_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match="needs 2 examples about 'abstract_algebra', and the dev files have 0"):
        imported("mmlu", tmp_path, MMLU, dev=[MMLU], style="plain", shots=2)


HOSTILE: list[tuple[str, bytes]] = [
    ("x.jsonl", b'{"text": "a b"\n'),
    ("x.jsonl", b"\xff\xfe"),
    ("x.jsonl", b""),
    ("x.json", b"[1]"),
    ("x.json", b"[[[["),
    ("x.csv", b'"a"b,c\n'),
    ("x.csv", b"a,b\nc\n"),
    ("x.csv", b"\xff\n"),
    ("x.parquet", b"PAR1"),
    ("x.arrow", b"ARROW1"),
    ("x.arrow", b""),
    ("x.txt", b"a b"),
]


@pytest.mark.parametrize(("name", "data"), HOSTILE)
def test_damaged_files_are_input_errors(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    for benchmark in BENCHMARKS:
        with pytest.raises(ScriptError, match=name):
            import_benchmark(benchmark, [str(tmp_path / name)], tmp_path / "out.jsonl")
    with pytest.raises(ScriptError, match="missing"):
        import_benchmark("lambada", [str(tmp_path / "missing.jsonl")], tmp_path / "out.jsonl")


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(tables, "import_module", missing)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingExtraError, match="needs pyarrow"):
        import_benchmark("mmlu", [str(tmp_path / "x.parquet")], tmp_path / "out.jsonl")


def test_another_file_is_not_replaced(tmp_path: Path) -> None:
    source, out = written(tmp_path / "in.jsonl", LAMBADA), tmp_path / "notes.txt"
    out.write_text("notes")
    with pytest.raises(RwkvBatchError, match="is not a script"):
        import_benchmark("lambada", [source], out, replace=True)
    assert out.read_text() == "notes"


def test_the_command_imports_folders_and_reports(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    (tmp_path / "test").mkdir()
    for subject in ("anatomy", "astronomy"):
        written(tmp_path / "test" / f"{subject}.jsonl", MMLU | {"subject": subject}, MMLU | {"subject": subject})
    out = tmp_path / "mmlu.jsonl"
    assert invoke(["script", "import", "mmlu", str(tmp_path / "test"), "--out", str(out), "--json"]) == 0
    report = json.loads(capsysbinary.readouterr().out)
    assert report == {"benchmark": "mmlu", "style": "rwkv", "conversations": 4, "left_out": [], "out": str(out)}
    assert invoke(["script", "import", "mmlu", str(tmp_path / "test"), "--out", str(out)]) == 2
    assert b"--force" in capsysbinary.readouterr().err
    assert invoke(["script", "import", "mmlu", str(tmp_path / "test"), "-o", str(out), "--force", "-q"]) == 0
    assert invoke(["script", "import", "arc", str(tmp_path / "test"), "-o", str(tmp_path / "arc.jsonl")]) == 3
    assert b"anatomy.jsonl:1: is not a record of arc" in capsysbinary.readouterr().err
    one = str(tmp_path / "test" / "anatomy.jsonl")
    assert invoke(["script", "import", "mmlu", one, "-o", str(tmp_path / "one.jsonl"), "-q"]) == 0
    (tmp_path / "empty").mkdir()
    assert invoke(["script", "import", "mmlu", str(tmp_path / "empty"), "-o", str(tmp_path / "two.jsonl")]) == 3
    assert b"empty: contains no file that ends in .jsonl" in capsysbinary.readouterr().err


def test_the_command_tells_some_of_the_records_that_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = written(tmp_path / "in.jsonl", *[{"id": number} for number in range(7)], ARC)
    arguments = ["script", "import", "arc", source, "--out", str(tmp_path / "out.jsonl"), "--skip-bad"]
    assert invoke(arguments) == 0
    lines = capsys.readouterr().err.splitlines()
    assert sum("left out: " in line and "in.jsonl:" in line for line in lines) == 5
    assert "left out: 2 more" in lines


@pytest.mark.parametrize("name", RECORDS)
def test_an_imported_script_runs_on_the_bundled_model(name: str, tmp_path: Path) -> None:
    for style in BENCHMARKS[name].styles:
        lines_of(name, tmp_path, RECORDS[name], style=style)
        script, out = str(tmp_path / "out.jsonl"), tmp_path / style
        arguments = ["run", script, "--out", str(out), "--max-tokens", "4", "--quiet"]
        assert invoke(arguments) in (0, 1)  # 1: a check did not pass
        rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
        assert [row["error"] for row in rows] == [None] * len(rows)
        is_scored = not {"choices", "continuation"}.isdisjoint(json.loads(Path(script).read_text().splitlines()[0]))
        assert {row["finish_reason"] for row in rows} <= ({"scored"} if is_scored else {"stop", "eos", "length"})


@pytest.mark.parametrize(("name", "message"), [("wikitext", "unknown benchmark 'wikitext'"), ("arc", "Missing option")])
def test_an_unknown_benchmark_is_named_before_a_missing_out(
    name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["script", "import", name, "x"]) == 2
    assert message in capsys.readouterr().err
