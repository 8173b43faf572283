"""GET /api/tags and /api/ps, POST /api/show: which models there are, loaded, and in detail."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from insula.errors import NotFoundError
from insula.hub.store import ModelStore
from insula.server import state
from insula.server.caller import caller
from insula.server.catalogue import Catalogue, Facts, Served
from insula.server.schema import Body, read

#: When a model goes that stays.
_FOR_EVER = datetime.max.replace(tzinfo=UTC)


class ShowBody(Body):
    """verbose: nothing more is said."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    verbose: bool = False


async def tags(request: Request) -> Response:
    """All models that the caller may use."""
    catalogue, who = state.of(request).catalogue, caller(request.scope)

    def listed() -> list[dict[str, Any]]:
        return [_entry(catalogue, each) for each in catalogue.list() if who.may_use(each.name)]

    return JSONResponse({"models": await asyncio.to_thread(listed)})


async def ps(request: Request) -> Response:
    """Those in memory."""
    server, who = state.of(request), caller(request.scope)
    found = []
    for name, loaded in sorted(server.models.loaded.items()):
        if not who.may_use(name):
            continue
        when = _FOR_EVER
        if loaded.expires is not None:
            when = datetime.fromtimestamp(loaded.expires, UTC)
        found.append(
            {
                **_entry(server.catalogue, loaded.served),
                "size": loaded.bytes,
                "size_vram": 0,
                "expires_at": _written(when),
                "context_length": loaded.llm.model_info.n_ctx,
            }
        )
    return JSONResponse({"models": found})


async def show(request: Request) -> Response:
    """One model in detail."""
    server = state.of(request)
    body = await read(request, ShowBody, server.limits)
    served = server.catalogue.find(body.model)
    if not caller(request.scope).may_use(served.name):
        raise NotFoundError(f"model {body.model[:120]!r} not found")
    return JSONResponse(await asyncio.to_thread(_details, server.catalogue, served))


def _entry(catalogue: Catalogue, served: Served) -> dict[str, Any]:
    return {
        "name": served.name,
        "model": served.name,
        "modified_at": _written(served.since),
        "size": served.size,
        "digest": served.digest,
        "details": _kind(catalogue.facts(served)),
    }


def _kind(facts: Facts | None) -> dict[str, Any]:
    family = facts.arch if facts else ""
    return {
        "parent_model": "",
        "format": "gguf" if facts else "",
        "family": family,
        "families": [family] if family else [],
        "parameter_size": _short(facts.parameters) if facts else "",
        "quantization_level": facts.quantization if facts else "",
    }


def _details(catalogue: Catalogue, served: Served) -> dict[str, Any]:
    facts = catalogue.facts(served)
    own = served.manifest.defaults if served.manifest else None
    parameters = own.parameters if own else {}
    lines = [
        f"{name:<30} {value}"
        for name, values in parameters.items()
        for value in (values if isinstance(values, list) else [values])
    ]
    template = (own.template if own else None) or (facts.template if facts else None) or ""
    document: dict[str, Any] = {
        "modelfile": _modelfile(served, template, own.system if own else None, lines),
        "parameters": "\n".join(lines),
        "template": template,
        "details": _kind(facts),
        "model_info": dict(facts.metadata) if facts else {},
        "capabilities": _capabilities(facts, template),
        "modified_at": _written(served.since),
        "license": _licence(catalogue.store, served, facts),
    }
    if own is not None and own.system:
        document["system"] = own.system
    if own is not None and own.messages:
        document["messages"] = [{"role": role, "content": said} for role, said in own.messages]
    return document


def _capabilities(facts: Facts | None, template: str) -> list[str]:
    if facts is not None and facts.embeds:
        return ["embedding"]
    found = ["completion"]
    if template:  # calls are held to their schemas whatever the model was trained for
        found.append("tools")
    if "enable_thinking" in template or "reasoning_effort" in template:
        found.append("thinking")
    return found


def _modelfile(served: Served, template: str, system: str | None, parameters: list[str]) -> str:
    """What would make it again upon its own name; no path of this machine is told."""
    lines = [f"FROM {served.name}"]
    if template:
        lines.append(f'TEMPLATE """{template}"""')
    if system:
        lines.append(f'SYSTEM """{system}"""')
    lines += [f"PARAMETER {' '.join(line.split(maxsplit=1))}" for line in parameters]
    return "\n".join(lines)


def _licence(store: ModelStore, served: Served, facts: Facts | None) -> str:
    texts = []
    for layer in served.manifest.of_kind("licence") if served.manifest else []:
        texts.append(store.blob_path(layer.sha256).read_text(encoding="utf-8", errors="replace"))
    if texts:
        return "\n".join(texts)
    named = served.manifest.licence if served.manifest else None
    return named or (facts.licence if facts else None) or ""


def _short(count: int) -> str:
    """134.5M, 1.07B."""
    for unit, power in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= power:
            return (
                f"{count / power:.3g}{unit}"
                if count < 100 * power
                else f"{count / power:.1f}{unit}"
            )
    return str(count)


def _written(when: datetime) -> str:
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return when.isoformat().replace("+00:00", "Z")


#: For the OpenAPI document.
BODIES = {"show": ShowBody}
