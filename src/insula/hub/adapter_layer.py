"""An ADAPTER of a Modelfile into the store: a LoRA that surely belongs to the base, as one file.

Refuses here, while a person looks, what would fail when the model runs: a file that is no adapter,
one of another model, a base that takes none. A PEFT folder becomes a GGUF file of the same numbers,
with the scale in the second factor.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from insula.errors import FormatError, NotFoundError, UnsupportedError
from insula.formats.gguf import GGUFFile
from insula.formats.gguf_writer import GGUFWriter
from insula.hub import places, signatures
from insula.hub.manifest import Layer
from insula.hub.pull_file import read_through
from insula.hub.transport import Progress
from insula.locale import text
from insula.models.adapter import CONFIG, WEIGHTS, Update, read_adapter
from insula.models.adapters import Adapter, adapted
from insula.models.registry import build_graph
from insula.ops.graph import Output


def take_adapter(path: Path, base: Path, copy: Path, progress: Progress | None) -> Layer:
    """The layer of the adapter at `path`, whose bytes are at `copy` afterwards.

    base: a file that it must fit. Raises NotFoundError, FormatError, UnsupportedError,
    ChecksumError (a signature), ResourceError.
    """
    if not path.exists():
        raise NotFoundError(text("hub.no_such_file", path=path))
    if path.is_file() and path.name == WEIGHTS:
        path = path.parent
    try:
        if path.is_dir():
            # Copied first, so that what is checked is what is read.
            folder = places.private_folder(copy.with_name(f"{copy.name}-folder"))
            for name in (CONFIG, WEIGHTS):
                if (path / name).is_file():
                    _checked(path / name, folder / name, progress)
            _write(_fitting(folder, base), base, copy)
            sha256, size = read_through(copy, None, progress)
        else:
            sha256, size = _checked(path, copy, progress)
            _fitting(copy, base)
    except (FormatError, UnsupportedError, NotFoundError) as error:
        reason = str(error).replace(f"{copy}-folder", str(path)).replace(copy.name, path.name)
        raise type(error)(text("hub.adapter_refused", path=path, reason=reason)) from None
    return Layer(kind="adapter", sha256=sha256, size=size)


def _checked(path: Path, copy: Path, progress: Progress | None) -> tuple[str, int]:
    """The digest and size of a file that is signed as it must be, with its bytes at `copy`."""
    signature = signatures.wanted_beside(path)
    found = read_through(path, copy, progress)
    if signature is not None:
        signature.check_file(copy)
    return found


def _fitting(path: Path, base: Path) -> dict[str, Update]:
    """The adapter's updates, each of a weight that adapters can change in this model."""
    with GGUFFile.open(base) as gguf:
        graph = build_graph(gguf)
        if isinstance(graph.ops[-1], Output):
            raise UnsupportedError(text("hub.adapter_of_encoder"))
        updates = read_adapter(path, gguf)
    factors = {weight: (update.a, update.b) for weight, update in updates.items()}
    adapted(graph, [Adapter(name=path.name, factors=factors)])
    return updates


def _write(updates: dict[str, Update], base: Path, target: Path) -> None:
    with GGUFFile.open(base) as gguf:
        arch = gguf.metadata["general.architecture"]
    writer = GGUFWriter(target)
    writer.add("general.architecture", arch)
    writer.add("general.type", "adapter")
    writer.add("adapter.type", "lora")
    writer.add("adapter.lora.alpha", np.float32(0))  # none: the product is added as it is
    for name, update in updates.items():
        writer.add_tensor(f"{name}.lora_a", update.a)
        writer.add_tensor(f"{name}.lora_b", update.b * np.float32(update.scale))
    writer.write()
