"""Compiles a grammar inside a bounded child process (security/child.py), to see whether it can be.

The vocabulary here is made up: the 256 bytes, and as many control tokens as the grammar may name.
What is compiled is thrown away; what counts is that it came to an end.

A request is JSON: kind ("gbnf" or "llguidance"), text, n_vocab. The reply is the text, GBNF as
Lark.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from insula.engine.grammars import LIMITS

#: A control token's name or id in Lark (llguidance, docs/syntax.md, "Special tokens").
_CONTROL = re.compile(r"<(\[[^\]<>]*\]|[^<>\s\"]{1,200})>")
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)


def handle(request: bytes) -> bytes:
    """The child's side. Raises ValueError with what is wrong."""
    job = json.loads(request)
    text = job["text"]
    if job["kind"] == "gbnf":
        text = _lark(text)
        whole = json.dumps({"grammars": [{"lark_grammar": text}]})
    else:
        whole = text
    names = sorted(set(_CONTROL.findall(text)))
    matcher = LLMatcher(
        _tokenizer(job["n_vocab"] if names else 0, names),
        whole,
        log_level=0,
        limits=LLParserLimits(**LIMITS),
    )
    if matcher.is_error():
        raise ValueError(matcher.get_error())
    return str(text).encode()


def warm() -> None:
    """Load everything that a request may load later, for then there are no files any more."""
    for kind, text in (
        ("gbnf", 'root ::= [a-z]+ "\\n" | "b"'),
        ("llguidance", '{"grammars": [{"json_schema": {"type": "string", "pattern": "a+"}}]}'),
    ):
        handle(json.dumps({"kind": kind, "text": text, "n_vocab": 300}).encode())


class _MadeUp:
    """What llguidance takes for a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.tokens = [*tokens, b"<end>"]
        self.eos_token_id = len(tokens)
        self.special_token_ids = range(256, len(self.tokens))

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


def _tokenizer(n_vocab: int, names: Sequence[str]) -> LLTokenizer:
    tokens = [bytes([i]) for i in range(256)]
    tokens += [f"<|{i}|>".encode() for i in range(256, n_vocab)]
    tokens += [f"<{name}>".encode() for name in names if not name.startswith("[")]
    return LLTokenizer(_MadeUp(tokens), slices=[])  # type: ignore[arg-type]  # duck-typed


def _lark(gbnf: str) -> str:
    """GBNF as Lark, by llguidance's converter."""
    from llguidance.gbnf_to_lark import gbnf_to_lark

    def plain(escape: re.Match[str]) -> str:
        code = next((group for group in escape.groups()[:3] if group), None)
        # The converter drops zeros of a code; only signs of the notation must stay escaped.
        if code is None or int(code, 16) < 0x80:
            return escape.group()
        if 0xD800 <= int(code, 16) < 0xE000 or int(code, 16) > 0x10FFFF:
            raise ValueError(f"there is no character U+{code.upper()}")
        return chr(int(code, 16))

    try:
        return str(gbnf_to_lark(_ESCAPE.sub(plain, gbnf)))
    except Exception as error:  # noqa: BLE001 - a plain Exception is what the converter raises
        raise ValueError(f"the GBNF grammar cannot be read: {error}") from None
