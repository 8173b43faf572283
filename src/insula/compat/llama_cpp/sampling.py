"""llama-cpp-python's sampling arguments as `SamplingParams`.

The order is that package's: penalties, top_k, typical_p, top_p, min_p, temperature. A temperature
below 0 draws from the whole distribution; mirostat leaves out all but the penalties, temperature
too. What has no counterpart is refused by name or, where it has no effect there either, noted.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insula.compat.llama_cpp.errors import NotHereError
from insula.engine.sampling import validate
from insula.types import SamplingParams

LogitsProcessor = Callable[[NDArray[np.int32], NDArray[np.float32]], NDArray[np.float32]]
StoppingCriteria = Callable[[NDArray[np.int32], NDArray[np.float32]], bool]


class LogitsProcessorList(list[LogitsProcessor]):
    """Functions of (ids so far, logits [n_vocab]) that give the logits to choose from, in order."""

    def __call__(
        self, input_ids: NDArray[np.int32], scores: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        for processor in self:
            scores = processor(input_ids, scores)
        return scores


class StoppingCriteriaList(list[StoppingCriteria]):
    """Functions of (ids so far, logits [n_vocab]); any that says True ends the answer."""

    def __call__(self, input_ids: NDArray[np.int32], logits: NDArray[np.float32]) -> bool:
        return any(criterion(input_ids, logits) for criterion in self)


class MinTokensLogitsProcessor:
    """Forbids the end token until so many tokens have been generated."""

    def __init__(self, min_tokens: int, token_eos: int) -> None:
        self.min_tokens = min_tokens
        self.token_eos = token_eos
        self.prompt_tokens: int | None = None

    def __call__(
        self, input_ids: NDArray[np.int32], scores: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        if self.prompt_tokens is None:
            self.prompt_tokens = len(input_ids)
        if len(input_ids) - self.prompt_tokens < self.min_tokens:
            scores[self.token_eos] = -np.inf
        return scores


def sampling(
    *,
    temp: float,
    top_k: int,
    top_p: float,
    min_p: float,
    typical_p: float,
    repeat_penalty: float,
    frequency_penalty: float,
    presence_penalty: float,
    tfs_z: float,
    mirostat_mode: int,
    mirostat_tau: float,
    mirostat_eta: float,
    last_n: int,
    penalize_nl: bool = True,
    logit_bias: Mapping[Any, float] | None = None,
    max_tokens: int | None = None,
    stop: Sequence[str] = (),
    logprobs: int | None = None,
    seed: int | None = None,
) -> SamplingParams:
    """Checked parameters. Raises ConfigError (a ValueError) and NotHereError."""
    if tfs_z != 1.0:
        note("tfs_z has no effect: llama.cpp no longer has tail-free sampling, nor has Insula")
    if not penalize_nl:
        note("penalize_nl has no effect: penalties treat a line feed as any other token")
    if mirostat_mode not in (0, 2):
        raise NotHereError(
            f"mirostat_mode: found {mirostat_mode!r}; allowed: 0 (off) and 2 (version 2)"
        )
    order: tuple[str, ...] = (
        "penalties", "top_k", "typical_p", "top_p", "min_p", "temperature"
    )  # fmt: skip
    mirostat = 0
    if temp < 0:
        order, temp = ("penalties",), 1.0
    elif mirostat_mode and temp > 0:
        order, temp, mirostat = ("penalties",), 1.0, 2
    params = SamplingParams(
        temperature=temp,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
        repeat_penalty=repeat_penalty,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        repeat_last_n=last_n,
        mirostat=mirostat,
        mirostat_tau=mirostat_tau,
        mirostat_eta=mirostat_eta,
        logit_bias={int(token): float(bias) for token, bias in (logit_bias or {}).items()},
        samplers=order,
        max_tokens=max_tokens,
        stop=tuple(stop),
        logprobs=logprobs,
        seed=seed,
    )
    validate(params)
    return params


def note(message: str) -> None:
    """Say what has no effect, to the program that asked for it."""
    warnings.warn(message, UserWarning, stacklevel=_depth())


def _depth() -> int:
    """Levels up to the first caller outside this package."""
    depth, frame = 0, inspect.currentframe()
    package = __name__.rpartition(".")[0]
    while frame is not None and str(frame.f_globals.get("__name__", "")).startswith(package):
        frame = frame.f_back
        depth += 1
    return depth
