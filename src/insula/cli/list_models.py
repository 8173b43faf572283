"""`insula list`: the models on this machine, ours and other programs'."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from insula.cli.failures import complain
from insula.cli.output import columns, say, say_json, size
from insula.hub import catalog, local
from insula.hub.store import ModelStore
from insula.locale import text


def list_models(
    as_json: Annotated[bool, typer.Option("--json", help=text("help.json"))] = False,
) -> None:
    """The command."""
    store = ModelStore()
    manifests, faults = store.scan()
    others = local.find_models()
    missing = [entry for name, entry in catalog.CATALOG.items() if store.get(name) is None]
    if as_json:
        own = [
            {
                **asdict(manifest),
                "path": str(store.blob_path(manifest.sha256)),
                "complete": store.has_blob(manifest.sha256, manifest.size),
            }
            for manifest in manifests
        ]
        say_json(
            {
                "store": own,
                "local": [{**asdict(model), "path": str(model.path)} for model in others],
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
            size(manifest.size)
            if store.has_blob(manifest.sha256, manifest.size)
            else text("list.incomplete"),
            manifest.licence or "",
            text("list.origin_store"),
        )
        for manifest in manifests
    ]
    rows += [(model.name, size(model.size), "", model.program) for model in others]
    rows += [
        (entry.name, size(entry.size), entry.licence, text("list.origin_catalogue"))
        for entry in missing
    ]
    header = (text("list.name"), text("list.size"), text("list.licence"), text("list.where"))
    say(columns(header, rows, right=(1,)))
