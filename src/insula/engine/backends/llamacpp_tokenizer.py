"""llama.cpp's own tokenizer, for the vocabularies that ours refuses.

Text to ids goes through the loaded model. Ids to bytes come from the file's own metadata, by
the two rules of `pieces`. Fits `engine.request.Tokenizer`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from insula.engine.backends.llamacpp_server import LlamaCppServer
from insula.engine.backends.pieces import Utf8Stream, byte_level_bytes, sentencepiece_bytes
from insula.errors import TokenizerError

# tokenizer.ggml.token_type: llama.cpp's enum llama_token_type.
_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6
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
            return byte_level_bytes(piece)
        return sentencepiece_bytes(piece, may_be_byte=self._type(token_id) == _BYTE)

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
