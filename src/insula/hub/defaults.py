"""What a model of the store brings of its own, ready for the front door.

A Modelfile's TEMPLATE counts where it is Jinja or the name of a chat format. One for Ollama is in
Go's template language, whose meaning depends on Ollama's own code: it is kept, not used, and that
is said; the template in the model's file is used as ever. A model with an adapter is refused: it
is not applied by the model's name, and without it the answers would be another model's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from insula.errors import UnsupportedError
from insula.hub import parameters
from insula.hub.manifest import Manifest
from insula.hub.parameters import Meaning
from insula.locale import text

# What begins an action of Go's text/template and nothing that Jinja has.
_GO = re.compile(
    r"\{\{-?\s*(?:[.$]|/\*|(?:if|else|end|range|with|define|block|template|break|continue)\b)"
)


@dataclass(frozen=True, kw_only=True)
class ModelDefaults:
    """What holds where the caller says nothing. `notes` says what was set and is not used."""

    meaning: Meaning = field(default_factory=Meaning)
    template: str | None = None
    system: str | None = None
    messages: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()


def is_go_template(template: str) -> bool:
    """Whether a TEMPLATE is in Go's template language rather than Jinja."""
    return "{%" not in template and _GO.search(template) is not None


def of(manifest: Manifest) -> ModelDefaults:
    """The defaults of a model in the store. UnsupportedError if it needs an adapter."""
    if manifest.of_kind("adapter"):
        raise UnsupportedError(text("hub.needs_adapter", name=manifest.name))
    given = manifest.defaults
    meaning = parameters.meaning(given.parameters)
    notes = list(meaning.notes)
    template = given.template if (given.template or "").strip() else None
    if template is not None and is_go_template(template):
        template = None
        notes.append(text("hub.go_template"))
    if manifest.of_kind("projector"):
        notes.append(text("hub.no_projector"))
    return ModelDefaults(
        meaning=meaning,
        template=template,
        system=given.system or None,
        messages=tuple({"role": role, "content": content} for role, content in given.messages),
        notes=tuple(notes),
    )
