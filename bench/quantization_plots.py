"""The pictures of docs/quantization.md, from the rows of quantization.py. Plain SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

WIDTH = 760
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #222 }
  .head { font-size: 14px; font-weight: 600 }
  .small { font-size: 10px }
  .middle { text-anchor: middle }
  .end { text-anchor: end }
  line { stroke: #999 }
  .grid { stroke: #bbb; stroke-dasharray: 2 4 }
  @media (prefers-color-scheme: dark) { text { fill: #ddd } }
"""


def draw(found: Mapping[str, Any]) -> dict[str, str]:
    """File name -> SVG, of what the rows hold."""
    pictures = {}
    if "group" in found:
        pictures["quantization-group.svg"] = _group(found["group"])
    if "formats" in found:
        pictures["quantization-error.svg"] = _errors(found["formats"], found["plain"])
    if "divergence" in found:
        pictures["quantization-kl.svg"] = _divergence(found["divergence"])
    return pictures


def _group(values: Sequence[float]) -> str:
    """The levels that 3 bits give one group, symmetric and asymmetric, and where its values go."""
    low, high = min(values), max(values)
    largest = max(values, key=abs)
    step = largest / -4
    symmetric = sorted(step * q for q in range(-4, 4))
    scale = (high - low) / 7
    asymmetric = [low + scale * q for q in range(8)]
    left, right = min(*symmetric, low), max(*symmetric, high)

    def x(value: float) -> float:
        return 40 + (value - left) / (right - left) * (WIDTH - 80)

    parts = [_text(20, 24, "One group of 32 weights, 3 bits: which levels there are", "head")]
    for row, (name, levels, colour) in enumerate(
        (
            ("symmetric: s q, 8 levels around zero", symmetric, BLUE),
            ("asymmetric: s q + m, 8 levels from the smallest to the largest", asymmetric, ORANGE),
        )
    ):
        top = 60 + row * 130
        near = [min(levels, key=lambda level, v=value: abs(level - v)) for value in values]
        error = math.sqrt(sum((a - b) ** 2 for a, b in zip(values, near, strict=True)) / 32)
        used = len(set(near))
        parts.append(_text(20, top, f"{name}; {used} in use, error {error:.4f}"))
        axis = top + 60
        for level in levels:
            parts.append(_line(x(level), axis - 34, x(level), axis + 8, colour, 1.5))
        for value, level in zip(values, near, strict=True):
            parts.append(_line(x(value), axis - 22, x(level), axis, colour, 0.6))
            parts.append(_dot(x(value), axis - 22, 3, colour, f"{value:.4f} -> {level:.4f}"))
        parts.append(_line(40, axis, WIDTH - 40, axis))
        for level in levels:
            parts.append(
                _text(
                    x(level), axis + 22, f"{level:.3f}".replace("-0.000", "0.000"), "small middle"
                )
            )
    return _svg(310, "Symmetric and asymmetric levels of one group", parts)


def _errors(formats: Sequence[Mapping[str, Any]], plain: Mapping[str, Any]) -> str:
    """Relative error over bits per weight, on a logarithmic scale."""
    top, bottom, left, right = 50, 430, 70, WIDTH - 30
    lowest, highest = 2.2, 8.2
    decades = (0.01, 0.03, 0.1, 0.3)

    def x(bits: float) -> float:
        return left + (bits - lowest) / (highest - lowest) * (right - left)

    def y(error: float) -> float:
        a, b = math.log(0.008), math.log(0.6)
        return bottom - (math.log(error) - a) / (b - a) * (bottom - top)

    parts = [_text(20, 24, "What is lost, by bits per weight (scales counted)", "head")]
    for error in decades:
        parts.append(_line(left, y(error), right, y(error), kind="grid"))
        parts.append(_text(left - 8, y(error) + 4, f"{100 * error:g} %", "end"))
    for bits in range(3, 9):
        parts.append(_text(x(bits), bottom + 18, str(bits), "middle"))
    parts.append(_line(left, bottom, right, bottom))
    for name, extra, colour in (("symmetric", 0.5, BLUE), ("asymmetric", 1.0, ORANGE)):
        points = [(x(bits + extra), y(error)) for bits, error in plain[name]]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points if px <= right)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
    for n, (name, colour) in enumerate(
        (
            ("plain rounding, symmetric", BLUE),
            ("plain rounding, asymmetric", ORANGE),
            ("Insula's formats", GREEN),
        )
    ):
        parts.append(_dot(WIDTH - 250, 62 + 20 * n, 5, colour, name))
        parts.append(_text(WIDTH - 238, 66 + 20 * n, name))
    below: dict[str, float] = {}  # the last label's height on either side
    for each in sorted(formats, key=lambda row: -row["error"]):
        px, py = x(each["bits"]), y(each["error"])
        parts.append(_dot(px, py, 4, GREEN, f"{each['name']}: {100 * each['error']:.2f} %"))
        side = "end" if each["bits"] == 4.25 else ""
        at = max(py + 3, below.get(side, 0) + 11)
        below[side] = at
        parts.append(_text(px + (-7 if side else 7), at, each["name"], f"small {side}".strip()))
    return _svg(460, "Error of the formats by bits per weight", parts)


def _divergence(rows: Sequence[Mapping[str, Any]]) -> str:
    """Bars of KL divergence, without and with an importance matrix."""
    base, tall = 300, 220
    most = max(row["plain"]["kl"] for row in rows)
    width = (WIDTH - 40) / len(rows)
    parts = [_text(20, 24, "KL divergence from the source, nats", "head")]
    for n, (name, colour) in enumerate((("plain", BLUE), ("with importance", ORANGE))):
        parts.append(_dot(WIDTH - 180, 40 + 20 * n, 5, colour, name))
        parts.append(_text(WIDTH - 168, 44 + 20 * n, name))
    parts.append(_line(20, base, WIDTH - 20, base))
    for n, row in enumerate(rows):
        middle = 20 + (n + 0.5) * width
        parts.append(_text(middle, base + 18, row["format"], "middle"))
        for k, (name, colour) in enumerate((("plain", BLUE), ("importance", ORANGE))):
            kl = row[name]["kl"]
            height = tall * kl / most
            px = middle + (k - 1) * 36
            parts.append(
                f'<rect x="{px:.1f}" y="{base - height:.1f}" width="34" height="{height:.1f}" '
                f'fill="{colour}"/>'
            )
            parts.append(_text(px + 17, base - height - 4, f"{kl:.3f}", "small middle"))
    return _svg(330, "KL divergence by format", parts)


def _svg(height: int, title: str, parts: Sequence[str]) -> str:
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    return "\n".join(
        [head, f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", *parts, "</svg>", ""]
    )


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{named}>{escape(text)}</text>'


def _line(
    x1: float, y1: float, x2: float, y2: float, colour: str = "", width: float = 1, kind: str = ""
) -> str:
    style = f' style="stroke:{colour};stroke-width:{width}"' if colour else ""
    named = f' class="{kind}"' if kind else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"{named}{style}/>'


def _dot(x: float, y: float, r: float, colour: str, told: str) -> str:
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" fill="{colour}">'
        f"<title>{escape(told)}</title></circle>"
    )
