"""Command line options derived from the declaration of the settings."""

from __future__ import annotations

import re
from typing import Any

import pytest
from typer.core import TyperOption

from rwkvbatch.cli.app import COMMANDS, invoke, load_command
from rwkvbatch.cli.command import Command
from rwkvbatch.cli.exits import ExitCode
from rwkvbatch.config import LISTS, SETTINGS, TEXTS, CellSettings, RunSettings
from rwkvbatch.config.names import option_name
from rwkvbatch.config.setting import Setting
from rwkvbatch.errors import UsageError


def options_of(command: str) -> dict[str, Any]:
    return {parameter.name: parameter for parameter in load_command(command).params}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_commands_help_begins_with_what_the_list_of_commands_says(command: str) -> None:
    assert " ".join(load_command(command).help.split("\n\n")[0].split()) == COMMANDS[command]


def all_commands() -> list[Any]:
    """All commands, those of groups in place of the groups."""
    found = [load_command(name) for name in COMMANDS]
    return [each for command in found for each in getattr(command, "commands", {"": command}).values()]


@pytest.mark.parametrize("command", all_commands(), ids=lambda command: command.name)
def test_every_command_refuses_options_given_twice_and_fills_its_help(command: Any) -> None:
    assert isinstance(command, Command)
    assert all("\n" not in paragraph for paragraph in (command.help or "").split("\n\n"))
    one_value = next(
        (
            option
            for option in command.params
            if isinstance(option, TyperOption) and not (option.multiple or option.is_flag or option.count)
        ),
        None,
    )
    if one_value is not None:
        name = one_value.opts[0]
        with pytest.raises(UsageError, match=f"{name} is given twice"):
            command.make_context(command.name, [name, "1", name, "2"])


@pytest.mark.parametrize("command", all_commands(), ids=lambda command: command.name)
def test_every_command_refuses_empty_paths(command: Any) -> None:
    for param in command.params:
        if "Path" in str(param.type_descriptor.annotation) or param.metavar in ("FILE", "RUN...", "SCRIPT", "MODEL"):
            is_option = isinstance(param, TyperOption)
            name = param.opts[0] if is_option else param.metavar.removesuffix("...")
            before = [each for each in command.params if not isinstance(each, TyperOption)]
            for empty in ("", " "):
                arguments = [name, empty] if is_option else ["x"] * before.index(param) + [empty]
                with pytest.raises(UsageError, match=f"{name} must be a path, got {empty!r}"):
                    command.make_context(command.name, arguments)


@pytest.mark.parametrize(
    ("command", "names"),
    [
        *((command, ["vocab"]) for command in ("run", "score", "chat", "serve", "certify")),
        *((command, ["repair", "retry_errors", "skip_bad"]) for command in ("run", "score")),
    ],
)
def test_a_command_has_the_options_that_errors_of_its_work_name(command: str, names: list[str]) -> None:
    assert set(names) <= options_of(command).keys()


@pytest.mark.parametrize(
    ("command", "arguments", "problem"),
    [
        ("compare", ["a", "--margin", "much"], "--margin must be a number, got 'much'"),
        ("show", ["a", "--repeat", "1.5"], "--repeat must be a whole number, at least 0, got '1.5'"),
        ("show", ["a", "--limit", "0"], "--limit must be a whole number, at least 1, got '0'"),
        ("serve", ["--port", "99999"], r"--port must be a whole number in \[0, 65535\], got '99999'"),
        ("show", ["a", "--turn", "-1"], "--turn must be a whole number, at least 0, got '-1'"),
        ("show", ["a", "--limit", "9" * 5000], f"--limit must be a whole number, at least 1, got '{'9' * 58}…"),
        ("random", ["1x64", "x", "--seed", str(2**64)], rf"--seed must be .* in \[0, {2**63 - 1}\], got '{2**64}'"),
        ("quantize", ["a", "b", "--to", "int9"], "--to must be one of w8a8, int4, got 'int9'"),
        ("convert", ["a", "b", "--dtype="], "--dtype must be one of bf16, fp16, fp32, got ''"),
    ],
)
def test_a_wrong_number_or_word_is_refused_with_what_is_allowed(
    command: str, arguments: list[str], problem: str
) -> None:
    option = next(word for word in arguments if word.startswith("--")).partition("=")[0]
    named = [each for each in all_commands() if each.name == command]
    (chosen,) = [each for each in named if any(option in parameter.opts for parameter in each.params)]
    with pytest.raises(UsageError, match=f"^{problem}$"):
        chosen.make_context(command, arguments)


def test_every_setting_is_declared_once() -> None:
    for name, field in RunSettings.model_fields.items():
        (declared,) = [item for item in field.metadata if isinstance(item, Setting)]
        assert SETTINGS[name] is declared
    assert set(SETTINGS) == {*RunSettings.model_fields, "preset", "system_file"}


def test_run_has_an_option_for_every_setting_that_has_one() -> None:
    options = options_of("run")
    for name, setting in SETTINGS.items():
        assert (name in options) == (setting.panel is not None), name
        if setting.panel is not None:
            assert option_name(name) in options[name].opts
            assert options[name].multiple == (name in LISTS | TEXTS)
            assert (setting.flag in options[name].opts) == (setting.flag is not None)
            assert options[name].rich_help_panel == setting.panel


@pytest.mark.parametrize("command", ["chat", "bench"])
def test_other_commands_have_some_of_them_under_the_same_names(command: str) -> None:
    shared = options_of(command).keys() & SETTINGS.keys()
    assert {"model", "strategy", "backend", "threads"} <= shared
    for name in shared:
        assert options_of(command)[name].opts == options_of("run")[name].opts


def test_the_help_of_a_setting_is_that_of_its_option(capsys: pytest.CaptureFixture[str]) -> None:
    from rwkvbatch.cli.app import invoke

    assert invoke(["run", "--help"]) == 0
    shown = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    for name in CellSettings.model_fields:
        assert re.sub(r"\[/?\w*\]", "", SETTINGS[name].help) in shown


@pytest.mark.parametrize(
    "command", [["bench"], ["model", "verify"], ["model", "damage", "--against", "cpu int8", "--texts", "x"]]
)
@pytest.mark.parametrize("given", ["two", "-1", "1.5", "", "0", "1025", str(2**64)])
def test_threads_must_be_a_number(command: list[str], given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke([*command, "--threads", given]) == ExitCode.USAGE
    shown = given or "''"
    assert f"--threads must be a whole number in [1, 1024], got {shown}" in " ".join(capsys.readouterr().err.split())
