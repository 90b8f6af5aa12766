from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest

from rwkvbatch.config import GRID_SETTINGS, PRESETS, RunSettings, SamplingParams, ScriptLimits
from rwkvbatch.config.names import ALIASES, full_name, option_name
from rwkvbatch.config.sources import resolve_settings
from rwkvbatch.errors import ScriptError, UsageError
from rwkvbatch.prompt.templates import load_prelude
from rwkvbatch.replay.prepare import RunKeywords, prepare, split_lists


def config_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    return path


class TestLayers:
    def test_each_layer_overrides_the_layers_below(self, tmp_path: Path) -> None:
        config = config_file(tmp_path, "temperature = 0.1\ntop_p = 0.1\ntop-k = 1\n")
        environment = {"RWKVBATCH_TEMP": "0.2", "RWKVBATCH_TOP_P": "0.2", "HOME": "/"}
        settings = resolve_settings({"temperature": "0.3"}, environment=environment, config=config).settings
        assert (settings.temperature, settings.top_p, settings.top_k, settings.penalty_decay) == (0.3, 0.2, 1, 0.996)

    def test_only_the_command_line_is_explicit(self, tmp_path: Path) -> None:
        config = config_file(tmp_path, "top_p = 0.1\n")
        resolved = resolve_settings({"temp": 1}, environment={"RWKVBATCH_SEED": "3"}, config=config)
        assert resolved.explicit == {"temperature"}

    def test_a_preset_sets_all_sampling_settings_of_its_layer(self, tmp_path: Path) -> None:
        config = config_file(tmp_path, "temperature = 0.7\nmax_tokens = 9\n")
        resolved = resolve_settings({"preset": "creative", "top_p": 0.5}, config=config)
        assert resolved.settings.sampling == PRESETS["creative"].replace(top_p=0.5)
        assert resolved.settings.max_tokens == 9
        assert "frequency_penalty" in resolved.explicit

    def test_a_range_of_repeats_sets_repeats_and_max_repeats(self) -> None:
        settings = resolve_settings({"repeats": "3..9", "until_ci": "0.1"}).settings
        assert (settings.repeats, settings.max_repeats, settings.until_ci) == (3, 9, 0.1)

    @pytest.mark.parametrize("text", ["2..1", "1..1", "3..", "..3", "2...3", "a..3", "3..2000000"])
    def test_a_wrong_range_of_repeats_names_the_option_and_the_range(self, text: str) -> None:
        allowed = "--repeats must be N or LOW..HIGH, whole numbers in [1, 1000000] with LOW <= HIGH and HIGH >= 2"
        with pytest.raises(UsageError, match=re.escape(f"{allowed}, got {text}")):
            resolve_settings({"repeats": text})

    @pytest.mark.parametrize("short", ALIASES)
    def test_short_names_are_accepted_and_two_names_of_one_setting_are_refused(self, short: str) -> None:
        full = ALIASES[short]
        value = 0 if short == "ban" else 0.25
        assert resolve_settings({short: value}).settings == resolve_settings({full: value}).settings
        with pytest.raises(UsageError, match="given twice"):
            resolve_settings({short: value, full: value})

    def test_lists_in_the_environment_are_split_at_commas(self) -> None:
        environment = {"RWKVBATCH_BAN": "0, 261", "RWKVBATCH_ONLY": "a,b"}
        settings = resolve_settings({}, environment=environment).settings
        assert (settings.banned_token_ids, settings.only) == ((0, 261), ("a", "b"))

    @pytest.mark.parametrize(("text", "size"), [("4096", 4096), ("512M", 2**29), ("1.5 GiB", 3 * 2**29)])
    def test_memory_is_a_number_of_bytes_or_has_a_unit(self, text: str, size: int) -> None:
        assert resolve_settings({"state_memory": text}).settings.state_memory == size

    def test_a_single_value_is_accepted_for_a_list(self, tmp_path: Path) -> None:
        settings = resolve_settings({"ban": 0}, config=config_file(tmp_path, 'stop = "a,b"\n')).settings
        assert (settings.banned_token_ids, settings.stop) == ((0,), ("a,b",))


class TestErrors:
    def test_an_unknown_key_is_refused_with_its_file_and_close_matches(self, tmp_path: Path) -> None:
        config = config_file(tmp_path, "temprature = 1\n")
        with pytest.raises(UsageError, match=r"settings\.toml: temprature: unknown setting; did you mean temperature"):
            resolve_settings({}, config=config)

    def test_an_unknown_variable_of_the_environment_is_refused(self) -> None:
        with pytest.raises(UsageError, match="RWKVBATCH_TEMPERATUR: unknown setting; did you mean temperature"):
            resolve_settings({}, environment={"RWKVBATCH_TEMPERATUR": "1"})

    def test_variables_that_are_not_settings_are_ignored(self) -> None:
        assert resolve_settings({}, environment={"RWKVBATCH_DEBUG": "1"}).settings == resolve_settings({}).settings

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("top_p", "1.3", "--top-p must be a number in [0, 1], got 1.3"),
            ("temperature", "warm", "--temp must be a number in [0, 100], got warm"),
            ("top_k", "2.5", "--top-k must be a whole number in [0, 2147483647], got 2.5"),
            ("max_seconds", 0, "--max-seconds must be a number in (0, 1000000000], got 0"),
            ("temperature", "nan", "--temp must be a number in [0, 100], got nan"),
            (
                "order",
                "top",
                "--order must be 'top-p-first', 'top-k-first', 'temperature-first' or 'temperature-top-k', got top",
            ),
            (
                "state_memory",
                "much",
                "--state-memory must be a number of bytes in [1, 9223372036854775807], such as 512M or 2G, got much",
            ),
            (
                "state_memory",
                "9" * 400 + "G",
                "--state-memory must be a number of bytes in [1, 9223372036854775807], such as 512M or 2G",
            ),
            ("system", "a\udcff", "--system must be UTF-8 text, got a"),
            ("reply_prefix", "a\udcff", "--reply-prefix must be UTF-8 text, got a"),
            ("endpoint_model", "a\udcff", "--endpoint-model must be UTF-8 text, got a"),
            ("ban", ["3", "x"], "--ban must be token ids, whole numbers in [0, 2147483647], got x"),
            ("stop", ["a", ""], "--stop must be texts, none of them empty, got ''"),
            ("max_tokens", True, "--max-tokens must be a whole number in [1, 1000000], got True"),
            ("temperature", True, "--temp must be a number in [0, 100], got True"),
            ("ban", [True], "--ban must be token ids, whole numbers in [0, 2147483647], got"),
            ("seed", 2**64, "--seed must be a whole number in [0, 9223372036854775808), got 18446744073709551616"),
            ("seed", "9" * 5000, f"--seed must be a whole number in [0, 9223372036854775808), got '{'9' * 58}…"),
            ("repeats", "1.." + "9" * 5000, "--repeats must be N or LOW..HIGH, whole numbers in [1, 1000000] with LOW"),
            ("seed", False, "--seed must be a whole number in [0, 9223372036854775808), got False"),
            ("devices", ["cuda:0", "gpu"], "--devices must be cpu, cuda, or cuda:N, got gpu"),
            (
                "max_line_bytes",
                0,
                "--max-line-bytes must be a number of bytes in [1, 9223372036854775807], such as 512M or 2G, got 0",
            ),
            ("preset", "wild", "--preset must be one of default, greedy"),
        ],
    )
    def test_an_invalid_value_is_refused_with_its_option_and_what_is_allowed(
        self, key: str, value: Any, message: str
    ) -> None:
        with pytest.raises(UsageError) as caught:
            resolve_settings({key: value})
        assert str(caught.value).startswith(message)

    @pytest.mark.parametrize("content", [b"temperature = ", b"\xff\xfe", b"a = 1\na = 2"])
    def test_a_file_that_is_not_toml_is_refused(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "x.toml"
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"--config .*x\.toml: not a TOML file"):
            resolve_settings({}, config=path)

    def test_a_missing_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"--config .*none\.toml: cannot be read: No such file"):
            resolve_settings({}, config=tmp_path / "none.toml")

    def test_the_hint_for_a_missing_prelude_names_the_built_in_ones(self) -> None:
        with pytest.raises(UsageError, match="cannot be read") as caught:
            load_prelude("nowhere.txt")
        assert "api-demo-chat" in str(caught.value.hint)

    def test_a_built_in_prelude_needs_no_file(self) -> None:
        assert load_prelude("api-demo-chat").startswith("User: hi\n\nAssistant:")


class TestLists:
    def test_a_path_with_a_comma_whose_file_exists_is_one_path(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for name in ("a,b.pth", "c.pth"):
            (tmp_path / name).touch()
        assert split_lists({"model": "a,b.pth"}) == ({"model": "a,b.pth"}, {})
        assert split_lists({"model": "a,b"}) == ({"model": "a,b"}, {})
        assert split_lists({"model": "c.pth, a,b.pth,x,y"})[1] == {"model": ["c.pth", "a,b.pth", "x", "y"]}

    def test_a_comma_list_is_a_dimension_and_a_single_value_is_not(self) -> None:
        single, several = split_lists({"temp": "0.3, 0.7", "top_p": "0.5", "stop": ["a,b"]})
        assert several == {"temperature": ["0.3", "0.7"]}
        assert single == {"top_p": "0.5", "stop": ["a,b"]}

    def test_an_empty_item_is_refused(self) -> None:
        with pytest.raises(UsageError, match="--temp has an empty item"):
            split_lists({"temp": "0.3,,0.7"})

    def test_option_names_are_those_of_the_command_line(self) -> None:
        assert [option_name(key) for key in ("temperature", "top_p")] == ["--temp", "--top-p"]


class TestPreparing:
    def test_a_setting_for_all_cells_and_for_some_is_refused(self, tmp_path: Path) -> None:
        grid = tmp_path / "grid.toml"
        grid.write_text("[grid]\ntemperature = [0.3, 0.7]\n")
        with pytest.raises(UsageError, match="--temp is given for all cells, and the grid gives it for some"):
            prepare("x.jsonl", temperature=1, grid=grid)

    def test_a_grid_overrides_a_preset(self, tmp_path: Path) -> None:
        script = tmp_path / "s.jsonl"
        script.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
        plan = prepare(script, preset="greedy", frequency_penalty=[0, 0.5]).plan
        assert [(c.temperature, c.frequency_penalty) for c in plan.cell_settings] == [(0.0, 0.0), (0.0, 0.5)]

    def test_a_grid_in_the_config_file_makes_cells(self, tmp_path: Path) -> None:
        script = tmp_path / "s.jsonl"
        script.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
        config = config_file(tmp_path, "top_p = 0.9\n[grid]\ntemperature = [0.3, 0.7]\n")
        plan = prepare(script, config=config).plan
        assert [cell.name for cell in plan.cells] == ["temp=0.3", "temp=0.7"]
        assert [settings.top_p for settings in plan.cell_settings] == [0.9, 0.9]

    def test_the_limits_of_a_script_are_settings(self, tmp_path: Path) -> None:
        script = tmp_path / "s.jsonl"
        script.write_text('{"messages": [{"role": "user", "content": "hi"}, {"role": "user", "content": "ho"}]}\n')
        for limit, refused in (("max_line_bytes", "20"), ("max_turns", "1")):
            with pytest.raises(ScriptError, match=r"s\.jsonl:1: .*\b(longer|more) than") as caught:
                prepare(script, config=config_file(tmp_path, f"{limit} = {refused}\n"))
            assert f"RWKVBATCH_{limit.upper()}" in str(caught.value.hint)
        script.write_text(2 * '{"messages": [{"role": "user", "content": "hi"}]}\n')
        with pytest.raises(UsageError, match="more than 1 conversations"):
            prepare(script, environment={"RWKVBATCH_MAX_CONVERSATIONS": "1"})
        assert resolve_settings({"max_line_bytes": "50M"}).settings.script_limits == ScriptLimits(
            max_line_bytes=50 * 2**20
        )

    @pytest.mark.parametrize(
        "values", [{"max_repeats": 5}, {"until_ci": 0.1}, {"repeats": 5, "max_repeats": 3, "until_ci": 1}]
    )
    def test_adaptive_repeats_need_both_settings(self, values: dict[str, Any]) -> None:
        with pytest.raises(UsageError, match="--repeats"):
            prepare("x.jsonl", **values)


def test_the_librarys_keywords_are_the_settings() -> None:
    fields = set(RunSettings.model_fields) - {"model"}  # a parameter of its own
    assert set(RunKeywords.__annotations__) == fields | {"preset", "temp", "system_file"}


def test_the_librarys_keywords_take_lists_where_settings_can_be_a_dimension() -> None:
    listed = {name for name, kind in RunKeywords.__annotations__.items() if "| Sequence" in kind.__forward_arg__}
    assert {ALIASES.get(name, name) for name in listed} == set(GRID_SETTINGS) - {"model"}


def kinds_of(annotation: Any) -> set[Any]:
    """The types and literal values in an annotation, without containers."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return set(arguments)
    if origin is Annotated:
        return kinds_of(arguments[0])
    if not arguments:
        return {annotation} - {type(None), ...}
    return set().union(*map(kinds_of, arguments))


def test_the_librarys_keywords_have_the_settings_types() -> None:
    for name, annotation in get_type_hints(RunKeywords).items():
        kinds = kinds_of(annotation)
        if name == "preset":
            assert kinds == {str}
            continue
        if name == "system_file":  # whose content is a setting
            assert str in kinds
            continue
        declared = kinds_of(RunSettings.model_fields[full_name(name)].annotation)
        assert declared <= kinds, name
        # `2G` bytes and `N..M` repeats are text.
        text = name in ("repeats", "state_memory", "max_line_bytes")
        assert kinds - declared == ({str} if text else {bool} if name == "bos" else set()), name


NUMBERS = sorted(
    name
    for name, field in RunSettings.model_fields.items()
    if set(get_args(field.annotation) or (field.annotation,)) & {int, float} and name not in ("race",)
)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**400])
def test_numbers_beyond_64_bits_are_refused(name: str, value: int) -> None:
    with pytest.raises(UsageError, match=name):
        RunSettings.parse({name: value})


def test_a_number_beyond_64_bits_in_a_script_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "script.jsonl"
    line = '{"messages": [{"role": "user", "content": "x"}], "params": {"top_k": 9223372036854775808}}'
    script.write_text(line + "\n")
    with pytest.raises(
        ScriptError, match=r"params: top_k: must be a whole number in \[0, 2147483647\], got 9223372036854"
    ):
        prepare([str(script)])


@pytest.mark.parametrize(
    "changes", [{"stop": b"x"}, {"stop": [b"x"]}, {"temperature": b"1"}, {"order": b"top-k-first"}]
)
def test_bytes_are_no_value_of_a_setting(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(changes))}: must .*, got .*b'"):
        SamplingParams(**changes)
