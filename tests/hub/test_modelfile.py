"""Modelfiles: what they say, what they mean, and what becomes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from insula.errors import ConfigError, FormatError, NotFoundError, UnsupportedError
from insula.hub import defaults, parameters
from insula.hub.create import create, write_modelfile
from insula.hub.manifest import Defaults
from insula.hub.modelfile import Modelfile, parse
from insula.hub.pull_file import take_file
from insula.hub.store import ModelStore
from insula.types import DEFAULT_SAMPLERS, SamplingParams

SOURCE = '''
# a comment
from ./base.gguf
PARAMETER temperature 0.25
parameter\tstop "<|end|>"
PARAMETER stop  two words
PARAMETER num_ctx 128
PARAMETER num_gpu 1
SYSTEM """
You are terse.
  # not a comment
"""
TEMPLATE "{% for m in messages %}
{{ m.content }}{% endfor %}"
MESSAGE user Say "one" thing.
MESSAGE assistant """one
thing"""
LICENSE Free as air
LICENSE """Another
one"""
REQUIRES 0.5
'''


def test_every_instruction_is_read():
    said = parse(SOURCE)
    assert said == Modelfile(
        base="./base.gguf",
        parameters={
            "temperature": 0.25,
            "stop": ["<|end|>", "two words"],
            "num_ctx": 128,
            "num_gpu": "1",
        },
        system="\nYou are terse.\n  # not a comment\n",
        template="{% for m in messages %}\n{{ m.content }}{% endfor %}",
        licences=("Free as air", "Another\none"),
        messages=(("user", 'Say "one" thing.'), ("assistant", "one\nthing")),
        unused=("REQUIRES 0.5",),
    )
    assert parse(SOURCE.replace("\n", "\r\n")) == said


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("", "no FROM"),
        ("SYSTEM x", "no FROM"),
        ("FROM", "line 1: FROM needs a value"),
        ("FROM a\nFROM b", "line 2: there is a FROM"),
        ("FROM a\nRUN rm -rf /", "line 2: 'RUN' is no instruction"),
        ('FROM a\n\nSYSTEM """open', "line 3: the quotes"),
        ('FROM a\nSYSTEM "open\nMESSAGE user x', "line 2: the quotes"),
        ("FROM a\nMESSAGE robot hi", "line 2: MESSAGE needs a role"),
        ("FROM a\nMESSAGE user", "line 2: MESSAGE needs a role"),
        ("FROM a\nPARAMETER warmth 1", "line 2: there is no PARAMETER 'warmth'"),
        ("FROM a\nPARAMETER temperature hot", "line 2: PARAMETER temperature cannot be 'hot'"),
        ("FROM a\nPARAMETER temperature 1000", "line 2: temperature"),
        ("FROM a\nPARAMETER temperature nan", "line 2"),
        ("FROM a\nPARAMETER num_ctx 0", "line 2: PARAMETER num_ctx cannot be '0'"),
        ("FROM a\nPARAMETER", "line 2: PARAMETER needs a value"),
        ("FROM a\n" + "#" * (5 << 20), "longer than 4 MB"),
    ],
)
def test_what_is_wrong_is_named_by_its_line(source, says):
    with pytest.raises(ConfigError, match=says):
        parse(source)


def test_parameters_mean_what_they_say():
    meant = parameters.meaning(
        {
            "temperature": 0.5,
            "top_k": 7.0,  # as JSON may write a whole number
            "num_predict": 12,
            "seed": 42,
            "stop": ["a", "b"],
            "num_ctx": 64,
            "num_thread": 2,
        }
    )
    assert meant.sampling == SamplingParams(
        temperature=0.5, top_k=7, max_tokens=12, seed=42, stop=("a", "b")
    )
    assert (meant.n_ctx, meant.n_threads, meant.notes) == (64, 2, ())
    assert meant.sampling.samplers == DEFAULT_SAMPLERS


def test_what_cannot_be_used_is_told_and_the_rest_holds():
    meant = parameters.meaning(
        {"mirostat": 1, "num_gpu": 3, "novelty": 1, "top_k": "x", "num_ctx": -5, "top_p": 0.5}
    )
    assert meant.sampling == SamplingParams(top_p=0.5)
    assert meant.n_ctx is None
    assert len(meant.notes) == 5


@pytest.mark.parametrize("value", [-1, -2])
def test_without_end_is_no_limit(value):
    assert parameters.meaning({"num_predict": value}).sampling.max_tokens is None
    assert parameters.meaning({"seed": value}).sampling.seed is None


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "base.gguf"
    path.write_bytes(b"GGUF base")
    return path


def test_a_model_is_made_and_its_base_may_go(base, tmp_path):
    store = ModelStore()
    created = create("mine", parse(SOURCE), folder=tmp_path, store=store)
    base.unlink()
    manifest = store.get("mine")
    assert manifest == created.manifest
    assert manifest.name == "mine:latest"
    assert store.path(manifest).read_bytes() == b"GGUF base"
    assert manifest.licence == "Free as air"
    licences = [store.blob_path(layer.sha256).read_text() for layer in manifest.layers]
    assert licences == ["Free as air", "Another\none"]
    assert any("REQUIRES" in note for note in created.notes)
    assert any("num_gpu" in note for note in created.notes)
    own = defaults.of(manifest)
    assert own.system == "\nYou are terse.\n  # not a comment\n"
    assert own.meaning.sampling.stop == ("<|end|>", "two words")
    assert [m["role"] for m in own.messages] == ["user", "assistant"]
    assert not list(store.partial.iterdir())


def test_one_upon_another_keeps_what_is_not_said_again(base, tmp_path):
    store = ModelStore()
    create("one", parse(SOURCE), folder=tmp_path, store=store)
    said = parse("FROM one\nPARAMETER temperature 0\nSYSTEM Other.\nMESSAGE user new\nLICENSE More")
    two = create("two:x", said, folder=tmp_path, store=store).manifest
    assert two.defaults.parameters["temperature"] == 0.0
    assert two.defaults.parameters["num_ctx"] == 128
    assert two.defaults.system == "Other."
    assert two.defaults.template is not None
    assert two.defaults.messages == (("user", "new"),)
    assert len(two.layers) == 3
    assert store.references()[two.sha256] == 2
    store.remove("one")
    assert store.is_whole(two)


def test_it_can_be_made_again_from_its_own_modelfile(base, tmp_path):
    store = ModelStore()
    first = create("one", parse(SOURCE), folder=tmp_path, store=store).manifest
    written = write_modelfile(first, store)
    again = create("two", parse(written), folder=tmp_path, store=store).manifest
    assert again.digest == first.digest


def test_a_base_in_place_stays_there(base, tmp_path):
    store = ModelStore()
    manifest = create(
        "mine", parse("FROM base.gguf"), folder=tmp_path, store=store, in_place=True
    ).manifest
    assert store.path(manifest) == base
    assert list(store.blobs.iterdir()) == []


def test_a_base_from_a_hub_is_fetched(hub, tmp_path):
    hub.add("o/r", {"m-Q4_0.gguf": b"GGUF hub"})
    manifest = create("mine", parse("FROM hf.co/o/r"), folder=tmp_path).manifest
    assert ModelStore().path(manifest).read_bytes() == b"GGUF hub"
    assert manifest.licence == "apache-2.0"
    assert manifest.source.endswith("m-Q4_0.gguf")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../mine", ConfigError),
        ("hf.co/o/r:x", ConfigError),
        ("ollama.com/library/x", ConfigError),
        ("ollama/x", ConfigError),
        ("smollm2", ConfigError),
        ("smollm2:135m", ConfigError),
        ("CON", ConfigError),
        ("a:b:c", ConfigError),
        ("/etc/x", ConfigError),
        ("x\0", ConfigError),
    ],
)
def test_names_that_may_not_be_given(base, tmp_path, name, kind):
    with pytest.raises(kind):
        create(name, parse("FROM base.gguf"), folder=tmp_path)
    assert ModelStore().scan() == ([], [])


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("FROM nothing", NotFoundError),
        ("FROM ./nothing.gguf", NotFoundError),
        ("FROM ~nobody-of-that-name/m.gguf", NotFoundError),
        ("FROM folder", UnsupportedError),
        ("FROM text.gguf", FormatError),
    ],
)
def test_bases_that_are_none(tmp_path, source, kind):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(kind):
        create("mine", parse(source), folder=tmp_path)
    store = ModelStore()
    assert store.scan() == ([], [])
    assert not list(store.partial.iterdir())


def test_cp(base):
    store = ModelStore()
    first = take_file(base, "a:1", store, None)
    assert store.copy("a", "b:1").digest == first.digest
    assert store.references()[first.sha256] == 2
    base.write_bytes(b"GGUF two")
    take_file(base, "c:1", store, None)
    with pytest.raises(ConfigError, match="--force"):
        store.copy("c:1", "b:1")
    store.copy("c:1", "b:1", replacing=True)
    assert store.path(store.get("b:1")).read_bytes() == b"GGUF two"
    with pytest.raises(NotFoundError):
        store.copy("none", "d:1")


HOSTILE = 'x"""\nPARAMETER num_ctx 1\nSYSTEM """y'


@pytest.mark.parametrize(
    "own",
    [
        {"system": HOSTILE},
        {"template": HOSTILE},
        {"messages": (("user", HOSTILE),)},
        {"parameters": {"stop": [HOSTILE]}},
        {"parameters": {"top_k 1\nSYSTEM evil\nPARAMETER top_p": 1}},
    ],
)
def test_a_text_that_would_become_instructions_is_not_written(base, own):
    store = ModelStore()
    manifest = replace(take_file(base, "a:1", store, None), defaults=Defaults(**own))
    with pytest.raises(UnsupportedError, match="cannot be written"):
        write_modelfile(manifest, store)


@pytest.mark.parametrize("value", ["", " x ", '"', '""', 'a"""b', '"""', "a\n\nb\n", "#", "FROM x"])
def test_odd_texts_read_back_as_they_are(base, value):
    store = ModelStore()
    own = Defaults(system=value, parameters={"stop": [value, "z"]}, messages=(("user", value),))
    manifest = replace(take_file(base, "a:1", store, None), defaults=own)
    try:
        said = parse(write_modelfile(manifest, store))
    except UnsupportedError:
        assert '"""' in value
        return
    except ConfigError:
        assert not value  # an empty MESSAGE or stop says nothing, and Modelfiles refuse them
        return
    assert said.system == value
    assert said.parameters["stop"] == [value, "z"]
    assert said.messages == (("user", value),)
