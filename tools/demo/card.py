"""The model card: figures measured on held-out conversations, written into `docs/demo-model.md`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tools.demo.corpus import Think
from tools.demo.evaluation import Score, accuracy, held_out, replies_of
from tools.demo.network import Network, parameter_count
from tools.demo.training import Progress, Recipe

_THINKING: tuple[Think, ...] = ("off", "on", "short", "long", "fake")
_BEGIN, _END = "<!-- figures: written by tools/train_demo_model.py -->", "<!-- end of figures -->"


@dataclass(frozen=True)
class Figures:
    """What was measured: scores by family for each thinking mode and for each temperature without thinking."""

    by_mode: dict[Think, dict[str, Score]]
    by_temperature: dict[float, dict[str, Score]]


def measure(network: Network, conversations: int, length: int = 450) -> Figures:
    """Replays fresh held-out conversations in every thinking mode, and at three temperatures without cuts."""
    by_mode: dict[Think, dict[str, Score]] = {}
    for think in _THINKING:
        count = conversations if think in ("off", "on") else conversations // 3
        made = held_out(count, length, think)
        by_mode[think] = accuracy(made, replies_of(network, made))
    plain = held_out(conversations, length, "off")
    warm = {t: accuracy(plain, replies_of(network, plain, temperature=t)) for t in (1.0, 1.5)}
    return Figures(by_mode, {0.0: by_mode["off"], **warm})


def _cell(scores: dict[str, Score], family: str) -> str:
    score = scores.get(family)
    return f"{score.share:.1%} ({score.passed}/{score.made})" if score else ""


def _table(columns: dict[str, dict[str, Score]], families: Sequence[str]) -> list[str]:
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
    warm = {f"temperature {t:g}": scores for t, scores in figures.by_temperature.items()}
    lines = [
        _BEGIN,
        "",
        f"{parameter_count(network):,} parameters; {last.step:,} steps of {recipe.rows} rows x {recipe.length} tokens,"
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
        "Without thinking, sampled from the whole distribution (top-p 1):",
        "",
        *_table(warm, ["all", *families]),
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
