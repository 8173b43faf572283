"""A path becomes a model that can run, or one clear error."""

from __future__ import annotations

import numpy as np
import pytest

from golden import golden, tiny_tokenizer
from insula.errors import FormatError, NotFoundError, UnsupportedError
from insula.formats.ggml_types import GGMLType
from insula.formats.gguf import GGUFFile
from insula.formats.gguf_writer import GGUFWriter
from insula.models.load import open_model, summarize, weight_names


@pytest.fixture
def path(tmp_path):
    return golden.load("llama3-rope").write(tmp_path)


def rewrite(path, *, metadata=None, drop=(), tensors=None):
    """A changed copy of a GGUF file."""
    out = path.with_name("changed.gguf")
    with GGUFFile.open(path) as source:
        writer = GGUFWriter(out, overwrite=True)
        for key in source.metadata:
            if key not in drop:
                writer.add_raw(key, *source.raw_metadata(key))
        for key, value in (metadata or {}).items():
            writer.add(key, value)
        for name, info in source.tensors.items():
            data, kind, shape = (tensors or {}).get(
                name, (source.data(name), info.type, info.shape)
            )
            if name not in drop:
                writer.add_tensor(name, data, kind, shape=shape)
        writer.write()
    return out


def test_a_model_opens_whole(path):
    with open_model(path) as model:
        assert model.arch == "llama"
        assert model.graph.n_vocab == model.tokenizer.vocab_size == tiny_tokenizer.N_VOCAB
        assert model.graph.n_layers == 2
        assert set(weight_names(model.graph)) <= set(model.gguf.tensors)
        assert model.summary.quantization == "F32"
        assert model.summary.context_length == 512
        assert model.summary.parameters == sum(
            int(np.prod(t.shape)) for t in model.gguf.tensors.values()
        )
        assert model.summary.formats == {"F32": model.summary.weight_bytes}


def test_no_file(tmp_path):
    with pytest.raises(NotFoundError):
        open_model(tmp_path / "nothing.gguf")


def test_a_vocabulary_alone_is_no_model_but_can_be_summarized(path):
    with GGUFFile.open(path) as source:
        names = tuple(source.tensors)
    alone = rewrite(path, drop=names)
    with pytest.raises(FormatError, match="vocabulary alone"):
        open_model(alone)
    with GGUFFile.open(alone) as gguf:
        found = summarize(gguf)
    assert (found.arch, found.parameters, found.quantization) == ("llama", 0, "F32")


def test_vocabulary_and_embedding_must_agree(path):
    rows = np.zeros((tiny_tokenizer.N_VOCAB + 1, 64), np.float32)
    shapes = dict.fromkeys(("token_embd.weight", "output.weight"), (rows, GGMLType.F32, rows.shape))
    with pytest.raises(FormatError, match=r"320 tokens .* 321 rows"):
        open_model(rewrite(path, tensors=shapes))


def test_a_format_that_the_kernels_do_not_read(path):
    data = np.zeros(96 * 64 // 64 * GGMLType.NVFP4.block_bytes, np.uint8)
    changed = rewrite(path, tensors={"blk.0.ffn_up.weight": (data, GGMLType.NVFP4, (96, 64))})
    with pytest.raises(UnsupportedError, match=r"blk\.0\.ffn_up\.weight is NVFP4") as caught:
        open_model(changed)
    assert caught.value.backend == "native"
    assert "llamacpp" in str(caught.value)


def test_an_unknown_architecture_still_has_a_summary(path):
    changed = rewrite(path, metadata={"general.architecture": "rwkv7", "general.file_type": 15})
    with pytest.raises(UnsupportedError, match="rwkv7"):
        open_model(changed)
    with GGUFFile.open(changed) as gguf:
        assert summarize(gguf).arch == "rwkv7"
        assert summarize(gguf).quantization == "Q4_K_M"
