"""FIFOs, devices, endless, huge and hostile files instead of any file that a command reads are refused."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.cli.app import invoke
from rwkvbatch.config.sources import read_toml
from rwkvbatch.errors import RunDamagedError, TemplateError, UsageError
from rwkvbatch.files import read_file
from rwkvbatch.prompt.jinja import read_template
from rwkvbatch.results.recovery import read_results
from rwkvbatch.results.row_codec import decode_row, digest_of, encode_row, with_digest
from tests.replay.fakes import make_row


def fifo(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


SPECIAL = [fifo, endless, huge]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps({"id": "c", "messages": [{"role": "user", "content": "Hi"}]}) + "\n")
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("runs")
    path = parent / "s.jsonl"
    path.write_text(json.dumps({"id": "c", "messages": [{"role": "user", "content": "Hi"}]}) + "\n")
    assert invoke(["run", str(path), "--out", str(parent / "run"), "--max-tokens", "2", "--quiet"]) == 0
    for command in ("show", "compare"):  # imports pandas and pyarrow now: they take much address space
        assert invoke([command, str(parent / "run")]) == 0
    return parent / "run"


@contextmanager
def little_memory(extra: int = 2**30) -> Iterator[None]:
    """At most `extra` bytes of address space beyond what is used now."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + extra, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("make", SPECIAL)
@pytest.mark.parametrize("option", ["--config", "--grid", "--template", "--prelude", "--state", "--model"])
def test_a_file_of_an_option_is_refused_with_its_name(
    option: str, make: Callable[[Path], None], script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "it")
    with little_memory():
        code = invoke(["run", str(script), option, str(tmp_path / "it"), "--out", str(tmp_path / "out")])
    assert code in (2, 3)
    said = capsys.readouterr().err
    assert str(tmp_path / "it") in said
    assert "internal" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("make", SPECIAL)
@pytest.mark.parametrize("name", ["manifest.json", "results.jsonl", "status.json", "summary.json", "skipped.jsonl"])
@pytest.mark.parametrize("command", ["show", "compare", "run"])
def test_a_file_of_a_run_directory_holds_no_command_up(
    command: str,
    name: str,
    make: Callable[[Path], None],
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / name).unlink(missing_ok=True)
    make(run / name)
    arguments = [command, str(run)]
    if command == "run":
        arguments = ["run", str(finished.parent / "s.jsonl"), "--out", str(run), "--max-tokens", "2"]
    with little_memory():
        code = invoke(arguments)
    said = capsys.readouterr().err
    assert "internal" not in said
    if name in ("manifest.json", "results.jsonl"):
        assert code == 3
        assert name in said
    else:
        assert code in (0, 1)


@pytest.mark.parametrize("make", SPECIAL)
def test_a_session_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "session.json")
    with little_memory(), pytest.raises(OSError, match=r"regular file|larger than"):
        read_file(tmp_path / "session.json", 2**30)


def test_a_line_of_gigabytes_costs_no_memory_and_is_damage(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    with (run / "results.jsonl").open("r+b") as file:
        file.truncate(2**29)  # zeros, which take no room on the disk
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + encode_row(make_row("d")))
    with little_memory(2**29), pytest.raises(RunDamagedError) as caught:
        list(read_results(run / "results.jsonl"))
    assert caught.value.line == 2


class TestSettingsFiles:
    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (".".join(["a"] * 50_000) + " = 1", "key of more than 16 parts"),
            ("[" + ".".join(["a"] * 50_000) + "]", "key of more than 16 parts"),
            ("x = {" + ".".join(["a"] * 50_000) + " = 1}", "key of more than 16 parts"),
            ("seed = " + "9" * 5000, "not a TOML file: it has an integer of more than 4,300 digits"),
            ("x = " + "[" * 5000, "not a TOML file: it is nested too deeply"),
            ("temp = nope", "not a TOML file"),
        ],
    )
    def test_one_that_would_exhaust_the_parser_is_refused(self, content: str, said: str, tmp_path: Path) -> None:
        path = tmp_path / "settings.toml"
        path.write_text(content)
        with little_memory(2**28), pytest.raises(UsageError, match=said):
            read_toml(path, "--config")

    def test_dots_in_values_and_comments_are_no_keys(self, tmp_path: Path) -> None:
        path = tmp_path / "settings.toml"
        dots = ".".join(["a"] * 100)
        path.write_text(f'stop = ["{dots}", "...................."]\n# {dots}\n[grid]\ntemp = [0.3, 1.0]\n')
        assert read_toml(path, "--config")["stop"][0] == dots


def test_a_template_nested_too_deeply_is_bad_input(tmp_path: Path) -> None:
    path = tmp_path / "deep.jinja"
    path.write_text(
        "{% macro user(text) %}"
        + "{% if text %}" * 110
        + "x"
        + "{% endif %}" * 110
        + "{% endmacro %}{% set closing='' %}"
    )
    with pytest.raises(TemplateError, match="nested too deeply"):
        read_template(str(path), "off")


class TestRowsOfAnotherProgram:
    """The checksum is right and the row is not."""

    def sealed(self, **changes: Any) -> bytes:
        values = {key: value for key, value in json.loads(encode_row(make_row("c"))).items() if key != "crc"}
        for name, value in changes.items():
            *path, last = name.split("__")
            inner = values
            for key in path:
                inner = inner[key]
            inner[last] = value
        body = json.dumps(values, separators=(",", ":")).encode()
        return b'%s,"crc":"%08x"}\n' % (body[:-1], zlib.crc32(body))

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"reply": 3}, "reply must be a string, got 3"),
            ({"repeat": True}, "repeat must be an integer"),
            ({"turn": -1}, "turn must be at least 0, got -1"),
            ({"seed": 2**64}, "seed must be a"),
            ({"finish_reason": "tired"}, "finish_reason must be one of eos, error, length, scored, stop"),
            ({"finish_reason": []}, "finish_reason must be a string"),
            ({"reply_ids": [1, 2**31]}, "reply_ids must contain token ids, got 2147483648"),
            ({"reply_ids": [1, True]}, "reply_ids.1 must be an integer, got true"),
            ({"reply_ids": "abc"}, "reply_ids must be an array"),
            ({"tags": [1]}, "tags.0 must be a string, got 1"),
            ({"tokens__reply": 1.5}, "tokens.reply must be an integer"),
            ({"tokens": []}, "tokens must be an object"),
            ({"logprob__sum": float("nan")}, "logprob.sum must be a finite number"),
            ({"timing__total_s": "1"}, 'timing.total_s must be a number, got "1"'),
            (
                {"checks": [{"kind": "x", "expected": 1, "passed": 1, "score": 1.0}]},
                "checks.0.passed must be true or false, got 1",
            ),
            (
                {"checks": [{"kind": "x", "expected": 1, "passed": True, "score": 2.0}]},
                "checks.0.score must be at most 1.0, got 2.0",
            ),
            ({"reference": {"text": "x"}}, "reference.nll is missing"),
        ],
    )
    def test_it_is_damage_in_every_command_and_not_a_torn_tail(
        self, changes: dict[str, Any], said: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = tmp_path / "run"
        shutil.copytree(finished, run)
        (run / "results.jsonl").write_bytes(self.sealed(**changes))
        script = str(finished.parent / "s.jsonl")
        for arguments in (["show"], ["compare"], ["run", script, "--max-tokens", "2", "--out"]):
            assert invoke([*arguments, str(run)]) == 3
            error = capsys.readouterr().err
            assert said in error
            assert "results.jsonl:1" in error

    def test_the_row_as_it_was_is_none(self) -> None:
        assert decode_row(self.sealed()) == make_row("c")

    def test_a_token_id_outside_the_vocabulary_is_damage_and_repaired(
        self, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = tmp_path / "run"
        shutil.copytree(finished, run)
        before = [row.reply_ids for row in read_results(run / "results.jsonl")]
        digest = digest_of((run / "results.jsonl").read_bytes().splitlines(keepends=True)[0])
        (run / "results.jsonl").write_bytes(with_digest(self.sealed(reply_ids=[5, 65536]), digest))
        arguments = ["run", str(finished.parent / "s.jsonl"), "--max-tokens", "2", "--out", str(run)]
        assert invoke(arguments) == 3
        assert "its token id 65536 is not in the model's vocabulary" in capsys.readouterr().err
        assert invoke([*arguments, "--repair"]) == 0
        assert [row.reply_ids for row in read_results(run / "results.jsonl")] == before


@pytest.mark.parametrize(
    ("arguments", "number", "code"),
    [
        (["run", "PIPE", "--out", "OUT"], signal.SIGTERM, 143),
        (["run", "PIPE", "--dry-run"], signal.SIGINT, 130),
        (["run", "-", "--out", "OUT"], signal.SIGINT, 130),
    ],
)
def test_the_first_signal_ends_the_wait_for_a_script_that_does_not_come(
    arguments: list[str], number: signal.Signals, code: int, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    names = {"PIPE": str(tmp_path / "pipe"), "OUT": str(tmp_path / "out")}
    process = subprocess.Popen(
        [sys.executable, "-m", "rwkvbatch", *(names.get(word, word) for word in arguments)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 60
        while not is_waiting(process.pid):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert b"Traceback" not in error
    assert not (tmp_path / "out").exists()


def is_waiting(process: int) -> bool:
    """Whether the process waits in `open` or `read` of a pipe."""
    return Path(f"/proc/{process}/wchan").read_text() in ("wait_for_partner", "pipe_read", "anon_pipe_read")
