"""`insula serve`: the models of this machine for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from insula.cli.output import note, say, write
from insula.cli.transfers import TransferDisplay
from insula.engine.load_elsewhere import is_address, is_folder
from insula.errors import UnsupportedError
from insula.hub.resolve import locate
from insula.locale import text

_EVENTS = {
    "loading": "serve.loading",
    "loaded": "serve.loaded",
    "unloaded": "serve.unloaded",
    "failed": "serve.failed",
}


def serve(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help=text("help.serve_models"))
    ] = None,
    host: Annotated[str | None, typer.Option("--host", help=text("help.serve_host"))] = None,
    port: Annotated[int | None, typer.Option("--port", "-p", help=text("help.serve_port"))] = None,
    only: Annotated[bool | None, typer.Option("--only", help=text("help.serve_only"))] = None,
    allow_open: Annotated[
        bool | None, typer.Option("--allow-open", help=text("help.serve_allow_open"))
    ] = None,
    tls_cert: Annotated[
        str | None, typer.Option("--tls-cert", metavar="FILE", help=text("help.serve_tls_cert"))
    ] = None,
    tls_key: Annotated[
        str | None, typer.Option("--tls-key", metavar="FILE", help=text("help.serve_tls_key"))
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help=text("help.serve_memory"))
    ] = None,
    keep_alive: Annotated[
        str | None,
        typer.Option("--keep-alive", metavar="TIME", help=text("help.serve_keep_alive")),
    ] = None,
    max_running: Annotated[
        int | None, typer.Option("--max-running", metavar="N", help=text("help.serve_max_running"))
    ] = None,
    max_waiting: Annotated[
        int | None, typer.Option("--max-waiting", metavar="N", help=text("help.serve_max_waiting"))
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help=text("help.serve_config"))
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help=text("help.serve_print_config"))
    ] = False,
    ctx: Annotated[
        int | None, typer.Option("--ctx", "-c", metavar="N", help=text("help.ctx"))
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", "-t", metavar="N", help=text("help.threads"))
    ] = None,
    kv_type: Annotated[
        str, typer.Option("--kv-type", metavar="TYPE", help=text("help.kv_type"))
    ] = "f16",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help=text("help.quiet"))] = False,
) -> None:
    """The command."""
    try:
        from starlette.middleware import Middleware

        from insula.server import errors, logs, routes, run, settings
        from insula.server.app import create_app
        from insula.server.catalogue import Catalogue
        from insula.server.denied import Denied
        from insula.server.guards import Guards
        from insula.server.models import ModelEvent
        from insula.server.options import Limits, ServeOptions
    except ModuleNotFoundError as error:
        raise UnsupportedError(text("serve.no_extra", module=error.name)) from error
    flags = {
        "models": models or None,
        "host": host,
        "port": port,
        "only": only,
        "allow_open": allow_open,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "memory": memory,
        "keep_alive": keep_alive,
        "max_running": max_running,
        "max_waiting": max_waiting,
    }
    loaded = settings.load(flags, file=config)
    if print_config:
        write(settings.to_toml(loaded))
        return
    found = loaded.settings
    logs.set_up(form=found.log, level=found.log_level)
    load = {"n_ctx": ctx, "n_threads": threads, "kv_type": kv_type}
    options = ServeOptions(
        models=found.models,
        only=found.only,
        memory=found.memory,
        keep_alive=found.keep_alive,
        max_running=found.max_running,
        max_waiting=found.max_waiting,
        grace=found.grace,
        limits=Limits(
            body=found.body,
            body_time=found.body_seconds,
            head=found.head,
            head_time=found.head_seconds,
            stall=found.stall_seconds,
        ),
        load={name: value for name, value in load.items() if value is not None},
    )

    def shape(path: str, denied: Denied) -> dict[str, Any]:
        told = errors.RefusalError(denied.status, denied.message, code=denied.code)
        return errors.body(routes.family(path), told)

    guards = Guards.open(found, find=routes.find, methods=routes.methods, shape=shape)
    for warning in guards.warnings:
        note(warning)
    with TransferDisplay(quiet=quiet) as display:
        for name in options.models:
            if not is_address(name) and not is_folder(name):
                locate(name, allow_download=True, progress=display)
    catalogue = Catalogue(options.models, only=options.only)
    listener = run.bind(found.host, found.port)

    def told(event: ModelEvent) -> None:
        if not quiet:
            seconds = f"{event.seconds:.1f}"
            key = _EVENTS[event.kind]
            note(text(key, model=event.model, seconds=seconds, reason=event.reason))

    app = create_app(
        options,
        catalogue=catalogue,
        on_event=told,
        middleware=[Middleware(guards.around)],
    )
    cert, key = found.tls_cert, found.tls_key
    tls = None if cert is None or key is None else (cert, key)
    where = run.url(listener, found.host, tls=tls is not None)

    def ready() -> None:
        names = list(catalogue.named) or [served.name for served in catalogue.list()]
        say(text("serve.listening", url=where))
        if not names:
            say(text("serve.no_models"))
            return
        say(text("serve.models", names=", ".join(names)))
        body = f'{{"model": "{names[0]}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
        say(text("serve.try_it"))
        say(f"  curl {where}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'")
        say(text("serve.stop_it"))

    app.state.server.ready = ready
    run.serve(app, options, listener, tls=tls)
    if not quiet:
        note(text("serve.stopped"))
