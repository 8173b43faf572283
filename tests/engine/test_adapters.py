"""Low-rank adapters at run time: what merged weights give, per sequence, and nothing else."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from golden import golden
from insula.engine.engine import Engine
from insula.engine.request import Request
from insula.engine.runner import NativeRunner
from insula.errors import ConfigError, FormatError
from insula.formats.gguf import GGUFFile
from insula.models.adapters import Adapter
from insula.models.load import open_model
from insula.models.registry import build_graph
from insula.ops.reference import forward
from insula.types import SamplingParams

PARTS = ("attn_q", "attn_v", "attn_qkv", "attn_output", "ffn_up", "ffn_down")


def adapter(gguf: GGUFFile, name: str, seed: int, rank: int = 5) -> Adapter:
    """Changes some weights of each layer by about a third of their size."""
    rng = np.random.default_rng(seed)
    factors = {}
    for tensor, info in gguf.tensors.items():
        if tensor.endswith(".weight") and tensor.split(".")[-2] in PARTS and len(info.shape) == 2:
            out, width = info.shape
            down = rng.standard_normal((rank, width)) / width**0.5
            up = rng.standard_normal((out, rank)) * 0.5 / rank**0.5
            factors[tensor] = (down.astype(np.float32), up.astype(np.float32))
    return Adapter(name=name, factors=factors)


class Merged:
    """A file whose weights have an adapter in them."""

    def __init__(self, gguf: GGUFFile, adapter: Adapter) -> None:
        self.gguf, self.adapter = gguf, adapter

    def dequantize(self, name: str) -> np.ndarray:
        base, _, rows = name.partition("[")
        weight = self.gguf.dequantize(name)
        if base in self.adapter.factors:
            down, up = self.adapter.factors[base]
            change = up @ down
            if rows:
                start, stop = map(int, rows[:-1].split(":"))
                change = change[start:stop]
            weight = weight + change
        return weight


def steps(runner: NativeRunner, ids, table, cuts, which: int | None) -> np.ndarray:
    parts = []
    for start, stop in itertools.pairwise(cuts):
        at = np.arange(start, stop)
        adapters = None if which is None else [which]
        parts.append(
            runner.step(ids[start:stop], at, at * 0, [table], np.arange(stop - start), adapters)
        )
    return np.concatenate(parts)


@pytest.mark.parametrize("name", ["llama", "phi", "gemma3", "qwen3moe"])
def test_it_is_what_merged_weights_give(name, tmp_path) -> None:
    wanted = golden.load(name)
    with GGUFFile.open(wanted.write(tmp_path)) as gguf:
        first, second = adapter(gguf, "first", 1), adapter(gguf, "second", 2, rank=16)
        graph = build_graph(gguf)
        runner = NativeRunner(graph, gguf, n_pages=8, kv_type="f32", adapters=[first, second])
        table = np.arange(8, dtype=np.int32)
        n = len(wanted.ids)
        plain = steps(runner, wanted.ids, table, [0, 7, 8, n], None)
        np.testing.assert_allclose(plain, wanted.logits, rtol=0, atol=1e-3)
        for which, one in enumerate((first, second)):
            found = steps(runner, wanted.ids, table, [0, 7, 8, n], which)
            expected = forward(graph, Merged(gguf, one), wanted.ids)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
            assert np.abs(found - plain).max() > 0.5
        runner.close()


def test_those_without_one_have_the_same_bits_as_in_a_model_without_any(tmp_path) -> None:
    wanted = golden.load("llama")
    with GGUFFile.open(wanted.write(tmp_path)) as gguf:
        graph, ids = build_graph(gguf), wanted.ids[:40]
        one = adapter(gguf, "one", 1)
        alone = NativeRunner(graph, gguf, n_pages=2)
        beside = NativeRunner(graph, gguf, n_pages=2, adapters=[one])
        table = np.arange(2, dtype=np.int32)
        expected = steps(alone, ids, table, [0, 40], None)
        assert np.array_equal(steps(beside, ids, table, [0, 3, 40], None), expected)
        assert np.array_equal(steps(beside, ids, table, [0, 3, 40], -1), expected)
        alone.close()
        beside.close()


def test_a_batch_gives_each_its_own(tmp_path) -> None:
    """Three sequences of one prompt, each through another adapter, share no pages."""
    with open_model(golden.load("llama").write(tmp_path)) as model:
        both = [adapter(model.gguf, "a", 1), adapter(model.gguf, "b", 2)]
        digests = {one.name: one.digest for one in both}

        def engine() -> Engine:
            runner = NativeRunner(model.graph, model.gguf, n_pages=24, adapters=both)
            return Engine(runner, model.tokenizer, n_ctx=256, adapters=digests)

        ids = tuple(np.random.default_rng(3).integers(2, 300, 100).tolist())
        params = SamplingParams(max_tokens=12, temperature=0, logprobs=1, ignore_eos=True)
        requests = [Request(ids=ids, params=params, adapter=name) for name in (None, "a", "b")]
        alone = []
        for request in requests:
            with engine() as e:
                alone.append(e.submit(request).result())
        assert len({c.token_ids for c in alone}) == 3
        with engine() as e:
            for _ in range(2):  # the second time each finds its own prefix in the cache
                handles = [e.submit(request) for request in requests]
                together = [h.result() for h in handles]
                assert [c.logprobs for c in together] == [c.logprobs for c in alone]
            assert all(c.report.cached_tokens >= 64 for c in together)


def test_an_adapter_that_is_not_loaded(tmp_path) -> None:
    with open_model(golden.load("llama").write(tmp_path)) as model:
        one = adapter(model.gguf, "one", 1)
        runner = NativeRunner(model.graph, model.gguf, n_pages=2, adapters=[one])
        with (
            Engine(runner, model.tokenizer, n_ctx=64, adapters={"one": one.digest}) as engine,
            pytest.raises(ConfigError, match="found 'two'; allowed: one"),
        ):
            engine.submit(Request(ids=(1, 2), adapter="two"))


def test_an_adapter_of_another_model(tmp_path) -> None:
    with open_model(golden.load("llama").write(tmp_path)) as model:
        one = adapter(model.gguf, "one", 1)
        stranger = Adapter(
            name="x", factors={"blk.9.attn_q.weight": next(iter(one.factors.values()))}
        )
        with pytest.raises(
            FormatError, match=r"x changes blk\.9\.attn_q\.weight, which this llama"
        ):
            NativeRunner(model.graph, model.gguf, n_pages=2, adapters=[stranger])
        down, up = one.factors["blk.0.attn_q.weight"]
        for wrong, says in (
            ((down[:, :-1], up), "the model's is"),
            ((down, up[:-1]), "the model's is"),
            ((down[:-1], up), "they are"),
        ):
            other = Adapter(name="y", factors={"blk.0.attn_q.weight": wrong})
            with pytest.raises(FormatError, match=says):
                NativeRunner(model.graph, model.gguf, n_pages=2, adapters=[other])
