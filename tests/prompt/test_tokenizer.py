"""The World tokenizer, compared with that of the `rwkv` package and a reference by longest match."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

import rwkvbatch.prompt.tokenizer as tokenizer_module
from rwkvbatch.errors import InputError, UsageError
from rwkvbatch.prompt.tokenizer import WorldTokenizer, encode_long, load_entries, vocabulary_path, world_tokenizer

# Pieces that are long entries of the vocabulary: words, repeated characters, code, several scripts.
_PIECES = st.sampled_from(
    [
        " the",
        "Assistant",
        "\n\n",
        "    ",
        "====",
        "User: ",
        "你好",
        "世界",
        "的",
        "👩‍👩‍👧",
        "é",
        "\r\n",
        "\x00",
        "\x1b[31m",
        "12345",
    ]
)
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.one_of(_PIECES, st.text(st.characters(exclude_categories=["Cs"]), max_size=3))).map("".join),
)


@pytest.fixture(scope="module")
def package_tokenizer() -> TRIE_TOKENIZER:
    return TRIE_TOKENIZER(str(vocabulary_path()))


@pytest.fixture(scope="module")
def world() -> WorldTokenizer:
    return world_tokenizer()


@given(text=TEXTS)
def test_any_text_has_the_ids_of_the_package(
    text: str, package_tokenizer: TRIE_TOKENIZER, world: WorldTokenizer
) -> None:
    assert world.encode(text) == package_tokenizer.encode(text)


def test_repeated_characters_and_source_code_have_the_ids_of_the_package(
    package_tokenizer: TRIE_TOKENIZER, world: WorldTokenizer
) -> None:
    for text in (" " * 1000, "=" * 77, "-" * 161, "\n" * 9, Path(__file__).read_text(encoding="utf-8")):
        assert world.encode(text) == package_tokenizer.encode(text)


def test_every_entry_is_encoded_as_its_id(world: WorldTokenizer) -> None:
    for token in range(257, 65530):
        data = world.token_bytes(token)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            continue
        assert world.encode(text) == [token]


@given(text=TEXTS, vocab_size=st.sampled_from([257, 300, 512, 4096, 65536]))
def test_text_is_decoded_from_its_ids_at_every_vocabulary_size(text: str, vocab_size: int) -> None:
    tokenizer = world_tokenizer(vocab_size)
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert all(0 < token < vocab_size for token in tokens)


def longest_matches(data: bytes, entries: Mapping[bytes, int]) -> list[int]:
    """Reference implementation: the longest entry at each position."""
    at, ids = 0, list[int]()
    while at < len(data):
        length = next(n for n in range(130, 0, -1) if data[at : at + n] in entries and at + n <= len(data))
        ids.append(entries[data[at : at + length]])
        at += length
    return ids


@given(text=TEXTS)
def test_a_smaller_vocabulary_encodes_by_longest_match_of_its_entries(text: str, world: WorldTokenizer) -> None:
    entries = {world.token_bytes(token): token for token in range(1, 600)}
    assert world_tokenizer(600).encode(text) == longest_matches(text.encode(), entries)


# Letters, digits, other ASCII and multi-byte characters next to each other: the boundaries of cached pieces.
_BOUNDARIES = st.text(st.sampled_from("aZ09 \t\n\r.,'_-(é你。🙂"))


@given(text=_BOUNDARIES)
def test_words_with_any_boundaries_have_the_ids_of_the_package(
    text: str, package_tokenizer: TRIE_TOKENIZER, world: WorldTokenizer
) -> None:
    for encoded_text in (text, text, text + text, f" {text}."):
        assert world.encode(encoded_text) == package_tokenizer.encode(encoded_text)


@pytest.fixture(scope="module")
def cold_tokenizer() -> WorldTokenizer:
    """A tokenizer with empty caches, shared by all examples, so that later ones use what earlier ones cached."""
    return WorldTokenizer(load_entries(), 65536)


@settings(max_examples=20)
@given(texts=st.lists(TEXTS, min_size=3))
def test_full_caches_change_no_id(
    texts: list[str], package_tokenizer: TRIE_TOKENIZER, cold_tokenizer: WorldTokenizer
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "MAX_CACHED", 5)
        for text in [*texts, *texts]:
            assert cold_tokenizer.encode(text) == package_tokenizer.encode(text)
            assert max(map(len, (cold_tokenizer._cached_pieces, cold_tokenizer._cached_prefixes))) <= 5


def test_long_pieces_are_not_cached(cold_tokenizer: WorldTokenizer) -> None:
    cold_tokenizer.encode("你" * 1000 + " " * 1000 + "x" * 1000)
    assert all(len(piece) <= tokenizer_module.MAX_PIECE_BYTES for piece in cold_tokenizer._cached_pieces)


@given(text=TEXTS)
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("size", [1, 7])
def test_a_text_encoded_in_blocks_has_the_same_ids(size: int, text: str, world: WorldTokenizer) -> None:
    whole = world.encode(text * 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "_BLOCK_BYTES", size)
        assert world.encode(text * 3) == whole
        assert list(encode_long(world, text * 3)) == whole


def test_encoding_a_long_text_takes_less_than_5_times_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "_BLOCK_BYTES", 4096)
    text = "It was a bright cold day in April, and the clocks were striking thirteen. " * 4000
    tokenizer = world_tokenizer(512)
    tracemalloc.start()
    try:
        tokens = encode_long(tokenizer, text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(tokens) > len(text) // 4
    assert peak < 5 * len(text)


@given(text=st.text(st.sampled_from("ab. é")))
def test_entries_across_word_boundaries_are_found(text: str) -> None:
    entries = [b"", *(bytes([byte]) for byte in range(256)), b"a b", b"b.", b"\xc3\xa9 a"]
    ids = {entry: token for token, entry in enumerate(entries) if entry}
    assert WorldTokenizer(entries, len(entries)).encode(text) == longest_matches(text.encode(), ids)


@given(tokens=st.lists(st.integers(1, 65529)))
def test_any_tokens_have_the_bytes_of_the_package(
    tokens: list[int], package_tokenizer: TRIE_TOKENIZER, world: WorldTokenizer
) -> None:
    assert world.decode_bytes(tokens) == package_tokenizer.decodeBytes(tokens)


@pytest.mark.parametrize("token", [0, 65530, 65535, 70000, -1])
def test_ids_without_an_entry_decode_to_nothing(token: int, world: WorldTokenizer) -> None:
    assert world.decode([66, token, 67]) == world.decode([66, 67])
    assert world.token_bytes(token) == b""


def test_a_lone_surrogate_is_refused_with_its_position(world: WorldTokenizer) -> None:
    with pytest.raises(InputError, match=r"character 3 of a text, U\+D800"):
        world.encode("ab\ud800")


def test_a_vocabulary_without_all_single_bytes_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 257"):
        world_tokenizer(256)


def test_the_same_size_gives_the_same_tokenizer_and_hash() -> None:
    assert world_tokenizer(512) is world_tokenizer(512)
    assert len({world_tokenizer(size).sha256 for size in (257, 512, 65536)}) == 3
    assert world_tokenizer(65536).sha256 == world_tokenizer(65530).sha256


def test_loading_imports_neither_torch_nor_the_package() -> None:
    code = (
        "import sys; from rwkvbatch.prompt.tokenizer import world_tokenizer; world_tokenizer().encode('hi');"
        "print([name for name in ('torch', 'numpy', 'rwkv', 'rwkv.model') if name in sys.modules])"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert completed.stdout.strip() == "[]"
