"""The gate: our arithmetic loses no more than llama.cpp's does, on real text and a real model."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from default_model import WHERE_TO_GET_IT, find_default_model
from golden import golden
from insula.models.load import open_model
from oracle.kl import kl_against_fp32
from oracle.kl_chance import moved
from oracle.runners import NATIVE, NATIVE_INT8_KV, REFERENCE, RUNNERS
from oracle.texts import Text, shared_folder, texts


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="needs xllamacpp (extra: llamacpp)"
)
@pytest.mark.skipif(shared_folder() is None, reason="needs the shared texts: set INSULA_SHARED")
@pytest.mark.parametrize(
    ("format_", "every"),  # bench/results/ has rows with every position of all four
    [("Q4_1", 1), ("Q4_0", 3), ("Q8_0", 3), ("Q4_K_M", 1)],
)
def test_no_worse_than_llamacpp(format_, every, tmp_path):
    from insula.models.quantize import quantize_file

    model = find_default_model()
    if model is None:
        pytest.skip(WHERE_TO_GET_IT)
    if format_ != "Q4_1":
        quantize_file(model, tmp_path / f"{format_}.gguf", format_)
        model = tmp_path / f"{format_}.gguf"
    sources = texts(shared_folder())
    row = kl_against_fp32(model, sources, kinds=[NATIVE], peer_threads=1, every=every)
    ours, theirs = row["engines"]["native"], row["engines"]["llamacpp"]
    assert ours["positions"] == theirs["positions"] > 1900 // every
    assert row["ratio_to_llamacpp"]["native"]["kl_mean"] <= 1.1, row
    # Flips are rare events: of those that only one of the two makes, ours are at most what a
    # fair coin would give, within two deviations (McNemar's test).
    alone_ours, alone_theirs = row["ratio_to_llamacpp"]["native"]["flips_alone"]
    assert alone_ours - alone_theirs <= 2 * (alone_ours + alone_theirs) ** 0.5, row


def test_the_harness_on_a_tiny_model(tmp_path):
    """Float32 weights leave nothing to lose; without llama.cpp the harness runs all the same."""
    text = Text(domain="en", source="here", text="The island is small and it is ours. " * 20)
    row = kl_against_fp32(
        golden.load("llama").write(tmp_path), [text], kinds=RUNNERS, n_tokens=150, top=40, every=3,
        peer=False,
    )  # fmt: skip
    assert row["ratio_to_llamacpp"] == {}
    for name, numbers in row["engines"].items():
        assert numbers["positions"] == 50
        assert numbers["kl_mean"] < {"native": 1e-4, "native-int8-kv": 3e-3}.get(name, 1e-6)
        assert set(numbers["kl_mean_by_domain"]) == {"en"}
    assert row["engines"][REFERENCE.name]["flips"] == 0


def test_a_model_moved_by_a_millionth_is_the_same_model_in_other_bits(tmp_path):
    ids = np.arange(2, 60)
    with open_model(golden.load("llama").write(tmp_path)) as model:
        found = []
        for kind in (NATIVE_INT8_KV, moved(NATIVE_INT8_KV, 1), moved(NATIVE_INT8_KV, 1)):
            runner = kind.make(model.graph, model.gguf, n_pages=1)
            found.append(
                runner.step(
                    ids, np.arange(58), np.zeros(58), [np.zeros(1, np.int32)], np.arange(58)
                )
            )
            runner.close()
    assert np.array_equal(found[1], found[2])
    assert 0 < np.abs(found[1] - found[0]).max() < 0.1
