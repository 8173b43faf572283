"""Adapters through the front door: files by name, one per request, the same as merged weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from golden import golden
from insula import LLM
from insula.errors import ConfigError, FormatError, UnsupportedError
from insula.formats.gguf import GGUFFile
from insula.formats.gguf_writer import GGUFWriter
from insula.models.merge import merge

GREEDY = {"temperature": 0, "max_tokens": 16, "ignore_eos": True}
PROMPT = list(range(5, 25))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return golden.load("llama").write(tmp_path)


def factors(base: Path, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    made = {}
    with GGUFFile.open(base) as gguf:
        for name, info in gguf.tensors.items():
            if ".attn_q." in name or ".ffn_down." in name:
                out, width = info.shape
                down = rng.standard_normal((4, width)).astype(np.float32)
                up = (rng.standard_normal((out, 4)) / 4).astype(np.float32)
                made[name] = (down, up)
    return made


def gguf_adapter(base: Path, path: Path, seed: int) -> Path:
    writer = GGUFWriter(path)
    writer.add("general.architecture", "llama")
    writer.add("general.type", "adapter")
    writer.add("adapter.type", "lora")
    writer.add("adapter.lora.alpha", np.float32(2.0))
    for name, (down, up) in factors(base, seed).items():
        writer.add_tensor(f"{name}.lora_a", down)
        writer.add_tensor(f"{name}.lora_b", up)
    writer.write()
    return path


def peft_adapter(base: Path, folder: Path, seed: int) -> Path:
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for name, (down, up) in factors(base, seed).items():
        layer, kind = name.split(".")[1:3]
        module = {"attn_q": "self_attn.q_proj", "ffn_down": "mlp.down_proj"}[kind]
        prefix = f"base_model.model.model.layers.{layer}.{module}"
        tensors |= {f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_each_request_goes_through_its_own(base: Path, tmp_path: Path) -> None:
    paths = {
        "a": gguf_adapter(base, tmp_path / "a.gguf", 1),
        "b": peft_adapter(base, tmp_path / "b", 2),
    }
    wanted = {}
    for name, path in {None: None, **paths}.items():
        model = base
        if path is not None:
            model = tmp_path / f"merged-{name}.gguf"
            merge(base, path, model)
        with LLM(model, kv_type="f32", n_ctx=128) as llm:
            wanted[name] = llm.generate(PROMPT, **GREEDY).token_ids
    assert len(set(wanted.values())) == 3
    with LLM(base, kv_type="f32", n_ctx=128, adapters=paths) as llm:
        assert llm.model_info.adapters == ("a", "b")
        for _ in range(2):
            for name in (None, "a", "b"):
                assert llm.generate(PROMPT, adapter=name, **GREEDY).token_ids == wanted[name]
                streamed = [c.token_ids for c in llm.stream(PROMPT, adapter=name, **GREEDY)]
                assert sum(streamed, ()) == wanted[name]
        session = llm.chat_session(adapter="a", template="chatml", **GREEDY)
        plain = llm.chat_session(template="chatml", **GREEDY)
        assert session.send("the island").token_ids != plain.send("the island").token_ids


def test_names_and_refusals(base: Path, tmp_path: Path) -> None:
    path = gguf_adapter(base, tmp_path / "mine.gguf", 1)
    with LLM(base, n_ctx=128, adapters=[path]) as llm:
        assert llm.model_info.adapters == ("mine",)
        with pytest.raises(ConfigError, match="found 'other'; allowed: mine"):
            llm.generate(PROMPT, adapter="other", **GREEDY)
    with LLM(base, n_ctx=128) as llm, pytest.raises(ConfigError, match="none is loaded"):
        llm.generate(PROMPT, adapter="mine", **GREEDY)
    with pytest.raises(ConfigError, match="the same name"):
        LLM(base, adapters=[path, path])
    with pytest.raises(UnsupportedError, match="adapters"):
        LLM(base, engine="reference", adapters=[path])
    other = golden.load("qwen3").write(tmp_path)
    with pytest.raises(FormatError, match="for 'llama'"):
        LLM(other, adapters=[path])


@pytest.mark.parametrize(
    "change",
    [
        {"rank_pattern": {"(.*)*(.*)*(.*)*(.*)*(.*)*zz": 4}},
        {"rank_pattern": ["q_proj"]},
        {"alpha_pattern": "q_proj"},
        {"lora_alpha": 10**400},
        {"lora_alpha": 1e300},
    ],
)
def test_a_folder_that_lies_is_a_typed_error_at_once(base: Path, tmp_path: Path, change) -> None:
    folder = peft_adapter(base, tmp_path / "p", 1)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises((FormatError, UnsupportedError)):
        LLM(base, adapters=[folder])


def test_models_for_embeddings_take_no_adapters(base: Path, tmp_path: Path) -> None:
    path = gguf_adapter(base, tmp_path / "mine.gguf", 1)
    with pytest.raises(UnsupportedError, match="insula merge"):
        LLM(golden.load("bert").write(tmp_path), adapters=[path])
