"""Rotary frequencies: which angle each pair turns by per position, with every scaling applied.

Owns the schemes by which models are stretched to longer contexts, and how GGUF metadata states
them. A scheme that is not here is refused by name.

Sources: RoPE arXiv:2104.09864; linear interpolation arXiv:2306.15595; YaRN arXiv:2309.00071;
LongRoPE arXiv:2402.13753, its attention factor as in transformers' modeling_rope_utils;
the llama3 scheme as in transformers' modeling_rope_utils (Meta's Llama 3.1 release).
All frequencies are float64 [P], radians per position for each of P rotated pairs.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from insula.errors import FormatError, UnsupportedError
from insula.models.checkpoint import OTHER_BACKEND, Checkpoint

F64 = NDArray[np.float64]


def plain(n_rot: int, base: float) -> F64:
    """base^(-2i/n_rot) for each pair i."""
    return np.power(np.float64(base), -np.arange(0, n_rot, 2, dtype=np.float64) / n_rot)


def llama3(freqs: F64, *, factor: float, low: float, high: float, n_ctx_original: int) -> F64:
    """Long waves slowed by `factor`, short ones kept, those between blended by wavelength."""
    wavelength = 2 * np.pi / freqs
    smooth = (n_ctx_original / wavelength - low) / (high - low)
    blended = (1 - smooth) * freqs / factor + smooth * freqs
    return np.where(
        wavelength < n_ctx_original / high,
        freqs,
        np.where(wavelength > n_ctx_original / low, freqs / factor, blended),
    )


def yarn(
    freqs: F64,
    *,
    base: float,
    factor: float,
    n_ctx_original: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    whole_pairs: bool = True,
) -> F64:
    """Pairs that turn often keep their frequency, slow ones are interpolated, a ramp between.

    whole_pairs: the ramp begins and ends at a pair; transformers calls it truncate.
    """
    n_rot = 2 * len(freqs)

    def pair_turning(times: float) -> float:
        turns = n_ctx_original / (times * 2 * math.pi)
        return n_rot * math.log(turns) / (2 * math.log(base))

    first, last = pair_turning(beta_fast), pair_turning(beta_slow)
    if whole_pairs:
        first, last = math.floor(first), math.ceil(last)
    low, high = max(0, first), min(n_rot - 1, last)
    ramp = (np.arange(len(freqs)) - low) / max(0.001, high - low)
    keep = 1 - np.clip(ramp, 0, 1)
    scaled: F64 = freqs / factor * (1 - keep) + freqs * keep
    return scaled


def switch(ckpt: Checkpoint) -> int | None:
    """The longest context that has frequencies of its own (longrope); None: there is one set."""
    # llama.cpp's converter writes the factors and not the name.
    if not ckpt.holds("rope_factors_long.weight") and (
        ckpt.text("rope.scaling.type", "none") != "longrope"
    ):
        return None
    return ckpt.integer("rope.scaling.original_context_length")


def _longrope(ckpt: Checkpoint, freqs: F64) -> tuple[F64, float]:
    """Each pair slowed by a factor of its own, by other factors beyond the original context.

    The choice is the whole context's, as llama.cpp's: rotated keys stay in the cache.
    """
    original, trained = switch(ckpt), ckpt.integer("context_length")
    assert original is not None
    long, short = (
        ckpt.values(f"rope_factors_{name}.weight", len(freqs)) for name in ("long", "short")
    )
    factors = long if (ckpt.n_ctx or trained) > original else short
    if long is None or short is None or factors is None:
        raise FormatError(
            "longrope needs the tensors rope_factors_long.weight and rope_factors_short.weight; "
            "they are not both there"
        )
    if not np.all(np.isfinite(factors)) or np.any(factors <= 0):
        raise FormatError("tensors rope_factors_*.weight must hold finite numbers above 0")
    scale = trained / original
    usual = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    return freqs / factors.astype(np.float64), ckpt.number("rope.scaling.attn_factor", usual)


def from_checkpoint(
    ckpt: Checkpoint,
    *,
    n_rot: int,
    base: float,
    layer: int | None = None,
    whole_pairs: bool = True,
) -> tuple[F64, float]:
    """(frequencies, mscale) as the file's rope.* metadata and rope_freqs tensor state them.

    Raises UnsupportedError for a scheme that is not known here, FormatError for bad numbers.
    """
    try:
        with np.errstate(all="ignore"):
            freqs, mscale = _stated(ckpt, n_rot=n_rot, base=base, layer=layer, whole=whole_pairs)
    except (ZeroDivisionError, OverflowError):
        freqs, mscale = np.full(1, np.nan), math.nan
    if not (np.all(np.isfinite(freqs)) and np.all(freqs >= 0) and math.isfinite(mscale)):
        raise FormatError(
            f"{ckpt.arch}.rope.* (freq_base, scaling.*) give angles that are no numbers"
        )
    return freqs, mscale


def _stated(
    ckpt: Checkpoint, *, n_rot: int, base: float, layer: int | None, whole: bool
) -> tuple[F64, float]:
    freqs = plain(n_rot, base)
    if switch(ckpt) is not None:
        return _longrope(ckpt, freqs)
    name = "rope_freqs.weight" if layer is None else f"blk.{layer}.rope_freqs.weight"
    divisors = ckpt.values(name, n_rot // 2)
    if divisors is not None:
        if not np.all(np.isfinite(divisors)) or np.any(divisors <= 0):
            raise FormatError(f"tensor {name} must hold finite numbers above 0")
        freqs = freqs / divisors.astype(np.float64)

    # Before rope.scaling.* there was rope.scale_linear; a factor without a type means linear.
    old = ckpt.number("rope.scale_linear") if ckpt.has("rope.scale_linear") else 1.0
    has_factor = ckpt.has("rope.scaling.factor")
    kind = ckpt.text("rope.scaling.type", "linear" if has_factor else "none")
    match kind:
        case "none":
            return freqs / old, 1.0
        case "linear":
            return freqs / ckpt.number("rope.scaling.factor", old), 1.0
        case "llama3":
            if divisors is not None:  # the tensor is that same scaling, already computed
                return freqs, 1.0
            low = ckpt.number("rope.scaling.low_freq_factor")
            high = ckpt.number("rope.scaling.high_freq_factor")
            if high <= low:
                raise FormatError(
                    f"{ckpt.arch}.rope.scaling.high_freq_factor is {high}, it must be above "
                    f"low_freq_factor, {low}"
                )
            scaled = llama3(
                freqs,
                factor=ckpt.number("rope.scaling.factor"),
                low=low,
                high=high,
                n_ctx_original=ckpt.integer("rope.scaling.original_context_length"),
            )
            return scaled, 1.0
        case "yarn":
            ckpt.refuse("rope.scaling.yarn_log_multiplier")
            factor = ckpt.number("rope.scaling.factor")
            scaled = yarn(
                freqs,
                base=base,
                factor=factor,
                n_ctx_original=ckpt.integer(
                    "rope.scaling.original_context_length", ckpt.integer("context_length")
                ),
                beta_fast=ckpt.number("rope.scaling.yarn_beta_fast", 32.0),
                beta_slow=ckpt.number("rope.scaling.yarn_beta_slow", 1.0),
                whole_pairs=whole,
            )
            mscale = 1.0 if factor <= 1 else 1.0 + 0.1 * math.log(factor)
            return scaled, mscale * ckpt.number("rope.scaling.attn_factor", 1.0)
        case _:
            raise UnsupportedError(
                f"the native engine does not know the rope scaling {kind!r} "
                f"({ckpt.arch}.rope.scaling.type), only none, linear, llama3, longrope and yarn; "
                f"{OTHER_BACKEND}",
                backend="native",
            )
