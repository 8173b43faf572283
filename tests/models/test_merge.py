"""LoRA adapters in weights: the sum to the last bit, both file forms, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from golden import golden
from insula.errors import ConfigError, FormatError, InsulaError, NotFoundError, UnsupportedError
from insula.formats.ggml_types import GGMLType
from insula.formats.gguf import GGUFFile
from insula.formats.gguf_writer import GGUFWriter
from insula.models.convert import adjacent_pairs, convert
from insula.models.export import export
from insula.models.load import open_model
from insula.models.merge import merge
from insula.models.quantize import quantize_file
from insula.ops.reference import forward
from tiny_chat_model import HEADS, HIDDEN, WIDTH, write_tiny

RANK, ALPHA = 4, 8
#: PEFT's module -> (GGUF's name, outputs, inputs, heads whose rows are reordered)
MODULES = {
    "model.layers.0.self_attn.q_proj": ("blk.0.attn_q", WIDTH, WIDTH, HEADS),
    "model.layers.1.self_attn.k_proj": ("blk.1.attn_k", WIDTH // 2, WIDTH, HEADS // 2),
    "model.layers.1.mlp.down_proj": ("blk.1.ffn_down", WIDTH, HIDDEN, 0),
}
CONFIG = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "use_dora": False}


def matrices(n_out: int, n_in: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A and B of multiples of 1/64: every sum of their products is exact in float32."""
    rng = np.random.default_rng(seed)
    a = rng.integers(-32, 33, (RANK, n_in)).astype(np.float32) / 64
    b = rng.integers(-32, 33, (n_out, RANK)).astype(np.float32) / 64
    return a, b


def peft(folder: Path, change: Any = None, **settings: Any) -> Path:
    tensors = {}
    for seed, (module, (_, n_out, n_in, _)) in enumerate(MODULES.items()):
        a, b = matrices(n_out, n_in, seed)
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    if change is not None:
        change(tensors)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | settings))
    return folder


def in_gguf(path: Path, *, alpha: float = ALPHA, change: Any = None, **metadata: Any) -> Path:
    """The same adapter as llama.cpp's converter writes it."""
    writer = GGUFWriter(path)
    writer.add("general.type", "adapter")
    writer.add("general.architecture", "llama")
    writer.add("adapter.type", "lora")
    writer.add("adapter.lora.alpha", float(alpha))
    for key, value in metadata.items():
        writer.add(key, value)
    tensors = {}
    for seed, (name, n_out, n_in, heads) in enumerate(MODULES.values()):
        a, b = matrices(n_out, n_in, seed)
        tensors[f"{name}.weight.lora_a"] = a
        tensors[f"{name}.weight.lora_b"] = adjacent_pairs(b, heads) if heads else b
    if change is not None:
        change(tensors)
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write()
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("merge") / "base.gguf")


def check(base: Path, merged: Path, scale: float) -> None:
    """Every changed weight is w + scale * B A, every other tensor the same bytes."""
    changed = {
        f"{name}.weight": (seed, *rest) for seed, (name, *rest) in enumerate(MODULES.values())
    }
    with GGUFFile.open(base) as a, GGUFFile.open(merged) as b:
        for key in a.metadata:
            assert a.raw_metadata(key) == b.raw_metadata(key)
        for name in a.tensors:
            if name not in changed:
                assert a.data(name).tobytes() == b.data(name).tobytes()
                continue
            seed, n_out, n_in, heads = changed[name]
            down, up = matrices(n_out, n_in, seed)
            up = adjacent_pairs(up, heads) if heads else up
            delta = (up.astype(np.float64) @ down.astype(np.float64)) * scale
            wanted = a.dequantize(name) + delta.astype(np.float32)
            assert (b.dequantize(name) == wanted).all()


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, ALPHA / RANK),
        ({"use_rslora": True}, ALPHA / math.sqrt(RANK)),
        ({"lora_alpha": 2, "alpha_pattern": {"q_proj|k_proj|down_proj": ALPHA}}, ALPHA / RANK),
        ({"r": 9, "rank_pattern": {".*_proj": RANK}}, ALPHA / RANK),
    ],
)
def test_peft(base: Path, tmp_path: Path, settings: dict[str, Any], scale: float) -> None:
    report = merge(base, peft(tmp_path / "a", **settings), tmp_path / "out.gguf")
    check(base, tmp_path / "out.gguf", scale)
    assert (report.tensors, report.rank, report.notes) == (3, RANK, ())
    assert report.size == (tmp_path / "out.gguf").stat().st_size
    assert report.rms > 0


def test_gguf_is_the_same(base: Path, tmp_path: Path) -> None:
    merge(base, peft(tmp_path / "a"), tmp_path / "peft.gguf")
    merge(base, in_gguf(tmp_path / "a.gguf"), tmp_path / "gguf.gguf")
    assert (tmp_path / "peft.gguf").read_bytes() == (tmp_path / "gguf.gguf").read_bytes()
    merge(base, in_gguf(tmp_path / "b.gguf", alpha=0), tmp_path / "plain.gguf")
    check(base, tmp_path / "plain.gguf", 1.0)


def test_scale_and_taking_it_out_again(base: Path, tmp_path: Path) -> None:
    adapter = in_gguf(tmp_path / "a.gguf")
    merge(base, adapter, tmp_path / "half.gguf", scale=0.5)
    check(base, tmp_path / "half.gguf", 0.5 * ALPHA / RANK)
    merge(base, adapter, tmp_path / "in.gguf")
    merge(tmp_path / "in.gguf", adapter, tmp_path / "out.gguf", scale=-1)
    with GGUFFile.open(base) as a, GGUFFile.open(tmp_path / "out.gguf") as b:
        for name in a.tensors:
            np.testing.assert_allclose(b.dequantize(name), a.dequantize(name), atol=1e-6)


def test_the_models_answer_is_the_adapted_ones(base: Path, tmp_path: Path) -> None:
    """x (W + s B A)^T is x W^T + s (x A^T) B^T, which is what running an adapter computes."""
    merge(base, in_gguf(tmp_path / "a.gguf"), tmp_path / "out.gguf")

    class Adapted:
        def __init__(self, gguf: GGUFFile) -> None:
            self.gguf = gguf

        def dequantize(self, name: str) -> np.ndarray:
            weight = self.gguf.dequantize(name)
            for seed, (changed, n_out, n_in, heads) in enumerate(MODULES.values()):
                if name == f"{changed}.weight":
                    a, b = matrices(n_out, n_in, seed)
                    weight = weight + (adjacent_pairs(b, heads) if heads else b) @ a * 2
            return weight

    ids = list(range(5, 25))
    with open_model(base) as before, open_model(tmp_path / "out.gguf") as after:
        wanted = forward(before.graph, Adapted(before.gguf), ids)
        plain = forward(before.graph, before.gguf, ids)
        found = forward(after.graph, after.gguf, ids)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.abs(found - plain).max() > 0.1


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_the_sum_goes_back_into_the_tensors_own_type(base: Path, tmp_path: Path, kind: str) -> None:
    quantize_file(base, tmp_path / "b.gguf", kind)
    report = merge(tmp_path / "b.gguf", in_gguf(tmp_path / "a.gguf"), tmp_path / "out.gguf")
    assert bool(report.notes) == (kind == "Q8_0")
    with GGUFFile.open(tmp_path / "b.gguf") as a, GGUFFile.open(tmp_path / "out.gguf") as b:
        assert {n: i.type for n, i in a.tensors.items()} == {
            n: i.type for n, i in b.tensors.items()
        }
        down, up = matrices(WIDTH, HIDDEN, 2)
        wanted = a.dequantize("blk.1.ffn_down.weight") + up @ down * 2
        found = b.dequantize("blk.1.ffn_down.weight")
        if kind == "F16":
            assert (found == wanted.astype(np.float16)).all()
        step = {"F16": 2**-11, "BF16": 2**-8, "Q8_0": 2**-7}[kind]
        assert np.abs(found - wanted).max() <= step * np.abs(wanted).max()


def wider(tensors: dict[str, np.ndarray]) -> None:
    key = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"
    tensors[key] = np.zeros((RANK, HIDDEN + 32), np.float32)


def renamed(to: str, part: str = "lora_A.weight") -> Any:
    def change(tensors: dict[str, np.ndarray]) -> None:
        first = next(k for k in tensors if k.endswith(part))
        tensors[to] = tensors.pop(first)

    return change


@pytest.mark.parametrize(
    ("settings", "change", "error", "says"),
    [
        ({"use_dora": True}, None, UnsupportedError, "DoRA"),
        ({"peft_type": "IA3"}, None, UnsupportedError, "IA3"),
        ({"bias": "all"}, None, UnsupportedError, "biases"),
        ({"modules_to_save": ["lm_head"]}, None, UnsupportedError, "as a whole"),
        ({"fan_in_fan_out": True}, None, UnsupportedError, "fan_in_fan_out"),
        ({"lora_alpha": None}, None, FormatError, "lora_alpha"),
        ({"r": 3}, None, FormatError, "rank of 4"),
        ({}, wider, FormatError, "another model"),
        (
            {},
            renamed("base_model.model.model.layers.9.mlp.up_proj.lora_A.weight"),
            FormatError,
            "only one of",
        ),
        (
            {},
            renamed("base_model.model.x.lora_magnitude_vector"),
            UnsupportedError,
            "DoRA",
        ),
        (
            {},
            renamed("base_model.model.model.embed_tokens.lora_embedding_A"),
            UnsupportedError,
            "embedding",
        ),
        ({}, lambda t: t.clear(), FormatError, "no LoRA matrices"),
        (
            {},
            lambda t: t.update(
                {
                    f"base_model.model.model.layers.7.mlp.up_proj.lora_{x}.weight": np.zeros(
                        shape, np.float32
                    )
                    for x, shape in (("A", (RANK, WIDTH)), ("B", (HIDDEN, RANK)))
                }
            ),
            FormatError,
            "blk.7.ffn_up.weight, which base.gguf does not have",
        ),
        (
            {},
            lambda t: next(iter(t.values())).__setitem__((0, 0), np.nan),
            FormatError,
            "NaN",
        ),
    ],
)
def test_peft_adapters_that_are_refused(
    base: Path,
    tmp_path: Path,
    settings: dict[str, Any],
    change: Any,
    error: type[InsulaError],
    says: str,
) -> None:
    adapter = peft(tmp_path / "a", change, **settings)
    with pytest.raises(error, match=says):
        merge(base, adapter, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    ("metadata", "change", "error", "says"),
    [
        ({"general.architecture": "qwen2"}, None, FormatError, "'qwen2'.*'llama'"),
        ({"adapter.type": "control_vector"}, None, UnsupportedError, "control_vector"),
        ({"general.type": "model"}, None, FormatError, "no adapter"),
        ({"adapter.alora.invocation_tokens": [1, 2]}, None, UnsupportedError, "aLoRA"),
        ({}, lambda t: t.pop("blk.0.attn_q.weight.lora_b"), FormatError, "only one"),
        ({}, lambda t: t.update(extra=np.ones(3, np.float32)), UnsupportedError, "extra"),
    ],
)
def test_gguf_adapters_that_are_refused(
    base: Path, tmp_path: Path, metadata: Any, change: Any, error: type[InsulaError], says: str
) -> None:
    adapter = in_gguf(tmp_path / "a.gguf", change=change, **metadata)
    with pytest.raises(error, match=says):
        merge(base, adapter, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_paths(base: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="PEFT folder"):
        merge(base, tmp_path / "gone", tmp_path / "out.gguf")
    with pytest.raises(NotFoundError, match="adapter_config"):
        merge(base, tmp_path, tmp_path / "out.gguf")
    folder = peft(tmp_path / "a")
    merge(base, folder / "adapter_model.safetensors", tmp_path / "out.gguf")
    check(base, tmp_path / "out.gguf", ALPHA / RANK)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(NotFoundError, match="run code"):
        merge(base, folder, tmp_path / "x.gguf")
    adapter = in_gguf(tmp_path / "a.gguf")
    with pytest.raises(ConfigError, match="exists"):
        merge(base, adapter, tmp_path / "out.gguf")
    with pytest.raises(ConfigError, match="finite"):
        merge(base, adapter, tmp_path / "x.gguf", scale=math.nan)
    with pytest.raises(ConfigError, match="itself"):
        merge(tmp_path / "out.gguf", adapter, tmp_path / "out.gguf", overwrite=True)
    seen: list[tuple[int, int]] = []
    merge(base, adapter, tmp_path / "p.gguf", progress=lambda *at: seen.append(at))
    assert seen == [(i, len(seen)) for i in range(1, len(seen) + 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen2", "phi", "gemma3"])
@pytest.mark.parametrize("rslora", [False, True])
def test_what_peft_itself_merges(tmp_path: Path, name: str, rslora: bool) -> None:
    """merge_and_unload's weights, for random adapters of every linear of the model."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft_library = pytest.importorskip("peft")
    source = golden.load(name).write(tmp_path)
    export(source, tmp_path / "folder")
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    settings = peft_library.LoraConfig(
        r=3, lora_alpha=5, use_rslora=rslora, target_modules="all-linear", init_lora_weights=False
    )
    adapted = peft_library.get_peft_model(model, settings)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    for file in (tmp_path / "folder").glob("tokenizer*"):
        (tmp_path / "merged" / file.name).write_bytes(file.read_bytes())
    convert(tmp_path / "merged", tmp_path / "theirs.gguf")
    report = merge(source, tmp_path / "adapter", tmp_path / "ours.gguf")
    assert report.tensors >= 4
    with GGUFFile.open(tmp_path / "theirs.gguf") as a, GGUFFile.open(tmp_path / "ours.gguf") as b:
        assert set(a.tensors) == set(b.tensors)
        for tensor in a.tensors:
            assert a.tensors[tensor].type is b.tensors[tensor].type is GGMLType.F32
            # Both sum in float32, each in its own order.
            np.testing.assert_allclose(
                b.dequantize(tensor), a.dequantize(tensor), rtol=1e-5, atol=2e-7
            )
