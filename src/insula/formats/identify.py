"""Which kind of checkpoint a file is, from its first bytes and its name.

Owns: the magic numbers and the sentences that explain a wrong file.
Refuses: everything that is not GGUF or safetensors. Pickle checkpoints (.bin, .pt, .pth, .ckpt)
are refused by name and by content, and never opened with pickle: loading one runs its code.
There is no pickle loader anywhere in Insula.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from insula.errors import FormatError, NotFoundError, ResourceError, UnsupportedError

Kind = Literal["gguf", "safetensors"]

#: Names under which pickle checkpoints travel.
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill"})

_MODEL = (
    "withdrawn in 2023, and cannot be read: fetch the same model as a .gguf file "
    "(insula pull hf.co/owner/repo), or its safetensors folder and convert that"
)
#: What ggml's files began with before GGUF: a word of four letters, lowest byte first.
_LEGACY = {
    b"lmgg": f"GGML, the format before GGUF, without versions, {_MODEL}",
    b"fmgg": f"GGMF, a format before GGUF, {_MODEL}",
    b"tjgg": f"GGJT, the format before GGUF, {_MODEL}",
    b"algg": (
        "GGLA, a LoRA adapter from before GGUF, and cannot be read: fetch the adapter as PEFT "
        "wrote it (adapter_model.safetensors), or as .gguf, which llama.cpp makes of that"
    ),
    b"nsgg": "GGSN, a session that llama.cpp saved, and no model: give the model's .gguf file",
}


def identify(path: str | Path) -> Kind:
    """The kind of the file at `path`; reads at most 64 bytes of it.

    Raises NotFoundError, ResourceError (cannot be read), UnsupportedError (a known format that
    Insula does not load) or FormatError (nothing known).
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise FormatError(f"{path} is a directory; give the .gguf or .safetensors file in it")
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise NotFoundError(f"no file at {path}") from None
    except OSError as error:
        raise ResourceError(f"{path} cannot be read: {error.strerror}") from None
    if head.startswith(b"GGUF"):
        return "gguf"
    if head[8:9] == b"{" and (path.suffix == ".safetensors" or head[9:10] in b'"}'):
        return "safetensors"
    raise refusal(head, path)


def refusal(head: bytes, path: Path) -> FormatError | UnsupportedError:
    """The error for a file that begins with `head` and is neither GGUF nor safetensors."""
    again = "download it again"
    if head[:4] in _LEGACY:
        return UnsupportedError(f"{path.name} is {_LEGACY[head[:4]]}")
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")) or (
        path.suffix.lower() in PICKLE_SUFFIXES
    ):
        return UnsupportedError(
            f"{path.name} is or may be a pickle checkpoint, and loading one can run code hidden "
            "in it; Insula reads GGUF and safetensors only: take one of these, or convert it "
            "where that is safe"
        )
    if path.suffix == ".safetensors" and head[8:9] == b"{":
        return FormatError(
            f"{path.name} is safetensors, and a GGUF file is needed; `insula convert` makes one "
            "of the folder that it lies in",
            offset=0,
        )
    if not head:
        return FormatError(f"{path.name} is empty; {again}", offset=0)
    if head.startswith(b"version https://git-lfs"):
        return FormatError(
            f"{path.name} is a Git LFS pointer, not the model; run `git lfs pull`", offset=0
        )
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return FormatError(f"{path.name} is a web page, not a model; {again}", offset=0)
    return FormatError(
        f"{path.name} begins with {head[:4]!r}, which is neither GGUF (b'GGUF') nor safetensors",
        offset=0,
    )
