"""Draft models: prompt lookup is the engine's own n-gram speculation, others are refused."""

from __future__ import annotations

from typing import Any

from insula.errors import ConfigError


class LlamaDraftModel:
    """What guesses tokens. Only LlamaPromptLookupDecoding has a counterpart here."""


class LlamaPromptLookupDecoding(LlamaDraftModel):
    """Guess what followed the same tokens earlier: `speculate="ngram"`.

    num_pred_tokens: most tokens guessed at once. max_ngram_size: kept as an attribute; the engine
    chooses the length of what it looks up.
    """

    def __init__(self, max_ngram_size: int = 2, num_pred_tokens: int = 10) -> None:
        for name, value in (
            ("max_ngram_size", max_ngram_size),
            ("num_pred_tokens", num_pred_tokens),
        ):
            number: Any = value
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ConfigError(f"{name}: found {value!r}; allowed is 1 or more")
        self.max_ngram_size = max_ngram_size
        self.num_pred_tokens = num_pred_tokens
