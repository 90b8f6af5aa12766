"""Parts of a run: who gets which conversation, and what a part's directory is taken for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvbatch.errors import RunDamagedError, RunDirectoryError, RunMismatchError, UsageError
from rwkvbatch.files import OS_FILES
from rwkvbatch.replay.adaptive import first_round
from rwkvbatch.replay.api import prepare
from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.preview import preview
from rwkvbatch.replay.prompts import PromptEncoder
from rwkvbatch.replay.row_index import Member, Shard, read_members, write_members
from rwkvbatch.replay.runner import RunOptions, execute
from rwkvbatch.results.directory import default_directory
from tests.replay.fakes import ByteTokenizer, FakeLoader, make_plan


def parts_of(parts: int, **settings: object) -> list[Plan]:
    return [make_plan(7, shard=Shard(part, parts), **settings) for part in range(1, parts + 1)]


def run(directory: Path, plan: Plan) -> list[str]:
    result = execute(plan, FakeLoader(), RunOptions(out=directory))
    assert result.summary.complete
    return [str(row.key) for row in result.rows()]


class TestShare:
    @given(turns=st.lists(st.integers(1, 30), max_size=60), parts=st.integers(1, 20))
    def test_every_conversation_is_in_exactly_one_part(self, turns: list[int], parts: int) -> None:
        shares = [Shard(part, parts).share(turns) for part in range(1, parts + 1)]
        assert sorted(number for share in shares for number in share) == list(range(len(turns)))
        assert all(list(share) == sorted(share) for share in shares)

    @given(turns=st.lists(st.integers(1, 30), min_size=1, max_size=60), parts=st.integers(1, 20))
    def test_parts_differ_by_no_more_turns_than_the_longest_conversation_has(
        self, turns: list[int], parts: int
    ) -> None:
        loads = [sum(turns[number] for number in Shard(part, parts).share(turns)) for part in range(1, parts + 1)]
        assert max(loads) - min(loads) <= max(turns)

    def test_conversations_of_one_length_are_dealt_out_in_turn(self) -> None:
        assert Shard(1, 3).share([2] * 8) == (0, 3, 6)
        assert Shard(3, 3).share([2] * 8) == (2, 5)

    def test_a_long_conversation_is_made_up_for_by_several_short_ones(self) -> None:
        assert Shard(1, 2).share([1, 1, 6, 1, 1, 1]) == (2,)
        assert Shard(2, 2).share([1, 1, 6, 1, 1, 1]) == (0, 1, 3, 4, 5)


class TestParse:
    def test_it_is_the_part_and_the_number_of_parts(self) -> None:
        assert Shard.parse(" 2/8 ") == Shard(2, 8)
        assert str(Shard(2, 8)) == "2/8"

    @pytest.mark.parametrize("text", ["0/8", "9/8", "2", "2/", "-1/8", "1/0", "a/b", "1/8/8", "١/٨", "1/999999"])
    def test_anything_else_is_refused_with_what_is_allowed(self, text: str) -> None:
        with pytest.raises(UsageError, match="--shard must be I/N with 1 <= I <= N"):
            Shard.parse(text)


class TestPlan:
    def test_rows_and_tasks_keep_the_numbers_of_the_whole(self) -> None:
        whole = make_plan(7, repeats=2)
        found: list[int] = []
        for plan in parts_of(3, repeats=2):
            assert plan.num_rows == whole.num_rows
            for number in first_round(plan).tasks():
                assert plan.task(number) == whole.task(number)
                found.append(number)
        assert sorted(found) == list(range(whole.num_tasks))

    def test_rows_of_another_part_have_no_place(self) -> None:
        first, second = parts_of(2)
        number = first.chosen[0]
        key = first.task(first.number_of(number, 0, 0)).key(0)
        assert first.row_number(key) is not None
        assert second.row_number(key) is None

    def test_a_preview_counts_the_part_alone(self) -> None:
        encoder = PromptEncoder(ByteTokenizer())
        whole = preview(make_plan(7, repeats=2), encoder)
        parts = [preview(plan, encoder) for plan in parts_of(3, repeats=2)]
        for name in ("rows", "dialogues", "conversations", "first_prompt_tokens", "max_reply_tokens"):
            assert sum(getattr(part, name) for part in parts) == getattr(whole, name)
        assert parts[0].rows == first_round(parts_of(3, repeats=2)[0]).num_rows

    def test_repeats_until_a_precision_are_refused(self, tmp_path: Path) -> None:
        script = tmp_path / "s.jsonl"
        script.write_text(json.dumps({"id": "a", "messages": [{"role": "user", "content": "Hi"}]}))
        with pytest.raises(UsageError, match="--until-ci decides by the rows of all conversations"):
            prepare(script, repeats="2..5", until_ci=0.1, temperature=[0, 1], shard="1/2")


class TestDirectory:
    def test_parts_run_the_rows_of_the_whole_between_them(self, tmp_path: Path) -> None:
        whole = run(tmp_path / "whole", make_plan(7, repeats=2))
        rows = [run(tmp_path / str(plan.shard and plan.shard.part), plan) for plan in parts_of(3, repeats=2)]
        assert sorted(key for part in rows for key in part) == sorted(whole)
        assert all(rows)

    def test_a_part_without_a_conversation_is_done_at_once(self, tmp_path: Path) -> None:
        plan = make_plan(2, shard=Shard(3, 3))
        assert run(tmp_path / "run", plan) == []
        assert list(read_members(tmp_path / "run")) == []

    @pytest.mark.parametrize(
        ("other", "difference"),
        [
            (Shard(2, 3), 'shard: existing run: "1/3"; this command: "2/3"'),
            (None, 'shard: existing run: "1/3"; this command: nothing'),
        ],
    )
    def test_another_part_or_the_whole_does_not_continue_a_part(
        self, tmp_path: Path, other: Shard | None, difference: str
    ) -> None:
        run(tmp_path / "run", make_plan(7, shard=Shard(1, 3)))
        with pytest.raises(RunMismatchError) as caught:
            run(tmp_path / "run", make_plan(7, shard=other))
        assert difference in str(caught.value)

    def test_a_part_does_not_continue_a_whole_run(self, tmp_path: Path) -> None:
        run(tmp_path / "run", make_plan(7))
        with pytest.raises(RunMismatchError, match='shard: existing run: nothing; this command: "1/3"'):
            run(tmp_path / "run", make_plan(7, shard=Shard(1, 3)))

    def test_the_same_part_continues_it_and_has_nothing_to_do(self, tmp_path: Path) -> None:
        rows = run(tmp_path / "run", make_plan(7, shard=Shard(1, 3)))
        loader = FakeLoader()
        execute(make_plan(7, shard=Shard(1, 3)), loader, RunOptions(out=tmp_path / "run"))
        assert loader.num_generated == 0
        assert rows == run(tmp_path / "run", make_plan(7, shard=Shard(1, 3)))

    def test_a_row_of_another_part_is_damage(self, tmp_path: Path) -> None:
        first, second = parts_of(2)
        run(tmp_path / "1", first)
        run(tmp_path / "2", second)
        with (tmp_path / "1" / "results.jsonl").open("ab") as file:
            file.write((tmp_path / "2" / "results.jsonl").read_bytes().splitlines(keepends=True)[0])
        with pytest.raises(RunDamagedError, match="not in this run"):
            run(tmp_path / "1", first)

    def test_the_default_directory_says_which_part_it_is(self, tmp_path: Path) -> None:
        name = default_directory(["demo.jsonl"], tmp_path, part=str(Shard(2, 8))).name
        assert name.startswith("demo-20")
        assert name.endswith("-part-2-of-8")


class TestMembers:
    MEMBERS = (Member(0, "ünï", 2), Member(7, '"quoted"', 1))

    def test_they_come_back_as_they_were_written(self, tmp_path: Path) -> None:
        write_members(OS_FILES, tmp_path, self.MEMBERS)
        assert tuple(read_members(tmp_path)) == self.MEMBERS

    @pytest.mark.parametrize(
        "line",
        [
            "",
            "{",
            "[]",
            '{"number": 9, "id": "a"}',
            '{"number": 9, "id": "a", "turns": 0}',
            '{"number": 9, "id": 1, "turns": 1}',
            '{"number": 7, "id": "again", "turns": 1}',
            '{"number": 9, "id": "a", "turns": 1000000000}',
            "[" * 10_000,
        ],
    )
    def test_a_line_that_is_none_is_named(self, tmp_path: Path, line: str) -> None:
        write_members(OS_FILES, tmp_path, self.MEMBERS)
        with (tmp_path / "shard.jsonl").open("a") as file:
            file.write(line + "\n")
        with pytest.raises(RunDamagedError, match=r"shard\.jsonl:3: "):
            list(read_members(tmp_path))

    def test_a_missing_file_is_said_with_the_way_out(self, tmp_path: Path) -> None:
        with pytest.raises(RunDirectoryError, match="cannot be read") as caught:
            list(read_members(tmp_path))
        assert "rewrites this file" in str(caught.value.hint)
