"""Files that cannot run: the command line and `LLM` say in one line why not, and what to do."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cli.conftest import Insula, failed
from golden import golden
from insula import LLM
from insula.errors import (
    FormatError,
    InsulaError,
    ResourceError,
    TokenizerError,
    UnsupportedError,
)
from insula.formats.ggml_types import GGMLType
from insula.formats.gguf import GGUFFile
from insula.formats.gguf_writer import GGUFWriter

Make = Callable[[Path, Path], Path]


def rewrite(
    source: Path, out: Path, *, rename: tuple[str, str] = ("", ""), drop: str = "", **meta: object
) -> Path:
    """A copy with a tensor called otherwise, without the keys below `drop`, with other metadata."""
    with GGUFFile.open(source) as file:
        writer = GGUFWriter(out)
        for key in file.metadata:
            if not (drop and key.startswith(drop)) and key not in meta:
                writer.add_raw(key, *file.raw_metadata(key))
        for key, value in meta.items():
            writer.add(key, value)
        for info in file.tensors.values():
            name = rename[1] if info.name == rename[0] else info.name
            writer.add_tensor(name, file.data(info.name), info.type, shape=info.shape)
        writer.write()
    return out


def renamed(source: Path, folder: Path) -> Path:
    names = ("blk.0.ffn_up.weight", "blk.0.ffn_upward.weight")
    return rewrite(source, folder / "renamed.gguf", rename=names)


def unknown_architecture(source: Path, folder: Path) -> Path:
    return rewrite(source, folder / "arch.gguf", **{"general.architecture": "mamba9"})


def no_tokenizer(source: Path, folder: Path) -> Path:
    return rewrite(source, folder / "mute.gguf", drop="tokenizer.")


def unknown_pre_tokenizer(source: Path, folder: Path) -> Path:
    return rewrite(source, folder / "pre.gguf", **{"tokenizer.ggml.pre": "cut-anyhow"})


def typed(number: int) -> Make:
    """One tensor says that it is of this type."""

    def make(source: Path, folder: Path) -> Path:
        data = bytearray(source.read_bytes())
        name = b"blk.0.ffn_up.weight"
        at = data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
        dims = struct.unpack_from("<I", data, at)[0]
        struct.pack_into("<I", data, at + 4 + 8 * dims, number)
        out = folder / f"type{number}.gguf"
        out.write_bytes(data)
        return out

    return make


def enormous(source: Path, folder: Path) -> Path:
    """Weights of terabytes, all of them holes in the file."""
    small = rewrite(
        source,
        folder / "small.gguf",
        **{"llama.feed_forward_length": 1 << 24, "llama.block_count": 300, "zz.end": "the end"},
    )
    with GGUFFile.open(small) as file:
        few = {name: info.shape for name, info in file.tensors.items()}
        written = GGUFWriter(folder / "keys.gguf")
        for key in file.metadata:
            written.add_raw(key, *file.raw_metadata(key))
        written.write()
    data = (folder / "keys.gguf").read_bytes()
    keys = data[24 : data.index(b"the end") + len(b"the end")]
    shapes = {name: shape for name, shape in few.items() if not name.startswith("blk.")}
    for name, shape in few.items():
        if name.startswith("blk.0."):
            wide = tuple(1 << 24 if name.startswith("blk.0.ffn_") and n == 96 else n for n in shape)
            shapes |= {name.replace("blk.0.", f"blk.{i}.", 1): wide for i in range(300)}
    table, at = b"", 0
    for name, shape in shapes.items():
        table += struct.pack("<Q", len(name)) + name.encode()
        table += struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        table += struct.pack("<IQ", GGMLType.F32, at)
        at += -(-int(np.prod(shape)) * 4 // 32) * 32
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), int.from_bytes(data[16:24], "little"))
    begin = len(head + keys + table)
    out = folder / "enormous.gguf"
    with out.open("wb") as file:
        file.write(head + keys + table)
        file.truncate(-(-begin // 32) * 32 + at)
    return out


#: What is wrong, its error, and what its line names: what was found and what to do or is needed.
CASES: dict[str, tuple[Make, type[InsulaError], tuple[str, ...]]] = {
    "a renamed tensor": (renamed, FormatError, ("blk.0.ffn_up.weight", "missing", "needs it")),
    "an unknown architecture": (unknown_architecture, UnsupportedError, ("mamba9", "llama")),
    "a type that there is not": (typed(250), FormatError, ("blk.0.ffn_up.weight", "250")),
    "a type that is not read": (
        typed(int(GGMLType.I8)),
        UnsupportedError,
        ("blk.0.ffn_up.weight", "I8", "Q4_K"),
    ),
    "no tokenizer": (no_tokenizer, TokenizerError, ("tokenizer.ggml.model",)),
    "an unknown pre-tokenizer": (unknown_pre_tokenizer, UnsupportedError, ("cut-anyhow",)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_file_that_cannot_run(insula: Insula, tiny: Path, tmp_path: Path, name: str) -> None:
    make, kind, parts = CASES[name]
    path = make(tiny, tmp_path)
    with pytest.raises(kind) as caught:
        LLM(path, engine="native")
    line = failed(insula("run", str(path), "hi", "-n", "2", INSULA_ENGINE="native"), 1)
    for part in parts:
        assert part in str(caught.value)
        assert part in line


@pytest.mark.parametrize("name", CASES)
def test_whatever_else_might_run_it(insula: Insula, tiny: Path, tmp_path: Path, name: str) -> None:
    """The default choice of an engine tries llama.cpp where it is installed, and says no more."""
    make, _, parts = CASES[name]
    line = failed(insula("run", str(make(tiny, tmp_path)), "hi", "-n", "2"), 1)
    assert parts[0] in line or "llama.cpp" in line


@pytest.mark.skipif(os.name == "nt", reason="files with holes")
def test_not_enough_memory(insula: Insula, tiny: Path, tmp_path: Path) -> None:
    try:
        path = enormous(tiny, tmp_path)
    except OSError as error:
        pytest.skip(f"no file of terabytes, even with holes: {error}")
    with pytest.raises(ResourceError, match=r"GiB for its weights.*are free.*smaller model"):
        LLM(path, engine="native")
    line = failed(insula("run", str(path), "hi", "-n", "2", INSULA_ENGINE="native"), 1)
    assert "GiB for its weights" in line
    assert "smaller quantization" in line


def test_an_adapter_of_another_model(insula: Insula, tiny: Path, tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "adapter.gguf")
    writer.add("general.type", "adapter")
    writer.add("general.architecture", "llama")
    writer.add("adapter.type", "lora")
    writer.add("adapter.lora.alpha", 2.0)
    writer.add_tensor("blk.0.attn_v.weight.lora_a", np.ones((1, 128), np.float32))
    writer.add_tensor("blk.0.attn_v.weight.lora_b", np.ones((32, 1), np.float32))
    writer.write()
    adapter = str(tmp_path / "adapter.gguf")
    with pytest.raises(FormatError, match="made for another model"):
        LLM(tiny, adapters=[adapter])
    line = failed(insula("merge", str(tiny), adapter, "out.gguf"), 1)
    assert "blk.0.attn_v.weight" in line
    assert "made for another model" in line
    other = golden.load("qwen3").write(tmp_path)
    line = failed(insula("merge", str(other), adapter, "out.gguf"), 1)
    assert "'llama'" in line
    assert "'qwen3'" in line
    assert not (tmp_path / "out.gguf").exists()


def test_a_folder_that_cannot_be_converted(insula: Insula, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}')
    line = failed(insula("convert", str(folder), "out.gguf"), 1)
    assert "MambaForCausalLM" in line
    assert "LlamaForCausalLM" in line
    assert "extra train" in line
    line = failed(insula("import", str(folder)), 1)
    assert "insula convert" in line
    assert "no file" in failed(insula("import", str(tmp_path / "none.gguf")), 1)
