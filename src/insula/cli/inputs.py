"""Text that comes in: from the command line or from a pipe, checked before anything is loaded."""

from __future__ import annotations

import os
import select
import stat
import sys
from pathlib import Path

from insula.cli.output import is_terminal, note
from insula.errors import ConfigError, NotFoundError
from insula.locale import text

#: More than any context holds; a mistaken pipe (`cat disk.img |`) ends here, not in memory.
MAX_INPUT = 64 << 20


def checked(value: str) -> str:
    """`value` if it is valid Unicode. Raises ConfigError: a byte of the command line was not."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ConfigError(text("cli.not_utf8")) from None
    return value


def within(option: str, value: int | None, high: int, low: int = 1) -> None:
    """Raise ConfigError, in terms of the option that was typed, for a number out of range."""
    if value is not None and not low <= value <= high:
        raise ConfigError(text("cli.out_of_range", option=option, low=low, high=high, value=value))


def read_stdin() -> str:
    """All of standard input as UTF-8. Raises ConfigError if it is not, or too long."""
    if sys.stdin is None:
        return ""
    announce_waiting()
    data = sys.stdin.buffer.read(MAX_INPUT + 1)
    if len(data) > MAX_INPUT:
        raise ConfigError(text("cli.input_too_long", limit=MAX_INPUT >> 20))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(text("cli.stdin_not_utf8", at=error.start)) from None


def read_text(path: Path) -> str:
    """A file as UTF-8. Raises NotFoundError, and ConfigError if it is no such text, or too long."""
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_INPUT else None
    except FileNotFoundError:
        raise NotFoundError(text("cli.no_such_file", path=path)) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(text("cli.file_trouble", path=path, reason=reason)) from None
    if data is None:
        raise ConfigError(text("cli.file_too_long", path=path, limit=MAX_INPUT >> 20))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(text("cli.file_not_utf8", path=path, at=error.start)) from None


def not_an_input(target: Path, *given: Path | None) -> None:
    """Raise ConfigError if writing `target` would destroy something that was given: that file
    itself, whatever it is called, another part of it, or what lies in that folder."""
    from insula.formats.gguf_split import siblings

    for path in given:
        if path is None:
            continue
        inside = path.is_dir() and target.resolve().is_relative_to(path.resolve())
        if (
            (inside and target.exists())
            or target.absolute() == path.absolute()
            or (target.exists() and any(p.exists() and target.samefile(p) for p in siblings(path)))
        ):
            raise ConfigError(text("cli.target_is_input", path=target))


def something_is_piped_in() -> bool:
    """Whether standard input is a pipe or a file, and not a terminal or nothing."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def announce_waiting() -> None:
    """Tell a person whose pipe stays silent for a second what is being waited for."""
    if sys.platform == "win32" or not is_terminal(sys.stderr):
        return  # select() takes only sockets there
    try:
        ready, _, _ = select.select([0], [], [], 1.0)
    except (OSError, ValueError):
        return
    if not ready:
        note(text("run.waiting_for_input"))


def stdin_is_terminal() -> bool:
    """Whether a person types there."""
    return sys.stdin is not None and sys.stdin.isatty()
