"""Parts of a run: division of the conversations, row numbers, and the directory of a part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvbatch.errors import RunDamagedError, RunDirectoryError, RunMismatchError, UsageError
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.planning.rounds import first_round
from rwkvbatch.replay.planning.row_index import Member, Shard, read_members, write_members
from rwkvbatch.replay.prepare import prepare
from rwkvbatch.replay.preview import preview
from rwkvbatch.replay.runner import RunOptions, execute
from rwkvbatch.replay.worker.prompts import PromptEncoder
from rwkvbatch.results.directory import default_directory
from rwkvbatch.results.folder import Folder
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
    def test_parts_differ_by_at_most_the_turns_of_the_longest_conversation(self, turns: list[int], parts: int) -> None:
        loads = [sum(turns[number] for number in Shard(part, parts).share(turns)) for part in range(1, parts + 1)]
        assert max(loads) - min(loads) <= max(turns)

    def test_conversations_of_equal_length_are_assigned_round_robin(self) -> None:
        assert Shard(1, 3).share([2] * 8) == (0, 3, 6)
        assert Shard(3, 3).share([2] * 8) == (2, 5)

    def test_a_long_conversation_is_balanced_by_several_short_ones(self) -> None:
        assert Shard(1, 2).share([1, 1, 6, 1, 1, 1]) == (2,)
        assert Shard(2, 2).share([1, 1, 6, 1, 1, 1]) == (0, 1, 3, 4, 5)


class TestParse:
    def test_a_shard_is_a_part_and_a_number_of_parts(self) -> None:
        assert Shard.parse(" 2/8 ") == Shard(2, 8)
        assert str(Shard(2, 8)) == "2/8"

    @pytest.mark.parametrize("text", ["0/8", "9/8", "2", "2/", "-1/8", "1/0", "a/b", "1/8/8", "١/٨", "1/999999"])
    def test_invalid_shards_are_refused_with_what_is_allowed(self, text: str) -> None:
        with pytest.raises(UsageError, match="--shard must be I/N with 1 <= I <= N"):
            Shard.parse(text)


class TestPlan:
    def test_rows_and_tasks_have_the_numbers_of_the_whole_run(self) -> None:
        whole = make_plan(7, repeats=2)
        found: list[int] = []
        for plan in parts_of(3, repeats=2):
            assert plan.num_rows == whole.num_rows
            for number in first_round(plan).tasks():
                assert plan.task(number) == whole.task(number)
                found.append(number)
        assert sorted(found) == list(range(whole.num_tasks))

    def test_rows_of_another_part_have_no_number(self) -> None:
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

    def test_until_ci_with_a_shard_is_refused(self, tmp_path: Path) -> None:
        script = tmp_path / "s.jsonl"
        script.write_text(json.dumps({"id": "a", "messages": [{"role": "user", "content": "Hi"}]}))
        with pytest.raises(UsageError, match="--until-ci decides by the rows of all conversations"):
            prepare(script, repeats="2..5", until_ci=0.1, temperature=[0, 1], shard="1/2")


class TestDirectory:
    def test_the_parts_together_have_the_rows_of_the_whole_run(self, tmp_path: Path) -> None:
        whole = run(tmp_path / "whole", make_plan(7, repeats=2))
        rows = [run(tmp_path / str(plan.shard and plan.shard.part), plan) for plan in parts_of(3, repeats=2)]
        assert sorted(key for part in rows for key in part) == sorted(whole)
        assert all(rows)

    def test_a_part_without_conversations_has_no_rows(self, tmp_path: Path) -> None:
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
    def test_another_part_or_the_whole_run_cannot_resume_a_part(
        self, tmp_path: Path, other: Shard | None, difference: str
    ) -> None:
        run(tmp_path / "run", make_plan(7, shard=Shard(1, 3)))
        with pytest.raises(RunMismatchError) as caught:
            run(tmp_path / "run", make_plan(7, shard=other))
        assert difference in str(caught.value)

    def test_a_part_cannot_resume_a_whole_run(self, tmp_path: Path) -> None:
        run(tmp_path / "run", make_plan(7))
        with pytest.raises(RunMismatchError, match='shard: existing run: nothing; this command: "1/3"'):
            run(tmp_path / "run", make_plan(7, shard=Shard(1, 3)))

    def test_the_same_part_again_generates_nothing(self, tmp_path: Path) -> None:
        rows = run(tmp_path / "run", make_plan(7, shard=Shard(1, 3)))
        loader = FakeLoader()
        execute(make_plan(7, shard=Shard(1, 3)), loader, RunOptions(out=tmp_path / "run"))
        assert loader.num_generated == 0
        assert rows == run(tmp_path / "run", make_plan(7, shard=Shard(1, 3)))

    def test_a_row_of_another_part_is_refused_as_damage(self, tmp_path: Path) -> None:
        first, second = parts_of(2)
        run(tmp_path / "1", first)
        run(tmp_path / "2", second)
        with (tmp_path / "1" / "results.jsonl").open("ab") as file:
            file.write((tmp_path / "2" / "results.jsonl").read_bytes().splitlines(keepends=True)[0])
        with pytest.raises(RunDamagedError, match="not in this run"):
            run(tmp_path / "1", first)

    def test_the_default_directory_is_named_by_the_part(self, tmp_path: Path) -> None:
        name = default_directory(["demo.jsonl"], tmp_path, part=str(Shard(2, 8))).name
        assert name.startswith("demo-20")
        assert name.endswith("-part-2-of-8")


class TestMembers:
    MEMBERS = (Member(0, "ünï", 2), Member(7, '"quoted"', 1))

    def test_members_are_read_as_written(self, tmp_path: Path) -> None:
        write_members(Folder(tmp_path), self.MEMBERS)
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
    def test_an_invalid_line_is_refused_with_its_number(self, tmp_path: Path, line: str) -> None:
        write_members(Folder(tmp_path), self.MEMBERS)
        with (tmp_path / "shard.jsonl").open("a") as file:
            file.write(line + "\n")
        with pytest.raises(RunDamagedError, match=r"shard\.jsonl:3: "):
            list(read_members(tmp_path))

    def test_a_missing_file_is_refused_with_the_command_that_rewrites_it(self, tmp_path: Path) -> None:
        with pytest.raises(RunDirectoryError, match="cannot be read") as caught:
            list(read_members(tmp_path))
        assert "rewrites this file" in str(caught.value.hint)
