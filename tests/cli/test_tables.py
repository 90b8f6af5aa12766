"""Tables at all terminal widths: no text is cut off, no line is too long or ends in spaces."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from rwkvbatch.bench.measure import Figure, Loading, Report
from rwkvbatch.cli.app import invoke
from rwkvbatch.cli.bench import figures_table
from rwkvbatch.cli.views import console, facts_table, fitted_table

WIDTHS = (40, 60, 80, 120)
NAMES = ("decode, 64 rows", "prompt, 512 tokens", "sampling with penalties")


def shown(table: Table, width: int) -> str:
    text = io.StringIO()
    Console(file=text, width=width).print(table)
    return text.getvalue()


def words(text: str) -> str:
    return " ".join(text.split())


def report(*, against: str | None) -> Report:
    figures = [
        Figure(name, "tokens/s", 123456.0, 133456.0, "products", 1.27, 12345.0 if against else None, 10.0)
        for name in NAMES
    ]
    return Report(
        "m",
        1,
        "bf16",
        "cpu",
        1,
        3,
        "wall",
        "1",
        "2",
        "x",
        None,
        Loading(0.1, 1.0, None, None),
        None,
        tuple(figures),
        against,
    )


class TestFitted:
    @staticmethod
    def table(width: int) -> Table:
        columns = {name: [f"{name} value"] for name in ("one", "two")}
        return fitted_table(["a name of it"], columns, width, min_name_width=5, optional_columns=["two"])

    @pytest.mark.parametrize(
        ("width", "kept", "lines"), [(34, "one two", 2), (33, "one two", 3), (24, "one", 2), (18, "one", 3)]
    )
    def test_columns_are_left_out_and_names_folded(self, width: int, kept: str, lines: int) -> None:
        text = shown(self.table(width), width)
        assert words(text.splitlines()[0]) == kept
        assert len(text.splitlines()) == lines
        assert max(map(len, text.splitlines())) <= width

    def test_where_nothing_fits_everything_is_folded_and_nothing_is_cut(self) -> None:
        text = shown(self.table(9), 9)
        assert "…" not in text
        assert "".join(sorted("".join(text.split()))) == "".join(sorted("anameofitoneonevalue"))


@pytest.mark.parametrize("against", [None, "rwkv 0.8"])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_benchmark_keeps_its_names_medians_and_units(width: int, against: str | None) -> None:
    text = shown(figures_table(report(against=against), width), width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for wanted in ("123,456", "tokens/s", *(["10.0"] if against else [])):
        assert text.count(wanted) == len(NAMES)
    assert ("127% of products" in text) == (width >= 80 or (width == 60 and against is None))
    for name in NAMES:
        assert all(word in text for word in name.split())


def test_facts_are_folded() -> None:
    text = shown(facts_table({"file": "/a/" + "long" * 20}), 40)
    assert "…" not in text
    assert "".join(text.split()) == "file/a/" + "long" * 20


def test_a_file_gets_no_blanks_at_the_ends_of_lines_and_a_terminal_what_rich_writes() -> None:
    table = facts_table({"a": "short", "b": "much longer"})
    for terminal in (False, True):
        text = io.StringIO()
        out = console(file=text, width=40)
        out._force_terminal = terminal
        out.print(table)
        lines = text.getvalue().splitlines()
        assert any(line != line.rstrip() for line in lines) == terminal
        assert len(lines) == 2


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tables")
    script = directory / "s.jsonl"
    lines = [
        json.dumps(
            {
                "id": f"a-conversation-with-a-long-name-{'x' * 20}{number}",
                "messages": [{"role": "user", "content": f"Hi {number}", "expect": [{"contains": "x"}]}],
            }
        )
        for number in range(2)
    ]
    script.write_text("\n".join(lines) + "\n")
    options = ["--temp", "0.3,1.0", "--top-p", "0.5,0.9", "--max-tokens", "6", "--quiet"]
    assert invoke(["run", str(script), *options, "--out", str(directory / "out")]) == 1
    assert invoke(["run", str(script), "--max-tokens", "6", "--quiet", "--out", str(directory / "one")]) == 1
    return directory / "out"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "command",
    [
        ["run", "{run}/../s.jsonl", "--temp", "0.3,1.0", "--top-p", "0.5,0.9", "--dry-run"],
        ["run", "{run}/../s.jsonl", "--temp", "0.3,1.0", "--top-p", "0.5,0.9", "--max-tokens", "6", "--out", "{run}"],
        ["compare", "{run}"],
        ["compare", "{run}", "--metric", "score", "--by", "tag"],
        ["compare", "{run}/../one"],
        ["show", "{run}"],
        ["model", "info", "{demo}"],
    ],
    ids=lambda command: "-".join(word for word in command[:2] if "{" not in word) or command[0],
)  # fmt: skip
def test_every_command_fits_and_cuts_nothing(
    command: list[str], width: int, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = Path(__file__).parents[2] / "rwkvbatch/demo/rwkv7-demo.safetensors"
    monkeypatch.setenv("COLUMNS", str(width))
    invoke([word.format(run=run, demo=demo) for word in command])
    captured = capsys.readouterr()
    one_line = ("next:", "rows are", "note:", "using", f"{run}: ")  # with a path: not wrapped, so that it can be copied
    talk = [line for line in captured.err.splitlines() if not line.startswith(one_line)]
    for line in [*captured.out.splitlines(), *talk]:
        assert "…" not in line
        assert line == line.rstrip()
        assert len(line) <= width or " " not in line.strip()
