"""Rows of bench/results as the tables of docs/performance.md.

Everything between the two markers is replaced; the text around them is written by hand.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

BEGIN = "<!-- bench: begin, written by bench/run.py -->"
END = "<!-- bench: end -->"

Row = dict[str, Any]


def write_tables(rows: list[Row], page: Path) -> None:
    """Replace the page's tables by those of `rows` (one run). ValueError if it has no place."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page.name} has no {BEGIN} … {END}")
    page.write_text(f"{before}{BEGIN}\n\n{tables(rows)}\n{END}{after}", encoding="utf-8")


def tables(rows: list[Row]) -> str:
    """A heading with the machine, then one table per model."""
    first = rows[0]
    host = first["machine"]
    parts = [
        (
            f"Run {first['run']} (UTC): {host['cpu']}, {first['threads']} threads of "
            f"{host['cores']} cores, {host['system']}, Python {host['python']}.\n"
        )
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        parts.append(_table(model, mine))
    return "\n".join(parts)


def _table(model: str, rows: list[Row]) -> str:
    peers = sorted({peer for row in rows for peer in row["ratio"]})
    lines = [
        f"### {model}",
        "",
        (
            f"sha256 `{rows[0]['model_sha256'][:16]}…`, read bandwidth of this run "
            f"{rows[0]['bandwidth_gb_per_second']:.1f} GB/s."
        ),
        "",
        _line(
            [
                "engine",
                "ISA",
                "metric",
                "tokens/s",
                "low to high",
                *(f"vs {p}" for p in peers),
                "share of bandwidth",
            ]
        ),
        _line(["---", "---", "---", "---:", "---:", *("---:" for _ in peers), "---:"]),
    ]
    for row in rows:
        name = f"{row['subject'].split()[0]} {row['version']}" + (
            f" ({c})" if (c := row["commit"]) else ""
        )
        tokens = f"{row['metric']} {row['tokens']}"
        if row["at_context"]:
            tokens += f" at {row['at_context']}"
        ratios = [f"{row['ratio'][p]:.2f}x" if p in row["ratio"] else "" for p in peers]
        share = row.get("share_of_bandwidth")
        lines.append(
            _line(
                [
                    name,
                    row["isa"],
                    tokens,
                    f"{row['tokens_per_second']:.1f}",
                    f"{row['low']:.1f} to {row['high']:.1f}",
                    *ratios,
                    "" if share is None else f"{100 * share:.0f}%",
                ]
            )
        )
    return "\n".join([*lines, ""])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
