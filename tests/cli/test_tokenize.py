"""`insula tokenize`, also on files that hold nothing but a vocabulary."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cli.conftest import failed

SHARED = Path(os.environ.get("INSULA_SHARED", Path(__file__).parents[2].parent / "shared"))
VOCABULARY = SHARED / "data" / "vocabs" / "ggml-vocab-llama-bpe.gguf"


def test_ids_and_pieces(insula, tiny):
    done = insula("tokenize", str(tiny), "the ñ", "--json")
    found = json.loads(done.stdout)
    assert b"".join(bytes.fromhex(piece) for piece in found["bytes"]) == "the ñ".encode()
    assert found["count"] == len(found["ids"]) == len(found["pieces"])
    assert found["pieces"][-2:] == ["\\xc3", "\\xb1"]  # half a character is no character


def test_a_line_per_token_for_a_pipe(insula, tiny):
    done = insula("tokenize", str(tiny), "a\nb")
    assert "\x1b" not in done.stdout
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [piece for _, piece in rows] == ["a", "\\n", "b"]
    assert all(token.isdigit() for token, _ in rows)


@pytest.mark.parametrize("args", [[], ["-"]])
def test_text_from_standard_input(insula, tiny, args):
    direct = json.loads(insula("tokenize", str(tiny), "hello there\n", "--json").stdout)
    piped = insula("tokenize", str(tiny), *args, "--json", stdin="hello there\n")
    assert json.loads(piped.stdout) == direct


def test_special_tokens_only_where_asked(insula, tiny):
    plain = json.loads(insula("tokenize", str(tiny), "<|end|>", "--json").stdout)
    special = json.loads(
        insula("tokenize", str(tiny), "<|end|>", "--parse-special", "--json").stdout
    )
    assert special["ids"] == [1]
    assert len(plain["ids"]) > 1


def test_count(insula, tiny):
    assert insula("tokenize", str(tiny), "--count", stdin="").stdout == "0\n"
    assert int(insula("tokenize", str(tiny), "hello", "--count").stdout) > 0


def test_input_that_is_not_text(insula, tiny):
    assert "byte 2" in failed(insula("tokenize", str(tiny), stdin=b"ab\xff"), 2)


def test_a_vocabulary_alone(insula):
    if not VOCABULARY.is_file():
        pytest.skip(f"needs {VOCABULARY}")
    found = json.loads(insula("tokenize", str(VOCABULARY), "Hola, mundo", "--json").stdout)
    assert found["ids"][0] == 128000
    assert "".join(found["pieces"][1:]) == "Hola, mundo"
    assert "vocabulary" in insula("show", str(VOCABULARY)).stdout
