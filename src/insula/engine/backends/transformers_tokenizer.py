"""A checkpoint's own tokenizer, as the transformers library reads it.

Fits `engine.request.Tokenizer`. Bytes of ids come from the vocabulary's pieces (`pieces`); text to
ids is the library's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from insula.engine.backends.pieces import Utf8Stream, byte_level_bytes, sentencepiece_bytes
from insula.errors import TokenizerError


class CheckpointTokenizer:
    """Over a `PreTrainedTokenizer`. end_ids: further ids that end an answer; vocab_size: of the
    model, which may have more rows than the vocabulary has tokens."""

    def __init__(self, tokenizer: Any, *, vocab_size: int, end_ids: Iterable[int] = ()) -> None:
        self._own = tokenizer
        self.vocab_size = vocab_size
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        ends = {*end_ids, *(() if self.eos_id is None else (self.eos_id,))}
        self.eog_ids = frozenset(i for i in ends if 0 <= i < vocab_size)
        template = tokenizer.chat_template
        if isinstance(template, dict):  # several by name
            template = template.get("default")
        self.chat_template: str | None = template
        self._added: dict[int, Any] = dict(tokenizer.added_tokens_decoder)

    @cached_property
    def add_bos(self) -> bool:
        """Whether a text with special tokens begins with bos."""
        return self.bos_id is not None and self.encode("a")[:1] == [self.bos_id]

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """The ids of a text. Raises TokenizerError for a lone surrogate."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"the text has a lone surrogate at character {error.start}, which no UTF-8 can hold"
            ) from None
        ids = self._own(
            text,
            add_special_tokens=add_special,
            split_special_tokens=not parse_special,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]
        return [int(i) for i in ids]

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Text of `ids`; invalid UTF-8 becomes U+FFFD."""
        stream = self.detokenizer(skip_special=skip_special)
        return "".join([stream.push(int(i)) for i in ids]) + stream.flush()

    def token_bytes(self, token_id: int, /) -> bytes:
        """The bytes of one token; none for a row of the model that no token has."""
        if not 0 <= token_id < self.vocab_size:
            raise TokenizerError(f"token {token_id} is not in 0 to {self.vocab_size - 1}")
        if token_id in self._added:
            return str(self._added[token_id].content).encode()
        piece = self._own.convert_ids_to_tokens(token_id) if token_id < len(self._own) else None
        if piece is None:
            return b""
        return byte_level_bytes(piece) if self._byte_level else sentencepiece_bytes(piece)

    def is_special(self, token_id: int, /) -> bool:
        """Whether the token is a control token."""
        added = self._added.get(token_id)
        return added is not None and bool(added.special)

    def detokenizer(self, *, skip_special: bool = False, continues: bool = False) -> Utf8Stream:
        """A fresh incremental decoder; continues: a space before the first word is text."""
        strip = not self._byte_level and not continues
        return Utf8Stream(self, skip_special=skip_special, strip=strip)

    @cached_property
    def _byte_level(self) -> bool:
        backend = getattr(self._own, "backend_tokenizer", None)
        if backend is None:
            return False
        return '"ByteLevel"' in json.dumps(json.loads(backend.to_str()).get("decoder"))
