"""Where the default model is on this machine, for the tests that need the real thing."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from insula.hub.catalog import CATALOG, DEFAULT_MODEL
from insula.hub.store import Manifest, ModelStore


def find_default_model() -> Path | None:
    """INSULA_TEST_MODEL, the user's store, or a developer's cache; checked by its digest."""
    entry = CATALOG[DEFAULT_MODEL]
    named = os.environ.get("INSULA_TEST_MODEL")
    store = ModelStore()
    for path in (
        Path(named) if named else None,
        store.blob_path(entry.sha256),
        Path.home() / ".cache" / "insula-dev" / entry.file,
    ):
        if path is not None and path.is_file() and path.stat().st_size == entry.size:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256:
                    return path
    return None


WHERE_TO_GET_IT = "the default model is not here: insula pull smollm2:135m, or INSULA_TEST_MODEL"


def store_with(model: Path) -> ModelStore:
    """The store below INSULA_HOME, made to have the default model, as after `insula pull`."""
    entry = CATALOG[DEFAULT_MODEL]
    store = ModelStore()
    store.prepare()
    part = store.partial / "part"
    part.symlink_to(model)
    part.replace(store.blob_path(entry.sha256))
    store.add(
        Manifest(
            name=entry.name,
            file=entry.file,
            sha256=entry.sha256,
            size=entry.size,
            source="test",
            licence=entry.licence,
            pulled="2026-01-01T00:00:00+00:00",
        )
    )
    return store
