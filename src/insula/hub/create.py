"""A model out of a Modelfile: a base, and what is said on top of it.

The base is a name (fetched if it is not here), or a GGUF file: copied into the store, or named
where it lies. What the base brings stays unless the Modelfile says otherwise: PARAMETERs one by
one, TEMPLATE, SYSTEM, ADAPTER and the MESSAGEs as a whole; LICENSEs are added. An adapter is kept
with the model, which goes through it whenever it runs (adapter_layer.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from insula.errors import NotFoundError, UnsupportedError
from insula.hub import arrival, places
from insula.hub.adapter_layer import take_adapter
from insula.hub.manifest import Defaults, Layer, Manifest
from insula.hub.modelfile import Modelfile, block, render
from insula.hub.names import DEFAULT_TAG, parse_store_name
from insula.hub.parameters import meaning
from insula.hub.pull_file import Examined, examine
from insula.hub.pull_registry import licence_title
from insula.hub.reserved import refuse_reserved
from insula.hub.resolve import locate
from insula.hub.store import ModelStore
from insula.hub.transport import Progress
from insula.locale import text


@dataclass(frozen=True, kw_only=True)
class Created:
    """The new model, and what the Modelfile says that is not used here."""

    manifest: Manifest
    notes: tuple[str, ...]


def create(
    name: str,
    modelfile: Modelfile,
    *,
    folder: Path,
    store: ModelStore | None = None,
    progress: Progress | None = None,
    in_place: bool = False,
) -> Created:
    """Make the model `name`; one of that name is replaced.

    folder: what paths in the Modelfile are relative to. in_place: a base file is not copied.
    Raises ConfigError, NotFoundError, FormatError, UnsupportedError, and what `pull` raises.
    """
    store = store or ModelStore()
    name = new_name(name)
    if len(modelfile.adapters) > 1:
        raise UnsupportedError(text("hub.one_adapter", count=len(modelfile.adapters)))
    with store.workplace() as scratch:
        taken = _base(modelfile.base, folder, store, progress, scratch, in_place=in_place)
        base, files = taken.manifest, dict(taken.files)
        layers = list(base.layers)
        for adapter in modelfile.adapters:
            copy = scratch / "the-adapter"
            layer = take_adapter(folder / places.expanded(adapter), taken.path, copy, progress)
            layers = [*(other for other in layers if other.kind != "adapter"), layer]
            files[layer.sha256] = copy
        licences = [words.encode() for words in modelfile.licences]
        for number, words in enumerate(licences):
            sha256 = hashlib.sha256(words).hexdigest()
            layer = Layer(kind="licence", sha256=sha256, size=len(words))
            if layer not in layers:
                layers.append(layer)
                files[sha256] = scratch / f"licence-{number}"
                places.write_private(files[sha256], words)
        licence = licence_title(licences[0]) if licences else base.licence
        defaults = Defaults(
            parameters={**base.defaults.parameters, **modelfile.parameters},
            template=base.defaults.template if modelfile.template is None else modelfile.template,
            system=base.defaults.system if modelfile.system is None else modelfile.system,
            messages=modelfile.messages or base.defaults.messages,
        )
        manifest = replace(
            base,
            name=name,
            licence=licence,
            pulled=arrival.now(),
            layers=tuple(layers),
            defaults=defaults,
        )
        store.add(manifest, layers=files)
    arrival.done(progress, manifest)
    return Created(manifest=manifest, notes=_notes(modelfile, manifest))


def new_name(name: str) -> str:
    """A name that a person gives, with its tag. ConfigError for one that means a place."""
    parsed = parse_store_name(name)
    refuse_reserved(parsed)
    return str(replace(parsed, tag=parsed.tag or DEFAULT_TAG))


def _base(
    asked: str,
    folder: Path,
    store: ModelStore,
    progress: Progress | None,
    scratch: Path,
    *,
    in_place: bool,
) -> Examined:
    """What FROM names, and the files that come into the store with it."""
    beside = None if "://" in asked else folder / places.expanded(asked)
    if beside is not None and beside.is_dir():
        raise UnsupportedError(text("hub.from_folder", path=beside))
    if beside is None or not beside.is_file():
        try:
            found = locate(asked, store=store, allow_download=True, progress=progress)
        except NotFoundError as error:
            message = text("hub.from_not_found", base=asked[:120], reason=error)
            raise NotFoundError(message) from None
        if found.manifest is not None:
            return Examined(manifest=found.manifest, path=found.path)
        beside = found.path
    return examine(beside, "base:file", None if in_place else scratch / "base", progress)


def _notes(modelfile: Modelfile, manifest: Manifest) -> tuple[str, ...]:
    notes = [text("hub.line_unused", line=line[:60]) for line in modelfile.unused]
    notes += meaning(manifest.defaults.parameters).notes
    return tuple(notes)


def write_modelfile(
    manifest: Manifest, store: ModelStore, *, clean: Callable[[str], str] = str
) -> str:
    """The Modelfile that would make this model again upon its own file. clean: see `render`."""
    lines = [render(str(store.path(manifest)), manifest, clean=clean)]
    for layer in manifest.layers:
        path = store.blob_path(layer.sha256)
        if layer.kind == "adapter":
            lines.append(f"ADAPTER {path}")
        elif layer.kind == "licence":
            words = path.read_text(encoding="utf-8", errors="replace")
            lines.append(block("LICENSE", clean(words), manifest))
    return "\n".join(lines)
