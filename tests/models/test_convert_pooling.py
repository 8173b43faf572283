"""What a folder says about pooling reaches the file, and what has no counterpart is refused."""

from __future__ import annotations

import json

import pytest

from insula.errors import FormatError, UnsupportedError
from insula.formats.gguf import GGUFFile
from insula.models.convert import convert
from insula.models.registry import build_graph
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
