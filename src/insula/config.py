"""Every setting that comes from the environment, in one place.

Owns the names, defaults and checks of the INSULA_* variables (and the Hugging Face hub's own).
Refuses what it cannot use: the error names the variable, the value found and what is allowed.
Nothing is read at import; `settings()` reads the environment anew on each call.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from insula.errors import ConfigError

ENGINES = ("auto", "native", "reference", "llamacpp", "transformers", "remote")
KV_TYPES = ("f16", "int8", "f32")
WEIGHTS = ("memory", "mmap")
ISAS = (
    *("scalar", "avx2", "avxvnni", "avx512", "amx"),
    *("neon", "neon-dotprod", "neon-i8mm"),
)

#: A hub takes more of them from one client for an attack.
MOST_CONNECTIONS = 16
_MOST_BYTES = 1 << 63
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the environment says. None: not set, the default is chosen where it is used.

    home: where models and state live (INSULA_HOME).
    engine: which engine runs models (INSULA_ENGINE).
    isa: instruction-set level forced on the native engine (INSULA_ISA).
    threads: compute threads (INSULA_THREADS).
    kv_memory: bytes that the KV cache may take (INSULA_KV_MEMORY, such as 2G).
    weights: memory or mmap (INSULA_WEIGHTS).
    cache_dir, cache_dir_bytes: where prefixes are kept for the next run, and how much of them
        (INSULA_CACHE_DIR, INSULA_CACHE_DIR_BYTES).
    language: language of the program's texts, en or es (INSULA_LANG, else the locale).
    remote_api_key: what a remote server is shown (INSULA_REMOTE_API_KEY).
    hub_endpoint, hub_token, offline: HF_ENDPOINT, HF_TOKEN, INSULA_OFFLINE or HF_HUB_OFFLINE.
    registry: the Ollama registry's address (INSULA_OLLAMA_REGISTRY).
    hub_connections: parts of one file that are fetched at once (INSULA_HUB_CONNECTIONS).
    lock_file: the file that pins models (INSULA_LOCK), None: insula.lock where a command is run.
    trusted_keys: the file that says whose signature a source must carry (INSULA_TRUSTED_KEYS).
    store_key, store_key_file: what encrypts the store, or the file that holds it (INSULA_STORE_KEY,
        INSULA_STORE_KEY_FILE).
    server_file: the server's settings (INSULA_CONFIG); server/settings.py reads INSULA_SERVER_*.
    """

    home: Path
    engine: str
    isa: str | None
    threads: int | None
    kv_memory: int | None
    weights: str
    cache_dir: Path | None
    cache_dir_bytes: int | None
    language: str
    remote_api_key: str | None = field(repr=False)
    hub_endpoint: str
    hub_token: str | None
    offline: bool
    registry: str
    hub_connections: int
    lock_file: Path | None
    trusted_keys: Path | None
    store_key: str | None = field(repr=False)
    store_key_file: Path | None
    server_file: Path | None

    @property
    def models(self) -> Path:
        """The model store's folder."""
        return self.home / "models"


def settings(env: Mapping[str, str] | None = None) -> Settings:
    """Read the environment. Raises ConfigError that names the variable at fault."""
    env = os.environ if env is None else env
    get = env.get
    isa, kv_memory = get("INSULA_ISA"), get("INSULA_KV_MEMORY")
    cache_dir, cache_dir_bytes = get("INSULA_CACHE_DIR"), get("INSULA_CACHE_DIR_BYTES")
    return Settings(
        home=_home(get("INSULA_HOME"), get("XDG_DATA_HOME"), get("LOCALAPPDATA")),
        engine=_choice("INSULA_ENGINE", get("INSULA_ENGINE") or "auto", ENGINES),
        isa=_choice("INSULA_ISA", isa, ISAS) if isa else None,
        threads=_count("INSULA_THREADS", get("INSULA_THREADS")),
        kv_memory=parse_size(kv_memory, name="INSULA_KV_MEMORY") if kv_memory else None,
        weights=_choice("INSULA_WEIGHTS", get("INSULA_WEIGHTS") or "memory", WEIGHTS),
        cache_dir=folder(cache_dir, name="INSULA_CACHE_DIR") if cache_dir else None,
        cache_dir_bytes=parse_size(cache_dir_bytes, name="INSULA_CACHE_DIR_BYTES")
        if cache_dir_bytes
        else None,
        language=_language(env),
        remote_api_key=get("INSULA_REMOTE_API_KEY") or None,
        hub_endpoint=(get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/"),
        hub_token=get("HF_TOKEN") or None,
        offline=any(
            (get(name) or "").lower() in {"1", "on", "yes", "true"}
            for name in ("INSULA_OFFLINE", "HF_HUB_OFFLINE")
        ),
        registry=(get("INSULA_OLLAMA_REGISTRY") or "https://registry.ollama.ai").rstrip("/"),
        hub_connections=_count(
            "INSULA_HUB_CONNECTIONS", get("INSULA_HUB_CONNECTIONS"), most=MOST_CONNECTIONS
        )
        or 4,
        lock_file=_file("INSULA_LOCK", get("INSULA_LOCK")),
        trusted_keys=_file("INSULA_TRUSTED_KEYS", get("INSULA_TRUSTED_KEYS")),
        store_key=get("INSULA_STORE_KEY") or None,
        store_key_file=_file("INSULA_STORE_KEY_FILE", get("INSULA_STORE_KEY_FILE")),
        server_file=_file("INSULA_CONFIG", get("INSULA_CONFIG")),
    )


def parse_size(value: str | int, *, name: str = "size") -> int:
    """Bytes from `1500`, `512M`, `2G`, `1.5 GiB` (powers of 1024). Raises ConfigError."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        match = _SIZE.fullmatch(str(value).strip())
        if match is None:
            raise ConfigError(f"{name}: found {value!r}; allowed is a size such as 512M or 2G")
        amount = float(match[1]) * _UNITS[match[2].upper()]
        size = int(amount) if amount < _MOST_BYTES else _MOST_BYTES
    if not 0 < size < _MOST_BYTES:
        found = str(value)[:40]
        raise ConfigError(f"{name}: found {found!r}; a size must be more than 0 and below 8 EiB")
    return size


def folder(value: object, *, name: str, kind: str = "folder") -> Path:
    """An absolute path from what a person gave, `~` included. Raises ConfigError."""
    try:
        path = os.fspath(value)  # type: ignore[call-overload]
        if not isinstance(path, str) or not path or "\0" in path:
            raise TypeError
        os.fsencode(path)
        return Path(path).expanduser().absolute()
    except (TypeError, RuntimeError, UnicodeError):
        found = repr(value)[:80]
        raise ConfigError(f"{name}: found {found}; allowed is the path of a {kind}") from None


def _home(home: str | None, xdg: str | None, local: str | None) -> Path:
    if home:
        return Path(home).expanduser()
    if sys.platform == "win32":
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "insula"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "insula"
    return (Path(xdg) if xdg else Path.home() / ".local" / "share") / "insula"


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ConfigError(f"{name}: found {value!r}; allowed: {', '.join(allowed)}")
    return value


def _count(name: str, value: str | None, *, most: int = 1024) -> int | None:
    if not value:
        return None
    if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= most:
        raise ConfigError(f"{name}: found {value!r}; allowed is a whole number from 1 to {most}")
    return int(value)


def _file(name: str, value: str | None) -> Path | None:
    return folder(value, name=name, kind="file") if value else None


def _language(env: Mapping[str, str]) -> str:
    for name in ("INSULA_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        value = env.get(name)
        if value:
            return "es" if value.lower().startswith("es") else "en"
    return "en"
