"""Deadlines of Python code."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from rwkvbatch.deadline import deadline


def loop() -> None:
    while True:
        pass


def loop_and_catch_everything() -> None:
    try:
        loop()
    except BaseException:  # as careless foreign code does
        return


def test_a_block_that_goes_on_is_interrupted() -> None:
    with pytest.raises(TimeoutError, match=r"0\.05 s"), deadline(0.05):
        loop()


def test_a_block_that_catches_everything_is_late_all_the_same() -> None:
    with pytest.raises(TimeoutError), deadline(0.05):
        loop_and_catch_everything()


def test_a_block_in_one_call_of_c_that_ends_late_is_late() -> None:
    with pytest.raises(TimeoutError), deadline(0.05):
        time.sleep(0.2)


def test_a_block_in_time_has_its_result_and_its_own_errors() -> None:
    with deadline(60):
        total = sum(range(10))
    assert total == 45
    with pytest.raises(KeyError), deadline(60):
        raise KeyError("a")


def test_blocks_leave_nothing_for_the_interpreter_to_look_for() -> None:
    """CPython 3.11 loops for ever in a profiled call while an asynchronous exception is announced and none is there."""
    program = (
        "import sys\n"
        "from rwkvbatch.deadline import deadline\n"
        "with deadline(60): pass\n"
        "try:\n"
        "    with deadline(0.05):\n"
        "        while True: pass\n"
        "except TimeoutError: pass\n"
        "sys.setprofile(lambda *_: None)\n"
        "(lambda: None)()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert done.returncode == 0
