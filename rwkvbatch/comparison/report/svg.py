"""Conversion of matplotlib figures to inline SVG that follows the page's colours and content policy.

matplotlib writes inline styles, which the content policy forbids, and fixed colours, which do not follow a dark
theme. The conversion turns styles into attributes, and placeholder colours into CSS variables of the page.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Literal

from rwkvbatch.prompt.escaping import printable

# matplotlib is partly typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

INK: Final = "#010101"
FAINT: Final = "#020202"
GRID: Final = "#030303"
ACCENT: Final = "#040404"
GOOD: Final = "#050505"
BAD: Final = "#060606"
PAPER: Final = "#070707"
SERIES: Final = tuple(f"#0808{i:02x}" for i in range(8, 16))
"""Placeholder colours; the page's style sheet defines the real ones."""

_VARIABLES: Final[Mapping[str, str]] = {
    INK: "--ink", FAINT: "--faint", GRID: "--grid", ACCENT: "--accent", GOOD: "--good", BAD: "--bad",
    PAPER: "--paper", **{colour: f"--series-{i}" for i, colour in enumerate(SERIES)},
}  # fmt: skip
_PIXELS_PER_POINT = 4 / 3
_DPI = 72
"""The resolution of SVG, whose unit is a point."""
_MARGIN_INCHES = 0.06
_SMALL_PX = 520
"""Figures narrower than this shrink on a small screen; wider ones scroll."""
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
    "svg.hashsalt": "rwkvbatch",  # without it, the ids of shapes differ in every process
}


@dataclass(frozen=True)
class Figure:
    """A figure of one metric.

    Attributes:
        caption: how to read the figure.
        exploratory: whether the metric is not the primary one.
    """

    name: str
    title: str
    caption: str
    svg: str
    exploratory: bool = False


def report_style() -> AbstractContextManager[None]:
    """A context with the report's matplotlib settings."""
    import matplotlib as mpl

    return mpl.rc_context(dict(STYLE))  # pyright: ignore[reportArgumentType]


def canvas(width: float, height: float, *, grid: Literal["x", "y"] | None = None) -> tuple[Any, Any]:
    """A matplotlib figure of a size in inches and its axes, with grid lines at the ticks of one axis."""
    from matplotlib.figure import Figure as Drawing

    figure = Drawing(figsize=(width, height))
    plot = figure.subplots()
    if grid is not None:
        plot.grid(axis=grid)
        plot.spines["left"].set_visible(False)
    return figure, plot


def label_of(value: Any) -> str:
    """A setting's value as a label of an axis or legend."""
    text = f"{value:g}" if is_number(value) else printable(str(value), keep_newlines=False)
    return text if len(text) <= 40 else f"{text[:39]}…"


def is_number(value: Any) -> bool:
    """Whether `value` can be placed on a numeric axis."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def inline_svg(figure: Any, *, label: str, tips: Mapping[str, str], prefix: str) -> str:
    """`figure` as an `<svg>` element without styles and scripts, with ids that are unique in the page.

    Args:
        label: the text alternative.
        tips: tooltips by the gid of a matplotlib artist.
        prefix: prefix of the ids, different for each figure of the page.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about glyphs missing from matplotlib's font; the browser uses its own font
        figure.savefig(
            buffer, format="svg", transparent=True, bbox_inches=_tight_box(figure),
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )  # fmt: skip
    root = ET.fromstring(buffer.getvalue())
    for tag in ("metadata", "defs"):
        for child in root.findall(f"{{{_SVG}}}{tag}"):
            if tag == "metadata" or child.find(f"{{{_SVG}}}style") is not None:
                root.remove(child)
    for element in root.iter():
        _style_to_attributes(element)
        _rename_ids(element, prefix, tips)
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


def _tight_box(figure: Any) -> Any:
    """The bounding box of everything in `figure` with a margin, in inches.

    It is equal to that of `bbox_inches="tight"`, which draws the figure once more to find it. The positions of labels
    and legends here are known without drawing.
    """
    from matplotlib.backends.backend_svg import RendererSVG

    figure.dpi = _DPI
    width, height = figure.get_size_inches() * _DPI
    return figure.get_tightbbox(RendererSVG(width, height, io.StringIO(), image_dpi=_DPI)).padded(_MARGIN_INCHES)


def _style_to_attributes(element: ET.Element) -> None:
    """Turn the style into attributes, and placeholder colours into CSS variables."""
    style = element.attrib.pop("style", "")
    for declaration in style.split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font" and (match := _FONT.search(value)):
            element.set("font-size", match[2])
            if match[1]:
                element.set("font-weight", match[1])
        elif name in _KEPT:
            element.set(name, value.removesuffix("px"))
    for name in _PAINT:
        variable = _VARIABLES.get(element.get(name, ""))
        if variable is not None:
            element.set(name, f"var({variable})")
    if element.tag == f"{{{_SVG}}}text" and "fill" not in element.attrib:
        element.set("fill", "var(--ink)")


def _rename_ids(element: ET.Element, prefix: str, tips: Mapping[str, str]) -> None:
    """Prefix the element's id and the ids that it refers to; replace the id of an element with a tooltip by a title."""
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
            # HTML parsers do not resolve the xlink prefix of the attribute.
            del element.attrib[attribute]
            element.set("href", f"#{prefix}-{value[1:]}")
        elif value.startswith("url(#"):
            element.set(attribute, f"url(#{prefix}-{value[5:]}")
