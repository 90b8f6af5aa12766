"""Synthetic run directories: rows in the form of `rwkvbatch.results.row`, with effects that tests choose."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from rwkvbatch.results.manifest import FORMAT
from tests.manifests import save_manifest

WORDS = [
    "the",
    "river",
    "runs",
    "past",
    "old",
    "stone",
    "houses",
    "and",
    "every",
    "morning",
    "a",
    "small",
    "boat",
    "brings",
    "bread",
    "apples",
    "news",
    "of",
    "far",
    "towns",
    "to",
    "people",
    "who",
    "wait",
    "on",
    "its",
    "bank",
    "with",
    "baskets",
]

_ENDS = {"turn_end": "next-role", "bos": "off", "reply_prefix": ""}

RowChange = Callable[[dict[str, Any], np.random.Generator], None]


def make_row(
    conversation: str,
    *,
    cell: str = "base",
    repeat: int = 0,
    turn: int = 0,
    rng: np.random.Generator | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """One row; `changes` replace top-level fields."""
    rng = rng or np.random.default_rng(0)
    num_words = int(rng.integers(8, 30))
    ids = [int(i) for i in rng.integers(0, len(WORDS), num_words)]
    score = float(rng.random() < 0.6)
    return {
        "conversation": conversation,
        "cell": cell,
        "repeat": repeat,
        "turn": turn,
        "seed": 1,
        "tags": ["even" if int(hashlib.sha256(conversation.encode()).hexdigest(), 16) % 2 else "odd"],
        "prompt": f"Question {turn} of {conversation}?",
        "reply": " ".join(WORDS[i] for i in ids).capitalize() + ".",
        "reply_ids": [i + 300 for i in ids],
        "finish_reason": "stop",
        "stopped_by": "\n\n",
        "tokens": {"prompt": 20 * (turn + 1), "reply": num_words},
        "logprob": {"mean": -float(rng.gamma(2, 0.3)), "sum": -float(num_words)},
        "reference": {"text": f"Answer {turn}.", "nll": float(rng.gamma(4, 0.5)), "matched": 0.4, "tokens": 3},
        "checks": [
            {"kind": "contains", "expected": "boat", "passed": score == 1.0, "score": score, "weight": 1.0,
             "detail": None}
        ],
        "error": None,
        "timing": {
            "queued_s": 0.0, "prefill_s": 0.01, "first_token_s": float(rng.gamma(3, 0.01)), "total_s": 0.2,
            "tokens_per_s": 100.0, "cached_tokens": 0,
        },
        **changes,
    }  # fmt: skip


def make_run(
    directory: Path,
    *,
    cells: Sequence[str] = ("base",),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    conversations: int = 12,
    repeats: int = 2,
    turns: int = 2,
    seed: int = 1,
    change: RowChange | None = None,
    identity_changes: Mapping[str, Any] | None = None,
) -> Path:
    """Write a run directory whose rows are random by `seed`; `change` edits each row in place."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for cell in cells:
        for number in range(conversations):
            for repeat in range(repeats):
                for turn in range(turns):
                    row = make_row(f"talk-{number}", cell=cell, repeat=repeat, turn=turn, rng=rng, seed=seed)
                    if change is not None:
                        change(row, rng)
                    rows.append(row)
    identity = {
        "generation_rules": 1,
        "script": {"sha256": "cd" * 32, "conversations": conversations},
        "tokenizer": {"name": "world", "sha256": "ef" * 32},
        "seed": seed,
        "repeats": repeats,
        "cells": {
            cell: {"temperature": 1.0, "history": "own", "think": "off", **_ENDS, **(settings or {}).get(cell, {})}
            for cell in cells
        },
        **(identity_changes or {}),
    }
    about = {
        "created": "2026-01-02T03:04:05+0000",
        "command": "rwkvbatch run datasets/demo.jsonl",
        "rwkvbatch": "0.1.0",
        "machine": {"system": "Linux", "processor": "x86_64"},
        "scripts": ["datasets/demo.jsonl"],
        "models": [{"path": "bundled", "layers": 4, "width": 128, "weights_sha256": "ab" * 32, "cells": list(cells)}],
    }
    write_run(directory, rows, {"identity": identity, "about": about})
    return directory


def write_run(directory: Path, rows: Sequence[Mapping[str, Any]], manifest: Mapping[str, Any] | None) -> None:
    """Write `rows` with their checksums, and a manifest unless it is None, into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.jsonl").write_bytes(b"".join(map(encode, rows)))
    if manifest is not None:
        save_manifest(
            directory, {"format": FORMAT, **manifest, "identity": {"cells": {}, **manifest.get("identity", {})}}
        )


def encode(row: Mapping[str, Any]) -> bytes:
    """A row's line with its checksum."""
    body = json.dumps(row, separators=(",", ":")).encode()
    return body[:-1] + b',"crc":"%08x"}\n' % crc32(body)
