"""`insula tokenize`: how a model reads a text. Needs only the vocabulary of a file."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from insula.cli.inputs import checked, read_stdin, stdin_is_terminal
from insula.cli.output import is_terminal, say, say_json, tame, wants_colour, write
from insula.errors import ConfigError
from insula.formats.gguf import GGUFFile
from insula.hub.resolve import locate
from insula.locale import text
from insula.tokenizer import Tokenizer

# Backgrounds that both dark and light letters can be read on, next to each other (256 colours).
_BACKGROUNDS = (153, 194, 229, 225, 159, 223)
_BLACK = 16


def tokenize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=text("help.model"))],
    words: Annotated[
        str | None, typer.Argument(metavar="TEXT", help=text("help.tokenize_text"))
    ] = None,
    special: Annotated[
        bool, typer.Option("--special/--no-special", help=text("help.tokenize_special"))
    ] = True,
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help=text("help.tokenize_parse"))
    ] = False,
    count: Annotated[bool, typer.Option("--count", help=text("help.tokenize_count"))] = False,
    as_json: Annotated[bool, typer.Option("--json", help=text("help.json"))] = False,
) -> None:
    """The command."""
    path = locate(model).path
    if words is None or words == "-":
        if words is None and stdin_is_terminal():
            raise ConfigError(text("tokenize.no_text"))
        words = read_stdin()
    words = checked(words)
    with GGUFFile.open(path, allow_split=True) as file:
        tokenizer = Tokenizer.from_metadata(file.metadata)
    ids = tokenizer.encode(words, add_special=special, parse_special=parse_special)
    if as_json:
        pieces = [tokenizer.token_bytes(token) for token in ids]
        say_json(
            {
                "count": len(ids),
                "ids": ids,
                "pieces": [piece.decode("utf-8", "backslashreplace") for piece in pieces],
                "bytes": [piece.hex() for piece in pieces],
            }
        )
    elif count:
        say(str(len(ids)))
    elif wants_colour(sys.stdout):
        write(_coloured(tokenizer, ids))
        say(text("tokenize.summary", tokens=len(ids), characters=len(words)))
    else:
        rows = (f"{token}\t{_visible(tokenizer.token_bytes(token))}\n" for token in ids)
        write("".join(rows))
        if is_terminal(sys.stdout):
            say(text("tokenize.summary", tokens=len(ids), characters=len(words)))


def _visible(piece: bytes) -> str:
    """A token on one line: control characters and broken UTF-8 as escapes."""
    shown = piece.decode("utf-8", "backslashreplace")
    return "".join(
        c if c == " " or c.isprintable() else c.encode("unicode_escape").decode() for c in shown
    )


def _coloured(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The text with a background per token; line breaks are shown and kept."""
    out = []
    for at, token in enumerate(ids):
        background = _BACKGROUNDS[at % len(_BACKGROUNDS)]
        piece = tokenizer.token_bytes(token).decode("utf-8", "backslashreplace")
        start = f"\x1b[48;5;{background}m\x1b[38;5;{_BLACK}m"
        lines = [tame(line.replace("\t", "→")) for line in piece.split("\n")]
        # The colour ends before each line break: terminals paint the rest of the line otherwise.
        out.append("↵\x1b[0m\n".join(f"{start}{line}" for line in lines) + "\x1b[0m")
    return "".join(out) + "\n"
