"""PARAMETERs: their names, their values, and what they mean to the engine.

Takes Ollama's names (https://docs.ollama.com/modelfile) and those of SamplingParams. A name of
Ollama's that steers only Ollama's own runner is kept and told as unused; one that nobody knows is
an error where a person writes it, and a remark where it came with a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from insula.engine.context import MAX_CONTEXT
from insula.engine.load import MAX_THREADS
from insula.engine.sampling import validate
from insula.errors import ConfigError
from insula.locale import text
from insula.types import SamplingParams

#: Of SamplingParams, and how a value is read; the same names as Ollama's where it has them.
SAMPLING: dict[str, type] = {
    **dict.fromkeys(("temperature", "top_p", "min_p", "typical_p", "repeat_penalty"), float),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "dry_multiplier", "dry_base"), float),
    **dict.fromkeys(("top_n_sigma", "xtc_probability", "xtc_threshold", "dynatemp_range"), float),
    **dict.fromkeys(("dynatemp_exponent", "mirostat_tau", "mirostat_eta"), float),
    **dict.fromkeys(("top_k", "repeat_last_n", "dry_allowed_length", "mirostat"), int),
    **dict.fromkeys(("dry_penalty_last_n", "seed", "max_tokens"), int),
    "stop": list,
}
LOADING: dict[str, int] = {"num_ctx": MAX_CONTEXT, "num_thread": MAX_THREADS}
#: Of Ollama's runner; nothing here answers to them.
UNUSED = frozenset(
    "num_keep num_batch num_gpu main_gpu low_vram f16_kv logits_all vocab_only use_mmap use_mlock "
    "numa penalize_newline tfs_z num_gqa embedding_only rope_frequency_base rope_frequency_scale "
    "draft_num_predict".split()
)
NAMES = ("num_predict", *LOADING, *SAMPLING)


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What a model's parameters set. `notes` says which of them set nothing."""

    sampling: SamplingParams = dataclasses.field(default_factory=SamplingParams)
    n_ctx: int | None = None
    n_threads: int | None = None
    notes: tuple[str, ...] = ()


def add(parameters: dict[str, Any], name: str, written: str) -> None:
    """Add one PARAMETER as it is written; a second stop goes beside the first.

    Raises ConfigError for a name or a value that is not allowed.
    """
    if name in UNUSED:
        parameters[name] = written
        return
    if name not in NAMES:
        raise ConfigError(text("hub.parameter_name", name=name[:40], known=", ".join(NAMES)))
    if name == "stop":
        parameters[name] = [*parameters.get(name, []), written]
    else:
        kind = int if name in LOADING or name == "num_predict" else SAMPLING[name]
        try:
            parameters[name] = kind(written)
        except ValueError:
            raise ConfigError(text("hub.parameter_value", name=name, value=written[:40])) from None
    _set(SamplingParams(), name, parameters[name])


def meaning(parameters: Mapping[str, Any]) -> Meaning:
    """What they set. Never raises: what cannot be used is a note."""
    sampling, loading, notes = SamplingParams(), dict[str, int](), []
    for name, value in parameters.items():
        if name in UNUSED or name not in NAMES:
            notes.append(text("hub.parameter_unused", name=name[:40]))
            continue
        try:
            changed = _set(sampling, name, value)
            if isinstance(changed, SamplingParams):
                sampling = changed
            else:
                loading[name] = changed
        except ConfigError as error:
            notes.append(text("hub.parameter_refused", name=name, reason=error))
    return Meaning(
        sampling=sampling,
        n_ctx=loading.get("num_ctx"),
        n_threads=loading.get("num_thread"),
        notes=tuple(notes),
    )


def _set(sampling: SamplingParams, name: str, value: Any) -> SamplingParams | int:
    """`sampling` with one value more, or a number for the loader. Raises ConfigError."""
    refused = ConfigError(text("hub.parameter_value", name=name, value=str(value)[:40]))
    if name in LOADING or name == "num_predict" or SAMPLING[name] is int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise refused
    if name in LOADING:
        if not 1 <= value <= LOADING[name]:
            raise refused
        return int(value)
    if name == "num_predict":
        # -1 and -2: until the model or the context ends it.
        name, value = "max_tokens", None if value < 0 else value
    if name == "seed" and value < 0:
        value = None
    if name == "stop":
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list | tuple) or not all(isinstance(v, str) for v in listed):
            raise refused
        value = tuple(listed)
    try:
        changed = dataclasses.replace(sampling, **{name: value})
        validate(changed)
    except (TypeError, ValueError) as error:
        raise refused if not isinstance(error, ConfigError) else error from None
    return changed
