"""A conversation that goes on: its messages, and the tokens that the model has seen of them.

Owns `ChatSession`. The history is plain messages that anyone may edit. What keeps a turn cheap is
that its prompt repeats the ids of the turns before it exactly, those that the model generated
included, so that the engine finds them in its cache; where the rendered text differs from what
was seen (an edited history, a template that rewrites earlier answers), the text is encoded anew
and the cache serves as much as is the same.

Refuses: two answers at once (a new turn ends the one before). Not for use by several threads.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from insula.chat import calling, whole
from insula.chat.prompt import (
    ChatFormat,
    ChatPrompt,
    Overflow,
    check_overflow,
    fitted,
    plain_messages,
    turns,
)
from insula.chat.reply import Reply
from insula.chat.tool_calls import as_message
from insula.engine.options import sampling_params
from insula.engine.request import Handle, Request, TextEngine
from insula.engine.stream import Stream
from insula.errors import ConfigError, FormatError, InsulaError, NotFoundError
from insula.locale import text
from insula.security.small_file import NotRegularError, TooLongError, read_small
from insula.types import Completion, Constraint, Message, SamplingParams

FILE_FORMAT, FILE_VERSION = "insula-chat", 1
#: Bytes of a saved chat, at most: more text than any context holds.
MAX_FILE = 64 << 20


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Turn:
    """An answer that is being given. before: the history without it and its question. prompt and
    reply: None where the engine was given the conversation whole."""

    handle: Handle
    prompt: ChatPrompt | None
    reply: Reply | None
    before: list[dict[str, Any]]


class ChatSession:
    """Made by `LLM.chat_session()`. Messages in, answers out, history kept.

    messages: the history, a list that may be edited between turns; the system's message is its
    first entry if there is one.
    """

    def __init__(
        self,
        engine: TextEngine,
        chat_format: ChatFormat | None,
        *,
        system: str | None = None,
        opening: Sequence[Message] = (),
        params: SamplingParams | None = None,
        constraint: Constraint | None = None,
        overflow: Overflow = "error",
        salt: str = "",
        adapter: str | None = None,
        notes: tuple[str, ...] = (),
        model: str = "",
    ) -> None:
        """chat_format: None for an engine that has the template itself. opening: messages that
        every conversation begins with. params: the defaults of every turn. constraint: the form of
        every answer. model: a name for the file that `save` writes."""
        check_overflow(overflow)
        self._opening = [dict(message) for message in opening]
        self.messages: list[dict[str, Any]] = [dict(message) for message in opening]
        self.overflow: Overflow = overflow
        self.params = SamplingParams() if params is None else params
        self._engine = engine
        self._format = chat_format
        self._constraint = constraint
        self._salt = salt
        self._adapter = adapter
        self._notes = notes
        self._model = model
        self._turn: _Turn | None = None
        # What the model has seen, as text and ids: the last prompt, and it with the raw answer.
        self._seen: list[tuple[str, tuple[int, ...]]] = []
        self._dropped: list[list[dict[str, Any]]] = []  # turns left out of the last prompt
        if system is not None:
            self.system = system

    @property
    def system(self) -> str | None:
        """What the system says; None where it says nothing. May be set at any time."""
        first = self.messages[0] if self.messages else None
        return str(first["content"]) if first and first["role"] == "system" else None

    @system.setter
    def system(self, content: str | None) -> None:
        if self.system is not None:
            del self.messages[0]
        if content is not None:
            self.messages.insert(0, {"role": "system", "content": content})

    def send(
        self,
        message: str | Message,
        params: SamplingParams | None = None,
        **options: Any,
    ) -> Completion:
        """Say something and wait for the whole answer. Both go into the history.

        message: text, or a whole message (a tool's result, a text in parts). Options are those
        of SamplingParams. On an error the history is as it was before; of an interrupted answer
        what was said stays.
        Raises ConfigError, ContextOverflowError, TemplateError, EngineError.
        """
        return _last(self.stream(message, params, **options))

    def stream(
        self,
        message: str | Message,
        params: SamplingParams | None = None,
        **options: Any,
    ) -> Stream:
        """As `send`, chunk by chunk. Closing the stream ends the answer; what was said stays."""
        self._end_turn()
        if isinstance(message, str):
            message = {"role": "user", "content": message}
        [plain] = plain_messages([message])
        return self._answer([*self.messages, dict(plain)], params, options)

    def regenerate(self, params: SamplingParams | None = None, **options: Any) -> Completion:
        """Answer the last message again, in place of the answer there is.

        Without a seed another is drawn. Raises ConfigError where nothing was asked yet.
        """
        return _last(self.regenerate_stream(params, **options))

    def regenerate_stream(self, params: SamplingParams | None = None, **options: Any) -> Stream:
        """As `regenerate`, chunk by chunk."""
        self._end_turn()
        kept = list(self.messages)
        while kept and kept[-1]["role"] == "assistant":
            kept.pop()
        if not kept or kept[-1]["role"] in ("system", "developer"):
            raise ConfigError("there is nothing to answer again; send a message first")
        return self._answer(kept, params, options)

    def clear(self) -> None:
        """Forget everything but what the system says and the opening."""
        self._end_turn()
        head = [m for m in turns(self.messages)[0] if m not in self._opening]
        self.messages[:] = [*head, *(dict(message) for message in self._opening)]
        self._seen.clear()
        self._dropped.clear()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the history as JSON, whole or not at all. Raises OSError, ConfigError."""
        self._end_turn()
        path = Path(path)
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ConfigError(f"{path} is a device or a pipe; name an ordinary file")
        data = {
            "format": FILE_FORMAT,
            "version": FILE_VERSION,
            "model": self._model,
            "messages": self.messages,
        }
        _write(path, data)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Put the history of a file that `save` wrote in place of this one.

        Raises NotFoundError, FormatError (not such a file, or longer than MAX_FILE bytes).
        """
        self._end_turn()
        self.messages[:] = _read(Path(path))
        self._seen.clear()
        self._dropped.clear()

    def close(self) -> None:
        """End an answer that is still running."""
        self._end_turn()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _answer(
        self,
        messages: list[dict[str, Any]],
        params: SamplingParams | None,
        options: Mapping[str, Any],
    ) -> Stream:
        """Queue the answer to `messages`; they become the history once it has begun."""
        params = sampling_params(self.params if params is None else params, options)
        messages = [*cast("list[dict[str, Any]]", plain_messages(messages))]
        if self._format is None:
            return self._answer_whole(messages, params)
        n = len(self._dropped)
        if turns(messages)[1][:n] != self._dropped:  # the history was edited
            n = 0
        prompt, params, notes = fitted(
            messages,
            self._prompt,
            params,
            count=self._format.count,
            n_ctx=self._engine.n_ctx,
            overflow=self.overflow,
            dropped=n,
        )
        called = self._format.calling
        calls = None if called is None or called.choice is None else called.form
        reply = Reply(self._format.template.source, prompt.text, calls=calls)
        held_to = self._constraint
        if called is not None:
            held_to = calling.held_to(
                held_to,
                called,
                thinking=reply.thinking,
                prompt=prompt.text,
                tokenizer=self._format.tokenizer,
            )
        handle = self._engine.submit(
            Request(
                ids=prompt.ids,
                params=params,
                constraint=held_to,
                salt=self._salt,
                adapter=self._adapter,
                continues=False,
                skip_special=not reply.shows_special,
                notes=(*self._notes, *self._format.notes, *notes),
                dropped_turns=prompt.dropped_turns,
                dropped_tokens=prompt.dropped_tokens,
            )
        )
        self._turn = turn = _Turn(
            handle=handle, prompt=prompt, reply=reply, before=list(self.messages)
        )
        self.messages[:] = messages
        self._dropped = turns(messages)[1][: prompt.dropped_turns]
        self._seen = [(prompt.text, prompt.ids)]
        return Stream(
            handle,
            on_chunk=reply.chunk,
            on_end=lambda completion: self._record(turn, completion),
            on_error=lambda: self._withdraw(turn),
        )

    def _answer_whole(self, messages: list[dict[str, Any]], params: SamplingParams) -> Stream:
        """As `_answer`, by an engine that has the template itself; nothing of it is seen here."""
        handle = whole.submit(
            self._engine,
            messages,
            params,
            overflow=self.overflow,
            salt=self._salt,
            notes=self._notes,
        )
        self._turn = turn = _Turn(
            handle=handle, prompt=None, reply=None, before=list(self.messages)
        )
        self.messages[:] = messages
        return Stream(
            handle,
            on_end=lambda completion: self._record(turn, completion),
            on_error=lambda: self._withdraw(turn),
        )

    def _record(self, turn: _Turn, raw: Completion) -> Completion:
        """Put the answer into the history; make of it what the caller sees."""
        prompt = turn.prompt
        completion = raw if turn.reply is None else turn.reply.whole(raw)
        if self._turn is not turn:
            return completion
        if not raw.token_ids and not raw.text and raw.finish_reason == "cancelled":
            self._withdraw(turn)  # nothing was said: as if it had not been asked
            return completion
        self._turn = None
        answer: dict[str, Any] = {"role": "assistant", "content": completion.text}
        if completion.reasoning:
            answer["reasoning_content"] = completion.reasoning
        if completion.tool_calls:
            answer["tool_calls"] = [as_message(call) for call in completion.tool_calls]
        self.messages.append(answer)
        if prompt is None or self._format is None:
            return completion
        # Not where a stop string or a hidden token makes the text less than the ids.
        if self._format.tokenizer.decode(list(raw.token_ids)) == raw.text:
            self._seen.append((prompt.text + raw.text, prompt.ids + raw.token_ids))
        return completion

    def _withdraw(self, turn: _Turn) -> None:
        """The history as it was before the turn."""
        if self._turn is turn:
            self._turn = None
            self.messages[:] = turn.before

    def _prompt(self, messages: Iterable[Message]) -> ChatPrompt:
        """Render, and use the ids that were seen for as much of the text as was seen."""
        assert self._format is not None
        messages = tuple(messages)
        rendered = self._format.render(messages)
        for seen_text, seen_ids in sorted(self._seen, key=lambda seen: -len(seen[0])):
            ids = self._format.encode_after(rendered, seen_text, seen_ids)
            if ids is not None:
                return ChatPrompt(text=rendered.text, ids=tuple(ids), messages=messages)
        return ChatPrompt(
            text=rendered.text, ids=tuple(self._format.encode(rendered)), messages=messages
        )

    def _end_turn(self) -> None:
        """End an answer whose stream was left, and record what it said."""
        turn = self._turn
        if turn is None:
            return
        turn.handle.cancel()
        try:
            self._record(turn, turn.handle.result())
        except InsulaError:
            self._withdraw(turn)  # it had failed; whoever read its stream was told


def _write(path: Path, data: Mapping[str, Any]) -> None:
    """Put a saved chat in place, whole or not at all. An OSError names the target."""
    content = json.dumps(data, ensure_ascii=False, indent=2) + "\n"
    try:
        # A file of its own beside the target, so that the rename stays on one file system.
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def _read(path: Path) -> list[dict[str, Any]]:
    """The messages of a saved chat."""
    try:
        data = json.loads(read_small(path, MAX_FILE).decode())
    except FileNotFoundError:
        raise NotFoundError(text("chat.no_such_file", path=path)) from None
    except NotRegularError:
        raise FormatError(text("chat.not_a_file", path=path)) from None
    except TooLongError:
        limit = MAX_FILE >> 20
        raise FormatError(text("chat.file_too_long", path=path, limit=limit)) from None
    except (ValueError, RecursionError):
        raise FormatError(text("chat.not_a_chat", path=path)) from None
    if not isinstance(data, dict) or data.get("format") != FILE_FORMAT:
        raise FormatError(text("chat.not_a_chat", path=path))
    if data.get("version") != FILE_VERSION:
        found = str(data.get("version"))[:40]
        raise FormatError(text("chat.other_version", path=path, found=found, version=FILE_VERSION))
    messages = data.get("messages")
    try:
        return [] if messages == [] else [dict(m) for m in plain_messages(messages)]
    except ConfigError as error:
        raise FormatError(f"{path}: {error}") from None


def _last(stream: Stream) -> Completion:
    for _ in stream:
        pass
    assert stream.completion is not None
    return stream.completion
