"""Our GPT4All has gpt4all 2.8.2's face: every member, parameter, kind, default and annotation."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from compat.gpt4all_face import CLASSES, EXCEPTIONS, face
from insula.compat import gpt4all as ours

GOLDEN = json.loads((Path(__file__).parent / "gpt4all_face.json").read_text(encoding="utf-8"))

#: What we add: keyword-only parameters of later versions.
ADDED = {("GPT4All", "chat_session"): ["system_message", "chat_template"]}


def members() -> list[tuple[str, str]]:
    return [(cls, name) for cls in CLASSES for name in GOLDEN["classes"][cls]]


@pytest.mark.parametrize(("cls", "name"), members())
def test_member(cls: str, name: str) -> None:
    theirs: dict[str, Any] = GOLDEN["classes"][cls][name]
    mine = face(ours)["classes"][cls][name]
    added = [p for p in mine.get("parameters", []) if p["name"] in ADDED.get((cls, name), [])]
    assert all(p["kind"] == "KEYWORD_ONLY" and p["default"] != "-" for p in added)
    assert [p["name"] for p in added] == ADDED.get((cls, name), [])
    if "parameters" in mine:
        mine["parameters"] = [p for p in mine["parameters"] if p not in added]
    assert mine == theirs


def test_exceptions() -> None:
    assert face(ours)["exceptions"] == GOLDEN["exceptions"]
    assert set(GOLDEN["exceptions"]) == set(EXCEPTIONS)


def test_nothing_public_beyond_theirs() -> None:
    for cls in CLASSES:
        assert set(face(ours)["classes"][cls]) == set(GOLDEN["classes"][cls])


def test_the_golden_is_what_the_package_says() -> None:
    """Where the real package is installed, the stored golden must still describe it."""
    try:
        installed = version("gpt4all")
    except PackageNotFoundError:
        pytest.skip("gpt4all is not installed; its golden says what it was made from")
    if installed != GOLDEN["provenance"]["version"]:
        pytest.skip(f"gpt4all {installed} is installed, the golden is of another version")
    import gpt4all

    assert face(gpt4all) == {key: GOLDEN[key] for key in ("classes", "exceptions")}
