"""One llama.cpp server object: loaded silently, reachable by nobody else, closed cleanly.

xllamacpp's Server always listens as well as answering in-process. Here it listens on a socket
file in a folder of mode 0700 and asks for a random key, so that neither another user nor a web
page reaches it (DNS rebinding against local model servers: CVE-2024-28224). Where Python has
no such sockets it listens on loopback with the key.

Owns loading, the reason when loading fails, and the few HTTP calls that the in-process
handlers lack (tokenize, detokenize).
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from insula.engine.interrupts import HeldInterrupts
from insula.errors import EngineError, UnsupportedError

#: Longest socket path that every platform with socket files takes (macOS: 104 bytes).
MAX_SOCKET_PATH = 100
SILENT = -1
ERRORS_ONLY = 1
EXPLAIN_SECONDS = 60.0


class LlamaCppServer:
    """A loaded model. `complete` may be called from several threads; requests queue up."""

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int,
        threads: int,
        gpu_layers: int | None = None,
        mmproj: Path | None = None,
    ) -> None:
        """Load. mmproj: the model's projector, for images and sound.

        Raises UnsupportedError (wheel missing), EngineError (llama.cpp refused).
        """
        xllamacpp = _wheel()
        folder = Path(tempfile.mkdtemp(prefix="insula-"))
        self._remove_folder = weakref.finalize(self, shutil.rmtree, folder, True)
        self._key = secrets.token_hex(32)
        params = _params(path, n_ctx=n_ctx, threads=threads, gpu_layers=gpu_layers)
        if mmproj is not None:
            params.mmproj.path = str(mmproj)
        params.api_keys = [self._key]
        socket_path = folder / "s.sock"
        if hasattr(socket, "AF_UNIX") and len(os.fsencode(socket_path)) <= MAX_SOCKET_PATH:
            params.hostnames = [str(socket_path)]
        # The constructor returns before the server's loop has begun, and a server that is
        # destroyed in between waits for that loop for ever. An answer means that it runs; until
        # then a Ctrl-C waits too.
        with HeldInterrupts():
            try:
                self._server = xllamacpp.Server(params)
            except RuntimeError:
                self._remove_folder()
                which = path.name if mmproj is None else f"{path.name} with {mmproj.name}"
                raise EngineError(
                    f"llama.cpp could not load {which}: {_explain(path, mmproj)}; check the file, "
                    "or choose another quantization or model"
                ) from None
            self._server.handle_metrics()
        self._address = str(self._server.listening_address)

    def complete(self, request: dict[str, Any], on_chunk: Callable[[dict[str, Any]], bool]) -> None:
        """Run one streamed completion; blocks until it ends. `on_chunk` ends it with True."""
        server = self._server
        if server is None:
            raise EngineError("the llama.cpp model is closed")
        server.handle_completions(request, on_chunk)

    def converse(self, request: dict[str, Any], on_chunk: Callable[[dict[str, Any]], bool]) -> None:
        """As `complete`, of a conversation in llama.cpp's own template.

        Raises EngineError where it refuses one of the parts.
        """
        server = self._server
        if server is None:
            raise EngineError("the llama.cpp model is closed")
        try:
            server.handle_chat_completions(request, on_chunk)
        except RuntimeError as error:
            raise EngineError(f"llama.cpp refused the conversation: {error}") from None

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """One HTTP call to the server's own routes, as JSON both ways. Raises EngineError."""
        connection = _connect(self._address)
        try:
            headers = {
                "Content-Type": "application/json",
                "Authorization": f"Bearer {self._key}",
            }
            connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
            data = response.read()
            if response.status != 200:
                raise EngineError(f"llama.cpp answered {response.status} to {path}")
            return json.loads(data)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise EngineError(f"llama.cpp did not answer {path}: {error}") from error
        finally:
            connection.close()

    def close(self) -> None:
        """Free the model. Twice is harmless."""
        self._server = None
        self._remove_folder()


def system_isa() -> str:
    """The highest instruction-set level that the installed wheel uses here."""
    info = str(_wheel().get_system_info())
    for flag, name in (
        ("AMX_INT8", "amx"),
        ("AVX512_VNNI", "avx512"),
        ("AVX512", "avx512"),
        ("AVX_VNNI", "avxvnni"),
        ("AVX2", "avx2"),
        ("MATMUL_INT8", "neon-i8mm"),
        ("DOTPROD", "neon-dotprod"),
        ("NEON", "neon"),
    ):
        if f"{flag} = 1" in info:
            return name
    return "generic"


def _wheel() -> Any:
    try:
        import xllamacpp
    except ImportError as error:
        raise UnsupportedError(
            f"the llamacpp backend is not installed ({error}); pip install 'insula[llamacpp]'",
            backend="llamacpp",
        ) from None
    return xllamacpp


def _params(path: Path, *, n_ctx: int, threads: int, gpu_layers: int | None) -> Any:
    params = _wheel().CommonParams()
    params.model.path = str(path)
    params.n_ctx = n_ctx
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    # One slot: the whole context belongs to one request, and its cache serves the next turn.
    params.n_parallel = 1
    params.n_threads_http = 1
    params.fit_params = False  # would shrink the context without a word
    params.cache_ram_mib = 0  # would keep up to 8 GB of old prompts in memory
    params.ctx_shift = False  # would drop the oldest tokens without a word
    params.sse_ping_interval = -1  # there is no connection to keep alive
    # It computes in micro-batches of 512 anyway, and calls back, and can be cancelled, once a
    # batch; by default that is every 2,048 tokens of a prompt.
    params.n_batch = 512
    params.ui = False
    params.endpoint_slots = False
    params.endpoint_metrics = True
    params.warmup = False
    params.verbosity = SILENT
    params.offline = True
    if gpu_layers is not None:
        params.n_gpu_layers = gpu_layers
    return params


def _explain(path: Path, mmproj: Path | None) -> str:
    """llama.cpp's own reason, from a second attempt in a child that may print its errors.

    The handler's exception has no reason and the log goes to the process's own stderr, which
    belongs to the user's program.
    """
    code = (
        "import sys, xllamacpp as x\n"
        "p = x.CommonParams(); p.model.path = sys.argv[1]; p.n_ctx = 256; p.n_parallel = 1\n"
        f"p.fit_params = False; p.warmup = False; p.verbosity = {ERRORS_ONLY}\n"
        "p.mmproj.path = sys.argv[2]\n"
        "x.Server(p)\n"
    )
    try:
        child = subprocess.run(
            [sys.executable, "-c", code, str(path), "" if mmproj is None else str(mmproj)],
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=EXPLAIN_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "no reason given"
    for line in child.stderr.splitlines():
        found = line.partition("error loading model: ")[2]
        if found:
            return found.strip()
    return (
        "not enough memory for this context, perhaps"
        if child.returncode == 0
        else ("no reason given")
    )


class _SocketFileConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _connect(address: str) -> http.client.HTTPConnection:
    url = urlsplit(address)
    if url.scheme == "unix":
        return _SocketFileConnection(url.path)
    return http.client.HTTPConnection(url.hostname or "127.0.0.1", url.port, timeout=60)
