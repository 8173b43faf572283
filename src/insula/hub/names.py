"""What a model may be called, and nothing about where it is.

Two kinds of name: a store name, `smollm2:135m` or `hf.co/owner/repo:Q4_K_M`, which is also a
path of safe segments under the store; and a reference to a repository on a Hugging Face hub,
`hf.co/owner/repo[@revision][:quant]`, `hf.co/owner/repo/file.gguf`, or such a page's address.
Every segment matches SEGMENT, so no name can leave the folder that it names a place in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from insula.errors import ConfigError
from insula.locale import text

SEGMENT = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._@+-]{0,158}[A-Za-z0-9_])?")
# Windows gives these names to devices, whatever the extension.
_DEVICES = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)
HUB_HOSTS = ("hf.co", "huggingface.co", "www.huggingface.co")
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
