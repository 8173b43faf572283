"""Where a model that is named the GPT4All way is, or comes from.

Names are looked for as gpt4all does (`<folder>/<name>.gguf`, the folder being model_path or
~/.cache/gpt4all), then as Insula does (its store, its catalogue, hf.co/owner/repo, a path). With
allow_download, a name of Insula's catalogue or of a hub is pulled by Insula's own means, and any
other one is looked up in gpt4all's list and fetched from gpt4all.io, checked, and put in place
whole or not at all. Nothing is asked of the network while the file is here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any, TypeAlias

from insula.errors import ChecksumError, ConfigError, DownloadError, NotFoundError, ResourceError
from insula.hub import catalog
from insula.hub.names import parse_hub_ref
from insula.hub.transport import Progress, Transfer, Transport

ConfigType: TypeAlias = "dict[str, Any]"

DEFAULT_MODEL_DIRECTORY = Path.home() / ".cache" / "gpt4all"
DEFAULT_PROMPT_TEMPLATE = "### Human:\n{0}\n\n### Assistant:\n"
LIST_URL = "https://gpt4all.io/models/models3.json"
FILES_URL = "https://gpt4all.io/models/gguf/"
_BLOCK = 1 << 20


class ModelFileNotFound(NotFoundError, FileNotFoundError):  # noqa: N818 - a FileNotFoundError
    """No such model file or folder. Programs written for gpt4all catch FileNotFoundError."""


def list_models() -> list[ConfigType]:
    """gpt4all's own list of models. Raises DownloadError (OfflineError where nothing answers)."""
    with Transport() as transport:
        models, _ = transport.json(LIST_URL)
    if not isinstance(models, list) or not all(isinstance(m, dict) for m in models):
        raise DownloadError(f"{LIST_URL} is not a list of models")
    return models


def retrieve_model(
    model_name: str,
    model_path: str | os.PathLike[str] | None,
    *,
    allow_download: bool,
    verbose: bool,
) -> ConfigType:
    """The model's config with "path" in it. Raises ModelFileNotFound and what a download raises."""
    if not isinstance(model_name, str):
        raise ConfigError(f"model_name: found {type(model_name).__name__}; allowed is a str")
    if model_path is not None and not isinstance(model_path, str | os.PathLike):
        raise ConfigError(f"model_path: found {type(model_path).__name__}; allowed is a path")
    filename = append_extension_if_missing(model_name)
    folder = DEFAULT_MODEL_DIRECTORY if model_path is None else Path(model_path)
    if model_path is not None and not folder.is_dir():
        raise ModelFileNotFound(f"Model directory does not exist: {folder}")
    if (folder / filename).is_file():
        return _found(folder / filename, verbose)
    own = _own_name(model_name, filename)
    if own is not None:
        return _from_insula(own, model_path, allow_download=allow_download, verbose=verbose)
    if model_path is None and Path(model_name).expanduser().is_file():
        return _found(Path(model_name).expanduser(), verbose)
    if not allow_download:
        raise ModelFileNotFound(
            f"Model file does not exist: {folder / filename}; give its folder as model_path, or "
            f"one of Insula's names ({', '.join(sorted(catalog.CATALOG))}, hf.co/owner/repo:quant)"
        )
    config = _from_list(filename)
    size = config.get("filesize")
    config["path"] = str(
        download_model(
            filename,
            folder,
            verbose=verbose,
            url=config.get("url"),
            expected_size=None if size is None else int(size),
            expected_md5=config.get("md5sum"),
        )
    )
    return config


def download_model(
    model_filename: str,
    model_path: str | os.PathLike[str],
    *,
    verbose: bool,
    url: str | None,
    expected_size: int | None,
    expected_md5: str | None,
) -> Path:
    """Fetch a file of gpt4all's into `model_path`; resumes what an earlier call began.

    Raises ChecksumError, DownloadError, NotFoundError, ResourceError, ConfigError (a file name
    that would leave the folder).
    """
    from insula.hub.download import fetch, transfer
    from insula.hub.remote_file import Remote

    if Path(model_filename).name != model_filename:
        raise ConfigError(f"model_filename: found {model_filename!r}; a plain file name is needed")
    folder = Path(model_path)
    destination = folder / model_filename
    remote = Remote(url=url or FILES_URL + model_filename, name=model_filename, size=expected_size)
    try:
        with Transport() as transport, transfer(folder, remote, _progress()) as part:
            fetched = fetch(transport, remote, part, progress=_progress())
            if expected_md5 is not None:
                found = _md5(fetched.path)
                if found != expected_md5.lower():
                    fetched.path.unlink()
                    raise ChecksumError(
                        f"{model_filename}: expected MD5 {expected_md5}, got {found}; the bytes "
                        "are not those of gpt4all's list, and they were removed"
                    )
            fetched.path.replace(destination)
    except NotFoundError as error:
        raise ModelFileNotFound(
            f"no model is called {model_filename!r} at {remote.url}; GPT4All.list_models() gives "
            f"gpt4all's names, and Insula knows {', '.join(sorted(catalog.CATALOG))} and "
            "hf.co/owner/repo:quant"
        ) from error
    if verbose:
        print(f"Model downloaded to {str(destination)!r}", file=sys.stderr)  # noqa: T201
    return destination


def append_extension_if_missing(model_name: str) -> str:
    """gpt4all's rule for file names."""
    return model_name if model_name.endswith((".bin", ".gguf")) else f"{model_name}.gguf"


def _found(path: Path, verbose: bool) -> ConfigType:
    if verbose:
        print(f"Found model file at {str(path)!r}", file=sys.stderr)  # noqa: T201
    return {"path": str(path)}


def _own_name(model_name: str, filename: str) -> str | None:
    """The name under which Insula knows the model: a catalogue's, by its file name too."""
    entry = catalog.find(model_name)
    if entry is None:
        entry = next((e for e in catalog.CATALOG.values() if e.file == filename), None)
    if entry is not None:
        return entry.name
    reference = not Path(model_name).is_absolute() and parse_hub_ref(model_name) is not None
    return model_name if reference or _in_store(model_name) else None


def _in_store(model_name: str) -> bool:
    from insula.hub.store import ModelStore

    try:
        return ModelStore().get(model_name) is not None
    except ConfigError:  # no name of the store's kind: a path, perhaps
        return False


def _from_insula(
    name: str, model_path: str | os.PathLike[str] | None, *, allow_download: bool, verbose: bool
) -> ConfigType:
    from insula.formats.gguf_split import siblings
    from insula.hub.parts import names as part_names
    from insula.hub.resolve import locate

    try:
        located = locate(name, allow_download=allow_download, progress=_progress())
    except NotFoundError as error:
        raise ModelFileNotFound(str(error)) from error
    located.refuse_adapter()
    if model_path is None:
        return _found(located.path, verbose)
    file = located.manifest.file if located.manifest is not None else located.path.name
    parts = siblings(located.path)
    placed = [Path(model_path) / name for name in part_names(file, len(parts))]
    for part, destination in zip(parts, placed, strict=True):
        if not destination.exists():
            _place(part, destination)
    return _found(placed[0], verbose)


def _place(source: Path, destination: Path) -> None:
    """The store's file under a second name; a copy where the file system has no links."""
    try:
        os.link(source, destination)
        return
    except FileExistsError:
        return
    except OSError:
        pass
    part = destination.with_name(f"{destination.name}.part")
    try:
        shutil.copyfile(source, part)
        part.replace(destination)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ResourceError(f"cannot write {destination}: {error.strerror or error}") from error


def _from_list(filename: str) -> ConfigType:
    for model in list_models():
        if model.get("filename") == filename:
            template = str(model.get("promptTemplate", DEFAULT_PROMPT_TEMPLATE))
            # The list writes %1 and %2 where Python code writes {0} and {1}.
            template = template.replace("%1", "{0}", 1).replace("%2", "{1}", 1)
            return {**model, "promptTemplate": template}
    return {}


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)  # the only checksum that gpt4all's list has
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _progress() -> Progress | None:
    """A line on a terminal, rewritten as the transfer goes on; nothing elsewhere."""
    if not sys.stderr.isatty():
        return None

    def show(state: Transfer) -> None:
        if state.phase == "download" and state.total:
            share = f"{100 * state.done // state.total:3d}% of {state.total / 1e6:.0f} MB"
            sys.stderr.write(f"\rDownloading {state.name}: {share}")
            if state.done >= state.total:
                sys.stderr.write("\n")

    return show
