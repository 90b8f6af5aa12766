"""Writes the example scripts of `datasets/`: `python tools/make_datasets.py`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import jsonlines

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.demo.scripts import SCRIPTS, demo, in_forms  # noqa: E402


def files() -> dict[str, str]:
    """Text of every generated file by its path below `datasets/`."""
    made = {f"{name}.jsonl": _lines([entry.record for entry in make()]) for name, make in SCRIPTS.items()}
    shown = [entry for entry in demo() if entry.record["messages"][0]["role"] == "user"][::6]
    for form, records in in_forms(shown).items():
        made[f"formats/{form}.jsonl"] = _lines(records)
    return made


def _lines(records: Sequence[dict[str, Any]]) -> str:
    text = StringIO()
    jsonlines.Writer(text).write_all(records)
    return text.getvalue()


def main() -> None:
    """Writes the files, or says which differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a file differs")
    parser.add_argument("--into", type=Path, default=ROOT / "datasets")
    options = parser.parse_args()
    different = 0
    for name, text in files().items():
        path = options.into / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        different += 1
        print(f"{'differs' if options.check else 'written'}: {path}")
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    sys.exit(1 if options.check and different else 0)


if __name__ == "__main__":
    main()
