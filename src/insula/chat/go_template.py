"""Go's text/template, read: the language in which Ollama's models state their chat template.

Owns the syntax (https://pkg.go.dev/text/template): text, trim markers, comments, pipelines, if,
range, with, variables. What an action means is `go_jinja`'s. Refuses by name, as TemplateError,
what no model's template needs: define, block, template, methods with arguments, other numbers than
whole ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from insula.errors import TemplateError

MAX_SOURCE = 128 << 10  # characters
MAX_DEPTH = 50

# What begins an action of Go's and nothing that Jinja has.
_GO = re.compile(
    r"\{\{-?\s*(?:[.$]|/\*|(?:if|else|end|range|with|define|block|template|break|continue)\b)"
)
_TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<text>"(?:[^"\\\n]|\\.)*")|(?P<raw>`[^`]*`)|(?P<number>-?\d[\w.]*)"""
    r"""|(?P<variable>\$\w*)|(?P<field>\.[^\W\d]\w*)|(?P<word>[^\W\d]\w*)|(?P<mark>:=|[=|(),.])"""
)
_SPACES = " \t\r\n"
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_SHORT = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    "\\": "\\",
    '"': '"',
    "'": "'",
}


@dataclass(frozen=True, kw_only=True)
class Dot:
    """The value that the template is at."""


@dataclass(frozen=True, kw_only=True)
class Variable:
    """`$name`; `$` alone, with the name "", is what the template was given."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Literal:
    """A constant; None is nil."""

    value: str | int | bool | None


@dataclass(frozen=True, kw_only=True)
class Field:
    """`of.name`"""

    of: Expression
    name: str


@dataclass(frozen=True, kw_only=True)
class Call:
    """A function and what it is given."""

    name: str
    arguments: tuple[Expression, ...]


Expression = Dot | Variable | Literal | Field | Call


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A value; `names` are the variables that take it, new ones if `declares`."""

    value: Expression
    names: tuple[str, ...] = ()
    declares: bool = False


@dataclass(frozen=True, kw_only=True)
class Text:
    """What is written as it stands."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Action:
    """Prints its value, or gives it to a variable."""

    pipeline: Pipeline


@dataclass(frozen=True, kw_only=True)
class Branch:
    """`kind` is if, range or with."""

    kind: str
    pipeline: Pipeline
    body: tuple[Node, ...]
    otherwise: tuple[Node, ...]


@dataclass(frozen=True, kw_only=True)
class Leave:
    """`kind` is break or continue."""

    kind: str


Node = Text | Action | Branch | Leave


@dataclass(frozen=True, kw_only=True)
class _Token:
    kind: str
    text: str
    glued: bool  # nothing between it and the one before


def is_go(template: str) -> bool:
    """Whether a template is in Go's language rather than Jinja."""
    return "{%" not in template and _GO.search(template) is not None


def parse(source: str) -> tuple[Node, ...]:
    """Raises TemplateError that names what is wrong, or not read here."""
    if len(source) > MAX_SOURCE:
        raise TemplateError(
            f"the template has {len(source)} characters; of Go's language {MAX_SOURCE} are read"
        )
    return _Parser(_pieces(source.replace("\r\n", "\n"))).whole()


def _pieces(source: str) -> list[str | list[_Token]]:
    """Texts, and the tokens of each action; trim markers and comments are done with."""
    pieces: list[str | list[_Token]] = []
    at, trim = 0, False
    while True:
        start = source.find("{{", at)
        text = source[at:] if start < 0 else source[at:start]
        if trim:
            text = text.lstrip(_SPACES)
        if (
            start >= 0
            and source[start + 2 : start + 3] == "-"
            and source[start + 3 : start + 4] in (*_SPACES,)
        ):
            text = text.rstrip(_SPACES)
            at = start + 3
        else:
            at = start + 2
        if text:
            pieces.append(text)
        if start < 0:
            return pieces
        comment = re.compile(r"\s*/\*.*?\*/", re.DOTALL).match(source, at)
        if comment:
            tokens, at, trim = _tokens(source, comment.end())
            if tokens:
                raise TemplateError("the template has something beside a comment in one action")
            continue
        tokens, at, trim = _tokens(source, at)
        pieces.append(tokens)


def _tokens(source: str, at: int) -> tuple[list[_Token], int, bool]:
    """The tokens of an action, where it ends, and whether the text after it is trimmed."""
    tokens: list[_Token] = []
    glued = False
    while True:
        if source.startswith("}}", at):
            return tokens, at + 2, False
        if source.startswith("-}}", at) and source[at - 1] in _SPACES:
            return tokens, at + 3, True
        match = _TOKEN.match(source, at)
        if match is None:
            found = source[at : at + 20]
            raise TemplateError(
                f"the template has {found!r} in an action, which is not read here"
                if found
                else "the template ends within an action"
            )
        at = match.end()
        kind = str(match.lastgroup)
        if kind != "space":
            tokens.append(_Token(kind=kind, text=match[0], glued=glued))
        glued = kind != "space"


class _Parser:
    def __init__(self, pieces: Sequence[str | list[_Token]]) -> None:
        self._pieces = pieces
        self._at = 0
        self._ranges = 0

    def whole(self) -> tuple[Node, ...]:
        nodes, end = self._list(0)
        if end:
            raise TemplateError(f"the template has {end[0].text} where nothing is open")
        return nodes

    def _list(self, depth: int) -> tuple[tuple[Node, ...], list[_Token]]:
        """The nodes up to `else` or `end`, and that action; nothing at the template's end."""
        if depth > MAX_DEPTH:
            raise TemplateError("the template is nested too deeply")
        nodes: list[Node] = []
        while self._at < len(self._pieces):
            piece = self._pieces[self._at]
            self._at += 1
            if isinstance(piece, str):
                nodes.append(Text(text=piece))
                continue
            word = piece[0].text if piece and piece[0].kind == "word" else ""
            if word in ("else", "end"):
                if word == "end" and len(piece) > 1:
                    raise _Line(piece).wrong()
                return tuple(nodes), piece
            if word in ("define", "block", "template"):
                raise TemplateError(f"the template uses {word!r}, which is not read here")
            if word in ("break", "continue") and len(piece) == 1:
                if not self._ranges:
                    raise TemplateError(f"the template has {word} where no range is open")
                nodes.append(Leave(kind=word))
            elif word in ("if", "range", "with"):
                nodes.append(self._branch(word, piece[1:], depth))
            else:
                nodes.append(Action(pipeline=_Line(piece).pipeline()))
        return tuple(nodes), []

    def _branch(self, kind: str, head: list[_Token], depth: int) -> Branch:
        pipeline = _Line(head).pipeline(several=kind == "range")
        self._ranges += kind == "range"
        body, end = self._list(depth + 1)
        self._ranges -= kind == "range"
        otherwise: tuple[Node, ...] = ()
        if not end:
            raise TemplateError(f"the template's {kind} has no end")
        if end[0].text == "else":
            if len(end) > 1:  # else if, else with: one end closes both
                if end[1].text not in ("if", "with") or kind == "range":
                    raise TemplateError(f"the template has {end[1].text!r} after else")
                return Branch(
                    kind=kind,
                    pipeline=pipeline,
                    body=body,
                    otherwise=(self._branch(end[1].text, end[2:], depth + 1),),
                )
            otherwise, end = self._list(depth + 1)
            if not end or end[0].text != "end":
                raise TemplateError(f"the template's {kind} has no end")
        return Branch(kind=kind, pipeline=pipeline, body=body, otherwise=otherwise)


class _Line:
    """The tokens of one action."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0

    def pipeline(self, *, several: bool = False) -> Pipeline:
        names: list[str] = []
        declares = False
        marks = [token.text for token in self._tokens if token.kind == "mark"]
        if ":=" in marks or "=" in marks:
            while True:
                names.append(self._take("variable").text[1:])
                mark = self._take("mark").text
                if mark != ",":
                    break
            declares = mark == ":="
            if mark not in (":=", "=") or len(names) > (2 if several else 1) or "" in names:
                raise self.wrong()
        value = self._value(0)
        if self._at < len(self._tokens):
            raise self.wrong()
        return Pipeline(value=value, names=tuple(names), declares=declares)

    def _value(self, depth: int) -> Expression:
        """Commands, each given the value of the one before as its last argument."""
        if depth > MAX_DEPTH:
            raise TemplateError("the template is nested too deeply")
        value = self._command(depth, None)
        while self._peek() == "|":
            self._at += 1
            value = self._command(depth, value)
        return value

    def _command(self, depth: int, piped: Expression | None) -> Expression:
        first = self._at
        word = self._tokens[first] if first < len(self._tokens) else None
        operands: list[Expression] = []
        function = word is not None and word.kind == "word" and word.text not in _CONSTANTS
        if function:
            self._at += 1
        while self._peek() not in (None, "|", ")"):
            operands.append(self._operand(depth))
        if piped is not None:
            operands.append(piped)
        if function:
            assert word is not None
            return Call(name=word.text, arguments=tuple(operands))
        if len(operands) != 1:
            raise self.wrong()
        return operands[0]

    def _operand(self, depth: int) -> Expression:
        token = self._tokens[self._at]
        self._at += 1
        value: Expression
        if token.text == "(":
            value = self._value(depth + 1)
            if self._peek() != ")":
                raise self.wrong()
            self._at += 1
        elif token.kind == "field":
            value = Field(of=Dot(), name=token.text[1:])
        elif token.text == ".":
            value = Dot()
        elif token.kind == "variable":
            value = Variable(name=token.text[1:])
        elif token.kind == "text":
            value = Literal(value=_unescaped(token.text[1:-1]))
        elif token.kind == "raw":
            value = Literal(value=token.text[1:-1])
        elif token.kind == "number" and re.fullmatch(r"-?\d{1,9}", token.text):
            value = Literal(value=int(token.text))
        elif token.text in _CONSTANTS:
            value = Literal(value=_CONSTANTS[token.text])
        elif token.kind == "word":
            value = Call(name=token.text, arguments=())
        else:
            raise self.wrong()
        while self._at < len(self._tokens):
            following = self._tokens[self._at]
            if following.kind != "field" or not following.glued:
                break
            value = Field(of=value, name=following.text[1:])
            self._at += 1
        return value

    def _peek(self) -> str | None:
        return self._tokens[self._at].text if self._at < len(self._tokens) else None

    def _take(self, kind: str) -> _Token:
        if self._at >= len(self._tokens) or self._tokens[self._at].kind != kind:
            raise self.wrong()
        self._at += 1
        return self._tokens[self._at - 1]

    def wrong(self) -> TemplateError:
        shown = " ".join(token.text for token in self._tokens)[:80]
        return TemplateError(f"the template has the action {shown!r}, which is not read here")


_CONSTANTS: dict[str, bool | None] = {"true": True, "false": False, "nil": None}


def _unescaped(text: str) -> str:
    def character(match: re.Match[str]) -> str:
        code = int(match[1] or match[2] or match[3] or "-1", 16)
        if match[4] in _SHORT:
            return _SHORT[match[4]]
        if code < 0 or code > 0x10FFFF or 0xD800 <= code < 0xE000 or (match[3] and code > 0x7F):
            raise TemplateError(f"the template has {match[0]!r} in a text, which is not read here")
        return chr(code)

    return _ESCAPE.sub(character, text)
