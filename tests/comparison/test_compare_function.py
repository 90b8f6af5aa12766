"""`compare` and `Analysis` as a library: paths, results in memory, tables, representations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

import rwkvbatch
from rwkvbatch.comparison import compare, load
from rwkvbatch.errors import RunDirectoryError, RunMismatchError, UsageError
from rwkvbatch.results.row import Row
from rwkvbatch.script.records import Turn
from tests.comparison.hostile import hostile_run
from tests.comparison.make_run import make_row, make_run

SCRIPT = '{"id": "%s", "messages": [{"role": "user", "content": "%s"}, {"role": "assistant", "content": "3"}]}\n'
COLUMNS_OF_TIMINGS = ("first_token_s", "tokens_per_s")


class Settings(BaseModel):
    temperature: float = 1.0
    history: str = "own"


def in_memory(rows: Sequence[dict[str, Any]], *, seed: int = 1, script: str = "ab", planned: int | None = None) -> Any:
    """The parts of a result without a directory that `compare` reads."""

    def read() -> Iterator[Row]:
        return map(Row.from_dict, rows)

    cells = list(dict.fromkeys(row["cell"] for row in rows))
    plan = SimpleNamespace(
        conversations=[SimpleNamespace(id="c0", system=None, greeting=None, turns=[Turn("")], sha256=script)],
        settings=SimpleNamespace(seed=seed),
        cells=[SimpleNamespace(name=cell) for cell in cells],
        cell_settings=[Settings(temperature=number) for number, _ in enumerate(cells)],
    )
    summary = SimpleNamespace(planned=len(rows) if planned is None else planned)
    return SimpleNamespace(directory=None, rows=read, plan=plan, summary=summary)


def rows_of(cells: Sequence[str] = ("base",), seed: int = 0, conversations: int = 8) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [make_row(f"talk-{number}", cell=cell, rng=rng) for cell in cells for number in range(conversations)]


def test_results_in_memory_give_the_table_of_their_directory(tmp_path: Path) -> None:
    script = tmp_path / "script.jsonl"
    script.write_text("".join(SCRIPT % (name, f"Count: 1 2 {name}") for name in "abc"))
    settings: dict[str, Any] = {"temperature": [0.0, 1.0], "max_tokens": 4}
    memory = rwkvbatch.run(script, **settings)
    rwkvbatch.run(script, out=tmp_path / "disk", **settings)
    tables = [compare(source, all_metrics=True).to_pandas() for source in (memory, tmp_path / "disk")]
    for table in tables:
        assert set(table["variant"]) == {"temp=1"}
        assert "nll" in set(table["metric"])
    untimed = [table[~table["metric"].isin(COLUMNS_OF_TIMINGS)].reset_index(drop=True) for table in tables]
    assert untimed[0].equals(untimed[1])


def test_a_mapping_names_the_runs(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=("base",), seed=1)
    runs: dict[str, Any] = {"before": in_memory(rows_of()), "after": in_memory(rows_of(seed=1)), "old": path}
    analysis = compare(runs, baseline="after", force=True)
    assert {variant.run for variant in analysis.variants} == set(runs)
    assert all(line.pair.baseline.run == "after" for line in analysis.comparisons)
    assert set(load(runs)["run"]) == set(runs)
    for wrong in ({"": path}, {"a::b": path}, {"a": f"{path}::base"}, {"a": path, "b": str(path)}, {1: path},
                  {"a": Path(f"{path}::base"), "b": Path(f"{path}::other")}, {}):  # fmt: skip
        with pytest.raises(UsageError):
            compare(wrong)
    with pytest.raises(UsageError, match="result in memory"):
        compare({str(path): in_memory(rows_of()), "b": path})


def test_a_result_with_a_directory_is_read_from_it(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=("t=1", "t=2"))
    result = in_memory(rows_of())
    result.directory = path
    assert compare(result).to_pandas().equals(compare(path).to_pandas())


def test_results_in_memory_are_named_by_position_and_can_be_the_baseline(tmp_path: Path) -> None:
    path = make_run(tmp_path / "disk", repeats=1, turns=1, conversations=8)
    analysis = compare([in_memory(rows_of(seed=1)), str(path), in_memory(rows_of(seed=2))], baseline="disk", force=True)
    assert [variant.label for variant in analysis.variants] == ["result-1", "disk", "result-3"]
    assert {pair.baseline.label for pair in analysis.pairs} == {"disk"}


def test_the_plan_of_a_result_in_memory_is_checked_like_a_manifest() -> None:
    a, b = in_memory(rows_of()), in_memory(rows_of(seed=1), seed=2)
    assert any("different seeds" in note for note in compare([a, b]).notes)
    of_another_script = in_memory(rows_of(), script="cd")
    with pytest.raises(RunMismatchError, match="result-2 and result-1 replayed different scripts"):
        compare([a, of_another_script])


def test_equal_settings_in_memory_are_not_called_the_same_run() -> None:
    """Weights in memory have no hash, so that the models may differ."""
    assert compare([in_memory(rows_of()), in_memory(rows_of(seed=1))]).notes == ()


def test_an_unfinished_result_in_memory_has_a_note() -> None:
    notes = compare([in_memory(rows_of()), in_memory(rows_of(), planned=20)]).notes
    assert notes == ("result-2 is not finished: 8 of 20 rows exist",)


def test_no_run_a_result_without_rows_and_a_result_given_twice_are_refused() -> None:
    with pytest.raises(RunDirectoryError, match="result-1"):
        compare(in_memory([]))
    result = in_memory(rows_of())
    with pytest.raises(UsageError, match="given twice"):
        compare([result, result])
    with pytest.raises(UsageError, match="no run is given"):
        compare([])


def test_a_path_with_the_name_of_a_result_in_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "result-1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="result-1"):
        compare([in_memory(rows_of()), "result-1"])
    assert len(compare([in_memory(rows_of()), "./result-1"], force=True).runs) == 2


def test_the_repr_of_a_hostile_run_has_no_control_characters(tmp_path: Path) -> None:
    text = repr(compare(hostile_run(tmp_path / "a")))
    assert not set(text) & set("\x1b\x07\x00\u202e\u2028\r")


def test_the_table_has_a_row_for_each_comparison(tmp_path: Path) -> None:
    analysis = compare([f"{make_run(tmp_path / 'a', cells=('t=1', 't=2', 't=3'))}::t={n}" for n in (3, 1)])
    table = analysis.to_pandas()
    assert len(table) == len(analysis.comparisons)
    assert set(table["baseline"]) == {"t=1"} or set(table["baseline"]) == {"t=3"}
    score = next(line for line in analysis.comparisons if line.metric.name == "score")
    found = table[table["metric"] == "score"].iloc[0]
    assert (found["difference"], found["p"], found["verdict"]) == (score.difference, score.p, score.verdict)


def test_the_table_of_a_single_variant_has_its_means() -> None:
    table = compare(in_memory(rows_of()), metrics=["nll", "score"]).to_pandas()
    assert list(table["metric"]) == ["score", "nll"]
    assert table["baseline"].isna().all()
    assert table["variant_mean"].notna().all()


def test_the_repr_has_the_conclusion_and_the_differences(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=("t=1", "t=2", "t=3"))
    text = repr(compare(path, metrics=["score"], fail_if=["score < 1e-9"]))
    assert text.startswith("<Analysis: 3 variants, 144 rows>\n  ")
    assert text.count("against t=1: score") == 2
    assert "score: best" in text
    assert "passed: fail-if score < 1e-9" in text
    assert "score 0." in repr(compare(in_memory(rows_of())))


def test_the_repr_of_a_large_analysis_is_shortened(tmp_path: Path) -> None:
    text = repr(compare(make_run(tmp_path / "a", cells=[f"t={n}" for n in range(30)], conversations=2)))
    assert len(text.splitlines()) < 20
    assert "more lines, see to_pandas()" in text


@pytest.mark.parametrize("name", ["metrics", "fail_if", "fail_unless"])
def test_a_text_in_place_of_a_list_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"^{name} must be a list of texts.*; got 'nll'$") as caught:
        compare(in_memory(rows_of()), **{name: "nll"})
    assert caught.value.hint == "one text needs brackets too: ['nll']"
