"""Both languages say the same things."""

from __future__ import annotations

import ast
import pkgutil
import string
from pathlib import Path

import pytest

import insula
from insula import locale
from insula.locale import catalogue, language, text

SOURCE = Path(insula.__file__).parent
ROOMS = sorted(module.name for module in pkgutil.iter_modules([str(SOURCE / "locale" / "en")]))


def placeholders(message: str) -> set[tuple[str | None, str | None, str | None]]:
    return {(name, spec, conv) for _, name, spec, conv in string.Formatter().parse(message) if name}


def test_the_same_rooms_in_every_language():
    for lang in locale.LANGUAGES:
        found = pkgutil.iter_modules([str(SOURCE / "locale" / lang)])
        assert sorted(module.name for module in found) == ROOMS


@pytest.mark.parametrize("room", ROOMS)
def test_the_same_keys_and_placeholders(room):
    english, spanish = catalogue("en", room), catalogue("es", room)
    assert english.keys() == spanish.keys()
    for key in english:
        assert placeholders(english[key]) == placeholders(spanish[key]), key
        assert english[key].strip()
        assert spanish[key].strip()


def calls() -> list[tuple[Path, str, set[str] | None]]:
    """Every text("room.key", name=…) in the source; None where it passes **values."""
    found = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "text"
                and node.args
                and isinstance(node.args[0], ast.Constant)
                and isinstance(node.args[0].value, str)
            ):
                given = {keyword.arg for keyword in node.keywords}
                found.append((path, node.args[0].value, None if None in given else given))
    return found


def test_every_text_that_is_asked_for_exists_with_its_values():
    assert calls()
    for path, key, given in calls():
        room, _, name = key.partition(".")
        message = catalogue("en", room).get(name)
        assert message is not None, f"{path.name}: {key}"
        if given is not None:
            missing = {field for field, _, _ in placeholders(message)} - given
            assert not missing, f"{path.name}: {key} lacks {missing}"


def test_no_text_is_left_over():
    # Keys that are put together at run time appear in the source as whole strings too.
    source = "\n".join(
        path.read_text(encoding="utf-8")
        for path in SOURCE.rglob("*.py")
        if path.parent.parent.name != "locale"
    )
    for room in ROOMS:
        for key in catalogue("en", room):
            used = f'"{room}.{key}"' in source or f"'{room}.{key}'" in source
            assert used, f"{room}.{key} is not used"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "en"),
        ({"LANG": "es_ES.UTF-8"}, "es"),
        ({"LANG": "es_ES.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "es_MX"}, "es"),
        ({"LANG": "es_ES", "INSULA_LANG": "en"}, "en"),
        ({"LC_ALL": "", "LANG": "es"}, "es"),
        ({"INSULA_LANG": "es-AR"}, "es"),
        ({"LANG": "et_EE"}, "en"),
        ({"LANG": "fr_FR.UTF-8"}, "en"),
    ],
)
def test_the_language_follows_the_locale(environ, expected):
    assert language(environ) == expected


def test_a_text_in_both_languages(monkeypatch):
    monkeypatch.setenv("INSULA_LANG", "en")
    english = text("hub.empty_name")
    monkeypatch.setenv("INSULA_LANG", "es")
    assert text("hub.empty_name") != english


def test_a_missing_key_is_our_own_mistake():
    with pytest.raises(KeyError):
        text("hub.there_is_no_such_text")
