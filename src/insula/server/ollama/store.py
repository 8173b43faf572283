"""POST /api/pull and /api/copy, DELETE /api/delete: which models are in the store.

A pull names a model of the catalogue, of a Hugging Face hub or of an Ollama registry; an address, a
file or a wheel is the administrator's to fetch, at the terminal (docs/server.md).
"""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import Request
from fastapi.responses import Response
from pydantic import Field

from insula.errors import ConfigError, NotFoundError
from insula.hub import catalog
from insula.hub.create import new_name
from insula.hub.manifest import Manifest
from insula.hub.names import REGISTRY_HOSTS, HubRef, RegistryRef, parse_reference, parse_store_name
from insula.hub.pull import pull as fetch
from insula.hub.transport import Progress
from insula.server import state
from insula.server.errors import RefusalError, unsupported
from insula.server.generation import answering
from insula.server.ollama.progress import told
from insula.server.schema import Body, read
from insula.server.wire import Wire

Name = Annotated[str, Field(min_length=1, max_length=512)]


class PullBody(Body):
    """insecure: addresses are what they are; nothing is relaxed."""

    model: Name
    insecure: bool = False
    stream: bool = True


class CopyBody(Body):
    """A second name for what has one."""

    source: Name
    destination: Name


class DeleteBody(Body):
    """A name to forget."""

    model: Name


async def pull(request: Request) -> Response:
    """Bring a model, telling how far it is."""
    server = state.of(request)
    body = await read(request, PullBody, server.limits)
    if body.insecure:
        raise unsupported("insecure", "the registry's address is the server's setting")
    name = fetchable(body.model)

    async def work(wire: Wire) -> None:
        def bring(progress: Progress) -> Manifest:
            return fetch(name, store=server.catalogue.store, progress=progress)

        await told(wire, bring, stream=body.stream)
        if body.stream:
            await wire.event({"status": "success"}, form="ndjson")
            await wire.end()
        else:
            await wire.whole({"status": "success"})

    return answering(request, "ollama", work)


def fetchable(name: str) -> str:
    """What `pull` takes for a name as Ollama's users write it: llama3.2:1b is the registry's.

    Raises RefusalError for what a client may not have fetched, ConfigError for no name.
    """
    if catalog.find(name) is not None:
        return name
    reference = parse_reference(name)
    if isinstance(reference, HubRef | RegistryRef):
        return name
    if reference is not None:
        raise RefusalError(
            403, "model: an address is not fetched for a client; pull it at the terminal"
        )
    parts = parse_store_name(name).parts
    if len(parts) > 2:
        raise ConfigError(f"model: found {name[:80]!r}; allowed are names such as llama3.2:1b")
    return (
        f"{REGISTRY_HOSTS[0]}/{name}" if len(parts) == 2 else f"{REGISTRY_HOSTS[0]}/library/{name}"
    )


async def copy(request: Request) -> Response:
    """Give a model a second name."""
    server = state.of(request)
    body = await read(request, CopyBody, server.limits)
    source = server.catalogue.find(body.source)
    if source.manifest is None:
        raise NotFoundError(f"model {body.source[:120]!r} is not of the store; it cannot be copied")
    store = server.catalogue.store
    target = new_name(body.destination)
    await asyncio.to_thread(store.copy, source.name, target, replacing=True)
    return Response(status_code=200)


async def delete(request: Request) -> Response:
    """Forget a name, and the files that no other name needs. Not while it answers."""
    server = state.of(request)
    body = await read(request, DeleteBody, server.limits)
    found = server.catalogue.find(body.model)
    if found.manifest is None or found.name in server.catalogue.named:
        raise RefusalError(
            409, "this model was named when the server started; it is not deleted here"
        )
    if not await server.models.unload(found.name):
        raise RefusalError(409, "the model is answering; ask again when it is done", retry_after=5)
    await asyncio.to_thread(server.catalogue.store.remove, found.name)
    return Response(status_code=200)


#: For the OpenAPI document.
BODIES = {"pull": PullBody, "copy": CopyBody, "delete": DeleteBody}
