"""Rows of bench/results as the tables of docs/performance.md and the READMEs' few figures.

Everything between two markers is replaced; the text around them is written by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

BENCH = ("<!-- bench: begin, written by bench/run.py -->", "<!-- bench: end -->")
README = ("<!-- performance: begin -->", "<!-- performance: end -->")

#: What a README says, by the file's name: the sentence, the table's head, and the metrics' names.
SUMMARY = {
    "README.md": (
        "Medians of one interleaved run. Every peer, the limits, and how to repeat it:",
        ("model", "figure", "Insula", "best peer", "times"),
        {"prefill": "prefill", "decode": "decode", "streams": "streams together"},
    ),
    "README.es.md": (
        "Medianas de una ejecución alternada. Todos los rivales, los límites y cómo repetirla:",
        ("modelo", "cifra", "Insula", "el mejor rival", "veces"),
        {"prefill": "prefill", "decode": "decode", "streams": "secuencias a la vez"},
    ),
}

Row = dict[str, Any]


def write_tables(rows: list[Row], page: Path) -> None:
    """Replace the page's tables by those of `rows` (one run). ValueError if it has no place."""
    _replace(page, BENCH, tables(rows))


def write_summary(rows: list[Row], page: Path) -> None:
    """Replace a README's figures. ValueError if it has no place."""
    sentence, head, names = SUMMARY[page.name]
    lines = [line(head), line(("---", "---", "---:", "---:", "---:"))]
    for row in rows:
        if row["engine"] != "insula" or row["metric"] != "speed" or "median" not in row:
            continue
        if row["scenario"] not in ("prefill-512", "decode-128", "streams-16"):
            continue
        if (peer := best_peer(rows, row)) is None:
            continue
        what = f"{row['size']} {names['streams']}"
        if row["kind"] != "streams":
            what = f"{names[row['kind']]} {row['size']}"
        lines.append(
            line(
                (
                    row["model"],
                    what,
                    f"{number(row['median'])} tokens/s",
                    f"{number(peer['median'])} ({peer['engine']})",
                    f"{row['times_better'][peer['engine']]['median']:.2f}",
                )
            )
        )
    table = "\n" + "\n".join(lines) + "\n" if len(lines) > 2 else ""
    link = "[docs/performance.md](docs/performance.md)"
    _replace(page, README, f"{sentence} {link}.\n{table}", gap="\n")


def tables(rows: list[Row]) -> str:
    """A heading with the machine, then one table per model."""
    first = rows[0]
    host = first["machine"]
    parts = [
        (
            f"Run {first['run']} (UTC): {host['cpu']}, {first['threads']} threads of "
            f"{host['cores']} cores, {host['system']}, Python {host['python']}, load before "
            f"{first['load_before']}.\n"
        )
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        parts.append(_table(model, [row for row in rows if row["model"] == model]))
    return "\n".join(parts)


def best_peer(rows: Sequence[Row], mine: Row, isa: str | None = None) -> Row | None:
    """The peer that did best at what `mine` is, at one level if one is named."""
    peers = [
        row
        for row in rows
        if row["model"] == mine["model"]
        and row["scenario"] == mine["scenario"]
        and row["metric"] == mine["metric"]
        and not is_ours(row["engine"])
        and "median" in row
        and isa in (None, row["isa"])
    ]
    if not peers:
        return None
    return (max if mine["higher_is_better"] else min)(peers, key=lambda row: row["median"])


def is_ours(engine: str) -> bool:
    return engine.split(" ", maxsplit=1)[0] == "insula"


def number(value: float) -> str:
    """Three digits or more, none of them noise."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value < 10 else f"{value:.1f}"


def line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _table(model: str, rows: list[Row]) -> str:
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    ours = [e for e in engines if is_ours(e)]
    limits = rows[0]["limits"]
    lines = [
        f"### {model}",
        "",
        (
            f"sha256 `{rows[0]['model_sha256'][:16]}…`; this run read "
            f"{limits['gb_per_second']:.1f} GB/s and did {limits['int8_gops']:,.0f} billion int8 "
            "operations a second at most."
        ),
        "",
    ]
    if picture := rows[0].get("picture"):
        lines += [f"![{model}: prefill, decode, streams](../{picture})", ""]
    lines += [f"- {_who(rows, engine)}" for engine in engines]
    if not any(not is_ours(e) for e in engines):
        ours = []
    lines += [
        "",
        line(["", "unit", *engines, *(f"{e} to the best peer{_same(rows, e)}" for e in ours)]),
        line(["---", "---", *("---:" for _ in engines), *("---:" for _ in ours)]),
    ]
    notes: list[str] = []
    for key in dict.fromkeys((row["scenario"], row["metric"]) for row in rows):
        found = {row["engine"]: row for row in rows if (row["scenario"], row["metric"]) == key}
        any_row = next(iter(found.values()))
        name = key[0] if key[1] == "speed" else f"{key[0]}: {key[1]}"
        cells = [_cell(found.get(engine), notes) for engine in engines]
        lines.append(line([name, any_row["unit"], *cells, *(_times(rows, found, e) for e in ours)]))
    lines += ["", *(f"{n}. {note}" for n, note in enumerate(notes, 1))]
    return "\n".join([*lines, ""])


def _who(rows: list[Row], engine: str) -> str:
    mine = [row for row in rows if row["engine"] == engine]
    ran = next((row for row in mine if "version" in row), None)
    if ran is None:
        return f"**{engine}**: {mine[0]['cannot']}"
    commit = f" ({ran['commit']})" if ran.get("commit") else ""
    return f"**{engine}**: {ran['version']}{commit}, {ran['isa']}"


def _same(rows: list[Row], engine: str) -> str:
    """What a column of ratios says of its peers: those of the same level, for a chosen level."""
    isa = _level(rows, engine)
    return f" at {isa}" if isa else ""


def _level(rows: list[Row], engine: str) -> str | None:
    """The level that was asked for, None for the best one."""
    if " " not in engine:
        return None
    return next((row["isa"] for row in rows if row["engine"] == engine and "isa" in row), None)


def _cell(row: Row | None, notes: list[str]) -> str:
    if row is None:
        return ""
    if "median" not in row:
        if row["cannot"] not in notes:
            notes.append(row["cannot"])
        return f"({notes.index(row['cannot']) + 1})"
    low, high = number(row["low"]), number(row["high"])
    return f"**{number(row['median'])}**<br>{low} to {high}<br>{100 * row['share']:.0f}%"


def _times(rows: list[Row], found: dict[str, Row], engine: str) -> str:
    mine = found.get(engine)
    if mine is None or "median" not in mine:
        return ""
    peer = best_peer(rows, mine, _level(rows, engine))
    if peer is None or peer["engine"] not in mine["times_better"]:
        return ""
    r = mine["times_better"][peer["engine"]]
    return f"**{r['median']:.2f}**<br>{r['low']:.2f} to {r['high']:.2f}<br>{peer['engine']}"


def _replace(page: Path, markers: tuple[str, str], text: str, gap: str = "\n\n") -> None:
    whole = page.read_text(encoding="utf-8")
    before, begin, rest = whole.partition(markers[0])
    _, end, after = rest.partition(markers[1])
    if not begin or not end:
        raise ValueError(f"{page.name} has no {markers[0]} … {markers[1]}")
    page.write_text(f"{before}{begin}{gap}{text}{end}{after}", encoding="utf-8")
