"""The chat on a terminal: read a message, answer it, again.

Ctrl-C stops the answer and keeps what there is of it; at the prompt it drops the line. Ctrl-D
leaves. An error is one line and the chat goes on; a message that failed is not in the history.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from insula.cli import sampling_settings, slash
from insula.cli.answer import Printer, print_all, remarks, statistics
from insula.cli.failures import complain, report_os_error
from insula.cli.inputs import checked
from insula.cli.line_input import line_source, read_message
from insula.cli.output import is_terminal, note, say
from insula.errors import InsulaError
from insula.locale import text

if TYPE_CHECKING:
    from insula.chat.session import ChatSession
    from insula.engine.stream import Stream
    from insula.llm import LLM
    from insula.types import Completion


class ChatLoop:
    """One chat with one model. `run` returns when the person leaves."""

    def __init__(
        self, llm: LLM, session: ChatSession, *, settings: dict[str, Any], stats: bool
    ) -> None:
        self.session = session
        self.settings = settings
        self.base = llm.default_params
        self._llm = llm
        self._stats = stats
        self._last: Completion | None = None

    def run(self) -> None:
        """Talk until Ctrl-D or /bye."""
        source = line_source(tuple(slash.COMMANDS))
        if is_terminal(sys.stdout):
            say(text("run.welcome", model=self._llm.model_info.name))
        while True:
            try:
                line = read_message(source)
            except KeyboardInterrupt:
                note(text("run.how_to_leave"))
                continue
            except EOFError:
                break
            if not line.strip():
                continue
            try:
                if not self._handle(line):
                    break
            except InsulaError as error:
                complain(str(error))
            except BrokenPipeError:
                raise
            except OSError as error:
                report_os_error(error)
            except KeyboardInterrupt:
                note(text("run.stopped"))

    def describe(self) -> list[tuple[str, str]]:
        """The model and how full its context is."""
        info = self._llm.model_info
        used = "0"
        if self._last is not None:
            report = self._last.report
            used = f"{report.prompt_tokens + report.completion_tokens:,}"
        elif any(message["role"] == "assistant" for message in self.session.messages):
            used = "?"  # a chat that was loaded: its tokens are counted with the next answer
        rows = [
            (text("run.show_model"), f"{info.name} ({info.arch}, {info.quantization})"),
            (text("run.show_engine"), f"{info.engine} {info.isa}: {info.engine_reason}"),
            (text("run.show_context"), f"{used} / {self._llm.n_ctx:,}"),
        ]
        return rows + [("", line) for line in info.notes]

    def _handle(self, line: str) -> bool:
        """Do what the line says; False to leave."""
        params = sampling_settings.params(self.settings, self.base)
        if line.startswith("/") and not line.startswith("//"):
            outcome = slash.execute(self, line)
            if outcome.fresh:
                self._last = None
            if outcome.show is not None:
                say(outcome.show)
            if outcome.regenerate:
                if params.seed is not None:
                    note(text("run.same_seed"))
                self._print(self.session.regenerate_stream(params))
            return not outcome.leave
        # "//" says a message that begins with "/".
        message = line[1:] if line.startswith("//") else line
        self._print(self.session.stream(checked(message), params))
        return True

    def _print(self, stream: Stream) -> None:
        printer = Printer()
        try:
            print_all(stream, printer)
        except KeyboardInterrupt:
            printer.end()
            note(text("run.stopped"))
        else:
            printer.end()
        finally:
            stream.close()
        completion = stream.completion
        if completion is None:
            return
        self._last = completion
        limited = (self.settings.get("max_tokens") or self.base.max_tokens) is not None
        for line in remarks(completion, limited=limited, known=self._llm.model_info.notes):
            note(line)
        if self._stats:
            note(statistics(completion.report))
