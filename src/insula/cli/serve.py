"""`insula serve`: the models of this machine for other programs."""

from __future__ import annotations

from typing import Annotated

import typer

from insula.cli.output import note, say
from insula.cli.transfers import TransferDisplay
from insula.config import parse_size
from insula.engine.load_elsewhere import is_address, is_folder
from insula.errors import ConfigError, UnsupportedError
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
    host: Annotated[str, typer.Option("--host", help=text("help.serve_host"))] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", help=text("help.serve_port"))] = 11435,
    only: Annotated[bool, typer.Option("--only", help=text("help.serve_only"))] = False,
    allow_open: Annotated[
        bool, typer.Option("--allow-open", help=text("help.serve_allow_open"))
    ] = False,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help=text("help.serve_memory"))
    ] = None,
    keep_alive: Annotated[
        str, typer.Option("--keep-alive", metavar="TIME", help=text("help.serve_keep_alive"))
    ] = "5m",
    max_running: Annotated[
        int, typer.Option("--max-running", metavar="N", help=text("help.serve_max_running"))
    ] = 16,
    max_waiting: Annotated[
        int, typer.Option("--max-waiting", metavar="N", help=text("help.serve_max_waiting"))
    ] = 128,
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
        from insula.server import run
        from insula.server.app import create_app
        from insula.server.catalogue import Catalogue
        from insula.server.models import ModelEvent
        from insula.server.ollama.keep_alive import seconds_of
        from insula.server.options import ServeOptions
    except ModuleNotFoundError as error:
        raise UnsupportedError(text("serve.no_extra", module=error.name)) from error
    for name, value, least in (
        ("--max-running", max_running, 1),
        ("--max-waiting", max_waiting, 0),
    ):
        if not least <= value <= 10_000:
            raise ConfigError(text("serve.bad_count", name=name, value=value, least=least))
    if not run.is_loopback(host) and not allow_open:
        raise ConfigError(text("serve.open_refused", host=host))
    stay = seconds_of(keep_alive)
    assert stay != "default"
    load = {"n_ctx": ctx, "n_threads": threads, "kv_type": kv_type}
    options = ServeOptions(
        models=tuple(models or ()),
        only=only,
        memory=None if memory is None else parse_size(memory, name="--memory"),
        keep_alive=stay,
        max_running=max_running,
        max_waiting=max_waiting,
        load={name: value for name, value in load.items() if value is not None},
    )
    with TransferDisplay(quiet=quiet) as display:
        for name in options.models:
            if not is_address(name) and not is_folder(name):
                locate(name, allow_download=True, progress=display)
    catalogue = Catalogue(options.models, only=only)
    listener = run.bind(host, port)

    def told(event: ModelEvent) -> None:
        if not quiet:
            seconds = f"{event.seconds:.1f}"
            key = _EVENTS[event.kind]
            note(text(key, model=event.model, seconds=seconds, reason=event.reason))

    app = create_app(options, catalogue=catalogue, on_event=told)
    where = run.url(listener, host)

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
    run.serve(app, options, listener)
    if not quiet:
        note(text("serve.stopped"))
