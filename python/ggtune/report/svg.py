"""Matplotlib's SVG made fit to stand in a page: the page's colours, no names that clash, a title, fewer digits."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_HREF = f"{{{_XLINK}}}href"
_DROPPED = {f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"}  # the style is of "*": of everything in the page
_NUMBER = re.compile(r"-?\d+\.\d+")
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_FONT = re.compile(r"font:([^;]*?)(\d[\d.]*px)[^;]*")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


def embedded(svg: str, name: str, title: str, description: str, variables: Mapping[str, str]) -> str:
    """Return an ``<svg>`` element for a page.

    ``name`` starts its ids and is to be the only one of its kind in the page; ``variables`` are CSS variables by the
    colour that they stand for, which is what is shown where a page does not set them.
    """
    ET.register_namespace("", _SVG)
    root = ET.fromstring(svg)
    used = _references(root)
    for parent in root.iter():
        for child in [child for child in parent if child.tag in _DROPPED]:
            parent.remove(child)
        _adapt(parent, name, used, variables)
    width, height = root.attrib["viewBox"].split()[2:]
    root.attrib.clear()
    root.attrib.update(
        {
            "class": "plot",
            "role": "img",
            "aria-labelledby": f"{name}-title {name}-desc",
            "viewBox": f"0 0 {_short(width)} {_short(height)}",
            "stroke-linejoin": "round",
        }
    )
    for i, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ET.Element(f"{{{_SVG}}}{tag}", {"id": f"{name}-{tag}"})
        element.text = text
        root.insert(i, element)
    return ET.tostring(root, encoding="unicode")


def _references(root: ET.Element) -> set[str]:
    used = set()
    for element in root.iter():
        used.add(element.get(_HREF, "").removeprefix("#"))
        for value in element.attrib.values():
            used.update(_REFERENCE.findall(value))
    return used


def _adapt(element: ET.Element, name: str, used: set[str], variables: Mapping[str, str]) -> None:
    element.tail = None
    if not element.tag.endswith("}text"):
        element.text = None
    own = element.attrib.pop("id", None)
    if own in used:
        element.set("id", f"{name}-{own}")
    if _HREF in element.attrib:
        element.set("href", f"#{name}-{element.attrib.pop(_HREF).removeprefix('#')}")
    for key, value in element.attrib.items():
        if key in ("id", "href"):
            continue
        shown = _REFERENCE.sub(rf"url(#{name}-\1)", value)
        if key == "style":
            shown = _COLOUR.sub(lambda found: _variable(found[0], variables), shown)
            shown = _FONT.sub(lambda found: f"font:{found[1]}{found[2]} {_FONTS}", shown)
        element.set(key, _NUMBER.sub(lambda found: _short(found[0]), shown) if key != "style" else shown)


def _variable(colour: str, variables: Mapping[str, str]) -> str:
    return f"var({variables[colour]}, {colour})" if colour in variables else colour


def _short(number: str) -> str:
    """Two digits behind the point: a hundredth of a pixel."""
    return f"{float(number):.2f}".rstrip("0").rstrip(".")
