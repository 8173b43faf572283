"""Which backend runs a file, and why.

Owns the decision alone: the native engine for a file whose architecture, tensor formats and
vocabulary it knows, else llama.cpp if it is installed, else an error that says what would help.
The reason is written for the person who reads it in a report.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from insula.config import ENGINES
from insula.engine.backends.base import backend
from insula.errors import ConfigError, UnsupportedError


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The backend's name, and the reason in one clause."""

    backend: str
    reason: str


def choose(
    model_path: str | Path, engine: str = "auto", *, opened_arch: str | None = None
) -> Choice:
    """Decide for a GGUF file. `engine` is auto, native, llamacpp or reference; the other two take
    something else (`load_elsewhere`).

    opened_arch: the architecture, where the caller has opened the file with the native loader
    already; it is not opened again.

    Raises ConfigError for another word, UnsupportedError where no backend fits or the one
    asked for cannot run this file, and what reading the file raises (NotFoundError,
    FormatError).
    """
    if engine not in ENGINES:
        raise ConfigError(f"engine: found {engine!r}; allowed: {', '.join(ENGINES)}")
    if engine in ("remote", "transformers"):
        what = "a server's address" if engine == "remote" else "a checkpoint folder"
        raise UnsupportedError(
            f"the {engine} backend cannot run a GGUF file; it runs {what}", backend=engine
        )
    if engine == "llamacpp":
        return Choice(backend=_installed("llamacpp"), reason="asked for")
    arch, obstacle = (opened_arch, None) if opened_arch else native_obstacle(model_path)
    if engine in ("native", "reference"):
        if obstacle is not None:
            raise UnsupportedError(
                f"the {engine} backend cannot run this {arch} model: {obstacle}; " + _otherwise(),
                backend=engine,
            )
        return Choice(backend=_installed(engine), reason="asked for")
    native, llamacpp = backend("native"), backend("llamacpp")
    if obstacle is None and native.installed:
        return Choice(
            backend="native", reason=f"knows architecture {arch} and the file's tensor formats"
        )
    why = obstacle or str(native.why_not)
    if llamacpp.installed:
        return Choice(backend="llamacpp", reason=f"native cannot run this model: {why}")
    raise UnsupportedError(
        f"no backend can run this {arch} model: native: {why}; llamacpp: {llamacpp.why_not}",
        backend="native",
    )


def native_obstacle(model_path: str | Path) -> tuple[str, str | None]:
    """The file's architecture, and why the native engine cannot run it (None: it can)."""
    from insula.formats.gguf import GGUFFile
    from insula.models.checkpoint import OTHER_BACKEND
    from insula.models.load import open_model

    with GGUFFile.open(model_path, allow_split=True) as file:
        arch = str(file.metadata.get("general.architecture", "unknown"))
    try:
        with open_model(model_path):
            return arch, None
    except UnsupportedError as refusal:
        # The suggestion to take another backend is for those who chose native themselves.
        return arch, str(refusal).partition(f"; {OTHER_BACKEND}")[0]


def _otherwise() -> str:
    llamacpp = backend("llamacpp")
    return (
        "the llamacpp backend may run it (engine='llamacpp')"
        if llamacpp.installed
        else f"the llamacpp backend may run it, but {llamacpp.why_not}"
    )


def _installed(name: str) -> str:
    info = backend(name)
    if not info.installed:
        raise UnsupportedError(f"the {name} backend cannot run: {info.why_not}", backend=name)
    return name
