"""Which models a caller may name, and what is behind a name.

Those named at the start, by the names that `insula list` shows (a file by its own, without .gguf),
and those of the store. Never a path, an address, or another program's file that a request names:
what is not in this list does not exist. Nothing is loaded here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from insula.errors import ConfigError, InsulaError, NotFoundError
from insula.formats.gguf import GGUFFile
from insula.hub import advice, catalog
from insula.hub.manifest import Manifest
from insula.hub.names import REGISTRY_HOSTS
from insula.hub.resolve import locate
from insula.hub.store import ModelStore
from insula.models.load import summarize

#: A clock for what has no date.
_NEVER = datetime.fromtimestamp(0, UTC)
_LIBRARY = f"{REGISTRY_HOSTS[0]}/library/"


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model by the name that clients use. target: what `LLM` takes. path: its file, None for a
    model that is not one (a server's). size in bytes, 0 where unknown."""

    name: str
    target: str
    path: Path | None
    size: int
    since: datetime
    manifest: Manifest | None = None

    @property
    def digest(self) -> str:
        """Of its bytes, as hexadecimal digits; empty where nobody computed it."""
        return self.manifest.sha256 if self.manifest else ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a model's file says of itself. kv_bytes: per token of context, None if unknown."""

    arch: str
    parameters: int
    quantization: str
    context: int | None
    licence: str | None
    template: str | None
    embeds: bool
    kv_bytes: int | None
    metadata: Mapping[str, Any]


class Catalogue:
    """names: those given at the start, paths among them. only: no others."""

    def __init__(
        self, names: Sequence[str], *, only: bool = False, store: ModelStore | None = None
    ) -> None:
        """Raises NotFoundError and what else `locate` raises, for a name that leads nowhere."""
        self.store = store or ModelStore()
        self.only = only
        self.named: dict[str, Served] = {}
        self._facts: dict[tuple[Path, int, int], Facts] = {}
        for name in names:
            served = _named(name, self.store)
            if served.name in self.named:
                raise ConfigError(f"two models have the name {served.name}; name one of them")
            self.named[served.name] = served

    @property
    def default(self) -> Served | None:
        """What a route without a model's name means: the first named at the start, or the only
        one there is."""
        if self.named:
            return next(iter(self.named.values()))
        every = self.list()
        return every[0] if len(every) == 1 else None

    def list(self) -> list[Served]:
        """Named ones first, then the store's, by name."""
        found = dict(self.named)
        if not self.only:
            for manifest in self.store.scan()[0]:
                if manifest.name not in found and self.store.is_whole(manifest):
                    found[manifest.name] = _stored(manifest, self.store)
        return list(found.values())

    def find(self, name: str) -> Served:
        """Raises NotFoundError that says what to do."""
        for known in (name, name.removesuffix(":latest"), f"{name}:latest"):
            if known in self.named:
                return self.named[known]
        if not self.only:
            manifest = self._in_store(name)
            if manifest is not None:
                if manifest.name in self.named:
                    return self.named[manifest.name]
                return _stored(manifest, self.store)
        shown = name[:120]
        if not self.only and catalog.find(name) is not None:
            raise NotFoundError(f"model {shown!r} is not here yet; pull it first")
        raise NotFoundError(f"model {shown!r} not found; list the models to see which there are")

    def facts(self, served: Served) -> Facts | None:
        """None for a model whose file is not here or says nothing. Cached by what the file is."""
        if served.path is None or not served.path.is_file():
            return None
        stat = served.path.stat()
        key = (served.path, stat.st_size, stat.st_mtime_ns)
        if key not in self._facts:
            try:
                self._facts[key] = _facts(served.path)
            except InsulaError:
                return None
        return self._facts[key]

    def _in_store(self, name: str) -> Manifest | None:
        entry = catalog.find(name)
        for known in (entry.name if entry else name, f"{_LIBRARY}{name}"):
            try:
                manifest = self.store.get(known)
            except ConfigError:  # no name that the store could have
                continue
            if manifest is not None and self.store.is_whole(manifest):
                return manifest
        return None


def _stored(manifest: Manifest, store: ModelStore) -> Served:
    return Served(
        name=manifest.name,
        target=manifest.name,
        path=store.path(manifest),
        size=manifest.size,
        since=_when(manifest.pulled),
        manifest=manifest,
    )


def _named(name: str, store: ModelStore) -> Served:
    if name.startswith("remote:"):
        return Served(
            name=name.partition("#")[2] or "remote", target=name, path=None, size=0, since=_NEVER
        )
    folder = Path(name).expanduser()
    if folder.is_dir():
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        return Served(name=folder.resolve().name, target=name, path=None, size=size, since=_NEVER)
    found = locate(name, store=store)
    if found.manifest is not None:
        return _stored(found.manifest, store)
    stat = found.path.stat()
    return Served(
        name=found.path.stem if found.origin == "path" else found.name,
        target=name,
        path=found.path,
        size=stat.st_size,
        since=datetime.fromtimestamp(stat.st_mtime, UTC),
    )


def _when(written: str) -> datetime:
    try:
        found = datetime.fromisoformat(written)
    except ValueError:
        return _NEVER
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _facts(path: Path) -> Facts:
    with GGUFFile.open(path) as file:
        summary = summarize(file)
        metadata = file.metadata
        template = metadata.get("tokenizer.chat_template")
        return Facts(
            arch=summary.arch,
            parameters=summary.parameters,
            quantization=summary.quantization,
            context=summary.context_length,
            licence=summary.license,
            template=template if isinstance(template, str) else None,
            embeds=f"{summary.arch}.pooling_type" in metadata,
            kv_bytes=advice.kv_bytes_per_token(metadata),
            metadata={name: value for name, value in metadata.items() if _is_plain(value)},
        )


def _is_plain(value: Any) -> bool:
    """A number, a text or yes and no: what a listing shows. Vocabularies are not kept."""
    return isinstance(value, str | bool | int | float) and not (
        isinstance(value, str) and len(value) > 1000
    )
