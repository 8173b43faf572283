"""ADAPTER of a Modelfile: checked when the model is made, applied whenever it runs."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from golden import golden
from insula import LLM
from insula.errors import (
    ChecksumError,
    ConfigError,
    FormatError,
    InsulaError,
    NotFoundError,
    UnsupportedError,
)
from insula.formats.gguf import GGUFFile
from insula.formats.gguf_writer import GGUFWriter
from insula.hub import bundle
from insula.hub.create import create, write_modelfile
from insula.hub.modelfile import parse
from insula.hub.pull import pull
from insula.hub.resolve import locate, resolve
from insula.hub.store import ModelStore
from insula.models.merge import merge

PROMPT = list(range(5, 25))
GREEDY = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return golden.load("llama").write(tmp_path)


def factors(base: Path, seed: int = 1) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    made = {}
    with GGUFFile.open(base) as gguf:
        for name, info in gguf.tensors.items():
            if ".attn_q." in name or ".ffn_down." in name:
                out, width = info.shape
                down = rng.standard_normal((4, width)).astype(np.float32)
                made[name] = down, (rng.standard_normal((out, 4)) / 4).astype(np.float32)
    return made


def gguf_adapter(base: Path, path: Path, *, arch: str = "llama", seed: int = 1) -> Path:
    writer = GGUFWriter(path)
    writer.add("general.architecture", arch)
    writer.add("general.type", "adapter")
    writer.add("adapter.type", "lora")
    writer.add("adapter.lora.alpha", np.float32(2.0))
    for name, (down, up) in factors(base, seed).items():
        writer.add_tensor(f"{name}.lora_a", down)
        writer.add_tensor(f"{name}.lora_b", up)
    writer.write()
    return path


def peft_adapter(base: Path, folder: Path) -> Path:
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for name, (down, up) in factors(base).items():
        layer, kind = name.split(".")[1:3]
        module = {"attn_q": "self_attn.q_proj", "ffn_down": "mlp.down_proj"}[kind]
        prefix = f"base_model.model.model.layers.{layer}.{module}"
        tensors |= {f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def make(folder: Path, adapter: str, name: str = "mine"):
    return create(name, parse(f"FROM ./llama.gguf\nADAPTER {adapter}"), folder=folder).manifest


@pytest.mark.parametrize("kind", ["gguf", "peft"])
def test_the_model_goes_through_its_adapter(base, tmp_path, kind) -> None:
    if kind == "gguf":
        adapter = gguf_adapter(base, tmp_path / "lora.gguf")
    else:
        adapter = peft_adapter(base, tmp_path / "lora")
    merge(base, adapter, tmp_path / "merged.gguf")
    with LLM(tmp_path / "merged.gguf", kv_type="f32", n_ctx=128) as llm:
        wanted = llm.generate(PROMPT, **GREEDY).token_ids
    with LLM(base, kv_type="f32", n_ctx=128, adapters={"a": adapter}) as llm:
        plain = llm.generate(PROMPT, **GREEDY).token_ids
        logits = llm.logits(PROMPT)
    manifest = make(tmp_path, adapter.name)
    assert [layer.kind for layer in manifest.layers] == ["adapter"]
    base.unlink()
    for defaults in (True, False):
        with LLM("mine", kv_type="f32", n_ctx=128, defaults=defaults) as llm:
            assert llm.model_info.adapters == ("mine:latest",)
            assert llm.generate(PROMPT, **GREEDY).token_ids == wanted != plain
            streamed = [chunk.token_ids for chunk in llm.stream(PROMPT, **GREEDY)]
            assert sum(streamed, ()) == wanted
            assert np.abs(llm.logits(PROMPT) - logits).max() > 1e-3


def test_another_adapter_may_be_chosen_beside_it(base, tmp_path) -> None:
    gguf_adapter(base, tmp_path / "lora.gguf")
    other = gguf_adapter(base, tmp_path / "other.gguf", seed=2)
    make(tmp_path, "lora.gguf")
    with LLM(base, kv_type="f32", n_ctx=128, adapters=[other]) as llm:
        wanted = llm.generate(PROMPT, adapter="other", **GREEDY).token_ids
    with LLM("mine", kv_type="f32", n_ctx=128, adapters=[other]) as llm:
        assert llm.generate(PROMPT, adapter="other", **GREEDY).token_ids == wanted
        assert llm.generate(PROMPT, **GREEDY).token_ids != wanted
    with pytest.raises(ConfigError, match="the model's own"):
        LLM("mine", adapters={"mine:latest": other})


def test_a_folders_adapter_is_the_same_numbers(base, tmp_path) -> None:
    folder = peft_adapter(base, tmp_path / "lora")
    manifest = make(tmp_path, "lora")
    kept = ModelStore().blob_path(manifest.layers[0].sha256)
    with (
        LLM(base, kv_type="f32", n_ctx=64, adapters={"a": folder}) as one,
        LLM(base, kv_type="f32", n_ctx=64, adapters={"a": kept}) as two,
    ):
        for llm in (one, two):
            llm.generate(PROMPT, adapter="a", **GREEDY)
        first, second = (llm.generate(PROMPT, adapter="a", **GREEDY) for llm in (one, two))
        assert first.token_ids == second.token_ids
    again = make(tmp_path, "lora", "again")
    assert again.digest == manifest.digest


@pytest.mark.parametrize(
    ("adapter", "kind", "says"),
    [
        ("none.gguf", NotFoundError, "none.gguf"),
        ("text.gguf", FormatError, "ADAPTER .*text.gguf"),
        ("llama.gguf", FormatError, "is no adapter"),
        ("stranger.gguf", FormatError, "is for 'qwen2'"),
        ("wide.gguf", FormatError, "another model"),
        ("folder", InsulaError, "ADAPTER .*folder: .*folder.adapter_config.json"),
    ],
)
def test_what_is_no_adapter_of_this_base(base, tmp_path, adapter, kind, says) -> None:
    (tmp_path / "text.gguf").write_text("not an adapter")
    (tmp_path / "folder").mkdir()
    gguf_adapter(base, tmp_path / "stranger.gguf", arch="qwen2")
    writer = GGUFWriter(tmp_path / "wide.gguf")
    writer.add("general.architecture", "llama")
    writer.add("general.type", "adapter")
    writer.add("adapter.type", "lora")
    writer.add_tensor("blk.0.attn_q.weight.lora_a", np.ones((4, 7), np.float32))
    writer.add_tensor("blk.0.attn_q.weight.lora_b", np.ones((9, 4), np.float32))
    writer.write()
    with pytest.raises(kind, match=says):
        make(tmp_path, adapter)
    store = ModelStore()
    assert store.scan() == ([], [])
    assert not [path for path in store.root.rglob("*") if path.is_file()]


def test_bases_that_take_no_adapter_and_two_at_once(base, tmp_path) -> None:
    gguf_adapter(base, tmp_path / "lora.gguf")
    golden.load("bert").write(tmp_path)
    with pytest.raises(UnsupportedError, match="embeddings"):
        create("x", parse("FROM ./bert.gguf\nADAPTER lora.gguf"), folder=tmp_path)
    two = "FROM ./llama.gguf\nADAPTER lora.gguf\nADAPTER lora.gguf"
    with pytest.raises(UnsupportedError, match="2 ADAPTER lines"):
        create("x", parse(two), folder=tmp_path)


def test_it_travels_with_the_model(base, tmp_path) -> None:
    gguf_adapter(base, tmp_path / "lora.gguf")
    store, other = ModelStore(), ModelStore(tmp_path / "elsewhere")
    manifest = make(tmp_path, "lora.gguf")
    again = create("two", parse(write_modelfile(manifest, store)), folder=tmp_path).manifest
    assert again.digest == manifest.digest
    upon = create("three", parse("FROM mine\nSYSTEM x"), folder=tmp_path).manifest
    assert upon.layers == manifest.layers
    gguf_adapter(base, tmp_path / "new.gguf", seed=3)
    replaced = create("four", parse("FROM mine\nADAPTER new.gguf"), folder=tmp_path).manifest
    assert len(replaced.layers) == 1
    assert replaced.layers != manifest.layers
    bundle.export(["mine"], tmp_path / "b.tar", store=store)
    (taken,) = bundle.take(tmp_path / "b.tar", store=other)
    assert locate("mine", store=other).adapter == other.blob_path(taken.layers[0].sha256)


def test_where_only_a_file_will_do_it_is_refused(base, tmp_path) -> None:
    gguf_adapter(base, tmp_path / "lora.gguf")
    make(tmp_path, "lora.gguf")
    with pytest.raises(UnsupportedError, match="insula merge"):
        resolve("mine")
    with pytest.raises(UnsupportedError, match="insula merge"):
        LLM(base, speculate="mine")


def test_without_its_bytes_it_is_not_another_model(base, tmp_path) -> None:
    gguf_adapter(base, tmp_path / "lora.gguf")
    manifest = make(tmp_path, "lora.gguf")
    ModelStore().blob_path(manifest.layers[0].sha256).unlink()
    with pytest.raises(NotFoundError, match="missing or incomplete"):
        LLM("mine")


def test_an_adapter_of_a_registry(hub, base, tmp_path, quick) -> None:
    adapter = gguf_adapter(base, tmp_path / "lora.gguf")
    layers = [("model", base.read_bytes()), ("adapter", adapter.read_bytes())]
    hub.add_to_registry("library/lora:latest", layers)
    hub.add_to_registry("library/bad:latest", [("model", base.read_bytes()), ("adapter", b"GGUF")])
    pull("ollama.com/library/lora", retry=quick)
    with LLM(base, n_ctx=64, adapters=[adapter]) as llm:
        wanted = llm.generate(PROMPT, adapter="lora", **GREEDY).token_ids
    with LLM("ollama.com/library/lora", n_ctx=64) as llm:
        assert llm.generate(PROMPT, **GREEDY).token_ids == wanted
    pull("ollama.com/library/bad", retry=quick)
    with pytest.raises(FormatError):
        LLM("ollama.com/library/bad")


def test_its_signature_is_asked_for(base, tmp_path, monkeypatch) -> None:
    gguf_adapter(base, tmp_path / "lora.gguf")
    peft_adapter(base, tmp_path / "folder")
    key = base64.b64encode(b"Ed" + bytes(8) + bytes(32)).decode()
    keys = tmp_path / "keys"
    keys.write_text("".join(f"{key} file:{tmp_path}/{name}\n" for name in ("lora", "folder")))
    monkeypatch.setenv("INSULA_TRUSTED_KEYS", str(keys))
    for name in ("lora.gguf", "folder"):
        with pytest.raises(ChecksumError, match="must be signed"):
            make(tmp_path, name)
    (tmp_path / "lora.gguf.minisig").write_bytes(
        b"untrusted comment: x\n%s\ntrusted comment: y\n%s\n"
        % (base64.b64encode(b"ED" + bytes(72)), base64.b64encode(bytes(64)))
    )
    with pytest.raises(ChecksumError, match="was not made over these bytes"):
        make(tmp_path, "lora.gguf")
