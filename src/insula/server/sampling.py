"""How a request chooses its tokens: OpenAI's parameters, and ours beside them by their own names.

Ranges are the engine's (`engine.sampling`), whose errors name the parameter; here are only the
types and what must hold before anything waits: no list or number that is large for no reason.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from insula.engine.options import sampling_params
from insula.engine.sampling import MAX_STOPS
from insula.server.errors import RefusalError
from insula.server.generation import given, seeds
from insula.server.schema import Body

#: OpenAI's own bound on alternatives per token.
MOST_ALTERNATIVES = 20
MOST_BIASES = 1024

Stops = str | Annotated[list[str], Field(max_length=MAX_STOPS)]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)]
#: What any number here may be; the engine knows each one's own range.
Integer = Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)]
Number = Annotated[float, Field(ge=-1e30, le=1e30)]

#: Ours that no other interface has; taken as they are.
_OWN = (
    *("dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n"),
    *("dry_sequence_breakers", "top_n_sigma", "xtc_probability", "xtc_threshold"),
    *("dynatemp_range", "dynatemp_exponent", "mirostat", "mirostat_tau", "mirostat_eta"),
    *("ignore_eos", "temperature", "top_p", "top_k", "min_p", "typical_p", "repeat_penalty"),
    *("repeat_last_n", "presence_penalty", "frequency_penalty", "stop"),
)


class Sampling(Body):
    """What chat and completions have in common."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: Integer | None = None
    min_p: Number | None = None
    typical_p: Number | None = None
    repeat_penalty: Number | None = None
    repeat_last_n: Integer | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    dry_multiplier: Number | None = None
    dry_base: Number | None = None
    dry_allowed_length: Integer | None = None
    dry_penalty_last_n: Integer | None = None
    dry_sequence_breakers: Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    top_n_sigma: Number | None = None
    xtc_probability: Number | None = None
    xtc_threshold: Number | None = None
    dynatemp_range: Number | None = None
    dynatemp_exponent: Number | None = None
    mirostat: Integer | None = None
    mirostat_tau: Number | None = None
    mirostat_eta: Number | None = None
    ignore_eos: bool | None = None
    seed: Seed | None = None
    stop: Stops | None = None
    logit_bias: Annotated[dict[str, Number], Field(max_length=MOST_BIASES)] | None = None
    n: Annotated[int, Field(ge=1)] = 1
    stream: bool = False
    adapter: Annotated[str, Field(max_length=200)] | None = None
    user: str | None = None

    def options(self, *, most_samples: int) -> dict[str, Any]:
        """By the names of SamplingParams, without seed and lengths. Raises RefusalError."""
        if self.n > most_samples:
            message = f"n: found {self.n}; allowed: 1 to {most_samples}"
            raise RefusalError(400, message, code="invalid_value", param="n")
        options = given({name: getattr(self, name) for name in _OWN})
        if self.logit_bias:
            options["logit_bias"] = {_token(name): b for name, b in self.logit_bias.items()}
        sampling_params(None, options)  # out of range is said before anybody waits
        return options

    def seeds(self) -> list[int | None]:
        """Of each of the n samples."""
        return seeds(self.seed, self.n)


def _token(written: str) -> int:
    if not written.isascii() or not written.isdigit() or len(written) > 9:
        message = f"logit_bias: found {written[:40]!r}; allowed are token ids"
        raise RefusalError(400, message, code="invalid_value", param="logit_bias")
    return int(written)
