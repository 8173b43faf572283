"""GGUF files become Hugging Face folders and come back the same, bit by bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from golden import golden, make_goldens, tiny_tokenizer
from golden.record import close
from insula.errors import ConfigError, FormatError, UnsupportedError
from insula.formats.ggml_types import GGMLType
from insula.formats.gguf import GGUFFile
from insula.formats.gguf_writer import GGUFWriter
from insula.formats.safetensors import SafetensorsFile
from insula.models.convert import adjacent_pairs, convert
from insula.models.export import export
from insula.models.export_tensors import split_pairs
from insula.models.load import open_model
from insula.models.quantize import quantize_file
from insula.tokenizer import Tokenizer
from tiny_chat_model import TEMPLATE, write_tiny
from tiny_encoder import write_encoder


def rewrite(source: Path, out: Path, *, drop: str = "", **metadata: object) -> Path:
    """A copy of a file with some metadata set, and without what begins with `drop`."""
    with GGUFFile.open(source) as file:
        writer = GGUFWriter(out)
        for key in file.metadata:
            if not (drop and key.startswith(drop)):
                kind, raw = file.raw_metadata(key)
                writer.add_raw(key, kind, raw)
        for key, value in metadata.items():
            writer.add(key, value)
        for info in file.tensors.values():
            if not (drop and info.name.startswith(drop)):
                writer.add_tensor(info.name, file.data(info.name), info.type, shape=info.shape)
        writer.write()
    return out


def comes_back(before: Path, folder: Path) -> Path:
    """Export, convert, and compare all that is in the file; the folder."""
    export(before, folder)
    after = folder.with_suffix(".gguf")
    convert(folder, after)
    with GGUFFile.open(before) as a, GGUFFile.open(after) as b:
        # Readers of BERT's vocabulary know its padding by name; transformers wants it said.
        assert set(b.metadata) - set(a.metadata) <= {"tokenizer.ggml.padding_token_id"}
        for key in a.metadata:
            if key != "general.name":
                assert a.raw_metadata(key) == b.raw_metadata(key), key
        assert set(b.tensors) == set(a.tensors)
        for tensor in a.tensors:
            assert a.data(tensor).tobytes() == b.data(tensor).tobytes(), tensor
    return folder


#: Every golden comes back.
FOLDERS = sorted(golden.NAMES)


@pytest.mark.parametrize("name", FOLDERS)
def test_every_architecture_comes_back(tmp_path: Path, name: str) -> None:
    folder = comes_back(golden.load(name).write(tmp_path), tmp_path / "folder")
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]


def test_pairs_go_apart_again() -> None:
    rows = np.random.default_rng(0).standard_normal((24, 3))
    assert (split_pairs(adjacent_pairs(rows, 3), 3) == rows).all()
    with pytest.raises(FormatError):
        split_pairs(rows, 5)


def folder_of(tmp_path: Path, dtype: str) -> Path:
    """A Llama folder in one dtype, made from a golden: its values rounded to the dtype."""
    source = golden.load("llama-bias").write(tmp_path)
    export(source, tmp_path / "first", dtype=dtype)
    return tmp_path / "first"


def contents(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with SafetensorsFile.open(path) as file:
            for name, info in file.tensors.items():
                found[name] = (info.dtype, info.shape, file.data(name).tobytes())
    return found


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_a_folder_comes_back(tmp_path: Path, dtype: str) -> None:
    first = folder_of(tmp_path, dtype)
    kinds = {kind for kind, _, _ in contents(first).values()}
    assert dtype.upper() in kinds
    convert(first, tmp_path / "a.gguf")
    export(tmp_path / "a.gguf", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(first)
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (first / file).read_text() == (tmp_path / "again" / file).read_text()
    config = json.loads((first / "config.json").read_text())
    assert config["torch_dtype"] == {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[dtype]


@pytest.mark.parametrize(("mask", "kinds"), [(0xFFFF0000, {"BF16"}), (0xFFFFFFFF, {"BF16", "F32"})])
def test_norms_are_as_short_as_the_matrices_where_they_can_be(
    tmp_path: Path, mask: int, kinds: set[str]
) -> None:
    """A bf16 checkpoint's norms are F32 in GGUF and bf16 again in the folder; others stay."""
    source = golden.load("gemma2").write(tmp_path)
    rng = np.random.default_rng(3)
    with GGUFFile.open(source) as file:
        writer = GGUFWriter(tmp_path / "norms.gguf")
        for key in file.metadata:
            writer.add_raw(key, *file.raw_metadata(key))
        for info in file.tensors.values():
            if len(info.shape) == 1:
                values = rng.standard_normal(info.shape).astype(np.float32)
                values = np.float32(1) + (values.view(np.uint32) & np.uint32(mask)).view(np.float32)
                writer.add_tensor(info.name, values)
            else:
                writer.add_tensor(info.name, file.dequantize(info.name), GGMLType.BF16)
        writer.write()
    export(tmp_path / "norms.gguf", tmp_path / "folder")
    assert {dtype for dtype, _, _ in contents(tmp_path / "folder").values()} == kinds
    convert(tmp_path / "folder", tmp_path / "back.gguf")
    with GGUFFile.open(tmp_path / "norms.gguf") as a, GGUFFile.open(tmp_path / "back.gguf") as b:
        for name in a.tensors:
            assert a.data(name).tobytes() == b.data(name).tobytes(), name


def test_shards_and_their_index(tmp_path: Path) -> None:
    source = golden.load("llama").write(tmp_path)
    whole = export(source, tmp_path / "whole")
    parts = export(source, tmp_path / "parts", shard_bytes=30_000)
    assert len(whole.files) == 1
    assert len(parts.files) > 2
    assert parts.files[0] == f"model-00001-of-{len(parts.files):05d}.safetensors"
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(parts.files)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    total = sum(len(data) for _, _, data in contents(tmp_path / "whole").values())
    assert index["metadata"]["total_size"] == total
    for name in parts.files:
        with safe_open(tmp_path / "parts" / name, "np") as file:  # the format's own reader
            assert file.metadata() == {"format": "pt"}
            for key in file.keys():  # noqa: SIM118 -- not a dict
                assert index["weight_map"][key] == name
        with SafetensorsFile.open(tmp_path / "parts" / name) as shard:
            sizes = [info.nbytes for info in shard.tensors.values()]
            assert sum(sizes) <= 30_000 or len(sizes) == 1
    convert(tmp_path / "parts", tmp_path / "back.gguf")
    convert(tmp_path / "whole", tmp_path / "back2.gguf")
    with GGUFFile.open(tmp_path / "back.gguf") as a, GGUFFile.open(tmp_path / "back2.gguf") as b:
        for name in b.tensors:
            assert a.data(name).tobytes() == b.data(name).tobytes()


def test_a_quantized_file_is_decoded_and_says_so(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "t.gguf")
    quantize_file(source, tmp_path / "q.gguf", "Q8_0")
    exact = export(tmp_path / "q.gguf", tmp_path / "exact")
    assert "exact" in exact.notes[0]
    short = export(tmp_path / "q.gguf", tmp_path / "short", dtype="f16")
    assert "F16" in short.notes[0]
    with GGUFFile.open(tmp_path / "q.gguf") as q:
        wanted = q.dequantize("blk.0.ffn_up.weight")
    name = "model.layers.0.mlp.up_proj.weight"
    with SafetensorsFile.open(tmp_path / "exact" / "model.safetensors") as file:
        assert (file.dequantize(name) == wanted).all()
    with SafetensorsFile.open(tmp_path / "short" / "model.safetensors") as file:
        assert (file.array(name) == wanted.astype(np.float16)).all()


def test_the_tokenizer_reads_as_before(tmp_path: Path) -> None:
    """Against the tokenizers library: the ids of the exported tokenizer.json are ours."""
    from tokenizers import Tokenizer as Theirs

    source = write_tiny(tmp_path / "t.gguf")
    export(source, tmp_path / "folder")
    theirs = Theirs.from_file(str(tmp_path / "folder" / "tokenizer.json"))
    with open_model(source) as model:
        for text in ("the island in the sea", " ¿Qué? 123\n\n  x", "<|start|>user\nhi<|end|>"):
            ours = model.tokenizer.encode(text, parse_special=True)
            assert theirs.encode(text).ids == ours
    settings = json.loads((tmp_path / "folder" / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == TEMPLATE
    assert settings["eos_token"] == "<|end|>"


@pytest.mark.parametrize("space", [True, False])
def test_a_sentencepiece_vocabulary_comes_back(tmp_path: Path, space: bool) -> None:
    source = write_tiny(tmp_path / "t.gguf")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokens += ["▁", "t", "h", "e", "th", "the", "▁the"]
    types = [2, 3, 3, *([6] * 256), *([1] * 7)]
    spare = [f"[PAD{i}]" for i in range(len(tokens), 320)]
    spm = rewrite(
        source,
        tmp_path / "spm.gguf",
        drop="tokenizer.",
        **{
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.tokens": tokens + spare,
            "tokenizer.ggml.scores": np.array(
                [-float(i) for i in range(len(tokens))] + [-1000.0] * len(spare), np.float32
            ),
            "tokenizer.ggml.token_type": np.array(types + [5] * len(spare), np.int32),
            "tokenizer.ggml.add_space_prefix": space,
            "tokenizer.ggml.add_bos_token": True,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
        },
    )
    export(spm, tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "back.gguf")
    with GGUFFile.open(spm) as a, GGUFFile.open(tmp_path / "back.gguf") as b:
        for key in a.metadata:
            if key.startswith("tokenizer."):
                assert a.raw_metadata(key) == b.raw_metadata(key), key
        ours = Tokenizer.from_metadata(a.metadata)
        assert ours.encode("the the") == Tokenizer.from_metadata(b.metadata).encode("the the")


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "cls_token", "normalize": False, "most": 40},
        {"pooling": "mean"},
        {"labels": ("sad", "glad", "neither")},
        {"pooling": None},
    ],
    ids=str,
)
def test_an_encoder_comes_back_with_its_words(tmp_path: Path, options: dict[str, Any]) -> None:
    from tokenizers import Tokenizer as Theirs

    before = write_encoder(tmp_path / "before.gguf", **options)
    folder = comes_back(before, tmp_path / "folder")
    theirs = Theirs.from_file(str(folder / "tokenizer.json"))
    with GGUFFile.open(before) as file:
        ours = Tokenizer.from_metadata(file.metadata)
    for text in ("The cats sat, running?", "Ünïcödé sún", "中cat中", "x" * 101, "", "½ cat"):
        assert theirs.encode(text).ids == ours.encode(text), text
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert (settings["cls_token"], settings["sep_token"]) == ("[CLS]", "[SEP]")
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [
        "BertForSequenceClassification" if "labels" in options else "BertModel"
    ]


@pytest.mark.parametrize("collapses", [True, False])
def test_a_unigram_vocabulary_comes_back(tmp_path: Path, collapses: bool) -> None:
    from tokenizers import Tokenizer as Theirs

    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁the", "t", "h", "e", "▁is", "land", "s"]
    scores = [0.0] * 4 + [-2.0 - 0.37 * i for i in range(8)]
    types = [3, 3, 3, 2] + [1] * 8
    spare = [f"[PAD{i}]" for i in range(len(pieces), 320)]
    before = rewrite(
        write_tiny(tmp_path / "t.gguf"),
        tmp_path / "unigram.gguf",
        drop="tokenizer.",
        **{
            "tokenizer.ggml.model": "t5",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.tokens": pieces + spare,
            "tokenizer.ggml.scores": np.array(scores + [-1000.0] * len(spare), np.float32),
            "tokenizer.ggml.token_type": np.array(types + [5] * len(spare), np.int32),
            "tokenizer.ggml.add_space_prefix": True,
            "tokenizer.ggml.remove_extra_whitespaces": collapses,
            "tokenizer.ggml.add_bos_token": True,
            "tokenizer.ggml.add_eos_token": True,
            "tokenizer.ggml.bos_token_id": 0,
            "tokenizer.ggml.cls_token_id": 0,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.seperator_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 3,
            "tokenizer.ggml.padding_token_id": 1,
        },
    )
    folder = tmp_path / "folder"
    export(before, folder)
    convert(folder, tmp_path / "after.gguf")
    theirs = Theirs.from_file(str(folder / "tokenizer.json"))
    with GGUFFile.open(before) as a, GGUFFile.open(tmp_path / "after.gguf") as b:
        for key in a.metadata:
            if key.startswith("tokenizer."):
                assert a.raw_metadata(key) == b.raw_metadata(key), key
        ours = Tokenizer.from_metadata(a.metadata)
    for text in ("the island", "the the islands", "the  island", "island"):
        assert theirs.encode(text).ids == ours.encode(text), text


def test_the_experts_of_gpt_oss_stay_mxfp4(tmp_path: Path) -> None:
    quantize_file(golden.load("gpt-oss").write(tmp_path), tmp_path / "q.gguf", "MXFP4_MOE")
    report = export(tmp_path / "q.gguf", tmp_path / "folder")
    assert "MXFP4" not in " ".join(report.notes)
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "mxfp4"
    convert(tmp_path / "folder", tmp_path / "back.gguf")
    decoded = export(tmp_path / "q.gguf", tmp_path / "floats", dtype="f32")
    assert "MXFP4" in decoded.notes[0]
    convert(tmp_path / "floats", tmp_path / "floats.gguf")
    with (
        GGUFFile.open(tmp_path / "q.gguf") as a,
        GGUFFile.open(tmp_path / "back.gguf") as b,
        GGUFFile.open(tmp_path / "floats.gguf") as c,
    ):
        experts = [n for n, i in a.tensors.items() if i.type is GGMLType.MXFP4]
        assert len(experts) == 9
        for name in experts:
            assert b.tensors[name].type is GGMLType.MXFP4
            assert a.data(name).tobytes() == b.data(name).tobytes()
            assert (a.dequantize(name) == c.dequantize(name)).all()


@pytest.mark.parametrize(
    ("drop", "metadata", "says"),
    [
        ("tokenizer.", {}, "no tokenizer"),
        ("", {"tokenizer.ggml.pre": "bloom"}, "bloom"),
        ("", {"llama.expert_count": 8}, "expert_used_count"),
        ("", {"llama.attention.scale": 0.5}, "attention.scale"),
        ("", {"llama.rope.scaling.type": "longrope"}, "longrope"),
        ("", {"llama.rope.dimension_count": 8}, "dimension_count"),
        ("", {"general.architecture": "mamba"}, "mamba"),
        ("llama.block_count", {}, "block_count"),
        ("", {"llama.attention.head_count": 0}, "head_count"),
        ("", {"llama.attention.head_count_kv": [2, 4]}, "head_count_kv"),
        ("", {"llama.embedding_length": "wide"}, "embedding_length"),
        ("token_embd", {}, "token_embd"),
    ],
)
def test_what_a_folder_cannot_say_is_refused(
    tmp_path: Path, drop: str, metadata: dict[str, object], says: str
) -> None:
    source = rewrite(write_tiny(tmp_path / "t.gguf"), tmp_path / "x.gguf", drop=drop, **metadata)
    with pytest.raises((FormatError, UnsupportedError), match=says):
        export(source, tmp_path / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.gguf", "x.gguf"]


def test_unknown_tensors_and_half_of_the_biases(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "t.gguf")
    for extra in ("blk.0.ffn_gate_inp.weight", "blk.0.attn_q.bias", "blk.0.ffn_up.bias"):
        path = tmp_path / f"{extra}.gguf"
        with GGUFFile.open(source) as file:
            writer = GGUFWriter(path)
            for key in file.metadata:
                writer.add_raw(key, *file.raw_metadata(key))
            for info in file.tensors.values():
                writer.add_tensor(info.name, file.data(info.name), info.type, shape=info.shape)
            writer.add_tensor(extra, np.ones(64, np.float32))
            writer.write()
        with pytest.raises(UnsupportedError, match=r"counterpart|or none"):
            export(path, tmp_path / "folder")


def test_options(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "t.gguf")
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="exists"):
        export(source, tmp_path / "there")
    with pytest.raises(ConfigError, match="q4"):
        export(source, tmp_path / "x", dtype="q4")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="shard"):
        export(source, tmp_path / "x", shard_bytes=0)
    seen: list[tuple[int, int]] = []
    export(source, tmp_path / "x", progress=lambda *at: seen.append(at))
    assert seen[-1] == (len(seen), len(seen))
    with pytest.raises(KeyboardInterrupt):
        export(source, tmp_path / "y", progress=interrupt)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.gguf", "there", "x"]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_transformers_reads_the_folder(tmp_path: Path, name: str) -> None:
    """The logits of the exported folder are those that the golden keeps, of the first folder."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    made = golden.load(name)
    export(made.write(tmp_path), tmp_path / "folder")
    kind = make_goldens.CASES[name].model
    model, loading = getattr(transformers, kind).from_pretrained(
        tmp_path / "folder", attn_implementation="eager", output_loading_info=True
    )
    missing = {key for key in loading["missing_keys"] if kind != "AutoModel" or "pooler" not in key}
    assert not missing
    assert not loading["unexpected_keys"]
    more = {}
    if made.types is not None:
        more["token_type_ids"] = torch.tensor(made.types[None].astype(np.int64))
    with torch.no_grad():
        result = model(
            torch.tensor(made.ids[None].astype(np.int64)), **more, output_hidden_states=True
        )
    if made.scores is not None:
        np.testing.assert_allclose(result.logits[0].numpy(), made.scores, rtol=0, atol=2e-5)
    found = {
        "AutoModelForCausalLM": lambda: result.logits[0],
        "AutoModel": lambda: result.last_hidden_state[0],
    }.get(kind, lambda: result.hidden_states[-1][0])()
    close("folder", name, found.numpy(), made.logits, 2e-5)
    assert model.config.vocab_size == tiny_tokenizer.N_VOCAB
