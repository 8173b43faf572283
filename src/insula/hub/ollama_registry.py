"""What a model of an Ollama registry is made of: its manifest, and where its blobs are.

The registry speaks the routes of an OCI distribution (https://github.com/opencontainers/
distribution-spec): /v2/<namespace>/<model>/manifests/<tag>, then /v2/<…>/blobs/sha256:<hex>. A
layer's media type says what it is; one that is not known here is refused, because it could change
what the model answers. Asks INSULA_OLLAMA_REGISTRY, without an account.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from insula.config import settings
from insula.errors import ConfigError, DownloadError, UnsupportedError
from insula.hub.manifest import ROLES, is_parameter, is_sha256
from insula.hub.names import RegistryRef
from insula.hub.remote_file import Remote
from insula.hub.transport import Progress, Transport
from insula.locale import text

_PREFIX = "application/vnd.ollama.image."
#: Blobs that are kept as files, and those that are read and become the model's defaults.
FILES = ("model", "adapter", "projector", "license")
TEXTS = ("template", "system", "params", "messages")
_MANIFEST = (
    "application/vnd.docker.distribution.manifest.v2+json, "
    "application/vnd.oci.image.manifest.v1+json"
)
MAX_LAYERS = 64
MAX_TEXT = 1 << 20


@dataclass(frozen=True, kw_only=True)
class RegistryLayer:
    """One blob: `kind` is one of FILES or TEXTS, size in bytes."""

    kind: str
    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class RegistryModel:
    """A model at one moment. `layers` in the manifest's order, one of them of kind "model"."""

    ref: RegistryRef
    base: str
    layers: tuple[RegistryLayer, ...]

    @property
    def weights(self) -> RegistryLayer:
        return next(layer for layer in self.layers if layer.kind == "model")

    def remote(self, layer: RegistryLayer) -> Remote:
        return Remote(
            url=f"{self.base}/blobs/sha256:{layer.sha256}",
            name=f"{self.ref.model}:{self.ref.tag} {layer.kind}",
            sha256=layer.sha256,
            size=layer.size,
        )


def endpoint() -> str:
    """INSULA_OLLAMA_REGISTRY or the public one. ConfigError if it is not an http address."""
    value = settings().registry
    if not re.fullmatch(r"https?://[^\s/?#@]+(?:/[^\s?#]*)?", value):
        raise ConfigError(text("hub.bad_registry", value=value[:200]))
    return value


def look(
    transport: Transport, ref: RegistryRef, *, progress: Progress | None = None
) -> RegistryModel:
    """Ask the registry. Raises NotFoundError, OfflineError, DownloadError, UnsupportedError."""
    base = f"{endpoint()}/v2/{ref.namespace}/{ref.model}"
    body, _ = transport.document(
        f"{base}/manifests/{ref.tag}", {"Accept": _MANIFEST}, progress=progress
    )
    try:
        layers = [_layer(raw) for raw in json.loads(body)["layers"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DownloadError(text("hub.not_a_registry", endpoint=endpoint())) from None
    weights = sum(layer.kind == "model" for layer in layers)

    if len(layers) > MAX_LAYERS:
        raise DownloadError(text("hub.not_a_registry", endpoint=endpoint()))
    for layer in layers:
        if layer.kind not in (*FILES, *TEXTS):
            raise UnsupportedError(
                text("hub.unknown_layer", name=ref.store_name, kind=layer.kind[:80])
            )
    if weights != 1:
        raise UnsupportedError(text("hub.weights_layers", name=ref.store_name, count=weights))
    return RegistryModel(ref=ref, base=base, layers=tuple(layers))


def _layer(raw: Any) -> RegistryLayer:
    kind, digest, size = raw["mediaType"], raw["digest"], raw["size"]
    sha256 = str(digest).removeprefix("sha256:")
    if not isinstance(kind, str) or not is_sha256(sha256) or not isinstance(size, int) or size < 0:
        raise ValueError("layer")
    return RegistryLayer(kind=kind.removeprefix(_PREFIX), sha256=sha256, size=size)


def read_parameters(data: bytes) -> dict[str, Any]:
    """What a params layer says, null left out. Raises ValueError."""
    found = json.loads(data)
    if not isinstance(found, dict):
        raise ValueError("params")
    kept = {key: value for key, value in found.items() if value is not None}
    if not all(is_parameter(value) for value in kept.values()):
        raise ValueError("params")
    return kept


def read_messages(data: bytes) -> tuple[tuple[str, str], ...]:
    """What a messages layer says. Raises ValueError."""
    found = json.loads(data)
    if not isinstance(found, list):
        raise ValueError("messages")
    pairs = []
    for message in found:
        match message:
            case {"role": str(role), "content": str(content)} if role in ROLES:
                pairs.append((role, content))
            case _:
                raise ValueError("messages")
    return tuple(pairs)
