"""GPT4All's two ways of writing a chat, as token ids.

The old one is a string with a place for the user's text ({0}) and one for the answer ({1}, at
the end if it is missing); its own text may hold special tokens, the user's may not. The new one
is a Jinja template. Told apart by Jinja's brackets.

Follows gpt4all 2.8.2: system prompt, then per turn the template up to {0}, the user's text, the
template up to {1}, the answer, the rest; a blank line where there is no rest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from insula.chat.plain import Rendered
from insula.engine.request import Tokenizer
from insula.errors import ConfigError

#: What follows an answer if the template does not say.
DEFAULT_SUFFIX = "\n\n"


def is_jinja(template: str) -> bool:
    """Whether a template is written in Jinja."""
    return "{{" in template or "{%" in template


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """An old-style template, taken apart."""

    before: str
    between: str
    after: str

    @classmethod
    def parse(cls, template: str) -> PromptTemplate:
        """Raises ConfigError (a ValueError) for a template without {0}, or with %1."""
        if re.search(r"%1(?![0-9])", template):
            raise ConfigError(
                "Prompt template containing a literal '%1' is not supported. For a prompt "
                "placeholder, please use '{0}' instead."
            )
        try:
            # Python's own rules for braces: {{ is a brace, {0} a place.
            marked = template.format("\0user\0", "\0answer\0")
        except (IndexError, KeyError, ValueError) as error:
            raise ConfigError(
                f"prompt_template: found {template!r}; allowed are the places {{0}} for the "
                f"user's text and {{1}} for the answer ({error})"
            ) from error
        before, place, rest = marked.partition("\0user\0")
        if not place:
            raise ConfigError(f"prompt_template: found {template!r}; it must have a place {{0}}")
        between, place, after = rest.partition("\0answer\0")
        return cls(before=before, between=between, after=after if place else DEFAULT_SUFFIX)


class PlainTranscript:
    """The token ids of a chat in the old style, growing turn by turn."""

    def __init__(self, tokenizer: Tokenizer, template: PromptTemplate, system_prompt: str) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._ids = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
        self._ids += self._own(system_prompt)

    def ask(self, prompt: str) -> list[int]:
        """The ids to complete for the user's next text. Changes nothing."""
        user = self._tokenizer.encode(prompt, add_special=False, parse_special=False)
        template = self._template
        return [*self._ids, *self._own(template.before), *user, *self._own(template.between)]

    def answered(self, prompt: str, asked: list[int], text: str, answer: list[int]) -> None:
        """Take the turn in: what was asked and what came back, as text and as ids."""
        self._ids = [*asked, *answer, *self._own(self._template.after)]

    def _own(self, text: str) -> list[int]:
        """The template's text, where a special token's name is that token."""
        return self._tokenizer.encode(text, add_special=False, parse_special=True) if text else []


class JinjaTranscript:
    """A chat in the new style: rendered anew each turn, by the model's template or a given one.

    What was generated keeps its ids, so that the engine finds every earlier turn in its cache.
    Raises TemplateError where there is no template or it fails.
    """

    def __init__(self, tokenizer: Tokenizer, template: str | None, system: str) -> None:
        from insula.chat.prompt import ChatFormat, chat_template

        self._format = ChatFormat(tokenizer=tokenizer, template=chat_template(tokenizer, template))
        self._messages: list[dict[str, str]] = []
        if system:
            self._messages.append({"role": "system", "content": system})
        self._seen: tuple[str, list[int]] = ("", [])

    def ask(self, prompt: str) -> list[int]:
        """The ids to complete for the user's next text. Changes nothing."""
        rendered = self._asked(prompt)
        ids = self._format.encode_after(rendered, *self._seen)
        return self._format.encode(rendered) if ids is None else ids

    def answered(self, prompt: str, asked: list[int], text: str, answer: list[int]) -> None:
        """Take the turn in: what was asked and what came back, as text and as ids."""
        self._seen = (self._asked(prompt).text + text, [*asked, *answer])
        self._messages += [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": text},
        ]

    def _asked(self, prompt: str) -> Rendered:
        return self._format.render([*self._messages, {"role": "user", "content": prompt}])
