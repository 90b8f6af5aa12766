"""The notebook in the documents runs, and prints what it shows."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "notebooks" / "sweep-to-plot.ipynb"


@pytest.mark.slow
def test_the_notebook_prints_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "datasets").symlink_to(ROOT / "datasets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RWKVBATCH_VOCAB")
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 4
    names: dict[str, Any] = {}
    with mpl.rc_context({"backend": "agg"}):
        for number, cell in enumerate(code):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)  # noqa: S102
            shown = "".join("".join(each["text"]) for each in cell["outputs"] if each.get("name") == "stdout")
            assert printed.getvalue() == shown
    assert names["figure"].axes
    assert any("image/png" in each.get("data", {}) for each in code[-1]["outputs"])
