"""Results of other programs: lm-evaluation-harness, Inspect, promptfoo, tables."""

from __future__ import annotations

import csv
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.cli.app import invoke
from rwkvbatch.cli.exits import ExitCode
from rwkvbatch.comparison import compare, load
from rwkvbatch.comparison.runs.loading import load_runs
from rwkvbatch.errors import RunDamagedError, RunDirectoryError, RwkvBatchError, ScriptError, UsageError
from rwkvbatch.script.tables import read_records

FILES = Path(__file__).parents[2] / "fixtures" / "foreign"
"""Files of promptfoo 0.121.20, Inspect 0.3.285 and lm-eval 0.4.13, without the parts that are not read."""


LM_EVAL_DOCUMENTS = ("0#f04af639", "1#7a746b15", "2#897346fd")


def scores(seed: int, probability: float, count: int = 60) -> list[float]:
    generator = random.Random(seed)
    return [float(generator.random() < probability) for _ in range(count)]


def lm_eval(path: Path, values: list[float], **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "doc_id": number,
            "doc": {"question": f"q{number}"},
            "target": "A",
            "arguments": {"gen_args_0": {"arg_0": "context"}},
            "resps": [["A"]],
            "filtered_resps": ["A"],
            "filter": "none",
            "metrics": ["acc", "acc_norm", "perplexity"],
            "doc_hash": f"{number:064x}"[::-1],
            "acc": value,
            "acc_norm": 1.0 - value,
            "perplexity": -12.5,
            **changes,
        }
        for number, value in enumerate(values)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def inspect(path: Path, values: list[Any], model: str = "m", **changes: Any) -> Path:
    samples = [
        {"id": number // 2, "epoch": number % 2 + 1, "input": "q", "target": "t", "scores": {"match": {"value": value}}}
        for number, value in enumerate(values)
    ]
    path.write_text(
        json.dumps(
            {"version": 2, "status": "success", "eval": {"model": model, "task": "t"}, "samples": samples, **changes}
        )
    )
    return path


def promptfoo(path: Path, values: list[Any], providers: tuple[str, ...] = ("a", "b")) -> Path:
    results = [
        {"promptIdx": 0, "testIdx": number, "provider": {"id": provider}, "vars": {"q": f"q{number}"}, "score": value,
         "success": value == 1, "failureReason": 0, "response": {"output": "r"}, "namedScores": {}}
        for number, value in enumerate(values)
        for provider in providers
    ]  # fmt: skip
    path.write_text(json.dumps({"evalId": "e", "results": {"version": 3, "results": results}}))
    return path


def table(path: Path, records: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    return path


def records(number: int = 3, **changes: Any) -> list[dict[str, Any]]:
    return [{"id": f"q{n}", "variant": v, "repeat": 0, "score": n % 2, **changes} for n in range(number) for v in "ab"]


def test_all_formats_with_the_same_scores_give_the_same_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline, variant = scores(1, 0.5), scores(2, 0.8)
    pairs = {
        "lm_eval": [lm_eval(tmp_path / name / "samples_arc_2024-01-02T03-04-05.678.jsonl", values)
                    for name, values in (("x", baseline), ("y", variant))],
        "inspect": [inspect(tmp_path / f"{name}.json", [v for value in values for v in (value, value)])
                    for name, values in (("i", baseline), ("j", variant))],
        "table": [table(tmp_path / f"{name}.csv", [{"id": n, "score": value} for n, value in enumerate(values)])
                  for name, values in (("u", baseline), ("v", variant))],
    }  # fmt: skip
    found: dict[str, Any] = {}
    for name, paths in pairs.items():
        assert invoke(["compare", *map(str, paths), "--json"]) == ExitCode.DONE
        rows = json.loads(capsys.readouterr().out)["comparisons"]
        found[name] = next(row for row in rows if row["metric"] == "score")
    for row in found.values():
        assert row["difference"] == pytest.approx(sum(variant) / 60 - sum(baseline) / 60)
        assert row["low"] == pytest.approx(found["table"]["low"])


def test_different_prompts_of_lm_eval_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "samples_arc_easy_2024-01-02T03-04-05.678.jsonl"
    values = scores(1, 0.5, count=9)
    zero_shot = lm_eval(tmp_path / "a" / name, values, prompt_hash="0" * 64)
    again = lm_eval(tmp_path / "b" / name, values, prompt_hash="0" * 64)
    few_shot = lm_eval(tmp_path / "c" / name, values, prompt_hash="f" * 64)
    lines = few_shot.read_text().replace("f" * 64, "0" * 64, 2)  # two documents have the prompts of the others
    few_shot.write_text(lines)
    former = lm_eval(tmp_path / "d" / name, values)
    unknown = "same prompts cannot be checked"
    for paths, said, unsaid in (
        ((zero_shot, again), "", "different prompts"),
        ((zero_shot, few_shot), "7 of 9 documents of", unknown),
        ((zero_shot, former), unknown, "documents of"),
    ):
        invoke(["compare", *map(str, paths)])
        printed = capsys.readouterr()
        text = " ".join((printed.err + printed.out).split())
        assert said in text
        assert unsaid not in text
        assert text.count(unknown) == (paths[1] is former)


def test_the_score_of_lm_eval_is_its_first_metric_or_the_named_one(tmp_path: Path) -> None:
    path = lm_eval(tmp_path / "model" / "samples_arc_easy_2024-01-02T03-04-05.678.jsonl", [1.0, 0.0])
    (first,) = load_runs([path])
    assert list(first.rows["score"]) == [1.0, 0.0]
    assert first.rows["conversation"][0].startswith("arc_easy/0#")
    assert list(first.rows["tags"]) == [("arc_easy",)] * 2
    assert any("the score is acc;" in note and "acc_norm" in note for note in first.notes)
    assert any("perplexity is left out" in note for note in first.notes)
    (second,) = load_runs([f"{path}::acc_norm"])
    assert list(second.rows["score"]) == [0.0, 1.0]
    for directory in (tmp_path, tmp_path / "model"):
        assert len(load(directory)) == 2
    with pytest.raises(RunDirectoryError, match="no cell 'f1'"):
        load_runs([f"{path}::f1"])


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_missing_value_of_lm_eval_is_a_turn_without_a_verdict(
    tmp_path: Path, missing: float | None, listed: bool
) -> None:
    """Without the turns whose metric is null, the mean would be 1."""
    path = lm_eval(tmp_path / "samples_arc_2024-01-02T03-04-05.678.jsonl", [1.0] * 20)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines[:5]:
        line["acc"] = missing
    if not listed:
        lines = [{**{key: value for key, value in line.items() if key != "metrics"}, "target": 1} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run,) = load_runs([path])
    assert run.rows["score"].isna().tolist() == [True] * 5 + [False] * 15
    assert run.rows["cell"].unique().tolist() == ["acc"]
    assert any("5 results without a score" in note for note in run.notes)
    (gate,) = compare([str(path)], fail_if=["score < 0.9"]).gates
    assert gate.failed
    assert "5 turns without a verdict" in gate.reason


@pytest.mark.parametrize("value", [2.0, "0.5", [0, 1], math.inf])
def test_a_metric_of_lm_eval_with_other_values_is_left_out_of_the_task(tmp_path: Path, value: Any) -> None:
    path = lm_eval(tmp_path / "samples_arc_2024-01-02T03-04-05.678.jsonl", [1.0] * 3)
    first = json.loads(path.read_text().splitlines()[0]) | {"doc_id": 9, "doc_hash": "9" * 64, "acc": value}
    path.write_text(path.read_text() + json.dumps(first) + "\n")
    lm_eval(tmp_path / "samples_boolq_2024-01-02T03-04-05.678.jsonl", [0.5] * 2)
    (run,) = load_runs([f"{tmp_path}::acc"])
    assert run.rows["tags"].tolist() == [("boolq",)] * 2
    assert any("acc is left out: 1 of its values" in note for note in run.notes)


def test_lm_eval_s_filters_are_cells(tmp_path: Path) -> None:
    path = tmp_path / "samples_gsm8k_2024-01-02T03-04-05.678.jsonl"
    both = [lm_eval(path, [1.0], filter=name).read_text() for name in ("strict-match", "flexible-extract")]
    path.write_text("".join(both))
    assert len(load(f"{path}::acc,flexible-extract")) == 1
    assert load(path)["cell"].tolist() == ["acc,strict-match"]


def test_inspect_values_errors_and_epochs_are_read(tmp_path: Path) -> None:
    path = inspect(tmp_path / "log.json", ["C", "I", "P", "N", True, "0.25"])
    frame = load(path)
    assert frame["score"].tolist() == [1.0, 0.0, 0.5, 0.0, 1.0, 0.25]
    assert frame["repeat"].tolist() == [0, 1, 0, 1, 0, 1]
    content = json.loads(path.read_text())
    content["samples"][0] |= {"error": {"message": "out of time"}, "scores": None}
    path.write_text(json.dumps(content))
    (run,) = load_runs([path])
    assert run.rows["score"].isna().tolist() == [True, *[False] * 5]
    assert run.rows["error"][0] == "out of time"
    assert any("1 result ended in an error" in note for note in run.notes)


@pytest.mark.parametrize(
    "lacking",
    [{"f": {"value": 1}}, {"f": {"value": 1}, "g": {"value": None}}, {"f": {"value": 1}, "g": {"value": {"x": 1}}},
     {"f": {"value": 1}, "g": {"value": {"x": 1, "y": math.nan}}}, {"f": {"value": 1}, "g": {"value": math.nan}}],
)  # fmt: skip
@pytest.mark.parametrize("first", [True, False])
def test_a_sample_of_inspect_that_lacks_one_of_its_scorers_has_no_verdict(
    tmp_path: Path, lacking: dict[str, Any], first: bool
) -> None:
    path = inspect(tmp_path / "log.json", [1, 1])
    content = json.loads(path.read_text())
    whole = {"f": {"value": 1}, "g": {"value": {"x": 0, "y": 0}}}
    for sample, by_scorer in zip(content["samples"], [lacking, whole] if first else [whole, lacking], strict=True):
        sample["scores"] = by_scorer
    path.write_text(json.dumps(content))
    (run,) = load_runs([path])
    assert run.rows["score"].tolist() == pytest.approx([math.nan, 1 / 3] if first else [1 / 3, math.nan], nan_ok=True)
    assert run.rows["passed"].isna().tolist() == [first, not first]
    assert any("1 result without a score" in note for note in run.notes)


def test_promptfoo_providers_are_cells_and_repeated_tests_are_repeats(tmp_path: Path) -> None:
    path = promptfoo(tmp_path / "p.json", [1, 0, 0.5])
    content = json.loads(path.read_text())
    content["results"]["results"] *= 2
    content["results"]["results"][0] |= {"failureReason": 2, "error": "no answer"}
    path.write_text(json.dumps(content))
    frame = load(path)
    assert sorted(set(frame["cell"])) == ["a", "b"]
    assert sorted(set(frame["repeat"])) == [0, 1]
    assert len(set(frame["conversation"])) == 3
    assert frame["score"].isna().sum() == 2
    assert frame["passed"].sum() == 2
    assert invoke(["compare", str(path), "--quiet"]) == ExitCode.DONE


def test_a_file_of_promptfoo_has_cells_by_provider_and_prompt_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    path = FILES / "promptfoo.json"
    frame = load(path)
    name = "openai:chat:rwkvbatch-demo"
    cells = [f"{provider},prompt={prompt}" for provider in (name, f"{name}#2") for prompt in (0, 1)]
    assert list(dict.fromkeys(frame["cell"])) == cells
    first = frame[frame["cell"] == cells[0]]
    assert len(set(first["conversation"])) == 2
    assert sorted(first["repeat"]) == [0, 0, 1, 1]
    assert sorted(first["score"]) == [0.5, 0.5, 1.0, 1.0]
    assert first["reply"].iloc[0] == "Nice to meet you, Ada."
    assert not first["passed"].iloc[0]  # one of its two assertions failed
    assert invoke(["compare", str(path), "--json"]) == ExitCode.DONE
    found = json.loads(capsys.readouterr().out)
    row = next(row for row in found["comparisons"] if row["metric"] == "score" and row["variant"] == cells[2])
    assert row["difference"] == -0.75


def test_a_file_of_an_aborted_promptfoo_evaluation_has_a_missing_score() -> None:
    (run,) = load_runs([FILES / "promptfoo_aborted.json"])
    failed = run.rows[run.rows["cell"] == "openai:chat:other,prompt=0"]
    assert failed["score"].isna().tolist() == [True]
    assert "404" in failed["error"].iloc[0]
    assert run.rows["cell"].iloc[0] == "openai:chat:rwkvbatch-demo,prompt=0"


def test_logs_of_inspect_are_compared_by_sample(capsys: pytest.CaptureFixture[str]) -> None:
    greedy, sampled = FILES / "inspect_greedy.json", FILES / "inspect_sampled.json"
    frame = load(greedy)
    assert set(frame["conversation"]) == {"Ada", "Bob", "3"}
    assert set(frame["repeat"]) == {0, 1}
    assert frame["score"].tolist() == pytest.approx([0.5, *[2.5 / 3] * 2, 0.5, *[2.5 / 3] * 2])
    assert invoke(["compare", str(greedy), str(sampled), "--json"]) == ExitCode.DONE
    found = json.loads(capsys.readouterr().out)["comparisons"]
    assert next(row for row in found if row["metric"] == "score")["difference"] == 0


def test_an_inspect_log_of_another_form_names_the_command_that_converts_it(tmp_path: Path) -> None:
    path = tmp_path / "log.eval"
    path.write_bytes(b"PK\3\4")
    with pytest.raises(RunDirectoryError, match=r"log\.eval.* is not supported") as caught:
        load(path)
    assert "inspect log convert --to json" in str(caught.value.hint)


def test_the_last_evaluation_of_each_task_in_a_folder_of_lm_eval_is_read() -> None:
    (run,) = load_runs([FILES / "lm_eval"])
    assert run.rows["conversation"].tolist() == [f"own_replies/{name}" for name in LM_EVAL_DOCUMENTS]
    assert any("own_sums was evaluated 2 times; the last one, of 2026-11-28T23-49-07.350313" in n for n in run.notes)
    assert any("tasks without exact_match are left out: own_sums" in note for note in run.notes)
    (sums,) = load_runs([f"{FILES / 'lm_eval'}::acc_norm"])
    assert sums.rows["conversation"].tolist() == [f"own_sums/{name}" for name in LM_EVAL_DOCUMENTS]
    assert sums.rows["score"].tolist() == [1.0, 1.0, 1.0]


def test_the_folders_of_several_models_are_refused_and_named(tmp_path: Path) -> None:
    for model in ("one", "two"):
        lm_eval(tmp_path / model / "samples_arc_2024-01-02T03-04-05.678.jsonl", [1.0])
    with pytest.raises(RunDirectoryError, match="results of 2 models") as caught:
        load(tmp_path)
    assert f"{tmp_path / 'one'} {tmp_path / 'two'}" in str(caught.value.hint)


def test_parquet_and_csv_give_the_same_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = records(4)
    pq.write_table(pa.Table.from_pylist(content), tmp_path / "t.parquet")
    parquet, csv_table = load(tmp_path / "t.parquet"), load(table(tmp_path / "t.csv", content))
    columns = ["conversation", "cell", "repeat", "score", "tags"]
    assert parquet[columns].equals(csv_table[columns])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"score": 87}, "score must be in [0, 1], got 87"),
        ({"score": "nan"}, "score must be a number in [0, 1]"),
        ({"score": "good"}, 'score must be a number in [0, 1], got "good"'),
        ({"repeat": "x"}, "repeat must be a whole number"),
        ({"repeat": -1}, "repeat must be a whole number"),
        ({"id": ""}, "id is empty"),
        ({"id": "same"}, "3 results have the same place"),
    ],
)
def test_an_invalid_table_is_refused_with_its_path(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    path = table(tmp_path / "t.csv", records(**change))
    with pytest.raises(RunDamagedError) as caught:
        load(path)
    assert problem in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "question,points\na,1\n"),
        ("t.csv", "id,score\na,1,2\n"),
        ("t.csv", 'id,score\n"a,1\n'),
        ("t.csv", "id,score\n"),
        ("t.csv", ""),
        ("t.csv", b"id,score\n\xff\xfe,1\n"),
        ("t.parquet", "no parquet"),
        ("t.json", "{"),
        ("t.json", "[]"),
        ("t.json", '{"eval": {}, "samples": [3]}'),
        ("t.json", '{"eval": {}, "samples": []}'),
        ("t.json", '{"eval": {}, "status": "started"}'),
        ("t.json", '{"eval": {}, "samples": [{"id": 1, "epoch": 0}]}'),
        ("t.json", '{"eval": {}, "samples": [{"id": 1, "scores": {"m": {"value": "maybe"}}}]}'),
        ("t.json", '{"eval": {}, "samples": [{"id": 1, "scores": [1]}]}'),
        ("t.json", '{"results": {"results": [{}]}}'),
        ("t.json", '{"results": {"results": [{"score": 1, "provider": "a", "testIdx": "x"}]}}'),
        ("t.txt", "id,score\na,1\n"),
        ("t.json", '{"results": {"results": [{"score": 7}]}}'),
        ("t.jsonl", '{"doc_id": 1, "metrics": ["p"], "p": -3.5}\n'),
        ("t.jsonl", '{"doc_id": 1}\n[]\n'),
        ("t.jsonl", '{"doc_id": 1, "acc": 1}\n{"acc": 1}\n'),
    ],
)
def test_hostile_files_are_refused_by_name(tmp_path: Path, name: str, content: str | bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RwkvBatchError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert not isinstance(caught.value, UsageError) or "[0, 1]" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("id,points\na,1\n", ":1: must have the columns id and score, and has id, points"),
        (
            "\n\nid;score\na;1\n",
            ":3: must have the columns id and score, and has id;score; columns are separated by commas",
        ),
        ("id,score,score\na,1,0\n", ":1: has the column score 2 times"),
        ("id,points\n", ":1: must have the columns id and score, and has id, points"),
        ('id,score\n"a\nb",1\n"c\nd",2\n', ":4: score must be in [0, 1], got 2"),
        ("id,score\na,1,2\n", ":2: has 3 values for 2 columns: id, score"),
        (b"id,score\na,1\nb\xe9,1\n", ":3: not UTF-8: byte 0xe9"),
    ],
)
def test_a_fault_of_a_table_names_the_line_where_it_is(tmp_path: Path, content: str | bytes, problem: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(RunDamagedError, match=re.escape(problem)):
        load(path)


def test_the_byte_that_is_not_utf8_is_named_after_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "\xe9"}\n')
    with pytest.raises(ScriptError, match=r":1: not UTF-8: byte 0xe9"):
        list(read_records(str(path)))


def test_empty_lines_before_the_header_of_a_table_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("\n\nid,score\na,1\n\nb,0\n")
    assert load(path)["score"].tolist() == [1, 0]


def test_a_cancelled_inspect_log_is_noted_and_scores_without_a_value_are_missing(tmp_path: Path) -> None:
    path = inspect(tmp_path / "log.json", [1, None, 0, math.nan], status="cancelled")
    (run,) = load_runs([path])
    assert run.rows["score"].isna().tolist() == [False, True, False, True]
    assert f"{path} is not finished: its status is 'cancelled'" in run.notes


def test_empty_lines_are_skipped_and_long_names_are_shortened(tmp_path: Path) -> None:
    path = lm_eval(tmp_path / "samples_arc_2024-01-02T03-04-05.678.jsonl", [1.0, 0.0])
    path.write_text(path.read_text().replace("\n", "\n\n"))
    assert load(path)["score"].tolist() == [1.0, 0.0]
    long = "q" * 3000
    frame = load(table(tmp_path / "t.csv", [{"id": f"{long}{n}", "score": n} for n in (0, 1)]))
    names = frame["conversation"].tolist()
    assert names[0] != names[1]
    assert all(name.startswith("qqq") and len(name) < 300 for name in names)


def test_an_empty_score_is_missing(tmp_path: Path) -> None:
    (run,) = load_runs([table(tmp_path / "t.csv", records(score=""))])
    assert run.rows["score"].isna().all()
    assert any("6 results without a score" in note for note in run.notes)


@pytest.mark.parametrize("files", [1, 2])
def test_missing_scores_fail_gates(tmp_path: Path, files: int) -> None:
    whole = [record for record in records(20) if record["variant"] == "a"]
    part = [{**record, "variant": "b", "score": record["score"] or ""} for record in whole]
    if files == 1:
        paths = [table(tmp_path / "t.csv", whole + part)]
    else:
        paths = [
            table(tmp_path / f"{name}.csv", [{**record, "variant": ""} for record in records_of_file])
            for name, records_of_file in (("t", whole), ("u", part))
        ]
    found = compare([str(path) for path in paths], fail_if=["score < 0.9"])
    assert found.comparisons[0].num_values == 10
    assert found.gates[0].failed
    assert "10 turns without a verdict" in found.gates[0].reason
    assert not any("left out" in note for note in found.notes)


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"x")
    with pytest.raises(UsageError) as caught:
        load(tmp_path / "t.parquet")
    assert "rwkvbatch[parquet]" in str(caught.value.hint)


def test_a_single_metric_of_lm_eval_has_no_note_about_others(tmp_path: Path) -> None:
    path = lm_eval(tmp_path / "samples_arc_2024-01-02T03-04-05.678.jsonl", [1.0, 0.0], metrics=["acc"])
    (run,) = load_runs([path])
    assert run.rows["score"].tolist() == [1.0, 0.0]
    assert not any("another one is named as" in note for note in run.notes)
