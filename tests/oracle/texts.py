"""The texts on which engines are compared: English, Spanish and code, the same every time.

From the shared folder (public-domain books, XQuAD) and from the running interpreter's library.
"""

from __future__ import annotations

import inspect
import json
import os
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Text:
    domain: str
    source: str
    text: str


def shared_folder() -> Path | None:
    """The folder of shared data, or None where it is not present."""
    folder = Path(os.environ.get("INSULA_SHARED", ROOT.parent / "shared"))
    return folder if (folder / "data").is_dir() else None


def texts(shared: Path) -> list[Text]:
    """Six passages of some thousand characters, two per domain."""
    data = shared / "data"
    shakespeare = (data / "texts" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    quijote = (data / "texts" / "el_quijote.txt").read_text(encoding="utf-8")
    chapter = quijote.index("En un lugar de la Mancha")
    return [
        Text(domain="en", source="tiny Shakespeare", text=shakespeare[:8000]),
        Text(domain="en", source="XQuAD en", text=_contexts(data / "qa" / "xquad.en.json")),
        Text(domain="es", source="Don Quijote", text=quijote[chapter : chapter + 8000]),
        Text(domain="es", source="XQuAD es", text=_contexts(data / "qa" / "xquad.es.json")),
        Text(domain="code", source="textwrap.py", text=_source(textwrap)),
        Text(domain="code", source="json/decoder.py", text=_source(json.decoder)),
    ]


def _contexts(path: Path) -> str:
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    return "\n\n".join(p["context"] for p in articles[1]["paragraphs"])[:8000]


def _source(module) -> str:
    return inspect.getsource(module)[:8000]
