"""Origins of settings: errors name the environment variable or file that a setting came from."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

import rwkvbatch
from rwkvbatch.cli.app import invoke
from rwkvbatch.config.sources import Origin, naming_origins, resolve_settings
from rwkvbatch.errors import CheckpointError, RwkvBatchError, UsageError
from rwkvbatch.replay.planning.grid import GridFile, make_cells


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A script in the current directory, which has no `nowhere`."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "s.jsonl"
    path.write_text('{"id": "c", "messages": [{"role": "user", "content": "Hi"}]}\n')
    return str(path)


def message_of(error: RwkvBatchError, *origins: Origin) -> str:
    with pytest.raises(RwkvBatchError) as caught, naming_origins(origins):
        raise error
    return str(caught.value)


def test_an_error_that_names_an_option_names_its_origin() -> None:
    error = UsageError("--state-memory must hold two states, got 5")
    origins = [Origin("--state", "x", "a.toml"), Origin("--state-memory", 5, "RWKVBATCH_STATE_MEMORY")]
    assert message_of(error, *origins) == (
        "--state-memory must hold two states, got 5 (--state-memory is from RWKVBATCH_STATE_MEMORY)"
    )


@pytest.mark.parametrize("path", ["~/m", "~/m.pth", "~/m.safetensors"])
def test_an_error_about_a_file_names_the_origin_of_the_setting_with_its_path(path: str) -> None:
    error = CheckpointError("is damaged", path=Path(path).expanduser())
    assert message_of(error, Origin("--model", "~/m", "a.toml")).endswith("is damaged (--model is from a.toml)")


def test_an_error_about_another_file_is_unchanged() -> None:
    error = CheckpointError("is damaged", path="other.pth")
    assert message_of(error, Origin("--model", "m", "a.toml")) == "other.pth: is damaged"


def test_an_origin_that_the_message_already_names_is_not_added() -> None:
    error = UsageError("RWKVBATCH_TOP_P must be a number, --top-p too")
    assert "(" not in message_of(error, Origin("--top-p", "x", "RWKVBATCH_TOP_P"))


def test_of_several_values_only_the_origin_of_the_one_in_the_message_is_named() -> None:
    origins = [
        Origin("--strategy", "cpu fp9", "a.toml", is_only=False),
        Origin("--strategy", "cpu fp8", "b.toml", is_only=False),
    ]
    assert message_of(UsageError("--strategy cannot be 'cpu fp8'"), *origins).endswith("(--strategy is from b.toml)")


def test_the_origin_of_an_error_is_pickled_with_it() -> None:
    error = CheckpointError("is damaged", path="m.pth")
    error.add_origin("--model is from a.toml")
    copied = pickle.loads(pickle.dumps(error))
    assert (str(copied), copied.path) == (str(error), "m.pth")


def test_layers_record_the_origins_of_settings_not_given_on_the_command_line(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('preset = "creative"\nmodel = "m"\nseed = 1\ntop_k = 3\n')
    environment = {"RWKVBATCH_SEED": "2", "RWKVBATCH_TEMP": "0.5"}
    resolved = resolve_settings({"top_k": 4}, environment=environment, config=config)
    origins = {origin.option: (origin.value, origin.place) for origin in resolved.origins}
    assert origins["--model"] == ("m", str(config))
    assert origins["--frequency"] == (0.4, str(config))
    assert origins["--seed"] == (2, "RWKVBATCH_SEED")
    assert origins["--temp"] == (0.5, "RWKVBATCH_TEMP")
    assert "--top-k" not in origins


def test_a_grid_file_records_the_values_of_its_cells() -> None:
    file = GridFile("g.toml", {"grid": {"model": ["a", "b"]}, "cells": {"own": {"state": "s"}}})
    cells = make_cells({"temperature": ["0.1", "0.2"]}, file)
    assert [(origin.option, origin.value) for origin in file.origins(cells)] == [
        ("--model", "a"),
        ("--model", "b"),
        ("--state", "s"),
    ]


class TestCommands:
    @pytest.mark.parametrize("command", ["run", "chat", "bench"])
    def test_a_missing_model_from_the_environment_is_named_with_its_variable(
        self, command: str, script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("RWKVBATCH_MODEL", "nowhere/m")
        assert invoke([command, *([script] if command == "run" else [])]) == 3
        assert "nowhere/m: there is no such file (" in (message := capsys.readouterr().err)
        assert "from RWKVBATCH_MODEL)" in message

    def test_a_missing_model_from_the_command_line_has_no_origin(
        self, script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("RWKVBATCH_MODEL", "nowhere/m")
        assert invoke(["run", script, "--model", "nowhere/m"]) == 3
        assert "RWKVBATCH_MODEL" not in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("setting", "code"),
        [
            ('model = "nowhere/m"', 3),
            ('state = "nowhere/s.pth"', 3),
            ('template = "nowhere/t.jinja"', 3),
            ('prelude = "nowhere/p.txt"', 2),
            ('strategy = "cpu fp9"', 2),
            ('backend = "fast"', 2),
            ("state_memory = 7", 2),
            ("ban = [70000]", 2),
            ('only = ["nobody"]', 2),
            ("until_ci = 0.1", 2),
            ('devices = ["cpu", "cpu"]\nworkers = 1', 2),
            ('ray = "ray://x:1"', 2),
            ('[grid]\nmodel = ["nowhere/m"]', 3),
        ],
    )
    def test_an_error_about_a_setting_of_a_config_file_names_the_file(
        self, setting: str, code: int, script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = tmp_path / "c.toml"
        config.write_text(setting + "\n")
        assert invoke(["run", script, "--config", str(config), "--out", str(tmp_path / "out")]) == code
        assert f" from {config})" in capsys.readouterr().err

    def test_errors_of_the_library_name_origins(
        self, script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RWKVBATCH_MODEL", "nowhere/m")
        with pytest.raises(CheckpointError, match=r"\(from RWKVBATCH_MODEL\)"):
            rwkvbatch.load_model()
        (config := tmp_path / "c.toml").write_text("workers = 1\ndevices = ['cpu', 'cpu']\n")
        with pytest.raises(UsageError, match=r"\(--workers and --devices are from .*c\.toml\)"):
            rwkvbatch.run(script, config=config)
