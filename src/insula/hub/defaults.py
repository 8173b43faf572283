"""What a model of the store brings of its own, ready for the front door.

A Modelfile's TEMPLATE is handed on as it is written: Jinja, the name of a chat format, or Ollama's
Go; what it means is the chat room's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from insula.hub import parameters
from insula.hub.manifest import Manifest
from insula.hub.parameters import Meaning
from insula.locale import text


@dataclass(frozen=True, kw_only=True)
class ModelDefaults:
    """What holds where the caller says nothing. `notes` says what was set and is not used."""

    meaning: Meaning = field(default_factory=Meaning)
    template: str | None = None
    system: str | None = None
    messages: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()


def of(manifest: Manifest) -> ModelDefaults:
    """The defaults of a model in the store."""
    given = manifest.defaults
    meaning = parameters.meaning(given.parameters)
    notes = list(meaning.notes)
    if manifest.of_kind("projector"):
        notes.append(text("hub.no_projector"))
    return ModelDefaults(
        meaning=meaning,
        template=given.template if (given.template or "").strip() else None,
        system=given.system or None,
        messages=tuple({"role": role, "content": content} for role, content in given.messages),
        notes=tuple(notes),
    )
