"""Ollama's chat templates as Jinja, which then runs in the sandbox like any other.

A template is given values in one of two ways, as Ollama does it (ollama/ollama, template.go; what
follows is that behaviour, not that code). One that speaks of .Messages sees them all, with those of
one role after each other joined by an empty line, and in .System what the system said. Any other
runs once for each turn, with .System, .Prompt and .Response; the last time it ends with the first
.Response, where the answer goes.

Tools, images and text to fill in have no place here: they count as absent, and a conversation with
tools is an error. What is not known is refused by name, unless it is where it never runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from insula.chat import go_template as go
from insula.errors import TemplateError

_NO_TOOLS = (
    "{% if tools %}{{ raise_exception('a template in Ollama\\'s language takes no tools here') }}"
    "{% endif %}"
)
_COLLATED = (
    "{% set go = namespace(list=[], systems=[], turns=[], system='', prompt='', response='') %}"
    "{% set v = namespace() %}"
    "{% for m in messages %}"
    "{% if m.tool_calls %}{{ raise_exception('a template in Ollama\\'s language takes no tool "
    "calls here') }}{% endif %}"
    "{% if m.role == 'system' %}{% set go.systems = go.systems + [m.content] %}{% endif %}"
    "{% if go.list and go.list[-1].role == m.role and m.role != 'tool' %}"
    "{% set go.list = go.list[:-1] + [dict(go.list[-1], content=go.list[-1].content + '\\n\\n' + "
    "m.content)] %}"
    "{% else %}"
    "{% set go.list = go.list + [dict(role=m.role, content=m.content or '', "
    "thinking=m.thinking or '', name=m.name or '', tool_call_id=m.tool_call_id or '')] %}"
    "{% endif %}{% endfor %}"
)
_FLUSH = (
    "{% set go.turns = go.turns + [[go.system, go.prompt, go.response]] %}"
    "{% set go.system = '' %}{% set go.prompt = '' %}{% set go.response = '' %}"
)
_TURNS = (
    "{% for m in go.list %}"
    "{% if m.role == 'system' %}{% if go.prompt or go.response %}" + _FLUSH + "{% endif %}"
    "{% set go.system = m.content %}"
    "{% elif m.role == 'user' %}{% if go.response %}" + _FLUSH + "{% endif %}"
    "{% set go.prompt = m.content %}"
    "{% elif m.role == 'assistant' %}{% set go.response = m.content %}"
    "{% else %}{{ raise_exception('this template has no place for the role ' ~ m.role) }}"
    "{% endif %}{% endfor %}"
    "{% if not add_generation_prompt and (go.system or go.prompt or go.response) %}"
    + _FLUSH
    + "{% endif %}{% set go.last = [go.system, go.prompt, go.response] %}"
)
_TAKE = (
    "{{% set go.system = {0}[0] %}}{{% set go.prompt = {0}[1] %}}{{% set go.response = {0}[2] %}}"
)


@dataclass(frozen=True, kw_only=True)
class _Value:
    """A Jinja expression; what kind of value it gives; the value itself where it is a constant.

    kind: root, messages, message, text, number, truth; either: of several; absent: always nil.
    """

    code: str
    kind: str
    known: tuple[str | int | bool | None] | None = None

    @property
    def never(self) -> bool:
        """Whether it surely counts as false."""
        return self.known is not None and not self.known[0]

    @property
    def always(self) -> bool:
        return self.known is not None and bool(self.known[0])


def _quoted(text: str) -> str:
    """A text as Jinja writes one, without anything that Jinja could take for its own."""
    return (
        "'"
        + "".join(
            f"\\x{ord(c):02x}" if c in "{}%#'\\" or ord(c) < 32 or ord(c) == 127 else c
            for c in text
        ).replace("\\x0a", "\\n")
        + "'"
    )


def _constant(value: str | int | bool | None) -> _Value:
    if value is None:
        return _Value(code="''", kind="absent", known=(None,))
    if isinstance(value, str):
        return _Value(code=_quoted(value), kind="text", known=(value,))
    kind = "truth" if isinstance(value, bool) else "number"
    return _Value(code=str(value), kind=kind, known=(value,))


_ABSENT = _constant(None)
_EMPTY = _constant("")
_THINKING = {
    "Think": _Value(code="(enable_thinking|default(false))", kind="truth"),
    "IsThinkSet": _Value(code="(enable_thinking is defined)", kind="truth"),
    "ThinkLevel": _Value(code="(reasoning_effort|default(''))", kind="text"),
}
_WITH_MESSAGES = {
    "System": _Value(code="go.system", kind="text"),
    "Messages": _Value(code="go.list", kind="messages"),
    **dict.fromkeys(("Response", "Prompt", "Suffix"), _EMPTY),
    "Tools": _ABSENT,
    **_THINKING,
}
_WITH_TURNS = {
    **{
        name: _Value(code=f"go.{name.lower()}", kind="text")
        for name in ("System", "Prompt", "Response")
    },
    "Suffix": _EMPTY,
    "Tools": _ABSENT,
    **_THINKING,
}
_OF_MESSAGE = {
    "Role": "role",
    "Content": "content",
    "Thinking": "thinking",
    "ToolName": "name",
    "ToolCallID": "tool_call_id",
}
_ABSENT_IN_MESSAGE = ("ToolCalls", "Images")
_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_SCALARS = ("text", "number", "truth")


def translated(source: str) -> str:
    """The template as Jinja. Raises TemplateError that names what has no translation."""
    try:
        return _translated(go.parse(source))
    except RecursionError:
        raise TemplateError("the template is nested too deeply") from None


def _translated(nodes: tuple[go.Node, ...]) -> str:
    names = {name.lower() for name in _names(nodes)}
    if "messages" in names:
        body = _Writer(_WITH_MESSAGES).whole(nodes)
        system = "{% set go.system = go.systems|join('\\n\\n') %}"
        return _NO_TOOLS + _COLLATED + system + body
    if "response" not in names:
        end = go.Pipeline(value=go.Field(of=go.Dot(), name="Response"))
        nodes = (*nodes, go.Action(pipeline=end))
    whole, last = _Writer(_WITH_TURNS).whole(nodes), _Writer(_WITH_TURNS).whole(_cut(nodes)[0])
    return (
        _NO_TOOLS
        + _COLLATED
        + _TURNS
        + "{% for turn in go.turns %}"
        + _TAKE.format("turn")
        + whole
        + "{% endfor %}{% if add_generation_prompt %}"
        + _TAKE.format("go.last")
        + last
        + "{% endif %}"
    )


def _names(nodes: Sequence[go.Node]) -> Iterator[str]:
    """Every name of a field."""
    for node in nodes:
        if isinstance(node, go.Action | go.Branch):
            yield from _fields(node.pipeline.value)
        if isinstance(node, go.Branch):
            yield from _names(node.body)
            yield from _names(node.otherwise)


def _fields(value: go.Expression) -> Iterator[str]:
    if isinstance(value, go.Field):
        yield value.name
        yield from _fields(value.of)
    elif isinstance(value, go.Call):
        for argument in value.arguments:
            yield from _fields(argument)


def _cut(nodes: Sequence[go.Node]) -> tuple[tuple[go.Node, ...], bool]:
    """The nodes up to the first that prints .Response, that one included; whether there is one.

    What is asked of .Response by an if is no end, as in Ollama.
    """
    kept: list[go.Node] = []
    for node in nodes:
        if isinstance(node, go.Branch):
            body, found = _cut(node.body)
            otherwise, later = ((), False) if found else _cut(node.otherwise)
            kept.append(replace(node, body=body, otherwise=otherwise))
            if found or later:
                return tuple(kept), True
        else:
            kept.append(node)
            if isinstance(node, go.Action) and _prints_response(node.pipeline.value):
                return tuple(kept), True
    return tuple(kept), False


def _prints_response(value: go.Expression) -> bool:
    if isinstance(value, go.Call):
        return any(map(_prints_response, value.arguments))
    return isinstance(value, go.Field) and value.name == "Response" and value.of == go.Dot()


class _Writer:
    """One run of a template, as Jinja. `root` is what its fields are."""

    def __init__(self, root: dict[str, _Value]) -> None:
        self._root = root
        self._dot = _Value(code="", kind="root")
        self._scopes: list[dict[str, _Value]] = [{}]
        self._slots = 0

    def whole(self, nodes: Sequence[go.Node]) -> str:
        return "".join(map(self._node, nodes))

    def _node(self, node: go.Node) -> str:
        if isinstance(node, go.Text):
            return "{{ " + _quoted(node.text) + " }}"
        if isinstance(node, go.Leave):
            return "{% " + node.kind + " %}"
        if isinstance(node, go.Branch):
            return self._range(node) if node.kind == "range" else self._branch(node)
        value = self._value(node.pipeline.value)
        if node.pipeline.names:
            return self._give(node.pipeline, value)
        return self._print(value)

    def _print(self, value: _Value) -> str:
        if value.kind == "absent" or value.known == ("",):
            return ""
        if value.kind == "truth":
            return "{{ 'true' if " + value.code + " else 'false' }}"
        if value.kind not in _SCALARS:
            raise TemplateError(f"the template prints {value.kind}, which is not translated")
        return "{{ " + value.code + " }}"

    def _give(self, pipeline: go.Pipeline, value: _Value) -> str:
        """The value into a variable; a new one lives as long as what it stands in."""
        (name,) = pipeline.names
        if pipeline.declares:
            return self._declare(name, value)
        held = self._variable(name)
        if held.kind != value.kind:
            raise TemplateError(
                f"the template gives ${name}, which is a {held.kind}, a {value.kind}; that is not "
                "translated"
            )
        return "{% set " + held.code + " = " + value.code + " %}"

    def _declare(self, name: str, value: _Value) -> str:
        self._slots += 1
        slot = f"v.s{self._slots}"
        self._scopes[-1][name] = _Value(code=slot, kind=value.kind)
        return "{% set " + slot + " = " + (value.code or "none") + " %}"

    def _variable(self, name: str) -> _Value:
        if name == "":
            return _Value(code="", kind="root")
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        raise TemplateError(f"the template uses ${name}, which it has given no value")

    def _inside(self, nodes: Sequence[go.Node], dot: _Value | None = None) -> str:
        """The nodes in a scope of their own."""
        before = self._dot
        self._scopes.append({})
        self._dot = before if dot is None else dot
        written = self.whole(nodes)
        self._dot = before
        self._scopes.pop()
        return written

    def _branch(self, node: go.Branch) -> str:
        self._scopes.append({})
        value = self._value(node.pipeline.value)
        head = ""
        dot: _Value | None = None
        if value.known is None or node.pipeline.names:
            if node.pipeline.names:
                head = self._give(node.pipeline, value)
            elif node.kind == "with":
                head = self._declare("", value)
            if head:
                given = self._scopes[-1].get(node.pipeline.names[0] if node.pipeline.names else "")
                value = given if given is not None else value
        if node.kind == "with":
            dot = value
        if value.never or value.always:
            written = self._inside(node.body, dot) if value.always else self._inside(node.otherwise)
        else:
            written = "{% if " + value.code + " %}" + self._inside(node.body, dot)
            if node.otherwise:
                written += "{% else %}" + self._inside(node.otherwise)
            written += "{% endif %}"
        self._scopes.pop()
        return head + written

    def _range(self, node: go.Branch) -> str:
        value = self._value(node.pipeline.value)
        if value.kind == "absent":
            return self._inside(node.otherwise)
        if value.kind != "messages":
            raise TemplateError(
                f"the template's range goes over {value.kind}; only one over messages is translated"
            )
        if node.pipeline.names and not node.pipeline.declares:
            raise TemplateError("the template's range gives variables of outside new values")
        self._slots += 1
        item = _Value(code=f"d{self._slots}", kind="message")
        self._scopes.append({})
        head = ""
        if node.pipeline.names:
            *index, element = node.pipeline.names
            for name in index:
                head += self._declare(name, _Value(code="loop.index0", kind="number"))
            head += self._declare(element, item)
        written = "{% for " + item.code + " in " + value.code + " %}" + head
        written += self._inside(node.body, item)
        self._scopes.pop()
        if node.otherwise:
            written += "{% else %}" + self._inside(node.otherwise)
        return written + "{% endfor %}"

    def _value(self, value: go.Expression) -> _Value:
        if isinstance(value, go.Literal):
            return _constant(value.value)
        if isinstance(value, go.Dot):
            return self._dot
        if isinstance(value, go.Variable):
            return self._variable(value.name)
        if isinstance(value, go.Field):
            return self._field(self._value(value.of), value.name)
        return self._call(value.name, value.arguments)

    def _field(self, of: _Value, name: str) -> _Value:
        if of.kind == "absent":
            return _ABSENT
        if of.kind == "root" and name in self._root:
            return self._root[name]
        if of.kind == "message" and name in _OF_MESSAGE:
            return _Value(code=f"{of.code}.{_OF_MESSAGE[name]}", kind="text")
        if of.kind == "message" and name in _ABSENT_IN_MESSAGE:
            return _ABSENT
        where = "" if of.kind == "root" else f" of a {of.kind}"
        raise TemplateError(f"the template uses .{name}{where}, which is not translated")

    def _call(self, name: str, arguments: Sequence[go.Expression]) -> _Value:
        if name in ("and", "or") and arguments:
            return self._chosen(name, arguments)
        given = [self._value(argument) for argument in arguments]
        kinds = [value.kind for value in given]
        codes = [value.code for value in given]
        if name == "not" and len(given) == 1:
            if given[0].known is not None:
                return _constant(not given[0].known[0])
            return _Value(code=f"(not {codes[0]})", kind="truth")
        if name in _COMPARISONS and len(given) >= 2 and (name == "eq" or len(given) == 2):
            return self._compared(name, given)
        if name == "len" and kinds == ["absent"]:
            return _constant(0)
        if name == "len" and kinds == ["messages"]:
            return _Value(code=f"({codes[0]}|length)", kind="number")
        if name == "len" and kinds == ["text"]:  # Go counts bytes
            return _Value(code=f"({codes[0]}.encode('utf-8')|length)", kind="number")
        if name == "slice" and kinds in (["messages", "number"], ["messages", "number", "number"]):
            return _Value(code=f"{codes[0]}[{':'.join([*codes[1:], ''][:2])}]", kind="messages")
        if name == "index" and kinds == ["messages", "number"]:
            return _Value(code=f"{codes[0]}[{codes[1]}]", kind="message")
        if name == "json" and kinds == ["text"]:
            return _Value(code=_json(codes[0]), kind="text")
        if name == "currentDate":
            return _Value(code="strftime_now('%Y-%m-%d')", kind="text")
        of = f" of {', '.join(kinds)}" if kinds else ""
        raise TemplateError(f"the template uses {name!r}{of}, which is not translated")

    def _chosen(self, name: str, arguments: Sequence[go.Expression]) -> _Value:
        """`and` gives the first that counts as false, `or` as true, else the last; in both, what
        comes after the one that decides is not looked at."""
        kept: list[_Value] = []
        for argument in arguments:
            value = self._value(argument)
            kept.append(value)
            if value.never if name == "and" else value.always:
                break
        decided = kept[-1]
        kept = [value for value in kept[:-1] if value.known is None]
        if name == "and" and decided.never and kept:
            return _constant(False)
        if name == "or" and decided.never and kept:
            decided = kept.pop()
        if name == "and" and decided.always and kept:
            decided = kept.pop()
        if not kept:
            return decided
        kinds = {value.kind for value in (*kept, decided)}
        code = f" {name} ".join(value.code for value in (*kept, decided))
        return _Value(code=f"({code})", kind=kinds.pop() if len(kinds) == 1 else "either")

    def _compared(self, name: str, given: Sequence[_Value]) -> _Value:
        first, *others = given
        if any(value.kind not in (*_SCALARS, "absent") for value in given):
            raise TemplateError(f"the template compares {first.kind}, which is not translated")
        if "absent" in {value.kind for value in given}:
            same = all(value.kind == "absent" for value in given)
            return _constant(same if name == "eq" else not same)
        if len(others) > 1:  # each code once: repeated, nested ones would double with every level
            among = ", ".join(other.code for other in others)
            return _Value(code=f"({first.code} in [{among}])", kind="truth")
        code = f"{first.code} {_COMPARISONS[name]} {others[0].code}"
        return _Value(code=f"({code})", kind="truth")


def _json(code: str) -> str:
    """A text as Go's encoding/json writes it, with HTML's characters escaped."""
    escapes = ("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")
    replaced = "".join(f".replace({_quoted(a)}, {_quoted(b)})" for a, b in escapes)
    return f"({code}|tojson){replaced}"
