"""What architecture files say to metadata and tensors that do not fit."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from insula.errors import FormatError, UnsupportedError
from insula.models import rope
from insula.models.registry import ARCHITECTURES, build_graph
from insula.ops.graph import Attention, Embed, Experts, Linear, Logits, Norm, Output, Rope, Scale

LAYER_NORMS = ("gpt2", "starcoder2", "stablelm", "falcon", "bert", "nomic-bert")
ENCODERS = ("bert", "nomic-bert")
N_VOCAB, D, FF, HEADS, KV_HEADS, LAYERS = 40, 32, 48, 4, 2, 7
EXPERTS, EXPERT_FF = 4, 16


class Source:
    """A checkpoint without data: metadata and shapes, both changeable."""

    def __init__(self, arch: str) -> None:
        self.metadata = {
            "general.architecture": arch,
            f"{arch}.context_length": 256,
            f"{arch}.embedding_length": D,
            f"{arch}.block_count": LAYERS,
            f"{arch}.feed_forward_length": FF,
            f"{arch}.attention.head_count": HEADS,
            f"{arch}.attention.head_count_kv": KV_HEADS,
            f"{arch}.{epsilon(arch)}": 1e-5,
            f"{arch}.rope.freq_base": 10000.0,
        }
        if arch == "granite":
            self.metadata["granite.logit_scale"] = 8.0
        if arch in ("qwen3moe", "gpt-oss"):
            self.metadata[f"{arch}.expert_count"] = EXPERTS
            self.metadata[f"{arch}.expert_used_count"] = 2
            self.metadata[f"{arch}.expert_feed_forward_length"] = EXPERT_FF
        if arch == "gpt-oss":
            self.metadata["gpt-oss.attention.sliding_window"] = 16
        shapes = {"token_embd.weight": (N_VOCAB, D), "output_norm.weight": (D,)}
        head = D // HEADS
        for i in range(LAYERS):
            for name, shape in {
                "attn_norm": (D,),
                "attn_q": (D, D),
                "attn_k": (KV_HEADS * head, D),
                "attn_v": (KV_HEADS * head, D),
                "attn_output": (D, D),
                "ffn_norm": (D,),
                "ffn_gate": (FF, D),
                "ffn_up": (FF, D),
                "ffn_down": (D, FF),
            }.items():
                shapes[f"blk.{i}.{name}.weight"] = shape
            if arch == "olmo2":  # normed over all heads together, and after each half alone
                del shapes[f"blk.{i}.attn_norm.weight"], shapes[f"blk.{i}.ffn_norm.weight"]
                shapes[f"blk.{i}.attn_q_norm.weight"] = (D,)
                shapes[f"blk.{i}.attn_k_norm.weight"] = (KV_HEADS * head,)
            if arch == "phi3":  # one tensor for q, k and v, one for gate and up
                for name in ("attn_q", "attn_k", "attn_v", "ffn_gate"):
                    del shapes[f"blk.{i}.{name}.weight"]
                shapes[f"blk.{i}.attn_qkv.weight"] = (D + 2 * KV_HEADS * head, D)
                shapes[f"blk.{i}.ffn_up.weight"] = (2 * FF, D)
            if arch in ("qwen3moe", "gpt-oss"):
                for name in ("ffn_gate", "ffn_up", "ffn_down"):
                    del shapes[f"blk.{i}.{name}.weight"]
                shapes[f"blk.{i}.ffn_gate_inp.weight"] = (EXPERTS, D)
                shapes[f"blk.{i}.ffn_gate_exps.weight"] = (EXPERTS, EXPERT_FF, D)
                shapes[f"blk.{i}.ffn_up_exps.weight"] = (EXPERTS, EXPERT_FF, D)
                shapes[f"blk.{i}.ffn_down_exps.weight"] = (EXPERTS, D, EXPERT_FF)
            if arch == "gpt-oss":
                shapes[f"blk.{i}.attn_sinks.weight"] = (HEADS,)
                shapes[f"blk.{i}.post_attention_norm.weight"] = (D,)
                del shapes[f"blk.{i}.ffn_norm.weight"]
            if arch in ("gpt2", "falcon", "nomic-bert"):
                for name in ("attn_q", "attn_k", "attn_v"):
                    del shapes[f"blk.{i}.{name}.weight"]
                shapes[f"blk.{i}.attn_qkv.weight"] = (D + 2 * KV_HEADS * head, D)
            if arch in ("gpt2", "falcon", "starcoder2", "bert"):
                del shapes[f"blk.{i}.ffn_gate.weight"]
            if arch == "falcon":
                del shapes[f"blk.{i}.ffn_norm.weight"]
            if arch in ENCODERS:
                for name, other in (("attn", "attn_output"), ("ffn", "layer_output")):
                    del shapes[f"blk.{i}.{name}_norm.weight"]
                    shapes[f"blk.{i}.{other}_norm.weight"] = (D,)
            if arch in ("qwen3", "qwen3moe", "gemma3"):
                shapes[f"blk.{i}.attn_q_norm.weight"] = (head,)
                shapes[f"blk.{i}.attn_k_norm.weight"] = (head,)
            if arch in ("gemma2", "gemma3", "olmo2"):
                shapes[f"blk.{i}.post_attention_norm.weight"] = (D,)
                shapes[f"blk.{i}.post_ffw_norm.weight"] = (D,)
        if arch == "stablelm":
            self.metadata["stablelm.use_parallel_residual"] = False
        if arch in ("gpt2", "bert"):
            shapes["position_embd.weight"] = (256, D)
        if arch in ENCODERS:
            del shapes["output_norm.weight"]
            shapes["token_embd_norm.weight"] = (D,)
        self.tensors = {name: SimpleNamespace(shape=shape) for name, shape in shapes.items()}
        self.data: dict[str, np.ndarray] = {}

    def dequantize(self, name):
        return self.data[name]

    def add(self, name, values):
        self.data[name] = np.asarray(values, np.float32)
        self.tensors[name] = SimpleNamespace(shape=self.data[name].shape)


def epsilon(arch: str) -> str:
    return f"attention.layer_norm_{'' if arch in LAYER_NORMS else 'rms_'}epsilon"


@pytest.fixture(params=sorted(ARCHITECTURES))
def source(request):
    return Source(request.param)


def ops_of(graph, kind):
    return [op for op in graph.ops if isinstance(op, kind)]


def test_output_is_the_embedding_where_the_file_has_no_other(source):
    if source.metadata["general.architecture"] in ENCODERS:
        assert ops_of(build_graph(source), Output)
        return
    assert ops_of(build_graph(source), Logits)[0].weight == "token_embd.weight"
    source.tensors["output.weight"] = SimpleNamespace(shape=(N_VOCAB, D))
    assert ops_of(build_graph(source), Logits)[0].weight == "output.weight"


def test_every_buffer_that_an_op_names_is_declared(source):
    graph = build_graph(source)
    for op in graph.ops:
        fields = ("dst", "src", "buf", "q", "k", "v", "scores")
        for field in fields + (() if isinstance(op, Experts) else ("gate", "up")):
            assert getattr(op, field, "x") in graph.buffers
    assert [op.slot for op in ops_of(graph, Attention)] == list(range(len(graph.slots)))


@pytest.mark.parametrize(
    "key",
    [
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "attention.head_count",
        "epsilon",
    ],
)
@pytest.mark.parametrize("value", [None, 0, -1, "many", 2**40, float("nan"), True, b"x", [1, 2]])
def test_a_wrong_number_is_named(source, key, value):
    arch = source.metadata["general.architecture"]
    key = epsilon(arch) if key == "epsilon" else key
    if value == 2**40 and key.endswith("epsilon"):
        value = float("inf")  # a large epsilon is a number like any other
    if value is None:
        del source.metadata[f"{arch}.{key}"]
    else:
        source.metadata[f"{arch}.{key}"] = value
    with pytest.raises((FormatError, UnsupportedError), match=f"{arch}.{key}"):
        build_graph(source)


def test_one_value_for_all_layers_may_be_a_list(source):
    arch = source.metadata["general.architecture"]
    source.metadata[f"{arch}.attention.head_count_kv"] = np.full(LAYERS, KV_HEADS, np.int32)
    assert build_graph(source).slots[0].kv_heads == KV_HEADS
    source.metadata[f"{arch}.attention.head_count_kv"] = np.array([2, 2, 1, 2, 2, 2, 2])
    with pytest.raises(UnsupportedError, match="differs between layers"):
        build_graph(source)


def test_each_missing_tensor_is_named(source):
    for name in list(source.tensors):
        info = source.tensors.pop(name)
        with pytest.raises(FormatError, match=name.replace(".", r"\.")):
            build_graph(source)
        source.tensors[name] = info
    build_graph(source)


def test_each_wrong_shape_is_named_with_both_shapes(source):
    for name, info in list(source.tensors.items()):
        wrong = (*info.shape[:-1], info.shape[-1] + 1)
        source.tensors[name] = SimpleNamespace(shape=wrong)
        with pytest.raises(FormatError, match=name.replace(".", r"\.")) as caught:
            build_graph(source)
        assert str(wrong) in str(caught.value)
        source.tensors[name] = info


def test_a_tensor_nobody_uses_is_refused(source):
    source.add("blk.0.attn_gate.weight", np.zeros(HEADS))
    with pytest.raises(UnsupportedError, match="attn_gate") as caught:
        build_graph(source)
    assert caught.value.backend == "native"
    assert "llamacpp" in str(caught.value)


def test_harmless_tensors_become_notes():
    llama = Source("llama")
    llama.add("blk.0.attn_rot_embd.weight", np.zeros(4))
    assert "attn_rot_embd" in build_graph(llama).notes[0]
    gemma = Source("gemma3")
    gemma.add("v.patch_embd.weight", np.zeros(4))
    assert "vision" in build_graph(gemma).notes[0]


def test_an_unknown_architecture_is_told_what_is_known():
    with pytest.raises(UnsupportedError, match="mamba") as caught:
        build_graph(Source("mamba"))
    assert caught.value.backend == "native"
    for known in (*ARCHITECTURES, "llamacpp"):
        assert known in str(caught.value)


@pytest.mark.parametrize("value", [None, 7, "", b"\xff"])
def test_an_architecture_without_a_name(value):
    source = Source("llama")
    source.metadata["general.architecture"] = value
    with pytest.raises(FormatError, match=r"general\.architecture"):
        build_graph(source)


@pytest.mark.parametrize(
    ("arch", "key", "value"),
    [
        ("llama", "embedding_scale", 8.0),
        ("llama", "attention.sliding_window", 4096),
        ("llama", "logit_scale", 0.1),
        ("qwen2", "expert_count", 60),
        ("qwen2", "pooling_type", 3),
        ("qwen3", "expert_count", 128),
        ("qwen3moe", "expert_shared_count", 1),
        ("gpt-oss", "attention.scale", 0.5),
        ("gemma2", "pooling_type", 1),
        ("granite", "expert_count", 32),
        ("smollm3", "attention.sliding_window", 4096),
        ("olmo2", "attention.sliding_window", 4096),
        ("phi3", "expert_count", 16),
        ("qwen3", "pooling_type", 4),
        ("gpt2", "attention.sliding_window", 64),
        ("starcoder2", "pooling_type", 1),
        ("stablelm", "attention.scale", 0.5),
        ("falcon", "attention.max_alibi_bias", 8.0),
        ("bert", "attention.causal", True),
        ("bert", "pooling_type", 7),
        ("nomic-bert", "moe_every_n_layers", 2),
        ("nomic-bert", "pooling_type", 4),
        ("gemma3", "attn_logit_softcapping", 50.0),
    ],
)
def test_keys_that_change_the_maths_are_refused(arch, key, value):
    source = Source(arch)
    source.metadata[f"{arch}.{key}"] = value
    with pytest.raises(UnsupportedError, match=key):
        build_graph(source)
    # GGUF's way of switching a thing off
    source.metadata[f"{arch}.{key}"] = False if value is True else 0
    build_graph(source)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attention.head_count_kv": 3}, "share"),
        ({"attention.value_length": 4}, "values 4"),
        ({"rope.dimension_count": 7}, "even"),
        ({"rope.dimension_count": 10}, "head width"),
        ({"attention.key_length": 2**24}, "key_length"),
        ({"attention.head_count": 1, "embedding_length": 2**24}, "key_length"),
        ({"rope.freq_base": 0.0}, "above 0"),
        ({"rope.freq_base": float("inf")}, "finite"),
        ({"rope.scaling.type": "longrope"}, "original_context_length"),
        ({"rope.scaling.type": "dynamic"}, "dynamic"),
        ({"rope.scaling.type": "yarn"}, "factor"),
        ({"rope.scaling.type": 3}, "string"),
    ],
)
def test_contradictions(changes, says):
    source = Source("llama")
    source.metadata |= {f"llama.{key}": value for key, value in changes.items()}
    with pytest.raises((FormatError, UnsupportedError), match=says):
        build_graph(source)


def freqs_of(source):
    return ops_of(build_graph(source), Rope)[0].freqs


def test_rope_factors_divide():
    source = Source("llama")
    plain = freqs_of(source)
    np.testing.assert_allclose(plain, 10000.0 ** (-np.arange(0, 8, 2) / 8))
    source.add("rope_freqs.weight", [1, 2, 4, 8])
    np.testing.assert_allclose(freqs_of(source), plain / [1, 2, 4, 8])
    source.add("rope_freqs.weight", [1, 2, 0, 8])
    with pytest.raises(FormatError, match="rope_freqs"):
        build_graph(source)


def test_llama3_by_metadata_equals_llama3_by_tensor():
    by_key, by_tensor = Source("llama"), Source("llama")
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    by_key.metadata |= {f"llama.rope.scaling.{key}": value for key, value in scaling.items()}
    by_key.metadata["llama.rope.scaling.type"] = "llama3"
    by_key.metadata["llama.rope.scaling.original_context_length"] = 64
    plain = rope.plain(8, 10000.0)
    scaled = rope.llama3(plain, factor=8.0, low=1.0, high=4.0, n_ctx_original=64)
    by_tensor.add("rope_freqs.weight", plain / scaled)
    np.testing.assert_allclose(freqs_of(by_key), scaled, rtol=1e-12)
    np.testing.assert_allclose(freqs_of(by_tensor), scaled, rtol=1e-6)
    assert not np.allclose(scaled, plain)


@pytest.mark.parametrize(
    "keys",
    [
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        {"rope.scaling.factor": 4.0},
        {"rope.scale_linear": 4.0},
    ],
)
def test_every_way_of_writing_linear_scaling(keys):
    source = Source("llama")
    plain = freqs_of(source)
    source.metadata |= {f"llama.{key}": value for key, value in keys.items()}
    np.testing.assert_allclose(freqs_of(source), plain / 4)


def test_yarn_keeps_fast_pairs_and_interpolates_slow_ones():
    plain = rope.plain(128, 1e6)
    scaled = rope.yarn(plain, base=1e6, factor=4.0, n_ctx_original=32768)
    assert scaled[0] == plain[0]
    np.testing.assert_allclose(scaled[-1], plain[-1] / 4)
    assert np.all(np.diff(plain / scaled) >= -1e-12)


def test_a_llama_with_experts():
    source = Source("llama")
    source.metadata |= {"llama.expert_count": 3, "llama.expert_used_count": 2}
    for i in range(LAYERS):
        for name, shape in (("gate", (FF, D)), ("up", (FF, D)), ("down", (D, FF))):
            del source.tensors[f"blk.{i}.ffn_{name}.weight"]
            source.tensors[f"blk.{i}.ffn_{name}_exps.weight"] = SimpleNamespace(shape=(3, *shape))
        source.tensors[f"blk.{i}.ffn_gate_inp.weight"] = SimpleNamespace(shape=(3, D))
    ops = ops_of(build_graph(source), Experts)
    assert [(op.experts, op.used) for op in ops] == [(3, 2)] * LAYERS
    source.metadata["llama.expert_used_count"] = 4
    with pytest.raises(FormatError, match="expert_used_count is 4, allowed are 1 to 3"):
        build_graph(source)
    source.metadata |= {"llama.expert_used_count": 2, "llama.expert_gating_func": 2}
    with pytest.raises(FormatError, match="expert_gating_func"):
        build_graph(source)


def test_gpt_oss_turns_by_a_ramp_that_is_not_rounded():
    plain = rope.plain(64, 150000.0)
    rounded, exact = (
        rope.yarn(plain, base=150000.0, factor=32.0, n_ctx_original=4096, whole_pairs=whole)
        for whole in (True, False)
    )
    assert not np.allclose(rounded, exact, rtol=1e-3)
    source = Source("gpt-oss")
    source.metadata |= {"gpt-oss.attention.key_length": 64, "gpt-oss.attention.value_length": 64}
    source.metadata |= {"gpt-oss.rope.freq_base": 150000.0, "gpt-oss.rope.scaling.type": "yarn"}
    source.metadata |= {"gpt-oss.rope.scaling.factor": 32.0}
    source.metadata |= {"gpt-oss.rope.scaling.original_context_length": 4096}
    for i in range(LAYERS):
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            source.tensors[f"blk.{i}.attn_{name}.weight"] = SimpleNamespace(shape=(heads * 64, D))
        source.tensors[f"blk.{i}.attn_output.weight"] = SimpleNamespace(shape=(D, HEADS * 64))
    np.testing.assert_allclose(freqs_of(source), exact)


def test_gemma_layers_alternate():
    source = Source("gemma3")
    source.metadata |= {"gemma3.attention.sliding_window": 16, "gemma3.rope.freq_base": 1e6}
    source.metadata |= {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}
    graph = build_graph(source)
    windows = [op.window for op in ops_of(graph, Attention)]
    assert windows == [16, 16, 16, 16, 16, None, 16]
    assert [slot.window for slot in graph.slots] == windows
    local, full = rope.plain(8, 10000.0), rope.plain(8, 1e6) / 8
    for layer, op in enumerate(ops_of(graph, Rope)[::2]):
        np.testing.assert_allclose(op.freqs, full if layer == 5 else local)
    assert len(ops_of(graph, Norm)) == 6 * LAYERS + 1


def test_gemma2_has_the_released_models_numbers_where_a_file_states_none():
    source = Source("gemma2")
    attention = ops_of(build_graph(source), Attention)
    assert [op.window for op in attention] == [4096, None] * 3 + [4096]
    assert attention[0].softcap == 50.0
    assert ops_of(build_graph(source), Logits)[0].softcap == 30.0
    source.metadata |= {"gemma2.attention.sliding_window": 16}
    source.metadata |= {"gemma2.attn_logit_softcapping": 5.0, "gemma2.final_logit_softcapping": 7.0}
    graph = build_graph(source)
    assert [slot.window for slot in graph.slots] == [16, None] * 3 + [16]
    assert ops_of(graph, Attention)[1].softcap == 5.0
    assert ops_of(graph, Logits)[0].softcap == 7.0
    source.metadata["gemma2.attn_logit_softcapping"] = 0.0
    with pytest.raises(FormatError, match="attn_logit_softcapping"):
        build_graph(source)


@pytest.mark.parametrize("arch", ["gemma2", "gemma3"])
def test_gemmas_attention_scale(arch):
    source = Source(arch)
    source.metadata[f"{arch}.attention.key_length"] = D // HEADS
    assert ops_of(build_graph(source), Attention)[0].scale == pytest.approx((D // HEADS) ** -0.5)
    source.metadata[f"{arch}.attention.scale"] = 0.3
    assert ops_of(build_graph(source), Attention)[0].scale == 0.3


def test_granites_scales():
    source = Source("granite")
    plain = build_graph(source)
    assert ops_of(plain, Attention)[0].scale == (D // HEADS) ** -0.5
    assert ops_of(plain, Logits)[0].scale == 1 / 8
    source.metadata |= {"granite.embedding_scale": 12.0, "granite.residual_scale": 0.22}
    source.metadata |= {"granite.attention.scale": 0.01}
    graph = build_graph(source)
    assert ops_of(graph, Embed)[0].scale == 12.0
    assert [op.factor for op in ops_of(graph, Scale)] == [0.22] * 2 * LAYERS
    assert ops_of(graph, Attention)[0].scale == 0.01
    del source.metadata["granite.logit_scale"]
    with pytest.raises(FormatError, match=r"granite\.logit_scale"):
        build_graph(source)


def test_a_granite_without_positions_is_refused():
    source = Source("granite")
    source.metadata["granite.rope.scaling.finetuned"] = True
    build_graph(source)
    source.metadata["granite.rope.scaling.finetuned"] = False
    with pytest.raises(UnsupportedError, match="rotary positions"):
        build_graph(source)
    source.metadata["granite.rope.scaling.finetuned"] = 0
    with pytest.raises(FormatError, match="true or false"):
        build_graph(source)


def test_every_fourth_layer_of_smollm3_has_no_positions():
    ops = [op for op in build_graph(Source("smollm3")).ops if isinstance(op, Rope | Attention)]
    turned = [isinstance(ops[i - 1], Rope) for i, op in enumerate(ops) if isinstance(op, Attention)]
    assert turned == [True, True, True, False, True, True, True]


def test_phi3_uses_its_fused_tensors_by_rows():
    source = Source("phi3")
    names = [op.weight for op in ops_of(build_graph(source), Linear)][:6]
    assert names == [
        "blk.0.attn_qkv.weight[0:32]",
        "blk.0.attn_qkv.weight[32:48]",
        "blk.0.attn_qkv.weight[48:64]",
        "blk.0.attn_output.weight",
        "blk.0.ffn_up.weight[0:48]",
        "blk.0.ffn_up.weight[48:96]",
    ]
    assert ops_of(build_graph(source), Attention)[0].window is None
    source.metadata["phi3.attention.sliding_window"] = 16
    graph = build_graph(source)
    assert {op.window for op in ops_of(graph, Attention)} == {16}
    assert {slot.window for slot in graph.slots} == {16}


@pytest.mark.parametrize("named", [True, False])
def test_longrope_by_its_name_or_by_its_tensors_alone(named):
    source = Source("phi3")
    source.metadata["phi3.rope.scaling.original_context_length"] = 64
    if named:
        source.metadata["phi3.rope.scaling.type"] = "longrope"
    long, short = np.array([1, 2, 4, 8.0]), np.array([1, 1, 1, 2.0])
    source.add("rope_factors_long.weight", long)
    with pytest.raises(FormatError, match="rope_factors_short"):
        build_graph(source)
    source.add("rope_factors_short.weight", short)
    plain = rope.plain(8, 10000.0)
    for n_ctx, factors in ((None, long), (65, long), (64, short), (1, short)):
        graph = build_graph(source, n_ctx=n_ctx)
        op = ops_of(graph, Rope)[0]
        assert graph.n_ctx_switch == 64
        np.testing.assert_allclose(op.freqs, plain / factors)
        assert op.mscale == pytest.approx((1 + np.log(4) / np.log(64)) ** 0.5)
    source.metadata["phi3.rope.scaling.attn_factor"] = 1.25
    assert ops_of(build_graph(source), Rope)[0].mscale == 1.25
    source.add("rope_factors_long.weight", [1, 2, 0, 8])
    with pytest.raises(FormatError, match="above 0"):
        build_graph(source)


def test_ollamas_names_of_gemmas_rotary_bases():
    source = Source("gemma3")
    del source.metadata["gemma3.rope.freq_base"]
    with pytest.raises(FormatError, match=r"gemma3\.rope\.freq_base"):
        build_graph(source)
    source.metadata |= {"gemma3.rope.global.freq_base": 1e6, "gemma3.rope.local.freq_base": 2e4}
    source.metadata["gemma3.attention.sliding_window"] = 16
    ropes = ops_of(build_graph(source), Rope)
    np.testing.assert_allclose(ropes[0].freqs, rope.plain(8, 2e4))
    np.testing.assert_allclose(ropes[10].freqs, rope.plain(8, 1e6))


@pytest.mark.parametrize(
    "changes",
    [
        {"rope.freq_base": 1.0, "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 1e-320},
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.yarn_beta_fast": 1e-320,
        },
    ],
)
def test_angles_that_are_no_numbers(changes):
    source = Source("llama")
    source.metadata |= {f"llama.{key}": value for key, value in changes.items()}
    with pytest.raises(FormatError, match="angles that are no numbers"):
        build_graph(source)


def test_experts_whose_panels_would_be_shared_go_to_another_backend():
    source = Source("qwen3moe")
    source.metadata["qwen3moe.expert_feed_forward_length"] = 24
    with pytest.raises(UnsupportedError, match="multiples of 16"):
        build_graph(source)
