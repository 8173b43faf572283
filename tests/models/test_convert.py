"""Hugging Face folders become GGUF files, without torch: hand-made checkpoints of one layer."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from golden import tiny_tokenizer
from insula.errors import ConfigError, FormatError, NotFoundError, UnsupportedError
from insula.formats.ggml_types import GGMLType
from insula.formats.gguf import GGUFFile
from insula.models.convert import adjacent_pairs, convert
from insula.models.load import open_model
from insula.ops.reference import forward

RNG = np.random.default_rng(7)
D, FF, HEADS, KV_HEADS, E = 32, 48, 4, 2, 8

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": D,
    "intermediate_size": FF,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "num_hidden_layers": 1,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "vocab_size": tiny_tokenizer.N_VOCAB,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
}
GEMMA = CONFIG | {
    "architectures": ["Gemma3ForCausalLM"],
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 8,
    "query_pre_attn_scalar": E,
}
GEMMA2 = GEMMA | {
    "architectures": ["Gemma2ForCausalLM"],
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
GRANITE = CONFIG | {
    "architectures": ["GraniteForCausalLM"],
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.015625,
    "logits_scaling": 8.0,
}


def random(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def weights():
    layer = "model.layers.0."
    return {
        "model.embed_tokens.weight": random(tiny_tokenizer.N_VOCAB, D),
        "model.norm.weight": random(D),
        "lm_head.weight": random(tiny_tokenizer.N_VOCAB, D),
        layer + "input_layernorm.weight": random(D),
        layer + "post_attention_layernorm.weight": random(D),
        layer + "self_attn.q_proj.weight": random(HEADS * E, D),
        layer + "self_attn.k_proj.weight": random(KV_HEADS * E, D),
        layer + "self_attn.v_proj.weight": random(KV_HEADS * E, D),
        layer + "self_attn.o_proj.weight": random(D, HEADS * E),
        layer + "mlp.gate_proj.weight": random(FF, D),
        layer + "mlp.up_proj.weight": random(FF, D),
        layer + "mlp.down_proj.weight": random(D, FF),
    }


def gemma_weights():
    layer = "model.layers.0."
    return weights() | {
        layer + "self_attn.q_norm.weight": random(E),
        layer + "self_attn.k_norm.weight": random(E),
        layer + "pre_feedforward_layernorm.weight": random(D),
        layer + "post_feedforward_layernorm.weight": random(D),
    }


def gemma2_weights():
    return {n: value for n, value in gemma_weights().items() if not n.endswith("_norm.weight")}


def save(folder, tensors, config=CONFIG):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tiny_tokenizer.save(folder)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "model", weights())


def test_rotated_pairs_become_adjacent():
    rows = np.arange(12)  # two heads of six: pairs (0,3) (1,4) (2,5) and (6,9) ...
    assert adjacent_pairs(rows, 2).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    with pytest.raises(FormatError):
        adjacent_pairs(rows, 5)


def test_what_is_converted_runs(folder, tmp_path):
    seen = []
    progress = lambda done, total: seen.append((done, total))  # noqa: E731
    notes = convert(folder, tmp_path / "out.gguf", progress=progress)
    assert notes == ()
    assert seen == [(i, 12) for i in range(1, 13)]
    with open_model(tmp_path / "out.gguf") as model:
        assert model.summary.name == "model"
        assert model.summary.quantization == "F32"
        ids = model.tokenizer.encode("the island")
        assert ids[0] == tiny_tokenizer.BOS
        assert np.isfinite(forward(model.graph, model.gguf, ids)).all()


@pytest.mark.parametrize(("dtype", "error"), [("f16", 2**-11), ("bf16", 2**-8), ("f32", 0)])
def test_matrices_take_the_type_asked_for_and_vectors_stay(folder, tmp_path, dtype, error):
    convert(folder, tmp_path / "exact.gguf")
    convert(folder, tmp_path / "out.gguf", dtype=dtype)
    with (
        GGUFFile.open(tmp_path / "exact.gguf") as exact,
        GGUFFile.open(tmp_path / "out.gguf") as out,
    ):
        assert set(exact.tensors) == set(out.tensors)
        for name, info in out.tensors.items():
            vector = len(info.shape) == 1
            assert info.type is (GGMLType.F32 if vector else GGMLType[dtype.upper()])
            wanted = exact.dequantize(name)
            off = np.abs(out.dequantize(name) - wanted) / np.maximum(np.abs(wanted), 1e-4)
            assert off.max() <= (0 if vector else error)


def test_bf16_rounds_to_nearest_even(tmp_path):
    tensors = weights()
    bits = np.array([0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0xBF818000], np.uint32)
    tensors["lm_head.weight"].reshape(-1)[:5] = bits.view(np.float32)
    convert(save(tmp_path / "model", tensors), tmp_path / "out.gguf", dtype="bf16")
    with GGUFFile.open(tmp_path / "out.gguf") as out:
        found = out.data("output.weight").view(np.uint16)[:5]
    assert found.tolist() == [0x3F80, 0x3F82, 0x3F80, 0x3F81, 0xBF82]


def test_a_weight_beyond_float16(tmp_path):
    tensors = weights()
    tensors["lm_head.weight"][3, 3] = 1e6
    folder = save(tmp_path / "model", tensors)
    with pytest.raises(FormatError, match="f16"):
        convert(folder, tmp_path / "out.gguf", dtype="f16")
    assert not (tmp_path / "out.gguf").exists()


def test_gemma_norms_get_their_one(tmp_path):
    tensors = gemma_weights()
    convert(save(tmp_path / "model", tensors, GEMMA), tmp_path / "out.gguf")
    with GGUFFile.open(tmp_path / "out.gguf") as out:
        for ours, theirs in {
            "output_norm": "model.norm",
            "blk.0.attn_k_norm": "model.layers.0.self_attn.k_norm",
            "blk.0.post_ffw_norm": "model.layers.0.post_feedforward_layernorm",
        }.items():
            np.testing.assert_array_equal(
                out.dequantize(f"{ours}.weight"), tensors[f"{theirs}.weight"] + np.float32(1)
            )


def test_a_scale_that_llamacpp_would_not_read_is_noted(tmp_path):
    config = GEMMA | {"query_pre_attn_scalar": 9}
    notes = convert(save(tmp_path / "model", gemma_weights(), config), tmp_path / "out.gguf")
    assert "attention.scale" in notes[0]
    folder = save(tmp_path / "gemma2", gemma2_weights(), GEMMA2 | {"query_pre_attn_scalar": 9})
    assert "attention.scale" in convert(folder, tmp_path / "gemma2.gguf")[0]


def test_a_multimodal_gemma_loses_its_eyes_and_says_so(tmp_path):
    tensors = {f"language_model.{name}": value for name, value in gemma_weights().items()}
    tensors["vision_tower.x.weight"] = random(3, 3)
    tensors["multi_modal_projector.x.weight"] = random(3)
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": GEMMA}
    notes = convert(save(tmp_path / "model", tensors, config), tmp_path / "out.gguf")
    assert "vision" in notes[0]
    with GGUFFile.open(tmp_path / "out.gguf") as out:
        assert len(out.tensors) == len(gemma_weights())


def test_shards_by_their_index(tmp_path):
    tensors = weights()
    convert(save(tmp_path / "whole", tensors), tmp_path / "whole.gguf")
    folder = save(tmp_path / "whole", {})
    names = list(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, content in shards.items():
        save_file({n: tensors[n] for n in content}, folder / shard)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {n: shard for shard, content in shards.items() for n in content}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    convert(folder, tmp_path / "sharded.gguf")
    with (
        GGUFFile.open(tmp_path / "whole.gguf") as whole,
        GGUFFile.open(tmp_path / "sharded.gguf") as sharded,
    ):
        for name in whole.tensors:
            assert whole.data(name).tobytes() == sharded.data(name).tobytes()
    index["weight_map"][names[0]] = "../elsewhere.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match="outside"):
        convert(folder, tmp_path / "again.gguf")


def test_tied_weights_are_written_once(tmp_path):
    folder = save(tmp_path / "model", weights(), CONFIG | {"tie_word_embeddings": True})
    convert(folder, tmp_path / "out.gguf")
    with GGUFFile.open(tmp_path / "out.gguf") as out:
        assert "output.weight" not in out.tensors


def test_dynamic_scaling_is_noted(tmp_path):
    config = CONFIG | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
    notes = convert(save(tmp_path / "model", weights(), config), tmp_path / "out.gguf")
    assert any("dynamic" in note for note in notes)


def test_both_ways_of_writing_rotary_scaling(tmp_path):
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 64, "rope_type": "llama3"}
    old = CONFIG | {"rope_theta": 500.0, "rope_scaling": scaling}
    new = {k: v for k, v in CONFIG.items() if k != "rope_theta"}
    new |= {"rope_parameters": scaling | {"rope_theta": 500.0}}
    found = []
    for name, config in {"old": old, "new": new}.items():
        convert(save(tmp_path / name, weights(), config), tmp_path / f"{name}.gguf")
        with GGUFFile.open(tmp_path / f"{name}.gguf") as out:
            found.append(
                (out.metadata["llama.rope.freq_base"], out.dequantize("rope_freqs.weight"))
            )
    assert found[0][0] == found[1][0] == 500.0
    np.testing.assert_array_equal(found[0][1], found[1][1])
    assert found[0][1].tolist() != [1.0] * 4


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": ["MambaForCausalLM"]},
        {"architectures": None},
        {"architectures": "LlamaForCausalLM"},
        {"hidden_act": "gelu"},
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        {"sliding_window": 64},
        {"rope_scaling": {"type": "proportional", "factor": 2.0}},
        {"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}
         | {"original_max_position_embeddings": 64}},
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_refused(tmp_path, change):
    folder = save(tmp_path / "model", weights(), CONFIG | change)
    with pytest.raises(UnsupportedError):
        convert(folder, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"layer_types": ["full_attention"]},
        {"sliding_window_pattern": 4},
        {"attn_logit_softcapping": 50.0},
        {"use_bidirectional_attention": True},
        {"hidden_activation": "gelu"},
    ],
)
def test_a_gemma_that_gguf_cannot_say_is_refused(tmp_path, change):
    folder = save(tmp_path / "model", gemma_weights(), GEMMA | change)
    with pytest.raises(UnsupportedError):
        convert(folder, tmp_path / "out.gguf")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"layer_types": ["full_attention"]}, "in turn"),
        ({"use_bidirectional_attention": True}, "both directions"),
        ({"hidden_activation": "gelu"}, "hidden_activation"),
    ],
)
def test_a_gemma2_that_gguf_cannot_say_is_refused(tmp_path, change, says):
    folder = save(tmp_path / "model", gemma2_weights(), GEMMA2 | change)
    with pytest.raises(UnsupportedError, match=says):
        convert(folder, tmp_path / "out.gguf")


@pytest.mark.parametrize("key", ["attn_logit_softcapping", "sliding_window"])
def test_a_gemma2_without_its_numbers(tmp_path, key):
    folder = save(tmp_path / "model", gemma2_weights(), GEMMA2 | {key: None})
    with pytest.raises(FormatError, match=key):
        convert(folder, tmp_path / "out.gguf")


def test_granites_four_numbers(tmp_path):
    convert(save(tmp_path / "model", weights(), GRANITE), tmp_path / "out.gguf")
    with GGUFFile.open(tmp_path / "out.gguf") as out:
        for ours, theirs in {
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "attention.scale": "attention_multiplier",
            "logit_scale": "logits_scaling",
        }.items():
            assert out.metadata[f"granite.{ours}"] == pytest.approx(GRANITE[theirs])
    folder = save(tmp_path / "model", weights(), GRANITE | {"logits_scaling": None})
    with pytest.raises(FormatError, match="logits_scaling"):
        convert(folder, tmp_path / "again.gguf")


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"no_rope_layers": [1], "no_rope_layer_interval": 4}, True),
        ({"no_rope_layers": [0]}, False),
        ({"no_rope_layer_interval": 2}, False),
        ({"use_sliding_window": True, "sliding_window": 64}, False),
    ],
)
def test_smollm3s_layers_without_positions(tmp_path, change, fits):
    config = CONFIG | {"architectures": ["SmolLM3ForCausalLM"]} | change
    folder = save(tmp_path / "model", weights(), config)
    if fits:
        convert(folder, tmp_path / "out.gguf")
        return
    with pytest.raises(UnsupportedError):
        convert(folder, tmp_path / "out.gguf")


@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "rms_norm_eps"])
@pytest.mark.parametrize("value", [None, "x", True])
def test_a_config_without_a_number(tmp_path, key, value):
    folder = save(tmp_path / "model", weights(), CONFIG | {key: value})
    with pytest.raises(FormatError, match=key):
        convert(folder, tmp_path / "out.gguf")


def test_a_tensor_without_a_name_is_refused(tmp_path):
    folder = save(tmp_path / "model", weights() | {"model.layers.0.extra.weight": random(4)})
    with pytest.raises(UnsupportedError, match="extra"):
        convert(folder, tmp_path / "out.gguf")


def test_a_quantized_checkpoint_is_refused(tmp_path):
    tensors = weights() | {"lm_head.weight": np.zeros((320, D), np.int8)}
    with pytest.raises(UnsupportedError, match="I8"):
        convert(save(tmp_path / "model", tensors), tmp_path / "out.gguf")


def test_pickles_are_never_opened(folder, tmp_path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(NotFoundError, match="run code"):
        convert(folder, tmp_path / "out.gguf")


def test_missing_and_broken_config(folder, tmp_path):
    (folder / "config.json").write_text("{")
    with pytest.raises(FormatError, match="not JSON"):
        convert(folder, tmp_path / "out.gguf")
    (folder / "config.json").write_text("[1]")
    with pytest.raises(FormatError, match="object"):
        convert(folder, tmp_path / "out.gguf")
    (folder / "config.json").unlink()
    with pytest.raises(NotFoundError, match=r"config\.json"):
        convert(folder, tmp_path / "out.gguf")


def test_options(folder, tmp_path):
    with pytest.raises(ConfigError, match="q4"):
        convert(folder, tmp_path / "out.gguf", dtype="q4")
    (tmp_path / "out.gguf").write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        convert(folder, tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_text() == "mine"
    convert(folder, tmp_path / "out.gguf", overwrite=True)
    with GGUFFile.open(tmp_path / "out.gguf") as out:
        assert len(out.tensors) == 12
