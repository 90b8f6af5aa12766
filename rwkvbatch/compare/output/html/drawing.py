"""What the report's figures have in common."""

# matplotlib's figures and pandas' tables are barely typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from rwkvbatch.compare.metrics import Metric
from rwkvbatch.compare.output.html.svg import STYLE
from rwkvbatch.compare.output.wording import ARROWS
from rwkvbatch.text.safe import printable


@dataclass(frozen=True)
class Figure:
    """One drawing: the metric it is of, its title, a sentence on how to read it, and the SVG."""

    name: str
    title: str
    caption: str
    svg: str


def report_style() -> AbstractContextManager[None]:
    """The report's look, for what is drawn within."""
    import matplotlib as mpl

    return mpl.rc_context(dict(STYLE))  # pyright: ignore[reportArgumentType]


def figure_title(metric: Metric) -> str:
    """The metric's name, and which way is better."""
    return f"{metric.title} {ARROWS[metric.better]}".strip()


def canvas(width: float, height: float) -> tuple[Any, Any]:
    """A matplotlib figure of so many inches, and its axes."""
    from matplotlib.figure import Figure as Drawing

    figure = Drawing(figsize=(width, height))
    return figure, figure.subplots()


def label_of(value: Any) -> str:
    """A setting's value as an axis or legend names it."""
    text = f"{value:g}" if is_number(value) else printable(str(value), keep_newlines=False)
    return text if len(text) <= 40 else f"{text[:39]}…"


def is_number(value: Any) -> bool:
    """Whether `value` can stand on a numeric axis."""
    return isinstance(value, int | float) and not isinstance(value, bool)
