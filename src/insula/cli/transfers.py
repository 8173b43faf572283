"""A download as a person sees it: a bar on a terminal, a few lines elsewhere. On standard error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Self

from insula.cli.output import is_terminal, note, size, tame
from insula.hub.transport import Transfer
from insula.locale import text

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class TransferDisplay:
    """Call it with each Transfer; use it as a context manager. `quiet` shows nothing.

    `used` tells whether bytes were moved.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._shown = ""
        self._told = -1
        self.used = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __call__(self, event: Transfer) -> None:
        self.used = self.used or event.phase == "download"
        if self._quiet:
            return
        if event.phase in ("retry", "wait"):
            self._line(event.note)
        elif event.phase == "connect":
            self._line(event.note or text("pull.connecting", name=event.name))
        elif event.phase == "done":
            self._close()
        elif is_terminal(sys.stderr):
            self._draw(event)
        else:
            self._tell(event)

    def _line(self, message: str) -> None:
        if self._bar is not None:
            self._bar.console.print(tame(message), markup=False, highlight=False)
        else:
            note(message)

    def _label(self, event: Transfer) -> str:
        key = {"check": "pull.checking", "unpack": "pull.unpacking"}.get(
            event.phase, "pull.downloading"
        )
        return text(key, name=tame(event.name))

    def _draw(self, event: Transfer) -> None:
        label = self._label(event)
        if self._bar is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(compact=True),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
        if label != self._shown or self._task is None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(label, total=event.total)
            self._shown = label
        self._bar.update(self._task, completed=event.done, total=event.total)

    def _tell(self, event: Transfer) -> None:
        label = self._label(event)
        if label != self._shown:
            self._shown, self._told = label, -1
            note(label if event.total is None else f"{label} ({size(event.total)})")
        # A log needs few lines: quarters of a download, and only the start of the rest.
        if event.phase != "download" or not event.total:
            return
        quarter = event.done * 4 // event.total
        if quarter > self._told:
            self._told = quarter
            if quarter:
                note(f"{label}: {quarter * 25} %")
