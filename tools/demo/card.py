"""The model card: figures measured on held-out conversations, written into `docs/demo-model.md`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rwkvbatch.replay.api import run
from tools.demo.corpus import Conversation, Think
from tools.demo.evaluation import Score, family_of, held_out
from tools.demo.network import Network, parameter_count
from tools.demo.scripts import entry_of
from tools.demo.training import Progress, Recipe

_THINKING: tuple[Think, ...] = ("off", "on", "short", "long", "fake")
_BEGIN, _END = "<!-- figures: written by tools/train_demo_model.py -->", "<!-- end of figures -->"
_GREEDY: dict[str, Any] = {"temperature": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
_SAMPLED: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature 1": {"temperature": 1.0, "top_p": 1.0},
    "temperature 1.5": {"temperature": 1.5, "top_p": 1.0},
    "temperature 1, top-p 0.5": {"temperature": 1.0, "top_p": 0.5},
    "greedy, frequency penalty 1": {"frequency_penalty": 1.0, "penalty_decay": 1.0},
}

Scores = dict[str, Score]


@dataclass(frozen=True)
class Figures:
    """What was measured: scores by family, for each thinking mode and for each way of sampling."""

    by_mode: dict[Think, Scores]
    by_sampling: dict[str, Scores]


def measure(model: Path, conversations: int, length: int = 450) -> Figures:
    """Replays fresh held-out conversations with this program: in every thinking mode, and sampled in several ways."""
    by_mode: dict[Think, Scores] = {}
    for think in _THINKING:
        count = conversations if think in ("off", "on") else max(1, conversations // 3)
        by_mode[think] = _replayed(model, held_out(count, length, think), think, {})
    plain = held_out(conversations, length, "off")
    sampled = {name: _replayed(model, plain, "off", changes) for name, changes in _SAMPLED.items() if changes}
    return Figures(by_mode, {"greedy": by_mode["off"], **sampled})


def _replayed(model: Path, made: Sequence[Conversation], think: Think, changes: dict[str, Any]) -> Scores:
    with TemporaryDirectory() as folder:
        script = Path(folder) / "held-out.jsonl"
        entries = [entry_of(one, str(i), ()) for i, one in enumerate(made)]
        script.write_text("".join(json.dumps(entry.record) + "\n" for entry in entries), encoding="utf-8")
        settings = {**_GREEDY, **changes, "think": think, "max_tokens": 160, "batch_size": 128, "threads": 1}
        result = run(script, model=model, **settings)
        scores: defaultdict[str, Score] = defaultdict(Score)
        for row in result.rows():
            if row.checks:
                for name in ("all", family_of(made[int(row.conversation)], row.turn)):
                    scores[name].made += 1
                    scores[name].passed += all(check.passed for check in row.checks)
    return dict(sorted(scores.items()))


def _cell(scores: Scores, family: str) -> str:
    score = scores.get(family)
    return f"{score.share:.1%} ({score.passed}/{score.made})" if score else ""


def _table(columns: dict[str, Scores], families: Sequence[str]) -> list[str]:
    lines = [f"| family | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for family in families:
        cells = " | ".join(_cell(scores, family) for scores in columns.values())
        lines.append(f"| {family} | {cells} |")
    return lines


def figures_text(network: Network, recipe: Recipe, log: Sequence[Progress], figures: Figures) -> str:
    """The generated part of the card, as Markdown."""
    last = log[-1]
    families = [name for name in figures.by_mode["off"] if name != "all"]
    modes = {f"`--think {think}`": scores for think, scores in figures.by_mode.items()}
    lines = [
        _BEGIN,
        "",
        f"{parameter_count(network):,} parameters; {last.step:,} steps,"
        f" {last.tokens / 1e6:.1f} million tokens read in {last.elapsed_s / 60:.0f} minutes;"
        f" last training loss {last.loss:.3f}, {last.reply_accuracy:.1%} of reply tokens predicted.",
        "",
        "![Loss and reply tokens predicted over tokens read](demo-model-loss.svg)",
        "",
        "Greedy, by family, on fresh held-out conversations (a conversation under a system line that changes replies"
        " counts as `system`):",
        "",
        *_table(modes, ["all", *families]),
        "",
        "Without thinking, sampled in other ways (one seed; the whole distribution unless a top-p is given):",
        "",
        *_table(figures.by_sampling, ["all", *families]),
        "",
        _END,
    ]
    return "\n".join(lines)


def with_figures(card: str, text: str) -> str:
    """The card with its generated part replaced.

    Raises:
        ValueError: the card lacks the two marks.
    """
    before, begun, rest = card.partition(_BEGIN)
    _, ended, after = rest.partition(_END)
    if not begun or not ended:
        raise ValueError(f"the card lacks the marks {_BEGIN!r} and {_END!r}")
    return before + text + after
