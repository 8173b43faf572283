"""What a request may not ask for: the message names the option, the value and what is allowed."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from insula.engine.sampling import MAX_BREAKERS, MAX_STOPS, SAMPLERS, draw_seed, validate
from insula.errors import ConfigError
from insula.types import SamplingParams

WRONG: list[tuple[str, Any]] = [
    *[
        (option, value)
        for option in (
            *("temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "dry_multiplier"),
            *("xtc_probability", "xtc_threshold", "dynatemp_range", "dynatemp_exponent"),
            *("mirostat_tau", "mirostat_eta"),
        )
        for value in (math.nan, math.inf, -math.inf, -0.1, 1e9, "0.5", None, True)
    ],
    *[
        (option, value)
        for option in ("presence_penalty", "frequency_penalty", "dry_base", "top_n_sigma")
        for value in (math.nan, math.inf, -1e9, "x", None)
    ],
    *[
        (option, value)
        for option in ("top_k", "repeat_last_n", "dry_allowed_length", "dry_penalty_last_n")
        for value in (-2, 1.5, "40", None, False, math.nan)
    ],
    ("top_p", 1.01),
    ("repeat_penalty", 0.0),
    ("dry_allowed_length", -1),
    ("dry_base", 0.99),
    ("dry_sequence_breakers", "\n"),
    ("dry_sequence_breakers", None),
    ("dry_sequence_breakers", [""]),
    ("dry_sequence_breakers", [7]),
    ("dry_sequence_breakers", ["\ud800"]),
    ("dry_sequence_breakers", ["\u2014" * 14]),
    ("dry_sequence_breakers", ["a"] * (MAX_BREAKERS + 1)),
    ("top_n_sigma", -1.5),
    ("xtc_probability", 1.01),
    ("mirostat", 1),
    ("mirostat", 2.0),
    ("mirostat", True),
    ("mirostat", "2"),
    ("mirostat_eta", 1.5),
    ("seed", -1),
    ("seed", 2**64),
    ("seed", 1.0),
    ("max_tokens", -1),
    ("max_tokens", 1.5),
    ("logprobs", -1),
    ("logprobs", True),
    ("ignore_eos", "yes"),
    ("samplers", "top_k"),
    ("samplers", ("top_k", "mirostat")),
    ("samplers", ("top_k", "min_p", "top_k")),
    ("samplers", (["top_k"],)),
    ("samplers", None),
    ("stop", "END"),
    ("stop", [""]),
    ("stop", [3]),
    ("stop", ["a"] * (MAX_STOPS + 1)),
    ("stop", ["a" * 5000]),
    ("logit_bias", [1]),
    ("logit_bias", {-1: 0.0}),
    ("logit_bias", {"5": 0.0}),
    ("logit_bias", {5: math.nan}),
    ("logit_bias", {5: math.inf}),
    ("logit_bias", {5: 1e39}),
    ("logit_bias", {2**31: 0.0}),
]


@pytest.mark.parametrize(("option", "value"), WRONG, ids=str)
def test_refused(option: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(SamplingParams(**{option: value}))
    message = str(caught.value)
    assert re.match(rf"{option}: .+ given; allowed: .+", message), message
    assert len(message) < 300


def test_unknown_samplers_name_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        validate(SamplingParams(samplers=("tfs_z",)))
    assert "'tfs_z'" in str(caught.value)
    assert all(name in str(caught.value) for name in SAMPLERS)


def test_the_vocabulary_bounds_ids_and_logprobs() -> None:
    validate(SamplingParams(logprobs=10, logit_bias={9: 1.0}), n_vocab=10)
    with pytest.raises(ConfigError, match=r"logprobs: 11 .* 10"):
        validate(SamplingParams(logprobs=11), n_vocab=10)
    with pytest.raises(ConfigError, match=r"logit_bias: 10 .* 0 to 9"):
        validate(SamplingParams(logit_bias={10: 1.0}), n_vocab=10)


def test_what_is_allowed() -> None:
    validate(SamplingParams())
    validate(
        SamplingParams(
            temperature=np.float32(0.5),
            top_k=np.int64(7),
            top_p=1,
            min_p=0,
            repeat_last_n=-1,
            dry_penalty_last_n=-1,
            dry_sequence_breakers=["\u2014" * 13],
            top_n_sigma=-1,
            xtc_probability=1,
            xtc_threshold=1,
            mirostat=np.int64(2),
            mirostat_eta=0,
            seed=2**64 - 1,
            samplers=(),
            stop=("a", "b"),
            max_tokens=0,
            logprobs=0,
            logit_bias={np.int32(3): -math.inf},
        )
    )


def test_a_drawn_seed_is_allowed() -> None:
    seeds = {draw_seed() for _ in range(50)}
    assert len(seeds) == 50
    for seed in seeds:
        validate(SamplingParams(seed=seed))
