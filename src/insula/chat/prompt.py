"""From messages to the token ids that the model sees.

Owns the rendering of a conversation with one template, its ids, and what gives way when it is
longer than the context. Drops only whole turns, the oldest first, never the system's message and
never the last turn; says how many turns and tokens it dropped.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from insula.chat.formats import FORMATS
from insula.chat.templates import ChatTemplate
from insula.engine.request import Tokenizer
from insula.errors import ConfigError, ContextOverflowError
from insula.types import Message

Overflow = Literal["error", "stop", "drop_oldest"]
OVERFLOWS: tuple[Overflow, ...] = ("error", "stop", "drop_oldest")


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
    """How one model is spoken to: its tokenizer, a template and what the template is given."""

    tokenizer: Tokenizer
    template: ChatTemplate
    tools: Sequence[Mapping[str, Any]] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def prompt(self, messages: Sequence[Message]) -> ChatPrompt:
        """Render and encode, ready for the assistant's answer. Raises TemplateError."""
        text = self.render(messages)
        return ChatPrompt(text=text, ids=tuple(self.encode(text)), messages=tuple(messages))

    def render(self, messages: Sequence[Message]) -> str:
        return self.template.render(
            list(messages), add_generation_prompt=True, tools=self.tools, **self.arguments
        )

    def encode(self, text: str) -> list[int]:
        """Ids of rendered text: control tokens are recognized, and the begin token is put first
        where the vocabulary wants one and the template did not write it."""
        tokenizer = self.tokenizer
        ids = tokenizer.encode(text, add_special=False, parse_special=True)
        if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
            ids = [tokenizer.bos_id, *ids]
        return ids


def chat_template(tokenizer: Tokenizer, choice: ChatTemplate | str | None = None) -> ChatTemplate:
    """The model's own template; or the one given, a format's name (`chat.formats`) or Jinja.

    Raises TemplateError if there is none or it is not Jinja.
    """
    if isinstance(choice, ChatTemplate):
        return choice
    if choice is None or choice in FORMATS:
        return ChatTemplate.of(tokenizer, name=choice)
    return ChatTemplate(
        choice,
        bos_token=_text(tokenizer, tokenizer.bos_id),
        eos_token=_text(tokenizer, tokenizer.eos_id),
    )


def check_messages(messages: Sequence[Message]) -> None:
    """Raise ConfigError unless messages is a sequence of mappings with a role."""
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


def check_overflow(overflow: str, allowed: tuple[str, ...] = OVERFLOWS) -> None:
    """Raise ConfigError for a policy that there is not."""
    if overflow not in allowed:
        raise ConfigError(f"overflow: found {overflow!r}; allowed: {', '.join(allowed)}")


def turns(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """(what the system says at the head, the turns); a turn begins with a user's message."""
    head = 0
    while head < len(messages) and messages[head]["role"] in ("system", "developer"):
        head += 1
    found: list[list[Message]] = []
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
    dropped: int = 0,
) -> ChatPrompt:
    """The prompt without its oldest turns, as many as must go.

    room: tokens to leave for the answer. dropped: turns that earlier prompts have left out
    already and that stay out. Where more must go, an eighth of the context is freed besides, so
    that the next turns need not drop again: after each drop everything is computed anew.
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
            raise ContextOverflowError(
                len(kept.ids) + room, n_ctx, "this turn alone is too long; shorten it"
            )
    return ChatPrompt(
        text=kept.text,
        ids=kept.ids,
        messages=kept.messages,
        dropped_turns=dropped,
        dropped_tokens=len(whole.ids) - len(kept.ids),
    )


def _text(tokenizer: Tokenizer, token_id: int | None) -> str | None:
    return None if token_id is None else tokenizer.token_bytes(token_id).decode(errors="replace")
