"""Sampling as a person sets it: by options of the command line and by /set in a chat.

Holds what was set and nothing else; what was not set keeps the model's own default (a Modelfile's
PARAMETER), else the engine's. Values are checked by the engine's own rules as soon as they are
given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from insula.errors import ConfigError
from insula.locale import text
from insula.types import SamplingParams


def _flag(value: str) -> bool:
    known = {"on": True, "true": True, "yes": True, "1": True}
    known |= {"off": False, "false": False, "no": False, "0": False}
    return known[value.lower()]


def _names(value: str) -> tuple[str, ...]:
    return tuple(part for part in value.replace(",", " ").split() if part)


def _stops(value: str) -> tuple[str, ...]:
    """Stop strings, separated by "|"; \\n and \\t mean what they say."""
    parts = value.replace("\\n", "\n").replace("\\t", "\t").split("|")
    return tuple(part for part in parts if part)


def _breakers(value: str) -> tuple[str, ...]:
    """As stop strings; "none" is an empty list."""
    return () if value.lower() == "none" else _stops(value)


#: What can be set, and how its text is read. "default" undoes a setting.
SETTINGS: dict[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "typical_p": float,
    "repeat_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "repeat_last_n": int,
    "dry_multiplier": float,
    "dry_base": float,
    "dry_allowed_length": int,
    "dry_penalty_last_n": int,
    "dry_sequence_breakers": _breakers,
    "top_n_sigma": float,
    "xtc_probability": float,
    "xtc_threshold": float,
    "dynatemp_range": float,
    "dynatemp_exponent": float,
    "mirostat": int,
    "mirostat_tau": float,
    "mirostat_eta": float,
    "seed": int,
    "max_tokens": int,
    "stop": _stops,
    "samplers": _names,
    "ignore_eos": _flag,
}
_LISTS = ("stop", "dry_sequence_breakers")  # of texts, which may hold spaces
_DEFAULTS = {field.name: field for field in fields(SamplingParams)}


def parse(name: str, value: str) -> Any:
    """The value of setting `name`; None for "default". Raises ConfigError that says what is."""
    key = name.lower().replace("-", "_")
    reader = SETTINGS.get(key)
    if reader is None:
        known = ", ".join(SETTINGS)
        raise ConfigError(text("run.no_such_setting", name=name[:40], known=known))
    if value.lower() == "default":
        return None
    try:
        return reader(value)
    except (ValueError, KeyError):
        raise ConfigError(text("run.bad_setting", name=key, value=value[:80])) from None


def params(chosen: Mapping[str, Any], base: SamplingParams | None = None) -> SamplingParams:
    """The engine's parameters, upon the model's. ConfigError for a value out of its range."""
    from insula.engine.sampling import validate

    given = {k: v for k, v in chosen.items() if v is not None}
    built = replace(SamplingParams() if base is None else base, **given)
    validate(built)
    return built


def effective(
    chosen: Mapping[str, Any], base: SamplingParams | None = None
) -> list[tuple[str, str]]:
    """Every setting with the value that holds, for a person; what was chosen has a star."""
    built = params(chosen, base)
    rows = []
    for name in SETTINGS:
        value = getattr(built, name)
        shown = ", ".join(map(repr, value)) or "-" if name in _LISTS else _shown(value)
        rows.append((name, shown + (" *" if chosen.get(name) is not None else "")))
    return rows


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return " ".join(value) if isinstance(value, tuple) else str(value)
