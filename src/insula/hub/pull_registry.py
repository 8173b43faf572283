"""A model of an Ollama registry into the store: weights and what comes with them."""

from __future__ import annotations

import hashlib

from insula.errors import ChecksumError, DownloadError
from insula.hub import arrival, ollama_registry, signatures
from insula.hub.manifest import Defaults, Layer, LayerKind, Manifest
from insula.hub.names import RegistryRef
from insula.hub.ollama_registry import RegistryLayer, RegistryModel
from insula.hub.store import ModelStore
from insula.hub.transport import Progress, Retry, Transfer, Transport, shown
from insula.locale import text

_KINDS: dict[str, LayerKind] = {
    "adapter": "adapter",
    "projector": "projector",
    "license": "licence",
}


def pull_registry(
    ref: RegistryRef, store: ModelStore, progress: Progress | None, retry: Retry | None
) -> Manifest:
    """Fetch what `ref` means now. Raises as `pull.pull`."""
    signatures.refuse_unsignable(ref.store_name)
    with Transport(retry=retry, takes_token=False) as transport:
        if progress is not None:
            progress(Transfer(phase="connect", name=ref.store_name))
        model = ollama_registry.look(transport, ref, progress=progress)
        weights = model.weights
        texts = {
            layer.sha256: _document(transport, model, layer, progress)
            for layer in model.layers
            if layer.kind in (*ollama_registry.TEXTS, "license")
        }
        manifest = Manifest(
            name=ref.store_name,
            file=f"{ref.model}-{ref.tag}.gguf",
            sha256=weights.sha256,
            size=weights.size,
            source=f"{shown(model.base)}:{ref.tag}",
            licence=_licence(model, texts),
            pulled=arrival.now(),
            layers=tuple(
                Layer(kind=_KINDS[layer.kind], sha256=layer.sha256, size=layer.size)
                for layer in model.layers
                if layer.kind in _KINDS
            ),
            defaults=_defaults(model, texts),
        )
        if arrival.already(store, manifest, progress):
            return manifest
        files = [layer for layer in model.layers if layer.kind in ollama_registry.FILES]
        remotes = [model.remote(layer) for layer in files]
        arrival.bring(transport, store, manifest, remotes, progress)
    return manifest


def _document(
    transport: Transport, model: RegistryModel, layer: RegistryLayer, progress: Progress | None
) -> bytes:
    """A small blob, verified."""
    remote = model.remote(layer)
    if layer.size > ollama_registry.MAX_TEXT:
        raise DownloadError(text("hub.document_too_large", url=shown(remote.url)))
    data, _ = transport.document(remote.url, progress=progress)
    found = hashlib.sha256(data).hexdigest()
    if found != layer.sha256:
        raise ChecksumError(
            text("hub.wrong_checksum", name=remote.name, expected=layer.sha256, found=found)
        )
    return data


def _defaults(model: RegistryModel, texts: dict[str, bytes]) -> Defaults:
    def of(kind: str) -> list[bytes]:
        return [texts[layer.sha256] for layer in model.layers if layer.kind == kind]

    parameters: dict[str, object] = {}
    messages: list[tuple[str, str]] = []
    try:
        for data in of("params"):
            parameters |= ollama_registry.read_parameters(data)
        for data in of("messages"):
            messages += ollama_registry.read_messages(data)
        template = [data.decode() for data in of("template")]
        system = [data.decode() for data in of("system")]
    except (ValueError, RecursionError):
        raise DownloadError(text("hub.bad_layer", name=model.ref.store_name)) from None
    return Defaults(
        parameters=parameters,
        template=template[-1] if template else None,
        system=system[-1] if system else None,
        messages=tuple(messages),
    )


def _licence(model: RegistryModel, texts: dict[str, bytes]) -> str | None:
    """The first line of the first licence, which is its name."""
    for layer in model.layers:
        if layer.kind == "license":
            return licence_title(texts[layer.sha256])
    return None


def licence_title(data: bytes) -> str | None:
    """The first line that says something, of a licence's text."""
    for line in data.decode(errors="replace").splitlines():
        if line.strip():
            return line.strip()[:80]
    return None
