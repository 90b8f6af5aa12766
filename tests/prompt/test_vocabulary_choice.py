"""The choice of a checkpoint's tokenizer (metadata, files, size, `--vocab`), and byte-level BPE."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rwkvbatch.cli.app import invoke
from rwkvbatch.cli.exits import ExitCode
from rwkvbatch.config import Sampling
from rwkvbatch.engine.engine import Engine
from rwkvbatch.engine.request import Request
from rwkvbatch.errors import CheckpointError, InputError, MissingExtraError
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.prompt.bpe import BpeTokenizer
from rwkvbatch.prompt.text_stream import TextStream
from rwkvbatch.prompt.tokenizer import vocabulary_path, world_tokenizer
from rwkvbatch.prompt.vocabulary import read_vocabulary, shown_ids, textless_ids, tokenizer_of
from tests.engine.hash_model import HashModel

tokenizers = pytest.importorskip("tokenizers")

CORPUS = [
    "Hello, world! Hello, wörld!",
    "def f(x):\n    return x\n",
    "日本語 日本語 😀 😀",
    "\nUser: hi\n\nAssistant: hi",
]
SIZE = 330


def bpe_json(**changes: Any) -> bytes:
    """The tokenizer.json of a byte-level BPE tokenizer of up to 320 ids, with `changes`."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return json.dumps({**json.loads(tokenizer.to_str()), **changes}).encode()


CONTENT = bpe_json()
BPE = BpeTokenizer(CONTENT, SIZE, Path("tokenizer.json"))


@dataclass(frozen=True)
class Checkpoint:
    """The facts about a checkpoint that decide its tokenizer."""

    vocab_size: int
    path: str = "models/some.pth"
    vocabulary: str | None = None
    vocabulary_file: str | None = None


@pytest.fixture(autouse=True)
def _without_vocab_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RWKVBATCH_VOCAB")


class TestBytePairs:
    @pytest.mark.parametrize("text", [*CORPUS, "", " ", "e\u0301", "\x00\x7f", "  \t 1234\r\n"])
    def test_ids_and_text_are_those_of_the_package(self, text: str) -> None:
        package = tokenizers.Tokenizer.from_str(CONTENT.decode())
        assert BPE.encode(text) == package.encode(text).ids
        assert BPE.decode(BPE.encode(text)) == text == package.decode(BPE.encode(text))

    @given(st.text(max_size=40))
    def test_any_text_is_decoded_from_its_ids_at_once_and_incrementally(self, text: str) -> None:
        ids = BPE.encode(text)
        assert BPE.decode(ids) == text
        stream = TextStream(BPE.token_bytes)
        assert "".join([*(stream.push(token) for token in ids), stream.finish()]) == text

    def test_a_character_spread_over_tokens_is_returned_when_it_is_complete(self) -> None:
        ids = BPE.encode("ü")
        assert len(ids) == 2
        stream = TextStream(BPE.token_bytes)
        assert [stream.push(token) for token in ids] == ["", "ü"]

    def test_the_text_of_a_special_token_is_encoded_as_text(self) -> None:
        ids = BPE.encode("a<|endoftext|>b")
        assert 0 not in ids
        assert BPE.decode(ids) == "a<|endoftext|>b"

    def test_half_a_surrogate_pair_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"U\+D800, is an unpaired surrogate"):
            BPE.encode("\ud800")

    def test_ids_that_the_file_lacks_have_no_text(self) -> None:
        last = max(json.loads(CONTENT)["model"]["vocab"].values())
        assert textless_ids(BPE) == frozenset(range(last + 1, SIZE))
        assert BPE.token_bytes(0) == b""

    def test_another_file_has_another_hash(self) -> None:
        other = BpeTokenizer(CONTENT + b"\n", SIZE, Path("tokenizer.json"))
        assert other.sha256 != BPE.sha256

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"{", "is not JSON"),
            (b"[1]", "not a JSON object"),
            (b"{}", "is not byte-level BPE"),
            (bpe_json(decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}), "its decoder WordPiece"),
            (bpe_json(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}), "its model is WordLevel"),
            (bpe_json(model={"type": "BPE", "vocab": 3}), "is not a tokenizer"),
            (bpe_json(added_tokens=[]), r"id 0 must be a special token that ends the text, it is '<\|endoftext\|>'"),
        ],
    )
    def test_tokenizers_other_than_byte_level_bpe_are_refused(self, content: bytes, message: str) -> None:
        with pytest.raises(InputError, match=message):
            BpeTokenizer(content, SIZE, Path("tokenizer.json"))

    def test_a_model_with_fewer_ids_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"has ids up to .* and the model only 300"):
            BpeTokenizer(CONTENT, 300, Path("tokenizer.json"))

    def test_without_the_package_the_error_names_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "tokenizers", None)
        with pytest.raises(MissingExtraError, match="needs the `tokenizers` package") as caught:
            BpeTokenizer(CONTENT, SIZE, Path("tokenizer.json"))
        assert "rwkvbatch[tokenizers]" in str(caught.value.hint)


class TestChoice:
    @pytest.mark.parametrize("size", [65525, 65529, 65536])
    def test_the_world_vocabulary_is_recognised_by_its_size(self, size: int) -> None:
        assert tokenizer_of(Checkpoint(size)).sha256 == world_tokenizer(size).sha256

    @pytest.mark.parametrize("size", [300, 20_096, 50_253, 50_305, 65_524, 65_537, 151_936])
    def test_an_unknown_size_is_refused_with_the_options_to_set(self, size: int) -> None:
        with pytest.raises(
            CheckpointError, match=f"has {size:,} token ids, which is the size of no known vocabulary"
        ) as caught:
            tokenizer_of(Checkpoint(size))
        assert "--vocab FILE" in str(caught.value.hint)
        assert "--vocab world" in str(caught.value.hint)
        assert "models/some.pth" in str(caught.value)

    @pytest.mark.parametrize("size", [50_254, 50_277, 50_304])
    def test_the_20b_tokenizer_is_taken_from_beside_the_checkpoint(self, size: int, tmp_path: Path) -> None:
        checkpoint = Checkpoint(size, str(tmp_path / "RWKV-4-Pile.pth"))
        with pytest.raises(CheckpointError, match=r"20B_tokenizer\.json is not next to it"):
            tokenizer_of(checkpoint)
        (tmp_path / "20B_tokenizer.json").write_bytes(CONTENT)
        found = tokenizer_of(checkpoint)
        assert (found.sha256, found.vocab_size) == (BPE.sha256, size)

    def test_a_file_beside_a_checkpoint_of_another_size_is_ignored(self, tmp_path: Path) -> None:
        (tmp_path / "20B_tokenizer.json").write_bytes(CONTENT)
        (tmp_path / "tokenizer.json").write_bytes(CONTENT)
        with pytest.raises(CheckpointError):
            tokenizer_of(Checkpoint(SIZE, str(tmp_path / "some.pth")))

    def test_a_directory_has_its_own_tokenizer(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_bytes(CONTENT)
        assert tokenizer_of(Checkpoint(SIZE, str(tmp_path))).sha256 == BPE.sha256
        world = Checkpoint(300, str(tmp_path), vocabulary_file=str(vocabulary_path()))
        assert tokenizer_of(world).sha256 == world_tokenizer(300).sha256

    def test_metadata_and_explicit_vocabularies_override_the_size(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "mine.json"
        path.write_bytes(CONTENT)
        assert tokenizer_of(Checkpoint(300, vocabulary="world")).name == "rwkv-world"
        assert tokenizer_of(Checkpoint(50_277), "world").sha256 == world_tokenizer(50_277).sha256
        assert tokenizer_of(Checkpoint(65_536), str(path)).sha256 == BPE.sha256
        monkeypatch.setenv("RWKVBATCH_VOCAB", str(path))
        assert tokenizer_of(Checkpoint(65_536)).sha256 == BPE.sha256
        assert tokenizer_of(Checkpoint(65_536), "world").name == "rwkv-world"

    def test_unknown_metadata_are_ignored(self) -> None:
        with pytest.raises(CheckpointError):
            tokenizer_of(Checkpoint(300, vocabulary="martian"))

    def test_a_world_file_is_truncated_to_the_ids_of_the_model(self) -> None:
        found = read_vocabulary(vocabulary_path(), 512)
        assert found.sha256 == world_tokenizer(512).sha256
        assert found.encode("Hello world") == world_tokenizer(512).encode("Hello world")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"\xff\xfe", "not an entry of a World vocabulary"),
            (b"1 'a' 1\n2 'b' 1\n", "254 of the 256 single bytes have no entry, such as 0x00"),
            (b"", "contains no vocabulary entry"),
        ],
    )
    def test_a_file_that_is_no_vocabulary_is_refused(self, content: bytes, message: str, tmp_path: Path) -> None:
        path = tmp_path / "vocabulary.txt"
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_vocabulary(path, 65_536)

    def test_a_missing_file_and_a_directory_are_refused(self, tmp_path: Path) -> None:
        for path in (tmp_path / "none.json", tmp_path):
            with pytest.raises(InputError) as caught:
                read_vocabulary(path, 65_536)
            assert "--vocab FILE" in str(caught.value.hint)


def test_ids_are_shown_as_ranges() -> None:
    assert shown_ids(textless_ids(world_tokenizer(65_536))) == "65530 to 65535"
    assert shown_ids(range(1, 40, 2)) == "1, 3, 5, 7, 9, 11 and 20 in all"
    assert shown_ids([]) == ""


def test_an_id_without_text_in_a_reply_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    model = HashModel(vocab_size=SIZE)
    engine = Engine(model, tokenizer=BPE)
    textless = min(textless_ids(BPE))
    # All other ids are banned.
    sampling = Sampling(banned_token_ids=tuple(token for token in range(SIZE) if token != textless))
    with caplog.at_level(logging.WARNING):
        replies = engine.generate([Request((1, 2), sampling, max_tokens=3), Request((3,), sampling, max_tokens=2)])
    assert [reply.text for reply in replies] == ["", ""]
    assert [record.message for record in caplog.records] == [
        f"the model chose token id {textless}, which has no text in the vocabulary (tokenizer.json); is this the "
        f"model's vocabulary? --ban {textless} excludes the id"
    ]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a model of 330 ids, its vocabulary and a script."""
    monkeypatch.chdir(tmp_path)
    torch.save(random_tensors(1, 64, SIZE, seed=1, dtype=torch.float32), tmp_path / "small.pth")
    (tmp_path / "vocabulary.json").write_bytes(CONTENT)
    messages = [{"role": "user", "content": text} for text in ("日本", "x")]
    (tmp_path / "s.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    return tmp_path


def run(*options: str) -> int:
    return invoke(["run", "s.jsonl", "-m", "small.pth", "--max-tokens", "5", "--quiet", "--out", "out", *options])


def test_a_run_with_an_unknown_vocabulary_needs_the_option_vocab(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == ExitCode.BAD_INPUT
    assert "small.pth: has 330 token ids, which is the size of no known vocabulary" in capsys.readouterr().err.replace(
        "\n", " "
    )
    assert not (files / "out").exists()
    assert run("--vocab", "world") == ExitCode.DONE
    cells = json.loads((files / "out" / "manifest.json").read_text())["identity"]["cells"]
    assert {cell["tokenizer_sha256"] for cell in cells.values()} == {world_tokenizer(SIZE).sha256}
    # A run cannot be resumed with another vocabulary.
    assert run("--vocab", "vocabulary.json") == ExitCode.BAD_INPUT
    assert "tokenizer_sha256" in capsys.readouterr().err


def test_replies_of_a_run_are_decoded_with_its_vocabulary(files: Path) -> None:
    assert run("--vocab", "vocabulary.json") == ExitCode.DONE
    rows = [json.loads(line) for line in (files / "out" / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    for row in rows:
        ids = row["reply_ids"]
        assert BPE.decode(ids).startswith(row["reply"])


def test_info_names_the_tokenizer_and_the_ids_without_text(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def tokenizer(*options: str) -> dict[str, Any]:
        assert invoke(["model", "info", "small.pth", "--json", *options]) == ExitCode.DONE
        return json.loads(capsys.readouterr().out)["tokenizer"]

    assert "the size of no known vocabulary" in tokenizer()["unknown"]
    assert tokenizer("--vocab", "world")["name"] == "rwkv-world"
    found = tokenizer("--vocab", "vocabulary.json")
    assert (found["sha256"], found["num_textless"]) == (BPE.sha256, len(textless_ids(BPE)))
    assert found["textless"] == shown_ids(textless_ids(BPE))
    assert invoke(["model", "info", "small.pth", "--vocab", "none.json"]) == ExitCode.BAD_INPUT


def test_a_safetensors_file_declares_the_world_vocabulary(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["model", "convert", "small.pth", "plain.safetensors"]) == ExitCode.DONE
    assert invoke(["model", "convert", "small.pth", "declared.safetensors", "--vocab", "world"]) == ExitCode.DONE
    assert (
        invoke(["model", "convert", "declared.safetensors", "converted.safetensors", "--dtype", "bf16"])
        == ExitCode.DONE
    )
    assert invoke(["model", "convert", "small.pth", "declared.pth", "--vocab", "world"]) == ExitCode.USAGE
    assert invoke(["model", "random", "1x64", "random.safetensors", "--vocab", "400"]) == ExitCode.DONE
    for name, known in (("plain", False), ("declared", True), ("converted", True), ("random", True)):
        capsys.readouterr()
        assert invoke(["model", "info", f"{name}.safetensors", "--json"]) == ExitCode.DONE
        assert ("name" in json.loads(capsys.readouterr().out)["tokenizer"]) == known


def test_the_tokenizer_of_the_bundled_model_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["model", "info", "--json"]) == ExitCode.DONE
    found = json.loads(capsys.readouterr().out)["tokenizer"]
    assert (found["name"], found["num_textless"]) == ("rwkv-world", 0)


def test_a_dry_run_warns_about_ids_without_text_and_unknown_vocabularies(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def plan(*options: str) -> dict[str, Any]:
        assert invoke(["run", "s.jsonl", "--dry-run", "--json", *options]) == ExitCode.DONE
        return json.loads(capsys.readouterr().out)

    found = plan("-m", "small.pth", "--vocab", "vocabulary.json")
    expected = f"token ids decode to nothing with the vocabulary vocabulary.json ({shown_ids(textless_ids(BPE))})"
    assert any(expected in warning for warning in found["warnings"])
    unknown = plan("-m", "small.pth")
    assert ["the size of no known vocabulary" in warning for warning in unknown["warnings"]] == [True]
    assert plan()["warnings"] == []


def test_tensors_in_memory_take_no_tokenizer_of_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "20B_tokenizer.json").write_bytes(bpe_json())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="as checkpoints of the GPT-NeoX 20B tokenizer have"):
        tokenizer_of(Checkpoint(50_277, path="<state_dict>"))
