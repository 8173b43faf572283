"""Where a person's lines come from: an editor with history on a terminal, else plain lines.

Enter sends; Alt-Enter or Ctrl-J begins a new line, and so do a trailing backslash and a block in
triple quotes; what is pasted stays together. The history is a file of Insula's own, 0600.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from insula.cli.output import is_terminal
from insula.hub import places

PROMPT = ">>> "
CONTINUED = "... "
QUOTES = '"""'


class LineSource(Protocol):
    """Call it for a line. EOFError at the end, KeyboardInterrupt for Ctrl-C."""

    def __call__(self, prompt: str) -> str: ...


def line_source(commands: tuple[str, ...]) -> LineSource:
    """The editor if both ends are a terminal. `commands` can be completed with Tab."""
    if is_terminal(sys.stdin) and is_terminal(sys.stdout) and os.environ.get("TERM") != "dumb":
        return _editor(commands)
    return _plain


def read_message(source: LineSource) -> str:
    """One message, of several lines if its writer wants."""
    line = source(PROMPT)
    if line.lstrip().startswith(QUOTES):
        return _block(line.lstrip()[len(QUOTES) :], source)
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(source(CONTINUED))
    return "\n".join(lines)


def _block(first: str, source: LineSource) -> str:
    lines = [first]
    while QUOTES not in lines[-1]:
        lines.append(source(CONTINUED))
    lines[-1] = lines[-1].partition(QUOTES)[0]
    return "\n".join(lines).strip("\n")


def _plain(prompt: str) -> str:
    if is_terminal(sys.stdin) and sys.stderr is not None:
        sys.stderr.write(prompt)
        sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n")


def _editor(commands: tuple[str, ...]) -> LineSource:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer, WordCompleter
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    def in_block() -> bool:
        # Enter within triple quotes: the block stays one message, and one entry of the history.
        typed = session.default_buffer.text.lstrip()
        return typed.startswith(QUOTES) and QUOTES not in typed[len(QUOTES) :]

    keys.add("enter", filter=Condition(in_block))(new_line)
    for combination in (("escape", "enter"), ("c-j",)):
        keys.add(*combination)(new_line)

    history: History = InMemoryHistory()
    path = places.home() / "history"
    with suppress(OSError):
        places.private_folder(path.parent)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        history = FileHistory(str(path))

    completer: Completer = WordCompleter(list(commands), sentence=True)
    session: PromptSession[str] = PromptSession(
        history=history,
        key_bindings=keys,
        completer=completer,
        complete_while_typing=False,
        prompt_continuation=CONTINUED,
        enable_open_in_editor=False,
    )

    ask: Callable[..., str] = session.prompt

    def source(prompt: str) -> str:
        return ask(prompt)

    return source
