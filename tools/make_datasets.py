"""Writes the example scripts of `datasets/`: `python tools/make_datasets.py`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
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
    made["probes.jsonl"] = _lines(list(probes(made["memory.jsonl"])))
    made["choices.jsonl"] = _lines(list(choices(made["arithmetic.jsonl"])))
    made["texts.jsonl"] = _lines(list(texts(made["arithmetic.jsonl"])))
    shown = [entry for entry in demo() if entry.record["messages"][0]["role"] == "user"][::6]
    for form, records in in_forms(shown).items():
        made[f"formats/{form}.jsonl"] = _lines(records)
    return made


PROBED_TURNS = 40


def probes(memory: str) -> Iterator[dict[str, Any]]:
    """Ten facts of `memory.jsonl`, each before the fillers of other conversations, asked back at some distances."""
    facts = [record for record in map(json.loads, memory.splitlines()) if record["id"].startswith("fact-")]
    fillers = [message for record in facts for message in record["messages"][1:-2]]
    starts = [at for at, message in enumerate(fillers) if message["role"] == "user"]
    for number, record in enumerate(facts[::5][:10]):
        said, question = record["messages"][0], record["messages"][-2]
        asked = {"content": question["content"], "expect": question["expect"]}
        first = starts[number * 11]
        messages: list[dict[str, Any]] = [{**said, "probes": [asked]}]
        turn = 0
        for message in fillers[first:] + fillers[:first]:
            if message["role"] == "user":
                turn += 1
                if turn >= PROBED_TURNS:
                    break
                message = {"role": "user", "content": message["content"]}
                if turn in (1, 2, 3, 5, 8, 12, 16, 20, 25, 30, 35, 39):
                    message["probes"] = [asked]
            messages.append(message)
        yield {"id": record["id"].replace("fact", "probe"), "tags": ["probes", record["tags"][1]], "messages": messages}


def choices(arithmetic: str) -> Iterator[dict[str, Any]]:
    """The small sums of `arithmetic.jsonl`, with four choices each."""
    for record, message, number in _sums(arithmetic):
        wrong = [number + 1, abs(number - 1) or number + 3, number + 10]
        place = number % 4
        texts = [str(value) for value in (*wrong[:place], number, *wrong[place:])]
        asked = {"role": "user", "content": message["content"], "choices": texts, "expect": [{"choice": str(number)}]}
        yield {"id": record["id"].replace("small", "choice"), "tags": ["choices"], "messages": [asked]}


def texts(arithmetic: str) -> Iterator[dict[str, Any]]:
    """The same sums as plain text: a prompt and its continuation."""
    for record, message, number in _sums(arithmetic):
        prompt = f"User: {message['content']}\n\nAssistant:"
        yield {
            "id": record["id"].replace("small", "text"),
            "tags": ["texts"],
            "prompt": prompt,
            "continuation": f" {number}",
        }


def _sums(arithmetic: str) -> Iterator[tuple[dict[str, Any], dict[str, Any], int]]:
    """The first turns of conversations of small sums, and the right numbers."""
    for record in map(json.loads, arithmetic.splitlines()):
        message = record["messages"][0]
        if record["tags"][0] == "sums" and "number" in message.get("expect", [{}])[0]:
            yield record, message, int(message["expect"][0]["number"])


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
