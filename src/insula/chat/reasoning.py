"""Telling a model's reasoning from its answer, in a finished text and in a stream.

Owns the ways in which well-known models mark reasoning:

    tags      one block at the start of the reply, between two tags that are the model's own:
              <think> (DeepSeek-R1, Qwen3, SmolLM3), [THINK] (Magistral), <seed:think> (Seed-OSS),
              <|START_THINKING|> (Command A), <|channel>thought (Gemma 4), and a few more. Where
              the template itself opened the block (the prompt ends with the tag), the reply
              starts inside it.
    harmony   OpenAI's gpt-oss: a sequence of messages, each with a channel: analysis is reasoning,
              final and what commentary says to the user are the answer
              (cookbook.openai.com/articles/openai-harmony).

The tags must be in the text, so a model's special tokens have to be decoded, not skipped. A tag
anywhere else than at the start is text that the model wrote about tags, and stays in the answer.

Invariants: nothing is lost but the marks themselves and the blank space beside them; a stream's
pieces, put together, are what `split` says of the whole; no piece ever holds a part of a mark.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

Style = Literal["tags", "harmony"]

#: Opening and closing tag.
TAGS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
    ("◁think▷", "◁/think▷"),
)

_START, _CHANNEL, _MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
_LONGEST_HEADER = 1000
_ENDS = ("<|end|>", "<|return|>", "<|call|>")


class Pieces(NamedTuple):
    """Text that became certain: either may be empty."""

    reasoning: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class ReasoningFormat:
    """How one model marks its reasoning in one reply.

    opened: the closing tag of the block that the prompt already opened; "" if it opened none.
    """

    style: Style = "tags"
    opened: str = ""


class Splitter(Protocol):
    """Takes a reply piece by piece."""

    def push(self, text: str, /) -> Pieces: ...
    def flush(self) -> Pieces: ...


def detect(template: str | None, prompt: str = "") -> ReasoningFormat:
    """The format of the reply to a prompt, by the template's source and the prompt's end."""
    if template is not None and _CHANNEL in template and _MESSAGE in template:
        return ReasoningFormat(style="harmony")
    end = prompt.rstrip()
    for opening, closing in TAGS:
        if end.endswith(opening):
            return ReasoningFormat(opened=closing)
    return ReasoningFormat()


def splitter(style: ReasoningFormat | None = None) -> Splitter:
    """A fresh splitter for one reply."""
    chosen = style or ReasoningFormat()
    return HarmonySplitter() if chosen.style == "harmony" else TagSplitter(opened=chosen.opened)


def split(text: str, style: ReasoningFormat | None = None) -> tuple[str | None, str]:
    """(reasoning, answer) of a finished reply; reasoning is None where there is no block at all."""
    whole = splitter(style)
    first, last = whole.push(text), whole.flush()
    reasoning, answer = first.reasoning + last.reasoning, first.answer + last.answer
    return (reasoning if reasoning or _has_block(whole) else None), answer


def _has_block(whole: Splitter) -> bool:
    return bool(getattr(whole, "found", False))


def _held(text: str, marks: tuple[str, ...]) -> int:
    """How many last characters of a text could be the beginning of a mark."""
    longest = max(map(len, marks)) - 1
    for size in range(min(longest, len(text)), 0, -1):
        tail = text[-size:]
        if any(mark.startswith(tail) for mark in marks):
            return size
    return 0


def _first(text: str, marks: tuple[str, ...]) -> tuple[int, str] | None:
    """The mark that comes first, and where; of two at one place the longer."""
    hits = [(text.find(mark), -len(mark), mark) for mark in marks if mark in text]
    if not hits:
        return None
    place, _, mark = min(hits)
    return place, mark


class _Trimmed:
    """Text without the blank space at its ends, given out as soon as that is certain."""

    def __init__(self, *, end: bool) -> None:
        self._end = end  # whether the space at the end goes as well
        self._begun = False
        self._space = ""

    def push(self, text: str) -> str:
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        if not self._end or not text:
            return text
        text = self._space + text
        solid = text.rstrip()
        self._space = text[len(solid) :]
        return solid


class TagSplitter:
    """One block between tags, at the start of the reply or opened by the prompt."""

    def __init__(self, *, opened: str = "") -> None:
        self.found = bool(opened)
        self._closing = opened
        # Some models write the opening tag although the prompt ended with it.
        self._again = next((opening for opening, closing in TAGS if closing == opened), "")
        self._state: Literal["before", "inside", "after"] = "inside" if opened else "before"
        self._buffer = ""
        self._reasoning = _Trimmed(end=True)
        self._answer = _Trimmed(end=False)

    def push(self, text: str) -> Pieces:
        self._buffer += text
        reasoning = answer = ""
        if self._state == "before":
            self._open()
        if self._state == "inside":
            reasoning = self._reason()
        if self._state == "after":
            text, self._buffer = self._buffer, ""
            answer = self._answer.push(text) if self.found else text
        return Pieces(reasoning, answer)

    def flush(self) -> Pieces:
        """What was held back: it was no mark after all."""
        text, self._buffer = self._buffer, ""
        if self._state == "inside":
            return Pieces(self._reasoning.push(text), "")
        return Pieces("", "" if self.found else text)

    def _open(self) -> None:
        start = self._buffer.lstrip()
        for opening, closing in TAGS:
            if start.startswith(opening):
                self.found, self._closing, self._state = True, closing, "inside"
                self._buffer = start[len(opening) :]
                return
        if not any(opening.startswith(start) for opening, _ in TAGS):
            self._state = "after"

    def _reason(self) -> str:
        if self._again:
            start = self._buffer.lstrip()
            if self._again.startswith(start) and start != self._again:
                return ""  # not known yet
            if start.startswith(self._again):
                self._buffer = start[len(self._again) :]
            self._again = ""
        place = self._buffer.find(self._closing)
        if place >= 0:
            text = self._buffer[:place]
            self._buffer = self._buffer[place + len(self._closing) :]
            self._state = "after"
        else:
            keep = len(self._buffer) - _held(self._buffer, (self._closing,))
            text, self._buffer = self._buffer[:keep], self._buffer[keep:]
        return self._reasoning.push(text)


class HarmonySplitter:
    """A sequence of messages: <|channel|>NAME …<|message|>text<|end|><|start|>assistant…

    A tool call (commentary with a recipient) keeps its marks and goes into the answer whole, for
    whoever reads tool calls. Several messages of one kind are parted by a blank line.
    """

    def __init__(self) -> None:
        self.found = False
        self._state: Literal["header", "text"] = "header"
        self._buffer = ""
        self._kind: Literal["reasoning", "answer", "call"] = "answer"
        self._written = {"reasoning": False, "answer": False}
        self._fresh = True  # nothing of this message was given out yet
        self._plain = False  # the reply does not speak harmony: all of it is the answer

    def push(self, text: str) -> Pieces:
        self._buffer += text
        out = {"reasoning": "", "answer": ""}
        while self._step(out, last=False):
            pass
        return Pieces(out["reasoning"], out["answer"])

    def flush(self) -> Pieces:
        out = {"reasoning": "", "answer": ""}
        while self._step(out, last=True):
            pass
        return Pieces(out["reasoning"], out["answer"])

    def _step(self, out: dict[str, str], *, last: bool) -> bool:
        """Use up some of the buffer; whether to go on."""
        if self._plain:
            out["answer"] += self._buffer
            self._buffer = ""
            return False
        return self._header(out, last=last) if self._state == "header" else self._text(out, last)

    def _header(self, out: dict[str, str], *, last: bool) -> bool:
        start = self._buffer.lstrip()
        marks = (_START, _CHANNEL, _MESSAGE)
        speaks = start.startswith(marks) or (not last and any(m.startswith(start) for m in marks))
        if not speaks and start and not self._is_role(start, last=last):
            self._plain = True
            return True
        head, mark, rest = self._buffer.partition(_MESSAGE)
        if len(head) > _LONGEST_HEADER:
            self._plain = True
            return True
        if not mark:
            if last:  # cut off inside a header: it says nothing yet
                self._buffer = ""
            return False
        channel = head.partition(_CHANNEL)[2].split()
        if "to=" in head:
            self._kind = "call"
        elif channel[:1] == ["analysis"]:
            self._kind, self.found = "reasoning", True
        else:
            self._kind = "answer"
        self._state, self._buffer, self._fresh = "text", rest, True
        if self._kind == "call":
            self._give(out, head.lstrip() + _MESSAGE)
        return True

    @staticmethod
    def _is_role(start: str, *, last: bool) -> bool:
        """A header may begin with what follows <|start|>assistant in the prompt: ' to=…'."""
        return start.startswith("to=") or (not last and "to=".startswith(start))

    def _text(self, out: dict[str, str], last: bool) -> bool:
        found = _first(self._buffer, (*_ENDS, _START))
        if found is None:
            keep = len(self._buffer) - (0 if last else _held(self._buffer, (*_ENDS, _START)))
            text, self._buffer = self._buffer[:keep], self._buffer[keep:]
            self._give(out, text)
            return False
        place, mark = found
        self._give(out, self._buffer[:place] + (mark if self._kind == "call" else ""))
        self._buffer = self._buffer[place + (0 if mark == _START else len(mark)) :]
        self._state = "header"
        return True

    def _give(self, out: dict[str, str], text: str) -> None:
        if not text:
            return
        name = "reasoning" if self._kind == "reasoning" else "answer"
        if self._fresh and self._written[name]:
            text = "\n\n" + text
        self._fresh = False
        self._written[name] = True
        out[name] += text
