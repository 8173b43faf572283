"""Models that are not one GGUF file: on another server, or a checkpoint folder.

Owns which names mean them, and which of the front door's options they can take; the others are
refused by name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from insula.config import Settings
from insula.engine.backends.base import backend
from insula.engine.backends.remote import connect
from insula.engine.backends.remote_http import SCHEME, SILENT_SECONDS, parse_address
from insula.engine.load import NO_DISK_CACHE, Loaded
from insula.errors import ConfigError, UnsupportedError

MOST_SECONDS = 86_400


def is_address(model: object) -> bool:
    """Whether a model's name is a server's address."""
    return isinstance(model, str) and model.startswith(SCHEME)


def is_folder(model: object) -> bool:
    """Whether it is a folder with a checkpoint in Hugging Face form."""
    if not isinstance(model, str | os.PathLike):
        return False
    try:
        return (Path(model).expanduser() / "config.json").is_file()
    except (OSError, ValueError, TypeError, RuntimeError):
        return False


def load_remote(
    model: str, engine: str, asked: Mapping[str, Any], env: Settings, max_running: int
) -> Loaded:
    """Connect to a server. Raises RemoteError, ConfigError, UnsupportedError."""
    if engine not in ("auto", "remote"):
        raise ConfigError(f"engine: found {engine!r}; an address is for the remote engine alone")
    _refuse("remote", asked, {"api_key", "timeout"})
    timeout: Any = SILENT_SECONDS if asked["timeout"] is None else asked["timeout"]
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise ConfigError(f"timeout: found {timeout!r}; allowed are seconds, more than 0")
    if not 0 < timeout <= MOST_SECONDS:
        raise ConfigError(
            f"timeout: found {timeout!r}; allowed: above 0, to {MOST_SECONDS} seconds"
        )
    key = asked["api_key"] or env.remote_api_key
    remote = connect(
        parse_address(model), api_key=key, timeout=float(timeout), max_running=max_running
    )
    return _noted(Loaded(engine=remote, info=remote.info, close=remote.close), env)


def load_folder(
    model: str, engine: str, asked: Mapping[str, Any], env: Settings, max_running: int
) -> Loaded:
    """Open a checkpoint folder by transformers. Raises UnsupportedError, FormatError, …"""
    if engine not in ("auto", "transformers"):
        raise UnsupportedError(
            f"the {engine} backend cannot open a folder; `insula convert` makes a GGUF file of it "
            "that it may, and engine='transformers' takes it as it is",
            backend=engine,
        )
    _refuse("transformers", asked, {"n_ctx", "n_threads", "gpu_layers"})
    info = backend("transformers")
    if not info.installed:
        raise UnsupportedError(
            f"{model} is a checkpoint folder: {info.why_not}, or make a GGUF file of it with "
            "`insula convert`",
            backend="transformers",
        )
    from insula.engine.backends.transformers import open_folder

    reason = "asked for" if engine == "transformers" else "the model is a checkpoint folder"
    loaded = open_folder(
        Path(model).expanduser(),
        n_ctx=asked["n_ctx"],
        n_threads=asked["n_threads"] or env.threads,
        gpu_layers=asked["gpu_layers"],
        reason=reason,
    )
    return _noted(loaded, env)


def _noted(loaded: Loaded, env: Settings) -> Loaded:
    """With a note on what the environment asks for and cannot be had."""
    if env.cache_dir is None:
        return loaded
    note = NO_DISK_CACHE.format(backend=loaded.info.engine)
    return replace(loaded, info=replace(loaded.info, notes=(*loaded.info.notes, note)))


def _refuse(name: str, asked: Mapping[str, Any], taken: set[str]) -> None:
    for option, value in asked.items():
        if value is not None and option not in taken:
            raise UnsupportedError(
                f"the {name} backend cannot take {option}={value!r}"
                if option != "api_key"
                else f"the {name} backend takes no api_key",
                backend=name,
            )
