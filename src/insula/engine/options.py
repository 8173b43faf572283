"""From what a caller writes to `SamplingParams`: keyword options, checked by name.

Owns the names; the ranges are `engine.sampling.validate`'s. An unknown name is an error that
says which one is closest.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from insula.engine.sampling import validate
from insula.errors import ConfigError
from insula.types import SamplingParams

NAMES: tuple[str, ...] = tuple(f.name for f in dataclasses.fields(SamplingParams))


def sampling_params(
    params: SamplingParams | None, options: Mapping[str, Any], *, others: tuple[str, ...] = ()
) -> SamplingParams:
    """`params` (default: the defaults) with `options` on top.

    A single stop string may stand for a list of one. others: further names that the caller's
    own signature knows, for the hint. Raises ConfigError for a name that there is not, or a value
    out of its range.
    """
    base = SamplingParams() if params is None else params
    if not isinstance(base, SamplingParams):
        raise ConfigError(
            f"params: found {type(params).__name__}; allowed is a SamplingParams, or options by "
            "keyword such as temperature=0"
        )
    for name in options:
        if name not in NAMES:
            raise unknown_option(name, (*NAMES, *others))
    changed = dict(options)
    if isinstance(changed.get("stop"), str):
        changed["stop"] = (changed["stop"],)
    elif "stop" in changed and changed["stop"] is None:
        changed["stop"] = ()
    chosen = dataclasses.replace(base, **changed) if changed else base
    validate(chosen)
    return chosen


#: Most completions of one prompt that one call may ask for.
MOST_SAMPLES = 256


def samples(params: SamplingParams, n: int | None) -> list[SamplingParams]:
    """The parameters of each of n completions of one prompt. A seed becomes seed, seed + 1, …

    Raises ConfigError.
    """
    if n is None:
        return [params]
    count: Any = n
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_SAMPLES:
        raise ConfigError(f"n: found {n!r}; allowed: 1 to {MOST_SAMPLES}")
    seed: Any = params.seed
    if not isinstance(seed, int) or isinstance(seed, bool):
        return [params] * n  # none, or what the sampler refuses
    return [dataclasses.replace(params, seed=(seed + i) % (1 << 64)) for i in range(n)]


def unknown_option(name: str, names: tuple[str, ...]) -> ConfigError:
    """The error for an option that nobody knows, naming the closest one, or all."""
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"allowed: {', '.join(names)}"
    return ConfigError(f"unknown option {name!r}; {hint}")
