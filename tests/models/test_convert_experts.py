"""Checkpoints with experts become GGUF files: stacked, split, and in MXFP4 without a loss."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from golden import tiny_tokenizer
from insula.engine.runner import NativeRunner
from insula.errors import FormatError
from insula.formats.ggml_types import GGMLType
from insula.formats.gguf import GGUFFile
from insula.models.convert import convert
from insula.models.load import open_model

D, FF, HEADS, KV_HEADS, E, X = 32, 48, 4, 2, 8, 3
#: The values of MXFP4's codes 0..7; 8..15 are their negatives (OCP MX specification 1.0, E2M1).
CODES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
CODES = np.concatenate([CODES, -CODES])

CONFIG = {
    "architectures": ["MixtralForCausalLM"],
    "hidden_size": D,
    "intermediate_size": FF,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "num_hidden_layers": 1,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "vocab_size": tiny_tokenizer.N_VOCAB,
    "hidden_act": "silu",
    "num_local_experts": X,
    "num_experts_per_tok": 2,
}
GPT_OSS = CONFIG | {
    "architectures": ["GptOssForCausalLM"],
    "intermediate_size": 32,
    "head_dim": E,
    "sliding_window": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "quantization_config": {"quant_method": "mxfp4"},  # as the released ones say
}


def values(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def common(rng):
    layer = "model.layers.0."
    return {
        "model.embed_tokens.weight": values(rng, tiny_tokenizer.N_VOCAB, D),
        "model.norm.weight": values(rng, D),
        "lm_head.weight": values(rng, tiny_tokenizer.N_VOCAB, D),
        layer + "input_layernorm.weight": values(rng, D),
        layer + "post_attention_layernorm.weight": values(rng, D),
        layer + "self_attn.q_proj.weight": values(rng, HEADS * E, D),
        layer + "self_attn.k_proj.weight": values(rng, KV_HEADS * E, D),
        layer + "self_attn.v_proj.weight": values(rng, KV_HEADS * E, D),
        layer + "self_attn.o_proj.weight": values(rng, D, HEADS * E),
    }


def mixtral(rng):
    moe = "model.layers.0.block_sparse_moe."
    tensors = common(rng) | {moe + "gate.weight": values(rng, X, D)}
    for e in range(X):
        tensors[f"{moe}experts.{e}.w1.weight"] = values(rng, FF, D)
        tensors[f"{moe}experts.{e}.w2.weight"] = values(rng, D, FF)
        tensors[f"{moe}experts.{e}.w3.weight"] = values(rng, FF, D)
    return tensors


def gpt_oss(rng):
    mlp = "model.layers.0.mlp."
    return common(rng) | {
        "model.layers.0.self_attn.sinks": values(rng, HEADS),
        mlp + "router.weight": values(rng, X, D),
        mlp + "router.bias": values(rng, X),
        mlp + "experts.gate_up_proj_blocks": rng.integers(0, 256, (X, 64, 1, 16), np.uint8),
        mlp + "experts.gate_up_proj_scales": rng.integers(120, 124, (X, 64, 1), np.uint8),
        mlp + "experts.gate_up_proj_bias": values(rng, X, 64),
        mlp + "experts.down_proj_blocks": rng.integers(0, 256, (X, D, 1, 16), np.uint8),
        mlp + "experts.down_proj_scales": rng.integers(120, 124, (X, D, 1), np.uint8),
        mlp + "experts.down_proj_bias": values(rng, X, D),
    }


def save(folder, *shards, config=CONFIG):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    tiny_tokenizer.save(folder)
    index = {}
    for i, tensors in enumerate(shards):
        save_file(tensors, folder / f"part-{i}.safetensors")
        index |= dict.fromkeys(tensors, f"part-{i}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def test_experts_are_stacked_in_order_from_whatever_shard(tmp_path):
    tensors = mixtral(np.random.default_rng(1))
    names = sorted(tensors, reverse=True)
    halves = [{name: tensors[name] for name in names[i::2]} for i in range(2)]
    convert(save(tmp_path / "model", *halves), tmp_path / "out.gguf", dtype="f32")
    with GGUFFile.open(tmp_path / "out.gguf") as gguf:
        for ours, theirs in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
            wanted = [
                tensors[f"model.layers.0.block_sparse_moe.experts.{e}.{theirs}.weight"]
                for e in range(X)
            ]
            found = gguf.dequantize(f"blk.0.ffn_{ours}_exps.weight")
            np.testing.assert_array_equal(found, np.stack(wanted))


def test_an_expert_that_is_missing(tmp_path):
    tensors = mixtral(np.random.default_rng(1))
    del tensors["model.layers.0.block_sparse_moe.experts.1.w3.weight"]
    with pytest.raises(FormatError, match=r"ffn_up_exps.* has the parts \[0, 2\] alone"):
        convert(save(tmp_path / "model", tensors), tmp_path / "out.gguf")


def unpacked(blocks, scales):
    """The values by the specification: byte j of a block has 2j (low half) and 2j + 1."""
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 32)
    exact = CODES[codes] * np.exp2(scales[..., None].astype(np.float64) - 127)
    return exact.reshape(*blocks.shape[:2], -1)


def test_mxfp4_loses_nothing(tmp_path):
    tensors = gpt_oss(np.random.default_rng(2))
    convert(save(tmp_path / "model", tensors, config=GPT_OSS), tmp_path / "out.gguf")
    mlp = "model.layers.0.mlp.experts."
    with open_model(tmp_path / "out.gguf") as model:
        gguf = model.gguf
        assert gguf.info("blk.0.ffn_up_exps.weight").type is GGMLType.MXFP4
        both = unpacked(tensors[mlp + "gate_up_proj_blocks"], tensors[mlp + "gate_up_proj_scales"])
        down = unpacked(tensors[mlp + "down_proj_blocks"], tensors[mlp + "down_proj_scales"])
        for name, wanted in (
            ("ffn_gate_exps.weight", both[:, 0::2]),
            ("ffn_up_exps.weight", both[:, 1::2]),
            ("ffn_down_exps.weight", down),
            ("ffn_gate_exps.bias", tensors[mlp + "gate_up_proj_bias"][:, 0::2]),
            ("ffn_up_exps.bias", tensors[mlp + "gate_up_proj_bias"][:, 1::2]),
            ("ffn_down_exps.bias", tensors[mlp + "down_proj_bias"]),
            ("attn_sinks.weight", tensors["model.layers.0.self_attn.sinks"]),
        ):
            np.testing.assert_array_equal(gguf.dequantize(f"blk.0.{name}"), wanted)
        runner = NativeRunner(model.graph, gguf, n_pages=1)
        ids = np.arange(5)
        logits = runner.step(ids, ids, ids * 0, [np.zeros(1, np.int32)], ids)
        assert np.isfinite(logits).all()
        assert np.ptp(logits) > 1
        runner.close()


def test_mxfp4_of_another_form(tmp_path):
    tensors = gpt_oss(np.random.default_rng(2))
    scales = "model.layers.0.mlp.experts.down_proj_scales"
    tensors[scales] = tensors[scales][:, :-1]
    with pytest.raises(FormatError, match="MXFP4 is bytes"):
        convert(save(tmp_path / "a", tensors, config=GPT_OSS), tmp_path / "out.gguf")
    del tensors[scales]
    with pytest.raises(FormatError, match=r"has no .*down_proj_scales"):
        convert(save(tmp_path / "b", tensors, config=GPT_OSS), tmp_path / "out.gguf")
