"""GPTQ and AWQ checkpoints: every value is the one that the published formulas give.

The packing here is written from those formulas and shares nothing with the reader.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from golden import tiny_tokenizer
from insula.errors import FormatError, UnsupportedError
from insula.formats.ggml_types import GGMLType as T
from insula.formats.gguf import GGUFFile
from insula.models.convert import adjacent_pairs, convert
from insula.models.load import open_model
from insula.ops.reference import forward

D, FF, HEADS, KV_HEADS = 64, 96, 4, 2
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
LAYER = "model.layers.0."
#: module -> (outputs, inputs, GGUF's name, heads whose rows are reordered)
MODULES = {
    "self_attn.q_proj": (D, D, "attn_q", HEADS),
    "self_attn.k_proj": (D // 2, D, "attn_k", KV_HEADS),
    "self_attn.v_proj": (D // 2, D, "attn_v", 0),
    "self_attn.o_proj": (D, D, "attn_output", 0),
    "mlp.gate_proj": (FF, D, "ffn_gate", 0),
    "mlp.up_proj": (FF, D, "ffn_up", 0),
    "mlp.down_proj": (D, FF, "ffn_down", 0),
}


def gptq(q_KN, z_GN, s_GN, g_K, *, stored_less: int) -> dict[str, np.ndarray]:
    """AutoGPTQ's QuantLinear.pack: inputs 8i..8i+7 in word i, lowest first; zeros along outputs."""
    k, n = q_KN.shape
    words = np.zeros((k // 8, n), np.uint32)
    for j in range(8):
        words |= q_KN[j::8].astype(np.uint32) << np.uint32(4 * j)
    zeros = np.zeros((len(z_GN), n // 8), np.uint32)
    for j in range(8):
        zeros |= ((z_GN[:, j::8] - stored_less) & 15).astype(np.uint32) << np.uint32(4 * j)
    return {
        "qweight": words.view(np.int32),
        "qzeros": zeros.view(np.int32),
        "scales": s_GN,
        "g_idx": g_K.astype(np.int32),
    }


def awq(q_KN, z_GN, s_GN) -> dict[str, np.ndarray]:
    """AutoAWQ's WQLinear_GEMM.from_linear: order_map = [0, 2, 4, 6, 1, 3, 5, 7]."""

    def packed(x: np.ndarray) -> np.ndarray:
        words = np.zeros((x.shape[0], x.shape[1] // 8), np.uint32)
        for col in range(x.shape[1] // 8):
            for i, at in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                words[:, col] |= x[:, 8 * col + at].astype(np.uint32) << np.uint32(4 * i)
        return words.view(np.int32)

    return {"qweight": packed(q_KN), "qzeros": packed(z_GN), "scales": s_GN}


def checkpoint(
    folder: Path,
    method: str,
    *,
    group: int = 32,
    zero: int | None = None,
    version: str | None = None,
    shuffled: bool = False,
    said: dict[str, Any] | None = None,
    change: Any = None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write a folder; by GGUF name the levels q - z and the scales, both [N, K] and exact.

    zero: every zero, or None for random ones from 0 on (1 on where a stored zero is one less).
    """
    rng = np.random.default_rng(11)
    tensors: dict[str, np.ndarray] = {
        "model.embed_tokens.weight": rng.standard_normal((320, D)).astype(np.float16),
        "model.norm.weight": np.ones(D, np.float16),
        LAYER + "input_layernorm.weight": np.ones(D, np.float16),
        LAYER + "post_attention_layernorm.weight": np.ones(D, np.float16),
    }
    truth = {}
    for module, (n, k, name, heads) in MODULES.items():
        size = k if group == -1 else group
        groups = -(-k // size)
        q_KN = rng.integers(0, 16, (k, n))
        z_GN = np.full((groups, n), zero) if zero is not None else rng.integers(0, 16, (groups, n))
        s_GN = (0.01 + 0.03 * rng.random((groups, n))).astype(np.float16)
        g_K = np.arange(k) // size
        if shuffled:
            g_K = rng.permutation(g_K)
        if method == "gptq":
            less = 0 if version == "gptq_v2" else 1
            parts = gptq(q_KN, z_GN, s_GN, g_K, stored_less=less)
        else:
            parts = awq(q_KN, z_GN, s_GN)
        tensors |= {f"{LAYER}{module}.{part}": value for part, value in parts.items()}
        levels, scales = (q_KN - z_GN[g_K]).T, s_GN[g_K].T
        if heads:
            levels, scales = adjacent_pairs(levels, heads), adjacent_pairs(scales, heads)
        truth[f"blk.0.{name}.weight"] = levels, scales
    if change is not None:
        change(tensors)
    settings: dict[str, Any] = {"quant_method": method, "bits": 4, "group_size": group}
    if method == "gptq":
        settings |= {"desc_act": shuffled, "sym": zero == 8}
        settings |= {} if version is None else {"checkpoint_format": version}
    else:
        settings |= {"zero_point": True, "version": version or "gemm"}
    config = CONFIG | {"tie_word_embeddings": True, "quantization_config": settings | (said or {})}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    tiny_tokenizer.save(folder)
    save_file(tensors, folder / "model.safetensors")
    return truth


@pytest.mark.parametrize("group", [32, 64, -1])
@pytest.mark.parametrize(
    ("method", "version", "zero", "kind"),
    [
        ("gptq", None, 8, T.Q4_0),
        ("gptq", "gptq", None, T.Q5_0),
        ("gptq", "gptq_v2", 8, T.Q4_0),
        ("gptq", "gptq_v2", None, T.Q5_0),
        ("awq", None, None, T.Q5_0),
        ("awq", "GEMM", 8, T.Q4_0),
    ],
)
def test_every_value_is_the_formulas(
    tmp_path: Path, method: str, version: str | None, zero: int | None, kind: T, group: int
) -> None:
    truth = checkpoint(tmp_path / "m", method, group=group, zero=zero, version=version)
    notes = convert(tmp_path / "m", tmp_path / "out.gguf")
    assert notes == (f"7 {method.upper()} weights are written value for value (7 as {kind.name})",)
    with GGUFFile.open(tmp_path / "out.gguf") as out:
        assert out.metadata["general.file_type"] == {T.Q4_0: 2, T.Q5_0: 8}[kind]
        for name, (levels, scales) in truth.items():
            assert out.tensors[name].type is kind
            found = out.dequantize(name)
            # float32, where the product is exact, and float16, where it is rounded once
            assert (found == scales.astype(np.float32) * levels.astype(np.float32)).all()
            assert (found.astype(np.float16) == scales * levels.astype(np.float16)).all()
    with open_model(tmp_path / "out.gguf") as model:
        logits = forward(model.graph, model.gguf, model.tokenizer.encode("the island"))
        assert np.isfinite(logits).all()


def test_levels_at_both_ends(tmp_path: Path) -> None:
    """q = 0 with z = 15 is -15, q = 15 with z = 0 is 15: both fit Q5_0."""
    for zero, lowest, highest in ((15, -15, 0), (0, 0, 15)):
        truth = checkpoint(tmp_path / f"m{zero}", "awq", zero=zero)
        convert(tmp_path / f"m{zero}", tmp_path / f"{zero}.gguf")
        levels = np.concatenate([x.ravel() for x, _ in truth.values()])
        assert (levels.min(), levels.max()) == (lowest, highest)
        with GGUFFile.open(tmp_path / f"{zero}.gguf") as out:
            for name, (x, scales) in truth.items():
                assert (out.dequantize(name) == scales.astype(np.float32) * x).all()


def test_activation_order_is_refused_and_can_be_decoded(tmp_path: Path) -> None:
    truth = checkpoint(tmp_path / "m", "gptq", shuffled=True)
    with pytest.raises(UnsupportedError, match=r"desc_act.*--dtype f16"):
        convert(tmp_path / "m", tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
    notes = convert(tmp_path / "m", tmp_path / "out.gguf", dtype="f16")
    assert notes == ("the GPTQ weights are decoded and written as F16",)
    with GGUFFile.open(tmp_path / "out.gguf") as out:
        for name, (levels, scales) in truth.items():
            assert out.tensors[name].type is T.F16
            half = out.dequantize(name).astype(np.float16)
            assert (half == scales * levels.astype(np.float16)).all()


@pytest.mark.parametrize(
    ("method", "said", "says"),
    [
        ("gptq", {"bits": 8}, "8 bits"),
        ("gptq", {"bits": 3}, "3 bits"),
        ("gptq", {"group_size": 16}, "groups of 16"),
        ("gptq", {"checkpoint_format": "marlin"}, "marlin"),
        ("gptq", {"is_marlin_format": True}, "marlin"),
        ("gptq", {"dynamic": {"x": {"bits": 8}}}, "dynamic"),
        ("awq", {"version": "gemv"}, "gemv"),
        ("awq", {"quant_method": "bitsandbytes"}, "bitsandbytes"),
        ("awq", {"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ("awq", {"quant_method": "fp8"}, "fp8"),
    ],
)
def test_other_quantizations_are_refused_by_name(
    tmp_path: Path, method: str, said: dict[str, Any], says: str
) -> None:
    checkpoint(tmp_path / "m", method, said=said)
    with pytest.raises(UnsupportedError, match=says):
        convert(tmp_path / "m", tmp_path / "out.gguf")


MODULE = LAYER + "mlp.up_proj"


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda t: t.pop(f"{MODULE}.scales"), FormatError, r"up_proj\.scales"),
        (lambda t: t.pop(f"{MODULE}.qzeros"), FormatError, r"up_proj\.qzeros"),
        (
            lambda t: t.update({f"{MODULE}.qzeros": t[f"{MODULE}.qzeros"][:1]}),
            FormatError,
            "qzeros",
        ),
        (
            lambda t: t.update({f"{MODULE}.qweight": np.zeros((8, 96), np.int64)}),
            FormatError,
            "int6",
        ),
        (lambda t: t.update({f"{MODULE}.g_idx": np.full(D, 9, np.int32)}), FormatError, "g_idx"),
        (
            lambda t: t.update({f"{MODULE}.scales": np.full((2, 96), 0.1, np.float32)}),
            UnsupportedError,
            "float16",
        ),
        (lambda t: t.update({f"{MODULE}.perm": np.zeros(3, np.int32)}), UnsupportedError, "perm"),
    ],
)
def test_parts_that_do_not_fit(tmp_path: Path, change: Any, error: type, says: str) -> None:
    checkpoint(tmp_path / "m", "gptq", change=change)
    with pytest.raises(error, match=says):
        convert(tmp_path / "m", tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_packed_weights_that_nobody_announced(tmp_path: Path) -> None:
    checkpoint(tmp_path / "m", "gptq")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="quantization_config"):
        convert(tmp_path / "m", tmp_path / "out.gguf")
