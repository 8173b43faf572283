"""llama.cpp reads our GGUF files and computes what transformers computed: a third witness."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from golden import golden, tiny_tokenizer
from golden.record import record
from oracle.divergence import divergence, log_softmax
from oracle.llamacpp import LlamaCpp

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("xllamacpp") is None, reason="needs xllamacpp (extra: llamacpp)"
    ),
]

LETTER_A = 2 + tiny_tokenizer.byte_alphabet().index("a")

#: What llama.cpp computes otherwise, or not at all, and why.
ONLY_OURS = {
    "gemma2-scaled": "llama.cpp has no key for an attention scale in Gemma (the converter says so)",
    "gemma3-scaled": "llama.cpp has no key for an attention scale in Gemma (the converter says so)",
    "gpt-oss": "it rounds the ramp of YaRN to whole pairs, which the released code does not; that "
    "alone makes 0.6 nats here, 4e-5 with the same rounding",
    "phi-short": "its smallest context is beyond the original one: it takes the long factors",
    "phi-window": "it leaves phi3's window out",
    "starcoder2-window": "it leaves starcoder2's window out",
}
#: They give no logits.
ENCODERS = {"bert", "bert-labels", "distilbert", "xlm-roberta", "nomic-bert", "qwen3-embedding"}
COMPARED = sorted(set(golden.NAMES) - set(ONLY_OURS) - ENCODERS)


@pytest.mark.parametrize("name", COMPARED)
def test_same_distributions(name, tmp_path):
    wanted = golden.load(name)
    llamacpp = LlamaCpp(wanted.write(tmp_path), letter=LETTER_A, n_ctx=512, threads=1)
    positions = np.arange(0, len(wanted.ids), 4)
    answers = [
        llamacpp.top(wanted.ids[: p + 1].tolist(), tiny_tokenizer.N_VOCAB) for p in positions
    ]
    tokens = np.stack([a[0] for a in answers])
    logprobs = np.stack([a[1] for a in answers])
    found = divergence(log_softmax(wanted.logits[positions]), tokens, logprobs, tokens[:, 0])
    assert found.kl.max() < 5e-4  # its keys and values are float16
    assert found.margins.max(initial=0) < 0.02
    record("llamacpp", name, max(0.0, float(found.kl.max())))
