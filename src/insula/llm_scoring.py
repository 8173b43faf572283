"""What a model makes of a given text, in numbers: logits, likelihoods, perplexity. `LLM` has these
methods; the formulas are `engine.scoring`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from insula.engine.backends import require
from insula.engine.request import TextEngine
from insula.errors import ConfigError
from insula.given import Prompt, plain_ids

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class ScoringMethods:
    """Needs a loaded engine."""

    _engine: TextEngine

    def perplexity(
        self, text: Prompt, *, window: int | None = None, stride: int | None = None
    ) -> float:
        """How surprised the model is by a text: exp of the mean negative natural-log likelihood
        per token, over windows of `window` tokens (default: the context) that begin `stride`
        apart (default: half a window). See `engine.scoring.perplexity` for the formula.

        A text is encoded with the begin token and without looking for control tokens.
        Raises ConfigError, UnsupportedError (the backend gives no logits).
        """
        from insula.engine import scoring

        if "conversation" in self._engine.takes:
            require(self._engine.name, "perplexity")
        ids = self._engine.tokenizer.encode(text) if isinstance(text, str) else plain_ids(text)
        return scoring.perplexity(self._engine, ids, window=window, stride=stride)

    def logits(
        self, ids: Sequence[int], *, first: int = 0, use_cache: bool = False
    ) -> NDArray[np.float32]:
        """Raw logits float32 [T - first, n_vocab]: row t is for the token after ids[first + t].

        use_cache: what lies before `first` may come from the prefix cache, and stays in it, so
        that going on token by token computes each token once.
        Raises ConfigError, ContextOverflowError, UnsupportedError.
        """
        from insula.engine import scoring

        if "conversation" in self._engine.takes:
            require(self._engine.name, "logits")
        return scoring.prompt_logits(self._engine, plain_ids(ids), first=first, use_cache=use_cache)

    def logprobs(
        self,
        prompts: Sequence[Prompt],
        continuations: Sequence[Sequence[Prompt]],
        *,
        parse_special: bool = True,
        use_cache: bool = True,
        salt: str = "",
        adapter: str | None = None,
    ) -> list[list[NDArray[np.float64]]]:
        """How likely each prompt is to go on with each of its continuations: for prompt i and its
        continuation k, an array float64 with the natural-log probability of each of its tokens.

        Nothing is generated. A prompt is computed once for all its continuations, and all run
        together. prompts: texts or ids. continuations: of each prompt, texts (see
        `continuation_ids`) or ids. parse_special: control tokens in texts are recognized; False
        for texts of others. use_cache, salt, adapter: as in `generate`.
        Raises ConfigError, ContextOverflowError, UnsupportedError (the backend gives no logits).
        """
        from insula.engine import scoring

        if "conversation" in self._engine.takes:
            require(self._engine.name, "logits")
        if isinstance(prompts, str) or len(prompts) != len(continuations):
            raise ConfigError(
                "logprobs takes a list of prompts, and for each of them a list of continuations"
            )
        if adapter is not None:
            require(self._engine.name, "adapters")
        encode = self._engine.tokenizer.encode
        return scoring.continuation_logprobs(
            self._engine,
            [
                tuple(encode(prompt, parse_special=parse_special))
                if isinstance(prompt, str)
                else plain_ids(prompt)
                for prompt in prompts
            ],
            [
                [
                    self.continuation_ids(prompt, text, parse_special=parse_special)
                    if isinstance(text, str)
                    else plain_ids(text)
                    for text in texts
                ]
                for prompt, texts in zip(prompts, continuations, strict=True)
            ],
            use_cache=use_cache,
            salt=salt,
            adapter=adapter,
        )

    def continuation_ids(
        self, prompt: Prompt, continuation: str, *, parse_special: bool = True
    ) -> tuple[int, ...]:
        """The ids of a text that goes on after a prompt: after a text those by which the two
        together go on where the prompt's ids end. If they do not (a token reaches over the seam),
        and after ids, those of the continuation alone."""
        encode = self._engine.tokenizer.encode
        if isinstance(prompt, str):
            ids = encode(prompt, parse_special=parse_special)
            whole = encode(prompt + continuation, parse_special=parse_special)
            if whole[: len(ids)] == ids and len(whole) > len(ids):
                return tuple(whole[len(ids) :])
        return tuple(encode(continuation, add_special=False, parse_special=parse_special))
