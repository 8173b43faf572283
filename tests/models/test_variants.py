"""Checkpoints as configurations allow them, beyond the goldens: each of these was once wrong.

transformers makes a tiny random checkpoint and computes its logits; the folder becomes GGUF and
must give the same, or the converter must say by name what it cannot.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from golden import tiny_tokenizer
from golden.make_goldens import SIZES
from insula.errors import FormatError, UnsupportedError
from insula.formats.gguf import GGUFFile
from insula.models.convert import convert
from insula.models.registry import build_graph
from insula.ops.reference import forward

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch", reason="torch is not installed: a CPU build will do")
transformers = pytest.importorskip("transformers", reason="the oracle extra is not installed")

YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0}
YARN |= {"original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LONG: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 1000.0,
    "long_factor": [1.0 + 0.2 * i * i for i in range(8)],
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def checkpoint(folder: Path, kind: str, settings: dict[str, Any], change: dict[str, Any]) -> Path:
    """A random one, and config.json changed afterwards (None: without that key)."""
    torch.manual_seed(5)
    sizes = {**SIZES, "num_hidden_layers": 2, "max_position_embeddings": 256, **settings}
    config = getattr(transformers, kind)(**{k: v for k, v in sizes.items() if v != "leave out"})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.copy_(torch.randn(value.shape) * value.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    tiny_tokenizer.save(folder)
    path = folder / "config.json"
    made = {k: v for k, v in json.loads(path.read_text()).items() if k not in change}
    path.write_text(json.dumps(made | {k: v for k, v in change.items() if v is not None}))
    return folder


def off(folder: Path) -> float:
    """How far our logits are from those of transformers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    ids = torch.randint(2, 298, (70,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = model(ids[None]).logits[0].numpy()
    assert wanted.std() > 0.1
    convert(folder, folder / "model.gguf", dtype="f32")
    with GGUFFile.open(folder / "model.gguf") as file:
        found = forward(build_graph(file, n_ctx=70), file, ids.numpy().astype(np.int32))
    return float(np.abs(found - wanted).max())


@pytest.mark.parametrize(
    ("kind", "settings", "change"),
    [
        # The stated factor decides how far scores are spread, not the ratio of contexts.
        ("Phi3Config", {"rope_parameters": {**LONG, "factor": 2.0}}
         | {"original_max_position_embeddings": 32}, {}),
        # Phi-3's first releases.
        ("Phi3Config", {"rope_parameters": {**LONG}, "original_max_position_embeddings": 32},
         {"rope_parameters": {**LONG, "rope_type": "su", "original_max_position_embeddings": 32}}),
        # The configuration class has a place and a default of its own for it.
        ("Phi3Config", {"rope_parameters": LONG | {"original_max_position_embeddings": 32}}
         | {"original_max_position_embeddings": 48}, {}),
        ("LlamaConfig", {"rope_parameters": {**YARN, "truncate": True}}, {}),
        ("LlamaConfig", {"rope_parameters": {**YARN, "attention_factor": 1.3}}, {}),
        ("Qwen2Config", {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}}, {}),
        ("MistralConfig", {"sliding_window": None}
         | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 2.0}}, {}),
        # rope_theta beside the settings; in two places; nowhere, so that it is the class's.
        ("Qwen3Config", {}, {"rope_parameters": {"rope_type": "default"}, "rope_theta": 333.0}),
        ("Olmo2Config", {}, {"rope_scaling": {"type": "linear", "factor": 3.0}}),
        ("SmolLM3Config", {"num_hidden_layers": 5}, {"rope_parameters": None}),
        ("StableLmConfig", {"rope_parameters": {**LLAMA3, "partial_rotary_factor": 0.5}}, {}),
        ("Gemma2Config", {"head_dim": 16, "sliding_window": 12, "query_pre_attn_scalar": 256},
         {"query_pre_attn_scalar": None}),
        ("GPT2Config", {"n_positions": 80, "activation_function": "gelu_pytorch_tanh"}
         | {"max_position_embeddings": "leave out", "intermediate_size": "leave out"}, {}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_what_converts_is_right(
    tmp_path: Path, kind: str, settings: dict[str, Any], change: dict[str, Any]
) -> None:
    assert off(checkpoint(tmp_path / "folder", kind, settings, change)) < 1e-4


@pytest.mark.parametrize(
    ("kind", "settings", "change", "says"),
    [
        ("Qwen3MoeConfig", {**MOE, "norm_topk_prob": True}, {"norm_topk_prob": None}, "norm_topk"),
        ("GptOssConfig", {"num_local_experts": 4, "intermediate_size": 32, "head_dim": 16},
         {"rope_parameters": None}, "rope_scaling"),
        ("LlamaConfig", {"tie_word_embeddings": True}, {"tie_word_embeddings": False}, "lm_head"),
        ("LlamaConfig", {"rope_parameters": {**YARN, "truncate": False}}, {}, "truncate"),
    ],
)  # fmt: skip
def test_what_does_not_is_named(
    tmp_path: Path, kind: str, settings: dict[str, Any], change: dict[str, Any], says: str
) -> None:
    folder = checkpoint(tmp_path / "folder", kind, settings, change)
    with pytest.raises((UnsupportedError, FormatError), match=says):
        convert(folder, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
