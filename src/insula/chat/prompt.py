"""From messages to the token ids that the model sees.

Owns the rendering of a conversation with one template, its ids, and what gives way when it is
longer than the context. Drops only whole turns, the oldest first, never the system's message and
never the last turn; says how many turns and tokens it dropped.
"""

from __future__ import annotations

import dataclasses
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from insula.chat.calling import Calling
from insula.chat.formats import FORMATS
from insula.chat.go_template import is_go
from insula.chat.plain import Rendered, marked, unmarked
from insula.chat.templates import ChatTemplate
from insula.chat.tool_messages import check_calls
from insula.engine.request import Tokenizer
from insula.errors import ConfigError, ContextOverflowError, TemplateError
from insula.locale import text
from insula.types import Message, SamplingParams

Overflow = Literal["error", "stop", "drop_oldest"]
#: Tokens kept free for an answer without max_tokens when old turns are dropped, at most.
ROOM = 512
#: From this many characters on, tokens are counted before anything is rendered.
MANY_CHARACTERS = 1 << 20
#: Characters that are counted at once, and the tokens that a cut between them may add.
SLICE, SEAM = 1 << 16, 16
OVERFLOWS: tuple[Overflow, ...] = ("error", "stop", "drop_oldest")

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, kw_only=True)
class ChatPrompt:
    """A rendered conversation. dropped_*: what was left out to make it fit."""

    text: str
    ids: tuple[int, ...]
    messages: tuple[Message, ...]
    dropped_turns: int = 0
    dropped_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """How one model is spoken to: its tokenizer, a template and what the template is given.

    calling: what becomes of tools and calls on the way; None: messages go as they are.
    """

    tokenizer: Tokenizer
    template: ChatTemplate
    tools: Sequence[Mapping[str, Any]] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    calling: Calling | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError for tools or arguments that a template cannot be given."""
        _check_tools(self.tools)
        _check_arguments(self.arguments)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was given and the template never looks at."""
        given = [("tools", "tools")] if self.tools else []
        given += [(name, f"template_arguments: {name}") for name in self.arguments]
        source = self.template.source
        unused = tuple(
            text("chat.unused", what=what)
            for name, what in given
            if not re.search(rf"\b{re.escape(name)}\b", source)
        )
        return unused if self.calling is None else (*self.calling.notes, *unused)

    def count(self, messages: Sequence[Message], enough: int) -> int:
        """Tokens that the messages have at least: of what people and tools say. Templates may
        leave out some of what an assistant said, and spaces around a text.

        Goes on to the end or until there are more than `enough` in MANY_CHARACTERS.
        """
        found = characters = 0
        for message in messages:
            content = message.get("content") or ""
            if message["role"] == "assistant":
                continue
            content = content.strip()
            for start in range(0, len(content), SLICE):
                piece = content[start : start + SLICE]
                ids = self.tokenizer.encode(piece, add_special=False, parse_special=True)
                # The whole text may join what the cut between two slices separates.
                found += max(0, len(ids) - SEAM)
                characters += len(piece)
                if found > enough and characters >= MANY_CHARACTERS:
                    return found
        return found

    def prompt(self, messages: Sequence[Message]) -> ChatPrompt:
        """Render and encode, ready for the assistant's answer. Raises TemplateError."""
        rendered = self.render(messages)
        ids = tuple(self.encode(rendered))
        return ChatPrompt(text=rendered.text, ids=ids, messages=tuple(messages))

    def render(self, messages: Sequence[Message]) -> Rendered:
        ways = [list(messages)] if self.calling is None else self.calling.ways(messages)
        *others, last = ways
        for way in others:
            try:
                return self._rendered(way)
            except TemplateError:
                continue
        return self._rendered(last)

    def _rendered(self, messages: Sequence[Message]) -> Rendered:
        mark, given = "", list(messages)
        control_texts = getattr(self.tokenizer, "control_texts", None)
        if control_texts is not None:  # llama.cpp's own tokenizer cannot leave text alone
            given, mark = marked(given, control_texts)
        text = self.template.render(
            given, add_generation_prompt=True, tools=self.tools, **self.arguments
        )
        return unmarked(text, mark)

    def encode_after(
        self, rendered: Rendered, seen: str, seen_ids: Sequence[int]
    ) -> list[int] | None:
        """Ids of rendered text that goes on where `seen` ended; None if it does not, or if what
        follows may join its last token."""
        if not seen or not rendered.text.startswith(seen):
            return None
        rest = self._ids(rendered.after(seen))
        # Only a control token surely begins a new token wherever the text is cut.
        if rest and not self.tokenizer.is_special(rest[0]):
            return None
        return [*seen_ids, *rest]

    def _ids(self, rendered: Rendered) -> list[int]:
        options = {"plain": rendered.plain} if rendered.plain else {}
        return self.tokenizer.encode(
            rendered.text, add_special=False, parse_special=True, **options
        )

    def encode(self, rendered: Rendered) -> list[int]:
        """Ids of rendered text: control tokens are recognized, and the begin token is put first
        where the vocabulary wants one and the template did not write it."""
        tokenizer = self.tokenizer
        ids = self._ids(rendered)
        if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
            ids = [tokenizer.bos_id, *ids]
        return ids


def chat_template(tokenizer: Tokenizer, choice: ChatTemplate | str | None = None) -> ChatTemplate:
    """The model's own template; or the one given: a format's name (`chat.formats`), Jinja, or
    Ollama's Go.

    Raises TemplateError if there is none or it cannot be read.
    """
    if isinstance(choice, ChatTemplate):
        return choice
    if choice is not None and not isinstance(choice, str):
        raise ConfigError(
            f"template: found {type(choice).__name__}; allowed: a ChatTemplate, Jinja source, or "
            f"one of {', '.join(FORMATS)}"
        )
    if choice is None or choice in FORMATS:
        return ChatTemplate.of(tokenizer, name=choice)
    if is_go(choice):
        from insula.chat.go_jinja import translated

        choice = translated(choice)
    return ChatTemplate(
        choice,
        bos_token=_text(tokenizer, tokenizer.bos_id),
        eos_token=_text(tokenizer, tokenizer.eos_id),
    )


def usable(template: str | None) -> tuple[str | None, tuple[str, ...]]:
    """A template that came with a model, in Jinja or as a format's name; None, and a line that
    says why, where it is Ollama's Go and has no translation."""
    if template is None or template in FORMATS or not is_go(template):
        return template, ()
    from insula.chat.go_jinja import translated

    try:
        return translated(template), ()
    except TemplateError as error:
        return None, (text("chat.go_template", reason=error),)


def plain_messages(messages: Any) -> list[Message]:
    """The messages, each with a role and a text. A text in parts, as OpenAI writes it, is joined
    with line feeds; only an assistant that calls tools may say nothing.

    Raises ConfigError that names what was found instead.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise ConfigError(
            "messages: allowed is a list of at least one message such as "
            '{"role": "user", "content": "..."}'
        )
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ConfigError(
                f"messages: found {str(message)[:80]!r}; each is a mapping with a role and content"
            )
    return [_plain_message(at, message) for at, message in enumerate(messages)]


def _plain_message(at: int, message: Message) -> Message:
    check_calls(f"messages[{at}]", message)
    content = message.get("content")
    if isinstance(content, str):
        return message
    if content is None and message["role"] == "assistant" and message.get("tool_calls"):
        return message
    where = f"messages[{at}]: the content of role {message['role'][:40]!r}"
    allowed = 'allowed: text, or a list of parts such as {"type": "text", "text": "..."}'
    if not isinstance(content, list | tuple):
        found = "None" if content is None else type(content).__name__
        raise ConfigError(
            f"{where} is {found}; {allowed}; None only where an assistant has tool_calls"
        )
    pieces = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        piece = part.get("text") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(piece, str):
            found = f"type {kind!r:.40}" if isinstance(part, Mapping) else type(part).__name__
            raise ConfigError(f"{where} has a part of {found}; {allowed}")
        pieces.append(piece)
    return {**message, "content": "\n".join(pieces)}


def _check_tools(tools: object) -> None:
    if tools is None:
        return
    if isinstance(tools, str | Mapping) or not isinstance(tools, Sequence):
        raise ConfigError(
            f"tools: found {type(tools).__name__}; allowed: a list of mappings, JSON schemas as "
            "OpenAI writes them"
        )
    for at, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise ConfigError(
                f"tools[{at}]: found {type(tool).__name__}; each is a mapping such as "
                '{"type": "function", "function": {...}}'
            )


#: What a template is given anyway; an argument of that name would contradict it.
_TAKEN = ("messages", "tools", "add_generation_prompt", "now")


def _check_arguments(arguments: object) -> None:
    if not isinstance(arguments, Mapping):
        raise ConfigError(
            f"template_arguments: found {type(arguments).__name__}; allowed: a mapping such as "
            '{"enable_thinking": False}'
        )
    for name in arguments:
        if not isinstance(name, str) or name in _TAKEN:
            raise ConfigError(
                f"template_arguments: found the name {name!r}; allowed: text other than "
                + ", ".join(_TAKEN)
            )


def check_overflow(overflow: str, allowed: tuple[str, ...] = OVERFLOWS) -> None:
    """Raise ConfigError for a policy that there is not."""
    if overflow not in allowed:
        raise ConfigError(f"overflow: found {overflow!r}; allowed: {', '.join(allowed)}")


def turns(messages: Sequence[M]) -> tuple[list[M], list[list[M]]]:
    """(what the system says at the head, the turns); a turn begins with a user's message."""
    head = 0
    while head < len(messages) and messages[head]["role"] in ("system", "developer"):
        head += 1
    found: list[list[M]] = []
    for message in messages[head:]:
        if message["role"] == "user" or not found:
            found.append([])
        found[-1].append(message)
    return list(messages[:head]), found


def fit(
    messages: Sequence[Message],
    prompt: Callable[[Sequence[Message]], ChatPrompt],
    *,
    n_ctx: int,
    room: int,
    max_tokens: int | None = None,
    dropped: int = 0,
) -> ChatPrompt:
    """The prompt without its oldest turns, as many as must go.

    room: tokens to leave for the answer; max_tokens: what was asked for, if that is why. dropped:
    turns that earlier prompts have left out already and that stay out. Where more must go, an
    eighth of the context is freed besides, so that the next turns need not drop again: after each
    drop everything is computed anew.
    Raises ContextOverflowError if the last turn alone does not fit.
    """
    whole = prompt(messages)
    system, all_turns = turns(messages)

    def without(n: int) -> ChatPrompt:
        if n == 0:
            return whole
        return prompt([*system, *(message for turn in all_turns[n:] for message in turn)])

    last = max(0, len(all_turns) - 1)
    dropped = max(0, min(dropped, last))
    kept = without(dropped)
    if len(kept.ids) + room > n_ctx:
        allowed = n_ctx - n_ctx // 8 - room
        fewest = bisect_left(
            range(dropped + 1, last), 1, key=lambda n: len(without(n).ids) <= allowed
        )
        dropped = min(dropped + 1 + fewest, last)
        kept = without(dropped)
        if len(kept.ids) + room > n_ctx:
            free = n_ctx - len(kept.ids)
            hint = text("chat.turn_too_long")
            if max_tokens is not None and free > 0:
                hint = text("chat.answer_too_long", max_tokens=max_tokens, free=free)
            raise ContextOverflowError(len(kept.ids) + room, n_ctx, hint)
    return ChatPrompt(
        text=kept.text,
        ids=kept.ids,
        messages=kept.messages,
        dropped_turns=dropped,
        dropped_tokens=len(whole.ids) - len(kept.ids),
    )


def fitted(
    messages: Sequence[Message],
    prompt: Callable[[Sequence[Message]], ChatPrompt],
    params: SamplingParams,
    *,
    count: Callable[[Sequence[Message], int], int],
    n_ctx: int,
    overflow: Overflow,
    dropped: int = 0,
) -> tuple[ChatPrompt, SamplingParams, tuple[str, ...]]:
    """The prompt under the policy, what may be generated, and what must be said about it.

    With the policy "error" nothing changes: the engine refuses what is too long. `count` bounds
    the tokens of messages from below: what is far too long is refused before it is rendered.
    """
    _refuse_hopeless(messages, count, n_ctx=n_ctx, overflow=overflow)
    if overflow == "drop_oldest":
        room = min(n_ctx // 4, ROOM) if params.max_tokens is None else params.max_tokens
        kept = fit(
            messages,
            prompt,
            n_ctx=n_ctx,
            room=max(1, room),
            max_tokens=params.max_tokens,
            dropped=dropped,
        )
        if not kept.dropped_turns:
            return kept, params, ()
        note = text(
            "chat.dropped", n_ctx=n_ctx, turns=kept.dropped_turns, tokens=kept.dropped_tokens
        )
        return kept, params, (note,)
    whole = prompt(messages)
    if overflow == "stop":
        return whole, *clipped(params, len(whole.ids), n_ctx)
    return whole, params, ()


def _refuse_hopeless(
    messages: Sequence[Message],
    count: Callable[[Sequence[Message], int], int],
    *,
    n_ctx: int,
    overflow: Overflow,
) -> None:
    """Raise ContextOverflowError for many characters that cannot fit, whatever is dropped."""
    if overflow == "drop_oldest":
        system, all_turns = turns(messages)
        messages = [*system, *(all_turns[-1] if all_turns else [])]
    if sum(len(message.get("content") or "") for message in messages) < MANY_CHARACTERS:
        return
    needed = count(messages, n_ctx)
    if needed > n_ctx:
        hint = "shorten the prompt or raise n_ctx"
        if overflow == "drop_oldest":
            hint = text("chat.turn_too_long")
        raise ContextOverflowError(needed, n_ctx, hint, at_least=True)


def clipped(
    params: SamplingParams, n_prompt: int, n_ctx: int
) -> tuple[SamplingParams, tuple[str, ...]]:
    """The policy "stop": as many tokens as the context still holds, and a note if it is fewer."""
    left = max(0, n_ctx - n_prompt)
    if params.max_tokens is None:
        return (dataclasses.replace(params, max_tokens=0) if left == 0 else params), ()
    if params.max_tokens <= left:
        return params, ()
    note = text("chat.clipped", asked=params.max_tokens, left=left, n_ctx=n_ctx)
    return dataclasses.replace(params, max_tokens=left), (note,)


def _text(tokenizer: Tokenizer, token_id: int | None) -> str | None:
    return None if token_id is None else tokenizer.token_bytes(token_id).decode(errors="replace")
