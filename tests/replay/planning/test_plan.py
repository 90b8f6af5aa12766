from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvbatch.config import PRESETS, RunSettings
from rwkvbatch.errors import UsageError
from rwkvbatch.replay.planning.grid import Cell, GridFile, make_cells
from rwkvbatch.replay.planning.plan import select
from tests.replay.fakes import make_conversation, make_plan


def names(cells: tuple[Cell, ...]) -> list[str]:
    return [cell.name for cell in cells]


class TestGrid:
    def test_without_a_grid_there_is_one_cell(self) -> None:
        assert make_cells({}) == (Cell("base", {}),)

    def test_lists_make_their_product_in_the_order_given(self) -> None:
        cells = make_cells({"temperature": ["0.3", "0.70", "1.0"], "top_p": [0.3, 0.8]})
        assert names(cells) == [
            "temp=0.3,top_p=0.3",
            "temp=0.3,top_p=0.8",
            "temp=0.7,top_p=0.3",
            "temp=0.7,top_p=0.8",
            "temp=1,top_p=0.3",
            "temp=1,top_p=0.8",
        ]
        assert cells[2].overrides == {"temperature": 0.7, "top_p": 0.3}

    def test_a_file_has_products_zips_named_cells_and_overrides(self) -> None:
        table = {
            "grid": {"temp": [0.3, 0.7]},
            "zip": {"top_p": [0.1, 0.9], "top_k": [0, 50]},
            "cells": {"careful": {"preset": "precise", "max_tokens": 5}},
            "override": {"temp=0.7,top_p=0.9,top_k=50": {"max_tokens": 64}},
        }
        cells = make_cells({}, GridFile("g.toml", table))
        assert names(cells) == [
            "temp=0.3,top_p=0.1,top_k=0",
            "temp=0.3,top_p=0.9,top_k=50",
            "temp=0.7,top_p=0.1,top_k=0",
            "temp=0.7,top_p=0.9,top_k=50",
            "careful",
        ]
        assert cells[3].overrides == {"temperature": 0.7, "top_p": 0.9, "top_k": 50, "max_tokens": 64}
        assert cells[4].overrides == {**dict(PRESETS["precise"]), "max_tokens": 5}

    def test_the_command_line_and_a_file_multiply(self) -> None:
        cells = make_cells({"history": ["own", "gold"]}, GridFile("g.toml", {"grid": {"temp": [0, 1]}}))
        assert names(cells) == [
            "history=own,temp=0",
            "history=own,temp=1",
            "history=gold,temp=0",
            "history=gold,temp=1",
        ]

    def test_cell_names_have_file_names_without_folders_and_suffixes(self) -> None:
        cells = make_cells({"model": ["/models/rwkv7 1.5b.pth", "b.safetensors"], "ban": [[], [0, 1]]})
        assert names(cells)[:2] == ["model=rwkv7_1.5b,ban=none", "model=rwkv7_1.5b,ban=0+1"]

    def test_files_of_one_name_get_the_folders_that_distinguish_them(self) -> None:
        paths = ["/m/one/last/x.pth", "/m/two/last/x.pth", "x.pth", "/m/two/y.pth"]
        assert names(make_cells({"model": paths})) == [
            "model=one_last_x", "model=two_last_x", "model=x", "model=y",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("lists", "tables", "message"),
        [
            ({"temperature": [0.3, "0.30"]}, (), "two cells called 'temp=0.3'"),
            ({"temperature": [0.3]}, ({"grid": {"temp": [1]}},), "temp is varied twice"),
            ({"temperature": [0.3, -1]}, (), "--temp must be a number in [0, 100], got -1"),
            ({}, ({"grid": {"temp": 1}},), "[grid] temp must be a list of values, got 1"),
            ({}, ({"grid": {"temp": [9, 200]}},), "[grid] temp must be a number in [0, 100], got 200"),
            ({}, ({"grid": {"warmth": [1]}},), "[grid] warmth: unknown setting"),
            ({}, ({"gird": {}},), "g.toml: unknown table [gird]; allowed are grid, zip, cells, override"),
            ({}, ({"temp": [0, 1]},), "unknown table [temp]"),
            ({}, ({"zip": {"temp": [1, 2], "top_k": [1]}},), "[zip]: all lists must be of one length"),
            ({}, ({"cells": {"a b": {}}},), "a cell's name has 1 to 100"),
            ({}, ({"cells": {"a": 3}},), "[cells.a] must be a table of settings, got 3"),
            ({}, ({"cells": {"a": {"seed": 3}}},), "seed is a setting of the whole run"),
            ({}, ({"override": {"b": {}}},), "no cell has this name"),
            ({"top_k": list(range(200)), "max_tokens": list(range(1, 200))}, (), "at most 10,000 are allowed"),
        ],
    )
    def test_invalid_grids_are_refused(self, lists: Any, tables: Any, message: str) -> None:
        with pytest.raises(UsageError) as caught:
            make_cells(lists, *[GridFile("g.toml", table) for table in tables])
        assert message in str(caught.value)
        assert str(caught.value).startswith("g.toml: ") == bool(tables)


class TestPlan:
    @given(
        turns=st.lists(st.integers(1, 4), min_size=1, max_size=5),
        num_cells=st.integers(1, 3),
        repeats=st.integers(1, 3),
    )
    def test_row_numbers_and_keys_are_a_bijection(self, turns: list[int], num_cells: int, repeats: int) -> None:
        conversations = [make_conversation(f"c{n}", count) for n, count in enumerate(turns)]
        cells = [Cell(f"cell{n}", {}) for n in range(num_cells)]
        plan = make_plan(conversations=conversations, cells=cells, repeats=repeats)
        numbers: list[int | None] = []
        for number in range(plan.num_tasks):
            task = plan.task(number)
            assert task.number == number
            first, last = plan.rows_of(number)
            assert first == task.first_row
            for turn in range(last - first):
                numbers.append(plan.row_number(task.key(turn)))
                assert plan.task_of_row(first + turn) == (number, turn)
        assert numbers == list(range(plan.num_rows))

    def test_a_row_key_of_another_run_has_no_number(self) -> None:
        plan = make_plan(2)
        key = plan.task(0).key(0)
        for change in ({"conversation": "x"}, {"cell": "x"}, {"repeat": 1}, {"repeat": -1}, {"turn": 1}, {"turn": -1}):
            assert plan.row_number(type(key)(**{**vars(key), **change})) is None

    def test_tasks_of_one_conversation_are_consecutive(self) -> None:
        plan = make_plan(3, repeats=2)
        order = [plan.task(n).conversation.id for n in range(plan.num_tasks)]
        assert order == sorted(order)

    def test_a_plan_without_conversations_is_refused(self) -> None:
        with pytest.raises(UsageError, match="there is no conversation to replay"):
            make_plan(conversations=[])

    def test_two_conversations_with_one_id_are_refused(self) -> None:
        with pytest.raises(UsageError, match="same id"):
            make_plan(conversations=[make_conversation("a"), make_conversation("a")])

    def test_invalid_params_are_refused_with_their_line(self) -> None:
        with pytest.raises(UsageError, match=r"made\.jsonl:1: params: "):
            make_plan(conversations=[make_conversation("a", params={"top_p": 7})])


class TestSelecting:
    conversations = tuple(make_conversation(f"c{n}", tags=("even",) if n % 2 == 0 else ("odd",)) for n in range(8))

    def ids(self, **settings: Any) -> list[str]:
        return [c.id for c in select(self.conversations, RunSettings(**settings))]

    def test_only_selects_by_id_and_by_tag(self) -> None:
        assert self.ids(only=("odd", "c4")) == ["c1", "c3", "c4", "c5", "c7"]

    def test_only_selects_by_patterns_and_a_literal_name_first(self) -> None:
        assert self.ids(only=("c[1-3]", "e*n")) == ["c0", "c1", "c2", "c3", "c4", "c6"]
        literal = (make_conversation("[ab]"), make_conversation("a"))
        assert [c.id for c in select(literal, RunSettings(only=("[ab]",)))] == ["[ab]"]

    def test_limit_selects_the_first(self) -> None:
        assert self.ids(only=("odd",), limit=2) == ["c1", "c3"]

    def test_an_unknown_name_is_refused_with_close_matches(self) -> None:
        with pytest.raises(UsageError, match="--only od: no conversation") as caught:
            self.ids(only=("od",))
        assert caught.value.hint == "close ones: odd"

    def test_shuffling_is_a_permutation_that_depends_on_the_seed(self) -> None:
        first, second = self.ids(shuffle_seed=1), self.ids(shuffle_seed=2)
        assert sorted(first) == sorted(second) == self.ids()
        assert len({tuple(first), tuple(second), tuple(self.ids())}) == 3
        assert first == self.ids(shuffle_seed=1)

    def test_the_shuffled_order_of_two_does_not_depend_on_the_others(self) -> None:
        whole = self.ids(shuffle_seed=1)
        part = select(self.conversations[3:], RunSettings(shuffle_seed=1))
        assert [c.id for c in part] == [name for name in whole if name in {c.id for c in part}]
