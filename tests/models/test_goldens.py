"""Every architecture gives the logits that transformers gives (see golden/make_goldens.py)."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from golden import golden
from golden.record import close
from insula.formats.gguf import GGUFFile
from insula.models.registry import build_graph
from insula.ops.graph import (
    Act,
    Attention,
    Embed,
    Experts,
    Glu,
    Linear,
    Logits,
    Norm,
    Positions,
    Rope,
    Scale,
    TokenTypes,
)
from insula.ops.pooling import pooled, wanted_rows
from insula.ops.reference import forward
from oracle.runners import NATIVE_F32_KV, RUNNERS


@pytest.fixture(params=golden.NAMES)
def case(request, tmp_path):
    wanted = golden.load(request.param)
    with GGUFFile.open(wanted.write(tmp_path)) as gguf:
        yield wanted, gguf


def test_forward_agrees(case):
    wanted, gguf = case
    graph = build_graph(gguf, n_ctx=len(wanted.ids))
    logits = forward(graph, gguf, wanted.ids, wanted.types)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, wanted.logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", RUNNERS, ids=lambda kind: kind.name)
def test_runner_agrees_in_slices(kind, case):
    """Prefill in uneven slices, through pages in no particular order, then token by token.

    What sees its whole text comes in one slice.
    """
    wanted, gguf = case
    graph = build_graph(gguf, n_ctx=len(wanted.ids))
    runner = kind.make(graph, gguf, n_pages=8)
    n = len(wanted.ids)
    table = np.array([5, 2, 7, 0], dtype=np.int32)
    logits = np.full_like(wanted.logits, np.nan)
    causal = all(op.causal for op in graph.ops if isinstance(op, Attention))
    cuts = [0, 1, 18, min(66, n - 3), n - 2, n - 1, n] if causal else [0, n]
    for start, stop in itertools.pairwise(cuts):
        positions = np.arange(start, stop, dtype=np.int32)
        logits[start:stop] = runner.step(
            wanted.ids[start:stop],
            positions,
            np.zeros_like(positions),
            [table],
            np.arange(stop - start, dtype=np.int32),
            types=None if wanted.types is None else wanted.types[start:stop],
        )
    runner.close()
    if kind is NATIVE_F32_KV:
        close("native", wanted.name, logits, wanted.logits, kind.tolerance)
    np.testing.assert_allclose(logits, wanted.logits, rtol=0, atol=kind.tolerance)


def test_a_head_gives_the_scores(case):
    wanted, gguf = case
    graph = build_graph(gguf)
    if wanted.scores is None:
        assert graph.pooling is None or graph.pooling.head is None
        return
    hidden = forward(graph, gguf, wanted.ids, wanted.types)
    rows = hidden[list(wanted_rows(graph.pooling, len(hidden)))]
    found = pooled(graph.pooling, rows, gguf.dequantize)
    np.testing.assert_allclose(found, wanted.scores, rtol=0, atol=1e-4)


def without_effect(graph):
    """Graphs from which one feature was taken away, by the feature's name."""

    def each(change):
        return replace(graph, ops=tuple(change(op) or op for op in graph.ops))

    def without(unwanted):
        return replace(graph, ops=tuple(op for op in graph.ops if not unwanted(op)))

    yield from without_effect_of_positions(graph, each, without)
    yield (
        "activation",
        each(
            lambda op: (
                replace(op, act="relu" if op.act == "silu" else "silu")
                if isinstance(op, Act | Glu | Experts)
                else None
            )
        ),
    )
    if any(isinstance(op, Attention) and op.window for op in graph.ops):
        yield (
            "window",
            each(lambda op: replace(op, window=None) if isinstance(op, Attention) else None),
        )
        yield (
            "exact window",
            each(
                lambda op: (
                    replace(op, window=op.window + 1)
                    if isinstance(op, Attention) and op.window
                    else None
                )
            ),
        )
    yield (
        "causality",
        each(lambda op: replace(op, causal=not op.causal) if isinstance(op, Attention) else None),
    )
    yield from without_effect_of_numbers(graph, each, without)


def without_effect_of_positions(graph, each, without):
    for kind in (Positions, TokenTypes):
        if any(isinstance(op, kind) for op in graph.ops):
            yield kind.__name__, without(lambda op, kind=kind: isinstance(op, kind))
    ropes = [op for op in graph.ops if isinstance(op, Rope)]
    if not ropes:
        return
    first = ropes[0].freqs
    plain = first[0] * (first[min(1, len(first) - 1)] / first[0]) ** np.arange(len(first))
    yield "rope", each(lambda op: replace(op, freqs=op.freqs * 0) if isinstance(op, Rope) else None)
    other = {"norm": "neox", "neox": "norm"}
    if any(len(op.freqs) > 1 for op in ropes):  # one pair is the same in both
        yield (
            "style",
            each(lambda op: replace(op, style=other[op.style]) if isinstance(op, Rope) else None),
        )
    if any(not np.allclose(op.freqs, plain) for op in ropes):
        yield (
            "rope scaling or base",
            each(lambda op: replace(op, freqs=plain) if isinstance(op, Rope) else None),
        )
    if any(op.mscale != 1 for op in ropes):
        yield (
            "mscale",
            each(lambda op: replace(op, mscale=1.0) if isinstance(op, Rope) else None),
        )
    if len(ropes) < 2 * len(graph.slots):
        yield (
            "layers without rope",
            replace(
                graph,
                ops=tuple(
                    each_op
                    for op in graph.ops
                    if not isinstance(op, Rope)
                    for each_op in ((*ropes[:2], op) if isinstance(op, Attention) else (op,))
                ),
            ),
        )


def without_effect_of_numbers(graph, each, without):
    if any(isinstance(op, Embed) and op.scale != 1 for op in graph.ops):
        yield (
            "embed scale",
            each(lambda op: replace(op, scale=1.0) if isinstance(op, Embed) else None),
        )
    if any(isinstance(op, Logits) and op.softcap for op in graph.ops):
        yield (
            "softcap",
            each(lambda op: replace(op, softcap=None) if isinstance(op, Logits) else None),
        )
    if any(isinstance(op, Logits) and op.scale != 1 for op in graph.ops):
        yield (
            "logit scale",
            each(lambda op: replace(op, scale=1.0) if isinstance(op, Logits) else None),
        )
    if any(isinstance(op, Attention) and op.softcap for op in graph.ops):
        yield (
            "attention softcap",
            each(lambda op: replace(op, softcap=None) if isinstance(op, Attention) else None),
        )
    if any(isinstance(op, Attention) and op.sinks for op in graph.ops):
        yield (
            "sinks",
            each(lambda op: replace(op, sinks=None) if isinstance(op, Attention) else None),
        )
    for field, value in (("among_used", False), ("used", 1), ("down_bias", None)):
        found = [op for op in graph.ops if isinstance(op, Experts)]
        if any(getattr(op, field) != value for op in found):
            yield (
                f"experts' {field}",
                each(
                    lambda op, change={field: value}: (
                        replace(op, **change) if isinstance(op, Experts) else None
                    )
                ),
            )
    if any(isinstance(op, Scale) for op in graph.ops):
        yield (
            "residual scale",
            each(lambda op: replace(op, factor=1.0) if isinstance(op, Scale) else None),
        )
    biased = {op.dst for op in graph.ops if isinstance(op, Linear) and op.bias}
    if not any(isinstance(op, Rope) for op in graph.ops):
        biased -= {"k"}  # adds the same to all of a query's scores: softmax does not see it
    for name in biased:
        yield (
            f"bias of {name}",
            each(
                lambda op, name=name: (
                    replace(op, bias=None) if isinstance(op, Linear) and op.dst == name else None
                )
            ),
        )
    for name in {op.dst for op in graph.ops if isinstance(op, Norm) and op.dst == op.src}:
        yield (
            f"norm of {name}",
            without(lambda op, name=name: isinstance(op, Norm) and op.dst == name),
        )
    yield (
        "attention scale",
        each(lambda op: replace(op, scale=op.scale * 1.05) if isinstance(op, Attention) else None),
    )
    yield "eps", each(lambda op: replace(op, eps=1e-2) if isinstance(op, Norm) else None)


def test_a_golden_sees_every_feature(case):
    """A golden that a missing feature would not disturb proves nothing."""
    wanted, gguf = case
    for feature, graph in without_effect(build_graph(gguf, n_ctx=len(wanted.ids))):
        off = np.abs(forward(graph, gguf, wanted.ids, wanted.types) - wanted.logits).max()
        assert off > 5e-3, f"{feature} could be missing and nobody would notice: {off}"
