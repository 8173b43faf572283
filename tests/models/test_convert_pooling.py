"""What a folder says about pooling reaches the file, and what has no counterpart is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from golden import golden
from insula import LLM
from insula.errors import FormatError, UnsupportedError
from insula.formats.gguf import GGUFFile
from insula.formats.gguf_writer import GGUFWriter
from insula.models.convert import convert
from insula.models.export import export
from insula.models.registry import build_graph
from insula.ops.pooling import scores
from tiny_encoder import save_folder


def metadata(folder):
    convert(folder, folder / "out.gguf", dtype="f32", overwrite=True)
    with GGUFFile.open(folder / "out.gguf") as gguf:
        found = {k: v for k, v in gguf.metadata.items() if "pool" in k or "classifier" in k}
        return {k.removeprefix("bert."): v for k, v in found.items()}, build_graph(gguf).pooling


@pytest.mark.parametrize(
    ("pooling", "number", "kind"),
    [("mean", 1, "mean"), ("cls_token", 2, "cls"), ("lasttoken", 3, "last")],
)
def test_modules(tmp_path, pooling, number, kind):
    folder = save_folder(tmp_path / "model", pooling=pooling, normalize=number != 2, most=77)
    meta, read = metadata(folder)
    assert meta == {
        "pooling_type": number,
        "pooling.normalize": number != 2,
        "pooling.max_tokens": 77,
    }
    assert (read.kind, read.normalize, read.max_tokens) == (kind, number != 2, 77)


def test_the_newer_way_of_saying_it(tmp_path):
    folder = save_folder(tmp_path / "model")
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "lasttoken"}')
    assert metadata(folder)[1].kind == "last"


def test_a_folder_that_says_nothing(tmp_path):
    assert metadata(save_folder(tmp_path / "model", pooling=None)) == ({}, None)


def test_a_head(tmp_path):
    meta, read = metadata(save_folder(tmp_path / "model", labels=("no", "sí")))
    assert meta["pooling_type"] == 4
    assert list(meta["classifier.output_labels"]) == ["no", "sí"]
    assert read.head.labels == ("no", "sí")
    assert read.head.dense == "cls.weight"


def test_names_that_are_no_names(tmp_path):
    folder = save_folder(tmp_path / "model", labels=("LABEL_0", "LABEL_1"))
    assert metadata(folder)[1].head.labels == ()
    config = json.loads((folder / "config.json").read_text())
    for wrong in ({"a": "x"}, ["x"]):
        (folder / "config.json").write_text(json.dumps(config | {"id2label": wrong}))
        with pytest.raises(FormatError, match="id2label"):
            metadata(folder)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("modules.json", [{"type": "a.Transformer"}, {"type": "a.Dense"}], "Transformer, Dense"),
        ("modules.json", {"a": 1}, "list of modules"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "max_tokens"),
        ("1_Pooling/config.json", {"pooling_mode": "weightedmean"}, "weightedmean"),
        ("1_Pooling/config.json", {}, "no pooling"),
        (
            "1_Pooling/config.json",
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            "cls and mean",
        ),
    ],
)
def test_what_has_no_counterpart(tmp_path, file, content, says):
    folder = save_folder(tmp_path / "model")
    (folder / file).write_text(json.dumps(content))
    with pytest.raises((FormatError, UnsupportedError), match=says):
        metadata(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"num_labels": 2, "problem_type": "multi_label_classification"}, "multi_label"),
    ],
)
def test_configs_that_change_the_maths(tmp_path, changes, says):
    labels = ("a", "b") if "problem_type" in changes else None
    folder = save_folder(tmp_path / "model", labels=labels)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UnsupportedError, match=says):
        metadata(folder)


def distilbert(tmp_path, out: str, **changes: object) -> Path:
    """The golden's file, with metadata of its own, or without a key that is None."""
    source = golden.load("distilbert").write(tmp_path)
    with GGUFFile.open(source) as file:
        writer = GGUFWriter(tmp_path / out)
        for key in file.metadata:
            if key not in changes:
                writer.add_raw(key, *file.raw_metadata(key))
        for key, value in changes.items():
            if value is not None:
                writer.add(key, value)
        for info in file.tensors.values():
            writer.add_tensor(info.name, file.data(info.name), info.type, shape=info.shape)
        writer.write()
    return tmp_path / out


ACT = "bert.classifier.activation"


def test_distilberts_head(tmp_path):
    """A ReLU, also in a file of another converter, which has no key for it."""
    case = golden.load("distilbert")
    for out, changes in (("ours.gguf", {}), ("other.gguf", {ACT: None})):
        path = distilbert(tmp_path, out, **changes)
        with LLM(path) as llm:
            assert set(llm.classify(["a"])[0]) == {"NEGATIVE", "POSITIVE"}
        with GGUFFile.open(path) as file:
            head = build_graph(file).pooling.head
            assert head.act == "relu"
            found = scores(head, case.logits[0], file.dequantize)
            np.testing.assert_allclose(found, case.scores, atol=1e-4)
            other = scores(replace(head, act="tanh"), case.logits[0], file.dequantize)
            assert np.abs(other - found).max() > 0.01


def test_activations_that_a_head_has_not(tmp_path):
    with pytest.raises(UnsupportedError, match=r"'elu'.*tanh, relu"):
        LLM(distilbert(tmp_path, "elu.gguf", **{ACT: "elu"}), engine="native")
    with pytest.raises(UnsupportedError, match="'tanh'; a checkpoint of its kind has 'relu'"):
        export(distilbert(tmp_path, "tanh.gguf", **{ACT: "tanh"}), tmp_path / "folder")
    eps = "bert.attention.layer_norm_epsilon"
    with pytest.raises(UnsupportedError, match=r"would come back as 9\.99"):
        export(distilbert(tmp_path, "eps.gguf", **{eps: np.float32(1e-5)}), tmp_path / "folder")
