"""Makes the golden files: tiny random checkpoints and the logits transformers gives for them.

    python -m tests.golden.make_goldens [NAME ...]

Each <name>.npz holds `gguf` (the bytes of a GGUF file converted from the checkpoint, F32),
`ids`, `logits` (float32 [T, V], from torch in float32) and `provenance` (JSON: versions, seed,
config). Needs torch and transformers; the tests that read the files need neither.

Weights are rounded to bfloat16 values, which keeps the files small and changes nothing else:
both sides compute with the same float32 numbers. They are drawn large enough that attention is
far from uniform and every op matters.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import tiny_tokenizer

HERE = Path(__file__).parent

SIZES = {
    "vocab_size": tiny_tokenizer.N_VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": tiny_tokenizer.BOS,
    "eos_token_id": tiny_tokenizer.EOS,
    "pad_token_id": None,
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One golden: a transformers config class by name, its settings, and how many tokens.

    model: the class that makes it; those without logits give their last hidden states. pooled: the
    model is a sentence-transformers one. second: tokens from here on are of type 1.
    """

    config: str
    settings: dict
    n_tokens: int
    seed: int
    model: str = "AutoModelForCausalLM"
    pooled: str | None = None
    second: int | None = None


CASES = {
    "llama": Case(
        config="LlamaConfig",
        settings={"num_hidden_layers": 3, "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
        n_tokens=70,
        seed=1,
    ),
    "llama-bias": Case(
        config="LlamaConfig",
        settings={"num_hidden_layers": 2, "attention_bias": True, "mlp_bias": True}
        | {"head_dim": 32, "num_key_value_heads": 4},
        n_tokens=40,
        seed=2,
    ),
    "llama3-rope": Case(
        config="LlamaConfig",
        settings={
            "num_hidden_layers": 2,
            "max_position_embeddings": 512,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        n_tokens=130,
        seed=3,
    ),
    "llama-linear": Case(
        config="LlamaConfig",
        settings={
            "num_hidden_layers": 2,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        },
        n_tokens=70,
        seed=4,
    ),
    "qwen3": Case(
        config="Qwen3Config",
        settings={"num_hidden_layers": 2, "head_dim": 32, "tie_word_embeddings": True},
        n_tokens=70,
        seed=5,
    ),
    "qwen3-yarn": Case(
        config="Qwen3Config",
        settings={
            "num_hidden_layers": 2,
            "head_dim": 32,
            "max_position_embeddings": 256,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        n_tokens=130,
        seed=6,
    ),
    "qwen2": Case(
        config="Qwen2Config",
        settings={"num_hidden_layers": 2, "tie_word_embeddings": True},
        n_tokens=70,
        seed=9,
    ),
    "gemma2": Case(
        config="Gemma2Config",
        settings={
            "num_hidden_layers": 3,
            "hidden_size": 32,
            "head_dim": 16,
            "sliding_window": 12,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
        },
        n_tokens=70,
        seed=10,
    ),
    "gemma2-scaled": Case(
        config="Gemma2Config",
        settings={
            "num_hidden_layers": 2,
            "hidden_size": 32,
            "head_dim": 16,
            "sliding_window": 20,
            "query_pre_attn_scalar": 9,
        },
        n_tokens=40,
        seed=11,
    ),
    "granite": Case(
        config="GraniteConfig",
        settings={
            "num_hidden_layers": 2,
            "tie_word_embeddings": True,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.15,
            "logits_scaling": 2.0,
        },
        n_tokens=70,
        seed=12,
    ),
    "smollm3": Case(
        config="SmolLM3Config",
        settings={"num_hidden_layers": 5, "hidden_size": 32, "intermediate_size": 64}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e4}},
        n_tokens=70,
        seed=13,
    ),
    "olmo2": Case(
        config="Olmo2Config",
        settings={"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64},
        n_tokens=70,
        seed=14,
    ),
    "phi": Case(  # llama.cpp wants certain tokens of a model that is named phi3
        config="Phi3Config",
        settings={"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64},
        n_tokens=70,
        seed=15,
    ),
    "phi-window": Case(
        config="Phi3Config",
        settings={"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64}
        | {"sliding_window": 12, "num_key_value_heads": 4, "tie_word_embeddings": True},
        n_tokens=40,
        seed=16,
    ),
    "phi-long": Case(
        config="Phi3Config",
        settings={
            "num_hidden_layers": 2,
            "hidden_size": 64,
            "intermediate_size": 64,
            "max_position_embeddings": 128,
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1000.0,
                "partial_rotary_factor": 0.75,
                "original_max_position_embeddings": 32,
                "long_factor": [1.0, 1.5, 2.0, 3.0, 5.0, 8.0],
                "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
            },
        },
        n_tokens=70,
        seed=25,
    ),
    "phi-short": Case(
        config="Phi3Config",
        settings={
            "num_hidden_layers": 2,
            "hidden_size": 64,
            "intermediate_size": 64,
            "max_position_embeddings": 128,
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1000.0,
                "partial_rotary_factor": 0.75,
                "original_max_position_embeddings": 32,
                "long_factor": [1.0, 1.5, 2.0, 3.0, 5.0, 8.0],
                "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
            },
        },
        n_tokens=30,
        seed=26,
    ),
    "mixtral": Case(
        config="MixtralConfig",
        settings={"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48}
        | {"num_local_experts": 5, "num_experts_per_tok": 2},
        n_tokens=70,
        seed=17,
    ),
    "qwen3moe": Case(
        config="Qwen3MoeConfig",
        settings={"num_hidden_layers": 2, "hidden_size": 32, "head_dim": 16}
        | {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
        | {"norm_topk_prob": True},
        n_tokens=70,
        seed=18,
    ),
    "gpt-oss": Case(
        config="GptOssConfig",
        settings={
            "num_hidden_layers": 3,
            "hidden_size": 32,
            "intermediate_size": 32,
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 12,
            "max_position_embeddings": 512,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1000.0,
                "factor": 8.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "original_max_position_embeddings": 64,
                "truncate": False,
            },
        },
        n_tokens=80,
        seed=22,
    ),
    "gemma3": Case(
        config="Gemma3TextConfig",
        settings={
            "num_hidden_layers": 7,
            "hidden_size": 32,
            "intermediate_size": 64,
            "head_dim": 16,
            "sliding_window": 12,
            "query_pre_attn_scalar": 16,
        },
        n_tokens=70,
        seed=7,
    ),
    "gemma3-scaled": Case(
        config="Gemma3TextConfig",
        settings={
            "num_hidden_layers": 6,
            "hidden_size": 32,
            "intermediate_size": 64,
            "head_dim": 16,
            "sliding_window": 20,
            "query_pre_attn_scalar": 9,
            "final_logit_softcapping": 5.0,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 1e5, "factor": 8.0},
            },
        },
        n_tokens=70,
        seed=8,
    ),
    "gpt2": Case(
        config="GPT2Config",
        settings={"num_hidden_layers": 2, "n_positions": 80},
        n_tokens=70,
        seed=17,
    ),
    "starcoder2": Case(
        config="Starcoder2Config",
        settings={"num_hidden_layers": 2, "max_position_embeddings": 256},
        n_tokens=70,
        seed=18,
    ),
    "starcoder2-window": Case(
        config="Starcoder2Config",
        settings={"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64}
        | {"max_position_embeddings": 256, "sliding_window": 12, "use_bias": False},
        n_tokens=40,
        seed=19,
    ),
    "stablelm": Case(
        config="StableLmConfig",
        settings={"num_hidden_layers": 2, "use_qkv_bias": True, "num_key_value_heads": 4}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        n_tokens=70,
        seed=20,
    ),
    "stablelm-parallel": Case(
        config="StableLmConfig",
        settings={"num_hidden_layers": 2, "use_parallel_residual": True, "qk_layernorm": True}
        | {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        n_tokens=70,
        seed=21,
    ),
    "falcon": Case(
        config="FalconConfig",
        settings={"num_hidden_layers": 2, "max_position_embeddings": 256},
        n_tokens=70,
        seed=22,
    ),
    "falcon-many": Case(  # more query heads of one key head than an attention task takes
        config="FalconConfig",
        settings={"num_hidden_layers": 1, "num_attention_heads": 40, "hidden_size": 4 * 40}
        | {"ffn_hidden_size": 32, "tie_word_embeddings": True},
        n_tokens=70,
        seed=23,
    ),
    "falcon-new": Case(
        config="FalconConfig",
        settings={"num_hidden_layers": 2, "new_decoder_architecture": True, "num_kv_heads": 2},
        n_tokens=70,
        seed=24,
    ),
    "bert": Case(
        config="BertConfig",
        settings={"num_hidden_layers": 2, "max_position_embeddings": 96},
        n_tokens=70,
        seed=25,
        model="AutoModel",
        pooled="mean",
        second=40,
    ),
    "bert-labels": Case(
        config="BertConfig",
        settings={"num_hidden_layers": 2, "max_position_embeddings": 64, "hidden_size": 32}
        | {"id2label": {0: "sad", 1: "neither", 2: "glad"}},
        n_tokens=40,
        seed=26,
        model="AutoModelForSequenceClassification",
        second=25,
    ),
    "xlm-roberta": Case(
        config="XLMRobertaConfig",
        settings={"num_hidden_layers": 2, "max_position_embeddings": 82, "hidden_size": 32}
        | {"num_labels": 1, "pad_token_id": 1, "type_vocab_size": 1},
        n_tokens=70,
        seed=27,
        model="AutoModelForSequenceClassification",
    ),
    "distilbert": Case(
        config="DistilBertConfig",
        settings={"num_hidden_layers": 2, "max_position_embeddings": 64, "hidden_size": 32}
        | {"hidden_dim": 96, "id2label": {0: "NEGATIVE", 1: "POSITIVE"}},
        n_tokens=40,
        seed=30,
        model="AutoModelForSequenceClassification",
    ),
    "nomic-bert": Case(
        config="NomicBertConfig",
        settings={"num_hidden_layers": 2, "max_position_embeddings": 128, "pad_token_id": 0},
        n_tokens=70,
        seed=28,
        model="AutoModel",
        pooled="mean",
    ),
    "qwen3-embedding": Case(
        config="Qwen3Config",
        settings={"num_hidden_layers": 2, "head_dim": 16, "hidden_size": 32},
        n_tokens=70,
        seed=29,
        model="AutoModel",
        pooled="lasttoken",
    ),
}

#: Words in a table's name, for those that are not called embed_tokens.
TABLES = ("wte", "wpe", "word_embeddings", "position_embeddings", "token_type_embeddings")


def make(name: str) -> dict[str, np.ndarray]:
    """The arrays of one golden file."""
    import torch
    import transformers

    from insula.models.convert import convert

    case = CASES[name]
    generator = torch.Generator().manual_seed(case.seed)
    config = getattr(transformers, case.config)(**{**SIZES, **case.settings})
    config._attn_implementation = "eager"  # the plainest path through transformers
    model = getattr(transformers, case.model).from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim == 1:  # norms around their neutral value, biases around 0
                is_norm = any(word in key.lower() for word in ("norm", ".ln_"))
                is_norm &= not key.endswith(".bias")
                neutral = 1.0 if is_norm and "gemma" not in name else 0.0
                value.copy_(neutral + 0.3 * noise)
            elif "embed_tokens" in key and "gemma" in name:
                value.copy_(0.15 * noise)  # Gemma multiplies by sqrt(hidden_size)
            elif "embed_tokens" in key or any(word in key for word in TABLES):
                value.copy_(0.5 * noise)
            elif name == "gpt2":  # its matrices are transposed
                value.copy_(1.5 * noise / value.shape[0] ** 0.5)
            else:
                value.copy_(1.5 * noise / value.shape[1] ** 0.5)
            value.copy_(value.to(torch.bfloat16).to(torch.float32))
        ids = torch.randint(0, 298, (case.n_tokens,), generator=generator)
        ids[0] = tiny_tokenizer.BOS
        types = torch.zeros_like(ids)
        if case.model != "AutoModelForCausalLM":
            ids[ids == tiny_tokenizer.EOS] = 5  # RoBERTa's padding
        if case.second is not None:
            types[case.second :] = 1
        more = {"token_type_ids": types[None]} if case.second is not None else {}
        result = model(ids[None], **more, output_hidden_states=True)
        scores = None
        if case.model == "AutoModelForCausalLM":
            logits = result.logits[0]
        elif case.model == "AutoModel":
            logits = result.last_hidden_state[0]
        else:
            logits, scores = result.hidden_states[-1][0], result.logits[0]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / name
        model.save_pretrained(folder)
        tiny_tokenizer.save(folder)
        if case.pooled is not None:
            save_modules(folder, case.pooled)
        convert(folder, folder / "model.gguf", dtype="f32")
        gguf = np.fromfile(folder / "model.gguf", np.uint8)
    provenance = {
        "made_by": "tests/golden/make_goldens.py",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "seed": case.seed,
        "config": json.loads(config.to_json_string()),
    }
    extra = {} if scores is None else {"scores": scores.numpy().astype(np.float32)}
    if case.second is not None:
        extra["types"] = types.numpy().astype(np.int32)
    return extra | {
        "gguf": gguf,
        "ids": ids.numpy().astype(np.int32),
        "logits": logits.numpy().astype(np.float32),
        "provenance": np.array(json.dumps(provenance)),
    }


def save_modules(folder: Path, pooling: str) -> None:
    """What sentence-transformers writes beside a model whose vectors are normalized."""
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else ""}
        | {"type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    modes = {"cls": "cls_token", "mean": "mean_tokens", "lasttoken": "lasttoken"}
    switches = {f"pooling_mode_{name}": key == pooling for key, name in modes.items()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(switches))


def main(names: list[str]) -> None:
    for name in names or CASES:
        golden = make(name)
        path = HERE / f"{name}.npz"
        np.savez_compressed(path, **golden)
        logits = golden["logits"]
        print(f"{path.name}: {path.stat().st_size >> 10} KB, logits std {logits.std():.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
