"""A real server on the loopback, in a thread, with tiny models; and a home of its own."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from insula.server.app import create_app
from insula.server.options import ServeOptions
from insula.server.run import Serving, bind, url
from insula.server.state import Server
from tiny_chat_model import write_tiny
from tiny_encoder import write_encoder


@dataclass
class Running:
    """A server that runs. `server` is its inside, for what only that knows."""

    url: str
    server: Server
    serving: Serving
    thread: threading.Thread

    @property
    def http(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=60)

    def wait(self, what: str, condition: Any, seconds: float = 60) -> None:
        """Until it holds; a test's only clock, and a generous one."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"in vain: {what}"
            time.sleep(0.005)

    def idle(self) -> bool:
        """Nothing is left anywhere: admission, leases, scheduler, pages."""
        activities = [loaded.llm.llm.activity for loaded in self.server.models.loaded.values()]
        return (
            self.server.admission.inside == 0
            and all(loaded.users == 0 for loaded in self.server.models.loaded.values())
            and all(a is None or a.running == a.waiting == a.pages_in_use == 0 for a in activities)
        )


def start(options: ServeOptions, **more: Any) -> Running:
    app = create_app(options, **more)
    listener = bind("127.0.0.1", 0)
    address = url(listener, "127.0.0.1")
    serving = Serving(app, options)
    thread = threading.Thread(target=serving.run, args=([listener],), daemon=True)
    thread.start()
    running = Running(url=address, server=app.state.server, serving=serving, thread=thread)
    running.wait("the server starts", lambda: serving.started or not thread.is_alive())
    return running


def stop(running: Running) -> None:
    running.serving.stop()
    running.server.cut.set() if running.server.admission.inside == 0 else None
    running.thread.join(60)
    assert not running.thread.is_alive()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models by name: one that chats, one with a long context, one that embeds, one that ranks."""
    folder = tmp_path_factory.mktemp("served")
    return {
        "tiny": write_tiny(folder / "tiny.gguf"),
        "endless": write_tiny(folder / "endless.gguf", context=1 << 15),
        "encoder": write_encoder(folder / "encoder.gguf"),
        "ranker": write_encoder(folder / "ranker.gguf", labels=("LABEL_0",)),
    }


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def served(files: dict[str, Path], home: Path) -> Iterator[Running]:
    """The server that most tests ask; they leave it as it was."""
    before = dict(os.environ)
    os.environ["INSULA_HOME"] = str(home)
    os.environ["LANG"] = "C.UTF-8"
    try:
        options = ServeOptions(models=tuple(map(str, files.values())), load={"n_threads": 2})
        running = start(options)
        yield running
        stop(running)
    finally:
        os.environ.clear()
        os.environ.update(before)
