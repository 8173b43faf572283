"""What goes to standard output: plain text, columns or one JSON document.

Escape codes only on a terminal that wants them (NO_COLOR, https://no-color.org, and TERM=dumb
are obeyed). Text out of a model or its file reaches a terminal without control characters; a
pipe gets it unchanged.
"""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person reads (or types) there."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def wants_colour(stream: TextIO | None) -> bool:
    """Whether escape codes are welcome there."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return is_terminal(stream) and not plain


def tame(value: str) -> str:
    """`value` without the control characters that could drive a terminal."""
    return value.translate(_CONTROLS)


def say(value: str = "", end: str = "\n") -> None:
    """Text on standard output; tamed on a terminal."""
    stream = sys.stdout
    if is_terminal(stream):
        value = tame(value)
    write(value + end)


def write(value: str) -> None:
    """Text on standard output as it is, at once; what its encoding lacks becomes '?'."""
    stream = sys.stdout
    try:
        stream.write(value)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        stream.write(value.encode(encoding, "replace").decode(encoding))
    stream.flush()


def say_json(value: Any) -> None:
    """One JSON document on standard output."""
    # Escaped where the output cannot hold every character; the document is the same.
    ascii_only = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    write(json.dumps(value, ensure_ascii=ascii_only, indent=2, allow_nan=False) + "\n")


def note(value: str) -> None:
    """A line for the person on standard error, out of the way of what a program reads."""
    if sys.stderr is not None:
        print(tame(value), file=sys.stderr, flush=True)


def width(value: str) -> int:
    """Columns that `value` takes on a terminal."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in value
    )


def columns(header: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A table of text, two spaces between columns; those in `right` are set flush right."""
    cells = [list(header), *([tame(cell) for cell in row] for row in rows)]
    widths = [max(width(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        padded = [
            " " * (widths[i] - width(cell)) + cell
            if i in right
            else cell + " " * (widths[i] - width(cell))
            for i, cell in enumerate(row)
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values in two columns; a value of several lines keeps its column."""
    rows = list(pairs)
    left = max((width(name) for name, _ in rows), default=0)
    lines = []
    for name, value in rows:
        first, *rest = tame(value).split("\n")
        lines.append(f"{name}{' ' * (left - width(name))}  {first}".rstrip())
        lines += [f"{' ' * left}  {line}".rstrip() for line in rest]
    return "\n".join(lines)


def size(count: float) -> str:
    """Bytes for a person: 98.4 MB. Powers of ten, as disks and downloads are counted."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit in ("B", "kB") else f"{count:.1f} {unit}"


def number(count: float) -> str:
    """A count for a person: 134.5 M, 1.07 G."""
    for unit in ("", " k", " M"):
        if abs(count) < 999.5:
            return f"{count:.0f}" if not unit else f"{count:.1f}{unit}"
        count /= 1000
    return f"{count:.2f} G"
