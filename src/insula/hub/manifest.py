"""What one name in the store means, as plain data and as the JSON that is written.

Owns the two schemas: 1, of one file; 2, which may add layers (a split model's later parts, an
adapter, a projector, licences), defaults (what a Modelfile set) and a place (a file that stays
where it is). Both are read; 2 is
written. Refuses any document that is not exactly one of them: it may come from a stranger's bundle.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

SCHEMA = 2
#: Bytes of a manifest, at most; with a long system prompt and examples it is a few thousand.
MAX_BYTES = 4 << 20
MAX_LAYERS = 64
#: Of a split model, the first one included.
MAX_PARTS = 1 << 10
ROLES = ("system", "user", "assistant")
_HEX = re.compile(r"[0-9a-f]{64}")

LayerKind = Literal["part", "adapter", "projector", "licence"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A blob beside the weights, or a later part of them. `size` in bytes."""

    kind: LayerKind
    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a model brings of its own. `parameters` by the names that a Modelfile uses.

    `messages` are (role, content), said before every conversation.
    """

    parameters: Mapping[str, Any] = field(default_factory=dict)
    template: str | None = None
    system: str | None = None
    messages: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Place:
    """A file of the person's own that a name means where it is; `mtime_ns` as it was then."""

    path: str
    mtime_ns: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What one name means. `size` in bytes, `pulled` is UTC as ISO 8601 writes it.

    Of a split model sha256, size and file are the first part's; layers of the kind "part" are the
    others, in their order.
    """

    name: str
    file: str
    sha256: str
    size: int
    source: str
    licence: str | None
    pulled: str
    layers: tuple[Layer, ...] = ()
    defaults: Defaults = field(default_factory=Defaults)
    place: Place | None = None

    @property
    def blobs(self) -> dict[str, int]:
        """sha256 -> size of every blob of the store that this name needs."""
        own = {} if self.place is not None else {self.sha256: self.size}
        return own | {layer.sha256: layer.size for layer in self.layers}

    @property
    def parts(self) -> tuple[tuple[str, int], ...]:
        """(sha256, size) of each file of weights: one, or all of a split model."""
        rest = ((layer.sha256, layer.size) for layer in self.of_kind("part"))
        return ((self.sha256, self.size), *rest)

    @property
    def model_size(self) -> int:
        """Bytes of the weights, whatever number of files they are in."""
        return sum(size for _, size in self.parts)

    def of_kind(self, kind: LayerKind) -> list[Layer]:
        return [layer for layer in self.layers if layer.kind == kind]

    @property
    def digest(self) -> str:
        """A sha256 of everything that decides an answer: bytes, layers, defaults."""
        what = {
            "sha256": self.sha256,
            "layers": sorted((layer.kind, layer.sha256) for layer in self.layers),
            "defaults": asdict(self.defaults),
        }
        encoded = json.dumps(what, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(encoded.encode()).hexdigest()


def is_sha256(value: object) -> bool:
    """Whether `value` is 64 lower-case hexadecimal digits."""
    return isinstance(value, str) and _HEX.fullmatch(value) is not None


def is_file_name(value: str) -> bool:
    """Whether `value` can only name a file in the folder where it is put."""
    bad = set(value) & set('/\\:*?"<>|')
    return bool(value) and len(value) <= 255 and value.isprintable() and not bad and value[0] != "."


def encode(manifest: Manifest) -> bytes:
    """The document, as schema 2."""
    document = {"schema": SCHEMA, **asdict(manifest)}
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"


def decode(data: bytes) -> Manifest:
    """Raises ValueError for bytes that are no manifest of schema 1 or 2."""
    if len(data) > MAX_BYTES:
        raise ValueError("too long")
    try:
        return from_plain(json.loads(data))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _encodes(value: object) -> None:
    """Raise ValueError for half a character (a lone surrogate) anywhere: no file could hold it."""
    json.dumps(value, ensure_ascii=False).encode()


def from_plain(raw: object) -> Manifest:
    """The manifest that a JSON document says. Raises ValueError."""
    document = _mapping(raw)
    _encodes(document)
    schema = document.pop("schema", None)
    if schema not in (1, SCHEMA) or isinstance(schema, bool):
        raise ValueError("schema")
    kinds: dict[str, tuple[type, ...]] = {
        **dict.fromkeys(("name", "file", "sha256", "source", "pulled"), (str,)),
        "size": (int,),
        "licence": (str, type(None)),
    }
    _checked(document, kinds, allowed=() if schema == 1 else ("layers", "defaults", "place"))
    _check_blob(document)
    if not is_file_name(document["file"]):
        raise ValueError("file")
    if schema == 1:
        return Manifest(**document)
    layers, place = document.get("layers", []), document.get("place")
    if not isinstance(layers, list):
        raise ValueError("layers")
    document["layers"] = tuple(_layer(layer) for layer in layers)
    later = sum(layer.kind == "part" for layer in document["layers"])
    if len(layers) - later > MAX_LAYERS or later >= MAX_PARTS or (later and place is not None):
        raise ValueError("layers")
    document["defaults"] = _defaults(document.get("defaults", {}))
    document["place"] = None if place is None else _place(place)
    return Manifest(**document)


def _layer(raw: object) -> Layer:
    layer = _mapping(raw)
    _checked(layer, {"kind": (str,), "sha256": (str,), "size": (int,)})
    _check_blob(layer)
    if layer["kind"] not in get_args(LayerKind):
        raise ValueError("layers")
    return Layer(**layer)


def _place(raw: object) -> Place:
    place = _mapping(raw)
    _checked(place, {"path": (str,), "mtime_ns": (int,)})
    if "\0" in place["path"]:
        raise ValueError("place")
    return Place(**place)


def _defaults(raw: object) -> Defaults:
    defaults = _mapping(raw)
    texts = (str, type(None))
    _checked(defaults, {}, allowed=("parameters", "template", "system", "messages"))
    parameters = _mapping(defaults.get("parameters", {}))
    if not all(is_parameter(value) for value in parameters.values()):
        raise ValueError("parameters")
    template, system = defaults.get("template"), defaults.get("system")
    if not isinstance(template, texts) or not isinstance(system, texts):
        raise ValueError("defaults")
    messages = defaults.get("messages", [])
    if not isinstance(messages, list):
        raise ValueError("messages")
    return Defaults(
        parameters=parameters,
        template=template,
        system=system,
        messages=tuple(_message(message) for message in messages),
    )


def _message(raw: object) -> tuple[str, str]:
    match raw:
        case [str(role), str(content)] if role in ROLES:
            return role, content
    raise ValueError("messages")


def is_parameter(value: object) -> bool:
    """Whether `value` may be a parameter's: a number, a text, yes or no, or a list of texts."""
    if isinstance(value, list):
        return len(value) <= 1000 and all(isinstance(item, str) for item in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str | bool | int)


def _mapping(raw: object) -> dict[str, Any]:
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise ValueError("not an object")
    return dict(raw)


def _checked(
    document: dict[str, Any], kinds: dict[str, tuple[type, ...]], allowed: tuple[str, ...] = ()
) -> None:
    """Raise ValueError unless the keys are those of `kinds`, rightly typed, and some allowed."""
    if not kinds.keys() <= document.keys() <= {*kinds, *allowed}:
        raise ValueError("keys")
    for key, types in kinds.items():
        if not isinstance(document[key], types) or isinstance(document[key], bool):
            raise ValueError(key)


def _check_blob(document: dict[str, Any]) -> None:
    if not is_sha256(document["sha256"]) or document["size"] < 0:
        raise ValueError("sha256 or size")
