"""An importance matrix: our sums against the reference's inputs, the files, and what it is for."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from quantization import unrounded

from default_model import WHERE_TO_GET_IT, find_default_model
from golden.golden import load
from insula.engine.importance import measure_importance, windows
from insula.engine.quality import builtin_text, compare
from insula.engine.runner import NativeRunner
from insula.errors import ConfigError, FormatError, NotFoundError
from insula.formats.gguf_writer import GGUFWriter
from insula.models.importance import Importance, read_importance
from insula.models.load import open_model
from insula.models.quantize import quantize_file
from insula.ops.graph import Linear
from insula.ops.reference import forward

TEXT = "the island in the sea and the other on the shore of it " * 20


class Spy(np.ndarray):
    """A weight that keeps sums of squares of what it is multiplied with."""

    def __array_finalize__(self, other: object) -> None:
        self.seen = getattr(other, "seen", None)

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        plain = [x.view(np.ndarray) if isinstance(x, Spy) else x for x in inputs]
        if ufunc is np.matmul:
            self.seen.append(np.square(plain[0].astype(np.float64)).sum(axis=0))
        return getattr(ufunc, method)(*plain, **options)


class Spied:
    """A file whose weights tell what they were multiplied with."""

    def __init__(self, gguf) -> None:
        self.gguf = gguf
        self.squares: dict[str, list[np.ndarray]] = {}

    def dequantize(self, name: str) -> np.ndarray:
        weight = self.gguf.dequantize(name).view(Spy)
        weight.seen = self.squares.setdefault(name, [])
        return weight


@pytest.mark.parametrize("name", ["llama", "gemma3", "phi", "qwen3-yarn"])
def test_the_sums_are_the_references(tmp_path: Path, name: str) -> None:
    """Fused, split by rows, with norms before or without: each product's own input."""
    path = load(name).write(tmp_path)
    found = measure_importance(path, TEXT, window=100, most=3, name="words")
    with open_model(path) as model:
        every = windows(model, TEXT, window=100)
        parts = every[:3]
        spied = Spied(model.gguf)
        for ids in parts:
            forward(model.graph, spied, ids)
        tensors = {op.weight.split("[")[0] for op in model.graph.ops if isinstance(op, Linear)}
        assert set(found.squares) == tensors
        assert len(parts) == found.chunks == 3
        for op in model.graph.ops:
            if isinstance(op, Linear):
                tensor = op.weight.split("[")[0]
                wanted = sum(spied.squares[op.weight])
                # Keys and values in float16 and int8 products lie between the two.
                assert found.squares[tensor][0] == pytest.approx(wanted, rel=0.05)
                assert found.counts[tensor].tolist() == [sum(map(len, parts))]
    assert found.datasets == ("words",)
    assert found.left_out == len(every) - 3 > 0


def test_any_number_of_threads_and_of_rows_gives_the_same_sums(tiny_model: Path) -> None:
    one = measure_importance(tiny_model, TEXT, window=64, threads=1)
    three = measure_importance(tiny_model, TEXT, window=64, threads=3)
    assert one.squares.keys() == three.squares.keys()
    for name, squares in one.squares.items():
        assert squares.tobytes() == three.squares[name].tobytes()


def test_recording_changes_no_logit_and_single_rows_count_too(tiny_model: Path) -> None:
    with open_model(tiny_model) as model:
        ids = model.tokenizer.encode(TEXT)[:9]

        def run(*, record: bool) -> tuple[list[bytes], np.ndarray, int]:
            runner = NativeRunner(model.graph, model.gguf, n_pages=1)
            runner.record(on=record)
            table, zero = np.zeros(1, np.int32), np.zeros(1, np.int32)
            logits = [
                runner.step([token], [at], zero, [table], [0]).tobytes()
                for at, token in enumerate(ids)
            ]
            sums, rows = runner.recorded("blk.1.ffn_down.weight")
            runner.close()
            return logits, sums, rows

        plain, nothing, none = run(record=False)
        kept, sums, rows = run(record=True)
    assert plain == kept
    assert (len(nothing), none) == (0, 0)
    assert rows == 9
    assert (sums > 0).all()


def test_a_saved_matrix_comes_back(tiny_model: Path, tmp_path: Path) -> None:
    made = measure_importance(tiny_model, TEXT, name="a text")
    made.save(tmp_path / "im.gguf")
    found = read_importance(tmp_path / "im.gguf")
    assert found.datasets == ("a text",)
    assert (found.chunks, found.chunk_tokens) == (made.chunks, made.chunk_tokens)
    for name, weights in made.weights().items():
        np.testing.assert_allclose(found.weights()[name], weights, rtol=1e-6)
    with pytest.raises(ConfigError, match="exists"):
        made.save(tmp_path / "im.gguf")


def test_an_expert_that_was_never_reached_counts_its_columns_alike() -> None:
    one = Importance(
        squares={"x": np.array([[8.0, 2.0], [0.0, 0.0]])}, counts={"x": np.array([4.0, 0.0])}
    )
    assert one.weights()["x"].tolist() == [[2.0, 0.5], [1.0, 1.0]]


def dat(*entries: tuple[bytes, int, list[float]], tail: bytes = b"") -> bytes:
    """llama.cpp's older form."""
    out = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        out += struct.pack("<i", len(name)) + name
        out += struct.pack(f"<ii{len(values)}f", calls, len(values), *values)
    return out + tail


def test_llamacpps_dat(tmp_path: Path) -> None:
    path = tmp_path / "old.dat"
    path.write_bytes(
        dat((b"blk.0.attn_q.weight", 4, [8.0, 2.0]), tail=struct.pack("<ii", 4, 5) + b"words")
    )
    found = read_importance(path)
    assert found.weights()["blk.0.attn_q.weight"].tolist() == [[2.0, 0.5]]
    assert (found.chunks, found.datasets) == (4, ("words",))
    path.write_bytes(dat((b"x", 0, [3.0])))  # before there were counts
    assert read_importance(path).weights()["x"].tolist() == [[3.0]]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (struct.pack("<ii", -1, 0), "-1 entries"),
        (struct.pack("<i", 1 << 30), "entries"),
        (dat((b"x", 1, [1.0]))[:-2], "past its end"),
        (dat((b"x", 1, [1.0]), (b"x", 1, [1.0])), "twice"),
        (dat((b"x", 1, [-1.0])), "no sums of squares"),
        (dat((b"x", 1, [float("nan")])), "no sums of squares"),
        (dat((b"\xff", 1, [1.0])), "UTF-8"),
        (struct.pack("<iii", 1, 1 << 20, 0), "name of"),
        (b"only words", "text"),
    ],
)
def test_files_that_are_no_matrix(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "x.dat"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=says):
        read_importance(path)


def test_a_model_is_no_matrix(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="not an importance matrix"):
        read_importance(tiny_model)
    writer = GGUFWriter(tmp_path / "half.gguf")
    writer.add("general.type", "imatrix")
    writer.add_tensor("x.in_sum2", np.ones((1, 4), np.float32))
    writer.write()
    with pytest.raises(FormatError, match=r"without x\.counts"):
        read_importance(tmp_path / "half.gguf")
    with pytest.raises(NotFoundError):
        read_importance(tmp_path / "gone")


def test_a_text_without_tokens(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="at least two"):
        measure_importance(tiny_model, "")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fmt", ["Q3_K_M", "IQ4_XS"])
def test_the_default_model_loses_less_with_it(tmp_path: Path, fmt: str) -> None:
    """Importance from Python's own library, measured on the built-in page. The published file's
    Q4_1 is unrounded first: formats with a minimum would find its levels again."""
    published = find_default_model()
    if published is None:
        pytest.skip(WHERE_TO_GET_IT)
    source = unrounded(published, tmp_path / "source.gguf")
    import argparse
    import inspect
    import textwrap

    text = (inspect.getsource(textwrap) + inspect.getsource(argparse))[:60_000]
    importance = measure_importance(source, text, most=24).weights()
    quantize_file(source, tmp_path / "plain.gguf", fmt)
    quantize_file(source, tmp_path / "weighted.gguf", fmt, importance=importance)
    page = builtin_text()
    plain = compare(source, tmp_path / "plain.gguf", page)
    weighted = compare(source, tmp_path / "weighted.gguf", page)
    assert weighted.kl_mean < 0.9 * plain.kl_mean
