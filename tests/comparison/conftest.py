"""Charts without their drawings, for tests of everything else in a report."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import pytest


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace each drawing, which takes 0.05 s of the processor, by its label and its tooltips."""

    def in_words(_figure: object, *, label: str, tips: Mapping[str, Sequence[str]], prefix: str) -> str:
        texts = "".join(f"<title>{html.escape(tip)}</title>" for group in tips.values() for tip in group)
        return f'<svg id="{prefix}" aria-label="{html.escape(label)}">{texts}</svg>'

    monkeypatch.setattr("rwkvbatch.comparison.report.charts.inline_svg", in_words)
