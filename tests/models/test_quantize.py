"""quantize_file: llama.cpp's mixes, a truthful report, all or nothing."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from formats import gguf_bytes as raw
from insula.errors import ConfigError, FormatError, NotFoundError, UnsupportedError
from insula.formats.ggml_types import GGMLType as T
from insula.formats.gguf import GGUFFile, TensorInfo
from insula.formats.gguf_metadata import ValueType
from insula.formats.gguf_writer import GGUFWriter
from insula.models.mixes import TARGETS, Mix, is_quantized, target
from insula.models.quantize import quantize_file

LAYERS = 8


def model(path: Path, *, embd: int = 256, ff: int = 512, kind: T | None = None) -> Path:
    """A random Llama of 8 layers with tied embeddings."""
    rng = np.random.default_rng(0)
    writer = GGUFWriter(path)
    writer.add("general.architecture", "llama")
    writer.add("general.name", "random")
    writer.add("llama.block_count", LAYERS)
    writer.add("llama.attention.head_count", 4)
    writer.add("llama.attention.head_count_kv", 2)
    writer.add("tokenizer.ggml.tokens", [f"t{i}" for i in range(64)])
    writer.add("odd.value", np.int16(-3))

    def weight(name: str, *shape: int) -> None:
        values = rng.standard_normal(shape).astype(np.float32) * 0.05
        writer.add_tensor(name, values, kind if len(shape) > 1 else None)

    weight("token_embd.weight", 64, embd)
    weight("output_norm.weight", embd)
    for i in range(LAYERS):
        weight(f"blk.{i}.attn_norm.weight", embd)
        for part in ("q", "k", "v", "output"):
            weight(f"blk.{i}.attn_{part}.weight", embd, embd)
        weight(f"blk.{i}.ffn_norm.weight", embd)
        weight(f"blk.{i}.ffn_up.weight", ff, embd)
        weight(f"blk.{i}.ffn_down.weight", embd, ff)
        weight(f"blk.{i}.attn_q.bias", embd)
    writer.write()
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("quantize") / "f32.gguf")


@pytest.mark.parametrize("name", TARGETS)
def test_every_format(source: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out.gguf"
    report = quantize_file(source, out, name.lower())
    assert report.size == out.stat().st_size
    assert report.source_size == source.stat().st_size
    with GGUFFile.open(source) as before, GGUFFile.open(out) as after:
        assert after.metadata["general.file_type"] == TARGETS[name].file_type
        assert after.metadata["general.quantization_version"] == 2
        for key in before.metadata:
            assert after.raw_metadata(key) == before.raw_metadata(key)
        assert list(after.tensors) == list(before.tensors)
        squares, n = 0.0, 0
        for info in after.tensors.values():
            was = before.dequantize(info.name)
            now = after.dequantize(info.name)
            assert now.shape == was.shape
            if info.name.endswith(("norm.weight", "bias")):
                assert info.type is T.F32
                np.testing.assert_array_equal(now, was)
            elif info.type is not T.F32:
                squares += float(((now - was).astype(np.float64) ** 2).sum())
                n += now.size
                most = {T.Q2_K: 0.3, T.Q3_K: 0.16, T.MXFP4: 0.13}.get(info.type, 0.1)
                assert report.tensor_rmse[info.name] < most * was.std()
        assert report.rmse == pytest.approx(np.sqrt(squares / n) if n else 0.0, rel=1e-4)
        counts: dict[str, int] = {}
        for info in after.tensors.values():
            counts[info.type.name] = counts.get(info.type.name, 0) + 1
        assert report.counts == counts
        total = sum(info.n_elements for info in after.tensors.values())
        assert report.bits_per_weight == pytest.approx(8 * report.size / total)


def types(path: Path) -> dict[str, str]:
    with GGUFFile.open(path) as file:
        return {info.name: info.type.name for info in file.tensors.values()}


def test_q4_k_m_is_llama_cpps(source: Path, tmp_path: Path) -> None:
    quantize_file(source, tmp_path / "out.gguf", "Q4_K_M")
    found = types(tmp_path / "out.gguf")
    assert found["token_embd.weight"] == "Q6_K"  # tied: it is the output too
    # First and last eighth, and every third between: of 8 layers 0, 3, 6 and 7.
    for i in range(LAYERS):
        more = "Q6_K" if i in (0, 3, 6, 7) else "Q4_K"
        assert found[f"blk.{i}.attn_v.weight"] == more
        assert found[f"blk.{i}.ffn_down.weight"] == more
        for part in ("attn_q", "attn_k", "attn_output", "ffn_up"):
            assert found[f"blk.{i}.{part}.weight"] == "Q4_K"


def test_q4_k_s_is_llama_cpps(source: Path, tmp_path: Path) -> None:
    quantize_file(source, tmp_path / "out.gguf", "Q4_K_S")
    found = types(tmp_path / "out.gguf")
    assert [found[f"blk.{i}.attn_v.weight"] for i in range(8)] == ["Q5_K"] * 4 + ["Q4_K"] * 4
    assert [found[f"blk.{i}.ffn_down.weight"] for i in range(8)] == ["Q5_K"] + ["Q4_K"] * 7


@pytest.mark.parametrize(
    ("name", "base", "value", "down", "output"),
    [
        ("Q2_K", "Q2_K", ["Q3_K"] * 8, ["Q3_K"] * 8, "Q3_K"),
        ("Q2_K_S", "Q2_K", ["Q2_K"] * 8, ["Q4_K"] + ["Q2_K"] * 7, "Q2_K"),
        ("Q3_K_S", "Q3_K", ["Q3_K"] * 8, ["Q3_K"] * 8, "Q3_K"),
        ("Q3_K_M", "Q3_K", ["Q5_K"] * 2 + ["Q4_K"] * 6, ["Q4_K"] * 8, "Q4_K"),
        ("Q3_K_L", "Q3_K", ["Q5_K"] * 8, ["Q5_K"] * 8, "Q5_K"),
        ("IQ4_NL", "IQ4_NL", ["IQ4_NL"] * 8, ["Q5_K"] + ["IQ4_NL"] * 7, "IQ4_NL"),
        ("IQ4_XS", "IQ4_XS", ["IQ4_XS"] * 8, ["Q5_K"] + ["IQ4_XS"] * 7, "IQ4_XS"),
        ("MXFP4", "MXFP4", ["MXFP4"] * 8, ["MXFP4"] * 8, "MXFP4"),
        ("MXFP4_MOE", "Q8_0", ["Q8_0"] * 8, ["Q8_0"] * 8, "Q8_0"),
    ],
)
def test_the_small_mixes_are_llama_cpps(
    source: Path,
    tmp_path: Path,
    name: str,
    base: str,
    value: list[str],
    down: list[str],
    output: str,
) -> None:
    """As llama-quant.cpp chooses for two query heads a KV head; MXFP4 is ours."""
    quantize_file(source, tmp_path / "out.gguf", name)
    found = types(tmp_path / "out.gguf")
    assert found["token_embd.weight"] == ("Q8_0" if name.startswith("MXFP4") else "Q6_K")
    assert [found[f"blk.{i}.attn_v.weight"] for i in range(8)] == value
    assert [found[f"blk.{i}.ffn_down.weight"] for i in range(8)] == down
    for i in range(LAYERS):
        assert found[f"blk.{i}.attn_output.weight"] == output
        for part in ("attn_q", "attn_k", "ffn_up"):
            assert found[f"blk.{i}.{part}.weight"] == base


def test_experts_alone_get_mxfp4(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "moe.gguf")
    writer.add("general.architecture", "llama")
    writer.add("llama.block_count", 1)
    x = np.random.default_rng(1).standard_normal((2, 8, 256)).astype(np.float32)
    writer.add_tensor("blk.0.ffn_down_exps.weight", x, None)
    writer.add_tensor("blk.0.attn_q.weight", x[0], None)
    writer.write()
    quantize_file(tmp_path / "moe.gguf", tmp_path / "out.gguf", "MXFP4_MOE")
    assert types(tmp_path / "out.gguf") == {
        "blk.0.ffn_down_exps.weight": "MXFP4",
        "blk.0.attn_q.weight": "Q8_0",
    }


def test_pure(source: Path, tmp_path: Path) -> None:
    report = quantize_file(source, tmp_path / "out.gguf", "Q4_K_M", pure=True)
    found = types(tmp_path / "out.gguf")
    assert {found[name] for name in found if is_matrix(name)} == {"Q4_K"}
    assert any("pure" in note for note in report.notes)


def is_matrix(name: str) -> bool:
    return name.endswith("weight") and "norm" not in name


def test_rows_that_256_does_not_divide(tmp_path: Path) -> None:
    source = model(tmp_path / "odd.gguf", embd=96, ff=256)
    for name, base, fallback, more in [
        ("Q4_K_M", "Q4_K", "Q5_0", "Q8_0"),
        ("Q5_K_M", "Q5_K", "Q5_1", "Q8_0"),
        ("Q6_K", "Q6_K", "Q8_0", "Q8_0"),
        ("Q3_K_S", "Q3_K", "Q4_0", "Q4_0"),
        ("IQ4_XS", "IQ4_XS", "IQ4_NL", "IQ4_NL"),
        ("IQ4_NL", "IQ4_NL", "IQ4_NL", "IQ4_NL"),
    ]:
        report = quantize_file(source, tmp_path / "out.gguf", name, overwrite=True)
        found = types(tmp_path / "out.gguf")
        assert found["token_embd.weight"] == "Q8_0"  # Q6_K, which falls back
        assert found["blk.1.attn_q.weight"] == fallback
        assert found["blk.0.attn_v.weight"] == more
        assert found["blk.1.ffn_down.weight"] == base  # rows of 256
        assert any("256 does not divide" in note for note in report.notes)


def test_rows_that_32_does_not_divide(tmp_path: Path) -> None:
    source = model(tmp_path / "odder.gguf", embd=40, ff=64)
    quantize_file(source, tmp_path / "out.gguf", "Q4_K_M")
    found = types(tmp_path / "out.gguf")
    assert found["blk.1.attn_q.weight"] == "F16"
    assert found["blk.1.ffn_down.weight"] == "Q5_0"


def test_a_quantized_source_is_noted(tmp_path: Path) -> None:
    source = model(tmp_path / "q8.gguf", kind=T.Q8_0)
    report = quantize_file(source, tmp_path / "out.gguf", "Q4_0")
    assert any("twice" in note for note in report.notes)
    again = quantize_file(source, tmp_path / "same.gguf", "Q8_0")
    assert again.rmse == 0
    assert not again.notes
    with GGUFFile.open(source) as a, GGUFFile.open(tmp_path / "same.gguf") as b:
        assert all(a.data(name).tobytes() == b.data(name).tobytes() for name in a.tensors)


def test_pieces_and_threads_change_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize_file(source, tmp_path / "one.gguf", "Q4_K_M", threads=1)
    monkeypatch.setattr("insula.models.quantize.PIECE", 1000)
    quantize_file(source, tmp_path / "many.gguf", "Q4_K_M", threads=3)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "many.gguf").read_bytes()


def test_importance(source: Path, tmp_path: Path) -> None:
    w = np.full(512, 1e-3, np.float32)
    w[::8] = 1  # some columns of each group, whose others can give way
    name = "blk.2.ffn_down.weight"
    quantize_file(source, tmp_path / "plain.gguf", "Q4_K_S")
    quantize_file(source, tmp_path / "weighted.gguf", "Q4_K_S", importance={name: w})
    with (
        GGUFFile.open(source) as before,
        GGUFFile.open(tmp_path / "plain.gguf") as plain,
        GGUFFile.open(tmp_path / "weighted.gguf") as weighted,
    ):
        x = before.dequantize(name)
        loss = [np.square(f.dequantize(name) - x)[:, ::8].mean() for f in (plain, weighted)]
        assert loss[1] < 0.7 * loss[0]
    for bad, words in [
        ({"nothing": w}, "does not have"),
        ({name: w[:100]}, "100 weights"),
        ({name: -w}, "not negative"),
    ]:
        with pytest.raises(ConfigError, match=words):
            quantize_file(source, tmp_path / "bad.gguf", "Q4_K_S", importance=bad)


def test_experts_have_their_own_importance(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 8, 256)).astype(np.float32)
    writer = GGUFWriter(tmp_path / "moe.gguf")
    writer.add("general.architecture", "llama")
    writer.add("llama.block_count", 1)
    writer.add("llama.expert_count", 2)
    writer.add_tensor("blk.0.ffn_up_exps.weight", x)
    writer.write()
    w = np.full((2, 256), 1e-3, np.float32)
    w[0, ::8] = w[1, 4::8] = 1
    quantize_file(
        tmp_path / "moe.gguf",
        tmp_path / "out.gguf",
        "Q4_K_M",
        importance={"blk.0.ffn_up_exps.weight": w},
    )
    with GGUFFile.open(tmp_path / "out.gguf") as file:
        off = np.square(file.dequantize("blk.0.ffn_up_exps.weight") - x)
    assert off[0, :, ::8].mean() < 0.7 * off[1, :, ::8].mean()
    assert off[1, :, 4::8].mean() < 0.7 * off[0, :, 4::8].mean()


def test_progress_and_cancelling(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    out = tmp_path / "out.gguf"
    quantize_file(source, out, "Q8_0", progress=lambda *step: seen.append(step))
    done = [step[0] for step in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1][1]
    assert {step[2] for step in seen} == set(types(source))

    def stop(done: int, total: int, name: str) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    before = out.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        quantize_file(source, out, "Q4_0", progress=stop, overwrite=True)
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_a_source_cut_short_on_the_way(source: Path, tmp_path: Path) -> None:
    """FAULTS.md row 4: truncated while mapped; an error, and no half-true file."""
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(source.read_bytes())

    def cut(done: int, total: int, name: str) -> None:
        os.truncate(copy, 100_000)

    with pytest.raises(FormatError, match="truncated"):
        quantize_file(copy, tmp_path / "out.gguf", "Q4_0", progress=cut)
    assert list(tmp_path.iterdir()) == [copy]


def test_refusals(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(ConfigError, match=r"no format 'Q9'; there are F32, F16"):
        quantize_file(source, out, "Q9")
    with pytest.raises(ConfigError, match="source itself"):
        quantize_file(source, source, "Q4_0", overwrite=True)
    with pytest.raises(NotFoundError):
        quantize_file(tmp_path / "nothing.gguf", out, "Q4_0")
    out.write_text("precious")
    with pytest.raises(ConfigError, match="exists"):
        quantize_file(source, out, "Q4_0")
    assert out.read_text() == "precious"


def test_hostile_sizes_on_the_way_to_quantize(tmp_path: Path) -> None:
    """FAULTS.md row 2: refused before anything is allocated or written."""
    path = tmp_path / "huge.gguf"
    path.write_bytes(raw.file([], [raw.tensor("t.weight", [0x7FFFFFFFFFFFFFC0], 24)], bytes(64)))
    with pytest.raises(FormatError, match="past the end"):
        quantize_file(path, tmp_path / "out.gguf", "Q4_0")
    assert list(tmp_path.iterdir()) == [path]


def test_values_that_no_format_holds(tmp_path: Path) -> None:
    path = tmp_path / "nan.gguf"
    x = np.ones((4, 256), np.float32)
    x[2, 5] = np.nan
    writer = GGUFWriter(path)
    writer.add("general.architecture", "llama")
    writer.add_tensor("blk.0.ffn_up.weight", x)
    writer.write()
    with pytest.raises(FormatError, match=r"ffn_up.*row 2 holds a NaN"):
        quantize_file(path, tmp_path / "out.gguf", "Q4_0")
    assert list(tmp_path.iterdir()) == [path]


def test_types_that_are_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "iq.gguf"
    writer = GGUFWriter(path)
    writer.add("general.architecture", "llama")
    writer.add_tensor("a.weight", np.zeros(2 * 66, np.uint8), T.IQ2_XXS, shape=(2, 256))
    writer.write()
    with pytest.raises(UnsupportedError, match="IQ2_XXS"):
        quantize_file(path, tmp_path / "out.gguf", "Q4_0")


def test_vectors_become_f32(tmp_path: Path) -> None:
    path = tmp_path / "f16.gguf"
    writer = GGUFWriter(path)
    writer.add("general.architecture", "llama")
    writer.add_tensor("blk.0.attn_norm.weight", np.linspace(0, 1, 64).astype(np.float16))
    writer.write()
    quantize_file(path, tmp_path / "out.gguf", "Q4_0")
    with GGUFFile.open(path) as before, GGUFFile.open(tmp_path / "out.gguf") as after:
        assert after.tensors["blk.0.attn_norm.weight"].type is T.F32
        np.testing.assert_array_equal(
            before.dequantize("blk.0.attn_norm.weight"), after.dequantize("blk.0.attn_norm.weight")
        )


def info(name: str, *shape: int) -> TensorInfo:
    return TensorInfo(name=name, type=T.F32, shape=shape, offset=0, nbytes=4)


def mix(name: str, tensors: list[TensorInfo], **metadata: object) -> dict[str, str]:
    made = Mix({t.name: t for t in tensors}, metadata, target(name))
    return {t.name: made.type_of(t).name for t in tensors if is_quantized(t)}


def test_mixes_of_other_models() -> None:
    big = [info(f"blk.{i}.attn_v.weight", 1024, 8192) for i in range(80)]
    meta = {
        "general.architecture": "llama",
        "llama.block_count": 80,
        "llama.attention.head_count": 64,
        "llama.attention.head_count_kv": 8,
    }
    assert set(mix("Q4_K_M", big, **meta).values()) == {"Q5_K", "Q6_K"}  # a 70B: never Q4_K
    experts = [info("blk.0.attn_v.weight", 256, 256), info("blk.0.attn_k.weight", 256, 256)]
    experts += [info("blk.0.attn_output.weight", 256, 256), info("output.weight", 256, 256)]
    experts += [info("blk.0.ffn_gate_inp.weight", 8, 256), info("token_embd.weight", 64, 256)]
    found = mix(
        "Q4_K_M",
        experts,
        **{"general.architecture": "llama", "llama.expert_count": 8, "llama.block_count": 1},
    )
    assert found == {
        "blk.0.attn_v.weight": "Q8_0",
        "blk.0.attn_k.weight": "Q8_0",
        "blk.0.attn_output.weight": "Q5_K",
        "output.weight": "Q6_K",
        "token_embd.weight": "Q4_K",  # the output has a matrix of its own
    }
    fused = [info("blk.0.attn_qkv.weight", 768, 256)]
    assert mix("Q4_K_M", fused)["blk.0.attn_qkv.weight"] == "Q5_K"
    assert mix("Q5_K_M", fused)["blk.0.attn_qkv.weight"] == "Q6_K"


def test_names() -> None:
    assert target("q4_k").name == "Q4_K_M"  # llama.cpp's short name
    assert target("Q5-K-S").name == "Q5_K_S"
    for name in ("blk.0.attn_norm.weight", "blk.0.ffn_gate_inp.weight", "blk.0.ssm_conv1d.weight"):
        assert not is_quantized(info(name, 256, 256))
    assert not is_quantized(info("blk.0.attn_q.bias", 256))
    assert is_quantized(info("blk.0.attn_q.weight", 256, 256))


def test_alignment_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "aligned.gguf"
    writer = GGUFWriter(path, alignment=128)
    writer.add("general.architecture", "llama")
    writer.add_tensor("a.weight", np.ones((2, 32), np.float32))
    writer.write()
    quantize_file(path, tmp_path / "out.gguf", "Q4_0")
    with GGUFFile.open(tmp_path / "out.gguf") as file:
        assert file.alignment == 128
        assert file.raw_metadata("general.alignment") == (
            ValueType.UINT32,
            struct.pack("<I", 128),
        )
