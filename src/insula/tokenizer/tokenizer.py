"""The vocabulary of a model file, ready to encode and decode.

Owns: the Python face; the algorithms and the checks are native (native/tokenizer). Refuses:
vocabularies that contradict themselves (TokenizerError), and families and pre-tokenizers that are
not implemented exactly (UnsupportedError, by name). Invariant: immutable, and free for any number
of threads; the GIL is released while a long text is encoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from insula import _native
from insula.errors import TokenizerError
from insula.tokenizer import metadata as reader
from insula.tokenizer.detokenizer import Detokenizer


class Tokenizer:
    """Made by `from_metadata`.

    vocab_size: number of tokens; ids are 0 to vocab_size - 1. model: "bpe", "spm", "wordpiece" or
    "unigram". pre: the name of the pre-tokenizer, None for the families that have none.
    bos_id, eos_id, eot_id, unk_id, sep_id, pad_id: None where the vocabulary has none.
    eog_ids: every token that ends an answer. add_bos, add_eos: whether `encode` puts the begin and
    end tokens around a text by default (for "wordpiece" these are [CLS] and [SEP]).
    chat_template: the Jinja source in the file, or None.
    """

    def __init__(
        self, native: _native.Tokenizer, *, pre: str | None, chat_template: str | None
    ) -> None:
        self._native = native
        self.vocab_size: int = native.size
        self.model: str = native.family
        self.pre = pre
        self.bos_id: int | None = native.bos
        self.eos_id: int | None = native.eos
        self.eot_id: int | None = native.eot
        self.unk_id: int | None = native.unk
        self.sep_id: int | None = native.sep
        self.pad_id: int | None = native.pad
        self.eog_ids: frozenset[int] = frozenset(native.end_ids)
        self.add_bos: bool = native.add_bos
        self.add_eos: bool = native.add_eos
        self.chat_template = chat_template

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], *, pre: str | None = None) -> Tokenizer:
        """The tokenizer of a GGUF file's metadata.

        metadata: GGUF keys to values; arrays of strings as lists or as formats' StringArray, arrays
        of numbers as NumPy arrays or lists. pre: the pre-tokenizer to use instead of the one that
        the file names, for files that name none.

        Raises TokenizerError where the metadata is malformed, UnsupportedError where it is well
        formed but of a kind that is not implemented.
        """
        native, named = reader.build(metadata, pre)
        return cls(
            native,
            pre=named,
            chat_template=reader.text(metadata, "tokenizer.chat_template"),
        )

    def encode(
        self,
        text: str,
        *,
        add_special: bool = True,
        parse_special: bool = False,
        plain: Sequence[int] = (),
    ) -> list[int]:
        """The ids of `text`.

        add_special: put the begin and end tokens around it, if the vocabulary does that.
        parse_special: texts of control tokens in it become those tokens. Leave it off for text
        that others wrote.
        plain: ascending byte offsets in the UTF-8 text at which a control token's text stays text
        all the same (see `control_texts`).

        Raises TokenizerError for a lone surrogate, and where the vocabulary has no token for some
        of the text and nothing to fall back on.
        """
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"the text has a lone surrogate at character {error.start}, which no UTF-8 can hold"
            ) from None
        ids: list[int] = self._native.encode(data, add_special, parse_special, list(plain)).tolist()
        return ids

    def control_texts(self, data: bytes) -> list[int]:
        """Byte offsets in UTF-8 text at which the text of a control token begins."""
        return self._native.control_texts(data)

    def encode_bytes(
        self,
        data: bytes,
        *,
        add_special: bool = True,
        parse_special: bool = False,
        errors: Literal["strict", "replace"] = "strict",
    ) -> list[int]:
        """The ids of UTF-8 text; zero bytes are text like any other.

        errors: what to do where `data` is not UTF-8: raise TokenizerError with the place, or put
        U+FFFD there as `bytes.decode` does.
        """
        if errors == "replace":
            data = data.decode(errors="replace").encode()
        ids: list[int] = self._native.encode(data, add_special, parse_special).tolist()
        return ids

    def decode(
        self,
        ids: Sequence[int] | NDArray[np.integer[Any]],
        *,
        skip_special: bool = False,
        continues: bool = False,
    ) -> str:
        """The text of `ids`; U+FFFD where their bytes are not UTF-8.

        skip_special: leave control tokens out instead of showing their texts. continues: the ids
        follow on other text, so the first word keeps the space before it that vocabularies of the
        "spm" family put at the start of a text.

        Raises TokenizerError for an id that is not in the vocabulary.
        """
        array = np.asarray(ids)
        if array.size == 0:
            return ""
        if array.dtype.kind == "O":  # NumPy has no room for an integer like this
            raise TokenizerError(f"a token id is not in the vocabulary of {self.vocab_size} tokens")
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise TokenizerError(
                f"token ids must be one sequence of integers, not {array.ndim}-D {array.dtype}"
            )
        packed: NDArray[np.int64] = np.ascontiguousarray(array, dtype=np.int64)
        return self._native.decode(packed, skip_special, continues).decode(errors="replace")

    def detokenizer(self, *, skip_special: bool = False, continues: bool = False) -> Detokenizer:
        """A stream of text; the options are those of `decode`."""
        return Detokenizer(self._native, skip_special=skip_special, continues=continues)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that the token stands for, a special token by its text; b"" for unused ones.

        Raises TokenizerError if the id is not in the vocabulary.
        """
        return self._native.piece(token_id)

    def token_id(self, text: str) -> int | None:
        """The id of the token written `text` in the vocabulary (as in the file), None if absent."""
        return self._native.find(text)

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a control (or unknown) token, which skip_special leaves out."""
        return self._native.is_special(token_id)
