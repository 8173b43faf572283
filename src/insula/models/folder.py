"""A Hugging Face model folder: its JSON files and its safetensors, found without trusting names.

Pickled checkpoints (*.bin, *.pth) can run code when read and are never opened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from insula.errors import FormatError, NotFoundError
from insula.formats.ggml_types import GGMLType

#: safetensors dtype -> (GGUF type, the NumPy type its elements are moved as)
FLOATS: Mapping[str, tuple[GGMLType, np.dtype[Any]]] = MappingProxyType(
    {
        "F32": (GGMLType.F32, np.dtype("<f4")),
        "F16": (GGMLType.F16, np.dtype("<f2")),
        "BF16": (GGMLType.BF16, np.dtype("<u2")),
    }
)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises NotFoundError or FormatError with the path."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFoundError(f"{path} is missing; a Hugging Face model folder has one") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise FormatError(f"{path} holds {type(content).__name__}, a JSON object is needed")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the checkpoint: those of the index if there is one."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
        inside = sorted(n for n in names if isinstance(n, str) and Path(n).name == n)
        if not names or len(inside) != len(names):
            raise FormatError(f"{index} names files outside its own folder, or none")
        return [folder / name for name in inside]
    single = folder / "model.safetensors"
    if not single.exists():
        raise NotFoundError(
            f"{folder} has neither model.safetensors nor its index; pickled checkpoints "
            "(*.bin, *.pth) can run code and are never read: save the model as safetensors"
        )
    return [single]
