"""How a model is asked for an answer whose words are chosen for it: the prompt, and where those
words begin.

A chat model is asked a question, and its answer is begun with the lead ("The topic of this text
is"); a base model reads question and lead as one text. Control tokens in what is asked about are
text. The conversation is the model's own: its template, and what it always begins with.
"""

from __future__ import annotations

from dataclasses import dataclass

from insula.errors import UnsupportedError
from insula.llm import LLM


@dataclass(frozen=True, kw_only=True)
class Asked:
    """ids: everything before the answer's words. lead: the words right before them, or ""."""

    ids: tuple[int, ...]
    lead: str

    def answer(self, llm: LLM, words: str) -> tuple[int, ...]:
        """The ids of the answer's words after the prompt."""
        if not self.lead:
            return llm.continuation_ids((), words, parse_special=False)
        return llm.continuation_ids(self.lead, f" {words}", parse_special=False)


def check_generates(llm: LLM) -> None:
    """Raise UnsupportedError for a model that gives no text."""
    if llm.gives != "text":
        raise UnsupportedError(
            f"{llm.model_info.name} gives {llm.gives} and no text; take a model that generates "
            "text, such as smollm2:135m",
            backend=llm.model_info.engine,
        )


def asked(llm: LLM, question: str, lead: str) -> Asked:
    """The prompt that asks a model. A base model needs a lead.

    Raises TemplateError, TokenizerError, UnsupportedError (the backend has the template itself).
    """
    if llm.model_info.has_chat_template:
        ids = llm.chat_prompt([{"role": "user", "content": question}]).ids
        if lead:
            ids = (*ids, *llm.continuation_ids(ids, lead, parse_special=False))
    else:
        ids = tuple(llm.tokenize(f"{question}\n\n{lead}", parse_special=False))
    return Asked(ids=ids, lead=lead)
