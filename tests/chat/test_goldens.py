"""Every template renders what transformers renders: stored goldens, and transformers itself."""

from __future__ import annotations

import datetime as dt
import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from insula.chat import known
from insula.chat.formats import FORMATS
from insula.chat.templates import ChatTemplate
from insula.errors import TemplateError

HERE = Path(__file__).parent
GOLDENS = sorted(path.stem for path in (HERE / "goldens").glob("*.json"))
PUBLISHED = [name for name in GOLDENS if name != "dialect" and not name.startswith("format-")]


def _module(name: str) -> ModuleType:
    """A neighbour of this file, whatever the import mode."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(name, module)
    spec.loader.exec_module(module)
    return module


CONVERSATIONS: dict[str, dict[str, Any]] = _module("conversations").CONVERSATIONS


def source_of(name: str, request: pytest.FixtureRequest) -> str:
    if name == "dialect":
        return (HERE / "dialect.jinja").read_text(encoding="utf-8")
    if name.startswith("format-"):
        return FORMATS[name.removeprefix("format-")]
    templates: dict[str, str] = request.getfixturevalue("published_templates")
    return templates[name]


def render(template: ChatTemplate, conversation: dict[str, Any], **more: Any) -> str | None:
    given = dict(conversation)
    messages = given.pop("messages")
    try:
        return template.render(messages, **given, **more)
    except TemplateError:
        return None


@pytest.mark.parametrize("name", GOLDENS)
def test_renders_as_transformers_did(name: str, request: pytest.FixtureRequest) -> None:
    source = source_of(name, request)
    golden = json.loads((HERE / "goldens" / f"{name}.json").read_text(encoding="utf-8"))
    assert hashlib.sha256(source.encode()).hexdigest() == golden["sha256"]
    template = ChatTemplate(source, **golden["tokens"])
    assert {key.partition("/")[0] for key in golden["texts"]} == set(CONVERSATIONS)
    for key, expected in golden["texts"].items():
        conversation, _, kind = key.partition("/")
        text = render(
            template,
            CONVERSATIONS[conversation],
            add_generation_prompt=kind == "prompt",
            now=dt.datetime.fromisoformat(golden["clock"]),
        )
        assert text == expected, key


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_templates_render_alike_in_the_child(
    name: str, request: pytest.FixtureRequest
) -> None:
    """One character more makes the template unknown, so that it runs apart."""
    source = source_of(name, request)
    assert known.origin(source)
    here = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    apart = ChatTemplate("{# #}" + source, bos_token="<s>", eos_token="</s>")
    assert here.origin
    assert apart.origin is None
    now = dt.datetime(2026, 2, 3, tzinfo=dt.UTC)
    for conversation in CONVERSATIONS.values():
        assert render(here, conversation, now=now) == render(apart, conversation, now=now)


@pytest.mark.parametrize("name", GOLDENS)
def test_renders_as_the_transformers_that_is_here(
    name: str, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    maker = _module("make_goldens")
    source = source_of(name, request)
    template = ChatTemplate(source, **maker.TOKENS)
    for title, conversation in CONVERSATIONS.items():
        for prompt in (True, False):
            text = render(template, conversation, add_generation_prompt=prompt, now=maker.CLOCK)
            assert text == maker.render(source, conversation, prompt=prompt), title
