"""GPTQ and AWQ folders of every architecture: the values of the same folder without the packing.

`test_packed4` shows that the values are the published formulas'. Here the linear weights of each
golden's folder are packed, whatever the checkpoint calls and fuses them, and must come out of the
converter as they do when they are floats: heads in pairs, Falcon's rows in order.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from golden import golden
from insula.errors import UnsupportedError
from insula.formats.ggml_types import GGMLType
from insula.formats.gguf import GGUFFile
from insula.models.convert import convert
from insula.models.export import export
from models.test_packed4 import awq, gptq

GROUP = 32
#: What quantizers leave as it is: embeddings, heads, norms, and the routers of experts.
_LEFT = r"embed|wte|wpe|lm_head|classifier|pooler|norm|LayerNorm|ln_|router|mlp\.gate\.|moe\.gate\."
#: Its checkpoints hold [in, out], which quantizers turn over in ways of their own.
REFUSED = frozenset({"gpt2"})
#: gpt-oss's experts are one tensor of three axes, which neither method packs; its attention can be.
PACKED = sorted(set(golden.NAMES) - REFUSED)


def pack(folder: Path, method: str, *, symmetric: bool) -> int:
    """Write the weights of `folder` again as `plain` (floats) and `packed`; how many there are."""
    rng = np.random.default_rng(3)
    tensors = load_file(folder / "model.safetensors")
    plain, packed = dict(tensors), dict(tensors)
    count = 0
    for name, values in tensors.items():
        if values.ndim != 2 or not name.endswith(".weight") or re.search(_LEFT, name):
            continue
        n, k = values.shape
        if k % GROUP or n % 8:
            continue
        q_KN = rng.integers(0, 16, (k, n))
        shape = (k // GROUP, n)
        z_GN = np.full(shape, 8) if symmetric else rng.integers(1, 16, shape)
        s_GN = (0.01 + 0.03 * rng.random(shape)).astype(np.float16)
        g_K = np.arange(k) // GROUP
        if method == "gptq":
            parts = gptq(q_KN, z_GN, s_GN, g_K, stored_less=1)
        else:
            parts = awq(q_KN, z_GN, s_GN)
        del packed[name]
        packed |= {name.removesuffix("weight") + part: value for part, value in parts.items()}
        levels = (q_KN - z_GN[g_K]).astype(np.float32)
        plain[name] = np.ascontiguousarray((levels * s_GN[g_K].astype(np.float32)).T)
        count += 1
    said = {"quant_method": method, "bits": 4, "group_size": GROUP}
    said |= {"desc_act": False, "sym": symmetric} if method == "gptq" else {"version": "gemm"}
    config = json.loads((folder / "config.json").read_text())
    for kind, written in (("plain", plain), ("packed", packed)):
        target = folder.with_name(kind)
        shutil.copytree(folder, target)
        more = {"quantization_config": said} if kind == "packed" else {}
        (target / "config.json").write_text(json.dumps(config | more))
        save_file(written, target / "model.safetensors")
    return count


def folder_of(name: str, tmp_path: Path) -> Path:
    export(golden.load(name).write(tmp_path), tmp_path / "folder", dtype="f32")
    return tmp_path / "folder"


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize(("method", "symmetric"), [("gptq", True), ("awq", False)])
def test_the_same_values_as_unpacked(name, method, symmetric, tmp_path) -> None:
    count = pack(folder_of(name, tmp_path), method, symmetric=symmetric)
    assert count > 0
    convert(tmp_path / "plain", tmp_path / "plain.gguf", dtype="f32")
    convert(tmp_path / "packed", tmp_path / "packed.gguf")
    blocks = 0
    kind = GGMLType.Q4_0 if symmetric else GGMLType.Q5_0
    with GGUFFile.open(tmp_path / "plain.gguf") as a, GGUFFile.open(tmp_path / "packed.gguf") as b:
        assert a.tensors.keys() == b.tensors.keys()
        for tensor in a.tensors:
            assert (a.dequantize(tensor) == b.dequantize(tensor)).all(), tensor
            blocks += b.info(tensor).type is kind
    assert blocks > 0


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_weights_in_another_order_are_refused(name, tmp_path) -> None:
    pack(folder_of(name, tmp_path), "gptq", symmetric=True)
    with pytest.raises(UnsupportedError, match="inputs as rows; take the original"):
        convert(tmp_path / "packed", tmp_path / "packed.gguf")
