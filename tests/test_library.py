"""The examples in `docs/library.md` run, from top to bottom, and their objects can be looked at in a notebook."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.comparison import compare

ROOT = Path(__file__).parents[1]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names that are there after all examples; `said` is what each of them printed."""
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "datasets").mkdir()
    shutil.copy(ROOT / "datasets" / "demo.jsonl", folder / "datasets")
    said: list[str] = []
    names: dict[str, Any] = {"said": said}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number, example in enumerate(EXAMPLES):
            lines: list[str] = []
            names["print"] = lambda *values, end="\n", lines=lines: lines.append(" ".join(map(str, values)) + end)
            exec(compile(example, f"library.md, example {number}", "exec"), names)  # noqa: S102
            said.append("".join(lines))
        names["analysis"] = compare(Path("runs") / "warm")
    return names


def test_a_stream_is_the_reply(notebook: dict[str, Any]) -> None:
    assert notebook["said"][3].strip() == "3 4 5 6 7 8 9"


def test_equal_requests_with_noise_of_their_own_get_several_replies(notebook: dict[str, Any]) -> None:
    assert len({reply.text for reply in notebook["replies"]}) > 1


def test_a_dialogue_goes_on_from_what_was_read_and_from_a_saved_state(notebook: dict[str, Any]) -> None:
    assert notebook["second"].num_cached >= len(notebook["first"].history) - 1  # its last token was not read yet
    assert notebook["said"][-1] == "[' Your name is Ada.', ' Vienna.']\n"


def test_scores_and_tables_are_there(notebook: dict[str, Any]) -> None:
    assert notebook["score"].num_matched == len(notebook["score"].logprobs)
    assert set(notebook["table"]["cell"]) == {"temp=0.3", "temp=1"}
    assert "score -0." in notebook["said"][0]


def test_what_a_notebook_shows_of_a_comparison_is_short(notebook: dict[str, Any]) -> None:
    assert len(repr(notebook["analysis"])) < 2_000
