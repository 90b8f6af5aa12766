"""The file of the World vocabulary and its cache."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from rwkvbatch.errors import InputError
from rwkvbatch.prompt import tokenizer as vocabulary
from rwkvbatch.prompt.tokenizer import load_entries, parse_entries

SMALL = "".join(f"{byte + 1} {bytes([byte])!r} 1\n" for byte in range(256)) + "257 'ab' 2\n300 '你' 3\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "vocabulary.txt"
    path.write_text(SMALL, encoding="utf-8")
    return path


def test_entries_are_indexed_by_id_and_gaps_are_empty(source: Path, tmp_path: Path) -> None:
    entries = load_entries(source, tmp_path / "cache")
    assert len(entries) == 301
    assert (entries[0], entries[66], entries[257], entries[258], entries[300]) == (b"", b"A", b"ab", b"", "你".encode())


def test_the_cache_gives_the_same_entries_without_parsing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "deep" / "cache"
    first = load_entries(source, cache)

    def refuse(source: bytes, path: Path) -> tuple[bytes, ...]:
        raise AssertionError("parsed again")

    monkeypatch.setattr(vocabulary, "parse_entries", refuse)
    assert load_entries(source, cache) == first
    assert stat.S_IMODE(cache.stat().st_mode) == 0o600


@pytest.mark.parametrize("damage", [b"", b"x", b"\x00" * 5000, None])
def test_a_damaged_cache_is_replaced(source: Path, tmp_path: Path, damage: bytes | None) -> None:
    cache = tmp_path / "cache"
    first = load_entries(source, cache)
    whole = cache.read_bytes()
    cache.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if damage is None else damage)
    assert load_entries(source, cache) == first
    assert cache.read_bytes() == whole


def test_a_cache_with_a_flipped_bit_is_replaced(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = load_entries(source, cache)
    whole = cache.read_bytes()
    for at in range(0, len(whole), 7):
        cache.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        assert load_entries(source, cache) == first


def test_another_vocabulary_does_not_use_the_cache(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    load_entries(source, cache)
    source.write_text(SMALL.replace("'ab'", "'cd'"), encoding="utf-8")
    assert load_entries(source, cache)[257] == b"cd"


def test_a_cache_that_cannot_be_written_is_ignored(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert load_entries(source, tmp_path / "file" / "cache")[257] == b"ab"
    (tmp_path / "folder").mkdir()
    assert load_entries(source, tmp_path / "folder")[257] == b"ab"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "vocabulary.txt"]


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "257 ab 2",
        "257 'ab' 3",
        "257 __import__('os') 2",
        "257 7 1",
        "1 'A' 1",
        "-3 'x' 1",
        "9999999 'x' 1",
        "257 '' 0",
    ],
)
def test_a_line_that_is_no_entry_is_refused_with_its_number(line: str) -> None:
    with pytest.raises(InputError, match=r"some\.txt:257: not an entry"):
        parse_entries((SMALL[: SMALL.index("257 ")] + line).encode(), Path("some.txt"))


def test_a_missing_or_empty_vocabulary_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_entries(tmp_path / "none", tmp_path / "cache")
    with pytest.raises(InputError, match="no vocabulary entry"):
        parse_entries(b"\n\n", tmp_path)
    monkeypatch.setattr(vocabulary, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="not installed"):
        vocabulary.vocabulary_path()
