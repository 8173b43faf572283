"""`insula list`: the models on this machine, ours and other programs'."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from insula.cli.failures import complain
from insula.cli.output import columns, note, say, say_json, size
from insula.errors import InsulaError, UnsupportedError
from insula.formats.gguf import GGUFFile
from insula.hub import catalog, local
from insula.hub.manifest import Manifest
from insula.hub.store import ModelStore
from insula.locale import text


def list_models(
    as_json: Annotated[bool, typer.Option("--json", help=text("help.json"))] = False,
) -> None:
    """The command."""
    store = ModelStore()
    manifests, faults = store.scan()
    others = [(model, _usable(model.path)) for model in local.find_models()]
    missing = [entry for name, entry in catalog.CATALOG.items() if store.get(name) is None]
    if as_json:
        references = store.references()
        own = [
            {
                **asdict(manifest),
                "model_size": manifest.model_size,
                "path": _path(manifest, store),
                "complete": store.is_whole(manifest),
                "references": references[manifest.sha256],
            }
            for manifest in manifests
        ]
        say_json(
            {
                "store": own,
                "local": [
                    {**asdict(model), "path": str(model.path), "usable": usable}
                    for model, usable in others
                ],
                "available": [
                    {"name": e.name, "size": e.size, "licence": e.licence} for e in missing
                ],
                "faults": [str(fault) for fault in faults],
            }
        )
        return
    for fault in faults:
        complain(str(fault))
    rows = [
        (
            manifest.name,
            size(manifest.model_size) if store.is_whole(manifest) else text("list.incomplete"),
            manifest.licence or "",
            manifest.place.path if manifest.place else text("list.origin_store"),
        )
        for manifest in manifests
    ]
    rows += [
        (model.name, size(model.size) if usable else text("list.unusable"), "", model.program)
        for model, usable in others
    ]
    rows += [
        (entry.name, size(entry.size), entry.licence, text("list.origin_catalogue"))
        for entry in missing
    ]
    header = (text("list.name"), text("list.size"), text("list.licence"), text("list.where"))
    say(columns(header, rows, right=(1,)))
    unusable = sum(not usable for _, usable in others)
    if unusable:
        note(text("list.unusable_count", count=unusable))


def _path(manifest: Manifest, store: ModelStore) -> str:
    """Where it is, or would be if it were whole."""
    try:
        return str(store.path(manifest))
    except InsulaError:
        return manifest.place.path if manifest.place else str(store.blob_path(manifest.sha256))


def _usable(path: Path) -> bool:
    """Whether the file is whole: another program may have left half a download there."""
    try:
        with GGUFFile.open(path, allow_split=True):
            return True
    except UnsupportedError:  # whole, and of a kind that another backend may know
        return True
    except InsulaError:
        return False
