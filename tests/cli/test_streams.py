"""Closed, full and unread standard streams of real processes."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rwkvbatch.cli.exits import ExitCode
from tests.comparison.make_run import make_run

PROGRAM = shlex.join([sys.executable, "-m", "rwkvbatch"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("streams") / "run")


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What a shell makes of `command`, in which @ is the program."""
    text = command.replace("@", PROGRAM)
    return subprocess.run(["bash", "-c", text], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", ["show RUN", "show RUN --json", "compare RUN --format csv", "--version"])
def test_a_full_standard_output_is_one_message_and_exit_code_4(arguments: str, run: Path) -> None:
    done = shell(f"@ {arguments.replace('RUN', str(run))} > /dev/full", run)
    assert done.returncode == ExitCode.INTERNAL
    first, second = done.stderr.splitlines()
    assert first == "rwkvbatch: error: input or output failed: No space left on device"
    assert second.startswith("  ")


@pytest.mark.parametrize("unbuffered", ["", "PYTHONUNBUFFERED=1"])
@pytest.mark.parametrize("arguments", ["compare RUN --json", "compare RUN --format html", "show RUN --json"])
def test_output_that_is_cut_off_is_an_error(arguments: str, unbuffered: str, run: Path, tmp_path: Path) -> None:
    command = f"PYTHONDONTWRITEBYTECODE=1 {unbuffered} @ {arguments.replace('RUN', str(run))}"
    done = shell(f"ulimit -f 1; {command} > report", tmp_path)
    assert done.returncode == ExitCode.INTERNAL
    assert "rwkvbatch: error: input or output failed: File too large" in done.stderr
    assert (tmp_path / "report").stat().st_size == 1024
    done = shell(f"{command} > report", tmp_path)
    assert done.returncode == ExitCode.DONE
    assert (tmp_path / "report").stat().st_size > 1024


@pytest.mark.parametrize("arguments", ["show RUN", "compare RUN RUN2 --metric score --changes 3", "--help"])
def test_an_encoding_that_lacks_characters_gets_escapes(arguments: str, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "other")
    command = arguments.replace("RUN2", str(tmp_path / "other")).replace("RUN", str(run))
    done = shell(f"PYTHONIOENCODING=ascii @ {command}", run)
    assert (done.returncode, done.stdout.isascii()) == (ExitCode.DONE, True), done.stderr
    assert "\\u" not in done.stdout


def test_the_program_s_own_signs_are_ascii_where_the_encoding_lacks_them_and_other_characters_are_escaped(
    tmp_path: Path,
) -> None:
    program = "from rwkvbatch.cli.exits import prepare_streams; prepare_streams(); print('score ↑ — ✓ ü ▁█')"
    done = shell(f"PYTHONIOENCODING=ascii {shlex.join([sys.executable, '-c', program])}", tmp_path)
    assert done.stdout == "score ^ - + \\xfc 18\n"


@pytest.mark.parametrize("json", ["", "--json"])
def test_output_that_nobody_reads_is_no_failed_check(json: str, run: Path) -> None:
    done = shell(f"@ show {run} {json} | true; exit ${{PIPESTATUS[0]}}", run)
    assert (done.returncode, done.stderr) == (ExitCode.UNREAD, "")


@pytest.mark.parametrize("to", [">&-", "2>&-", "0>&- 1>&- 2>&-"])
def test_closed_streams_are_no_error(to: str, run: Path) -> None:
    done = shell(f"@ show {run} {to}", run)
    assert (done.returncode, done.stderr) == (ExitCode.DONE, "")


@pytest.mark.parametrize("to", ["2>/dev/full", "2>&-"])
def test_an_error_that_nobody_can_be_told_has_its_exit_code_still(to: str, tmp_path: Path) -> None:
    assert shell(f"@ show nowhere {to}", tmp_path).returncode == ExitCode.BAD_INPUT


def test_a_run_goes_on_when_its_talk_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text('{"messages": [{"role": "user", "content": "Hi."}]}\n')
    done = shell("@ run s.jsonl --out out --max-tokens 1 2>/dev/full", tmp_path)
    assert done.returncode == ExitCode.DONE
    assert (tmp_path / "out" / "summary.json").exists()


def test_a_closed_stream_s_number_is_not_given_to_a_file_of_the_run(tmp_path: Path) -> None:
    """Or what is meant for the stream would be written between the rows."""
    program = (
        "import os; from rwkvbatch.cli.exits import prepare_streams; prepare_streams();"
        "number = os.open('results', os.O_CREAT | os.O_WRONLY); os.write(1, b'talk'); os.write(2, b'talk');"
        "raise SystemExit(number)"
    )
    done = shell(f"{shlex.join([sys.executable, '-c', program])} 0<&- 1>&- 2>&-", tmp_path)
    assert done.returncode > 2
    assert (tmp_path / "results").stat().st_size == 0
