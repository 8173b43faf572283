"""A model out of a Modelfile: a base, and what is said on top of it.

The base is a name (fetched if it is not here), or a GGUF file: copied into the store, or named
where it lies. What the base brings stays unless the Modelfile says otherwise: PARAMETERs one by
one, TEMPLATE, SYSTEM, ADAPTER and the MESSAGEs as a whole; LICENSEs are added. An adapter is kept
with the model, and such a model is refused when it is run (defaults.py).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from insula.errors import NotFoundError, UnsupportedError
from insula.hub import arrival, places
from insula.hub.defaults import is_go_template
from insula.hub.manifest import Defaults, Layer, Manifest
from insula.hub.modelfile import Modelfile
from insula.hub.names import DEFAULT_TAG, parse_store_name
from insula.hub.parameters import meaning
from insula.hub.pull_file import examine, read_through
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
    with store.workplace() as scratch:
        base, files = _base(modelfile.base, folder, store, progress, scratch, in_place=in_place)
        layers = [
            layer for layer in base.layers if layer.kind != "adapter" or not modelfile.adapters
        ]
        for number, adapter in enumerate(modelfile.adapters):
            copy = scratch / f"adapter-{number}"
            layers.append(_adapter(folder / places.expanded(adapter), copy, files, progress))
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
) -> tuple[Manifest, dict[str, Path]]:
    """The manifest of what FROM names, and the files that come into the store with it."""
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
            return found.manifest, {}
        beside = found.path
    copy = None if in_place else scratch / "base"
    base = examine(beside, "base:file", copy, progress)
    return base, {} if copy is None else {base.sha256: copy}


def _adapter(path: Path, copy: Path, files: dict[str, Path], progress: Progress | None) -> Layer:
    if not path.is_file():
        raise NotFoundError(text("hub.no_such_file", path=path))
    arrival.check_gguf(path, str(path))
    sha256, size = read_through(path, copy, progress)
    files[sha256] = copy
    return Layer(kind="adapter", sha256=sha256, size=size)


def _notes(modelfile: Modelfile, manifest: Manifest) -> tuple[str, ...]:
    notes = [text("hub.line_unused", line=line[:60]) for line in modelfile.unused]
    notes += meaning(manifest.defaults.parameters).notes
    template = manifest.defaults.template
    if template is not None and is_go_template(template):
        notes.append(text("hub.go_template"))
    if manifest.of_kind("adapter"):
        notes.append(text("hub.adapter_kept"))
    return tuple(notes)


def write_modelfile(manifest: Manifest, store: ModelStore) -> str:
    """The Modelfile that would make this model again upon its own file."""
    from insula.hub.modelfile import render

    lines = [render(str(store.path(manifest)), manifest)]
    for layer in manifest.layers:
        path = store.blob_path(layer.sha256)
        if layer.kind == "adapter":
            lines.append(f"ADAPTER {path}")
        elif layer.kind == "licence":
            lines.append(f'LICENSE """{path.read_text(encoding="utf-8", errors="replace")}"""')
    return "\n".join(lines)
