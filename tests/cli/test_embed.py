"""`insula embed`: vectors, ranks and labels on standard output."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cli.conftest import failed
from insula import LLM
from tiny_encoder import WIDTH, write_encoder


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    return {
        "mean": str(write_encoder(folder / "mean.gguf", most=20)),
        "rank": str(write_encoder(folder / "rank.gguf", labels=("score",))),
        "labels": str(write_encoder(folder / "labels.gguf", labels=("sad", "glad"))),
    }


def test_one_array_a_text(insula, paths):
    done = insula("embed", paths["mean"], "the cat", "a dog")
    rows = np.array([json.loads(line) for line in done.stdout.splitlines()])
    with LLM(paths["mean"]) as llm:
        np.testing.assert_allclose(rows, llm.embed(["the cat", "a dog"]).vectors, atol=1e-6)
    assert f"{WIDTH} dimensions" in done.stderr


def test_lines_of_standard_input(insula, paths):
    piped = insula("embed", paths["mean"], "--json", stdin="the cat\r\na dog\n")
    found = json.loads(piped.stdout)
    assert found == json.loads(insula("embed", paths["mean"], "the cat", "a dog", "--json").stdout)
    assert (found["dimensions"], len(found["embeddings"]), found["truncated"]) == (WIDTH, 2, [])
    # The answer's order is the lines': none may be left out, and other separators end none.
    empty = insula("embed", paths["mean"], stdin="the cat\n\na dog\n")
    assert "line 2 is empty" in failed(empty, 2)
    one = insula("embed", paths["mean"], "-q", stdin="the cat\u2028a dog\n")
    assert len(one.stdout.splitlines()) == 1


def test_too_long(insula, paths):
    long = "cat " * 30
    assert "20" in failed(insula("embed", paths["mean"], long), 1)
    done = insula("embed", paths["mean"], long, "cat", "--truncate", "--dimensions", "4", "-q")
    assert [len(json.loads(line)) for line in done.stdout.splitlines()] == [4, 4]
    assert "1 of 2 texts were cut to 20 tokens" in done.stderr
    assert "1 de 2" in insula("embed", paths["mean"], long, "cat", "--truncate", LANG="es").stderr


def test_ranks(insula, paths):
    found = json.loads(
        insula("embed", paths["rank"], "--rank", "a cat", "dog", "cat", "--json").stdout
    )
    assert sorted(each["index"] for each in found) == [0, 1]
    assert found[0]["score"] >= found[1]["score"]
    lines = insula("embed", paths["rank"], "--rank", "a cat", "dog", "cat").stdout.splitlines()
    assert [line.split("\t")[1] for line in lines] == [each["text"] for each in found]


def test_labels(insula, paths):
    done = insula("embed", paths["labels"], "--classify", "the sun is hot")
    name, p, each = done.stdout.rstrip("\n").split("\t")
    assert name in ("sad", "glad")
    assert float(p) >= 0.5
    assert each == "the sun is hot"


def test_what_cannot_be(insula, paths, tiny):
    assert "--rank" in failed(insula("embed", paths["rank"], "--rank", "q", "--classify", "t"), 2)
    assert "texts" in failed(insula("embed", paths["mean"], stdin="\n"), 2)
    assert "all-minilm" in failed(insula("embed", str(tiny), "a text"), 1)
