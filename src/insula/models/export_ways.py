"""Which checkpoint a GGUF file goes back to, and what its tensors are called there.

Owns the way back of `convert_rules`: the class and model_type, the names, the biases that such a
checkpoint has, and what undoes GGUF's changes to weights. Encoders of BERT's shape all become
BERT: GGUF keeps of RoBERTa's and XLM-R's tables what is used, and the rest of the maths is the
same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insula.errors import UnsupportedError
from insula.models import convert_layernorm
from insula.models import convert_rules as rules_for
from insula.models.convert_rules import Rules
from insula.models.pooling import TYPES

_QKVO = ("attn_q", "attn_k", "attn_v", "attn_output")
_GATED = ("ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True, kw_only=True)
class Way:
    """One kind of checkpoint: config.json's architectures[0] and model_type, and its names.

    prefix: what stands before the names outside of layers and before `layer`. outer, block: GGUF's
    names where the rules' own, read backwards, do not do. biases: sets of tensors whose biases are
    all there or none, by the setting of config.json that says so; None: always there.
    undo: of the rules' change, by GGUF's name of a tensor.
    """

    name: str
    kind: str
    rules: Rules
    prefix: str = "model."
    layer: str = "layers"
    outer: Mapping[str, str] = field(default_factory=dict)
    block: Mapping[str, str] = field(default_factory=dict)
    biases: tuple[tuple[str | None, tuple[str, ...]], ...] = ()
    undo: Callable[[str, NDArray[Any], Mapping[str, Any]], NDArray[Any]] | None = None

    @property
    def layer_norms(self) -> bool:
        """Whether its norms are layer norms, which have biases."""
        return self.rules.metadata is convert_layernorm.metadata

    def source(self, name: str) -> str:
        """What the checkpoint calls GGUF's tensor. Raises UnsupportedError."""
        module, _, kind = name.rpartition(".")
        outer = {ours: self.prefix + theirs for theirs, ours in self.rules.outer.items()}
        outer |= {"output": "lm_head", **self.outer}
        block = {ours: theirs for theirs, ours in self.rules.block.items()} | dict(self.block)
        if kind in ("weight", "bias") and module in outer:
            return f"{outer[module]}.{kind}"
        match = re.fullmatch(r"blk\.(\d+)\.(.+)", module)
        if kind in ("weight", "bias") and match and match[2] in block:
            return f"{self.prefix}{self.layer}.{int(match[1])}.{block[match[2]]}.{kind}"
        raise UnsupportedError(
            f"tensor {name} has no counterpart in a {self.rules.arch} checkpoint; leaving it out "
            "could change the model's answers"
        )

    def biased(self, names: Collection[str]) -> dict[str, bool]:
        """What config.json says about biases, for a file's tensors. Raises UnsupportedError where
        it cannot say what there is."""
        there = {m[1] for n in names if (m := re.fullmatch(r"blk\.\d+\.(.+)\.bias", n))}
        if not self.layer_norms:
            there |= {n.removesuffix(".bias") for n in names if re.fullmatch(r"\w+\.bias", n)}
        weights = {n[: -len("weight")] for n in names if n.endswith(".weight")}
        found: dict[str, bool] = {}
        known: set[str] = set()
        for key, group in self.biases:
            known.update(group)
            having = [n for n in weights if any(n.endswith(f".{part}.") for part in group)]
            missing = [n + "bias" for n in having if n + "bias" not in names]
            if missing and (key is None or len(missing) < len(having)):
                allowed = "all of them" if key is None else "all of them or none"
                raise UnsupportedError(
                    f"the file has no {min(missing)}; a {self.rules.arch} checkpoint has "
                    f"biases for {', '.join(group)}, {allowed}"
                )
            if key is not None:
                found[key] = not missing and bool(having)
        if there - known:
            raise UnsupportedError(
                f"the file has biases for {', '.join(sorted(there - known))}, which have no "
                f"counterpart in a {self.rules.arch} checkpoint"
            )
        return found


def _attention(*more: str) -> tuple[tuple[str | None, tuple[str, ...]], ...]:
    return (("attention_bias", _QKVO), *(("mlp_bias", _GATED) for _ in more))


def _transposed(name: str, values: NDArray[Any], config: Mapping[str, Any]) -> NDArray[Any]:
    return values.T if values.ndim == 2 and name.startswith("blk.") else values


def _interleaved(name: str, values: NDArray[Any], config: Mapping[str, Any]) -> NDArray[Any]:
    """Falcon's fused rows: all queries, keys, values -> per key head its queries, key and value."""
    if ".attn_qkv." not in name:
        return values
    heads, rest = config["num_attention_heads"], values.shape[1:]
    head_dim = config["hidden_size"] // heads
    kv_heads = (values.shape[0] // head_dim - heads) // 2
    shaped = values.reshape(-1, head_dim, *rest)
    queries = shaped[:heads].reshape(kv_heads, heads // kv_heads, head_dim, *rest)
    keys, kept = shaped[heads : heads + kv_heads, None], shaped[heads + kv_heads :, None]
    return np.concatenate([queries, keys, kept], axis=1).reshape(values.shape)


_BERT_BIASES = ((None, (*_QKVO, "ffn_up", "ffn_down", "attn_output_norm", "layer_output_norm")),)
_FALCON = Way(
    name="FalconForCausalLM",
    kind="falcon",
    rules=rules_for.FALCON,
    prefix="transformer.",
    layer="h",
    block={"attn_norm": "input_layernorm"},
    biases=(
        ("bias", ("attn_qkv", "attn_output", "ffn_up", "ffn_down")),
        (None, ("attn_norm", "attn_norm_2")),
    ),
    undo=_interleaved,
)

#: By `general.architecture`, or that with what else decides (`way_of`).
WAYS: Mapping[str, Way] = MappingProxyType(
    {
        "llama": Way(
            name="LlamaForCausalLM", kind="llama", rules=rules_for.LLAMA, biases=_attention("mlp")
        ),
        "llama, experts": Way(name="MixtralForCausalLM", kind="mixtral", rules=rules_for.MIXTRAL),
        "qwen2": Way(
            name="Qwen2ForCausalLM",
            kind="qwen2",
            rules=rules_for.QWEN2,
            biases=((None, _QKVO[:3]),),
        ),
        "qwen3": Way(
            name="Qwen3ForCausalLM", kind="qwen3", rules=rules_for.QWEN3, biases=_attention()
        ),
        "qwen3, pooled": Way(
            name="Qwen3Model", kind="qwen3", rules=rules_for.QWEN3, prefix="", biases=_attention()
        ),
        "qwen3moe": Way(
            name="Qwen3MoeForCausalLM",
            kind="qwen3_moe",
            rules=rules_for.QWEN3MOE,
            biases=_attention(),
        ),
        "gpt-oss": Way(
            name="GptOssForCausalLM",
            kind="gpt_oss",
            rules=rules_for.GPT_OSS,
            biases=(
                *_attention(),
                (None, ("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")),
            ),
        ),
        "gemma2": Way(
            name="Gemma2ForCausalLM", kind="gemma2", rules=rules_for.GEMMA2, biases=_attention()
        ),
        "gemma3": Way(
            name="Gemma3ForCausalLM",
            kind="gemma3_text",
            rules=rules_for.GEMMA3,
            biases=_attention(),
        ),
        "granite": Way(
            name="GraniteForCausalLM",
            kind="granite",
            rules=rules_for.GRANITE,
            biases=_attention("mlp"),
        ),
        "smollm3": Way(
            name="SmolLM3ForCausalLM",
            kind="smollm3",
            rules=rules_for.SMOLLM3,
            biases=_attention("mlp"),
        ),
        "olmo2": Way(
            name="Olmo2ForCausalLM", kind="olmo2", rules=rules_for.OLMO2, biases=_attention()
        ),
        "phi3": Way(name="Phi3ForCausalLM", kind="phi3", rules=rules_for.PHI3),
        "gpt2": Way(
            name="GPT2LMHeadModel",
            kind="gpt2",
            rules=rules_for.GPT2,
            prefix="transformer.",
            layer="h",
            biases=(
                (None, ("attn_qkv", "attn_output", "ffn_up", "ffn_down", "attn_norm", "ffn_norm")),
            ),
            undo=_transposed,
        ),
        "starcoder2": Way(
            name="Starcoder2ForCausalLM",
            kind="starcoder2",
            rules=rules_for.STARCODER2,
            biases=(
                ("use_bias", (*_QKVO, "ffn_up", "ffn_down")),
                (None, ("attn_norm", "ffn_norm")),
            ),
        ),
        "stablelm": Way(
            name="StableLmForCausalLM",
            kind="stablelm",
            rules=rules_for.STABLELM,
            biases=(("use_qkv_bias", _QKVO[:3]), (None, ("attn_norm", "ffn_norm"))),
        ),
        "falcon": _FALCON,
        "falcon, two norms": Way(
            name=_FALCON.name,
            kind=_FALCON.kind,
            rules=_FALCON.rules,
            prefix=_FALCON.prefix,
            layer=_FALCON.layer,
            biases=_FALCON.biases,
            undo=_FALCON.undo,
        ),
        "bert": Way(
            name="BertModel",
            kind="bert",
            rules=rules_for.BERT,
            prefix="",
            layer="encoder.layer",
            biases=_BERT_BIASES,
        ),
        "bert, rank": Way(
            name="BertForSequenceClassification",
            kind="bert",
            rules=rules_for.BERT_HEAD,
            prefix="bert.",
            layer="encoder.layer",
            outer={"cls.output": "classifier"},
            biases=_BERT_BIASES,
        ),
        "bert, one type": Way(
            name="DistilBertModel",
            kind="distilbert",
            rules=rules_for.DISTILBERT,
            prefix="",
            layer="transformer.layer",
            biases=_BERT_BIASES,
        ),
        "bert, one type, rank": Way(
            name="DistilBertForSequenceClassification",
            kind="distilbert",
            rules=rules_for.DISTILBERT_HEAD,
            prefix="distilbert.",
            layer="transformer.layer",
            outer={"cls": "pre_classifier", "cls.output": "classifier"},
            biases=_BERT_BIASES,
        ),
        "nomic-bert": Way(
            name="NomicBertModel",
            kind="nomic_bert",
            rules=rules_for.NOMIC_BERT,
            prefix="",
            outer={"token_embd_norm": "embeddings.LayerNorm"},
            biases=((None, ("attn_output_norm", "layer_output_norm")),),
        ),
    }
)


def way_of(meta: Mapping[str, Any], names: Collection[str]) -> Way:
    """The way back for a file's metadata and tensors. Raises UnsupportedError."""
    arch = meta.get("general.architecture")
    key = str(arch)
    if arch == "llama" and meta.get("llama.expert_count"):
        key += ", experts"
    elif arch == "qwen3" and meta.get("qwen3.pooling_type"):
        key += ", pooled"
    elif arch == "bert":
        key += "" if "token_types.weight" in names else ", one type"
        key += ", rank" if TYPES.get(meta.get("bert.pooling_type", 0)) == "rank" else ""
    elif arch == "falcon" and "blk.0.attn_norm_2.weight" in names:
        key += ", two norms"
    way = WAYS.get(key)
    if way is None:
        raise UnsupportedError(
            f"the architecture {arch!r} cannot be written as a Hugging Face folder; these can: "
            f"{', '.join(sorted({w.rules.arch for w in WAYS.values()}))}"
        )
    return way
