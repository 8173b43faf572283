"""The command line as a person uses it, with a home of its own and nothing of this machine.

`insula` calls the entry point in this process, which is quick; `process` starts a real one, for
what only a process has: signals, descriptors, pipes.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hub_server import HubServer
from insula.cli.main import main
from tiny_chat_model import write_tiny

Done = subprocess.CompletedProcess[str]
Insula = Callable[..., Done]
_KEPT = ("PATH", "SYSTEMROOT", "TEMP", "TMP", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV")


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """An environment with nothing of this machine's models, settings or language."""
    kept = {key: os.environ[key] for key in _KEPT if key in os.environ}
    return {
        **kept,
        "HOME": str(tmp_path / "user"),
        "USERPROFILE": str(tmp_path / "user"),
        "INSULA_HOME": str(tmp_path / "home"),
        "LANG": "C.UTF-8",
        "NO_PROXY": "*",
        "PIP_CONFIG_FILE": os.devnull,
        "TERM": "xterm-256color",
    }


@pytest.fixture
def insula(
    env: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Insula:
    """insula("list", "--json", stdin="", LANG="es") -> what came of it."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str, stdin: str | bytes = "", **variables: str) -> Done:
        data = stdin if isinstance(stdin, bytes) else stdin.encode()
        with monkeypatch.context() as patch:
            for key in list(os.environ):
                patch.delenv(key)
            for key, value in {**env, **variables}.items():
                patch.setenv(key, value)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
            capfd.readouterr()
            code = main(args)
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess(args, code, out, err)

    return run


@pytest.fixture
def process(env: dict[str, str], tmp_path: Path) -> Insula:
    """As `insula`, in a process of its own."""

    def run(*args: str, stdin: str | bytes = "", **variables: str) -> Done:
        data = stdin if isinstance(stdin, bytes) else stdin.encode()
        done = subprocess.run(
            [sys.executable, "-m", "insula", *args],
            input=data,
            capture_output=True,
            env={**env, **variables},
            cwd=tmp_path,
            timeout=100,
            check=False,
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a few thousand random weights that can chat."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a context that takes it many seconds to fill."""
    return write_tiny(tmp_path_factory.mktemp("endless") / "endless.gguf", context=1 << 16)


@pytest.fixture
def hub(env: dict[str, str]) -> Iterator[HubServer]:
    with HubServer() as server:
        env["HF_ENDPOINT"] = server.endpoint
        env["INSULA_OLLAMA_REGISTRY"] = server.endpoint
        yield server


def failed(done: Done, code: int) -> str:
    """Assert a clean failure: nothing on stdout, one line on stderr, no traceback; the line."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().split("\n")
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("insula: ")
    return lines[0]
