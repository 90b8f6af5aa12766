"""`rwkvbatch model`: random, info, convert."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shlex
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console

from rwkvbatch.cli import views
from rwkvbatch.cli.app import invoke
from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
from rwkvbatch.model.checkpoints.description import describe
from rwkvbatch.model.model_files import BUNDLED_MODEL
from rwkvbatch.model.weights.named_tensors import Entry
from rwkvbatch.model.weights.safetensors import save_entries


@pytest.fixture
def checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / "made.pth"
    assert invoke(["model", "random", "2x64", str(path), "--vocab", "97", "--head-size", "32", "--seed", "3"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "made.pth" in captured.err
    return path


def read(path: Path) -> dict[str, torch.Tensor]:
    with open_checkpoint(path) as checkpoint:
        return {name: checkpoint[name] for name in checkpoint}


def test_info_prints_one_json_object(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["model", "info", str(checkpoint.with_suffix("")), "--json", "--verify"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert (info["generation"], info["num_layers"], info["width"], info["vocab_size"]) == ("7", 2, 64, 97)
    assert (info["num_heads"], info["head_size"], info["dtype"], info["kind"]) == (2, 32, "bf16", "pth")
    assert info["num_bytes"] == checkpoint.stat().st_size
    assert len(info["sha256"]) == 64
    assert info["num_parameters"] == sum(group["num_parameters"] for group in info["tensors"])


def test_info_without_a_file_describes_the_bundled_model_or_the_one_of_the_environment(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RWKVBATCH_MODEL", raising=False)
    assert invoke(["model", "info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(BUNDLED_MODEL)
    monkeypatch.setenv("RWKVBATCH_MODEL", str(checkpoint))
    assert invoke(["model", "info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(checkpoint)


@pytest.mark.parametrize(
    "arguments",
    [
        "model info a",
        "model convert a b.pth",
        "model quantize a q.safetensors",
        "model verify a --strategy cpu",
        "model damage a --against cpu --strategy 'cpu int8' --texts t.txt --vocab world",
        "model damage a.pth --against a --texts t.txt --vocab world",
        "run s.jsonl --model a --vocab world --dry-run",
        "run s.jsonl --model a --vocab world --max-tokens 1",
        "run s.jsonl --model a --vocab world --max-tokens 1 --strategy 'cpu,cpu int8'",
    ],
)
def test_it_is_said_once_which_of_several_files_of_a_name_is_read(
    arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.pth", "a.safetensors"):
        assert invoke(["model", "random", "1x64", name, "--vocab", "512"]) == 0
    Path("t.txt").write_text("Some text to compare on.")
    Path("s.jsonl").write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n')
    capsys.readouterr()
    assert invoke(shlex.split(arguments)) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("a.pth is read, and not a.safetensors; give the name with its ending") == 1


def test_info_prints_a_table(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["model", "info", str(checkpoint)]) == 0
    output = capsys.readouterr().out
    assert "blocks.*.att.receptance.weight" in output
    assert "64 x 64" in output
    assert "sha256" not in output


@pytest.mark.parametrize(
    ("name", "content", "is_named"),
    [
        ("chat_template.jinja", "{{ messages }}", True),
        ("tokenizer_config.json", '{"chat_template": "{{ messages }}"}', True),
        ("tokenizer_config.json", '{"eos_token": "a"}', False),
    ],
)
def test_info_names_the_chat_template_that_is_not_used(
    name: str, content: str, is_named: bool, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint.with_name("folder")
    folder.mkdir()
    checkpoint.rename(folder / "pytorch_model.bin")
    (folder / "config.json").write_text('{"model_type": "rwkv7"}')
    (folder / name).write_text(content)
    assert invoke(["model", "info", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["chat_template"] == (str(folder / name) if is_named else None)
    assert invoke(["model", "info", str(folder)]) == 0
    assert (f"not used: {name}" in re.sub(r"\s+", " ", capsys.readouterr().out)) == is_named


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{not json", "not JSON"),
        (b"[]", "expected a JSON object, found list"),
        (b'{"a": "' + b"x" * (16 << 20) + b'"}', "it has 16,777,225 bytes, at most 16,777,216 are read"),
    ],
)
def test_a_tokenizer_config_that_cannot_be_read_matters_only_to_the_display_of_the_chat_template(
    content: bytes, problem: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint.with_name("folder")
    folder.mkdir()
    checkpoint.rename(folder / "pytorch_model.bin")
    (folder / "config.json").write_text('{"model_type": "rwkv7"}')
    (folder / "tokenizer_config.json").write_bytes(content)
    assert invoke(["model", "info", str(folder), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["chat_template"] is None
    assert problem in described["chat_template_unknown"]
    assert invoke(["model", "info", str(folder)]) == 0
    assert "unknown, and not used:" in re.sub(r"\s+", " ", capsys.readouterr().out)
    with open_checkpoint(folder) as opened:  # as quantize, local judges and --dry-run do
        assert describe(opened).vocab_size == described["vocab_size"]
    assert invoke(["model", "quantize", str(folder), str(folder.with_name("q.safetensors")), "--quiet"]) == 0


def test_info_of_a_verified_checkpoint_has_its_hash(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["model", "info", str(checkpoint), "--verify"]) == 0
    shown = "".join(capsys.readouterr().out.split())
    assert f"{hashlib.sha256(checkpoint.read_bytes()).hexdigest()}(allvaluesarefinite)" in shown


def test_info_of_an_older_generation_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.model.older_generations import older_tensors

    torch.save(older_tensors("4"), tmp_path / "old.pth")
    assert invoke(["model", "info", str(tmp_path / "old")]) == 0
    assert "none" in capsys.readouterr().out


def test_verify_finds_what_the_table_of_contents_does_not_tell(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = read(checkpoint)
    tensors["head.weight"][0, 0] = float("nan")
    torch.save(tensors, tmp_path / "bad.pth")
    assert invoke(["model", "info", str(tmp_path / "bad")]) == 0
    assert invoke(["model", "info", str(tmp_path / "bad"), "--verify"]) == 3
    assert "'head.weight' contains NaN" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["info", "--verify"], ["convert", "new.pth"], ["quantize", "new.safetensors"]])
def test_a_changed_bit_of_a_pth_is_found(
    command: list[str],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    data = bytearray(checkpoint.read_bytes())
    data[len(data) // 2] ^= 1
    Path("bad.pth").write_bytes(data)
    name, *rest = command
    assert invoke(["model", name, "bad.pth", *rest]) == 3
    assert re.search(r"bad.pth: damaged: its record '.*/data/\d+' does not have the CRC-32", capsys.readouterr().err)
    assert not list(tmp_path.glob("new*"))


def test_a_pth_without_checksums_is_verified(checkpoint: Path, tmp_path: Path) -> None:
    tensors = read(checkpoint)
    with_checksums = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tensors, tmp_path / "plain.pth")
    finally:
        torch.serialization.set_crc32_options(with_checksums)
    assert invoke(["model", "info", str(tmp_path / "plain.pth"), "--verify"]) == 0


def test_convert_there_and_back_changes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "a.safetensors", tmp_path / "b.pth"
    assert invoke(["model", "convert", str(checkpoint.with_suffix("")), str(there)]) == 0
    assert invoke(["model", "convert", str(there), str(back), "--quiet"]) == 0
    expected, found = read(checkpoint), read(back)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_convert_says_what_a_pth_loses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, rounded = tmp_path / "small.safetensors", tmp_path / "rounded.safetensors"
    assert invoke(["model", "random", "1x64", str(small), "--vocab", "512", "--quiet"]) == 0
    assert invoke(["model", "quantize", str(small), str(rounded), "--quiet"]) == 0
    assert invoke(["model", "convert", str(rounded), str(tmp_path / "a.pth")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "tensors; dequantised from int4" in said
    assert "a .pth cannot declare its vocabulary: give --vocab world with it" in said
    assert invoke(["model", "convert", str(small), str(tmp_path / "b.safetensors")]) == 0
    said = capsys.readouterr().err
    assert "dequantised" not in said
    assert "declare" not in said


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_convert_stores_the_asked_precision(name: str, dtype: torch.dtype, checkpoint: Path, tmp_path: Path) -> None:
    assert invoke(["model", "convert", str(checkpoint), str(tmp_path / "a.safetensors"), "--dtype", name]) == 0
    expected = read(checkpoint)
    for key, tensor in read(tmp_path / "a.safetensors").items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, expected[key].to(dtype))


def test_existing_file_is_replaced_only_by_force(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a.pth"
    output.write_bytes(b"precious")
    for command in (["convert", str(checkpoint), str(output)], ["random", "1x64", str(output), "--vocab", "65"]):
        assert invoke(["model", *command]) == 2
        assert "already exists and is not a checkpoint" in capsys.readouterr().err
        assert invoke(["model", *command, "--force"]) == 2
        assert output.read_bytes() == b"precious"
    before = checkpoint.read_bytes()
    for command in (["convert", str(checkpoint), str(output)], ["random", "1x64", str(output), "--vocab", "65"]):
        output.write_bytes(before)
        capsys.readouterr()
        assert invoke(["model", *command]) == 2
        assert "already exists (a checkpoint)" in capsys.readouterr().err
        assert output.read_bytes() == before
        assert invoke(["model", *command, "--force"]) == 0
    assert output.read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["random", "12", "a.pth"], "LAYERSxWIDTH"),
        (["random", "0x64", "a.pth"], "LAYERSxWIDTH"),
        (["random", "1x100", "a.pth"], "multiple of --head-size 64"),
        (["random", "1x64", "a.txt"], "must end in .pth or .safetensors"),
        (["convert", "b.pth", "a.pth", "--vocab", "world"], "--vocab is written into a .safetensors file"),
    ],
)
def test_bad_request_is_a_usage_error(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke(["model", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_bad_checkpoint_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["model", "info", "--vocab", str(tmp_path / "missing.txt")]) == 3
    assert "missing.txt: cannot be read" in capsys.readouterr().err
    (tmp_path / "a.pth").write_bytes(b"nothing of the kind")
    assert invoke(["model", "info", str(tmp_path / "a")]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "not a checkpoint" in captured.err


@pytest.mark.parametrize("command", [["convert", "--dtype", "fp32"], ["quantize"]])
def test_what_is_written_is_shown_on_a_terminal_and_nowhere_else(
    command: list[str],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["model", command[0], str(checkpoint), str(tmp_path / "a.safetensors"), *command[1:], "--force"]
    assert invoke(arguments) == 0
    assert capsys.readouterr().err.count("\n") == 1  # what was written, no bar
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(views, "console", lambda **_: terminal)
    assert invoke(arguments) == 0
    shown = terminal.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    whole, unit = re.findall(r"writing a\.safetensors.*?([\d.]+)/\1 (KiB|MiB)", re.sub(r"\x1b\[[\d;]*m", "", shown))[-1]
    size = (tmp_path / "a.safetensors").stat().st_size / {"KiB": 2**10, "MiB": 2**20}[unit]
    assert 0.8 * size < float(whole) < size
    assert invoke([*arguments, "--quiet"]) == 0
    assert terminal.file.getvalue() == shown  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_the_bytes_that_are_written_are_reported_after_each_tensor(name: str, tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.bfloat16)}
    entries = {
        key: Entry(value.dtype, tuple(value.shape), partial(torch.clone, value)) for key, value in tensors.items()
    }
    reported: list[int] = []
    save_entries(tmp_path / name, entries, on_written=reported.append)
    assert reported == [60, 74]
