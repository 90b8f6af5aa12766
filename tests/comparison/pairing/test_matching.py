"""Matching of the rows of two cells: columns made on request have the values of a join of both tables."""

from __future__ import annotations

import gc
import sys
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rwkvbatch.comparison.metrics.declarations import metric_named
from rwkvbatch.comparison.pairing.matching import comparable_rows, match
from rwkvbatch.comparison.pairing.pairs import Pair
from rwkvbatch.comparison.runs.data import variants_of
from rwkvbatch.comparison.runs.loading import load_runs
from rwkvbatch.comparison.values import columns as module
from rwkvbatch.comparison.values.all_variants import VariantValues, side_by_side
from rwkvbatch.comparison.values.columns import KEYS, CellColumns, JoinedColumns, rows_of
from tests.comparison.make_run import make_run

CELLS = ("t=1", "t=2", "t=3")


def table_and_pair(directory: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> tuple[pd.DataFrame, Pair]:
    """The rows of a run after `change`, and a pair of two of its cells."""
    runs = load_runs([str(make_run(directory, cells=CELLS, conversations=5))])
    first, second, _ = variants_of(runs)
    return change(comparable_rows(runs)), Pair(first, second)


def as_they_are(table: pd.DataFrame) -> pd.DataFrame:
    return table


def without_first_row(table: pd.DataFrame) -> pd.DataFrame:
    return table.iloc[1:].reset_index(drop=True)


def shuffled(table: pd.DataFrame) -> pd.DataFrame:
    return table.sample(frac=1.0, random_state=1).reset_index(drop=True)


def with_a_row_twice(table: pd.DataFrame) -> pd.DataFrame:
    is_first = (table["conversation"] == "talk-0") & (table["turn"] == 0) & (table["repeat"] == 0)
    return pd.concat([table, table.loc[is_first]], ignore_index=True)


def with_another_question(table: pd.DataFrame) -> pd.DataFrame:
    is_other = (table["cell"] == "t=2") & (table["conversation"] == "talk-3")
    return table.assign(question=np.where(is_other, 7, table["question"]))


CHANGES = [as_they_are, without_first_row, shuffled, with_a_row_twice, with_another_question]


@pytest.mark.parametrize("change", CHANGES)
def test_matched_rows_are_those_of_a_join(change: Callable[[pd.DataFrame], pd.DataFrame], tmp_path: Path) -> None:
    table, pair = table_and_pair(tmp_path, change)
    baseline, variant = (table.loc[table["cell"] == side.cell] for side in (pair.baseline, pair.variant))
    joined = baseline.merge(variant, on=list(KEYS), suffixes=("_a", "_b"))
    expected = joined.loc[joined["question_a"] == joined["question_b"]].reset_index(drop=True)
    found = match(pair, table)
    assert isinstance(found.columns, JoinedColumns) == (change in (as_they_are, with_another_question))
    pd.testing.assert_frame_equal(found.rows, expected)
    assert len(found) == len(expected)
    for name in expected.columns:
        assert name in found.columns
        column: Any = found.columns[name]
        pd.testing.assert_series_equal(column, expected[name], check_names=False)
    assert "score" not in found.columns
    assert "no_such_a" not in found.columns
    counts = (len(baseline) - len(joined), len(variant) - len(joined), len(joined) - len(expected))
    assert (found.only_baseline, found.only_variant, found.num_different) == counts
    assert found.values(metric_named("nll")).differences.tolist() == (expected["nll_b"] - expected["nll_a"]).tolist()


def test_the_rows_of_a_cell_are_those_of_the_table_that_is_given(tmp_path: Path) -> None:
    """Also right after another table was asked about."""
    table, pair = table_and_pair(tmp_path, as_they_are)
    for changed in (table, shuffled(table), without_first_row(table), table):
        expected = changed.loc[changed["cell"] == pair.baseline.cell]
        pd.testing.assert_frame_equal(rows_of(changed, pair.baseline), expected)
        columns = CellColumns.of(changed, pair.baseline)
        assert len(columns) == len(expected)
        for name in expected.columns:
            column: Any = columns[name]
            pd.testing.assert_series_equal(column, expected[name].reset_index(drop=True), check_names=False)
        assert "no_such_column" not in columns
        some = ["tags", "score", "unjudged", "turn"]
        pd.testing.assert_frame_equal(rows_of(changed, pair.baseline, some), expected[some])


def test_the_columns_of_a_table_are_freed_with_it(tmp_path: Path) -> None:
    table, pair = table_and_pair(tmp_path, as_they_are)
    rows_of(table, pair.baseline)
    cells = weakref.ref(module._last_cells[0])
    del table
    gc.collect()
    assert cells() is None


def test_threads_that_compare_different_tables_get_the_cells_of_their_own() -> None:
    tables = [pd.DataFrame({"run": [name], "cell": ["c"]}) for name in "ab"]
    wrong: list[str] = []

    def ask(table: pd.DataFrame) -> None:
        end_s = time.monotonic() + 0.5
        while time.monotonic() < end_s and not wrong:
            if module.cells_of(table).table() is not table:
                wrong.append("the cells of another table")

    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(len(tables)) as threads:
            list(threads.map(ask, tables))
    finally:
        sys.setswitchinterval(interval_s)
    assert wrong == []


@pytest.mark.parametrize("change", CHANGES[:3])
def test_values_side_by_side_are_those_of_each_cell(
    change: Callable[[pd.DataFrame], pd.DataFrame], tmp_path: Path
) -> None:
    runs = load_runs([str(make_run(tmp_path, cells=CELLS, conversations=5))])
    variants, table = variants_of(runs), change(comparable_rows(runs))
    keys = ["conversation_code", "turn", "repeat", "question"]
    columns = [table.loc[table["cell"] == variant.cell].set_index(keys)["nll"] for variant in variants]
    expected = pd.concat(columns, axis=1, join="outer", keys=range(len(columns)))
    pd.testing.assert_frame_equal(side_by_side(variants, "nll", table), expected, check_column_type=False)


@pytest.mark.parametrize("weighted", [False, True])
def test_sums_of_many_variants_are_the_same_numbers_as_those_of_each(weighted: bool) -> None:
    rng = np.random.default_rng(3)
    num_rows, num_variants = 30, 80
    rows = rng.normal(size=(num_rows, num_variants)) * 10.0 ** rng.integers(-8, 8, (num_rows, 1))
    rows[rng.random(rows.shape) < 0.2] = np.nan
    weights = rng.random(num_rows) if weighted else None
    conversations = rng.integers(0, 6, num_rows)
    values = VariantValues(metric_named("nll"), rows, conversations, np.zeros(num_rows, dtype=np.int64), 6, weights)
    rivals = np.flatnonzero(np.arange(num_variants) != 4)
    one_by_one = np.concatenate([values.sums(4, rivals[[index]]) for index in range(rivals.size)], axis=1)
    assert rivals.size > num_rows
    np.testing.assert_array_equal(values.sums(4, rivals), one_by_one)
