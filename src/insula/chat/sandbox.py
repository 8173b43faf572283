"""The Jinja environment of chat templates: what a template can see and do.

Owns the dialect, which is that of transformers' apply_chat_template (trim_blocks, lstrip_blocks,
break and continue, the generation tag, tojson without HTML escapes, raise_exception, strftime_now;
transformers 5.23, utils/chat_template_utils.py), and the caps below.

Jinja's immutable sandbox refuses attributes that lead to Python's insides. It does not bound time
or memory, and neither can this module alone: a comparison of two small nested lists may take 2^40
steps in one C call. The caps here stop the plain bombs with a message that says which; the bounds
that hold for everything are the process's, see worker.py and security/child.py.

Jinja is imported when the first template is compiled, not with this module.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from insula.errors import TemplateError

if TYPE_CHECKING:
    import jinja2

MAX_SOURCE = 256 << 10  # characters; the longest published ones have some 30,000
MAX_OUTPUT = 1 << 20  # characters beyond those of the input
MAX_VALUE = 16 << 20  # elements of any string or list that one operation makes
MAX_POWER_BITS = 1 << 16

_WIDTH = re.compile(r"%[^%a-zA-Z]*?(\d{6,}|\*)")


class TooLargeError(Exception):
    """A cap was reached; the message says which."""


def input_characters(value: object) -> int:
    """Characters of text in plain data, to scale the bound of the output with."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(input_characters(key) + input_characters(v) for key, v in value.items())
    if isinstance(value, list | tuple):
        return sum(map(input_characters, value))
    return 8


def render(
    source: str,
    variables: Mapping[str, Any],
    *,
    now: dt.datetime | None = None,
) -> str:
    """Render, or raise TemplateError with the reason in one line."""
    import jinja2

    limit = MAX_OUTPUT + input_characters(variables)
    clock = {"strftime_now": _clock(now)} if now is not None else {}
    pieces: list[str] = []
    size = 0
    try:
        for piece in compiled(source).generate({**clock, **variables}):
            size += len(piece)
            if size > limit:
                raise TooLargeError(f"more than {limit} characters of output")
            pieces.append(piece)
    except TemplateError:
        raise
    except TooLargeError as error:
        raise TemplateError(f"the chat template was stopped: {error}") from None
    except jinja2.TemplateSyntaxError as error:  # a filter or test that is unknown
        raise TemplateError(_at_line(error)) from None
    except jinja2.exceptions.SecurityError as error:
        raise TemplateError(_line("the chat template tried what is not allowed", error)) from None
    except jinja2.UndefinedError as error:
        raise TemplateError(_line("the chat template needs what was not given", error)) from None
    except jinja2.TemplateError as error:
        raise TemplateError(_line("the chat template refuses these messages", error)) from None
    except RecursionError:
        raise TemplateError("the chat template was stopped: it recurses too deeply") from None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a template may raise whatever Python can
        raise TemplateError(
            _line(f"the chat template failed: {type(error).__name__}", error)
        ) from None
    return "".join(pieces)


@lru_cache(maxsize=16)
def compiled(source: str) -> jinja2.Template:
    """The compiled template. Raises TemplateError for one that is too long or is not Jinja."""
    import jinja2

    if len(source) > MAX_SOURCE:
        raise TemplateError(
            f"the chat template has {len(source)} characters; allowed: {MAX_SOURCE}"
        )
    try:
        return _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(_at_line(error)) from None
    except RecursionError:
        raise TemplateError("the chat template is nested too deeply to compile") from None
    except (ValueError, SyntaxError, OverflowError) as error:
        raise TemplateError(_line("the chat template does not compile", error)) from None


def _line(what: str, error: Exception) -> str:
    """One line, of bounded length: the text may be the template's."""
    return f"{what}: {' '.join(str(error)[:2000].split())[:500]}"


def _at_line(error: jinja2.TemplateSyntaxError) -> str:
    return _line("the chat template is not valid Jinja", error) + f" (line {error.lineno})"


def _clock(now: dt.datetime | None) -> Callable[[str], str]:
    def strftime_now(pattern: str) -> str:
        return (now or dt.datetime.now()).strftime(pattern)  # noqa: DTZ005 - the wall clock's

    return strftime_now


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    import jinja2.ext
    import jinja2.nodes
    import jinja2.sandbox
    import jinja2.utils

    class Generation(jinja2.ext.Extension):
        """{% generation %} … {% endgeneration %} marks an answer's text, for training; no output
        of its own.
        """

        tags = {"generation"}  # noqa: RUF012 - Jinja's own form

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_body")
            return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _body(self, caller: Any) -> Any:
            return caller()

    class Namespace(jinja2.utils.Namespace):
        """Jinja's, without names that start with an underscore (as transformers has it)."""

        def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be a template's own name
            attributes = dict(*args[1:], **kwargs)
            for name in attributes:
                _refuse_private(name)
            jinja2.utils.Namespace.__init__(args[0], attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            _refuse_private(name)
            super().__setitem__(name, value)

    def _refuse_private(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")

    class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"+", "*", "**", "%"})
        concat = staticmethod(_bounded_concat)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_operation(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
            _check_call(__obj, args, kwargs)
            return super().call(__context, __obj, *args, **kwargs)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    for name in ("center", "indent", "wordwrap", "truncate", "batch", "slice", "round"):
        environment.filters[name] = _with_checked_numbers(environment.filters[name])
    environment.globals.update(
        raise_exception=raise_exception,
        strftime_now=_clock(None),
        dict=_Dict(),
        namespace=Namespace,
    )
    del environment.globals["lipsum"]  # random text: no template of a model needs it
    return environment


class _Dict:
    """`dict(…)` and `dict.fromkeys(…)` without the class behind them."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own escapes HTML; this is json.dumps, as chat templates expect it."""
    _check_width(indent)
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _bounded_concat(pieces: Iterable[str]) -> str:
    """What joins the pieces of a macro, a block or a call."""
    return "".join(_counted(pieces))


def _counted(pieces: Iterable[str]) -> Iterator[str]:
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > MAX_VALUE:
            raise TooLargeError(f"a text of more than {MAX_VALUE} characters")
        yield piece


def _check_operation(operator: str, left: Any, right: Any) -> None:
    if operator == "+":
        if isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            _check_size(len(left) + len(right))
    elif operator == "*":
        for value, count in ((left, right), (right, left)):
            if isinstance(value, str | list | tuple | bytes) and isinstance(count, int):
                _check_size(len(value) * count)
        if isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() + right.bit_length())
    elif operator == "**":
        if isinstance(left, int) and isinstance(right, int) and right > 0:
            _check_bits(left.bit_length() * right)
    elif isinstance(left, str):
        for width in _WIDTH.findall(left):
            if width == "*":
                numbers = right if isinstance(right, tuple) else (right,)
                for number in numbers:
                    _check_width(number)
            else:
                _check_size(int(width[:12]))


def _check_call(called: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Methods of strings whose result is longer than what goes in."""
    text = getattr(called, "__self__", None)
    if not isinstance(text, str):
        return
    name = getattr(called, "__name__", "")
    if name in ("center", "ljust", "rjust", "zfill", "expandtabs"):
        for number in (*args, *kwargs.values()):
            _check_width(number)
        if name == "expandtabs" and args and isinstance(args[0], int):
            _check_size(text.count("\t") * args[0])
    elif name == "replace" and len(args) >= 2 and all(isinstance(a, str) for a in args[:2]):
        _check_size(len(text) + text.count(args[0]) * max(0, len(args[1]) - len(args[0])))
    elif name == "join" and args and isinstance(args[0], list | tuple | str):
        _check_size(len(text) * len(args[0]))


def _with_checked_numbers(function: Any) -> Any:
    from functools import wraps

    @wraps(function)  # keeps the mark by which Jinja passes the environment
    def checked(*args: Any, **kwargs: Any) -> Any:
        for number in (*args, *kwargs.values()):
            _check_width(number)
        return function(*args, **kwargs)

    return checked


def _check_width(number: object) -> None:
    if isinstance(number, int):
        _check_size(abs(number))


def _check_size(size: int) -> None:
    if size > MAX_VALUE:
        raise TooLargeError(f"a value of {size} elements; allowed: {MAX_VALUE}")


def _check_bits(bits: int) -> None:
    if bits > MAX_POWER_BITS:
        raise TooLargeError(f"a number of {bits} bits; allowed: {MAX_POWER_BITS}")
