"""GGUF files that other programs already keep on this machine, usable where they lie.

Looks only into the folders of Ollama, LM Studio, GPT4All, llama.cpp and the Hugging Face cache
(each moved by that program's own variable), and into those that INSULA_MODELS names. Reads
directory entries, Ollama's manifests and four bytes of each file; writes nothing. A search ends
at MAX_FILES files and MAX_DEPTH levels, so that a link to / is not walked.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_FILES = 20_000
MAX_DEPTH = 8
MAGIC = b"GGUF"
_LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_MODEL_LAYER = "application/vnd.ollama.image.model"


@dataclass(frozen=True, kw_only=True)
class LocalModel:
    """`name` starts with the program's own ("ollama/llama3.2:1b") and is what resolve takes."""

    name: str
    program: str
    path: Path
    size: int


def _folders(variable: str, defaults: list[Path]) -> list[Path]:
    value = os.environ.get(variable, "")
    return [Path(value).expanduser()] if value else defaults


def _app_data() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) if local else Path.home() / "AppData" / "Local"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")


def _cache() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return _app_data()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def ollama_folders() -> list[Path]:
    """OLLAMA_MODELS, else the user's and the service's."""
    defaults = [Path.home() / ".ollama" / "models"]
    if sys.platform == "linux":
        defaults.append(Path("/usr/share/ollama/.ollama/models"))
    return _folders("OLLAMA_MODELS", defaults)


def lmstudio_folders() -> list[Path]:
    """LMSTUDIO_MODELS, else LM Studio's present and former places."""
    home = Path.home()
    return _folders(
        "LMSTUDIO_MODELS",
        [home / ".lmstudio" / "models", home / ".cache" / "lm-studio" / "models"],
    )


def gpt4all_folders() -> list[Path]:
    """GPT4ALL_MODELS, else the application's and the Python package's."""
    return _folders(
        "GPT4ALL_MODELS", [_app_data() / "nomic.ai" / "GPT4All", Path.home() / ".cache" / "gpt4all"]
    )


def llamacpp_folders() -> list[Path]:
    """LLAMA_CACHE, else llama.cpp's cache."""
    return _folders("LLAMA_CACHE", [_cache() / "llama.cpp"])


def hub_cache_folders() -> list[Path]:
    """HF_HUB_CACHE, else below HF_HOME, else the hub client's default."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    home = Path(os.environ.get("HF_HOME") or default).expanduser()
    return _folders("HF_HUB_CACHE", [home / "hub"])


def own_folders() -> list[Path]:
    """INSULA_MODELS: folders of the user's own, separated as PATH is."""
    value = os.environ.get("INSULA_MODELS", "")
    return [Path(part).expanduser() for part in value.split(os.pathsep) if part]


def _model_size(path: Path) -> int | None:
    """The size of a GGUF file in bytes; None if it is not one or cannot be read."""
    try:
        if not path.is_file():  # never open a pipe or a device
            return None
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size if file.read(4) == MAGIC else None
    except OSError:
        return None


def _gguf_files(folder: Path) -> Iterator[Path]:
    """GGUF files below `folder`, each first part of a split one included, by name."""
    seen = 0
    for root, folders, files in os.walk(folder):
        depth = len(Path(root).relative_to(folder).parts)
        folders[:] = sorted(folders) if depth < MAX_DEPTH else []
        for name in sorted(files):
            seen += 1
            if seen > MAX_FILES:
                return
            if name.lower().endswith(".gguf") and not _LATER_PART.search(name):
                yield Path(root) / name


def _plain(program: str, folders: list[Path]) -> Iterator[LocalModel]:
    for folder in folders:
        for path in _gguf_files(folder):
            size = _model_size(path)
            if size is not None:
                name = f"{program}/{path.relative_to(folder).as_posix()}"
                yield LocalModel(name=name, program=program, path=path, size=size)


def _ollama() -> Iterator[LocalModel]:
    for folder in ollama_folders():
        manifests = folder / "manifests"
        seen = 0
        for root, _, files in os.walk(manifests):
            for name in sorted(files):
                seen += 1
                if seen > MAX_FILES:
                    return
                path = Path(root) / name
                blob = _ollama_blob(folder, path)
                size = None if blob is None else _model_size(blob)
                if blob is None or size is None:
                    continue
                parts = path.relative_to(manifests).parts
                if parts[0] == "registry.ollama.ai":
                    parts = parts[2:] if parts[1] == "library" else parts[1:]
                label = f"{'/'.join(parts[:-1])}:{parts[-1]}"
                yield LocalModel(name=f"ollama/{label}", program="ollama", path=blob, size=size)


def _ollama_blob(folder: Path, manifest: Path) -> Path | None:
    try:
        if manifest.stat().st_size > 1 << 20:
            return None
        layers = json.loads(manifest.read_bytes())["layers"]
        digests = [layer["digest"] for layer in layers if layer["mediaType"] == _MODEL_LAYER]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    # Several model layers are a model split over files.
    if len(digests) != 1 or not re.fullmatch(r"sha256:[0-9a-f]{64}", str(digests[0])):
        return None
    return folder / "blobs" / str(digests[0]).replace(":", "-")


def _hub_cache() -> Iterator[LocalModel]:
    for folder in hub_cache_folders():
        for repository in sorted(folder.glob("models--*--*")):
            owner, _, repo = repository.name.removeprefix("models--").partition("--")
            taken: set[str] = set()
            # A file may be there at several commits; the newest is the one to use.
            commits = sorted((repository / "snapshots").glob("*"), key=_modified, reverse=True)
            for commit in commits:
                for path in _gguf_files(commit):
                    inside = path.relative_to(commit).as_posix()
                    size = None if inside in taken else _model_size(path)
                    if size is not None:
                        taken.add(inside)
                        name = f"huggingface/{owner}/{repo}/{inside}"
                        yield LocalModel(name=name, program="huggingface", path=path, size=size)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


_PROGRAMS: dict[str, Callable[[], Iterator[LocalModel]]] = {
    "ollama": _ollama,
    "lmstudio": lambda: _plain("lmstudio", lmstudio_folders()),
    "gpt4all": lambda: _plain("gpt4all", gpt4all_folders()),
    "llamacpp": lambda: _plain("llamacpp", llamacpp_folders()),
    "huggingface": _hub_cache,
    "folder": lambda: _plain("folder", own_folders()),
}
PROGRAMS = tuple(_PROGRAMS)


def find_models(programs: tuple[str, ...] = PROGRAMS) -> list[LocalModel]:
    """Every model found, in the order of PROGRAMS; a file that two names reach is listed twice."""
    return [model for program in programs for model in _PROGRAMS[program]()]


def find_model(name: str) -> LocalModel | None:
    """The model whose name is `name` ("ollama/…"); None if there is none."""
    program, slash, _ = name.partition("/")
    if not slash or program not in _PROGRAMS:
        return None
    for model in _PROGRAMS[program]():
        if model.name == name:
            return model
    return None
