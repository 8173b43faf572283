"""The `options` of Ollama's requests: what they mean here, and which mean nothing.

What would change an answer and is not there is refused by name. What only steers Ollama's own
runner (batches, threads, GPUs) changes no token: it is accepted, and the reply's `notes` say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from insula.engine.options import sampling_params
from insula.errors import ConfigError
from insula.server.errors import RefusalError
from insula.server.generation import given, seeds
from insula.server.openai.constraints import constraints
from insula.server.sampling import MOST_ALTERNATIVES, Integer, Number, Seed, Stops
from insula.server.schema import Body

#: They steer a runner that is not here, and no answer depends on them.
RUNNERS = (
    *("num_batch", "num_gpu", "main_gpu", "low_vram", "f16_kv", "use_mmap", "use_mlock", "numa"),
    *("num_thread", "num_keep", "logits_all", "vocab_only", "embedding_only"),
)


class OllamaOptions(Body):
    """num_predict: -1 (and -2) go on until the model or the context ends it."""

    seed: Seed | None = None
    num_predict: Integer | None = None
    num_ctx: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    temperature: Number | None = None
    top_k: Integer | None = None
    top_p: Number | None = None
    min_p: Number | None = None
    typical_p: Number | None = None
    repeat_last_n: Integer | None = None
    repeat_penalty: Number | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    mirostat: Integer | None = None
    mirostat_tau: Number | None = None
    mirostat_eta: Number | None = None
    stop: Stops | None = None

    def sampling(self) -> dict[str, Any]:
        """By the names of SamplingParams. Raises ConfigError."""
        chosen = given(self.model_dump(exclude={"seed", "num_predict", "num_ctx"}))
        if self.num_predict is not None and self.num_predict >= 0:
            chosen["max_tokens"] = self.num_predict
        if self.seed is not None:
            chosen["seed"] = seeds(self.seed, 1)[0]
        sampling_params(None, chosen)
        return chosen


def read_options(asked: Mapping[str, Any] | None) -> tuple[OllamaOptions, list[str]]:
    """The options, and a note for each that is not used. Raises RefusalError."""
    wanted = dict(asked or {})
    notes = [
        f"options.{name} steers a runner that is not used here"
        for name in RUNNERS
        if wanted.pop(name, None) is not None
    ]
    return OllamaOptions.of(wanted), notes


def check_context(options: OllamaOptions, n_ctx: int) -> None:
    """Refuse a longer context than the model was loaded with, with both numbers."""
    if options.num_ctx is not None and n_ctx and options.num_ctx > n_ctx:
        raise ConfigError(
            f"num_ctx: found {options.num_ctx}, and the model is loaded with {n_ctx}; ask for "
            "less, or start the server with a longer context"
        )


def logprob_options(wanted: bool | None, top: int | None) -> dict[str, Any]:
    """Ollama's logprobs and top_logprobs. Raises RefusalError."""
    if top is not None and not 0 <= top <= MOST_ALTERNATIVES:
        message = f"top_logprobs: found {top}; allowed: 0 to {MOST_ALTERNATIVES}"
        raise RefusalError(400, message, param="top_logprobs")
    return {"logprobs": top or 0} if wanted else {}


def constraint_options(form: Any, tools: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Ollama's format ("json", or a schema) and tools. Raises RefusalError, ConstraintError."""
    asked: dict[str, Any] = {"tools": tools}
    if form == "json":
        asked["response_format"] = {"type": "json_object"}
    elif isinstance(form, dict):
        schema = {"name": "format", "schema": form}
        asked["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif form not in (None, ""):
        raise RefusalError(400, 'format: allowed are "json" and a JSON schema', param="format")
    return constraints(asked)
