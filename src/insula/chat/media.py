"""Messages with images and sound: parts as OpenAI writes them, checked.

    {"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}
    {"type": "input_audio", "input_audio": {"data": "…", "format": "wav"}}

Owns the checks. Nothing is fetched: a model that runs here takes data: addresses alone; a remote
server may be given any, and what it does with them is its own affair.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

from insula.chat.prompt import plain_messages
from insula.errors import ConfigError
from insula.types import Message

#: What a part's type needs of an engine.
KINDS = {"image_url": "vision", "input_audio": "audio"}
SOUNDS = ("wav", "mp3")
#: Bytes of one image or sound, decoded.
MAX_BYTES = 64 << 20


def needs(messages: Any) -> tuple[str, ...]:
    """The capabilities that the parts of the messages need: "vision", "audio", both or none."""
    if not isinstance(messages, Sequence):
        return ()
    found = {
        KINDS[part["type"]]
        for message in messages
        if isinstance(message, Mapping) and isinstance(message.get("content"), list | tuple)
        for part in message["content"]
        if isinstance(part, Mapping) and part.get("type") in KINDS
    }
    return tuple(sorted(found))


def media_messages(messages: Any, *, remote: bool) -> list[Message]:
    """The messages, with their parts checked. remote: addresses of any kind may be given.

    Raises ConfigError that names the message, and what it found instead of a part.
    """
    if not needs(messages):
        return plain_messages(messages)
    checked: list[Message] = []
    for at, message in enumerate(messages):
        if not needs([message]):
            checked += plain_messages([message])
            continue
        if not isinstance(message.get("role"), str):
            raise ConfigError(f"messages[{at}]: found no role; each has a role and content")
        parts = [_part(f"messages[{at}]", part, remote) for part in message["content"]]
        checked.append({**message, "content": parts})
    return checked


def _part(where: str, part: Any, remote: bool) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "image_url":
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, Mapping) else image
        if not isinstance(url, str):
            raise ConfigError(f"{where}: image_url has no url")
        if not remote:
            _check_image(where, url)
        return {"type": "image_url", "image_url": {"url": url}}
    if kind == "input_audio":
        sound = part.get("input_audio")
        data = sound.get("data") if isinstance(sound, Mapping) else None
        shape = sound.get("format") if isinstance(sound, Mapping) else None
        if not isinstance(data, str) or shape not in SOUNDS:
            raise ConfigError(
                f"{where}: input_audio needs data in base64 and a format of {', '.join(SOUNDS)}"
            )
        _decoded(where, data)
        return {"type": "input_audio", "input_audio": {"data": data, "format": shape}}
    raise ConfigError(
        f"{where} has a part of type {kind!r:.40}; allowed: text, image_url, input_audio"
    )


def _check_image(where: str, url: str) -> None:
    head, comma, data = url.partition(",")
    if not (head.startswith("data:image/") and head.endswith(";base64") and comma):
        raise ConfigError(
            f"{where}: the image is at {url[:40]!r}; allowed is data:image/…;base64,… (nothing is "
            "fetched from elsewhere; read the file and encode it)"
        )
    _decoded(where, data)


def _decoded(where: str, data: str) -> None:
    if len(data) > MAX_BYTES // 3 * 4:
        raise ConfigError(f"{where}: an image or sound is longer than {MAX_BYTES >> 20} MiB")
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(f"{where}: the data is not base64") from None
