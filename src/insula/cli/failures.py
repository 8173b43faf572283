"""How a failure is told: one line on standard error, in the person's language, and a code."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from contextlib import suppress

from insula.errors import InsulaError
from insula.locale import text

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERNAL = 70


def complain(message: str) -> None:
    """One line on standard error. Control characters in it, which may be a file's, are shown."""
    line = " ".join(message.split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(f"insula: {line}", file=sys.stderr, flush=True)


def report(error: BaseException) -> int:
    """Tell of `error`; returns the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else EXIT_FAILURE
    code = getattr(error, "exit_code", None)
    if type(error).__name__ == "Exit" and isinstance(code, int):
        return code  # typer's way of leaving early
    if os.environ.get("INSULA_DEBUG", "") not in ("", "0"):
        traceback.print_exception(error)
    if isinstance(error, InsulaError):
        complain(str(error))
        return error.exit_code
    if hasattr(error, "format_message") and isinstance(code, int):
        complain(_usage(error))
        return code
    if isinstance(error, MemoryError):
        complain(text("cli.out_of_memory"))
        return EXIT_FAILURE
    if isinstance(error, OSError):
        return report_os_error(error)
    complain(text("cli.internal", kind=type(error).__name__, reason=str(error)[:500]))
    return EXIT_INTERNAL


def report_os_error(error: OSError) -> int:
    """Tell of a failure of the system (a full disk, a file that cannot be written)."""
    reason = error.strerror or str(error)
    if error.errno == errno.ENOSPC and error.filename is None:
        complain(text("cli.no_space_to_write", reason=reason))
    elif error.filename is not None:
        complain(text("cli.file_trouble", path=error.filename, reason=reason))
    else:
        complain(text("cli.system_trouble", reason=reason))
    return EXIT_FAILURE


def _usage(error: BaseException) -> str:
    """A wrong command line in our words. The parser's classes are known by name only: which
    module they live in depends on typer's version."""
    kind = type(error).__name__
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "insula"
    hint = text("cli.see_help", command=where)
    if kind == "NoSuchOption":
        option = getattr(error, "option_name", "")
        close = ", ".join(getattr(error, "possibilities", None) or ())
        key = "cli.no_such_option_close" if close else "cli.no_such_option"
        return text(key, option=option, close=close) + hint
    if kind == "MissingParameter":
        param = getattr(error, "param", None)
        name = getattr(param, "metavar", None) or str(getattr(param, "name", "?")).upper()
        return text("cli.missing_argument", name=name) + hint
    message = getattr(error, "message", "") or str(error)
    if kind == "BadOptionUsage":
        return text("cli.option_needs_value", option=getattr(error, "option_name", "")) + hint
    if kind == "BadParameter":
        param = getattr(error, "param", None)
        name = "/".join(param.opts) if param is not None else "?"
        if re.search(r"valid (?:int|integer|float|number)\b", message):
            return text("cli.not_a_number", option=name) + hint
        return text("cli.bad_value", option=name, reason=message.rstrip(".")) + hint
    extra = re.search(r"unexpected extra argument[s()]* \(?(.*?)\)?\.?$", message)
    if extra is not None:
        return text("cli.extra_argument", argument=extra[1]) + hint
    return message.rstrip(".") + hint
