"""What becomes of hidden states, as sentence-transformers' files or a classifier's labels.

The way back of `convert_pooling`. Where a file says nothing of normalization its vectors are
normalized (`models/pooling.py`), so the folder says that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from insula.errors import UnsupportedError
from insula.models.pooling import TYPES

_SWITCHES = {"cls": "cls_token", "mean": "mean_tokens", "last": "lasttoken"}


def labels(own: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """config.json's names of scores; {} for a model without a head.

    own: the architecture's keys of the metadata. shapes: of the file's tensors.
    Raises UnsupportedError for a head that no checkpoint has.
    """
    if TYPES.get(own.get("pooling_type", 0)) != "rank":
        return {}
    if "cls.weight" not in shapes or "cls.output.weight" not in shapes:
        raise UnsupportedError(
            "the file's head has not both cls.weight and cls.output.weight; a checkpoint's "
            "classifier has two layers"
        )
    wanted = "tanh" if "token_types.weight" in shapes else "relu"
    act = own.get("classifier.activation", wanted)
    if act != wanted:
        raise UnsupportedError(
            f"the file's head has the activation {str(act)[:60]!r}; a checkpoint of its kind "
            f"has {wanted!r}"
        )
    count = shapes["cls.output.weight"][0]
    given = own.get("classifier.output_labels")
    names = [str(name) for name in given] if given is not None else []
    if len(names) != count:
        names = [f"LABEL_{i}" for i in range(count)]
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def files(own: Mapping[str, Any], *, width: int) -> dict[str, Any]:
    """Files of JSON by their path in the folder; {} for a model that pools nothing.

    Raises UnsupportedError.
    """
    number = own.get("pooling_type", 0)
    kind = TYPES.get(number)
    if not number or kind == "rank":
        return {}
    if kind is None:
        raise UnsupportedError(f"pooling_type {number} has no counterpart in a folder")
    kinds = ["Transformer", "Pooling", *(["Normalize"] if own.get("pooling.normalize", 1) else [])]
    made: dict[str, Any] = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": f"{i}_{name}" if i else ""}
            | {"type": f"sentence_transformers.models.{name}"}
            for i, name in enumerate(kinds)
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": width}
        | {f"pooling_mode_{switch}": name == kind for name, switch in _SWITCHES.items()},
    }
    most = own.get("pooling.max_tokens", 0)
    if most:
        made["sentence_bert_config.json"] = {"max_seq_length": int(most), "do_lower_case": False}
    return made
