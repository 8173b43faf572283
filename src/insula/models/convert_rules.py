"""What a checkpoint's tensors are called in GGUF, per architecture, and how GGUF changes them.

Names as llama.cpp's converter gives them (gguf-py, tensor_mapping.py). The changes: query and key
rows of llama and its kin are permuted so that rotated pairs are adjacent, Gemma's norms get their
+1, GPT-2's matrices are transposed, Falcon's fused rows are sorted, tables of positions begin at
the first one that is used, and what a checkpoint has in several tensors may be one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insula.errors import FormatError, UnsupportedError
from insula.models import convert_config, convert_experts, convert_layernorm
from insula.models.convert_config import Config
from insula.models.convert_experts import Split
from insula.models.convert_layernorm import falcon_kv_heads, first_position, usual

BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}


@dataclass(frozen=True, kw_only=True)
class Rules:
    """One architecture: its GGUF name, the names inside a layer, and what happens to weights.

    A name "attn_qkv/1" is part 1 of a tensor that has several, one below the other; so is
    "attn_q_norm" for a source that ends in a number. layer: a regular expression for what stands
    before a layer's number. outer: names outside of layers. left_out: a regular expression for
    tensors that add nothing. metadata: GGUF's keys for a config.
    permute: query and key rows to adjacent pairs. norm_offset: added to every norm weight.
    change: what else becomes of a tensor, by its GGUF name; may give views.
    experts: names within an expert, of which all are stacked; together: names within a layer of
    tensors that hold all experts (`convert_experts`).
    """

    arch: str
    block: Mapping[str, str]
    layer: str = "layers"
    outer: Mapping[str, str] = field(
        default_factory=lambda: {"embed_tokens": "token_embd", "norm": "output_norm"}
    )
    left_out: str = ""
    metadata: Callable[[str, Config], dict[str, Any]] = convert_config.metadata
    permute: bool = False
    norm_offset: float = 0.0
    change: Callable[[str, NDArray[Any], Config], NDArray[Any]] | None = None
    experts: Mapping[str, str] = field(default_factory=dict)
    together: Mapping[str, tuple[Split, ...]] = field(default_factory=dict)


PRE_NORM = {**BLOCK, "post_attention_layernorm": "ffn_norm"}
POST_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
GEMMA_BLOCK = {**BLOCK, **POST_NORMS, "pre_feedforward_layernorm": "ffn_norm"}

LLAMA = Rules(arch="llama", block=PRE_NORM, permute=True)
QWEN2 = Rules(arch="qwen2", block=PRE_NORM)
QWEN3 = Rules(arch="qwen3", block={**PRE_NORM, **HEAD_NORMS})
GEMMA2 = Rules(arch="gemma2", block=GEMMA_BLOCK, norm_offset=1.0)
GEMMA3 = Rules(arch="gemma3", block={**GEMMA_BLOCK, **HEAD_NORMS}, norm_offset=1.0)
GRANITE = Rules(arch="granite", block=PRE_NORM, permute=True)
SMOLLM3 = Rules(arch="smollm3", block=PRE_NORM, permute=True)
OLMO2 = Rules(arch="olmo2", block={**BLOCK, **HEAD_NORMS, **POST_NORMS})
PHI3 = Rules(
    arch="phi3",
    block={**PRE_NORM, "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"},
)


MIXTRAL = replace(
    LLAMA,
    block={**PRE_NORM, "block_sparse_moe.gate": "ffn_gate_inp"},
    experts={"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"},
)
QWEN3MOE = Rules(
    arch="qwen3moe",
    block={**PRE_NORM, **HEAD_NORMS, "mlp.gate": "ffn_gate_inp"},
    experts={
        "gate_proj": "ffn_gate_exps",
        "up_proj": "ffn_up_exps",
        "down_proj": "ffn_down_exps",
    },
)
GPT_OSS = Rules(
    arch="gpt-oss",
    block={
        **BLOCK,
        "post_attention_layernorm": "post_attention_norm",
        "mlp.router": "ffn_gate_inp",
    },
    together=convert_experts.GPT_OSS,
)


def _transposed(name: str, values: NDArray[Any], config: Config) -> NDArray[Any]:
    """GPT-2's Conv1D holds [in, out]; its tables are as everywhere."""
    return values.T if values.ndim == 2 and name.startswith("blk.") else values


def _sorted_rows(name: str, values: NDArray[Any], config: Config) -> NDArray[Any]:
    """Falcon's fused rows: per key head its queries, key and value -> all queries, keys, values."""
    if ".attn_qkv." not in name:
        return values
    config = usual(config)
    heads, kv_heads = config["num_attention_heads"], falcon_kv_heads(config)
    head_dim, group = config["hidden_size"] // heads, heads // kv_heads
    rest = values.shape[1:]
    if values.shape[0] != (heads + 2 * kv_heads) * head_dim or heads % kv_heads:
        raise FormatError(
            f"{name} has {values.shape[0]} rows; {heads} query and {kv_heads} key heads of "
            f"{head_dim} need {(heads + 2 * kv_heads) * head_dim}"
        )
    parts = values.reshape(kv_heads, group + 2, head_dim, *rest)
    return np.concatenate(
        [
            parts[:, :group].reshape(-1, *rest),
            parts[:, group].reshape(-1, *rest),
            parts[:, group + 1].reshape(-1, *rest),
        ]
    )


def _used_positions(name: str, values: NDArray[Any], config: Config) -> NDArray[Any]:
    return values[first_position(config) :] if name.startswith("position_embd.") else values


def _norms_in_rows(name: str, values: NDArray[Any], config: Config) -> NDArray[Any]:
    """StableLM's norms of single heads are rows of one tensor."""
    return values[None] if re.search(r"\.attn_[qk]_norm\.", name) else values


_BIASED = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
GPT2 = Rules(
    arch="gpt2",
    layer="h",
    outer={"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"},
    block={
        "ln_1": "attn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    },
    left_out=r"h\.\d+\.attn\.(masked_)?bias",
    metadata=convert_layernorm.metadata,
    change=_transposed,
)
FALCON = Rules(
    arch="falcon",
    layer="h",
    outer={"word_embeddings": "token_embd", "ln_f": "output_norm"},
    block={
        "input_layernorm": "attn_norm",
        "ln_mlp": "attn_norm",
        "ln_attn": "attn_norm_2",
        "self_attention.query_key_value": "attn_qkv",
        "self_attention.dense": "attn_output",
        "mlp.dense_h_to_4h": "ffn_up",
        "mlp.dense_4h_to_h": "ffn_down",
    },
    metadata=convert_layernorm.metadata,
    change=_sorted_rows,
)
STARCODER2 = Rules(arch="starcoder2", block=_BIASED, metadata=convert_layernorm.metadata)
STABLELM = Rules(
    arch="stablelm",
    block={
        **PRE_NORM,
        "self_attn.q_layernorm.norms": "attn_q_norm",
        "self_attn.k_layernorm.norms": "attn_k_norm",
    },
    metadata=convert_layernorm.metadata,
    change=_norms_in_rows,
)
_BERT_OUTER = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.LayerNorm": "token_embd_norm",
}
_BERT_LEFT_OUT = r"embeddings\.position_ids"
_BERT_POOLER = r"|pooler\.dense\.(weight|bias)"  # trained for another task than embedding
BERT = Rules(
    arch="bert",
    layer=r"encoder\.layer",
    outer=_BERT_OUTER,
    block={
        "attention.self.query": "attn_q",
        "attention.self.key": "attn_k",
        "attention.self.value": "attn_v",
        "attention.output.dense": "attn_output",
        "attention.output.LayerNorm": "attn_output_norm",
        "intermediate.dense": "ffn_up",
        "output.dense": "ffn_down",
        "output.LayerNorm": "layer_output_norm",
    },
    left_out=_BERT_LEFT_OUT + _BERT_POOLER,
    metadata=convert_layernorm.metadata,
    change=_used_positions,
)
BERT_HEAD = replace(
    BERT,
    outer={**_BERT_OUTER, "pooler.dense": "cls", "classifier": "cls.output"},
    left_out=_BERT_LEFT_OUT,
)
ROBERTA_HEAD = replace(
    BERT, outer={**_BERT_OUTER, "classifier.dense": "cls", "classifier.out_proj": "cls.output"}
)
_DISTIL_OUTER = {k: v for k, v in _BERT_OUTER.items() if v != "token_types"}
DISTILBERT = replace(
    BERT,
    layer=r"(?:transformer\.)?layer",
    outer=_DISTIL_OUTER,
    block={
        "attention.q_lin": "attn_q",
        "attention.k_lin": "attn_k",
        "attention.v_lin": "attn_v",
        "attention.out_lin": "attn_output",
        "sa_layer_norm": "attn_output_norm",
        "ffn.lin1": "ffn_up",
        "ffn.lin2": "ffn_down",
        "output_layer_norm": "layer_output_norm",
    },
    left_out=_BERT_LEFT_OUT,
)
DISTILBERT_HEAD = replace(
    DISTILBERT, outer={**_DISTIL_OUTER, "pre_classifier": "cls", "classifier": "cls.output"}
)
NOMIC_BERT = Rules(
    arch="nomic-bert",
    layer=r"(?:encoder\.)?layers",
    outer={**_BERT_OUTER, "emb_ln": "token_embd_norm"},
    block={
        "attn.Wqkv": "attn_qkv",
        "attn.out_proj": "attn_output",
        "mlp.fc11": "ffn_up",
        "mlp.fc12": "ffn_gate",
        "mlp.fc2": "ffn_down",
        "norm1": "attn_output_norm",
        "norm2": "layer_output_norm",
        "self_attn.q_proj": "attn_qkv/0",
        "self_attn.k_proj": "attn_qkv/1",
        "self_attn.v_proj": "attn_qkv/2",
        "self_attn.o_proj": "attn_output",
        "mlp.up_proj": "ffn_up",
        "mlp.gate_proj": "ffn_gate",
        "mlp.down_proj": "ffn_down",
        "post_attention_layernorm": "attn_output_norm",
        "post_mlp_layernorm": "layer_output_norm",
    },
    left_out=_BERT_LEFT_OUT + _BERT_POOLER,
    metadata=convert_layernorm.metadata,
)

#: config.json's architectures[0] -> rules
RULES: Mapping[str, Rules] = MappingProxyType(
    {
        "LlamaForCausalLM": LLAMA,
        "MistralForCausalLM": LLAMA,
        "Qwen2ForCausalLM": QWEN2,
        "Qwen3ForCausalLM": QWEN3,
        "Gemma2ForCausalLM": GEMMA2,
        "Gemma3ForCausalLM": GEMMA3,
        "Gemma3ForConditionalGeneration": GEMMA3,
        "GraniteForCausalLM": GRANITE,
        "SmolLM3ForCausalLM": SMOLLM3,
        "Olmo2ForCausalLM": OLMO2,
        "Phi3ForCausalLM": PHI3,
        "MixtralForCausalLM": MIXTRAL,
        "Qwen3MoeForCausalLM": QWEN3MOE,
        "GptOssForCausalLM": GPT_OSS,
        "GPT2LMHeadModel": GPT2,
        "FalconForCausalLM": FALCON,
        "Starcoder2ForCausalLM": STARCODER2,
        "StableLmForCausalLM": STABLELM,
        "Qwen3Model": QWEN3,
        "BertModel": BERT,
        "RobertaModel": BERT,
        "XLMRobertaModel": BERT,
        "BertForSequenceClassification": BERT_HEAD,
        "RobertaForSequenceClassification": ROBERTA_HEAD,
        "XLMRobertaForSequenceClassification": ROBERTA_HEAD,
        "DistilBertModel": DISTILBERT,
        "DistilBertForSequenceClassification": DISTILBERT_HEAD,
        "NomicBertModel": NOMIC_BERT,
    }
)


def rules_of(config: Config) -> Rules:
    """The rules for a checkpoint. Raises UnsupportedError for one that is not known."""
    names = config.get("architectures") or [None]
    rules = RULES.get(names[0]) if isinstance(names, list) else None
    if rules is None:
        raise UnsupportedError(
            f"config.json names the architecture {names!r}; the converter knows "
            f"{', '.join(sorted(RULES))}; of the others those that generate text run from their "
            "folder as they are, with the extra train: insula run FOLDER"
        )
    return rules


#: What stands before the names that `Rules` know.
_PREFIX = re.compile(
    r"(language_model\.)?(model\.|transformer\.|bert\.|roberta\.|distilbert\.|nomic_bert\.)?"
    r"(language_model\.)?"
)


def gguf_name(source: str, rules: Rules, config: Config) -> tuple[str, int] | None:
    """What GGUF calls a checkpoint's tensor, and which part of it this is; None for what GGUF
    leaves out."""
    if re.match(r"(model\.)?(vision_tower|multi_modal_projector)\.", source):
        return None
    if source.endswith("rotary_emb.inv_freq"):
        return None  # follows from the metadata
    name = _PREFIX.sub("", source, count=1)
    if name == "lm_head.weight":
        return None if config.get("tie_word_embeddings") else ("output.weight", 0)
    if rules.left_out and re.fullmatch(rules.left_out, name):
        return None
    module, _, kind = name.rpartition(".")
    if kind in ("weight", "bias"):
        if module in rules.outer:
            return f"{rules.outer[module]}.{kind}", 0
        match = re.fullmatch(rf"{rules.layer}\.(\d+)\..+\.experts\.(\d+)\.(\w+)", module)
        if match and match[3] in rules.experts and kind == "weight":
            return f"blk.{int(match[1])}.{rules.experts[match[3]]}.weight", int(match[2])
        match = re.fullmatch(rf"{rules.layer}\.(\d+)\.(.+?)(?:\.(\d+))?", module)
        if match and match[2] in rules.block:
            inside, _, part = rules.block[match[2]].partition("/")
            return f"blk.{int(match[1])}.{inside}.{kind}", int(match[3] or part or 0)
    within = re.fullmatch(rf"{rules.layer}\.\d+\.(.+)", name)
    if within and within[1] in rules.together:
        return None  # `together` says what becomes of it
    raise UnsupportedError(
        f"tensor {source} has no counterpart in GGUF's {rules.arch}; leaving it out could "
        "change the model's answers"
    )
