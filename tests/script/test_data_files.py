"""Data files of folders: which are read, and messages about files that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rwkvbatch.cli.app import invoke
from rwkvbatch.errors import ScriptError
from rwkvbatch.script import data_files as module
from rwkvbatch.script.benchmark_import import import_benchmark
from rwkvbatch.script.data_files import data_files, split_of
from rwkvbatch.script.tables import COMPRESSED, read_records
from tests.script.benchmark_records import LAMBADA, MMLU, written


def files_in(folder: Path, *names: str) -> str:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        written(path, LAMBADA)
    return str(folder)


def found(folder: Path) -> list[str]:
    return [str(Path(path).relative_to(folder)) for path in data_files([str(folder)])]


def test_folders_are_searched_with_their_subfolders_and_without_hidden_files(tmp_path: Path) -> None:
    files_in(tmp_path, "b.jsonl", "a/c.csv", "a/d/e.JSON", ".git/f.json", ".g.jsonl", "h.txt", "i")
    assert found(tmp_path) == ["a/c.csv", "a/d/e.JSON", "b.jsonl"]
    assert data_files(["x.jsonl", str(tmp_path / "a")]) == ["x.jsonl", *data_files([str(tmp_path / "a")])]


def test_the_metadata_that_datasets_saves_is_no_data(tmp_path: Path) -> None:
    files_in(tmp_path, "data-00000-of-00001.arrow", "dataset_info.json", "state.json", "dataset_dict.json")
    assert found(tmp_path) == ["data-00000-of-00001.arrow"]


def test_a_folder_that_datasets_saved_is_imported(tmp_path: Path) -> None:
    import pyarrow as pa

    folder = tmp_path / "mmlu_test_dataset"
    files_in(folder, "dataset_info.json", "state.json")
    table = pa.Table.from_pylist([dict(MMLU)])
    with pa.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as stream:
        stream.write_table(table)
    assert invoke(["script", "import", "mmlu", str(folder), "-o", str(tmp_path / "out.jsonl"), "-q"]) == 0
    assert json.loads((tmp_path / "out.jsonl").read_text())["id"] == "abstract_algebra-1"


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("test-00000-of-00001.parquet", "test"),
        ("gsm8k-train.arrow", "train"),
        ("abstract_algebra_test.csv", "test"),
        ("ARC-Challenge-Dev.jsonl", "dev"),
        ("auxiliary_train/data.arrow", "train"),
        ("train/validation-00000-of-00001.parquet", "validation"),
        ("test/en.jsonl", "test"),
        ("winogrande/train_xs.jsonl", "train"),
        ("data.jsonl", None),
        ("latest/contest.jsonl", None),
        ("devices/trains.jsonl", None),
    ],
)
def test_the_split_is_known_by_the_name_of_the_file_or_folder(path: str, split: str | None) -> None:
    assert split_of(path) == split


def test_files_of_several_splits_are_refused_with_their_numbers(tmp_path: Path) -> None:
    folder = files_in(tmp_path, "gsm8k-test.arrow", "gsm8k-train.arrow", "more/gsm8k-train.arrow", "dataset_info.json")
    with pytest.raises(ScriptError, match=r"several splits: test \(1 file\), train \(2 files\)") as caught:
        data_files([folder])
    assert f"such as {tmp_path / 'gsm8k-test.arrow'}" in str(caught.value.hint)


def test_a_folder_of_one_split_with_other_files_is_read(tmp_path: Path) -> None:
    files_in(tmp_path, "test/anatomy_test.csv", "test/astronomy_test.csv", "notes.json")
    assert len(found(tmp_path)) == 3


def test_a_folder_of_compressed_files_names_one(tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=r"contains no file that ends in \.jsonl") as caught:
        data_files([files_in(tmp_path, "test.jsonl.gz", "readme.txt")])
    assert "test.jsonl.gz is compressed or an archive: unpack it first" in str(caught.value.hint)


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILES", 3)
    files_in(tmp_path, "a.json", "b.json", "c/d.json")
    assert len(found(tmp_path)) == 3
    files_in(tmp_path, "c/e.txt")
    with pytest.raises(ScriptError, match="contains more than 3 files"):
        data_files([str(tmp_path)])


def test_folders_are_searched_to_a_limited_depth(tmp_path: Path) -> None:
    files_in(tmp_path, "a.json", "/".join("12345678") + "/b.json")
    assert found(tmp_path) == ["1/2/3/4/5/6/7/8/b.json", "a.json"]
    (tmp_path / "/".join("123456789abc")).mkdir(parents=True)
    files_in(tmp_path, "/".join("123456789") + "/readme.txt", "/".join("123456789") + "/state.json")
    assert found(tmp_path) == ["1/2/3/4/5/6/7/8/b.json", "a.json"]
    files_in(tmp_path, "/".join("123456789") + "/c.json")
    with pytest.raises(ScriptError, match=r"has files in folders deeper than 8 levels, such as .*/8/9/c\.json"):
        found(tmp_path)


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_compressed_files_name_the_command_that_unpacks_them(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"test.jsonl{suffix}"
    path.write_bytes(b"\x1f\x8b")
    with pytest.raises(ScriptError, match="is compressed or an archive") as caught:
        list(read_records(str(path)))
    assert f"{COMPRESSED[suffix]} {path}" in str(caught.value.hint)


def test_an_archive_of_tar_is_unpacked_by_tar(tmp_path: Path) -> None:
    with pytest.raises(ScriptError) as caught:
        list(read_records(str(tmp_path / "data.tar.gz")))
    assert "tar xf " in str(caught.value.hint)


@pytest.mark.parametrize("name", ["test.jsonl", "test.json", "test.csv", "test.parquet", "test.arrow"])
def test_a_pointer_of_git_lfs_is_refused_as_such(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:35dc\nsize 446564\n")
    with pytest.raises(ScriptError, match="is a Git LFS pointer, not the file") as caught:
        import_benchmark("math", [str(path)], tmp_path / "out.jsonl")
    assert "git lfs pull" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('[{"text": "a b", "text": "a c"}]', "the key 'text' is repeated in one object"),
        ('[{"text": NaN}]', "NaN is not a JSON number"),
        ('[{"text": "a \\ud800"}]', "unpaired surrogate"),
    ],
)
def test_what_json_readers_read_differently_is_refused_in_columns_that_are_read(
    content: str, problem: str, tmp_path: Path
) -> None:
    first = '{"text": "a b"}'
    for name, text, place in (
        ("a.json", f"[{first},\n{content[1:-1]}]", r"a\.json:1: item 2: "),
        ("b.json", f"{first}\n{content[1:-1]}\n", r"b\.json:2: "),
        ("c.json", content[1:-1], r"c\.json:1: "),
        ("d.jsonl", f"{first}\n{content[1:-1]}\n", r"d\.jsonl:2: "),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ScriptError, match=f"{place}{problem}.*, in the column 'text'"):
            import_benchmark("lambada", [str(tmp_path / name)], tmp_path / "out.jsonl")
        if name != "c.json":
            imported = import_benchmark("lambada", [str(tmp_path / name)], tmp_path / "out.jsonl", skip_bad=True)
            assert (imported.conversations, len(imported.left_out)) == (1, 1)
            (tmp_path / "out.jsonl").unlink()


@pytest.mark.parametrize(
    "column", ['"x": NaN', '"x": [-1e999]', '"x": "\\ud800"', '"x": 1, "x": 2', '"x": {"y": 1, "y": 2}']
)
def test_columns_that_are_not_read_may_have_anything(column: str, tmp_path: Path) -> None:
    record = f'{{"text": "a b", {column}}}'
    for name, text in (("a.json", f"[{record}]"), ("b.json", record), ("c.jsonl", record)):
        (tmp_path / name).write_text(text)
        assert import_benchmark("lambada", [str(tmp_path / name)], tmp_path / f"{name}.out").conversations == 1
    record = f'{{"Problem": "1 + 1?", "Answer": 2, {column}}}'
    (tmp_path / "aime.jsonl").write_text(record)
    assert import_benchmark("aime", [str(tmp_path / "aime.jsonl")], tmp_path / "out.jsonl").conversations == 1


def test_a_record_without_a_label_may_have_anything_in_other_columns(tmp_path: Path) -> None:
    (tmp_path / "valid.jsonl").write_text('{"goal": "a", "sol1": "b", "sol2": "c", "x": NaN}\n')
    (tmp_path / "valid-labels.lst").write_text("1\n")
    assert import_benchmark("piqa", [str(tmp_path / "valid.jsonl")], tmp_path / "out.jsonl").conversations == 1


def test_the_array_inside_an_object_comes_once(tmp_path: Path) -> None:
    (tmp_path / "dev.json").write_text('{"Data": [{"QuestionId": "a"}], "Data": []}')
    with pytest.raises(ScriptError, match=r"dev\.json:1: the key 'Data' is repeated in one object"):
        import_benchmark("triviaqa", [str(tmp_path / "dev.json")], tmp_path / "out.jsonl")


def test_an_id_that_comes_twice_names_the_item_that_had_it(tmp_path: Path) -> None:
    record = {"id": 7, "problem": "1 + 1?", "answer": 2}
    (tmp_path / "a.json").write_text(json.dumps([record, record]))
    with pytest.raises(
        ScriptError, match=r"a\.json:1: item 2: the id 'aime-7' was already used at .*a\.json:1 \(item 1\)"
    ):
        import_benchmark("aime", [str(tmp_path / "a.json")], tmp_path / "out.jsonl")


def test_links_to_folders_that_are_searched_at_their_own_place_are_passed_over(tmp_path: Path) -> None:
    files_in(tmp_path / "a", "data/one.jsonl", "more/two.jsonl")
    (tmp_path / "a" / "same").symlink_to("data")
    (tmp_path / "a" / "more" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "linked").symlink_to("a")
    assert found(tmp_path / "a") == ["data/one.jsonl", "more/two.jsonl"]
    assert found(tmp_path / "linked") == ["data/one.jsonl", "more/two.jsonl"]


@pytest.mark.parametrize("target", ["other", "linked/.hidden", "linked-2"])
def test_links_to_folders_that_are_not_searched_are_refused(target: str, tmp_path: Path) -> None:
    files_in(tmp_path / "linked", "a.jsonl")
    files_in(tmp_path / target, "b.jsonl")
    (tmp_path / "linked" / "more").symlink_to(tmp_path / target)
    message = rf"has a link to a folder that is not searched: .*/linked/more leads to .*/{target}"
    with pytest.raises(ScriptError, match=message):
        data_files([str(tmp_path / "linked")])
