"""Opening a store: existing rows, torn last lines, damage, repair."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvbatch.errors import RunDamagedError, RunDirectoryError
from rwkvbatch.results.recovery import read_results
from rwkvbatch.results.row import Row
from rwkvbatch.results.row_codec import encode_row
from tests.memory import memory_folder
from tests.replay.fakes import make_row
from tests.replay.runs import results
from tests.results.stores import fill, open_store


class TestOpening:
    def test_existing_rows_are_read_in_order(self, tmp_path: Path) -> None:
        fill(tmp_path, [3, 1, 2])
        store = open_store(tmp_path)
        assert [row.conversation for row in store.rows()] == ["1", "2", "3"]
        assert store.num_rows == store.num_durable == 3
        assert not store.has(0)
        with pytest.raises(KeyError):
            store.read(0)

    @given(cut=st.integers(1, 10_000), garbage=st.binary(max_size=30))
    @settings(max_examples=40)
    def test_a_torn_last_line_is_removed_and_kept_in_a_file(self, cut: int, garbage: bytes) -> None:
        with tempfile.TemporaryDirectory(dir=memory_folder()) as name:
            directory = Path(name)
            fill(directory, range(3))
            whole = results(directory)
            last = whole[whole.rindex(b"\n", 0, -1) + 1 :]
            torn = last[: -1 - cut % (len(last) - 1)] + garbage
            (directory / "results.jsonl").write_bytes(whole[: -len(last)] + torn)
            store = open_store(directory)
            assert store.num_rows == 2
            assert results(directory) == whole[: -len(last)]
            kept = [path.read_bytes() for path in directory.glob("results.torn*")]
            assert kept == ([torn] if torn else [])
            store.append({2: make_row("2")})
            store.close()
            assert results(directory) == whole

    def test_each_torn_last_line_is_kept_in_its_own_file(self, tmp_path: Path) -> None:
        for count in range(1, 4):
            with (tmp_path / "results.jsonl").open("ab") as file:
                file.write(b"torn %d" % count)
            open_store(tmp_path).close()
        assert [(tmp_path / f"results.torn-{n}").read_bytes() for n in (1, 2, 3)] == [b"torn 1", b"torn 2", b"torn 3"]

    def test_damage_in_the_middle_is_refused_with_its_line(self, tmp_path: Path) -> None:
        fill(tmp_path, range(5))
        lines = results(tmp_path).splitlines(keepends=True)
        lines[2] = lines[2].replace(b"hello", b"hellu")
        (tmp_path / "results.jsonl").write_bytes(b"".join(lines))
        with pytest.raises(RunDamagedError, match=r"results\.jsonl:3: .*checksum") as caught:
            open_store(tmp_path)
        assert caught.value.hint is not None
        assert "--repair" in caught.value.hint
        assert results(tmp_path) == b"".join(lines)
        with pytest.raises(RunDamagedError, match=r":3:"):
            list(read_results(tmp_path / "results.jsonl"))

    def test_repair_sets_damaged_rows_aside(self, tmp_path: Path) -> None:
        fill(tmp_path, range(5))
        lines = results(tmp_path).splitlines(keepends=True)
        bad = [b"not a row\n", lines[3][:-30] + b"\n"]
        (tmp_path / "results.jsonl").write_bytes(b"".join([lines[0], bad[0], lines[2], bad[1], lines[4], b"torn"]))
        store = open_store(tmp_path, repair=True)
        assert [row.conversation for row in store.rows()] == ["0", "2", "4"]
        assert (tmp_path / "results.damaged").read_bytes() == b"".join(bad)
        store.append({1: make_row("1")})
        store.close()
        assert results(tmp_path) == b"".join([lines[0], lines[2], lines[4], lines[1]])

    @pytest.mark.parametrize("row", [make_row("elsewhere"), make_row("1")])
    def test_a_foreign_or_duplicated_row_is_damage_even_at_the_end(self, tmp_path: Path, row: Row) -> None:
        fill(tmp_path, range(3))
        with (tmp_path / "results.jsonl").open("ab") as file:
            file.write(encode_row(row))
        with pytest.raises(RunDamagedError, match=":4:"):
            open_store(tmp_path)
        assert open_store(tmp_path, repair=True).num_rows == 3

    def test_a_directory_in_place_of_the_results_is_refused_by_name(self, tmp_path: Path) -> None:
        (tmp_path / "results.jsonl").mkdir()
        with pytest.raises(RunDirectoryError, match=r"results\.jsonl"):
            open_store(tmp_path)
