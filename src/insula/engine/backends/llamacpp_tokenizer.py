"""llama.cpp's own tokenizer, for the vocabularies that ours refuses.

Text to ids goes through the loaded model. Ids to bytes come from the file's own metadata, by
the two rules that GGUF vocabularies follow: byte-level BPE (GPT-2's printable stand-ins for
bytes, github.com/openai/gpt-2 encoder.py, bytes_to_unicode) and SentencePiece (U+2581 for a
space, <0xHH> for a byte). Fits `engine.request.Tokenizer`.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from insula.engine.backends.llamacpp_server import LlamaCppServer
from insula.errors import TokenizerError

# tokenizer.ggml.token_type: llama.cpp's enum llama_token_type.
_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_END_KEYS = ("eos", "eot", "eom")


class LlamaCppTokenizer:
    """The vocabulary of `server`'s model; `metadata` is the same file's."""

    def __init__(self, server: LlamaCppServer, metadata: Mapping[str, Any]) -> None:
        self._server = server
        self._metadata = metadata
        if "tokenizer.ggml.tokens" not in metadata:
            raise TokenizerError("the file has no tokenizer.ggml.tokens")
        self._tokens = metadata["tokenizer.ggml.tokens"]
        self.model = str(metadata.get("tokenizer.ggml.model", ""))
        self.pre = str(metadata.get("tokenizer.ggml.pre", ""))
        self.vocab_size = len(self._tokens)
        self.bos_id = self._id("bos")
        self.eos_id = self._id("eos")
        self.eot_id = self._id("eot")
        self.unk_id = self._id("unknown")
        self.pad_id = self._id("padding")
        self.eog_ids = frozenset(i for k in _END_KEYS if (i := self._id(k)) is not None)
        template = metadata.get("tokenizer.chat_template")
        self.chat_template = str(template) if template is not None else None

    @cached_property
    def add_bos(self) -> bool:
        """Whether an empty text with special tokens begins with bos."""
        ids = self.encode("", add_special=True)
        return bool(ids) and ids[0] == self.bos_id

    @cached_property
    def add_eos(self) -> bool:
        """Whether a text with special tokens ends with eos."""
        ids = self.encode("a", add_special=True)
        return bool(ids) and ids[-1] == self.eos_id

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Ids of `text`, as llama.cpp's /tokenize gives them."""
        answer = self._server.post(
            "/tokenize",
            {"content": text, "add_special": add_special, "parse_special": parse_special},
        )
        return [int(i) for i in answer["tokens"]]

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Text of `ids`; invalid UTF-8 becomes U+FFFD."""
        stream = self.detokenizer(skip_special=skip_special)
        return "".join([stream.push(i) for i in ids]) + stream.flush()

    def token_bytes(self, token_id: int, /) -> bytes:
        """The bytes of one token. Raises TokenizerError for an id outside the vocabulary."""
        if not 0 <= token_id < self.vocab_size:
            raise TokenizerError(f"token {token_id} is not in 0 to {self.vocab_size - 1}")
        piece = str(self._tokens[token_id])
        if self._type(token_id) in (_CONTROL, _USER_DEFINED):
            return piece.encode()
        if self.model == "gpt2":
            return (
                bytes(_BYTE_OF[c] for c in piece)
                if _BYTE_OF.keys() >= set(piece)
                else (piece.encode())
            )
        match = _BYTE_TOKEN.fullmatch(piece)
        if match and self._type(token_id) == _BYTE:
            return bytes([int(match[1], 16)])
        return piece.replace("\u2581", " ").encode()

    def is_special(self, token_id: int, /) -> bool:
        """Whether the token is a control token."""
        return self._type(token_id) == _CONTROL

    def detokenizer(self, *, skip_special: bool = False, continues: bool = False) -> Utf8Stream:
        """A fresh incremental decoder; continues: a space before the first word is text."""
        return Utf8Stream(
            self, skip_special=skip_special, strip=self._strips_space and not continues
        )

    @property
    def _strips_space(self) -> bool:
        """Whether the vocabulary puts a space before a text's first word, which is not text."""
        added = self._metadata.get("tokenizer.ggml.add_space_prefix", True)
        return self.model == "llama" and bool(added)

    def _type(self, token_id: int) -> int:
        types = self._metadata.get("tokenizer.ggml.token_type")
        return int(types[token_id]) if types is not None else 1

    def _id(self, name: str) -> int | None:
        value = self._metadata.get(f"tokenizer.ggml.{name}_token_id")
        if value is None or not 0 <= int(value) < self.vocab_size:
            return None
        return int(value)


class Utf8Stream:
    """Ids in, text out, never half a character."""

    def __init__(self, tokenizer: LlamaCppTokenizer, *, skip_special: bool, strip: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._strip = strip
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int, /) -> str:
        """The text that became whole with this token."""
        if self._skip_special and self._tokenizer.is_special(token_id):
            return ""
        piece = self._tokenizer.token_bytes(token_id)
        if self._strip:
            self._strip = False
            piece = piece.removeprefix(b" ")
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """What is left at the end; an unfinished character becomes U+FFFD."""
        return self._decoder.decode(b"", True)


def _byte_stand_ins() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in set(printable)]
    table = {chr(b): b for b in printable}
    table.update({chr(0x100 + n): b for n, b in enumerate(hidden)})
    return table


_BYTE_OF = _byte_stand_ins()
