"""SamplingParams on their way to llama.cpp: all translated, the impossible refused by name."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from insula.engine.backends.llamacpp_request import MAX_SEED, completion_request, samplers
from insula.errors import ConfigError, UnsupportedError
from insula.types import SamplingParams


def request(params: SamplingParams | None = None, *, seed: int = 1) -> dict[str, Any]:
    return completion_request(
        [5, 6], params or SamplingParams(), seed=seed, max_tokens=9, eog_ids={2}
    )


def test_every_option_is_translated() -> None:
    params = SamplingParams(
        temperature=0.5,
        top_k=3,
        top_p=0.25,
        min_p=0.125,
        typical_p=0.75,
        repeat_penalty=1.25,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repeat_last_n=7,
        dry_multiplier=0.75,
        dry_base=1.5,
        dry_allowed_length=3,
        dry_penalty_last_n=8,
        dry_sequence_breakers=("\n", "END"),
        top_n_sigma=1.5,
        xtc_probability=0.5,
        xtc_threshold=0.25,
        dynatemp_range=0.5,
        dynatemp_exponent=2.0,
        logit_bias={4: 1.5, 7: -math.inf},
        samplers=("top_p", "xtc", "dry", "temperature", "typical_p", "top_n_sigma"),
        logprobs=4,
    )
    body = request(params, seed=99)
    expected = {
        "prompt": [5, 6],
        "n_predict": 9,
        "seed": 99,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.25,
        "min_p": 0.125,
        "typical_p": 0.75,
        "repeat_penalty": 1.25,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repeat_last_n": 7,
        "dry_multiplier": 0.75,
        "dry_base": 1.5,
        "dry_allowed_length": 3,
        "dry_penalty_last_n": 8,
        "dry_sequence_breakers": ["\n", "END"],
        "top_n_sigma": 1.5,
        "xtc_probability": 0.5,
        "xtc_threshold": 0.25,
        "dynatemp_range": 0.5,
        "dynatemp_exponent": 2.0,
        "mirostat": 0,
        "logit_bias": [[4, 1.5], [7, False]],
        "samplers": ["top_p", "xtc", "dry", "temperature", "typ_p", "top_n_sigma"],
        "n_probs": 4,
        "ignore_eos": False,
    }
    assert {key: body[key] for key in expected} == expected


def test_no_option_is_forgotten() -> None:
    """A new field of SamplingParams must be translated, or said here to live elsewhere."""
    elsewhere = {"seed", "max_tokens", "stop", "logprobs", "samplers", "ignore_eos", "logit_bias"}
    body = request()
    for field in dataclasses.fields(SamplingParams):
        assert field.name in body or field.name in elsewhere


def test_greedy_is_the_temperature_sampler_after_the_penalties() -> None:
    assert samplers(SamplingParams(temperature=0)) == ["penalties", "dry", "temperature"]
    assert samplers(SamplingParams(temperature=0, samplers=())) == ["temperature"]


@pytest.mark.parametrize("option", ["repeat_last_n", "dry_penalty_last_n"])
def test_a_window_is_no_larger_than_what_there_can_be(option: str) -> None:
    """Two tokens of prompt and nine of answer; llama.cpp allocates what it is told."""
    for asked, told in ((-1, 11), (0, 0), (10, 10), (12, 11), (2**40, 11)):
        assert request(SamplingParams(**{option: asked}))[option] == told


def test_mirostat() -> None:
    body = request(SamplingParams(mirostat=2, mirostat_tau=4.0, mirostat_eta=0.25))
    assert (body["mirostat"], body["mirostat_tau"], body["mirostat_eta"]) == (2, 4.0, 0.25)
    assert body["temperature"] == 0.8
    # llama.cpp divides by the temperature whether or not the order has it
    assert request(SamplingParams(mirostat=2, samplers=("top_k",)))["temperature"] == 1.0
    assert request(SamplingParams(mirostat=2, temperature=0))["mirostat"] == 0


def test_a_token_is_always_named() -> None:
    assert request(SamplingParams(logprobs=None))["n_probs"] == 1
    assert request(SamplingParams(logprobs=0))["n_probs"] == 1


def test_ignore_eos_excludes_our_own_end_tokens_too() -> None:
    body = request(SamplingParams(ignore_eos=True, logit_bias={3: 1.0}))
    assert body["logit_bias"] == [[3, 1.0], [2, False]]


@pytest.mark.parametrize(
    ("params", "seed", "option"),
    [
        (SamplingParams(), MAX_SEED + 1, "seed"),
        (SamplingParams(), -1, "seed"),
        (SamplingParams(temperature=math.inf), 1, "temperature"),
        (SamplingParams(repeat_penalty=math.nan), 1, "repeat_penalty"),
        (SamplingParams(logit_bias={1: math.inf}), 1, "logit_bias"),
        (SamplingParams(samplers=("top_k", "mirostat")), 1, "samplers"),
        (SamplingParams(samplers=("top_k", "top_k")), 1, "samplers"),
        (SamplingParams(mirostat=2, repeat_penalty=1.1), 1, "mirostat"),
        (SamplingParams(mirostat=2, dry_multiplier=1.0), 1, "mirostat"),
        (SamplingParams(mirostat=2, dynatemp_range=0.5), 1, "mirostat"),
        (
            SamplingParams(dry_multiplier=1.0, dry_sequence_breakers=()),
            1,
            "dry_sequence_breakers",
        ),
    ],
)
def test_what_it_cannot_express_names_backend_and_option(
    params: SamplingParams, seed: int, option: str
) -> None:
    with pytest.raises(UnsupportedError, match=f"llamacpp backend cannot take {option}=") as info:
        request(params, seed=seed)
    assert info.value.backend == "llamacpp"


def test_a_bias_that_is_no_number_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="logit_bias"):
        request(SamplingParams(logit_bias={1: math.nan}))
