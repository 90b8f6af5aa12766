"""The generated part of the model card."""

from pathlib import Path

import pytest

from tools.demo.card import figures_text, measure, with_figures
from tools.demo.export import save_weights
from tools.demo.network import Network, Shape
from tools.demo.training import Progress, Recipe

_SMALL = Shape(layers=1, width=64, decay_rank=8, rate_rank=8, value_rank=8, gate_rank=8)


def test_the_figures_replace_what_stood_between_the_marks(tmp_path: Path) -> None:
    network = Network(_SMALL)
    save_weights(network, tmp_path / "model.safetensors")
    log = [Progress(10, 2.5, 0.4, 1e-3, 80_000, 12.0)]
    text = figures_text(network, Recipe(steps=10), log, measure(tmp_path / "model.safetensors", 3, 60))
    begin, end = text.splitlines()[0], text.splitlines()[-1]
    card = with_figures(f"Before.\n\n{begin}\nold\n{end}\n\nAfter.\n", text)
    assert card.startswith("Before.\n\n")
    assert card.endswith("\n\nAfter.\n")
    assert "old" not in card
    assert "| family | `--think off` | `--think on` |" in card
    assert "| all |" in card
    assert with_figures(card, text) == card


def test_a_card_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="marks"):
        with_figures("# A card", "text")
