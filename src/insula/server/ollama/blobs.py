"""HEAD and POST /api/blobs/{digest}: files that a creation will name.

A file is taken only under the digest of its own bytes, into the store's workplace for transfers; it
becomes a model's with /api/create, or goes with the next prune.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from pathlib import Path

from fastapi import Request
from fastapi.responses import Response

from insula.hub.manifest import is_sha256
from insula.hub.remote_file import need_space
from insula.hub.store import ModelStore
from insula.server import state
from insula.server.errors import RefusalError
from insula.server.limits import check_framing

#: Bytes of one file at most: larger models come by other ways.
MOST = 1 << 40


def blob(store: ModelStore, digest: str) -> Path | None:
    """The file with this digest: one that was uploaded, or a model's own. Raises RefusalError."""
    sha256 = _sha256(digest)
    uploaded = _uploaded(store, sha256)
    if uploaded.is_file():
        return uploaded
    return store.blob_path(sha256) if store.has_blob(sha256) else None


async def has_blob(request: Request) -> Response:
    """200 or 404."""
    store = state.of(request).catalogue.store
    found = blob(store, request.path_params["digest"])
    return Response(status_code=200 if found else 404)


async def take_blob(request: Request) -> Response:
    """201 when all of it came and is what it was called."""
    store, limits = state.of(request).catalogue.store, state.of(request).limits
    sha256 = _sha256(request.path_params["digest"])
    check_framing(request)
    length = request.headers.get("content-length", "")
    if not length:
        raise RefusalError(411, "say how long the file is (content-length)")
    if int(length) > MOST:
        raise RefusalError(413, "the file is too large")
    store.prepare()
    need_space(store.partial, int(length))
    part = store.partial / f"upload-{secrets.token_hex(8)}"
    found = hashlib.sha256()
    try:
        with part.open("xb") as file:
            part.chmod(0o600)
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(limits.body_time) as clock:
                async for piece in request.stream():
                    found.update(piece)
                    await asyncio.to_thread(file.write, piece)
                    clock.reschedule(loop.time() + limits.body_time)
        if found.hexdigest() != sha256:
            raise RefusalError(400, "digest: the bytes that came have another one")
        part.replace(_uploaded(store, sha256))
    except TimeoutError:
        raise RefusalError(408, f"nothing came for {limits.body_time:g} s") from None
    finally:
        part.unlink(missing_ok=True)
    return Response(status_code=201)


def _uploaded(store: ModelStore, sha256: str) -> Path:
    return store.partial / f"blob-{sha256}"


def _sha256(digest: str) -> str:
    sha256 = digest.removeprefix("sha256:").removeprefix("sha256-")
    if not is_sha256(sha256):
        raise RefusalError(
            400, "digest: allowed is sha256: and 64 hexadecimal digits", param="digest"
        )
    return sha256
