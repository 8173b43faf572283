"""LoRA adapters as files: PEFT folders and GGUF, read as pairs of matrices by GGUF tensor name.

An adapter adds scale * B A to a weight (Hu et al., arxiv.org/abs/2106.09685). scale is alpha /
rank, and alpha / sqrt(rank) with rsLoRA (arxiv.org/abs/2312.03732).
Owns: the names, scales and shapes of both forms. Refuses by name what is not such a sum: DoRA,
aLoRA, adapted embeddings, whole modules, trained biases; and everything that does not fit the
base model, so that an adapter of another model is an error and not noise.

Shapes: O outputs, I inputs, R rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insula.errors import FormatError, NotFoundError, UnsupportedError
from insula.formats.gguf import GGUFFile
from insula.formats.identify import identify
from insula.formats.safetensors import SafetensorsFile
from insula.models.convert import adjacent_pairs, paired_heads
from insula.models.convert_rules import RULES, gguf_name
from insula.models.folder import read_json

F32 = NDArray[np.float32]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PEFT = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)(?:\.default)?\.weight")
MOST_PATTERN = 500
_REPEATED_GROUP = re.compile(r"\)[*+{]|[*+}][^|]*[*+}][^|]*[*+}]")
_OTHERWISE = {
    "lora_magnitude_vector": "DoRA",
    "lora_embedding_": "a LoRA of the embedding",
    "modules_to_save": "modules that were trained as a whole",
    "lora_A.bias": "biases in the adapter",
    "lora_B.bias": "biases in the adapter",
    "ia3_l": "IA3",
}


@dataclass(frozen=True, kw_only=True)
class Update:
    """What is added to one weight: scale * b @ a. a float32 [R, I], b float32 [O, R]."""

    a: F32
    b: F32
    scale: float

    def delta(self) -> F32:
        """scale * b @ a, float32 [O, I]."""
        return (self.b @ self.a) * np.float32(self.scale)


def read_adapter(path: str | Path, base: GGUFFile) -> dict[str, Update]:
    """The adapter's updates by tensor name of `base`, every one of which fits.

    Raises NotFoundError, FormatError (damaged, or of another model), UnsupportedError.
    """
    path = Path(path)
    if path.is_dir():
        found = _read_peft(path, base)
    elif not path.exists():
        raise NotFoundError(f"no adapter at {path}: a PEFT folder or a GGUF file is needed")
    elif path.name == WEIGHTS:
        found = _read_peft(path.parent, base)
    elif identify(path) == "safetensors":
        raise FormatError(f"{path} is one file of an adapter; give the folder with its {CONFIG}")
    else:
        found = _read_gguf(path, base)
    if not found:
        raise FormatError(f"{path} holds no LoRA matrices")
    for name, update in found.items():
        _check(name, update, base, path)
    return found


def _check(name: str, update: Update, base: GGUFFile, path: Path) -> None:
    info = base.tensors.get(name)
    if info is None:
        raise FormatError(
            f"the adapter changes {name}, which {base.path.name} does not have; it was made for "
            "another model"
        )
    (rank, n_in), (n_out, rank_b) = update.a.shape, update.b.shape
    if rank != rank_b or info.shape != (n_out, n_in):
        raise FormatError(
            f"{name} is {info.shape} in {base.path.name}, and the adapter's product of "
            f"{(n_out, rank_b)} and {(rank, n_in)} does not fit it; it was made for another model"
        )
    if not (np.isfinite(update.a).all() and np.isfinite(update.b).all()):
        raise FormatError(f"{path.name}: the matrices for {name} hold a NaN or an infinity")
    if not np.isfinite(update.b.astype(np.float64) * update.scale).all() or (
        np.abs(update.b.astype(np.float64) * update.scale).max(initial=0) > np.finfo(np.float32).max
    ):
        raise FormatError(f"{path.name}: the scale for {name} is {update.scale}")


# -- GGUF, as llama.cpp's convert_lora_to_gguf.py writes it ------------------------------------


def _read_gguf(path: Path, base: GGUFFile) -> dict[str, Update]:
    with GGUFFile.open(path) as file:
        meta = file.metadata
        if meta.get("general.type") != "adapter":
            raise FormatError(
                f"{path.name} is no adapter: its general.type is {meta.get('general.type')!r}"
            )
        if meta.get("adapter.type") != "lora":
            raise UnsupportedError(
                f"{path.name} is an adapter of type {meta.get('adapter.type')!r}; lora is read"
            )
        if "adapter.alora.invocation_tokens" in meta:
            raise UnsupportedError(
                f"{path.name} is an aLoRA, which works from a certain token on; merged into the "
                "weights it would work everywhere"
            )
        ours, theirs = base.metadata.get("general.architecture"), meta.get("general.architecture")
        if ours != theirs:
            raise FormatError(f"the adapter is for {theirs!r} and {base.path.name} is {ours!r}")
        alpha = meta.get("adapter.lora.alpha", 0.0)
        if isinstance(alpha, bool) or not isinstance(alpha, int | float):
            raise FormatError(f"adapter.lora.alpha is {alpha!r}, a number is needed")
        pairs: dict[str, dict[str, F32]] = {}
        for tensor in file.tensors:
            match = re.fullmatch(r"(.+)\.lora_([ab])", tensor)
            if match is None:
                raise UnsupportedError(f"{path.name} holds {tensor}, which is no LoRA matrix")
            if match[1] == "token_embd.weight":
                raise UnsupportedError(f"{path.name} is a LoRA of the embedding; not merged here")
            pairs.setdefault(match[1], {})[match[2]] = file.dequantize(tensor)
        updates: dict[str, Update] = {}
        for name, pair in pairs.items():
            a, b = _both(path, name, pair, "lora_a", "lora_b")
            # As llama.cpp: no alpha means that B A is added as it is.
            scale = float(alpha) / len(a) if alpha else 1.0
            updates[name] = Update(a=a, b=b, scale=scale)
        return updates


def _both(path: Path, name: str, pair: Mapping[str, F32], a: str, b: str) -> tuple[F32, F32]:
    first, second = pair.get(a[-1]), pair.get(b[-1])
    if first is None or second is None:
        raise FormatError(f"{path.name}: {name} has only one of {a} and {b}")
    if first.ndim != 2 or second.ndim != 2 or 0 in first.shape:
        raise FormatError(f"{path.name}: {name} has {a} {first.shape} and {b} {second.shape}")
    return first, second


# -- PEFT -------------------------------------------------------------------------------------


def _read_peft(folder: Path, base: GGUFFile) -> dict[str, Update]:
    config = read_json(folder / CONFIG)
    _refuse_config(config)
    if not (folder / WEIGHTS).exists():
        raise NotFoundError(
            f"{folder} has no {WEIGHTS}; pickled adapters (adapter_model.bin) can run code and are "
            "never read: save it with safe_serialization=True"
        )
    arch = base.metadata.get("general.architecture")
    rules = next((r for r in RULES.values() if r.arch == arch), None)
    if rules is None or rules.change is not None:
        raise UnsupportedError(
            f"the names of a PEFT adapter are not known for the architecture {arch!r}; an adapter "
            "in GGUF form can be merged"
        )
    heads = base.metadata.get(f"{rules.arch}.attention.head_count")
    shape = {
        "num_attention_heads": heads,
        "num_key_value_heads": base.metadata.get(f"{rules.arch}.attention.head_count_kv", heads),
    }
    with SafetensorsFile.open(folder / WEIGHTS) as file:
        pairs: dict[str, dict[str, F32]] = {}
        for name in file.tensors:
            match = _PEFT.fullmatch(name)
            if match is None:
                what = next(
                    (w for part, w in _OTHERWISE.items() if part in name), "not a LoRA matrix"
                )
                raise UnsupportedError(
                    f"the adapter holds {name} ({what}); that is not merged here"
                )
            pairs.setdefault(match[1], {})[match[2]] = file.dequantize(name)
        updates = {}
        for module, pair in pairs.items():
            named = gguf_name(f"{module}.weight", rules, {"tie_word_embeddings": False})
            if named is None or named[1] > 0:
                raise UnsupportedError(
                    f"the adapter changes {module}, which GGUF leaves out or has with others in one"
                )
            target = named[0]
            a, b = _both(folder / WEIGHTS, module, pair, "lora_A", "lora_B")
            if config.get("fan_in_fan_out"):
                raise UnsupportedError(
                    "the adapter is for weights stored transposed (fan_in_fan_out); not merged here"
                )
            if n := paired_heads(target, rules, shape):
                b = adjacent_pairs(b, n)
            updates[target] = Update(a=a, b=b, scale=_scale(config, module, len(a)))
        return updates


def _refuse_config(config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedError(f"the adapter is of type {kind!r}; LORA is read")
    for key, what in (
        ("use_dora", "DoRA scales columns by trained magnitudes"),
        ("alora_invocation_tokens", "aLoRA works from a certain token on"),
        ("modules_to_save", "some modules were trained as a whole"),
        ("trainable_token_indices", "some tokens of the embedding were trained"),
        ("layer_replication", "layers are repeated"),
    ):
        if config.get(key):
            raise UnsupportedError(f"{key} is set: {what}, which is no sum to merge here")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        raise UnsupportedError("the adapter trained biases too; only LoRA matrices are merged here")


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / rank of one module, as PEFT finds its settings: the first pattern that matches the
    end of its name, else the general one. The rank is that of the matrices."""
    wanted = _setting(config, "rank_pattern", module, config.get("r"))
    alpha = _setting(config, "alpha_pattern", module, config.get("lora_alpha"))
    for name, value in (("r", wanted), ("lora_alpha", alpha)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise FormatError(f"{CONFIG} has {name} = {value!r}, a number is needed")
    if wanted != rank:
        raise FormatError(f"{module} has a rank of {rank} and {CONFIG} says {wanted}")
    try:
        return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)
    except OverflowError:
        raise FormatError(f"{CONFIG}: lora_alpha is no number that a scale can have") from None


def _setting(config: Mapping[str, Any], key: str, module: str, default: Any) -> Any:
    patterns = config.get(key) or {}
    if not isinstance(patterns, Mapping):
        raise FormatError(f"{CONFIG}: {key} is {type(patterns).__name__}, an object is needed")
    for pattern, value in patterns.items():
        if len(pattern) > MOST_PATTERN or _REPEATED_GROUP.search(pattern):
            # Some such expressions take longer than anybody waits.
            raise UnsupportedError(f"{CONFIG}: {key} has the pattern {pattern[:80]!r}")
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error:
            raise FormatError(f"{CONFIG}: {key} has the pattern {pattern!r}") from None
    return default
