"""The Python examples of the documents run; those of `docs/library.md` in turn, and they print what the page says."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import rwkvbatch
from rwkvbatch.model.model_files import BUNDLED_MODEL

ROOT = Path(__file__).parents[1]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names defined by all examples; `printed` holds the output of each example."""
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "datasets").mkdir()
    (folder / "runs").mkdir()
    shutil.copy(ROOT / "datasets" / "demo.jsonl", folder / "datasets")
    printed: list[str] = []
    names: dict[str, Any] = {"printed": printed}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number, example in enumerate(EXAMPLES):
            lines: list[str] = []
            names["print"] = lambda *values, end="\n", lines=lines: lines.append(" ".join(map(str, values)) + end)
            exec(compile(example, f"library.md, example {number}", "exec"), names)  # noqa: S102
            printed.append("".join(lines))
    return names


def printed_by(notebook: dict[str, Any], code: str) -> str:
    """The output of the example that contains `code`."""
    (number,) = [number for number, example in enumerate(EXAMPLES) if code in example]
    return notebook["printed"][number]


def test_the_replies_to_one_prompt_differ(notebook: dict[str, Any]) -> None:
    assert len({reply.text for reply in notebook["output"].outputs}) > 1
    assert len({reply.text for reply in notebook["replies"]}) > 1


def test_a_chat_goes_on_from_its_history(notebook: dict[str, Any]) -> None:
    assert printed_by(notebook, "batch = llm.chat") == "Nice to meet you, Ada.\n['Your name is Ada.', 'Vienna.']\n"


def test_a_stream_is_the_reply(notebook: dict[str, Any]) -> None:
    assert printed_by(notebook, "llm.stream(") == "3 4 5 6 7 8 9"


def test_the_likelier_continuation_has_the_higher_score(notebook: dict[str, Any]) -> None:
    metal, bird = notebook["scores"]
    assert metal.logprob > bird.logprob


def test_a_saved_state_stands_for_its_prompt(notebook: dict[str, Any]) -> None:
    assert printed_by(notebook, "load_state") == "Your name is Ada.\n"


def test_results_are_tables_and_are_compared(notebook: dict[str, Any]) -> None:
    assert set(notebook["table"]["cell"]) == {"temp=0.3", "temp=1"}
    assert {"score", "nll", "tokens"} <= set(notebook["table"])
    assert "temp=1" in printed_by(notebook, "rwkvbatch.compare(result)")
    assert {line.metric.name for line in notebook["analysis"].comparisons} == {"score", "nll"}


def test_the_engine_reads_only_what_is_new(notebook: dict[str, Any]) -> None:
    assert notebook["second"].num_cached >= len(notebook["first"].history) - 1  # its last token was not read yet


def test_the_network_returns_logits_and_states(notebook: dict[str, Any]) -> None:
    assert tuple(notebook["logits"].shape) == (2, notebook["llm"].spec.vocab_size)
    assert notebook["states"].batch_size == 2


def test_what_a_notebook_shows_is_short(notebook: dict[str, Any]) -> None:
    for name in ("llm", "output", "batch", "scores", "state", "result", "analysis", "engine", "replies", "states"):
        assert len(repr(notebook[name])) < 2_000, name


def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "datasets").mkdir()
    shutil.copy(ROOT / "datasets" / "demo.jsonl", tmp_path / "datasets")
    monkeypatch.chdir(tmp_path)
    printed: list[str] = []
    names: dict[str, Any] = {"print": lambda *values, end="\n": printed.append(" ".join(map(str, values)) + end)}
    exec(compile(example, "README.md", "exec"), names)  # noqa: S102
    assert printed[0] == "Nice to meet you, Ada.\n"
    assert "temp=0.3" in "".join(printed)
    assert len(names["scores"]) == 2


@pytest.mark.parametrize("page", ["compare.md", "judges.md", "models.md", "running.md"])
def test_the_examples_of_other_pages_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
    assert examples
    script = (ROOT / "datasets" / "demo.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "demo.jsonl").write_text("".join(script[:3]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runs = {"compare.md": ("a", "b"), "judges.md": ("before", "after")}.get(page, ())
    for temperature, name in enumerate(runs):
        rwkvbatch.run("datasets/demo.jsonl", temperature=temperature, out=f"runs/{name}", max_tokens=8)
    names: dict[str, Any] = {"print": lambda *values: None}
    num_groupings = 0
    for example in examples:
        code = example.replace("rwkv7-g1k-1.5b.pth", str(BUNDLED_MODEL))
        exec(compile(code, page, "exec"), names)  # noqa: S102
        if "groupby" in code:
            (grouping,) = [line for line in code.splitlines() if "groupby" in line]
            means = eval(grouping, names)  # noqa: S307
            assert {run for run, *_ in means.index} == {"a", "b"}
            num_groupings += 1
    assert num_groupings == (page == "compare.md")
