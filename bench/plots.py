"""Rows as one picture per model: prefill, decode against context, streams together.

Plain SVG, so that the bench needs no plotting library: groups of bars from zero, text as text,
colours that hold on a light and on a dark page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

Row = dict[str, Any]

#: Panels: the kind of scenario, its heading, and what a group of bars is.
PANELS = (
    ("prefill", "Prefill, tokens/s", "tokens of prompt"),
    ("decode", "Decode, tokens/s", "tokens of context"),
    ("streams", "Streams together, tokens/s in all", "streams"),
)
#: Okabe and Ito's colours, told apart without seeing red or green; a darker yellow for white pages.
COLOURS = ("#0072b2", "#56b4e9", "#e69f00", "#d55e00", "#009e73", "#cc79a7", "#b3a100", "#8c8c8c")
WIDTH, LEFT, RIGHT = 760, 20, 20
PLOT, HEAD, FOOT, LEGEND = 150, 46, 34, 22
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #222 }
  .head { font-size: 14px; font-weight: 600 }
  .value { font-size: 9px; text-anchor: middle }
  .group, .axis { text-anchor: middle }
  .none { fill: #777; font-size: 9px; text-anchor: middle }
  line { stroke: #888 }
  @media (prefers-color-scheme: dark) { text { fill: #ddd } .none { fill: #999 } }
"""


def picture(rows: Sequence[Row], title: str) -> str:
    """The SVG of one model's rows. Engines keep their colour through all panels."""
    rows = [row for row in rows if row["metric"] == "speed"]
    engines = [
        e
        for e in dict.fromkeys(row["engine"] for row in rows)
        if any(row["engine"] == e and "median" in row for row in rows)
    ]
    panels = [p for p in PANELS if any(row["kind"] == p[0] for row in rows)]
    lines = -(-len(engines) // 4)
    top = 34 + lines * LEGEND
    height = top + len(panels) * (HEAD + PLOT + FOOT) + 6
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        _text(LEFT, 20, title, "head"),
    ]
    for n, engine in enumerate(engines):
        x, y = LEFT + n % 4 * 180, 34 + n // 4 * LEGEND
        parts.append(_bar(x, y, 12, 12, colour(n), engine))
        parts.append(_text(x + 18, y + 11, engine))
    for n, (kind, heading, unit) in enumerate(panels):
        mine = [row for row in rows if row["kind"] == kind]
        parts += _panel(mine, engines, heading, unit, top + n * (HEAD + PLOT + FOOT))
    return "\n".join([*parts, "</svg>", ""])


def colour(n: int) -> str:
    return COLOURS[n % len(COLOURS)]


def _panel(
    rows: Sequence[Row], engines: Sequence[str], heading: str, unit: str, top: int
) -> list[str]:
    sizes = sorted({row["size"] for row in rows})
    most = max((row["median"] for row in rows if "median" in row), default=1.0)
    base = top + HEAD + PLOT
    group = (WIDTH - LEFT - RIGHT) / max(1, len(sizes))
    bar = min(44.0, group * 0.86 / max(1, len(engines)))
    parts = [
        _text(LEFT, top + 24, heading, "head"),
        f'<line x1="{LEFT}" y1="{base}" x2="{WIDTH - RIGHT}" y2="{base}"/>',
    ]
    for g, size in enumerate(sizes):
        middle = LEFT + (g + 0.5) * group
        parts.append(_text(middle, base + 16, f"{size:,} {unit}", "group"))
        for n, engine in enumerate(engines):
            x = middle + (n - len(engines) / 2) * bar
            row = next((r for r in rows if r["engine"] == engine and r["size"] == size), None)
            if row is None or "median" not in row:
                parts.append(_text(x + bar / 2, base - 3, "–", "none"))
                continue
            tall = PLOT * row["median"] / most
            told = f"{engine}: {row['median']:g} tokens/s ({row['low']:g} to {row['high']:g})"
            parts.append(_bar(x, base - tall, bar - 1, tall, colour(n), told))
            parts.append(_text(x + bar / 2, base - tall - 3, _figure(row["median"]), "value"))
    return parts


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _bar(x: float, y: float, width: float, height: float, fill: str, told: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}">'
        f"<title>{escape(told)}</title></rect>"
    )


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{named}>{escape(text)}</text>'
