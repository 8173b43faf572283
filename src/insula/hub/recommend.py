"""What fits this machine at which context, and about how fast it would answer.

To write a token all weights are read once, and the keys and values of the context so far; so the
memory's read bandwidth, measured natively, bounds tokens per second. SHARE of that bound is what
decoding reached in docs/performance.md (56 to 79 %). Sizes of models that are not here are
estimates and say so; those of models in the store are their files' own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from insula.errors import InsulaError
from insula.formats.gguf import GGUFFile
from insula.hub import advice
from insula.hub.known_models import KnownModel
from insula.hub.store import ModelStore
from insula.models.load import summarize

SHARE = 0.7
MEGABYTES = 256


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model and what it needs. Bytes; `context` is what it was trained for, in tokens."""

    name: str
    here: bool
    parameters: float
    licence: str | None
    context: int
    weights: int
    kv_per_token: int


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One candidate on this machine. `needed` bytes at `n_ctx` tokens.

    n_ctx: the context that was asked for, cut to what the model was trained for.
    most_ctx: the longest that fits, 0 if not even one page does; None if memory is not known.
    tokens_per_second: with an empty context and with a full one; None without a measurement.
    """

    candidate: Candidate
    n_ctx: int
    needed: int
    fits: bool | None
    most_ctx: int | None
    tokens_per_second: tuple[float, float] | None


def of_known(model: KnownModel) -> Candidate:
    """A model of the offline catalogue, as a Q4_K_M file."""
    return Candidate(
        name=model.name,
        here=False,
        parameters=model.parameters,
        licence=model.licence,
        context=model.context,
        weights=model.q4_bytes,
        kv_per_token=model.kv_per_token,
    )


def in_store(store: ModelStore) -> list[Candidate]:
    """The models of the store that say what they need."""
    found = []
    for manifest in store.scan()[0]:
        try:
            with GGUFFile.open(store.path(manifest)) as file:
                summary = summarize(file)
                per_token = advice.kv_bytes_per_token(file.metadata)
        except InsulaError:  # a damaged file, which `insula list` shows as such
            continue
        if per_token is None or not summary.context_length:
            continue
        found.append(
            Candidate(
                name=manifest.name,
                here=True,
                parameters=summary.parameters,
                licence=manifest.licence or summary.license,
                context=summary.context_length,
                weights=summary.weight_bytes,
                kv_per_token=per_token,
            )
        )
    return found


def bandwidth(threads: int) -> float:
    """Bytes per second that the processor reads from memory, measured now (under a second)."""
    from insula import _native

    return float(_native.measure_bandwidth(threads, MEGABYTES)) * 1e9


def advise(
    candidates: Sequence[Candidate],
    *,
    n_ctx: int,
    available: int | None,
    bytes_per_second: float | None,
) -> list[Advice]:
    """What each needs here: first those that fit, of them the largest first."""
    found = [_advise(c, n_ctx, available, bytes_per_second) for c in candidates]
    return sorted(
        found,
        key=lambda a: (
            a.fits is False,
            -a.candidate.parameters if a.fits is not False else a.needed,
            a.candidate.name,
        ),
    )


def _advise(
    candidate: Candidate, n_ctx: int, available: int | None, bytes_per_second: float | None
) -> Advice:
    n_ctx = min(n_ctx, candidate.context)
    needs = advice.Needs(
        weights=candidate.weights, kv_cache=candidate.kv_per_token * n_ctx, n_ctx=n_ctx
    )
    most = None
    if available is not None:
        left = available - candidate.weights - needs.overhead
        most = max(0, min(candidate.context, left // candidate.kv_per_token))
    speed = None
    if bytes_per_second is not None:
        reached = SHARE * bytes_per_second
        speed = (
            reached / candidate.weights,
            reached / (candidate.weights + needs.kv_cache),
        )
    return Advice(
        candidate=candidate,
        n_ctx=n_ctx,
        needed=needs.total,
        fits=None if available is None else needs.total <= available,
        most_ctx=most,
        tokens_per_second=speed,
    )
