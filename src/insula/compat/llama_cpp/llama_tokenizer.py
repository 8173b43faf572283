"""A model's vocabulary in llama-cpp-python's form: bytes in, ids out, and back."""

from __future__ import annotations

from collections.abc import Sequence

from insula.engine.request import Tokenizer
from insula.errors import ConfigError


class LlamaTokenizer:
    """Over the tokenizer of a loaded model. Made by `Llama.tokenizer()`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """The ids of UTF-8 text. special: texts of control tokens become those tokens.

        Where the bytes are not UTF-8, U+FFFD takes their place, as elsewhere in llama.cpp.
        """
        if not isinstance(text, bytes):
            raise ConfigError(f"text: found {type(text).__name__}; allowed is bytes, in UTF-8")
        return self._tokenizer.encode(
            text.decode(errors="replace"), add_special=add_bos, parse_special=special
        )

    def detokenize(
        self,
        tokens: Sequence[int],
        prev_tokens: Sequence[int] | None = None,
        special: bool = False,
    ) -> bytes:
        """The bytes of ids; control tokens show theirs only if `special`.

        prev_tokens: what came before; it changes nothing, as in llama-cpp-python.
        """
        vocabulary = self._tokenizer
        ids = [int(i) for i in tokens]
        pieces = [vocabulary.token_bytes(i) for i in ids if special or not vocabulary.is_special(i)]
        data = b"".join(pieces)
        # A begin token's vocabulary writes a space before the first word.
        if ids and ids[0] == vocabulary.bos_id:
            data = data.removeprefix(b" ")
        return data

    def encode(self, text: str, add_bos: bool = True, special: bool = True) -> list[int]:
        """The ids of a text."""
        return self.tokenize(text.encode(errors="ignore"), add_bos, special)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ids, without what is no whole character."""
        return self.detokenize(tokens).decode(errors="ignore")
