"""Reading runs as tables: names, cells, notes, damage, metrics of all rows."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import numpy as np
import pytest

from rwkvbatch.comparison import load
from rwkvbatch.comparison.metrics.declarations import TURN_METRICS, Metric
from rwkvbatch.comparison.runs import table as results
from rwkvbatch.comparison.runs.loading import _unfinished, load_runs
from rwkvbatch.errors import InputError, RunDamagedError, RunDirectoryError, UsageError
from rwkvbatch.results.folder import Folder
from rwkvbatch.results.manifest import FORMAT, FORMER
from rwkvbatch.results.row import Row
from rwkvbatch.results.script_copy import script_sha256, write_script
from rwkvbatch.script.reader import read_scripts
from tests.comparison.make_run import encode, make_row, make_run, write_run
from tests.manifests import manifest_of, save_manifest


def test_load_gives_one_row_per_turn_with_metrics_as_columns(tmp_path: Path) -> None:
    make_run(tmp_path / "a", conversations=3, repeats=2, turns=2)
    table = load(tmp_path / "a")
    assert len(table) == 12
    assert set(table["run"]) == {"a"}
    assert {"score", "nll", "perplexity", "tokens", "distinct1", "loop", "first_token_s"} <= set(table.columns)
    assert table["score"].between(0, 1).all()


def test_the_synthetic_rows_are_rows_of_a_run(tmp_path: Path) -> None:
    row = Row.from_dict(make_row("a"))
    assert json.loads(json.dumps(row.as_dict())) == json.loads(json.dumps(make_row("a")))


def test_several_runs_are_one_table_with_their_names(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / name, conversations=2) for name in ("a", "b")]
    assert list(load(paths)["run"].unique()) == ["a", "b"]


def test_runs_with_the_same_last_name_are_named_by_their_paths(tmp_path: Path) -> None:
    paths = [str(make_run(tmp_path / name / "out", conversations=2)) for name in ("a", "b")]
    assert [run.name for run in load_runs(paths)] == paths


def test_a_directory_whose_name_is_not_utf_8_is_named_by_escapes(tmp_path: Path) -> None:
    paths = [str(make_run(tmp_path / name, conversations=2)) for name in ("a\udcff", "b")]
    assert list(load(paths)["run"].unique()) == ["a\\udcff", "b"]


def test_a_results_file_without_a_manifest_is_read_with_a_note(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [make_row("x")], manifest=None)
    run = load_runs([str(tmp_path / "a" / "results.jsonl")])[0]
    assert len(run.rows) == 1
    assert "no manifest.json" in run.notes[0]


def test_a_single_cell_is_selected_after_two_colons(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=("t=1", "t=2"), conversations=2)
    run = load_runs([f"{path}::t=2"])[0]
    assert run.cells == ["t=2"]


def test_an_unknown_cell_is_refused_beside_the_whole_run(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=("t=1", "t=2"), conversations=2)
    with pytest.raises(RunDirectoryError, match="no cell 't=3'"):
        load_runs([f"{path}::t=3", str(path)])


def test_an_unfinished_run_has_a_note(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", conversations=2)
    (path / "status.json").write_text(
        '{"state": "interrupted", "rows_total": 3000, "pid": 1, "host": "h", "updated": "now"}'
    )
    assert load_runs([str(path)])[0].notes == (
        f"{path} is not finished: it has 8 of 3,000 rows; it was interrupted; run the same command again to continue",
    )


def test_rows_that_a_finished_run_lost_are_counted_in_a_note(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", conversations=2)
    (path / "status.json").write_text('{"state": "done", "rows_total": 3000, "pid": 1, "host": "h", "updated": "now"}')
    assert load_runs([str(path)])[0].notes == (f"{path} is not finished: 8 of 3,000 planned rows exist",)


def test_an_unknown_cell_is_refused_with_the_existing_ones(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=("t=1", "t=2"), conversations=2)
    with pytest.raises(RunDirectoryError, match="no cell 't=3'") as caught:
        load_runs([f"{path}::t=3"])
    assert "t=1, t=2" in (caught.value.hint or "")


def test_a_truncated_last_line_is_left_out_with_a_note(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", conversations=2, repeats=1, turns=1) / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    run = load_runs([str(tmp_path / "a")])[0]
    assert len(run.rows) == 1
    assert "last line is incomplete" in run.notes[0]


def test_a_row_with_a_wrong_checksum_is_refused_with_its_line(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", conversations=3, repeats=1, turns=1) / "results.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b"Question", b"Answer__")
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(RunDamagedError, match=r"results\.jsonl:2: .*checksum"):
        load_runs([str(tmp_path / "a")])


@pytest.mark.parametrize("line", [b"{}\n", b"[1]\n", b"nonsense\n", b'{"conversation": 1}\n', b"\xff\xfe\n"])
def test_a_line_that_is_no_row_is_refused_with_its_number(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "results.jsonl").write_bytes(encode(make_row("x")) + line)
    with pytest.raises(RunDamagedError, match=r"results\.jsonl:2: is not a row"):
        load_runs([str(tmp_path)])


@pytest.mark.parametrize(
    "change",
    [
        {"conversation": 5},
        {"cell": ["a"]},
        {"reply": None},
        {"repeat": "0"},
        {"turn": 1.5},
        {"seed": 2**63},
        {"tokens": {"prompt": 1, "reply": "many"}},
        {"reference": {"text": "a", "nll": "low", "matched": 1.0, "tokens": 1}},
        {"reference": {"text": "a", "nll": [1.0], "matched": 1.0, "tokens": 1}},
        {"timing": {"first_token_s": 10**400, "tokens_per_s": 1.0}},
        {"reply_ids": [1.5]},
        {"reply_ids": [2**64]},
        {"reply_ids": "abc"},
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_its_line(tmp_path: Path, change: dict[str, object]) -> None:
    (tmp_path / "results.jsonl").write_bytes(encode(make_row("x")) + encode({**make_row("y"), **change}))
    with pytest.raises(RunDamagedError, match=r"results\.jsonl:2: is not a row"):
        load_runs([str(tmp_path)])


def test_of_a_duplicated_turn_the_last_row_counts(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [make_row("x", reply="first"), make_row("x", reply="second")], manifest={})
    run = load_runs([str(tmp_path / "a")])[0]
    assert list(run.rows["reply"]) == ["second"]
    assert "more than once" in run.notes[0]


def test_a_missing_run_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="there is no such run") as caught:
        load_runs([str(tmp_path / "none")])
    assert "rwkvbatch run" in (caught.value.hint or "")


def test_a_directory_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"no results\.jsonl"):
        load_runs([str(tmp_path)])


def test_a_folder_of_runs_is_refused_with_their_names(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a")
    with pytest.raises(RunDirectoryError, match=r"no results\.jsonl") as caught:
        load_runs([str(tmp_path)])
    assert caught.value.hint == f"it contains runs, such as {path}"


def test_an_error_row_has_no_metrics_of_its_reply(tmp_path: Path) -> None:
    failed = make_row("x", finish_reason="error", error="too long", checks=[], reference=None, reply="", reply_ids=[])
    write_run(tmp_path / "a", [failed], manifest={})
    row = load(tmp_path / "a").iloc[0]
    assert row["error_rate"] == 1.0
    for name in ("tokens", "logprob", "score", "nll", "first_token_s", "distinct1", "loop", "stopped"):
        assert np.isnan(row[name]), name


@pytest.mark.parametrize("metric", TURN_METRICS, ids=lambda metric: metric.name)
def test_an_error_counts_in_the_metrics_of_failures_and_in_no_other(tmp_path: Path, metric: Metric) -> None:
    # As of a check that raises an exception after the reply, and of another program that reports all values.
    text = {"text": "x", "nll": 1.0, "matched": 1.0, "tokens": 3, "logprob": -3.0, "bytes": 9}
    failed = {"kind": "choice", "expected": "a", "passed": False, "score": 0.0, "weight": 1.0, "detail": None}
    scores = [{"name": name, "logprob": -1.0, "tokens": 2, "bytes": 5, "characters": 5} for name in "ab"]
    row = make_row(
        "x", finish_reason="error", error="a check raised", checks=[failed], reference=text, choices={"scores": scores},
        reply="<think>hm</think> 4", tokens={"prompt": 5, "reply": 9, "thinking": 6},
    )  # fmt: skip
    write_run(tmp_path / "a", [row, make_row("y")], manifest={})
    table = load(tmp_path / "a")
    expected = {"score": 0.0, "passed": 0.0, "error_rate": 1.0}.get(metric.name, np.nan)
    np.testing.assert_equal(table[metric.name].iloc[0], expected)
    if metric.weight_column is not None and not metric.log_of:
        assert np.isnan(table[metric.weight_column].iloc[0])


@pytest.mark.parametrize(("replies", "tokens"), [(3, 10**6), (10**6, 40), (1, 1)])
def test_metrics_do_not_depend_on_the_batch_in_which_replies_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replies: int, tokens: int
) -> None:
    rng = np.random.default_rng(3)
    rows = [make_row(f"c{i}", rng=rng) for i in range(10)]
    rows[4]["reply_ids"] = []
    write_run(tmp_path / "a", rows, manifest={})
    monkeypatch.setattr(results, "_BATCH_REPLIES", replies)
    monkeypatch.setattr(results, "_BATCH_TOKENS", tokens)
    table = load(tmp_path / "a")
    for metric in TURN_METRICS:
        assert metric.value is not None
        alone = np.array([metric.value(row) for row in rows], dtype=np.float64)
        np.testing.assert_array_equal(table[metric.name].to_numpy(), alone, err_msg=metric.name)


def test_every_metric_is_computed_for_rows_of_every_kind(tmp_path: Path) -> None:
    text = {"text": "x", "nll": 1.0, "matched": 1.0, "tokens": 3, "logprob": -3.0, "bytes": 9}
    check = {"kind": "choice", "expected": "a", "passed": True, "score": 1.0, "weight": 1.0, "detail": None}
    scores = [{"name": name, "logprob": -1.0, "tokens": 2, "bytes": 5, "characters": 5} for name in "ab"]
    rows = [
        make_row("plain"),
        make_row("text", reference=text, finish_reason="scored", reply=""),
        make_row("choices", checks=[check], choices={"scores": scores, "chosen": "a"}),
        make_row("thinking", reply="<think>hm</think> 4", tokens={"prompt": 5, "reply": 9, "thinking": 6}),
        make_row("unclosed", reply="<think>hm"),
        make_row("counted", tokens={"prompt": 5, "reply": 9, "thinking": 6}),
    ]
    write_run(tmp_path / "a", rows, manifest={})
    table = load(tmp_path / "a")
    for metric in TURN_METRICS:
        assert metric.value is not None
        alone = np.array([metric.value(row) for row in rows], dtype=np.float64)
        np.testing.assert_array_equal(table[metric.name].to_numpy(), alone, err_msg=metric.name)
        assert not np.isnan(alone).all(), metric.name


def test_choices_are_loaded_on_request(tmp_path: Path) -> None:
    scores = [{"name": name, "logprob": -1.0, "tokens": 2, "bytes": 5, "characters": 5} for name in "ab"]
    write_run(tmp_path / "a", [make_row("with", choices={"scores": scores}), make_row("without")], manifest={})
    path = str(tmp_path / "a")
    assert list(load(path)["choices"]) == [tuple(scores), None]
    assert list(load_runs(path, choices=True)[0].rows["choices"]) == [tuple(scores), None]
    assert list(load_runs(path)[0].rows["choices"]) == [None, None]  # comparisons do not need them


@pytest.mark.parametrize("collected", [True, False])
def test_loading_restores_the_state_of_the_garbage_collector(tmp_path: Path, *, collected: bool) -> None:
    path = make_run(tmp_path / "a", conversations=1)
    was_on = gc.isenabled()
    gc.unfreeze()  # objects that tests/conftest.py has frozen
    try:
        (gc.enable if collected else gc.disable)()
        load(path)
        assert gc.isenabled() == collected
        assert gc.get_freeze_count() == 0
    finally:
        (gc.enable if was_on else gc.disable)()
        gc.freeze()


def test_a_manifest_that_is_not_json_is_refused(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", conversations=1)
    (path / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunDamagedError, match=r"manifest\.json: is not JSON"):
        load_runs([str(path)])


@pytest.mark.parametrize(
    ("line", "reason"),
    [('{"id": "a"}', "it has no key 'conversation'"), ("{", "it is not JSON"), ("[]", "it is not a JSON object")],
)
def test_a_file_without_rows_of_a_run_is_refused_with_the_reason(line: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(RunDamagedError, match=rf"x\.jsonl:1: is not a row of a run: {reason}$"):
        load_runs([str(path)])


def test_rows_without_checksums_are_read_from_a_single_file_and_refused_in_a_run_directory(tmp_path: Path) -> None:
    make_run(tmp_path / "a", conversations=2)
    rows = (tmp_path / "a" / "results.jsonl").read_bytes().splitlines()
    alone = tmp_path / "rows.jsonl"
    alone.write_bytes(b"".join(line[:-18] + b"}\r\n" for line in rows))
    assert b"crc" not in alone.read_bytes()
    [from_file], [from_directory] = load_runs([str(alone)]), load_runs([str(tmp_path / "a")])
    assert from_file.rows.equals(from_directory.rows)
    (tmp_path / "a" / "results.jsonl").write_bytes(alone.read_bytes())
    with pytest.raises(RunDamagedError, match=r"results\.jsonl:1: .*checksum"):
        load_runs([str(tmp_path / "a")])


def test_a_wrong_checksum_is_refused_in_a_single_file(tmp_path: Path) -> None:
    line = encode(make_row("a")).replace(b"talk", b"tolk").replace(b'"a"', b'"b"')
    (tmp_path / "rows.jsonl").write_bytes(line)
    with pytest.raises(RunDamagedError, match=r"rows\.jsonl:1: .*checksum"):
        load_runs([str(tmp_path / "rows.jsonl")])


def test_a_manifest_of_a_later_format_is_refused(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", conversations=1)
    save_manifest(path, manifest_of(path) | {"format": FORMAT + 1})
    with pytest.raises(RunDirectoryError, match=rf"manifest\.json: has format {FORMAT + 1}; .*reads {FORMAT}"):
        load_runs([str(path)])


def test_a_run_given_twice_is_refused(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=("t=1", "t=2"), conversations=2)
    with pytest.raises(UsageError, match="is given twice"):
        load_runs([str(path), f"{path}/"])
    assert len(load_runs([f"{path}::t=1", f"{path}::t=2"])) == 1


def test_empty_lines_are_skipped_and_an_interrupted_extension_is_noted(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", conversations=2)
    results = path / "results.jsonl"
    results.write_bytes(results.read_bytes().replace(b"\n", b"\n\n"))
    content = manifest_of(path)
    save_manifest(path, {**content, "former": {"identity": content["identity"]}})
    (run,) = load_runs([str(path)])
    assert len(run.rows) == 8
    assert any("a command was interrupted while it adapted the rows; run it again" in note for note in run.notes)


@pytest.mark.parametrize("source", ["script.jsonl", "status.json", "summary.json"])
def test_files_of_the_former_run_do_not_say_how_many_rows_an_interrupted_extension_lacks(
    source: str, tmp_path: Path
) -> None:
    messages = [{"role": "user", "content": "Hi"}] * 2
    script = tmp_path / "script.jsonl"
    script.write_text("".join(json.dumps({"id": f"talk-{n}", "messages": messages}) + "\n" for n in range(2)))
    conversations = read_scripts([str(script)]).conversations
    path = make_run(tmp_path / "a", conversations=2, repeats=2, turns=2)
    if source == "script.jsonl":
        write_script(Folder(path), conversations)
    else:
        status = {"state": "done", "rows_total": 8, "pid": 1, "host": "h", "updated": "now"}
        (path / source).write_text(json.dumps({**status, "planned": 8}))
    manifest = manifest_of(path)
    manifest["identity"]["script"]["sha256"] = script_sha256(conversations)
    extended = {**manifest["identity"], "script": {"sha256": "99" * 32, "conversations": 5}}
    for content, unfinished in ((manifest, {}), ({**manifest, "identity": extended, FORMER: manifest}, {"base": 6})):
        save_manifest(path, content)
        (run,) = load_runs([str(path)])
        assert (run.unfinished, run.unfinished_at_least) == (unfinished, bool(unfinished))
        assert any(note.endswith("is not finished: 8 of the planned rows exist") for note in run.notes) == bool(
            unfinished
        )


@pytest.mark.parametrize(
    ("planned", "cells", "missing"),
    [
        (None, "ab", {}),
        (8, "ab", {}),
        (16, "ab", {"b": 8}),  # 8 of each
        (20, "ab", {"a": 2, "b": 10}),
        (9, "ab", {"a": 1, "b": 1}),  # cells of different sizes: each may lack the row
        (12, "abc", {"a": 4, "b": 4, "c": 4}),  # `a` has more than its even share
    ],
)
def test_missing_rows_are_counted_by_cell_where_that_is_known(
    planned: int | None, cells: str, missing: dict[str, int], tmp_path: Path
) -> None:
    (run,) = load_runs([str(make_run(tmp_path / "a", cells=("a",), conversations=2))])
    assert _unfinished(run.rows, planned, list(cells)) == missing


@pytest.mark.parametrize("content", [b"hello world", b"hello\n", b"{}\n", b"\0\1", b""])
def test_the_hint_for_a_file_without_results_depends_on_its_place(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_runs([str(tmp_path / "x.txt")])
    assert "docs/compare.md" in (caught.value.hint or "")
    run = make_run(tmp_path / "run", conversations=1)
    (run / "results.jsonl").write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_runs([str(run)])
    assert "run" in (caught.value.hint or "")
    assert "docs/compare.md" not in (caught.value.hint or "")
