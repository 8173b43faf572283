"""Embed4All as gpt4all 2.8.2 has it: chunks, prefixes, shortened vectors, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from insula import LLM
from insula.compat.gpt4all import CancellationError, Embed4All
from insula.errors import ConfigError, UnsupportedError
from insula.models.convert import convert
from tiny_encoder import CLS, SEP, WIDTH, save_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    names = {"plain": "plain", "minilm": "all-MiniLM-L6-v2", "nomic": "nomic-embed-text-v1.5"}
    for file, name in names.items():  # what gpt4all knows of a model goes by its name
        convert(save_folder(folder / name), folder / f"{file}.gguf", dtype="f32")
    return folder


@pytest.fixture
def minilm(folder: Path) -> Any:
    with Embed4All("minilm", model_path=folder, n_threads=1, allow_download=False) as embedder:
        yield embedder


def unit(x: Any) -> np.ndarray:
    return np.asarray(x) / np.linalg.norm(x)


def test_one_text_is_one_list_of_floats(minilm: Embed4All, folder: Path) -> None:
    found = minilm.embed("the cat sat")
    assert isinstance(found, list)
    assert all(isinstance(x, float) for x in found)
    with LLM(folder / "minilm.gguf") as llm:
        np.testing.assert_allclose(found, llm.embed("the cat sat").vectors[0], atol=1e-6)
    both = minilm.embed(["the cat sat", "a dog"], return_dict=True)
    assert both["n_prompt_tokens"] == 5  # without what stands around a text
    np.testing.assert_allclose(both["embeddings"][0], found, atol=1e-6)


def test_a_long_text_is_the_mean_of_chunks_that_overlap(folder: Path) -> None:
    words = ["cat", "dog", "sun", "mat", "hot"] * 20
    with Embed4All("minilm", model_path=folder, n_ctx=42, allow_download=False) as embedder:
        found = embedder.embed(" ".join(words), return_dict=True)
        first = embedder.embed(" ".join(words), long_text_mode="truncate")
    with LLM(folder / "minilm.gguf", n_ctx=42) as llm:
        ids = llm.tokenize(" ".join(words))[1:-1]
        chunks = [ids[0:40], ids[32:72], ids[64:100]]
        parts = llm.embed([[CLS, *part, SEP] for part in chunks]).vectors
    np.testing.assert_allclose(found["embeddings"], unit(parts.mean(axis=0)), atol=1e-6)
    np.testing.assert_allclose(first, parts[0], atol=1e-6)
    assert found["n_prompt_tokens"] == 40 + 40 + 36


def test_prefixes_go_by_the_models_name(folder: Path) -> None:
    with Embed4All("nomic", model_path=folder, allow_download=False) as embedder:
        plain = embedder.embed("the cat")
        np.testing.assert_array_equal(plain, embedder.embed("the cat", prefix="search_document"))
        assert not np.allclose(plain, embedder.embed("the cat", prefix="search_query"))
        with pytest.raises(RuntimeError, match='"poetry" is not a valid task type'):
            embedder.embed("the cat", prefix="poetry")
        with pytest.warns(UserWarning, match="suggested minimum of 64"):
            short = embedder.embed("the cat", dimensionality=8)
        with LLM(folder / "nomic.gguf") as llm:
            ids = [CLS, *llm.tokenize("search_document:")[1:-1], *llm.tokenize("the cat")[1:]]
            vector = llm.embed([ids]).vectors[0].astype(np.float64)
        np.testing.assert_allclose(short, unit((vector - vector.mean())[:8]), atol=1e-6)
    with Embed4All("plain", model_path=folder, allow_download=False) as embedder:
        with pytest.raises(RuntimeError, match="specify a prefix"):
            embedder.embed("the cat")
        assert len(embedder.embed("the cat", prefix="")) == WIDTH


@pytest.mark.filterwarnings("ignore:Dimensionality")
def test_dimensions_that_the_model_has_not(minilm: Embed4All) -> None:
    with pytest.raises(RuntimeError, match="unsupported dimensionality 8"):
        minilm.embed("cat", dimensionality=8)
    assert len(minilm.embed("cat", dimensionality=WIDTH)) == WIDTH


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "must not be None or empty"),
        ([], {}, "must not be None or empty"),
        ("x", {"dimensionality": 0}, "positive integer, got 0"),
        ("x", {"long_text_mode": "middle"}, "'mean' or 'truncate', got 'middle'"),
    ],
)
def test_bad_arguments(minilm: Embed4All, text: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        minilm.embed(text, **options)


def test_an_empty_text_in_a_list_is_a_placeholder(minilm: Embed4All) -> None:
    first, second = minilm.embed(["", "24df574ea1c998de59d5be15e769658e"])
    assert first == second


def test_it_can_be_called_off(minilm: Embed4All) -> None:
    seen = []

    def callback(sizes: list[int], backend: str) -> bool:
        seen.append((sizes, backend))
        return len(seen) == 2

    minilm.embed(["a cat", "a dog"], cancel_cb=callback)
    with pytest.raises(CancellationError):
        minilm.embed("a cat", cancel_cb=callback)
    assert seen == [([8], "cpu"), ([4], "cpu")]


def test_atlas_has_a_limit(minilm: Embed4All) -> None:
    long = "cat " * 8193
    with pytest.raises(RuntimeError, match="exceeds limit of 8192"):
        minilm.embed(long, atlas=True)
    assert len(minilm.embed(long, atlas=True, long_text_mode="truncate")) == WIDTH


def test_what_it_does_not_take(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="gpu"):
        Embed4All("minilm", model_path=folder, device="gpu")
    with pytest.raises(TypeError, match="n_cxt"):
        Embed4All("minilm", model_path=folder, n_cxt=5)
    shutil.copy(tiny_model, tmp_path / "chat.gguf")
    with (
        Embed4All("chat", model_path=tmp_path, allow_download=False) as embedder,
        pytest.raises((UnsupportedError, RuntimeError)),
    ):
        embedder.embed("a text", prefix="")
    embedder.close()
    with pytest.raises(ConfigError, match="closed"):
        embedder.embed("a text")
