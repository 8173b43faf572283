"""POST /api/create: a model out of another, or out of an uploaded file, and what is said on top."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import Request
from fastapi.responses import Response
from pydantic import Field

from insula.errors import ConfigError
from insula.hub import parameters
from insula.hub.create import Created, new_name
from insula.hub.create import create as make
from insula.hub.manifest import ROLES
from insula.hub.modelfile import Modelfile
from insula.hub.transport import Progress
from insula.server import state
from insula.server.errors import RefusalError, unsupported
from insula.server.generation import answering
from insula.server.ollama.blobs import blob
from insula.server.ollama.progress import told
from insula.server.ollama.store import fetchable
from insula.server.schema import Body, read
from insula.server.state import Server
from insula.server.wire import Wire


class CreateBody(Body):
    """from: a model; or files: one GGUF file by its digest. The rest is a Modelfile's."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    from_: Annotated[str | None, Field(max_length=512, alias="from")] = None
    files: dict[str, str] | None = None
    adapters: dict[str, str] | None = None
    template: str | None = None
    system: str | None = None
    license: str | list[str] | None = None
    parameters: dict[str, Any] | None = None
    messages: list[dict[str, Any]] | None = None
    quantize: str | None = None
    stream: bool = True


async def create(request: Request) -> Response:
    """Make it, telling how far it is."""
    server = state.of(request)
    body = await read(request, CreateBody, server.limits)
    name = new_name(body.model)
    if body.quantize:
        raise unsupported("quantize", "quantize it first (insula quantize)")
    if body.adapters:
        raise unsupported("adapters", "merge them first (insula merge)")
    modelfile = Modelfile(
        base=_base(server, body),
        parameters=_parameters(body.parameters or {}),
        template=body.template,
        system=body.system,
        licences=(body.license,) if isinstance(body.license, str) else tuple(body.license or ()),
        messages=tuple(_message(message) for message in body.messages or ()),
    )

    async def work(wire: Wire) -> None:
        def build(progress: Progress) -> Created:
            store = server.catalogue.store
            # A folder in which no relative path of a request's leads anywhere.
            return make(name, modelfile, folder=Path("/"), store=store, progress=progress)

        await server.models.unload(name) if _known(server, name) else None
        created = await told(wire, build, stream=body.stream)
        last: dict[str, Any] = {"status": "success"}
        if created.notes:
            last["notes"] = list(created.notes)
        if body.stream:
            await wire.event(last, form="ndjson")
            await wire.end()
        else:
            await wire.whole(last)

    return answering(request, "ollama", work)


def _known(server: Server, name: str) -> bool:
    return name in server.models.loaded


def _base(server: Server, body: CreateBody) -> str:
    """What FROM means: a name, never a path that a request gives. Raises RefusalError."""
    if (body.from_ is None) == (not body.files):
        raise RefusalError(400, "from: give a model, or in files one uploaded file", param="from")
    if body.from_ is not None:
        try:
            return server.catalogue.find(body.from_).target
        except LookupError:
            return fetchable(body.from_)
    assert body.files is not None
    if len(body.files) != 1:
        raise RefusalError(400, "files: allowed is one GGUF file", param="files")
    [digest] = body.files.values()
    path = blob(server.catalogue.store, digest)
    if path is None:
        raise RefusalError(400, "files: nothing with this digest was uploaded", param="files")
    return str(path)


def _parameters(asked: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in asked.items():
        for each in value if isinstance(value, list) else [value]:
            parameters.add(found, name, str(each))
    return found


def _message(message: Mapping[str, Any]) -> tuple[str, str]:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES or not isinstance(content, str):
        raise ConfigError(f"messages: allowed are a role of {', '.join(ROLES)} and a content")
    return str(role), content


#: For the OpenAPI document.
BODIES = {"create": CreateBody}
