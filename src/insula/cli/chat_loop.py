"""The chat on a terminal: read a message, answer it, again.

Ctrl-C stops the answer and keeps what there is of it; at the prompt it drops the line. Ctrl-D
leaves. An error is one line and the chat goes on; a message that failed is not in the history.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from insula.cli import sampling_settings, slash
from insula.cli.answer import Printer, print_all, remarks, statistics
from insula.cli.conversation import Conversation
from insula.cli.failures import complain
from insula.cli.inputs import checked
from insula.cli.line_input import line_source, read_message
from insula.cli.output import is_terminal, note, say, write
from insula.errors import InsulaError
from insula.hub.resolve import Located
from insula.locale import text

if TYPE_CHECKING:
    from insula.llm import LLM
    from insula.types import Completion


class ChatLoop:
    """One chat with one model. `run` returns when the person leaves."""

    def __init__(
        self,
        llm: LLM,
        located: Located,
        *,
        system: str | None,
        settings: dict[str, Any],
        stats: bool,
    ) -> None:
        self._llm = llm
        self._located = located
        self._stats = stats
        self._last: Completion | None = None
        self.conversation = Conversation(model=located.name, system=system, settings=settings)

    def run(self) -> None:
        """Talk until Ctrl-D or /bye."""
        source = line_source(tuple(slash.COMMANDS))
        if is_terminal(sys.stdout):
            say(text("run.welcome", model=self._located.name))
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
            except KeyboardInterrupt:  # before the first piece of an answer
                note(text("run.stopped"))

    def describe(self) -> list[tuple[str, str]]:
        """The model and how full its context is."""
        llm = self._llm
        rows = [
            (text("run.show_model"), self._located.name),
            (text("run.show_engine"), f"{llm.engine} {llm.isa}: {llm.engine_reason}"),
        ]
        if self._last is not None:
            report = self._last.report
            used = report.prompt_tokens + report.completion_tokens
            rows.append((text("run.show_context"), f"{used:,} / {llm.n_ctx:,}"))
        else:
            rows.append((text("run.show_context"), f"{llm.n_ctx:,}"))
        return rows

    def _handle(self, line: str) -> bool:
        """Do what the line says; False to leave."""
        if line.startswith("//"):
            line = line[1:]
        elif line.startswith("/"):
            outcome = slash.execute(self, line)
            if outcome.show is not None:
                say(outcome.show)
            if outcome.ask is not None:
                self._answer(outcome.ask)
            return not outcome.leave
        self._answer(checked(line))
        return True

    def _answer(self, question: str) -> None:
        conversation = self.conversation
        params = sampling_settings.params(conversation.settings)
        messages = [*conversation.all_messages(), {"role": "user", "content": question}]
        printer = Printer()
        chunks = self._llm.chat(messages, params, stream=True)
        completion: Completion | None = None
        try:
            completion = print_all(chunks, printer)
        except KeyboardInterrupt:
            if not printer.text:
                raise
            write("\n")
            note(text("run.stopped"))
        else:
            printer.end()
        finally:
            chunks.close()
        answer = completion.text if completion is not None else printer.text
        conversation.messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        if completion is None:
            return
        self._last = completion
        for line in remarks(completion, limited=params.max_tokens is not None):
            note(line)
        if self._stats:
            note(statistics(completion.report))
