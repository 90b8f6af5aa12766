"""Check plug-ins: of an installed package, broken, endless, and ending the process."""

from __future__ import annotations

import contextlib
import json
import os
import posix
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, NoReturn

import pytest

from rwkvbatch.errors import RowError, ScriptError, UsageError
from rwkvbatch.script import checks
from rwkvbatch.script.checks import ReplyFacts, Verdict, _Guarded, check_kinds, judge_all, parse_checks
from rwkvbatch.script.lines import SourceLine
from tests.script.writing import HERE

FACTS = ReplyFacts("abc", "stop", 1)
PACKAGE = Path(__file__).parents[1] / "plugins" / "rwkvbatch_example_check"
PROGRAM = """
import json, sys
from rwkvbatch.errors import RwkvBatchError
from rwkvbatch.script.checks import ReplyFacts, check_kinds, parse_checks
from rwkvbatch.script.lines import SourceLine
for line in sys.stdin:
    try:
        (check,) = parse_checks(json.loads(line), SourceLine("demo.jsonl", 3))
        verdict = check.judge(ReplyFacts("<think>one two</think> one two three", "stop", 3))
        print([verdict.passed, verdict.score, verdict.detail])
    except RwkvBatchError as error:
        print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the example package, without a network."""
    source = tmp_path_factory.mktemp("source")
    for path in PACKAGE.iterdir():
        if path.is_file():
            (source / path.name).write_bytes(path.read_bytes())
    target = tmp_path_factory.mktemp("target")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    completed = subprocess.run(
        [*command, "--target", str(target), str(source)], capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stderr
    return target


def judged(entries: list[object], *paths: Path) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    completed = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input="\n".join(map(json.dumps, entries)),
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=Path(__file__).parents[2],
    )
    return completed.stdout.splitlines()


def test_the_checks_of_an_installed_package_are_available(installed: Path) -> None:
    entries: list[object] = [
        {"words": 3},
        {"words": 2},
        {"words": 5, "at_least": 4},
        {"not": {"words": 2}},
        {"words": "many"},
        {"words": 3, "at_least": 9},
        {"words": 3, "ignore_case": True},
        {"explodes": {"needs a dict": 1}},
        {"explodes": {"needs a dict": "score"}},
        {"explodes": []},
    ]
    assert judged(entries, installed) == [
        "[True, 1.0, None]",
        "[False, 0.0, 'has 3 words']",
        "[False, 0.0, 'has 3 words']",
        "[True, 1.0, None]",
        "ScriptError demo.jsonl:3: expect.words: must be a number of words, got 'many'",
        "ScriptError demo.jsonl:3: expect.at_least: must be a number of words, not above the limit, got 9",
        "ScriptError demo.jsonl:3: expect: unknown key 'ignore_case'",
        "RowError the check 'explodes' failed with ZeroDivisionError: on purpose",
        "RowError the check 'explodes' gave a score outside [0, 1]: 7.0",
        "ScriptError demo.jsonl:3: expect.explodes: the plug-in cannot read this: "
        "TypeError: list indices must be integers or slices, not str",
    ]


def test_without_the_package_its_kind_is_unknown() -> None:
    (line,) = judged([{"words": 3}])
    assert line == "ScriptError demo.jsonl:3: expect: unknown key 'words'"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example package in this process, not installed."""
    monkeypatch.syspath_prepend(str(PACKAGE))
    names = {"words": "Words", "explodes": "Explodes"}
    points = {kind: EntryPoint(kind, f"{PACKAGE.name}:{name}", checks.ENTRY_POINTS) for kind, name in names.items()}
    monkeypatch.setattr(checks, "_plugins", lambda: points)


@pytest.mark.usefixtures("example")
def test_a_plug_in_that_raises_or_scores_out_of_range_is_a_row_error() -> None:
    facts = ReplyFacts("one two", "stop", 2)
    for value, message in (
        ({"needs a dict": 1}, "ZeroDivisionError: on purpose"),
        ({"needs a dict": "score"}, "outside"),
    ):
        (check,) = parse_checks({"explodes": value}, HERE)
        with pytest.raises(RowError, match=f"the check 'explodes' .*{message}"):
            check.judge(facts)
    (check,) = parse_checks({"words": 2}, HERE)
    assert check.judge(facts).passed


@pytest.mark.usefixtures("example")
def test_a_value_that_a_plug_in_cannot_read_is_refused_with_its_path() -> None:
    with pytest.raises(ScriptError, match=r"demo\.jsonl:3: expect\.explodes: the plug-in cannot read this: TypeError"):
        parse_checks({"explodes": []}, HERE)
    with pytest.raises(ScriptError, match=r"expect\.words: must be a number of words, got 'x'"):
        parse_checks({"words": "x"}, HERE)


class Uncallable:
    parse = "not callable"
    options = frozenset[str]()


@pytest.fixture
def broken_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    points = {"broken": EntryPoint("broken", "no_such_module:Thing", checks.ENTRY_POINTS)}
    points["odd"] = EntryPoint("odd", "json:dumps", checks.ENTRY_POINTS)
    points["uncallable"] = EntryPoint("uncallable", f"{__name__}:Uncallable", checks.ENTRY_POINTS)
    monkeypatch.setattr(checks, "_plugins", lambda: points)


@pytest.mark.usefixtures("broken_plugin")
@pytest.mark.parametrize("kind", ["broken", "odd", "uncallable"])
def test_a_plug_in_that_cannot_be_loaded_is_refused_by_name(kind: str) -> None:
    with pytest.raises(UsageError, match=f"the check '{kind}' is a plug-in that cannot be loaded") as caught:
        parse_checks({kind: 1}, HERE)
    assert "reinstall or remove" in str(caught.value.hint)


@pytest.mark.usefixtures("broken_plugin")
def test_a_broken_plug_in_does_not_affect_other_checks() -> None:
    assert "broken" in check_kinds()
    assert len(parse_checks({"equals": "a"}, HERE)) == 1
    with pytest.raises(ScriptError, match="unknown key 'brken'"):
        parse_checks({"brken": "a"}, HERE)


class _PluginCheck:
    def __init__(self, act: Callable[[], Any]) -> None:
        self._act = act

    def judge(self, facts: ReplyFacts) -> Verdict:
        return self._act()


def _endless() -> NoReturn:
    while True:
        with contextlib.suppress(Exception):
            sum(range(100))


def test_a_plug_in_past_its_deadline_fails() -> None:
    found = _Guarded("words", _PluginCheck(_endless), deadline_s=0.05).judge(FACTS)
    assert found == Verdict(False, 0.0, "gave up: took longer than 0.05 s", undecided=True)


@pytest.mark.parametrize("error", [SystemExit(0), ValueError("no"), GeneratorExit()])
def test_any_exception_of_a_plug_in_is_an_error_of_its_row(error: BaseException) -> None:
    def act() -> NoReturn:
        raise error

    with pytest.raises(RowError, match=f"the check 'words' failed with {type(error).__name__}"):
        _Guarded("words", _PluginCheck(act)).judge(FACTS)


ENDINGS: dict[str, Callable[[], None]] = {
    "os._exit(0)": lambda: os._exit(0),
    "os._exit(1)": lambda: posix._exit(1),
    "os.execv('/bin/true', ['true'])": lambda: os.execv("/bin/true", ["true"]),
    "os.execve('/bin/true'": lambda: os.execlpe("/bin/true", "true", {}),
}


@pytest.mark.parametrize("call", ENDINGS)
def test_a_plug_in_cannot_end_the_process(call: str) -> None:
    def act() -> Verdict:
        with contextlib.suppress(Exception):
            ENDINGS[call]()
        return Verdict(True, 1.0)

    original_exit = os._exit
    with pytest.raises(RowError, match=re.escape(f"it tried to end the process: {call}")):
        _Guarded("words", _PluginCheck(act)).judge(FACTS)
    assert os._exit is posix._exit is original_exit


def test_child_processes_of_a_plug_in_may_exit() -> None:
    def act() -> Verdict:
        child = os.fork()
        if child == 0:
            os._exit(7)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return Verdict(code == 7, 1.0, str(code))

    assert _Guarded("words", _PluginCheck(act)).judge(FACTS) == Verdict(True, 1.0, "7")


def test_a_signal_ends_the_process_while_a_plug_in_runs() -> None:
    program = (
        "import signal, time; from rwkvbatch.signals import leave_at_once, forbid_process_exit; leave_at_once()\n"
        "with forbid_process_exit(): signal.raise_signal(signal.SIGTERM)\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (143, "rwkvbatch: terminated\n")


def test_keyboard_interrupt_in_a_plug_in_is_raised() -> None:
    def act() -> NoReturn:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _Guarded("words", _PluginCheck(act)).judge(FACTS)


@pytest.mark.parametrize(
    "combine",
    [lambda entry: entry, lambda entry: {"not": entry}, lambda entry: {"not": {"all": [entry, {"equals": "x"}]}}],
)
def test_a_check_that_raises_fails_in_any_combination(
    combine: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(*_: object) -> NoReturn:
        raise MemoryError

    monkeypatch.setattr("rwkvbatch.script.checks.text.Contains.judge", judge)
    found = judge_all(parse_checks(combine({"contains": "a"}), SourceLine("a", 1)), FACTS)
    assert not found.passed
    assert found.score == 0
    assert "could not judge: MemoryError" in str(found.detail)
