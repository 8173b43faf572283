"""`insula`: the entry point, and the only place where a failure becomes a line and an exit code.

0 success; 1 a failure of the work (InsulaError.exit_code); 2 a wrong command line or setting; 3 a
model below the quality that was asked for; 70 a fault of ours; 130 Ctrl-C; 141 the reader of our
output went away; 143 SIGTERM. A traceback is shown only with INSULA_DEBUG=1. Imports nothing
beyond the standard library until it must.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

EXIT_USAGE = 2
EXIT_INTERNAL = 70
EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141
EXIT_TERMINATED = 143


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        with _orderly_end(), _lasting_interrupts():
            return _guarded(args)
    except SystemExit as end:  # SIGTERM between two of the lines below
        return end.code if isinstance(end.code, int) else EXIT_TERMINATED


def _guarded(args: list[str]) -> int:
    try:
        code = _hold_standard_streams()
        if code == 0:
            code = _run(args)
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        code = _interrupted()
    except BrokenPipeError:
        _silence_stdout()
        code = EXIT_CLOSED_PIPE
    except OSError as error:  # standard output is full, or gone
        _silence_stdout()
        from insula.cli.failures import report_os_error

        code = report_os_error(error)
    return code


@contextmanager
def _lasting_interrupts() -> Iterator[None]:
    """Ctrl-C also while modules are imported: there Python calls weak references' callbacks, and
    an exception raised in one is shown and forgotten. So it comes a moment later.
    """
    number = signal.SIGINT
    mine = threading.current_thread() is threading.main_thread()
    timers = hasattr(signal, "setitimer")
    if not mine or not timers or signal.getsignal(number) is not signal.default_int_handler:
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        if frame is not None and frame.f_code.co_filename.startswith("<frozen importlib"):
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        else:
            raise KeyboardInterrupt

    alarm = signal.signal(signal.SIGALRM, interrupt)
    signal.signal(number, interrupt)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(number, signal.default_int_handler)
        signal.signal(signal.SIGALRM, alarm)


@contextmanager
def _orderly_end() -> Iterator[None]:
    """SIGTERM as an exception, so that what is half-written is cleaned up; a second one kills.

    A SIGTERM that is ignored or handled already stays so, and children get the system's default.
    """
    number = signal.SIGTERM
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(number) is not signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise SystemExit(EXIT_TERMINATED)

    signal.signal(number, end)
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_DFL)


def _run(args: list[str]) -> int:
    if args in (["--version"], ["-V"]):
        from insula import __version__

        print(f"insula {__version__}")
        return 0
    from insula.cli.failures import report

    try:
        from insula.cli.commands import invoke

        return invoke(args)
    except (KeyboardInterrupt, BrokenPipeError):
        raise
    except OSError as error:
        if error.filename is None and error.errno == errno.ENOSPC:
            raise  # standard output is full: main() lets go of what its buffer holds
        return report(error)
    except BaseException as error:  # noqa: BLE001 -- the last line of defence
        return report(error)


def _hold_standard_streams() -> int:
    """Make sure that descriptors 0, 1 and 2 are taken, so that no model file gets their number."""
    missing = [sys.stdin is None, sys.stdout is None, sys.stderr is None]
    if not any(missing):
        return 0
    while True:
        fd = os.open(os.devnull, os.O_RDWR)
        if fd > 2:
            os.close(fd)
            break
    if missing[1] and not missing[2]:
        from insula.cli.failures import complain
        from insula.locale import text

        complain(text("cli.stdout_closed"))
    return 1 if missing[1] else 0


def _interrupted() -> int:
    try:
        if sys.stderr is not None and sys.stderr.isatty():
            print(file=sys.stderr)
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        _silence_stdout()
    return EXIT_INTERRUPTED


def _silence_stdout() -> None:
    """Point standard output at nothing, so that the interpreter's last flush cannot fail."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
    except OSError:
        pass
