"""Float matrices as whole numbers: what they keep, where they are used, what products give."""

from __future__ import annotations

import numpy as np
import pytest

from insula import LLM, _native
from insula.engine.runner import NativeRunner, matrices
from insula.engine.whole_numbers import BLOCK, MOST, WHOLE_NUMBERS, kept_as, whole_numbers
from insula.errors import EngineError, FormatError
from insula.formats.gguf import GGUFFile
from insula.models.load import open_model
from insula.ops.reference import forward
from tiny_encoder import write_encoder


def values(kept: np.ndarray, rows: int, columns: int) -> np.ndarray:
    blocks = kept.view([("q", "<i2", BLOCK), ("scale", "<f4")])
    return (blocks["q"] * blocks["scale"][:, None]).reshape(rows, columns)


def test_a_value_is_off_by_half_a_step_at_most() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(19, 192)).astype(np.float32)
    matrix[3, 64:128] = 0
    matrix[5, 7] = -1000
    matrix[6, :64] *= 1e-20
    kept = whole_numbers(matrix)
    assert kept.dtype == np.uint8
    assert kept.nbytes == 19 * 3 * (2 * BLOCK + 4)
    step = np.abs(matrix.reshape(-1, BLOCK)).max(axis=1).repeat(BLOCK).reshape(matrix.shape) / MOST
    off = np.abs(values(kept, *matrix.shape) - matrix)
    assert (off <= 0.501 * step).all()
    assert (values(kept, *matrix.shape)[3, 64:128] == 0).all()


def test_large_matrices_are_worked_on_in_parts() -> None:
    """The parts join: each row is what it is alone."""
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(1100, 512)).astype(np.float32)
    kept = whole_numbers(matrix).reshape(len(matrix), -1)
    for row in (0, 1023, 1024, 1099):
        np.testing.assert_array_equal(kept[row], whole_numbers(matrix[row : row + 1]))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder") / "m.gguf", dtype="f16")


def test_only_what_products_alone_read_is_kept_so(encoder) -> None:
    with open_model(encoder) as model:
        names = matrices(model.graph)
        types = kept_as(model.graph, model.gguf, names, whole=True)
        floats = kept_as(model.graph, model.gguf, names, whole=False)
        assert WHOLE_NUMBERS not in floats.values()
        whole = {name for name, kind in types.items() if kind == WHOLE_NUMBERS}
        assert {name for name in names if name.startswith("blk.")} == whole
        assert types["token_embd.weight"] == floats["token_embd.weight"]


@pytest.mark.parametrize("isa", _native.isa_levels())
def test_hidden_states_are_those_of_floats_to_a_thousandth(encoder, isa) -> None:
    ids = [2, *range(5, 45), 3]
    with open_model(encoder) as model:
        runner = NativeRunner(
            model.graph, model.gguf, n_pages=1, kv_type="f32", isa=isa, whole_numbers=True
        )
        found = runner.step(
            ids, np.arange(len(ids)), [0] * len(ids), [np.zeros(1, np.int32)], np.arange(len(ids))
        )
        wanted = forward(model.graph, model.gguf, ids)
        runner.close()
    off = np.abs(found - wanted).max()
    assert 0 < off < 1e-3 * np.abs(wanted).max()


def test_float32_stays_exact(tmp_path) -> None:
    with open_model(write_encoder(tmp_path / "f32.gguf")) as model:
        types = kept_as(model.graph, model.gguf, matrices(model.graph), whole=True)
    assert WHOLE_NUMBERS not in types.values()


def test_mapped_weights_give_the_same_bits(encoder, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("INSULA_HOME", str(tmp_path))
    texts = ["the cat sat on a mat", "dogs"]
    with LLM(encoder) as one, LLM(encoder, weights="mmap") as other:
        np.testing.assert_array_equal(one.embed(texts).vectors, other.embed(texts).vectors)


def with_value(encoder, path, tensor: str, value: float):
    """A copy of the model in which one number is another."""
    path.write_bytes(encoder.read_bytes())
    with GGUFFile.open(path) as gguf:
        offset = gguf.info(tensor).offset
        assert gguf.info(tensor).type.name == "F16"
    with path.open("r+b") as file:
        file.seek(offset + 2 * 70)  # in the second row of 64
        file.write(np.float16(value).tobytes())
    return path


@pytest.mark.parametrize("weights", ["memory", "mmap"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(encoder, tmp_path, monkeypatch, weights, value) -> None:
    """Rounded it would be some number, and the vectors wrong without a sign of it."""
    monkeypatch.setenv("INSULA_HOME", str(tmp_path))
    for tensor in ("blk.0.attn_q.weight", "blk.0.ffn_up.weight", "blk.1.ffn_down.weight"):
        broken = with_value(encoder, tmp_path / "broken.gguf", tensor, value)
        with pytest.raises(FormatError, match=f"^broken.gguf: the tensor {tensor} holds a NaN"):
            LLM(broken, weights=weights)


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_vectors_that_are_no_numbers_are_an_error(encoder, tmp_path, engine) -> None:
    broken = with_value(encoder, tmp_path / "broken.gguf", "token_embd.weight", np.nan)
    with LLM(broken, engine=engine) as llm:
        with pytest.raises(EngineError, match="hold a NaN"):
            llm.embed([[1]])  # whose row it is
        assert np.isfinite(llm.embed([[5, 6]]).vectors).all()
