"""Vectors, ranks and labels: what the texts become, and that nothing else in a batch matters."""

from __future__ import annotations

import numpy as np
import pytest

from insula import LLM
from insula.engine import embedding
from insula.engine.runner import NativeRunner
from insula.errors import ConfigError, ContextOverflowError, EngineError, UnsupportedError
from insula.formats.gguf import GGUFFile
from insula.models.registry import build_graph
from insula.ops.reference import forward
from tiny_encoder import CLS, SEP, TOKENS, WIDTH, write_encoder

TEXTS = ["the cat sat on a mat", "The sun is hot", "dogs", "cats running? a dog ran. " * 6]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    return {
        "mean": write_encoder(folder / "mean.gguf"),
        "cls": write_encoder(folder / "cls.gguf", pooling="cls_token", normalize=False),
        "last": write_encoder(folder / "last.gguf", pooling="lasttoken"),
        "none": write_encoder(folder / "none.gguf", pooling=None),
        "short": write_encoder(folder / "short.gguf", most=12),
        "rank": write_encoder(folder / "rank.gguf", labels=("score",)),
        "labels": write_encoder(folder / "labels.gguf", labels=("sad", "neither", "glad")),
    }


@pytest.fixture
def llm(paths):
    opened = []

    def load(name, **options):
        opened.append(LLM(paths[name], **options))
        return opened[-1]

    yield load
    for one in opened:
        one.close()


def hidden(path, ids, types=None):
    with GGUFFile.open(path) as gguf:
        return forward(build_graph(gguf), gguf, ids, types)


@pytest.mark.parametrize("engine", ["native", "reference"])
@pytest.mark.parametrize("name", ["mean", "cls", "last"])
def test_the_pooling_that_the_file_states(llm, paths, name, engine):
    model = llm(name, engine=engine, kv_type="f32")
    found = model.embed(TEXTS)
    assert found.vectors.dtype == np.float32
    assert found.vectors.shape == (len(TEXTS), WIDTH)
    for text, vector in zip(TEXTS, found.vectors, strict=True):
        ids = model.tokenize(text)
        assert (ids[0], ids[-1]) == (CLS, SEP)
        rows = hidden(paths[name], ids)
        wanted = {"mean": rows.mean(axis=0), "cls": rows[0], "last": rows[-1]}[name]
        if name != "cls":
            wanted = wanted / np.linalg.norm(wanted)
        np.testing.assert_allclose(vector, wanted, atol=1e-4)


def test_a_vector_does_not_depend_on_its_batch(llm):
    model = llm("mean")
    rng = np.random.default_rng(5)
    words = ["cat", "dog", "sun", "mat", "hot", "ran", "sat", "zebra"]
    texts = [" ".join(rng.choice(words, rng.integers(1, 90))) for _ in range(60)]
    together = model.embed(texts)
    assert together.report.tokens > 2 * embedding.STEP_TOKENS  # several steps
    for i in (0, 7, 31, 59):
        np.testing.assert_array_equal(model.embed(texts[i]).vectors[0], together.vectors[i])
    np.testing.assert_array_equal(model.embed(texts[::-1]).vectors, together.vectors[::-1])


def test_more_texts_than_a_step_has_pages(llm):
    model = llm("mean")
    texts = ["cat"] * 300 + ["dog"]
    vectors = model.embed(texts).vectors
    assert len({row.tobytes() for row in vectors}) == 2
    assert model.embed([]).vectors.shape == (0, WIDTH)


def test_ids_instead_of_texts(llm):
    model = llm("mean")
    ids = model.tokenize(TEXTS[0])
    np.testing.assert_array_equal(model.embed([ids]).vectors, model.embed(TEXTS[0]).vectors)
    for wrong in ([[]], [[len(TOKENS)]], [[-1]], [[True]], [b"ab"], [[1.5]], [None]):
        with pytest.raises(ConfigError, match=r"token ids|allowed is"):
            model.embed(wrong)


def test_a_long_text_is_an_error_or_is_cut_and_said(llm):
    model = llm("short")
    assert model.n_ctx == 12  # what the folder's max_seq_length says
    long = "cat " * 30
    with pytest.raises(ContextOverflowError) as caught:
        model.embed(["dog", long])
    assert (caught.value.needed, caught.value.limit) == (32, 12)
    found = model.embed(["dog", long], truncate=True)
    assert found.report.truncated == (1,)
    assert found.report.tokens == 3 + 12
    kept = [*model.tokenize("cat " * 10)]
    assert len(kept) == 12
    assert kept[-1] == SEP  # the token that ends a text is not what is cut
    np.testing.assert_array_equal(found.vectors[1], model.embed([kept]).vectors[0])
    wider = llm("short", n_ctx=100)
    assert wider.embed(long).report.truncated == ()
    with pytest.raises(ConfigError, match="n_ctx"):
        llm("short", n_ctx=161)


def test_dimensions(llm):
    model = llm("mean")
    whole, part = model.embed(TEXTS).vectors, model.embed(TEXTS, dimensions=8).vectors
    wanted = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(part, wanted, atol=1e-6)
    raw = llm("cls")
    np.testing.assert_array_equal(
        raw.embed(TEXTS, dimensions=8).vectors, raw.embed(TEXTS).vectors[:, :8]
    )
    for wrong in (0, WIDTH + 1, True, 2.0):
        with pytest.raises(ConfigError, match="dimensions"):
            model.embed(TEXTS, dimensions=wrong)


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_ranks_by_the_heads_score_of_the_pair(llm, paths, engine):
    model = llm("rank", engine=engine, kv_type="f32")
    documents = ["a dog ran", "the sun", "hot", "cats sat on the mat"]
    found = model.rerank("is a cat hot?", documents)
    assert sorted(index for index, _ in found) == [0, 1, 2, 3]
    assert [score for _, score in found] == sorted((s for _, s in found), reverse=True)
    with GGUFFile.open(paths["rank"]) as gguf:
        head = {name: gguf.dequantize(name) for name in gguf.tensors if name.startswith("cls")}
    first = model.tokenize("is a cat hot?")
    for index, score in found:
        second = model.tokenize(documents[index])[1:]
        types = [0] * len(first) + [1] * len(second)
        row = hidden(paths["rank"], [*first, *second], types)[0]
        row = np.tanh(head["cls.weight"] @ row + head["cls.bias"])
        wanted = head["cls.output.weight"] @ row + head["cls.output.bias"]
        np.testing.assert_allclose(score, wanted[0], atol=1e-4)


def test_only_documents_are_cut_beside_a_query(llm):
    model = llm("rank", n_ctx=10)
    with pytest.raises(ContextOverflowError):
        model.rerank("cat", ["dog " * 20])
    assert len(model.rerank("cat", ["dog " * 20, "dog"], truncate=True)) == 2
    with pytest.raises(ContextOverflowError):
        model.rerank("cat " * 20, ["dog"], truncate=True)


def test_labels_and_their_probabilities(llm):
    model = llm("labels")
    found = model.classify(TEXTS)
    for each in found:
        assert set(each) == {"sad", "neither", "glad"}
        assert list(each.values()) == sorted(each.values(), reverse=True)
        assert sum(each.values()) == pytest.approx(1)
    assert len({tuple(each.values()) for each in found}) == len(TEXTS)
    (only,) = llm("rank").classify("cat")
    assert 0 < only["score"] < 1


def test_each_model_says_what_it_cannot(llm, shared_llm):
    vectors, head, labels = llm("mean"), llm("rank"), llm("labels")
    with pytest.raises(UnsupportedError, match="no text"):
        vectors.generate("the cat", max_tokens=1)
    with pytest.raises(UnsupportedError, match="no head"):
        vectors.rerank("cat", ["dog"])
    with pytest.raises(UnsupportedError, match="rerank"):
        head.embed("cat")
    with pytest.raises(UnsupportedError, match="sad, neither, glad"):
        labels.rerank("cat", ["dog"])
    with pytest.raises(UnsupportedError, match="pooling_type"):
        llm("none").embed("cat")
    for call in (lambda: shared_llm.embed("cat"), lambda: shared_llm.rerank("cat", ["dog"])):
        with pytest.raises(UnsupportedError, match="all-minilm"):
            call()
    with pytest.raises(UnsupportedError, match="speculate"):
        llm("mean", speculate="ngram")


@pytest.mark.parametrize("texts", [["cat", ""], [" \n"], b"cat", 5, None, [None]])
def test_what_is_no_text(llm, texts):
    with pytest.raises(ConfigError):
        llm("mean").embed(texts)


def test_after_close(llm):
    model = llm("mean")
    model.close()
    model.close()
    with pytest.raises(EngineError, match="closed"):
        model.embed("cat")


def test_a_type_that_the_model_does_not_know(paths):
    with GGUFFile.open(paths["mean"]) as gguf:
        runner = NativeRunner(build_graph(gguf), gguf, n_pages=1)
    table = [np.zeros(1, np.int32)]
    assert runner.step([2, 3], [0, 1], [0, 0], table, [1], types=[0, 1]).shape == (1, WIDTH)
    for wrong in ([0, 2], [-1, 0], [0]):
        with pytest.raises(EngineError, match="type"):
            runner.step([2, 3], [0, 1], [0, 0], table, [1], types=wrong)
    runner.close()
