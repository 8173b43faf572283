"""insula convert and insula merge, and files of formats that are no more."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cli.conftest import failed
from insula.formats.gguf import GGUFFile
from insula.formats.gguf_writer import GGUFWriter
from models.test_join import split


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A LoRA of rank 1 for one weight of the tiny model."""
    writer = GGUFWriter(tmp_path / "adapter.gguf")
    writer.add("general.type", "adapter")
    writer.add("general.architecture", "llama")
    writer.add("adapter.type", "lora")
    writer.add("adapter.lora.alpha", 2.0)
    writer.add_tensor("blk.0.attn_v.weight.lora_a", np.ones((1, 64), np.float32))
    writer.add_tensor("blk.0.attn_v.weight.lora_b", np.full((32, 1), 0.25, np.float32))
    writer.write()
    return tmp_path / "adapter.gguf"


def test_there_and_back(insula, tiny, tmp_path):
    done = insula("convert", str(tiny), "folder", "--max-shard-size", "50K")
    assert done.returncode == 0, done.stderr
    assert "safetensors" in done.stdout
    assert (tmp_path / "folder" / "model.safetensors.index.json").exists()
    found = json.loads(insula("convert", "folder", "back.gguf", "--json").stdout)
    assert found["size"] == (tmp_path / "back.gguf").stat().st_size
    with GGUFFile.open(tiny) as a, GGUFFile.open(tmp_path / "back.gguf") as b:
        for name in a.tensors:
            assert a.data(name).tobytes() == b.data(name).tobytes()
    answers = [
        insula("run", str(m), "hi", "-n", "8", "--seed", "1").stdout for m in (tiny, "back.gguf")
    ]
    assert answers[0] == answers[1] != ""


def test_a_quantized_model_says_what_it_becomes(insula, tiny):
    assert insula("quantize", str(tiny), "q.gguf", "Q8_0").returncode == 0
    done = insula("convert", "q.gguf", "folder", "--dtype", "bf16")
    assert done.returncode == 0, done.stderr
    assert "Q8_0" in done.stdout
    assert "BF16" in done.stdout


def test_a_split_file(insula, tiny, tmp_path):
    paths = split(tiny, tmp_path)
    assert insula("quantize", str(paths[0]), "q.gguf", "Q8_0").returncode == 0
    assert "--dtype" in failed(insula("convert", str(paths[0]), "x.gguf", "--dtype", "f16"), 2)
    done = insula("convert", str(paths[1]), "out.gguf")
    assert done.returncode == 0, done.stderr
    assert "3 parts" in done.stdout
    assert (tmp_path / "out.gguf").read_bytes() == tiny.read_bytes()
    assert "--force" in failed(insula("convert", str(paths[0]), "out.gguf"), 2)


def test_wrong_use_of_convert(insula, tiny, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there.gguf").write_text("mine")
    for args, code, says in (
        ([str(tiny), "x", "--dtype", "q4"], 2, "bf16"),
        ([str(tiny), "x", "--max-shard-size", "big"], 2, "5G"),
        ([str(tiny), "there"], 2, "never overwritten"),
        ([str(tiny), "there", "--force"], 2, "never overwritten"),
        (["there", "x.gguf"], 1, "config.json"),
        (["there", "there.gguf"], 2, "--force"),
        (["there", "x.gguf", "--max-shard-size", "1G"], 2, "one GGUF"),
        (["gone", "x.gguf"], 1, "gone"),
    ):
        assert says in failed(insula("convert", *args), code), args
    assert (tmp_path / "there.gguf").read_text() == "mine"


def test_a_safetensors_file_is_not_its_folder(insula, tiny):
    assert insula("convert", str(tiny), "folder").returncode == 0
    line = failed(insula("run", "folder/model.safetensors", "hi"), 1)
    assert "insula convert" in line


def test_merge(insula, tiny, adapter, tmp_path):
    done = insula("merge", str(tiny), str(adapter), "out.gguf")
    assert done.returncode == 0, done.stderr
    assert "rank 1" in done.stdout
    with GGUFFile.open(tiny) as a, GGUFFile.open(tmp_path / "out.gguf") as b:
        name = "blk.0.attn_v.weight"
        assert (b.dequantize(name) == a.dequantize(name) + np.float32(0.5)).all()
    # The same into a folder's weights: the base is converted on the way.
    assert insula("convert", str(tiny), "folder").returncode == 0
    done = insula("merge", "folder", str(adapter), "too.gguf", "--json")
    assert json.loads(done.stdout)["tensors"] == 1
    with GGUFFile.open(tmp_path / "out.gguf") as a, GGUFFile.open(tmp_path / "too.gguf") as b:
        for tensor in a.tensors:
            assert a.data(tensor).tobytes() == b.data(tensor).tobytes()
    left = {"adapter.gguf", "out.gguf", "folder", "too.gguf"}
    assert {p.name for p in tmp_path.iterdir()} - {"user", "home"} == left


def test_wrong_use_of_merge(insula, tiny, adapter, tmp_path):
    (tmp_path / "there.gguf").write_text("mine")
    for args, code, says in (
        ([str(tiny), str(adapter), "there.gguf"], 2, "--force"),
        ([str(tiny), str(adapter), "x.gguf", "--scale", "inf"], 2, "finite"),
        ([str(tiny), str(tiny), "x.gguf"], 1, "no adapter"),
        ([str(tiny), "gone", "x.gguf"], 1, "gone"),
        ([str(adapter), str(adapter), "x.gguf"], 1, "another model"),
    ):
        assert says in failed(insula("merge", *args), code), args
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(
    ("magic", "name"),
    [(b"lmgg", "GGML"), (b"fmgg", "GGMF"), (b"tjgg", "GGJT"), (b"algg", "LoRA"), (b"nsgg", "GGSN")],
)
@pytest.mark.parametrize("command", ["run", "show", "quantize", "convert", "merge"])
def test_formats_before_gguf_are_named_with_what_to_fetch(insula, tmp_path, command, magic, name):
    """llama.cpp wrote these numbers as little-endian words, so that a file begins with them so."""
    old = tmp_path / "ggml-model-q4_0.bin"
    old.write_bytes(magic + (1).to_bytes(4, "little") + bytes(500))
    rest = {
        "run": ["hi"],
        "quantize": ["x.gguf", "Q8_0"],
        "convert": ["x"],
        "merge": ["a", "x.gguf"],
    }
    line = failed(insula(command, str(old), *rest.get(command, [])), 1)
    assert name in line
    assert ".gguf" in line
    assert "insula pull" in line or "llama.cpp" in line


def test_no_output_takes_an_inputs_place(insula, tiny, tmp_path):
    """Even by force, and by whatever name: the model, its parts, a text, a matrix, an adapter."""
    model = tmp_path / "model.gguf"
    model.write_bytes(tiny.read_bytes())
    page = tmp_path / "page.txt"
    page.write_text("the island and the sea " * 200)
    matrix = tmp_path / "m.imatrix"
    paths = split(tiny, tmp_path)
    folder = tmp_path / "folder"
    assert insula("convert", str(model), str(folder)).returncode == 0
    before = {p: p.read_bytes() for p in [model, page, *paths, *folder.iterdir()]}
    m, t, first = str(model), str(page), str(paths[0])
    for args in (
        ("quantize", m, "o.gguf", "Q8_0", "--imatrix", t, "--save-imatrix", m, "-f"),
        ("quantize", m, "o.gguf", "Q8_0", "--imatrix", t, "--save-imatrix", "o.gguf", "-f"),
        ("quantize", m, t, "Q8_0", "--imatrix", t, "-f"),
        ("quantize", m, t, "Q8_0", "--report", "--text", t, "-f"),
        ("quantize", first, str(paths[1]), "Q8_0", "-f"),
        ("merge", m, t, t, "-f"),
        ("merge", str(folder), t, str(folder / "model.safetensors"), "-f"),
        ("convert", str(folder), str(folder / "config.json"), "-f"),
    ):
        assert "that were given" in failed(insula(*args), 2), args
    assert {p: p.read_bytes() for p in before} == before
    assert not matrix.exists()
