"""The numeric contract through the engine: the native runner's logits and tokens are those of the
request alone, bit for bit, for any slicing, batch, cache hit and preemption."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from golden import golden
from insula.engine.engine import Engine
from insula.engine.request import Request
from insula.engine.runner import NativeRunner
from insula.models.load import open_model
from insula.types import SamplingParams

N_CTX = 256


@pytest.fixture(scope="module", params=["f16", "int8"])
def open_engine(request, tiny_model: Path):
    """open_engine(n_pages, **options): an engine of its own over the tiny model."""
    with open_model(tiny_model) as model:
        runners: dict[tuple[int, int], NativeRunner] = {}

        def make(n_pages: int = 12, threads: int = 2, **options) -> Engine:
            key = (n_pages, threads)
            if key not in runners:
                runners[key] = NativeRunner(
                    model.graph,
                    model.gguf,
                    n_pages=n_pages,
                    threads=threads,
                    kv_type=request.param,
                )
            return Engine(runners[key], model.tokenizer, n_ctx=N_CTX, **options)

        yield make
        for runner in runners.values():
            runner.close()


def logits(engine: Engine, ids: list[int]) -> np.ndarray:
    rows: list[np.ndarray] = []
    engine.submit(
        Request(
            ids=tuple(ids),
            params=SamplingParams(max_tokens=0),
            use_cache=False,
            on_prompt_logits=lambda start, x: rows.append(x.copy()),
        )
    ).result()
    return np.concatenate(rows)


def test_any_slicing_and_thread_count_gives_the_same_bits(open_engine) -> None:
    ids = np.random.default_rng(1).integers(0, 320, 150).tolist()
    expected = logits(open_engine(step_tokens=512), ids)
    for step_tokens in (1, 3, 4, 5, 16, 17, 33, 64):
        assert np.array_equal(logits(open_engine(step_tokens=step_tokens), ids), expected)
    assert np.array_equal(logits(open_engine(threads=1, step_tokens=40), ids), expected)


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_random_schedules_give_the_tokens_and_logprobs_of_the_request_alone(
    open_engine, data
) -> None:
    prefix = np.random.default_rng(2).integers(2, 320, 140).tolist()
    requests = []
    for _ in range(data.draw(st.integers(1, 7))):
        cut = data.draw(st.integers(1, 140))
        own = data.draw(st.lists(st.integers(2, 319), max_size=5))
        params = SamplingParams(
            seed=data.draw(st.integers(0, 3)),
            temperature=data.draw(st.sampled_from([0.0, 1.0])),
            max_tokens=data.draw(st.integers(1, 60)),
            logprobs=1,
            ignore_eos=True,
            mirostat=data.draw(st.sampled_from([0, 2])),
            mirostat_tau=3.0,
            xtc_probability=0.5,
            dry_multiplier=data.draw(st.sampled_from([0.0, 0.8])),
        )
        requests.append(Request(ids=(*prefix[:cut], *own), params=params))
    alone = [open_engine(n_pages=12).submit(r).result() for r in requests]
    engine = open_engine(
        n_pages=5, max_running=6, step_tokens=data.draw(st.sampled_from([8, 20, 65, 512]))
    )
    handles = []
    for request in requests:
        handles.append(engine.submit(request))
        for _ in range(data.draw(st.integers(0, 12))):
            engine.step()
    together = [h.result() for h in handles]
    assert [c.logprobs for c in together] == [c.logprobs for c in alone]


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
@pytest.mark.parametrize("kv_type", ["f16", "int8"])
def test_sequences_that_share_pages_read_them_together_to_the_same_bits(
    arch, kv_type, tmp_path
) -> None:
    """Sequences of one prefix, of a shorter one and of none, as a batch and each alone."""
    rng = np.random.default_rng(3)
    with open_model(golden.load(arch).write(tmp_path)) as model:
        runner = NativeRunner(
            model.graph, model.gguf, n_pages=200, threads=2, kv_type=kv_type, max_rows=128
        )
    free = iter(range(200))
    tables: list[np.ndarray] = []
    lengths: list[int] = []

    def prefill(table: np.ndarray, start: int, ids: np.ndarray) -> None:
        for at in range(0, len(ids), 128):
            part = ids[at : at + 128]
            where = np.arange(start + at, start + at + len(part))
            runner.step(part, where, np.zeros(len(part)), [table], [])

    def sequence(shared: np.ndarray, n: int) -> None:
        """A sequence of n tokens whose first full pages are `shared`."""
        own = [next(free) for _ in range(n // 64 + 1 - len(shared))]
        table = np.array([*shared, *own], dtype=np.int32)
        prefill(table, 64 * len(shared), rng.integers(2, runner.n_vocab, n - 64 * len(shared)))
        tables.append(table)
        lengths.append(n)

    none = np.array([], dtype=np.int32)
    sequence(none, 790)
    for n in (771, 800, 1100, 769):
        sequence(tables[0][:12], n)
    sequence(tables[3][:16], 1090)  # shares more with one than with the others
    sequence(tables[0][:5], 700)  # one whole chunk, and a page of the next
    sequence(none, 600)
    sequence(tables[0][:12], 780)
    for rows in (1, 3):
        ids = rng.integers(2, runner.n_vocab, (len(tables), rows))
        alone = [
            runner.step(ids[i], np.arange(n, n + rows), np.zeros(rows), [table], np.arange(rows))
            for i, (table, n) in enumerate(zip(tables, lengths, strict=True))
        ]
        for batch in (range(len(tables)), [6, 1, 0, 5], [4, 2], [7, 8, 3]):
            found = runner.step(
                np.concatenate([ids[i] for i in batch]),
                np.concatenate([np.arange(lengths[i], lengths[i] + rows) for i in batch]),
                np.repeat(np.arange(len(batch)), rows),
                [tables[i] for i in batch],
                np.arange(len(batch) * rows),
            )
            assert np.array_equal(found, np.concatenate([alone[i] for i in batch]))
    runner.close()


def test_windows_that_end_inside_a_shared_chunk(tmp_path) -> None:
    """Rows whose windows have left the shared chunk beside rows whose windows have not, in blocks
    that cut the sequences elsewhere than the shared reading does."""
    rng = np.random.default_rng(0)
    with open_model(golden.load("gemma3").write(tmp_path)) as model:
        together, apart = (
            NativeRunner(model.graph, model.gguf, n_pages=64, threads=2) for _ in range(2)
        )
    prefix = rng.integers(0, together.n_vocab, 256)
    own = rng.integers(0, together.n_vocab, (3, 40))
    tables = [np.array([0, 1, 2, 3, 4 + i], dtype=np.int32) for i in range(3)]

    def alone(runner: NativeRunner, ids: np.ndarray, start: int, i: int) -> np.ndarray:
        n = len(ids)
        return runner.step(ids, np.arange(start, start + n), np.zeros(n), [tables[i]], np.arange(n))

    starts, counts = (4, 2, 8), (5, 8, 8)
    for runner in (together, apart):
        alone(runner, prefix, 0, 0)
        for i, start in enumerate(starts):
            alone(runner, own[i, :start], 256, i)
    parts = [own[i, s : s + n] for i, (s, n) in enumerate(zip(starts, counts, strict=True))]
    found = together.step(
        np.concatenate(parts),
        np.concatenate([256 + np.arange(s, s + n) for s, n in zip(starts, counts, strict=True)]),
        np.repeat(np.arange(3), counts),
        tables,
        np.arange(sum(counts)),
    )
    expected = [alone(apart, part, 256 + starts[i], i) for i, part in enumerate(parts)]
    assert np.array_equal(found, np.concatenate(expected))
    together.close()
    apart.close()


@pytest.mark.parametrize("kv_type", ["f16", "int8", "f32"])
@pytest.mark.parametrize("tokens", [1, 15, 16, 40, 63])
def test_a_saved_page_has_nothing_behind_its_tokens(tiny_model: Path, kv_type, tokens) -> None:
    """What lay there before may be another request's, one that wanted to leave nothing."""
    with open_model(tiny_model) as model:
        runner = NativeRunner(model.graph, model.gguf, n_pages=2, threads=1, kv_type=kv_type)
    table = [np.array([1], dtype=np.int32)]

    def fill(seed: int, n: int) -> None:
        ids = np.random.default_rng(seed).integers(2, 300, n)
        runner.step(ids, np.arange(n), np.zeros(n), table, [])

    saved = []
    for secret in (1, 2):
        fill(secret, 64)
        fill(3, tokens)
        page = np.empty(runner.page_bytes, dtype=np.uint8)
        saved.append((runner.save_page(1, tokens, page), page))
    assert saved[0][0] == saved[1][0]
    assert np.array_equal(saved[0][1], saved[1][1])
    whole = np.empty(runner.page_bytes, dtype=np.uint8)
    runner.save_page(1, 64, whole)
    kept = saved[0][1] != 0
    assert np.array_equal(whole[kept], saved[0][1][kept])
    runner.close()


@pytest.mark.parametrize("kv_type", ["f16", "f32", "int8"])
def test_a_value_beyond_float16_does_not_reach_rows_before_it(kv_type, tmp_path) -> None:
    """Rows that do not see it have their own numbers, though they share a kernel's tile with one
    that does."""
    wanted = golden.load("llama")
    with open_model(golden.load("llama").write(tmp_path)) as model:
        graph = model.graph
        runner = NativeRunner(graph, Loud(model.gguf), n_pages=1, threads=1, kv_type=kv_type)
        ids = wanted.ids[:5].astype(np.int32)
        at, table = np.arange(5), [np.zeros(1, np.int32)]
        together = runner.step(ids, at, at * 0, table, at)
        for i in range(5):
            alone = runner.step(ids[i : i + 1], [i], [0], table, [0])
            assert np.array_equal(alone[0], together[i])
            assert np.isfinite(alone).all()
        runner.close()


class Loud:
    """A model whose first layer's values are large: some go beyond what float16 holds."""

    def __init__(self, gguf) -> None:
        self._gguf = gguf

    def __getattr__(self, name):
        return getattr(self._gguf, name)

    def data(self, name):
        data = self._gguf.data(name)
        if name == "blk.0.attn_v.weight":
            values = data.view(np.float32).copy()
            values *= 30000
            return values.view(np.uint8)
        return data
