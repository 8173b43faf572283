"""The numeric contract of the native runner: a row's logits depend on that row alone.

Bitwise equality over threads, prefill slices, other sequences in the batch, copied pages, and
instruction-set levels; and agreement with the NumPy reference on every weight format.
The model is made here: every format in one file, seeded.
"""

import numpy as np
import pytest

from insula import _native
from insula.engine.runner import NativeRunner
from insula.errors import ConfigError, EngineError
from insula.formats.ggml_types import GGMLType
from insula.formats.gguf import GGUFFile
from insula.formats.gguf_writer import GGUFWriter
from insula.models.registry import build_graph
from insula.ops.reference import forward

EMBD, FFN, HEADS, KV_HEADS, HEAD_DIM, VOCAB, LAYERS = 256, 512, 6, 2, 64, 203, 3
T = 400  # beyond one attention chunk of 256 and one page of 64
PAGES = 64

#: Formats of the three layers' seven matrices: every one that the kernels know.
FORMATS = (
    "Q4_K Q5_K Q6_K Q8_0 Q4_0 Q4_1 Q5_0 "
    "Q5_1 F16 BF16 F32 Q4_K Q4_K Q6_K "
    "Q8_0 Q8_0 Q5_1 Q4_1 Q6_K Q5_K Q4_0"
).split()


def write_model(path, formats=FORMATS, head="Q6_K"):
    rng = np.random.default_rng(11)
    w = GGUFWriter(path)
    for key, value in {
        "general.architecture": "llama",
        "llama.block_count": LAYERS,
        "llama.context_length": 4096,
        "llama.embedding_length": EMBD,
        "llama.feed_forward_length": FFN,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.key_length": HEAD_DIM,
        "llama.attention.value_length": HEAD_DIM,
        "llama.rope.dimension_count": HEAD_DIM,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": VOCAB,
    }.items():
        w.add(key, value)

    def matrix(name, rows, cols, kind):
        x = rng.standard_normal((rows, cols)).astype(np.float32) * (1.2 / cols**0.5)
        w.add_tensor(name, x, GGMLType[kind])

    def vector(name, n):
        w.add_tensor(name, 1 + 0.1 * rng.standard_normal(n).astype(np.float32))

    matrix("token_embd.weight", VOCAB, EMBD, "Q8_0")
    kinds = iter(formats)
    for i in range(LAYERS):
        vector(f"blk.{i}.attn_norm.weight", EMBD)
        matrix(f"blk.{i}.attn_q.weight", HEADS * HEAD_DIM, EMBD, next(kinds))
        matrix(f"blk.{i}.attn_k.weight", KV_HEADS * HEAD_DIM, EMBD, next(kinds))
        matrix(f"blk.{i}.attn_v.weight", KV_HEADS * HEAD_DIM, EMBD, next(kinds))
        kind = next(kinds)  # 384 columns: no whole number of 256-blocks
        matrix(
            f"blk.{i}.attn_output.weight",
            EMBD,
            HEADS * HEAD_DIM,
            kind if not kind.endswith("_K") else "Q5_0",
        )
        vector(f"blk.{i}.ffn_norm.weight", EMBD)
        matrix(f"blk.{i}.ffn_gate.weight", FFN, EMBD, next(kinds))
        matrix(f"blk.{i}.ffn_up.weight", FFN, EMBD, next(kinds))
        matrix(f"blk.{i}.ffn_down.weight", EMBD, FFN, next(kinds))
    vector("output_norm.weight", EMBD)
    matrix("output.weight", VOCAB, EMBD, head)
    w.write()
    return path


class Case:
    """One model, several sequences of tokens, and their logits computed one sequence alone."""

    def __init__(self, path):
        self.gguf = GGUFFile.open(path)
        self.graph = build_graph(self.gguf)
        rng = np.random.default_rng(3)
        self.ids = [rng.integers(0, VOCAB, T).astype(np.int32) for _ in range(4)]
        self.runner = self.make(threads=1)
        self.want = [self.alone(self.runner, ids) for ids in self.ids]

    def make(self, **options):
        return NativeRunner(self.graph, self.gguf, n_pages=PAGES, **options)

    @staticmethod
    def alone(runner, ids):
        table = np.arange(8, dtype=np.int32)
        n = len(ids)
        return runner.step(ids, np.arange(n), np.zeros(n), [table], np.arange(n))


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return Case(write_model(tmp_path_factory.mktemp("contract") / "all.gguf"))


def equal(a, b):
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def test_the_numbers_are_right(case):
    """Mean KL divergence from the float32 forward of the same file: int8 activations, no more."""
    ref = forward(case.graph, case.gguf, case.ids[0]).astype(np.float64)
    ours = case.want[0].astype(np.float64)
    p = ref - np.logaddexp.reduce(ref, axis=1, keepdims=True)
    q = ours - np.logaddexp.reduce(ours, axis=1, keepdims=True)
    kl = (np.exp(p) * (p - q)).sum(1)
    assert kl.mean() < 2e-3
    assert (ref.argmax(1) == ours.argmax(1)).mean() > 0.93


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_change_a_bit(case, threads):
    runner = case.make(threads=threads)
    for ids, want in zip(case.ids, case.want, strict=True):
        assert equal(case.alone(runner, ids), want)


@pytest.mark.parametrize("level", [x for x in _native.isa_levels() if x != "scalar"])
def test_levels_do_not_change_a_bit(case, level):
    n = 300
    scalar = case.alone(case.make(isa="scalar", threads=2), case.ids[0][:n])
    runner = case.make(isa=level)
    before = runner._model.kernel_calls
    assert runner.isa == level
    assert equal(case.alone(runner, case.ids[0][:n]), scalar)
    assert runner._model.kernel_calls > before, "the level's own kernels did not run"


def test_an_unknown_level_names_those_there_are(case):
    with pytest.raises(ConfigError, match=r"sse9.*available here: .*scalar"):
        case.make(isa="sse9")


def random_schedule(rng):
    """Who advances by how many tokens in each step, until everybody is done."""
    left, steps = [T] * 4, []
    while any(left):
        step, total = [], 0
        for s in rng.permutation(4):
            n = min(left[s], int(rng.choice([0, 1, 1, 1, 4, 5, 16, 17, 33, 200])), 512 - total)
            if n:
                step.append((int(s), n))
                left[s] -= n
                total += n
        if step:
            steps.append(step)
    return steps


@pytest.mark.parametrize("seed", range(12))
def test_random_schedules_do_not_change_a_bit(case, seed):
    rng = np.random.default_rng(seed)
    schedule, threads = random_schedule(rng), 1 + seed % 2
    runner = case.runner if threads == 1 else case.make(threads=threads)
    pages = rng.permutation(PAGES).astype(np.int32).reshape(8, 8)
    tables, spare = [pages[i].copy() for i in range(4)], [pages[4 + i].copy() for i in range(4)]
    done = [0] * 4
    for step in schedule:
        tokens, positions, rows, wanted = [], [], [], []
        for row, (s, n) in enumerate(step):
            if rng.random() < 0.2:  # move the sequence to other pages: a prefix hit
                for a, b in zip(tables[s], spare[s], strict=True):
                    runner.copy_page(int(a), int(b))
                tables[s], spare[s] = spare[s], tables[s]
            tokens += case.ids[s][done[s] : done[s] + n].tolist()
            positions += range(done[s], done[s] + n)
            rows += [row] * n
            wanted += [(s, done[s] + i) for i in range(n)]
            done[s] += n
        keep = np.flatnonzero(rng.random(len(tokens)) < rng.choice([0.1, 1.0]))
        got = runner.step(tokens, positions, rows, [tables[s] for s, _ in step], keep)
        for i, k in enumerate(keep):
            s, p = wanted[k]
            assert equal(got[i], case.want[s][p]), f"sequence {s}, position {p}"


def test_a_bad_step_is_an_error_and_the_next_one_works(case):
    table = np.arange(8, dtype=np.int32)
    bad = [
        ([VOCAB], [0], [0], [table], [0]),
        ([-1], [0], [0], [table], [0]),
        ([1], [512], [0], [table], [0]),
        ([1], [-1], [0], [table], [0]),
        ([1], [0], [1], [table], [0]),
        ([1, 2], [0, 2], [0, 0], [table], [0]),
        ([1, 2, 3], [0, 0, 1], [0, 1, 0], [table, table + 8], [0]),
        ([1], [0], [0], [np.array([PAGES], dtype=np.int32)], [0]),
        ([1], [0], [0], [table], [1]),
        ([], [], [], [table], []),
        ([1] * 513, range(513), [0] * 513, [np.arange(16, dtype=np.int32)], []),
    ]
    for arguments in bad:
        with pytest.raises(EngineError):
            case.runner.step(*arguments)
    assert equal(case.alone(case.runner, case.ids[0]), case.want[0])


def test_full_precision_keys_and_values(case):
    """f32 pages: closer to the reference than f16 ones, and the same contract."""
    a = case.alone(case.make(threads=1, kv_type="f32"), case.ids[0])
    b = case.alone(case.make(threads=2, kv_type="f32"), case.ids[0])
    assert equal(a, b)
    assert not equal(a, case.want[0])
    with pytest.raises(ConfigError, match="f16, f32"):
        case.make(kv_type="q4")
