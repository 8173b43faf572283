"""Every text that a person reads, in English and Spanish.

`text("room.key", name=value)` is the one way in. The language is INSULA_LANG if set, else the
first of LC_ALL, LC_MESSAGES and LANG that is set (POSIX order); what is not Spanish is English.
Texts live in one module per language and room, loaded when first needed. A test proves that both
languages have the same keys with the same placeholders, so a missing key is our own mistake.
Log lines, JSON keys and programming errors stay in English: programs read those.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Mapping

LANGUAGES = ("en", "es")


def language(environ: Mapping[str, str] | None = None) -> str:
    """The language of user texts: "en" or "es"."""
    env = os.environ if environ is None else environ
    for key in ("INSULA_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        value = env.get(key, "")
        if value:
            return "es" if value.lower().replace("-", "_").split("_")[0][:2] == "es" else "en"
    return "en"


@functools.cache
def catalogue(lang: str, room: str) -> Mapping[str, str]:
    """The texts of one room in one language."""
    module = importlib.import_module(f"insula.locale.{lang}.{room}")
    texts: Mapping[str, str] = module.TEXTS
    return texts


def text(key: str, /, **values: object) -> str:
    """The text for "room.key" with its placeholders filled in."""
    room, _, name = key.partition(".")
    return catalogue(language(), room)[name].format_map(values)
