"""Messages into the text that a model was trained on, by the model's own template.

Owns `ChatTemplate` and the decision where a template runs. Built-in formats and published
templates that were read (known.py) render here, in a fraction of a millisecond; every other one is
a stranger's program and renders in a bounded child process: 1 s of processor time, 64 MB of
memory, 1 MB of output beyond its input, no files, no network. The child is started once and kept,
so that it costs about as little from the second message on. There is no way to run an unknown
template unbounded.

Renders as transformers' apply_chat_template does, for the same messages, tools and options.
Refuses data that a template could do more with than read: everything is rebuilt from plain JSON
types. Whether a client may bring its own template is not decided here (the server says no).
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from insula.chat.formats import FORMATS
from insula.errors import ConfigError, TemplateError
from insula.security.child import BoundedChild, BoundExceededError, Limits, WorkFailedError
from insula.types import Message

#: Up to here a known template renders in this process: two of them are quadratic in messages.
MAX_KNOWN_MESSAGES = 500
MAX_KNOWN_CHARACTERS = 4 << 20

_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


class HasTemplate(Protocol):
    """What is needed of a tokenizer."""

    @property
    def chat_template(self) -> str | None: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_id(self) -> int | None: ...
    def token_bytes(self, token_id: int, /) -> bytes: ...


class ChatTemplate:
    """One template, ready to render."""

    def __init__(
        self, source: str, *, bos_token: str | None = None, eos_token: str | None = None
    ) -> None:
        """source: Jinja. bos_token, eos_token: the model's, as text; None leaves them undefined."""
        if not source.strip():
            raise TemplateError(
                "the chat template is empty; give a Jinja source, or choose one of the formats "
                + ", ".join(FORMATS)
            )
        from insula.chat import known

        self.source = source
        self.origin = known.origin(source)
        self._tokens = {
            name: token
            for name, token in (("bos_token", bos_token), ("eos_token", eos_token))
            if token is not None
        }

    @classmethod
    def named(
        cls, name: str, *, bos_token: str | None = None, eos_token: str | None = None
    ) -> ChatTemplate:
        """A built-in format. Raises ConfigError for a name that is not in `FORMATS`."""
        if name not in FORMATS:
            raise ConfigError(
                f"chat_template: {name!r} is no format; allowed: {', '.join(FORMATS)}"
            )
        # These two are spelled out in the sources: a missing one is no text rather than an error.
        return cls(FORMATS[name], bos_token=bos_token or "", eos_token=eos_token or "")

    @classmethod
    def of(cls, tokenizer: HasTemplate, *, name: str | None = None) -> ChatTemplate:
        """A model's own template, or the format that the user chose by name.

        Raises TemplateError where the model has none and no name was given.
        """
        bos = _token_text(tokenizer, tokenizer.bos_id)
        eos = _token_text(tokenizer, tokenizer.eos_id)
        if name is not None:
            return cls.named(name, bos_token=bos, eos_token=eos)
        if tokenizer.chat_template is None:
            raise TemplateError(
                "this model has no chat template (it may be a base model, for plain completion); "
                "to chat with it, choose the format it was trained on: " + ", ".join(FORMATS)
            )
        return cls(tokenizer.chat_template, bos_token=bos, eos_token=eos)

    def prepare(self) -> None:
        """Get ready in the background, so that the first render need not wait. Never raises."""
        work = _worker().start if self.origin is None else self._compile
        threading.Thread(target=_quietly, args=(work,), daemon=True).start()

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        now: dt.datetime | None = None,
        **options: Any,
    ) -> str:
        """The prompt. Special tokens are part of it: encode it with parse_special, add_special off.

        tools: JSON schemas as OpenAI writes them. now: the time that strftime_now tells (default:
        the clock's). options: whatever else the template reads, such as enable_thinking.
        Raises TemplateError: the template refuses the messages, fails, or exceeds its bounds; and
        ResourceError where the process that an unknown template needs cannot be started.
        """
        try:
            variables: dict[str, Any] = {
                **self._tokens,
                **_plain_mapping(options, "option"),
                "messages": [_with_reasoning(_plain_message(m)) for m in messages],
                "tools": None if tools is None else _plain(tools, "tools"),
                "documents": None if documents is None else _plain(documents, "documents"),
                "add_generation_prompt": bool(add_generation_prompt),
            }
            if self.origin is not None and _is_small(variables):
                return self._render_here(variables, now)
            return self._render_bounded(variables, now)
        except RecursionError:
            raise TemplateError("the messages or tools are nested too deeply") from None

    def _compile(self) -> None:
        from insula.chat import sandbox

        sandbox.compiled(self.source)

    def _render_here(self, variables: dict[str, Any], now: dt.datetime | None) -> str:
        from insula.chat import sandbox

        try:
            return sandbox.render(self.source, variables, now=now)
        except MemoryError:
            raise TemplateError("the chat template ran out of memory") from None

    def _render_bounded(self, variables: dict[str, Any], now: dt.datetime | None) -> str:
        from insula.chat import worker

        try:
            reply = _worker().call(worker.encode(self.source, variables, now))
        except BoundExceededError as error:
            raise TemplateError(f"the chat template was stopped: {error}") from None
        except WorkFailedError as error:
            if error.kind == "TemplateError":
                raise TemplateError(str(error)) from None
            raise TemplateError(f"the chat template failed: {error.kind}: {error}") from None
        return reply.decode("utf-8", "surrogatepass")


_child: BoundedChild | None = None
_child_lock = threading.Lock()


def _worker() -> BoundedChild:
    """The one child that all unknown templates of this program share."""
    global _child
    with _child_lock:
        if _child is None:
            _child = BoundedChild(
                "insula.chat.worker", packages=("jinja2", "markupsafe"), limits=Limits()
            )
        return _child


def _quietly(work: Any) -> None:
    try:
        work()
    except Exception:  # noqa: BLE001 - whatever it is, the render that follows meets and reports it
        return


def _token_text(tokenizer: HasTemplate, token_id: int | None) -> str | None:
    if token_id is None:
        return None
    return tokenizer.token_bytes(token_id).decode("utf-8", "replace")


def _is_small(variables: Mapping[str, Any]) -> bool:
    from insula.chat.sandbox import input_characters

    return (
        len(variables["messages"]) <= MAX_KNOWN_MESSAGES
        and input_characters(variables) <= MAX_KNOWN_CHARACTERS
    )


def _plain(value: object, where: str) -> Any:
    """The same data in JSON's own types, so that a template finds no methods to call."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, bool | int | float | str):
        for base in (str, int, float):
            if isinstance(value, base):
                return base.__str__(value) if base is str else base(value)
    if isinstance(value, Mapping):
        return _plain_mapping(value, where)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise TemplateError(
        f"{where} holds a {type(value).__name__}; allowed: text, numbers, true, false, null, lists "
        "and mappings"
    )


def _plain_mapping(value: Mapping[Any, Any], where: str) -> dict[str, Any]:
    for key in value:
        if not isinstance(key, str):
            raise TemplateError(f"{where} has the key {key!r}; allowed: text")
    return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}


def _plain_message(message: object) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise TemplateError(
            f"a message is a {type(message).__name__}; allowed: a mapping such as "
            '{"role": "user", "content": "…"}'
        )
    return _plain_mapping(message, "message")


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Reasoning under each of the names that templates read it by (as transformers 5 does)."""
    found = next((message[key] for key in _REASONING_KEYS if message.get(key) is not None), None)
    if found is None:
        return message
    return {"thinking": found, **message, "reasoning_content": found}
