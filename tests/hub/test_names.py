"""Names: what they may be, and that none leads out of the store."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.errors import ConfigError
from insula.hub.names import (
    HubRef,
    RegistryRef,
    UrlRef,
    WheelRef,
    is_safe_segment,
    parse_hub_ref,
    parse_reference,
    parse_store_name,
)
from insula.hub.store import ModelStore

HOSTILE = [
    "..",
    "../x:1",
    "a/../b:1",
    "/etc/passwd:1",
    "a:../../x",
    "a:..",
    "a//b:1",
    "a\\b:1",
    "C:\\x",
    "a:b:c",
    "a\0b:1",
    "nul:1",
    "x/COM1:1",
    "x:aux",
    ".hidden:1",
    "a.:1",
    "a:",
    "",
    "a b:1",
    "a/b/c/d/e:1",
    "%2e%2e/x:1",
    "é:1",
    "a" * 500 + ":1",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_unsafe_names_are_refused(name):
    with pytest.raises(ConfigError):
        parse_store_name(name)


@given(st.text(max_size=60))
def test_no_name_leaves_the_store(name):
    store = ModelStore(Path("/store"))
    try:
        parsed = parse_store_name(name)
    except ConfigError:
        return
    if parsed.tag is not None:
        path = store.manifest_path(parsed)
        assert path.resolve().is_relative_to(store.manifests)
        assert path == path.resolve()
    assert str(parsed) == name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf.co/o/r", HubRef(owner="o", repo="r")),
        ("hf.co/o/r:Q4_K_M", HubRef(owner="o", repo="r", quant="Q4_K_M")),
        ("huggingface.co/o/r@v1:Q8_0", HubRef(owner="o", repo="r", revision="v1", quant="Q8_0")),
        ("HF.co/o/r/sub/m.gguf", HubRef(owner="o", repo="r", path="sub/m.gguf")),
        ("https://huggingface.co/o/r", HubRef(owner="o", repo="r")),
        (
            "https://huggingface.co/o/r/resolve/main/m.gguf?download=true",
            HubRef(owner="o", repo="r", revision="main", path="m.gguf"),
        ),
        (
            "https://hf.co/o/r/blob/abc/m.gguf",
            HubRef(owner="o", repo="r", revision="abc", path="m.gguf"),
        ),
        ("https://huggingface.co/o/r/tree/main", HubRef(owner="o", repo="r", revision="main")),
    ],
)
def test_references_to_a_hub(text, expected):
    assert parse_hub_ref(text) == expected


@pytest.mark.parametrize("text", ["smollm2:135m", "o/r", "./hf.co/x", "model.gguf", ""])
def test_what_is_no_reference(text):
    assert parse_hub_ref(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "hf.co/",
        "hf.co/o",
        "hf.co/o/../r",
        "hf.co/o/r/readme.md",
        "hf.co/o/r:../x",
        "hf.co/o/r@../x",
        "hf.co/o/r/..%2fx.gguf",
        "https://huggingface.co/o/r/resolve/main/%2e%2e/m.gguf",
        "https://evil.example/o/r",
        "https://huggingface.co@evil.example/o/r",
        "ftp://huggingface.co/o/r",
        "https://huggingface.co",
    ],
)
def test_malformed_references_are_refused(text):
    with pytest.raises(ConfigError):
        parse_hub_ref(text)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("smollm2:135m", type(None)),
        ("mine", type(None)),
        ("ollama/llama3.2:1b", type(None)),
        ("hf.co/o/r", HubRef),
        ("https://huggingface.co/o/r", HubRef),
        ("ollama.com/library/x", RegistryRef),
        ("OLLAMA.com/library/x:1b", RegistryRef),
        ("https://ollama.com/library/x", RegistryRef),
        ("https://example.org/a/b.gguf", UrlRef),
        ("pypi:a-b==1.0", WheelRef),
    ],
)
def test_what_kind_of_place_a_name_means(name, kind):
    assert type(parse_reference(name)) is kind


def test_every_reference_has_a_name_that_the_store_takes():
    for name in (
        "ollama.com/library/x",
        "https://example.org/%2e%2e/%2e%2e%2fetc%2fpasswd.gguf",
        "https://[::1]:8080/con.gguf",
        "https://example.org/" + "x" * 300 + ".gguf",
        "https://ex%61mple.org/a b.gguf",
        "pypi:A.b_C==1.0:x/y/m.gguf",
    ):
        reference = parse_reference(name)
        parsed = parse_store_name(reference.store_name)
        assert all(map(is_safe_segment, (*parsed.parts, parsed.tag))), name
    one, two = (parse_reference(f"https://example.org/{p}/m.gguf") for p in "ab")
    assert one.store_name != two.store_name
