"""Conversion of matplotlib figures to inline SVG that follows the page's colours and content policy.

matplotlib writes inline styles, which the content policy forbids, and fixed colours, which do not follow a dark
theme. The conversion turns styles into attributes, and placeholder colours into CSS variables of the page.
"""

from __future__ import annotations

import io
import math
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal

from rwkvbatch.errors import shortened
from rwkvbatch.prompt.escaping import printable
from rwkvbatch.script.lines import is_number

if TYPE_CHECKING:
    from matplotlib.backends.backend_svg import RendererSVG
    from matplotlib.font_manager import FontProperties

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
_SPACE_INCHES = 4.0
"""Space around a figure for labels and legends, most of which is cropped."""
_AXES = (0.125, 0.9, 0.11, 0.88)
"""Left, right, bottom and top of the axes, as shares of the figure."""
_SMALL_PX = 520
"""Figures narrower than this shrink on a small screen; wider ones scroll."""
_SVG = "http://www.w3.org/2000/svg"
_SHAPES = (f"{{{_SVG}}}path", f"{{{_SVG}}}use")
_PAINT = frozenset(("fill", "stroke"))
_KEPT = frozenset(
    ("fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "stroke-linejoin", "opacity",
     "fill-opacity", "stroke-opacity", "font-size", "font-weight", "text-anchor")
)  # fmt: skip
_LARGEST = 1e300
"""The largest number on an axis: matplotlib cannot place ticks near the end of a float's range."""
_FONT = re.compile(r"(?:(bold|\d{3}) )?([\d.]+)px")

STYLE: Final[Mapping[str, object]] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10.5,
    "axes.facecolor": "none",
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
    """A matplotlib figure and its axes, with grid lines at the ticks of one axis.

    The axes are as large as in a figure of `width` and `height` inches. The figure is larger, because lines outside it
    are not drawn.
    """
    from matplotlib.figure import Figure as Drawing

    full_width, full_height = width + 2 * _SPACE_INCHES, height + 2 * _SPACE_INCHES
    figure = Drawing(figsize=(full_width, full_height))
    left, right, bottom, top = _AXES
    place = {
        "left": (_SPACE_INCHES + left * width) / full_width,
        "right": (_SPACE_INCHES + right * width) / full_width,
        "bottom": (_SPACE_INCHES + bottom * height) / full_height,
        "top": (_SPACE_INCHES + top * height) / full_height,
    }
    plot = figure.subplots(gridspec_kw=place)
    if grid is not None:
        plot.grid(axis=grid)
        plot.spines["left"].set_visible(False)
    return figure, plot


def fits_axis(value: object) -> bool:
    """Whether a setting's value is a number that an axis can have."""
    return is_number(value) and abs(value) <= _LARGEST


def drawable(values: Iterable[float]) -> list[float]:
    """`values`, where infinity, which is not drawn, replaces those beyond the range of an axis."""
    return [math.copysign(math.inf, value) if abs(value) > _LARGEST else value for value in values]


def label_of(value: Any) -> str:
    """A setting's value as a label of an axis or legend."""
    text = f"{value:g}" if fits_axis(value) else printable(str(value), keep_newlines=False)
    return shortened(text, 40)


def inline_svg(figure: Any, *, label: str, tips: Mapping[str, Sequence[str]], prefix: str) -> str:
    """`figure` as an `<svg>` element without styles and scripts, with ids that are unique in the page.

    Args:
        label: the text alternative.
        tips: by the gid of a matplotlib artist, the tooltips of its shapes, in order.
        prefix: prefix of the ids, different for each figure of the page.
    """
    root = ET.fromstring(_drawn(figure))
    for definitions in root.findall(f"{{{_SVG}}}defs"):
        if definitions.find(f"{{{_SVG}}}style") is not None:
            root.remove(definitions)
    for element in root.iter():
        _style_to_attributes(element)
        if (own := tips.get(element.get("id", ""))) is not None:
            _add_tips(element, own)
        _rename_ids(element, prefix)
    width_pt = float(root.get("viewBox", "").split()[2])
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


def _drawn(figure: Any) -> str:
    """The SVG of `figure`, cropped to what it shows with a margin.

    `figure.savefig` with `bbox_inches="tight"` gives the same picture, but draws the figure twice, and measures each
    text in both drawings. The positions of labels and legends here are known without drawing.
    """
    buffer = io.StringIO()
    figure.dpi = _DPI
    figure.patch.set_visible(False)
    width, height = figure.get_size_inches() * _DPI
    renderer = _renderer()(width, height, buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about glyphs missing from matplotlib's font; the browser uses its own font
        box = figure.get_tightbbox(renderer).padded(_MARGIN_INCHES)
        figure.draw(renderer)
    renderer.finalize()
    left, top = box.x0 * _DPI, height - box.y1 * _DPI
    shown = " ".join(f"{number:.6f}" for number in (left, top, box.width * _DPI, box.height * _DPI))
    return re.sub(r'viewBox="[^"]*"', f'viewBox="{shown}"', buffer.getvalue(), count=1)


@cache
def _renderer() -> type[RendererSVG]:
    """matplotlib's class that writes SVG, with each text measured once: the charts of a page have the same labels."""
    from matplotlib.backends.backend_svg import RendererSVG
    from matplotlib.textpath import text_to_path

    @lru_cache(maxsize=4096)
    def measured(text: str, font: FontProperties, is_math: Any) -> tuple[float, float, float]:
        return text_to_path.get_text_width_height_descent(text, font, is_math)

    class Renderer(RendererSVG):
        def get_text_width_height_descent(
            self, s: str, prop: FontProperties, ismath: Any
        ) -> tuple[float, float, float]:
            return measured(s, prop.copy(), ismath)

    return Renderer


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


def _add_tips(group: ET.Element, tips: Sequence[str]) -> None:
    """Give each shape of an artist's group a tooltip. Shapes that are defined only are not drawn."""
    defined = {shape for definitions in group.iter(f"{{{_SVG}}}defs") for shape in definitions}
    drawn = [shape for shape in group.iter() if shape.tag in _SHAPES and shape not in defined]
    for shape, tip in zip(drawn, tips, strict=True):
        ET.SubElement(shape, f"{{{_SVG}}}title").text = tip
        shape.set("class", "tip")


def _rename_ids(element: ET.Element, prefix: str) -> None:
    """Prefix the element's id and the ids that it refers to."""
    if (name := element.get("id")) is not None:
        element.set("id", f"{prefix}-{name}")
    for attribute, value in list(element.attrib.items()):
        if attribute.endswith("href") and value.startswith("#"):
            # HTML parsers do not resolve the xlink prefix of the attribute.
            del element.attrib[attribute]
            element.set("href", f"#{prefix}-{value[1:]}")
        elif value.startswith("url(#"):
            element.set(attribute, f"url(#{prefix}-{value[5:]}")
