"""Every format through the whole engine: near the float32 forward of the same file, and the same
bits at every instruction-set level, for any slicing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from insula import _native
from insula.engine.runner import NativeRunner
from insula.formats.ggml_types import GGMLType
from insula.models.load import NATIVE_FORMATS, open_model
from insula.models.mixes import TARGETS
from insula.models.quantize import quantize_file
from insula.ops.reference import forward
from tiny_chat_model import write_tiny

LEVELS = [name for name, there in _native.cpu_info()["levels"].items() if there]
IDS = np.random.default_rng(3).integers(2, 320, 40).astype(np.int32)

#: One target for each format, none of its mix's other types in it.
PURE = {
    GGMLType.Q2_K: "Q2_K",
    GGMLType.Q3_K: "Q3_K_M",
    GGMLType.Q4_K: "Q4_K_M",
    GGMLType.Q5_K: "Q5_K_M",
    **{t: t.name for t in NATIVE_FORMATS if t.name in TARGETS and t is not GGMLType.Q2_K},
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama whose rows 256 divides."""
    return write_tiny(
        tmp_path_factory.mktemp("formats") / "tiny.gguf", context=64, width=256, hidden=512
    )


def logits(runner: NativeRunner, slices: list[int]) -> np.ndarray:
    """Logits [T, V] of IDS, prefilled in slices."""
    table, rows, start = np.array([0], np.int32), [], 0
    for n in slices:
        at = np.arange(start, start + n, dtype=np.int32)
        rows.append(runner.step(IDS[at], at, np.zeros_like(at), [table], np.arange(n)))
        start += n
    assert start == len(IDS)
    return np.concatenate(rows)


def test_every_format_is_tested() -> None:
    assert set(PURE) == set(NATIVE_FORMATS)


@pytest.mark.parametrize("kind", sorted(PURE), ids=lambda kind: kind.name)
def test_a_model_of_one_format(kind: GGMLType, original: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    quantize_file(original, path, PURE[kind], pure=True)
    with open_model(path) as model:
        matrices = {t.type for t in model.gguf.tensors.values() if len(t.shape) > 1}
        assert matrices == {kind}
        truth = forward(model.graph, model.gguf, IDS)
        found = []
        for isa in LEVELS:
            runner = NativeRunner(model.graph, model.gguf, n_pages=1, threads=1, isa=isa)
            assert runner.isa == isa
            for slices in ([40], [1, 2, 5, 16, 16], [1] * 40):
                found.append(logits(runner, slices))
            runner.close()
    assert all(np.array_equal(x, found[0]) for x in found)
    # What activations in int8 cost, one scale for 32 or for 256 of them.
    off = np.sqrt(np.square(found[0] - truth).mean()) / truth.std()
    assert off < (0.06 if kind.block_size == 256 else 0.03)
