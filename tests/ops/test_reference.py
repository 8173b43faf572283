"""Every op of the reference against its formula written out in float64, and the runner's face."""

from __future__ import annotations

import math

import numpy as np
import pytest

from insula.errors import EngineError
from insula.ops import reference
from insula.ops.graph import (
    Add,
    Attention,
    Embed,
    Glu,
    Graph,
    KVSlot,
    Linear,
    Logits,
    Norm,
    Rope,
    Scale,
)
from insula.ops.reference import ReferenceRunner, forward

RNG = np.random.default_rng(20261122)
D, V, HEADS, KV_HEADS, E = 24, 50, 4, 2, 6


class Tensors(dict):
    """Weights by name, as a file would give them."""

    def dequantize(self, name):
        return self[name]


def random(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


WEIGHTS = Tensors(
    embed=random(V, D),
    norm=random(D),
    q=random(HEADS * E, D) / 4,
    q_bias=random(HEADS * E),
    k=random(KV_HEADS * E, D) / 4,
    v=random(KV_HEADS * E, D) / 4,
    o=random(D, HEADS * E) / 4,
    out=random(V, D),
)


def small_graph(window=None):
    freqs = 0.7 ** np.arange(E // 2)
    attention = Attention(
        dst="a", q="q", k="k", v="v", slot=0, heads=HEADS, kv_heads=KV_HEADS, head_dim=E,
        scale=E**-0.5, window=window,
    )  # fmt: skip
    return Graph(
        arch="test",
        n_vocab=V,
        n_ctx_train=512,
        n_layers=1,
        n_embd=D,
        buffers={"x": D, "h": D, "q": HEADS * E, "k": KV_HEADS * E, "v": KV_HEADS * E}
        | {"a": HEADS * E, "d": D},
        slots=(KVSlot(kv_heads=KV_HEADS, head_dim=E, window=window),),
        ops=(
            Embed(dst="x", weight="embed", scale=0.5),
            Norm(dst="h", src="x", weight="norm", eps=1e-5),
            Linear(dst="q", src="h", weight="q", bias="q_bias"),
            Linear(dst="k", src="h", weight="k"),
            Linear(dst="v", src="h", weight="v"),
            Rope(buf="q", heads=HEADS, head_dim=E, freqs=freqs, style="neox"),
            Rope(buf="k", heads=KV_HEADS, head_dim=E, freqs=freqs, style="neox"),
            attention,
            Linear(dst="d", src="a", weight="o"),
            Scale(buf="d", factor=0.5),
            Add(dst="x", src="d"),
            Glu(dst="h", gate="x", up="d", act="silu"),
            Logits(src="h", weight="out", scale=2.0, softcap=20.0),
        ),
    )


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)


def test_rms_norm_per_head():
    x, weight = random(5, 12), random(4)
    wanted = np.zeros((5, 12))
    for t in range(5):
        for h in range(3):
            part = x[t, 4 * h : 4 * h + 4].astype(np.float64)
            rms = math.sqrt((part**2).mean() + 1e-3)
            wanted[t, 4 * h : 4 * h + 4] = part / rms * weight
    close(reference.norm(x, weight, None, eps=1e-3, kind="rms", heads=3), wanted)


def test_layer_norm_with_bias():
    x, weight, bias = random(5, 12) + 3, random(12), random(12)
    y = x.astype(np.float64)
    y = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 1e-5) * weight + bias
    close(reference.norm(x, weight, bias, eps=1e-5, kind="layer"), y)


@pytest.mark.parametrize("style", ["norm", "neox"])
def test_rope_rotates_pairs_and_leaves_the_rest(style):
    x = random(3, 2, 10)
    positions = np.array([0, 7, 4000], np.int32)
    freqs = np.array([1.0, 0.25, 0.01])
    wanted = x.astype(np.float64)
    for t, p in enumerate(positions):
        for i, freq in enumerate(freqs):
            a, b = (2 * i, 2 * i + 1) if style == "norm" else (i, i + 3)
            z = (x[t, :, a] + 1j * x[t, :, b]) * 1.5 * np.exp(1j * p * freq)
            wanted[t, :, a], wanted[t, :, b] = z.real, z.imag
    close(reference.rope(x, positions, freqs, style=style, mscale=1.5), wanted)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 1, 3])
def test_attention(window, softcap):
    n, start = 5, 4  # five new rows after four that are already stored
    op = Attention(
        dst="a", q="q", k="k", v="v", slot=0, heads=4, kv_heads=2, head_dim=6, scale=0.3,
        window=window, softcap=softcap,
    )  # fmt: skip
    q, k, v = random(n, 4, 6), random(start + n, 2, 6), random(start + n, 2, 6)
    positions = np.arange(start, start + n, dtype=np.int32)
    wanted = np.zeros((n, 4, 6))
    for t, p in enumerate(positions):
        seen = [s for s in range(p + 1) if window is None or s > p - window]
        for h in range(4):
            scores = np.array([0.3 * (q[t, h].astype(np.float64) @ k[s, h // 2]) for s in seen])
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            weights = np.exp(scores) / np.exp(scores).sum()
            wanted[t, h] = sum(w * v[s, h // 2] for w, s in zip(weights, seen, strict=True))
    close(reference.attention(op, q, k, v, positions), wanted)


def test_activations():
    x = np.array([-100.0, -20, -3, -0.5, 0, 0.5, 3, 20, 100], np.float32)
    y = x.astype(np.float64)
    with np.errstate(over="raise"):
        close(reference.silu(x), y / (1 + np.exp(-y)))
    inner = math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)
    close(reference.gelu_tanh(x), 0.5 * y * (1 + np.tanh(inner)))


def test_softcap_bounds_logits():
    logits = forward(small_graph(), WEIGHTS, np.arange(30))
    assert np.abs(logits).max() <= 20.0
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("window", [None, 3])
def test_runner_equals_forward_for_mixed_batches(window):
    """Two sequences in one step, in slices, on interleaved pages of four positions."""
    graph = small_graph(window)
    runner = ReferenceRunner(graph, WEIGHTS, n_pages=8, page_size=4)
    ids = [RNG.integers(0, V, 13), RNG.integers(0, V, 9)]
    tables = [np.array([6, 1, 3, 0], np.int32), np.array([2, 7, 5], np.int32)]
    found = [np.zeros((13, V), np.float32), np.zeros((9, V), np.float32)]
    slices = [((0, 5), (0, 1)), ((5, 6), (1, 8)), ((6, 13), (8, 9))]
    for spans in slices:
        tokens = np.concatenate([ids[s][a:b] for s, (a, b) in enumerate(spans)])
        positions = np.concatenate([np.arange(a, b) for a, b in spans])
        rows = np.concatenate([np.full(b - a, s) for s, (a, b) in enumerate(spans)])
        logits = runner.step(tokens, positions, rows, tables, np.arange(len(tokens)))
        for s, (a, b) in enumerate(spans):
            found[s][a:b] = logits[rows == s]
    for s in range(2):
        close(found[s], forward(graph, WEIGHTS, ids[s]))


def test_logits_only_for_the_rows_asked_for():
    graph = small_graph()
    runner = ReferenceRunner(graph, WEIGHTS, n_pages=2)
    ids = np.arange(10)
    table = [np.array([0], np.int32)]
    some = runner.step(ids, ids, ids * 0, table, [9, 2])
    close(some, forward(graph, WEIGHTS, ids)[[9, 2]])


def test_copied_page_continues_another_sequence():
    graph = small_graph()
    runner = ReferenceRunner(graph, WEIGHTS, n_pages=4, page_size=8)
    ids = RNG.integers(0, V, 8)
    first = [np.array([3], np.int32)]
    runner.step(ids[:5], np.arange(5), np.zeros(5, int), first, [4])
    runner.copy_page(3, 1)
    runner.step(RNG.integers(0, V, 3), np.arange(5, 8), np.zeros(3, int), first, [0])
    found = runner.step(
        ids[5:], np.arange(5, 8), np.zeros(3, int), [np.array([1], np.int32)], [0, 1, 2]
    )
    close(found, forward(graph, WEIGHTS, ids)[5:])


@pytest.mark.parametrize(
    ("tokens", "positions", "table", "says"),
    [
        ([V], [0], [0], "0..49"),
        ([-1], [0], [0], "0..49"),
        ([1], [64], [0], "pages"),
        ([1, 2], [1, 1], [0], "ascend"),
        ([1], [0], [2], "0..1"),
        ([], [], [0], "one at least"),
    ],
)
def test_a_step_refuses_what_it_cannot_do(tokens, positions, table, says):
    runner = ReferenceRunner(small_graph(), WEIGHTS, n_pages=2)
    rows = np.zeros(len(tokens), int)
    with pytest.raises(EngineError, match=says):
        runner.step(tokens, positions, rows, [np.array(table, np.int32)], [])
