"""Our Llama has llama-cpp-python 0.3.36's face: every member, parameter, kind and default."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from compat.llama_cpp_face import face
from insula.compat import llama_cpp
from insula.compat.llama_cpp import llama, llama_core

GOLDEN = json.loads((Path(__file__).parent / "llama_cpp_face.json").read_text(encoding="utf-8"))

#: Pointers into llama.cpp, of which there is none here.
ABSENT = {"ctx", "model"}
#: Attributes that the original sets in its constructor.
ATTRIBUTES = {"n_tokens", "input_ids", "scores"}


def ours() -> dict[str, Any]:
    core = face(inspect.getsource(llama_core), "SteppedModel")
    return {**core, **face(inspect.getsource(llama), "Llama")}


@pytest.mark.parametrize("name", sorted(GOLDEN["Llama"].keys() - ABSENT))
def test_member(name: str) -> None:
    assert ours()[name] == GOLDEN["Llama"][name]


def test_nothing_public_beyond_theirs() -> None:
    assert ours().keys() - GOLDEN["Llama"].keys() == ATTRIBUTES


@pytest.mark.parametrize(
    "name",
    [
        *("Llama", "LlamaState", "LlamaGrammar", "LlamaCache", "LlamaRAMCache", "LlamaDiskCache"),
        *("LogitsProcessorList", "StoppingCriteriaList", "LlamaTokenizer", "LLAMA_DEFAULT_SEED"),
    ],
)
def test_what_programs_import(name: str) -> None:
    assert name in llama_cpp.__all__
    assert getattr(llama_cpp, name) is not None


def test_submodules_have_the_originals_names() -> None:
    from insula.compat.llama_cpp.llama_speculative import LlamaPromptLookupDecoding
    from insula.compat.llama_cpp.llama_types import ChatCompletion, CompletionChunk

    assert LlamaPromptLookupDecoding(num_pred_tokens=3).num_pred_tokens == 3
    assert {"id", "choices", "usage"} <= ChatCompletion.__annotations__.keys()
    assert "choices" in CompletionChunk.__annotations__
