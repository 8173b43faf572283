"""A constraint as llguidance takes it, and whether it can be followed at all.

Owns what a constraint may be (length, depth, keywords), how JSON is written under one (which white
space, which escapes), the parser's limits, and the errors, which name the keyword at fault.

Refuses what cannot be enforced while an answer is generated; nothing is left out in silence. What
could take long to compile is tried in a bounded process first (`grammar_worker`): llguidance's own
limits do not hold for products of regular expressions (`multipleOf`, `&`, `~`), which take minutes.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from insula.errors import ConfigError, ConstraintError
from insula.security.child import BoundedChild, BoundExceededError, Limits, WorkFailedError
from insula.types import Constraint

KINDS = ("json_schema", "json_object", "regex", "lark", "gbnf", "llguidance")
MAX_CHARACTERS = 256 << 10
#: Objects and lists within each other; llguidance's own bound is 128.
MAX_DEPTH = 64

#: How JSON is written. At most one of these between two parts: a small model that may write white
#: space for ever does so. No \u: half a surrogate pair is no text, and the characters need none.
JSON_OPTIONS: Mapping[str, Any] = {
    "whitespace_pattern": r" |\n[ \t]{0,20}",
    "json_allowed_escapes": 'nrbtf\\"',
    "coerce_one_of": False,
    "lenient": False,
}

#: Bounds of llguidance's parser (LLParserLimits); a lexer's state takes 1 to 2 KB.
LIMITS: Mapping[str, Any] = {
    "max_lexer_states": 50_000,
    "max_grammar_size": 300_000,
    "verbose_errors": False,
}

#: Keywords whose cost is their length; a schema of these alone is compiled without a try.
_PLAIN = frozenset(
    "type properties required additionalProperties items prefixItems enum const anyOf $ref $defs "
    "definitions $schema $comment title description default examples minItems maxItems minLength "
    "maxLength minimum maximum exclusiveMinimum exclusiveMaximum deprecated readOnly writeOnly "
    "x-guidance".split()
)
_PLAIN_CHARACTERS = 64 << 10
#: Free text in Lark; and such that does not begin with a brace. They cost nothing.
TEXT, TEXT_WITHOUT_BRACE = r"/(.|\n)*/", r"/([ \t\n]*[^{ \t\n](.|\n)*)?/"
#: A schema's beginning in Lark, or what may hold the same signs and is none.
_JSON_IN_LARK = re.compile(
    r'(?P<json>%json\s*)|"(?:\\.|[^"\\\n])*"|/(?!/)(?:\\.|[^/\\\n])+/|(?://|\#)[^\n]*'
)
_DATA = ("enum", "const", "default", "examples", "required", "x-guidance")
_MAPS_OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")

Grammar = dict[str, Any]


def checked(constraint: object) -> Constraint:
    """Raises ConfigError for what is no constraint, ConstraintError for one that is too long."""
    if not isinstance(constraint, Constraint):
        raise ConfigError(
            f"constraint: found {type(constraint).__name__}; allowed is an insula.types.Constraint"
        )
    if constraint.kind not in KINDS:
        raise ConfigError(
            f"constraint: found kind {constraint.kind!r}; allowed: {', '.join(KINDS)}"
        )
    if not isinstance(constraint.text, str):
        raise ConfigError(
            f"constraint: its text is {type(constraint.text).__name__}; allowed is a str"
        )
    if len(constraint.text) > MAX_CHARACTERS:
        raise ConstraintError(
            f"the {constraint.kind} constraint has {len(constraint.text)} characters; allowed: "
            f"{MAX_CHARACTERS}"
        )
    _check_characters(constraint.text, constraint.kind)
    if not constraint.text.strip() and constraint.kind not in ("json_object", "regex"):
        raise ConstraintError(f"the {constraint.kind} constraint is empty")
    return constraint


def grammar(constraint: Constraint) -> Grammar:
    """One grammar of llguidance's list (its api.rs, GrammarWithLexer), not yet compiled."""
    text = checked(constraint).text
    match constraint.kind:
        case "json_object":
            return schema_grammar({"type": "object"})
        case "json_schema":
            return schema_grammar(_parsed(text, "json_schema"))
        case "regex":
            from llguidance import LLMatcher

            found: Grammar = json.loads(LLMatcher.grammar_from_regex(text))["grammars"][0]
            return found
        case "gbnf":
            return {"lark_grammar": _tried(constraint, 0)}
        case "lark":
            return {"lark_grammar": text}
        case _:
            raise ConstraintError("a list of grammars cannot be a part of another one")


def schema_grammar(schema: Any) -> Grammar:
    """The grammar of what a JSON schema allows; `source` sees whether it can be enforced."""
    if schema is True:
        schema = {}
    if not isinstance(schema, Mapping):
        found = "false, which allows nothing" if schema is False else type(schema).__name__
        raise ConstraintError(f"the JSON schema is {found}; allowed is an object")
    if "x-guidance" in schema:
        raise ConstraintError(
            "the JSON schema sets x-guidance, which is set here; leave it out", keyword="x-guidance"
        )
    _check_depth(schema)
    return {"json_schema": {**schema, "x-guidance": dict(JSON_OPTIONS)}}


def source(constraint: Constraint, *, n_vocab: int) -> str:
    """The text that llguidance compiles, tried beforehand where that could take long.

    n_vocab: token ids that a grammar may name. Raises ConstraintError.
    """
    if checked(constraint).kind == "llguidance":
        whole = _parsed(constraint.text, "llguidance")
        if not isinstance(whole, Mapping) or not isinstance(whole.get("grammars"), list):
            raise ConstraintError('the llguidance constraint needs a list of "grammars"')
        for part in whole["grammars"]:
            if not isinstance(part, Mapping):
                raise ConstraintError(
                    f"the llguidance constraint: a grammar is {type(part).__name__}; allowed is "
                    'an object with "lark_grammar" or "json_schema"'
                )
    else:
        whole = {"grammars": [grammar(constraint)]}
    for schema in _written_schemas(whole["grammars"]):
        _check_depth(schema)
        _check_enforced(schema)
    try:
        text = json.dumps(whole, ensure_ascii=False)
    except RecursionError:
        raise _too_deep() from None
    _check_characters(text, constraint.kind)
    if not all(_is_plain(part) for part in whole["grammars"]):
        _tried(Constraint(kind="llguidance", text=text), n_vocab)
    return text


def refused(message: str) -> ConstraintError:
    """The error for what llguidance says against a grammar."""
    line = " ".join(message.split())
    if len(line) > 300:
        line = line[:297] + "..."
    keywords = re.findall(r'"([^"]*)"', line) if line.startswith("Unimplemented key") else []
    if keywords:
        named = ", ".join(map(repr, keywords))
        return ConstraintError(
            f"the JSON schema has the keyword {named}, which cannot be enforced while an answer is "
            "generated; leave it out and check it afterwards",
            keyword=keywords[0],
        )
    for sign, keyword in _SIGNS:
        if sign in line:
            return ConstraintError(
                f"the JSON schema's {keyword!r} cannot be enforced: {line}", keyword=keyword
            )
    return ConstraintError(f"the constraint cannot be followed: {line}")


#: What llguidance says, and the keyword that it is about.
_SIGNS = (
    ("Unknown format", "format"),
    ("oneOf constraints", "oneOf"),
    ("Resource ", "$ref"),
    ("Pointer ", "$ref"),
    ("$ref", "$ref"),
    ("multipleOf", "multipleOf"),
    ("Invalid type", "type"),
    ("inProperties", "minProperties"),
    ("axProperties", "maxProperties"),
    ("patternProperties", "patternProperties"),
)


def _parsed(text: str, kind: str) -> Any:
    try:
        parsed = json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise ConstraintError(f"the {kind} constraint is not JSON: {error}") from None
    _check_depth(parsed)
    return parsed


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _check_characters(text: str, kind: str) -> None:
    """Raises ConstraintError for what no answer can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConstraintError(
            f"the {kind} constraint has a lone surrogate ({text[error.start]!a}), which no UTF-8 "
            "can hold"
        ) from None


def _written_schemas(parts: list[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The schemas of grammars, those within Lark (%json) among them."""
    for part in parts:
        if isinstance(part.get("json_schema"), Mapping):
            yield part["json_schema"]
        lark = part.get("lark_grammar")
        at = 0
        while isinstance(lark, str) and (found := _JSON_IN_LARK.search(lark, at)):
            at = found.end()
            if found["json"]:
                try:
                    schema, at = json.JSONDecoder().raw_decode(lark, at)
                except RecursionError:
                    raise _too_deep() from None
                except ValueError:  # llguidance says what is wrong with it
                    continue
                if isinstance(schema, Mapping):
                    yield schema


def _check_depth(value: object) -> None:
    level: list[object] = [value]
    for _ in range(MAX_DEPTH + 4):  # what stands around a schema in a list of grammars, too
        level = [inner for outer in level for inner in _within(outer)]
        if not level:
            return
    raise _too_deep()


def _within(value: object) -> list[object]:
    if isinstance(value, Mapping):
        return [v for v in value.values() if isinstance(v, Mapping | list | tuple)]
    if isinstance(value, list | tuple):
        return [v for v in value if isinstance(v, Mapping | list | tuple)]
    return []


def _too_deep() -> ConstraintError:
    return ConstraintError(
        f"the JSON schema is nested too deeply; allowed: {MAX_DEPTH} levels, and $ref for more"
    )


def _is_plain(part: Grammar) -> bool:
    """Compiling it takes no longer than reading it."""
    schema, lark = part.get("json_schema"), part.get("lark_grammar")
    if schema is not None:
        short = len(json.dumps(schema)) <= _PLAIN_CHARACTERS
        return short and all(_PLAIN.issuperset(each) for each in _schemas(schema))
    if not isinstance(lark, str) or len(lark) > _PLAIN_CHARACTERS:
        return False
    # Strings first: what stands in them is no operator.
    own = lark.replace(TEXT, "").replace(TEXT_WITHOUT_BRACE, "")
    rest = re.sub(r'"(\\.|[^"\\])*"', "", own)
    return not any(sign in rest for sign in "/&~%{")


def _schemas(schema: object) -> Iterator[Mapping[str, Any]]:
    """A schema and those within it; what enum and the like hold is data."""
    if isinstance(schema, list | tuple):
        for item in schema:
            yield from _schemas(item)
    if not isinstance(schema, Mapping):
        return
    yield schema
    for keyword, value in schema.items():
        if keyword in _DATA:
            continue
        if keyword in _MAPS_OF_SCHEMAS and isinstance(value, Mapping):
            value = list(value.values())
        yield from _schemas(value)


def _check_enforced(schema: Mapping[str, Any]) -> None:
    """Raises ConstraintError for what llguidance takes and does not hold to."""
    for each in _schemas(schema):
        if "additionalItems" in each:
            raise refused('Unimplemented keys: ["additionalItems"]')
        fewest, required = each.get("minProperties"), each.get("required")
        named = len(set(map(str, required))) if isinstance(required, list | tuple) else 0
        # Names that `properties` does not list may come twice, and count once.
        if isinstance(fewest, int | float) and fewest > max(1, named):
            raise ConstraintError(
                f"the JSON schema's 'minProperties' of {fewest:g} cannot be enforced where not as "
                "many are required by name; leave it out and check it afterwards",
                keyword="minProperties",
            )


_child: BoundedChild | None = None
_child_lock = threading.Lock()


def _tried(constraint: Constraint, n_vocab: int) -> str:
    """Compile it where it can be stopped. Returns its text, GBNF as Lark."""
    global _child
    with _child_lock:
        if _child is None:
            _child = BoundedChild(
                "insula.engine.grammar_worker",
                packages=("llguidance",),
                limits=Limits(cpu_seconds=2.0, wall_seconds=20.0, memory_bytes=256 << 20),
            )
        child = _child
    job = {"kind": constraint.kind, "text": constraint.text, "n_vocab": n_vocab}
    try:
        return child.call(json.dumps(job).encode()).decode()
    except BoundExceededError as error:
        raise ConstraintError(
            f"the constraint is too complex ({error}); make it smaller, above all its patterns, "
            "multipleOf and repetitions"
        ) from None
    except WorkFailedError as error:
        raise refused(str(error)) from None
