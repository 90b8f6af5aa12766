"""matplotlib figures as inline SVG that follows the page's colours and its content policy.

matplotlib writes inline styles, which a strict content policy forbids, and fixed colours, which do not know a
dark page. Here each style becomes plain attributes, and stand-in colours become the page's CSS variables.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rwkvbatch.comparison.metrics import Metric
from rwkvbatch.comparison.report.wording import ARROWS
from rwkvbatch.prompt.escaping import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# matplotlib's figures and pandas' tables are barely typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false


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


# matplotlib's figures are barely typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false


INK: Final = "#010101"
FAINT: Final = "#020202"
GRID: Final = "#030303"
ACCENT: Final = "#040404"
GOOD: Final = "#050505"
BAD: Final = "#060606"
PAPER: Final = "#070707"
SERIES: Final = tuple(f"#0808{i:02x}" for i in range(8, 16))
"""Stand-in colours; the page's style sheet defines what they are."""

_VARIABLES: Final[Mapping[str, str]] = {
    INK: "--ink", FAINT: "--faint", GRID: "--grid", ACCENT: "--accent", GOOD: "--good", BAD: "--bad",
    PAPER: "--paper", **{colour: f"--series-{i}" for i, colour in enumerate(SERIES)},
}  # fmt: skip
_PIXELS_PER_POINT = 4 / 3
_SMALL_PX = 520
"""A narrower figure may shrink to a phone's width and stay legible; wider ones are scrolled."""
_SVG = "http://www.w3.org/2000/svg"
_PAINT = frozenset(("fill", "stroke"))
_KEPT = frozenset(
    ("fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "stroke-linejoin", "opacity",
     "fill-opacity", "stroke-opacity", "font-size", "font-weight", "text-anchor")
)  # fmt: skip
_FONT = re.compile(r"(?:(bold|\d{3}) )?([\d.]+)px")

STYLE: Final[Mapping[str, object]] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 1.0,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
}
"""matplotlib settings to draw under."""


def inline_svg(figure: Figure, *, label: str, tips: Mapping[str, str], prefix: str) -> str:
    """`figure` as an `<svg>` element without styles, scripts or ids that could clash with another figure's.

    Args:
        label: what the figure shows, for those who cannot see it.
        tips: for the gid of an artist, the text that shows when one points at it.
        prefix: unlike that of any other figure of the page.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that matplotlib's own font lacks: the browser's has them
        figure.savefig(
            buffer, format="svg", transparent=True, bbox_inches="tight", pad_inches=0.06,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )  # fmt: skip
    root = ET.fromstring(buffer.getvalue())
    for tag in ("metadata", "defs"):
        for child in root.findall(f"{{{_SVG}}}{tag}"):
            if tag == "metadata" or child.find(f"{{{_SVG}}}style") is not None:
                root.remove(child)
    for element in root.iter():
        _plain_attributes(element)
        _own_ids(element, prefix, tips)
    width_pt = float(root.get("viewBox", "0 0 600 300").split()[2])
    for name in ("height", "version"):
        root.attrib.pop(name, None)
    width_px = width_pt * _PIXELS_PER_POINT
    root.set("width", f"{width_px:.0f}")
    if width_px < _SMALL_PX:
        root.set("class", "small")
    root.set("role", "img")
    root.set("aria-label", label)
    ET.register_namespace("", _SVG)
    return ET.tostring(root, encoding="unicode")


def _plain_attributes(element: ET.Element) -> None:
    style = element.attrib.pop("style", "")
    for declaration in style.split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font" and (found := _FONT.search(value)):
            element.set("font-size", found[2])
            if found[1]:
                element.set("font-weight", found[1])
        elif name in _KEPT:
            element.set(name, value.removesuffix("px"))
    for name in _PAINT:
        variable = _VARIABLES.get(element.get(name, ""))
        if variable is not None:
            element.set(name, f"var({variable})")
    if element.tag == f"{{{_SVG}}}text" and "fill" not in element.attrib:
        element.set("fill", "var(--ink)")


def _own_ids(element: ET.Element, prefix: str, tips: Mapping[str, str]) -> None:
    name = element.get("id")
    if name is not None:
        if name in tips:
            title = ET.Element(f"{{{_SVG}}}title")
            title.text = tips[name]
            element.insert(0, title)
            element.set("class", "tip")
            del element.attrib["id"]
        else:
            element.set("id", f"{prefix}-{name}")
    for attribute, value in list(element.attrib.items()):
        if attribute.endswith("href") and value.startswith("#"):
            # Without the old XML prefix, which HTML parsers do not resolve.
            del element.attrib[attribute]
            element.set("href", f"#{prefix}-{value[1:]}")
        elif value.startswith("url(#"):
            element.set(attribute, f"url(#{prefix}-{value[5:]}")
