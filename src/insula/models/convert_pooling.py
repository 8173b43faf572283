"""What a folder says about pooling, as GGUF metadata: sentence-transformers' modules, or a head.

modules.json lists what happens to a text one after the other; only a transformer, a pooling and a
normalization have a counterpart, anything else (a dense layer after the pooling) is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from insula.errors import FormatError, UnsupportedError
from insula.models.convert_layernorm import labels
from insula.models.folder import read_json
from insula.models.pooling import TYPES

NUMBERS: dict[str, int] = {kind: number for number, kind in TYPES.items()}

#: sentence-transformers' switch in 1_Pooling/config.json, and its name since version 5 -> ours
_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
_NAMES = {"cls": "cls", "mean": "mean", "lasttoken": "last"}


def metadata(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF keys without the architecture's prefix; none where the folder says nothing."""
    if str((config.get("architectures") or [""])[0]).endswith("ForSequenceClassification"):
        if config.get("problem_type") == "multi_label_classification":
            raise UnsupportedError(
                "config.json's labels exclude each other in GGUF; multi_label_classification has "
                "no counterpart"
            )
        names = labels(config)
        meta: dict[str, Any] = {"pooling_type": NUMBERS["rank"]}
        if config.get("model_type") == "distilbert":
            meta["classifier.activation"] = "relu"
        return meta | ({"classifier.output_labels": names} if names else {})
    path = folder / "modules.json"
    if not path.exists():
        return {}
    kinds = _modules(path)
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        raise UnsupportedError(
            f"{path} lists the modules {', '.join(kinds)}; GGUF knows Transformer, Pooling and "
            "after them at most Normalize"
        )
    meta = {
        "pooling_type": NUMBERS[_pooling(folder / "1_Pooling" / "config.json")],
        "pooling.normalize": len(kinds) == 3,
    }
    limits = folder / "sentence_bert_config.json"
    most = read_json(limits).get("max_seq_length") if limits.exists() else None
    if isinstance(most, int) and most > 0:
        meta["pooling.max_tokens"] = most
    return meta


def _modules(path: Path) -> list[str]:
    """The modules' class names, in order."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        return [str(entry["type"]).rpartition(".")[2] for entry in listed]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FormatError(f"{path} is no list of modules: {error}") from None


def _pooling(path: Path) -> str:
    settings = read_json(path)
    named = settings.get("pooling_mode")
    if isinstance(named, str):
        on = [_NAMES.get(named, named)]
    else:
        on = [
            _MODES.get(key, key.removeprefix("pooling_mode_"))
            for key, value in settings.items()
            if key.startswith("pooling_mode_") and value is True
        ]
    if len(on) != 1 or on[0] not in NUMBERS:
        raise UnsupportedError(
            f"{path} asks for {' and '.join(on) or 'no pooling'}; GGUF knows one of cls, mean, last"
        )
    return on[0]
