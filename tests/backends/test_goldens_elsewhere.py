"""Each architecture through Insula on its other backends: the logits that its golden has."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from golden import golden, tiny_tokenizer
from golden.record import close, record
from insula import LLM
from insula.models.export import export
from oracle.divergence import log_softmax
from oracle.test_llamacpp_goldens import COMPARED, ENCODERS

pytestmark = pytest.mark.slow

#: They give no logits; that backend generates text.
GENERATING = sorted(set(golden.NAMES) - ENCODERS)


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None,
    reason="torch or transformers is not installed",
)
@pytest.mark.parametrize("name", GENERATING)
def test_the_transformers_backend(name: str, tmp_path: Path) -> None:
    wanted = golden.load(name)
    export(wanted.write(tmp_path), tmp_path / "folder", dtype="f32")
    with LLM(tmp_path / "folder", engine="transformers", n_threads=1, gpu_layers=0) as llm:
        close("on transformers", name, llm.logits(wanted.ids.tolist()), wanted.logits, 1e-3)


@pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="needs xllamacpp (extra: llamacpp)"
)
@pytest.mark.parametrize("name", COMPARED)
def test_the_llamacpp_backend(name: str, tmp_path: Path) -> None:
    """The probabilities of the tokens that it names first; its keys and values are float16."""
    wanted = golden.load(name)
    # Up to a token that is a whole character: what has no text yet this backend does not name.
    letters = [i for i, char in enumerate(tiny_tokenizer.byte_alphabet(), 2) if char.isascii()]
    last = max(at for at, row in enumerate(wanted.logits) if row.argmax() in letters)
    logprobs = log_softmax(wanted.logits)[last]
    with LLM(wanted.write(tmp_path), engine="llamacpp", n_threads=1) as llm:
        ids = wanted.ids[: last + 1].tolist()
        result = llm.generate(ids, temperature=0, max_tokens=1, logprobs=5)
    assert result.logprobs is not None
    (token,) = result.logprobs
    found = {token_id: logprob for token_id, _, logprob in token.top}
    assert len(found) == 5
    off = max(abs(value - logprobs[token_id]) for token_id, value in found.items())
    assert off < 0.05
    record("on llamacpp", name, float(np.float32(off)))
