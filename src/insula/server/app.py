"""The application: the routes of the table, and one object that they share.

`create_app` makes it without starting or loading anything; run.py listens. Whoever checks keys and
origins is given as middleware, outermost first, and sees a request before any handler and before
its body. A path or method that is not in the table is refused in the family's own shape.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from insula import __version__
from insula.server import errors
from insula.server.admission import Admission
from insula.server.catalogue import Catalogue
from insula.server.errors import RefusalError
from insula.server.metrics import Metrics
from insula.server.models import ModelEvent, Models
from insula.server.options import ServeOptions
from insula.server.routes import ROUTES, Family, Route, family, methods
from insula.server.state import Server

#: Most threads for what may not block the event loop; they are made as they are needed.
THREADS = 64

Handler = Callable[[Request], Awaitable[Response]]


def create_app(
    options: ServeOptions,
    *,
    catalogue: Catalogue | None = None,
    middleware: Sequence[Middleware] = (),
    on_event: Callable[[ModelEvent], None] = lambda event: None,
) -> FastAPI:
    """The server as an ASGI application; `app.state.server` is its Server.

    Raises what Catalogue raises for models that are not there.
    """
    found = Catalogue(options.models, only=options.only) if catalogue is None else catalogue
    admission = Admission(running=options.max_running, waiting=options.max_waiting)

    def told(event: ModelEvent) -> None:
        metrics.model_event(event)
        on_event(event)

    models = Models(found, options, on_event=told)
    metrics = Metrics(models, admission)
    server = Server(
        options=options, catalogue=found, models=models, admission=admission, metrics=metrics
    )
    app = FastAPI(
        title="Insula",
        version=__version__,
        description="Language models of this machine, by OpenAI's, Ollama's and Anthropic's "
        "interfaces.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
        middleware=list(middleware),
        redirect_slashes=False,
        telemetry={"auto_configure": False},
    )
    app.state.server = server
    for route in ROUTES:
        _add(app, route)
    app.add_exception_handler(HTTPException, _not_there)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load what was named; at the end free everything."""
    server: Server = app.state.server
    # Loads, templates and embeddings each hold a thread; none is to wait for another's.
    threads = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="insula-server")
    asyncio.get_running_loop().set_default_executor(threads)
    server.loading = set(server.catalogue.named)
    task = asyncio.create_task(_preload(server))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await server.models.close()


async def _preload(server: Server) -> None:
    for name in list(server.catalogue.named):
        try:
            async with server.models.lease(name):
                server.loading.discard(name)
        except Exception as error:  # noqa: BLE001 - whoever started the server is told
            server.failure = error
            server.stop()
            return
    server.ready()


def _add(app: FastAPI, route: Route) -> None:
    module, _, function = route.handler.partition(":")
    handler: Handler = getattr(importlib.import_module(f"insula.server.{module}"), function)
    name = f"{route.method.lower()} {route.path}"
    app.add_api_route(
        route.path,
        _endpoint(route, handler),
        methods=[route.method],
        name=name,
        operation_id=name.replace(" ", "_").replace("/", "_").replace("{", "").replace("}", ""),
        summary=(handler.__doc__ or "").strip().partition("\n")[0],
        tags=[route.family],
        response_model=None,
        response_class=Response,
        openapi_extra={"x-insula-scope": route.scope, **_described(handler)},
    )


def _endpoint(route: Route, handler: Handler) -> Handler:
    async def endpoint(request: Request) -> Response:
        server: Server = request.app.state.server
        try:
            response = await handler(request)
        except Exception as error:  # noqa: BLE001 - every error has an answer
            response = errors.response(route.family, error)
        if not hasattr(response, "counts_itself"):
            server.metrics.requests.labels(route.path, response.status_code).inc()
        return response

    return endpoint


def _described(handler: Handler) -> dict[str, Any]:
    """The body that a handler reads, from its module's attribute BODIES."""
    bodies = getattr(importlib.import_module(handler.__module__), "BODIES", {})
    body = bodies.get(handler.__name__)
    if body is None:
        return {}
    schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


async def _not_there(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    whose: Family = family(path)
    allowed = methods(path)
    if error.status_code == 405 or (error.status_code == 404 and allowed):
        told = RefusalError(
            405, f"{request.method} is not served here; allowed: {', '.join(allowed)}"
        )
        response = errors.response(whose, told)
        response.headers["Allow"] = ", ".join(allowed)
        return response
    if error.status_code == 404:
        return errors.response(
            whose, RefusalError(404, "there is nothing at this path", code="no_route")
        )
    return errors.response(whose, RefusalError(error.status_code, str(error.detail)))
