"""Every setting of the server, from one of four places.

Flags beat the environment, which beats the file, which beats the defaults. The file is TOML, with
one table `[server]`; it is named by --config, else INSULA_CONFIG, else it is
INSULA_HOME/insula.toml if there is one. A setting is one field of ServerSettings: its flag is
--host, its variable INSULA_HOST with INSULA_SERVER_ before the name in capitals, its key in the
file the name itself.

Refuses what it does not know or cannot use: the error says where it was found, the value, and what
is allowed. Nothing is opened here but the file.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from insula.config import folder, parse_size, settings
from insula.errors import ConfigError
from insula.security.small_file import NotRegularError, TooLongError, read_small

FILE = "insula.toml"
ENV_PREFIX = "INSULA_SERVER_"
_LONGEST_FILE = 1 << 20
_TIME_SPAN = re.compile(r"(-?\d{1,9}(?:\.\d{1,9})?)([smh]?)")

#: From where a value came, and what was written there.
Parse = Callable[[str, Any], Any]


def _setting(default: Any, parse: Parse, *, many: bool = False) -> Any:
    return field(default=default, metadata={"parse": parse, "many": many})


def _refuse(name: str, value: object, allowed: str) -> ConfigError:
    return ConfigError(f"{name}: found {str(value)[:80]!r}; allowed is {allowed}")


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise _refuse(name, value, "a text")
    return value.strip()


def _origin(name: str, value: Any) -> str:
    written = _text(name, value).lower().rstrip("/")
    if not written.startswith(("http://", "https://")) or "/" in written.partition("://")[2]:
        raise _refuse(name, value, "an origin such as https://chat.example.org")
    return written


def _path(name: str, value: Any) -> Path:
    return folder(value, name=name, kind="file")


def _choice(*allowed: str) -> Parse:
    def parse(name: str, value: Any) -> str:
        if value not in allowed:
            raise _refuse(name, value, ", ".join(allowed))
        return str(value)

    return parse


def _whole(least: int, most: int) -> Parse:
    def parse(name: str, value: Any) -> int:
        allowed = f"a whole number from {least} to {most}"
        if isinstance(value, str) and value.strip().lstrip("-").isascii():
            try:
                value = int(value)
            except ValueError:
                raise _refuse(name, value, allowed) from None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _refuse(name, value, allowed)
        return value

    return parse


def _seconds(least: float, most: float) -> Parse:
    def parse(name: str, value: Any) -> float:
        allowed = f"seconds from {least:g} to {most:g}"
        try:
            if isinstance(value, bool):
                raise TypeError
            seconds = float(value)
        except (TypeError, ValueError, OverflowError):
            raise _refuse(name, value, allowed) from None
        if not least <= seconds <= most:
            raise _refuse(name, value, allowed)
        return seconds

    return parse


def _for_ever(name: str, value: Any) -> float | None:
    """Seconds, as a number or as 90s, 5m, 2h; `forever` or what is below 0 is None."""
    written = str(value).strip().lower()
    found = _TIME_SPAN.fullmatch(written)
    if written == "forever":
        return None
    if isinstance(value, bool) or found is None:
        raise _refuse(name, value, "a time such as 90s, 5m or 2h, or forever")
    seconds = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]
    return None if seconds < 0 else min(seconds, 1e9)


def _bytes(name: str, value: Any) -> int:
    if isinstance(value, float):
        raise _refuse(name, value, "a size such as 512M or 2G")
    return parse_size(value, name=name)


def _yes(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    known = {"1": True, "on": True, "yes": True, "true": True}
    known |= {"0": False, "off": False, "no": False, "false": False}
    if not isinstance(value, str) or value.lower() not in known:
        raise _refuse(name, value, "true or false")
    return known[value.lower()]


_POWERCAP = Path("/sys/class/powercap")
_AUTH = _choice("auto", "required")
_LOG = _choice("json", "text")
_LEVEL = _choice("debug", "info", "warning", "error")
_TIME = _seconds(0.1, 3600)


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What a server is told. Bytes and seconds; None: nothing was said.

    auth: `auto` asks for keys as soon as there is one, and always on a network; `required` always.
    allow_open: serve a network without any key (the explicit override). allowed_hosts,
    allowed_origins: names and sites beside this machine's own. tls_cert, tls_key: PEM files; both
    or none. models: named at the start; only: no others. memory: for all loaded models together.
    keep_alive: how long an unused model stays, None for ever. max_running, max_waiting: requests.
    grace: what running answers have when the server stops. body, head: of one request;
    head_seconds, body_seconds: for it to arrive; stall_seconds: how long a reader may take nothing.
    log, log_level: json or text lines on standard error. energy_root: where the machine's counters
    are.
    """

    host: str = _setting("127.0.0.1", _text)
    port: int = _setting(11435, _whole(0, 65535))
    auth: str = _setting("auto", _AUTH)
    allow_open: bool = _setting(False, _yes)
    allowed_hosts: tuple[str, ...] = _setting((), _text, many=True)
    allowed_origins: tuple[str, ...] = _setting((), _origin, many=True)
    tls_cert: Path | None = _setting(None, _path)  # noqa: RUF009
    tls_key: Path | None = _setting(None, _path)  # noqa: RUF009
    models: tuple[str, ...] = _setting((), _text, many=True)
    only: bool = _setting(False, _yes)
    memory: int | None = _setting(None, _bytes)
    keep_alive: float | None = _setting(300.0, _for_ever)
    max_running: int = _setting(16, _whole(1, 4096))
    max_waiting: int = _setting(128, _whole(0, 100_000))
    grace: float = _setting(25.0, _seconds(0, 3600))
    body: int = _setting(10 << 20, _bytes)
    head: int = _setting(16 << 10, _bytes)
    head_seconds: float = _setting(10.0, _TIME)
    body_seconds: float = _setting(30.0, _TIME)
    stall_seconds: float = _setting(30.0, _TIME)
    log: str = _setting("text", _LOG)
    log_level: str = _setting("info", _LEVEL)
    energy_root: Path = _setting(_POWERCAP, _path)  # noqa: RUF009


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The settings, and where each came from: a flag, a variable, a file, or `default`."""

    settings: ServerSettings
    origins: Mapping[str, str]


def load(
    flags: Mapping[str, object] | None = None,
    *,
    env: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Loaded:
    """Read all places. flags: by the settings' names; None is one that was not given.

    file: as --config named it; it must be there then. Raises ConfigError.
    """
    env = os.environ if env is None else env
    flags = {name: value for name, value in (flags or {}).items() if value is not None}
    fields = {one.name: one for one in dataclasses.fields(ServerSettings)}
    unknown = flags.keys() - fields.keys()
    assert not unknown, f"no such settings: {unknown}"
    where, written = _read_file(file, env, fields)
    _refuse_unknown_variables(env, fields)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, one in fields.items():
        flag, variable = f"--{name.replace('_', '-')}", f"{ENV_PREFIX}{name.upper()}"
        if name in flags:
            found, at, origin = flags[name], flag, flag
        elif env.get(variable):
            found, at, origin = env[variable], variable, variable
            if one.metadata["many"]:
                found = [part for part in env[variable].split(",") if part.strip()]
        elif name in written:
            found, at, origin = written[name], f"{where}: {name}", str(where)
        else:
            origins[name] = "default"
            continue
        values[name] = _parsed(one, at, found)
        origins[name] = origin
    loaded = ServerSettings(**values)
    if (loaded.tls_cert is None) != (loaded.tls_key is None):
        missing = "tls_key" if loaded.tls_key is None else "tls_cert"
        raise ConfigError(f"{missing}: is missing; TLS needs tls_cert and tls_key, both")
    return Loaded(settings=loaded, origins=origins)


def to_toml(loaded: Loaded) -> str:
    """The settings as a file that says the same, each with where it came from."""
    lines = ["[server]"]
    for name, value in vars(loaded.settings).items():
        comment = f"  # {loaded.origins[name]}"
        if value is None and name == "keep_alive":
            lines.append(f'{name} = "forever"{comment}')
        elif value is None:
            lines.append(f"# {name} is not set")
        else:
            lines.append(f"{name} = {_toml(value)}{comment}")
    return "\n".join(lines) + "\n"


def _parsed(one: dataclasses.Field[Any], at: str, found: Any) -> Any:
    parse: Parse = one.metadata["parse"]
    if not one.metadata["many"]:
        return parse(at, found)
    if not isinstance(found, (list, tuple)):
        raise _refuse(at, found, "a list")
    return tuple(parse(at, item) for item in found)


def _read_file(
    file: Path | None, env: Mapping[str, str], known: Mapping[str, object]
) -> tuple[Path | None, Mapping[str, Any]]:
    found = settings(env)
    asked = file or found.server_file
    path = asked or found.home.absolute() / FILE
    try:
        content = tomllib.loads(read_small(path, _LONGEST_FILE).decode())
    except FileNotFoundError:
        if asked is not None:
            raise ConfigError(f"{path}: there is no such file") from None
        return None, {}
    except (NotRegularError, TooLongError):
        raise ConfigError(f"{path}: is no file of at most {_LONGEST_FILE >> 20} MB") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None
    for name, value in content.items():
        if name != "server" or not isinstance(value, dict):
            raise ConfigError(f"{path}: {name}: is not known here; allowed is the table [server]")
    table = content.get("server", {})
    for name in table:
        if name not in known:
            raise ConfigError(f"{path}: {name}: is not a setting; allowed: {', '.join(known)}")
    return path, table


def _refuse_unknown_variables(env: Mapping[str, str], known: Mapping[str, object]) -> None:
    for variable in env:
        name = variable.removeprefix(ENV_PREFIX)
        if name != variable and name.lower() not in known:
            allowed = ", ".join(f"{ENV_PREFIX}{one.upper()}" for one in known)
            raise ConfigError(f"{variable}: is not a setting; allowed: {allowed}")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, (str, Path)):
        # JSON's escapes are TOML's, but for DEL, which TOML wants escaped.
        return json.dumps(str(value)).replace("\x7f", "\\u007f")
    return str(value)
