"""transformers' names for how to generate, as this engine's sampling parameters.

What has no meaning here is refused by name, never ignored. Defaults are those of transformers'
text-generation pipeline (256 new tokens, drawn at temperature 0.7 from the likeliest 50), unless
the model brings parameters of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from insula.engine.options import sampling_params, unknown_option
from insula.errors import ConfigError
from insula.llm import LLM
from insula.types import SamplingParams

MAX_NEW_TOKENS = 256
#: transformers' name: ours.
NAMES = MappingProxyType(
    {
        "max_new_tokens": "max_tokens",
        "temperature": "temperature",
        "top_k": "top_k",
        "top_p": "top_p",
        "min_p": "min_p",
        "typical_p": "typical_p",
        "repetition_penalty": "repeat_penalty",
        "stop_strings": "stop",
        "stop_sequence": "stop",
        "seed": "seed",
    }
)
#: Meaningless where the likeliest token is taken.
_DRAWING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed")
#: What people of transformers write, and what to write here.
_ELSEWHERE = MappingProxyType(
    {
        "max_length": "write max_new_tokens, which does not count the prompt",
        "min_length": "there is no shortest answer here",
        "min_new_tokens": "there is no shortest answer here",
        "num_beams": "there is no beam search here",
        "device": "the engine runs on the CPU; model_kwargs={'gpu_layers': ...} asks for a GPU",
        "device_map": "the engine runs on the CPU; model_kwargs={'gpu_layers': ...} asks for a GPU",
        "dtype": "weights run in the file's own format",
        "torch_dtype": "weights run in the file's own format",
        "tokenizer": "the tokenizer is the model's own",
        "batch_size": "a list of inputs is a batch, and the engine forms its steps itself",
    }
)


def generation(
    llm: LLM, options: Mapping[str, Any], *, others: tuple[str, ...] = (), draw: bool = True
) -> SamplingParams:
    """The sampling parameters. draw: what do_sample is where nobody says it. others: further
    names that the caller's own signature knows, for the hint.

    Raises ConfigError for a name that there is not, or a value out of its range.
    """
    given = dict(options)
    sample = given.pop("do_sample", draw)
    if not isinstance(sample, bool):
        raise ConfigError(f"do_sample: found {sample!r}; allowed: True or False")
    check_names(given, (*NAMES, "do_sample", *others))
    if "stop_strings" in given and "stop_sequence" in given:
        raise ConfigError("stop_strings, stop_sequence: found both; they mean the same here")
    changed = {NAMES[name]: value for name, value in given.items() if value is not None}
    base = _base(llm)
    if base.max_tokens is None:
        changed.setdefault("max_tokens", MAX_NEW_TOKENS)
    if "repeat_penalty" in changed:
        changed["repeat_last_n"] = -1  # transformers' sees the whole text
    if not sample:
        useless = [name for name in _DRAWING if given.get(name) is not None]
        if useless:
            raise ConfigError(
                f"{', '.join(useless)}: has no meaning without do_sample=True, where the "
                "likeliest token is taken"
            )
        changed["temperature"] = 0.0
    return sampling_params(base, changed)


def check_names(options: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    """Raise ConfigError for the first name that is not allowed."""
    for name in options:
        if name not in allowed:
            if name in _ELSEWHERE:
                raise ConfigError(f"{name}: {_ELSEWHERE[name]}")
            raise unknown_option(name, allowed)


def _base(llm: LLM) -> SamplingParams:
    own = llm.default_params
    if own != SamplingParams():
        return own
    return dataclasses.replace(own, temperature=0.7, top_k=50, top_p=1.0, min_p=0.0)
